//! Learning-rate schedules against PyTorch's (`tests/pytorch/schedules.json`), and what they promise
//! beyond.

use serde_json::Value;
use twoclocks::optim::{Anneal, CycleMode, Position, Schedule};

fn parse(text: &str) -> Result<Schedule, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

fn at(step: u64, total: u64) -> Position {
    Position { step, total_steps: Some(total), progress: 0.0 }
}

fn timed(progress: f64) -> Position {
    Position { step: 7, total_steps: None, progress }
}

/// Momentum at the lowest rate and at the peak.
fn momentum(p: &Value) -> Option<[f64; 2]> {
    Some([p["max_momentum"].as_f64()?, p["base_momentum"].as_f64()?])
}

/// Our schedule for one of PyTorch's, and the rate that it is a share of.
fn translated(kind: &str, base: f64, p: &Value) -> (Schedule, f64) {
    let f = |key: &str| p[key].as_f64().unwrap_or_else(|| panic!("{kind} has no {key}"));
    let n = |key: &str| p[key].as_u64().unwrap_or_else(|| panic!("{kind} has no {key}"));
    match kind {
        "StepLR" => (Schedule::Step { every: n("step_size"), factor: f("gamma") }, base),
        "CosineAnnealingLR" => (Schedule::Cosine { floor: f("eta_min") / base, warmup: 0.0 }, base),
        "LinearLR" => {
            let (from, to) = (f("start_factor"), f("end_factor"));
            (Schedule::Linear { from, to, steps: Some(n("total_iters")) }, base)
        }
        "OneCycleLR" => {
            let anneal = match p["anneal_strategy"].as_str() {
                Some("cos") => Anneal::Cos,
                Some("linear") => Anneal::Linear,
                other => panic!("anneal_strategy {other:?}"),
            };
            let (pct_start, div, final_div) =
                (f("pct_start"), f("div_factor"), f("final_div_factor"));
            let momentum = momentum(p);
            (Schedule::OneCycle { pct_start, div, final_div, anneal, momentum }, f("max_lr"))
        }
        "CyclicLR" => {
            let mode = match p["mode"].as_str() {
                Some("triangular") => CycleMode::Triangular,
                Some("triangular2") => CycleMode::Triangular2,
                Some("exp_range") => CycleMode::ExpRange,
                other => panic!("mode {other:?}"),
            };
            let gamma = p["gamma"].as_f64().unwrap_or(1.0);
            let (low, up, down) = (base / f("max_lr"), n("step_size_up"), n("step_size_down"));
            let (down, momentum) = (Some(down), momentum(p));
            (Schedule::Cyclic { mode, low, up, down, gamma, momentum }, f("max_lr"))
        }
        other => panic!("{other} is not translated"),
    }
}

#[test]
fn rates_are_those_of_pytorch() {
    let all: Value = serde_json::from_str(include_str!("pytorch/schedules.json")).expect("JSON");
    let total = all["steps"].as_u64().expect("steps");
    let rows = all["schedules"].as_array().expect("schedules");
    assert_eq!(rows.len(), 11);
    for row in rows {
        let (name, base) = (&row["name"], row["base_lr"].as_f64().expect("base_lr"));
        let kind = row["torch_class"].as_str().expect("torch_class");
        let (schedule, rate) = translated(kind, base, &row["parameters"]);
        schedule.validate().expect("valid");
        let want = row["lr"].as_array().expect("lr");
        assert_eq!(want.len() as u64, total);
        for (step, want) in want.iter().enumerate() {
            let want = want.as_f64().expect("a number");
            let got = schedule.rate(rate, at(step as u64, total));
            assert!(got.is_finite());
            // PyTorch steps some schedules from rate to rate, and rounds each time.
            let error = (got - want).abs() / want;
            assert!(error <= 1e-10, "{name} step {step}: {got}, PyTorch has {want}");
            let got = schedule.momentum_at(at(step as u64, total));
            let Some(want) = row["momentum"][step].as_f64() else {
                assert_eq!(got, None, "{name}");
                continue;
            };
            let error = (got.expect("momentum") - want).abs();
            assert!(error <= 1e-10, "{name} step {step}: {got:?}, PyTorch has {want}");
        }
    }
}

#[test]
fn one_cycle_rises_to_the_rate_and_ends_far_below_its_start() {
    for anneal in ["cos", "linear"] {
        let schedule = parse(&format!("kind = 'one_cycle'\nanneal = '{anneal}'")).unwrap();
        for total in [10, 97, 1000] {
            let rates: Vec<f64> = (0..total).map(|i| schedule.rate(0.5, at(i, total))).collect();
            let highest = rates.iter().copied().fold(0.0, f64::max);
            assert!(highest <= 0.5 && highest > 0.4, "{highest} of {total}");
            assert!((rates[0] - 0.5 / 25.0).abs() < 1e-12);
            let last = rates[rates.len() - 1];
            assert!((last - 0.5 / 25.0 / 1e4).abs() < 1e-12, "{last}");
            let peak = rates.iter().position(|&rate| rate == highest).unwrap();
            assert!(rates[..=peak].is_sorted());
            assert!(rates[peak..].iter().rev().is_sorted());
        }
        assert_eq!(schedule.rate(0.5, timed(0.3)), 0.5);
        assert!((schedule.rate(0.5, timed(1.0)) - 2e-6).abs() < 1e-12);
        // A run that goes on past its horizon stays at the last rate.
        assert_eq!(schedule.rate(0.5, at(2000, 1000)), schedule.rate(0.5, at(999, 1000)));
    }
}

