use super::*;
use crate::train::clocks::measure::ParameterSums;
use crate::train::recipe;

fn probe(rank: f64) -> ProbeFigures {
    let weight = WeightFigures {
        name: "fc1".into(),
        shape: [64, 64],
        norm: 5.0,
        stable_rank: rank,
        effective_rank: Some(1.5 * rank),
        normalised: false,
    };
    ProbeFigures {
        weights: vec![weight],
        balance: vec![],
        flips: vec![("fc1".into(), 0.125)],
        collapse: None,
        schatten: None,
    }
}

fn row(step: u64, train_loss: f64) -> Epoch {
    Epoch {
        epoch: step / 100,
        step,
        seconds: step as f64 / 100.0,
        train_loss,
        test_loss: 0.5,
        test_acc: 0.9,
        train_acc: None,
        margin: 2.0,
        lr: 1e-3,
        samples_per_s: 1e4,
        review_seconds: 0.01,
        extra: BTreeMap::new(),
    }
}

fn watch(memory: &Memory) -> Watch {
    let mut config = recipe("digits").expect("a recipe");
    config.train.label_smoothing = 0.0;
    Watch::new(&config, 10, 360, memory)
}

const OUTLOOK: Outlook = Outlook { contraction_left: Some(1.0), seconds_left: Some(9.0) };

/// Loss exp(-step/100) and rank 1 + 20 exp(-step/500), from step 1 to `steps`; review every 100.
fn run(watch: &mut Watch, steps: std::ops::RangeInclusive<u64>) -> Epoch {
    let mut last = row(0, f64::NAN);
    for step in steps {
        let (t, seconds) = (step as f64, step as f64 / 100.0);
        watch.step(step, seconds, (-t / 100.0).exp(), 0.01, 0.05);
        if step.is_multiple_of(100) {
            last = row(step, (-t / 100.0).exp());
            watch.review(&mut last, None, Some(&probe(1.0 + 20.0 * (-t / 500.0).exp())), OUTLOOK);
        }
    }
    last
}

#[test]
fn both_clocks_have_their_hitting_times() {
    let mut watch = watch(&Memory::default());
    watch.start(&probe(21.0));
    let last = run(&mut watch, 1..=1000);
    let clocks = &watch.now;
    let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.06;
    let fit = |level: f64| clocks.fit.iter().find(|r| r.level == level).expect("reached").step;
    for level in [0.3, 0.1, 0.01] {
        assert!(near(fit(level), -100.0 * f64::ln(level)), "{level}: {}", fit(level));
    }
    let half = clocks.simple.iter().find(|r| r.level == 0.5).expect("reached");
    assert!(near(half.step, 500.0 * 2f64.ln()), "{half:?}");
    assert_eq!(clocks.simple.len(), 4, "a tenth is not reached: {:?}", clocks.simple);
    let ratio = clocks.ratio.expect("both reached");
    assert!(near(ratio[0], 5.0 * 2f64.ln() / 20f64.ln()) && near(ratio[1], ratio[0]));
    let c = clocks.contraction.expect("C");
    assert!((c - 0.5).abs() < 1e-9, "1000 steps of 0.01 * 0.05: {c}");
    assert!((clocks.planned.expect("planned") - 1.5).abs() < 1e-9);
    let done = clocks.done_in.expect("it decays");
    assert!((done - 30.0).abs() < 1e-6, "1.5 to go at 0.05 a second: {done}");
    assert!((last.extra["excess_rank"].as_f64().expect("a number") - (-2f64).exp()).abs() < 1e-9);
    assert_eq!(last.extra["gate_flips"], json!({"fc1": 0.125}));
    let tail = clocks.tail_exponent.as_ref().expect("it fell");
    assert_eq!(tail.law, "exponential", "{tail:?}");
    assert!(!clocks.advice.is_empty());
    assert_eq!(
        last.extra["effective_rank"]["fc1"].as_f64(),
        clocks.effective_rank,
        "{:?}",
        last.extra
    );
}

/// Each level is in the row of the review that is the first to know of it, and in no other.
#[test]
fn a_review_names_the_levels_that_are_new() {
    let mut watch = watch(&Memory::default());
    watch.start(&probe(21.0));
    let mut so_far = NewlyReached::default();
    for hundred in 0..10 {
        let row = run(&mut watch, 100 * hundred + 1..=100 * (hundred + 1));
        let Some(new) = row.extra.get(REACHED) else { continue };
        let new: NewlyReached = serde_json::from_value(new.clone()).expect("its own form");
        let last = (100 * hundred) as f64;
        for hit in new.fit.iter().chain(&new.simple) {
            assert!(hit.step > last - 100.0 && hit.step <= last + 100.0, "{hit:?} at {last}");
        }
        so_far.fit.extend(new.fit);
        so_far.simple.extend(new.simple);
    }
    assert_eq!((&so_far.fit, &so_far.simple), (&watch.now.fit, &watch.now.simple));
    assert!(so_far.fit.len() > 4 && so_far.simple.len() == 4, "{so_far:?}");
}