#[test]
fn warmup_stable_decay_is_flat_in_the_middle() {
    let text = "kind = 'warmup_stable_decay'\nwarmup = 0.1\ndecay = 0.2\nfloor = 0.25";
    let schedule = parse(text).unwrap();
    for i in 0..=1000u64 {
        let x = i as f64 / 1000.0;
        for rate in [schedule.rate(2.0, at(i, 1001)), schedule.rate(2.0, timed(x))] {
            match x {
                x if x < 0.1 => assert!((0.08..2.0).contains(&rate), "{rate} at {x}"),
                x if x <= 0.8 => assert_eq!(rate, 2.0, "at {x}"),
                x => assert!((0.5 - 1e-12..2.0).contains(&rate), "{rate} at {x}"),
            }
        }
    }
    assert!((schedule.rate(2.0, at(1000, 1001)) - 0.5).abs() < 1e-12);
    assert!((schedule.rate(2.0, timed(0.9)) - 1.25).abs() < 1e-12);
}

/// Where the number of steps is known, the clock has no say; where it is not, the clock drives the
/// same curve.
#[test]
fn a_time_budget_drives_the_same_curve() {
    for text in [
        "kind = 'cosine'\nfloor = 0.1\nwarmup = 0.2",
        "kind = 'linear'\nfrom = 1.0\nto = 0.0",
        "kind = 'warmup_stable_decay'\ndecay = 1.0",
    ] {
        let schedule = parse(text).unwrap();
        for i in 0..=100u64 {
            let known = Position { step: i, total_steps: Some(101), progress: f64::NAN };
            let clock = timed(i as f64 / 100.0);
            assert_eq!(schedule.rate(0.3, known), schedule.rate(0.3, clock), "{text} at {i}");
        }
    }
    let warm = parse("kind = 'cosine'\nwarmup = 0.5").unwrap();
    assert!((warm.rate(1.0, timed(0.0)) - 0.04).abs() < 1e-12, "no step has rate 0");
    assert!((warm.rate(1.0, timed(0.5)) - 1.0).abs() < 1e-12);
    assert!((warm.rate(1.0, timed(0.75)) - 0.5).abs() < 1e-12);
}

#[test]
fn every_schedule_is_finite_and_not_negative_everywhere() {
    for text in [
        "kind = 'constant'",
        "kind = 'step'\nevery = 3\nfactor = 0.5",
        "kind = 'cosine'",
        "kind = 'cosine'\nwarmup = 0.99",
        "kind = 'linear'\nfrom = 0.0\nto = 1.0\nsteps = 5",
        "kind = 'one_cycle'\npct_start = 0.0",
        "kind = 'one_cycle'\npct_start = 1.0",
        "kind = 'cyclic'\nlow = 0.1\nup = 4",
        "kind = 'cyclic'\nlow = 0.0\nup = 1\ndown = 9\nmode = 'exp_range'\ngamma = 0.9",
        "kind = 'warmup_stable_decay'\nwarmup = 0.9\ndecay = 0.1",
        "kind = 'warmup_stable_decay'\nwarmup = 1.0\ndecay = 0.0",
    ] {
        let schedule = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        schedule.validate().unwrap_or_else(|e| panic!("{text}: {e}"));
        let again = parse(&toml::to_string(&schedule).unwrap()).unwrap();
        assert_eq!(again, schedule, "printed and read back");
        for total in [1, 2, 3, 50] {
            for step in 0..total + 3 {
                let rate = schedule.rate(0.1, at(step, total));
                assert!((0.0..=0.1 + 1e-12).contains(&rate), "{text}: {rate} at {step} of {total}");
            }
        }
        for i in 0..=100 {
            let rate = schedule.rate(0.1, timed(f64::from(i) / 100.0));
            assert!((0.0..=0.1 + 1e-12).contains(&rate), "{text}: {rate} at {i} %");
        }
    }
}

#[test]
fn schedules_that_make_no_sense_are_refused_by_name() {
    for (text, words) in [
        ("kind = 'cosine'\nwarm = 0.1", "unknown field `warm`"),
        ("kind = 'constant'\nfloor = 0.1", "unknown field `floor`"),
        ("kind = 'stepwise'", "unknown variant"),
        ("kind = 'linear'\nfrom = 0.1", "missing field `to`"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(words), "{text}: {error}");
    }
    for (text, words) in [
        ("kind = 'step'\nevery = 0\nfactor = 0.5", "schedule.every: 0 is not above 0"),
        ("kind = 'step'\nevery = 1\nfactor = nan", "schedule.factor: NaN"),
        ("kind = 'cosine'\nwarmup = 1.0", "schedule.warmup: 1 is not below 1"),
        ("kind = 'cosine'\nfloor = 1.5", "schedule.floor: 1.5 is not between 0 and 1"),
        ("kind = 'linear'\nfrom = -1.0\nto = 0.0", "schedule.from: -1 is not 0 or more"),
        ("kind = 'linear'\nfrom = 1.0\nto = 0.0\nsteps = 0", "schedule.steps"),
        ("kind = 'one_cycle'\ndiv = 0.5", "schedule.div: 0.5 is not 1 or more"),
        ("kind = 'one_cycle'\npct_start = 1.1", "schedule.pct_start: 1.1"),
        ("kind = 'cyclic'\nlow = 0.1\nup = 0", "schedule.up"),
        ("kind = 'cyclic'\nlow = 0.1\nup = 2\ngamma = 0.5", "schedule.gamma: 0.5"),
        ("kind = 'warmup_stable_decay'\nwarmup = 0.5\ndecay = 0.6", "schedule.decay: 0.6"),
    ] {
        let error = parse(text).unwrap().validate().expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