#[test]
fn a_resumed_watch_goes_on_as_if_it_had_not_stopped() {
    let mut whole = watch(&Memory::default());
    whole.start(&probe(21.0));
    run(&mut whole, 1..=450);
    let text = serde_json::to_string(&whole.memory()).expect("json");
    let mut resumed = watch(&serde_json::from_str(&text).expect("json"));
    run(&mut whole, 451..=900);
    run(&mut resumed, 451..=900);
    assert_eq!(resumed.memory(), whole.memory());
    let (a, b) = (&resumed.now, &whole.now);
    assert_eq!((&a.fit, &a.simple, &a.advice), (&b.fit, &b.simple, &b.advice));
    // At the first review of the process, too: the rate of C is that since the review before.
    let mut resumed = watch(&serde_json::from_str(&text).expect("json"));
    run(&mut resumed, 451..=500);
    let done = resumed.now.done_in.expect("it decays");
    assert!((done - 35.0).abs() < 1e-6, "1.75 to go at 0.05 a second: {done}");
}

/// SGD with momentum 0.9, rate 0.1 and decay 0.02 at weights of length 3 that stay as they are.
#[test]
fn the_residual_is_zero_where_the_norm_stands_still() {
    for (decay, along) in [(Decay::Coupled, -0.02), (Decay::Decoupled, -0.002)] {
        let mut config = recipe("digits").expect("a recipe");
        config.optimizer = OptimizerConfig {
            rule: Rule::Sgd { momentum: 0.9, nesterov: false },
            weight_decay: 0.04,
            decay,
            ..OptimizerConfig::sgd()
        };
        let mut watch = Watch::new(&config, 10, 360, &Memory::default());
        // Half of it: the decay has a schedule.
        watch.step(1, 0.01, 1.0, 0.1, 0.02);
        let sums = ParameterSums {
            name: "fc1.weight".into(),
            gradient2: 1.0,
            weight2: 9.0,
            gradient_weight: along * 9.0,
            decay_factor: 1.0,
        };
        let steps = StepFigures {
            steps: 1,
            rows: 64,
            accuracy: 0.5,
            margin: 1.0,
            least_margin: -1.0,
            logit_rms: 1.0,
            saturated: 0.0,
            parameters: vec![sums],
        };
        let mut last = row(1, 1.0);
        watch.review(&mut last, Some(&steps), None, OUTLOOK);
        let radial = last.extra["radial"]["fc1.weight"].as_f64().expect("a number");
        assert!(radial.abs() < 1e-9, "{decay:?}: {radial}");
    }
}

/// 98.6 % of 2048 rows and then 98.0 % of 10 000: no more than chance between such samples.
#[test]
fn a_review_of_more_rows_does_not_make_the_earlier_ones_surer() {
    let mut config = recipe("digits").expect("a recipe");
    config.train.label_smoothing = 0.0;
    let mut watch = Watch::new(&config, 10, 10_000, &Memory::default());
    let mut review = |step: u64, test_acc: f64, test_rows: Option<u64>| {
        let mut row = Epoch { test_acc, ..row(step, 0.4) };
        row.extra.extend(test_rows.map(|rows| ("test_rows".to_owned(), json!(rows))));
        watch.step(step, 0.01, 0.4, 0.01, 0.05);
        watch.review(&mut row, None, None, OUTLOOK);
        watch.now.advice[0].reason.clone()
    };
    review(100, 0.97, Some(2048));
    review(200, 0.986, Some(2048));
    let said = review(300, 0.98, None);
    assert!(!said.contains("validation fell"), "{said}");
    let said = review(400, 0.97, None);
    assert!(said.contains("validation fell"), "{said}");
}

#[test]
fn smoothed_labels_have_a_floor() {
    assert_eq!(floor(0.0, 10), 0.0);
    // scipy.stats.entropy([0.955] + 9 * [0.005]) = 0.28238...
    let wanted = -(0.955f64 * 0.955f64.ln() + 9.0 * 0.005 * 0.005f64.ln());
    assert!((floor(0.05, 10) - wanted).abs() < 1e-12, "{}", floor(0.05, 10));
}

#[test]
fn what_contracts_is_counted_and_nothing_else() {
    let sgd = OptimizerConfig {
        rule: Rule::Sgd { momentum: 0.9, nesterov: false },
        weight_decay: 0.1,
        ..OptimizerConfig::sgd()
    };
    assert!((gain(&sgd) - 10.0).abs() < 1e-12 && stationary(&sgd) == Some(1.0));
    let decoupled = OptimizerConfig { decay: Decay::Decoupled, ..sgd };
    let factor = stationary(&decoupled).expect("plain gradients");
    assert!(gain(&decoupled) == 1.0 && (factor - 0.1).abs() < 1e-12, "{factor}");
    assert_eq!(stationary(&OptimizerConfig { weight_decay: 0.0, ..sgd }), None);
    assert_eq!(
        (gain(&OptimizerConfig::adamw()), stationary(&OptimizerConfig::adamw())),
        (1.0, None)
    );
    let l2 = OptimizerConfig { decay: Decay::Coupled, ..OptimizerConfig::adamw() };
    assert_eq!(gain(&l2), 0.0, "Adam divides it away");
    let cautious = OptimizerConfig { decay: Decay::Cautious, ..OptimizerConfig::adamw() };
    assert_eq!(gain(&cautious), 1.0, "at most");
}

#[test]
fn long_series_are_thinned() {
    let mut series = Series::default();
    for step in 1..5000 {
        push(&mut series, Point { step: f64::from(step), seconds: 0.0, value: 1.0 });
    }
    let points = series.points();
    assert!(points.len() <= MOST_POINTS && points.len() > MOST_POINTS / 4);
    assert!(points[0].step < 20.0 && points[points.len() - 1].step > 4980.0);
}
