//! What an optimizer does between steps: averages of the weights, decay along the polar factor; and that a
//! run with all of it goes on exactly where it was interrupted.

mod common;

use common::runs::{Scratch, StopAfter, bits};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use twoclocks::Device;
use twoclocks::data::{Split, synthetic};
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::optim::{AverageConfig, OptimizerConfig, Rates};
use twoclocks::tape::Region;
use twoclocks::train::{self, Config, TrainOptions, Trainer};

const BATCH: usize = 16;
const ROWS: usize = 400;

#[derive(serde::Deserialize)]
struct Model {
    layers: Vec<LayerConfig>,
}

/// A net of two layers; `polar` is the factor of the first one's decay along its polar factor.
fn trainer(optimizer: OptimizerConfig, polar: f32) -> twoclocks::Result<Trainer> {
    let text = format!(
        "[[layers]]\nkind = 'linear'\noutputs = 12\npolar_decay = {polar:?}\n\
         [[layers]]\nkind = 'layer_norm'\n\
         [[layers]]\nkind = 'activation'\nfunction = 'relu'\n\
         [[layers]]\nkind = 'linear'\noutputs = 3\n"
    );
    let layers = toml::from_str::<Model>(&text).expect("layers").layers;
    let data = Split { train: synthetic(ROWS, 20, 3, 1), test: synthetic(100, 20, 3, 2) };
    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers, &[20], &mut parameters)?;
    let options = TrainOptions { batch: BATCH, optimizer, ..TrainOptions::default() };
    Trainer::new(&Device::cpu(2)?, Box::new(model), parameters, &data, options)
}

fn read(trainer: &Trainer, region: Region) -> Vec<f32> {
    let mut values = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut values).expect("read");
    values
}

fn step(trainer: &mut Trainer, number: usize) {
    let loss = trainer.step(number as u64, (number - 1) * BATCH, 0.01).expect("a step");
    assert!(loss.is_finite());
}

fn averaged(average: AverageConfig) -> Trainer {
    let config = OptimizerConfig { average: Some(average), ..OptimizerConfig::adamw() };
    let mut trainer = trainer(config, 0.0).expect("a trainer");
    trainer.start_epoch(0).expect("order");
    trainer
}

/// The mean of what was seen while that is short, then exponential; the steps are those without an average,
/// and the review is that of a net with the averaged weights.
#[test]
fn an_exponential_average_follows_the_weights() {
    let (decay, every) = (0.8f64, 2);
    let mut with = averaged(AverageConfig::Ema { decay, every });
    let mut without = trainer(OptimizerConfig::adamw(), 0.0).expect("a trainer");
    without.start_epoch(0).expect("order");
    let slow = with.optimizer().average().expect("an average");
    let mut want: Vec<f64> = read(&with, slow).into_iter().map(f64::from).collect();
    for number in 1..=13 {
        step(&mut with, number);
        step(&mut without, number);
        let fast = read(&with, with.parameters().weights());
        assert_eq!(fast, read(&without, without.parameters().weights()), "step {number}");
        if number % 2 == 0 {
            let share = (1.0 - decay.powi(2)).max(2.0 / number as f64);
            for (slow, fast) in want.iter_mut().zip(&fast) {
                *slow += share * (f64::from(*fast) - *slow);
            }
        }
        for (got, want) in read(&with, slow).iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() <= 1e-6, "step {number}: {got}, want {want}");
        }
    }
    let reviewed = with.review().expect("a review");
    assert_ne!(reviewed, without.review().expect("a review"));
    let (slow, weights) = (read(&with, slow), without.parameters().weights());
    without.store_mut().write(weights, 0, &slow).expect("write");
    assert_eq!(reviewed, without.review().expect("a review"));
}

#[test]
fn lookahead_goes_back_to_the_slow_weights() {
    let (alpha, every) = (0.5, 3);
    let mut with = averaged(AverageConfig::Lookahead { alpha, every });
    let mut plain = trainer(OptimizerConfig::adamw(), 0.0).expect("a trainer");
    plain.start_epoch(0).expect("order");
    let (fast, slow) = (with.parameters().weights(), with.optimizer().average().expect("slow"));
    let start = read(&with, slow);
    // Several at once are the same as one after another.
    with.steps(1, 0, &[0.01; 3]).expect("steps");
    (1..=3).for_each(|number| step(&mut plain, number));
    let there = read(&plain, plain.parameters().weights());
    let found = read(&with, fast);
    assert_eq!(found, read(&with, slow));
    for ((found, start), there) in found.iter().zip(&start).zip(&there) {
        let want = start + alpha as f32 * (there - start);
        assert!((found - want).abs() <= 1e-6, "{found}, want {want}");
    }
    step(&mut with, 4);
    assert_ne!(read(&with, fast), read(&with, slow));
}

/// After every third step, W loses 3 rate decay U V^T beside its step: the nuclear norm is what shrinks.
#[test]
fn layers_decay_along_their_polar_factors() {
    let plain = OptimizerConfig { weight_decay: 0.5, ..OptimizerConfig::sgd() };
    let polar = OptimizerConfig { polar_every: Some(3), ..plain };
    let error = trainer(polar, 0.0).err().expect("no such layer").to_string();
    assert!(error.contains("optimizer.polar_every: has no effect"), "{error}");
    let error = trainer(plain, 1.0).err().expect("how often?").to_string();
    assert!(error.contains("optimizer.polar_every: is missing"), "{error}");

    let mut with = trainer(polar, 2.0).expect("a trainer");
    let first = &with.parameters().infos()[0];
    assert_eq!((first.decay_factor, first.polar_factor), (0.0, 2.0), "in place of the other");
    let (rows, columns) = (first.shape.rows(), first.shape.columns());
    with.start_epoch(0).expect("order");
    let mut before = vec![];
    for (number, share) in [(1, 1.0), (2, 1.0), (3, 0.5)] {
        if number == 3 {
            // Where the last of the three goes without it.
            let fast = with.parameters().weights();
            let now = read(&with, fast);
            let mut alone = trainer(plain, 0.0).expect("a trainer");
            alone.start_epoch(0).expect("order");
            let fast = fast_region(&alone);
            alone.store_mut().write(fast, 0, &now).expect("write");
            let rates = Rates { rate: 0.01, decay: 0.0, momentum: None };
            alone.step(3, 2 * BATCH, rates).expect("a step");
            before = read(&alone, fast_region(&alone));
        }
        let rates = Rates { rate: 0.01, decay: share, momentum: None };
        with.step(number, (number as usize - 1) * BATCH, rates).expect("a step");
    }
    let after = read(&with, fast_region(&with));
    // By the rate and the decay of the third step, for all three; twice, by the layer's factor.
    let length = 2.0 * 3.0 * 0.01 * 0.5 * 0.5;
    let len = rows * columns;
    let factor: Vec<f64> = (0..len).map(|i| f64::from(before[i] - after[i]) / length).collect();
    let gram = |a: &[f64], b: &[f64], i: usize, j: usize| -> f64 {
        (0..rows).map(|row| a[row * columns + i] * b[row * columns + j]).sum()
    };
    let weight: Vec<f64> = before[..len].iter().map(|&w| f64::from(w)).collect();
    for i in 0..columns {
        for j in 0..columns {
            // Orthonormal columns, to the error of the iteration and the digits of the difference.
            let want = if i == j { 1.0 } else { 0.0 };
            let found = gram(&factor, &factor, i, j);
            assert!((found - want).abs() <= 4e-3, "[{i}, {j}] of P^T P: {found}");
            // P^T W is symmetric only for the factor of W itself.
            let across = gram(&factor, &weight, i, j) - gram(&factor, &weight, j, i);
            assert!(across.abs() <= 4e-3, "[{i}, {j}] of P^T W: {across:e} from symmetric");
        }
        assert!(gram(&factor, &weight, i, i) > 0.0);
    }
    for info in with.parameters().infos()[1..].iter().filter(|info| info.decay_factor == 0.0) {
        let place = info.offset..info.offset + info.shape.elements();
        assert_eq!(before[place.clone()], after[place], "{} stays", info.name);
    }
}

fn fast_region(trainer: &Trainer) -> Region {
    trainer.parameters().weights()
}

fn config(average: &str) -> Config {
    let text = format!(
        r#"
recipe = "between"
seed = 3
threads = 2
[data]
source = "digits"
[model]
layers = [
    {{ kind = "flatten" }},
    {{ kind = "linear", outputs = 20, polar_decay = 1.0 }},
    {{ kind = "rms_norm" }},
    {{ kind = "activation", function = "relu" }},
    {{ kind = "linear", outputs = 10, decay_factor = 2.0 }},
]
[optimizer]
kind = "adamw"
rate = 1e-2
decay = "cautious"
decay_schedule = {{ kind = "linear", from = 0.0, to = 1.0 }}
orthogonal_gradient = true
polar_every = 7
average = {average}
[schedule]
kind = "one_cycle"
momentum = [0.95, 0.85]
[train]
batch = 64
epochs = 2
review_share = 10.0
"#
    );
    Config::parse(&text, "test").expect("a configuration")
}

#[test]
fn a_run_with_all_of_it_goes_on_with_the_same_bits() {
    for average in ["{ kind = 'ema', decay = 0.9 }", "{ kind = 'lookahead', every = 4 }"] {
        let scratch = Scratch::new("between");
        let never = AtomicBool::new(false);
        let config = config(average);
        assert_eq!(Config::parse(&config.to_toml(), "again").expect("it reads back"), config);
        let whole = train::run(&config, &scratch.path().join("whole"), &mut train::Silent, &never);
        let whole = whole.expect("a run").done;
        assert!(whole.test_acc > 0.5, "it learns: {}", whole.test_acc);
        let stop = AtomicBool::new(false);
        let parts =
            train::run(&config, &scratch.path().join("parts"), &mut StopAfter(3, &stop), &stop);
        let run = std::path::PathBuf::from(parts.expect("a run").done.run);
        for steps in [4, 7, 9] {
            stop.store(false, Ordering::Relaxed);
            train::resume(&run, &mut StopAfter(steps, &stop), &stop).expect("resumed");
        }
        let done = train::resume(&run, &mut train::Silent, &never).expect("resumed").done;
        assert_eq!((done.step, done.test_acc), (whole.step, whole.test_acc));
        let (found, want) = (bits(&run), bits(Path::new(&whole.run)));
        assert!(want.iter().any(|(name, _)| name == "optimizer.trained"));
        for (found, want) in found.iter().zip(&want) {
            assert!(found == want, "{average}: {}", found.0);
        }
        // A saved run is evaluated with the weights that its reviews took.
        let (_, mut saved) =
            Config::saved_trainer(&run, None, None, None).expect("a saved trainer");
        assert_eq!(saved.review().expect("a review").accuracy, done.test_acc);
    }
}

#[test]
fn what_would_have_no_effect_is_refused() {
    let text = config("{ kind = 'ema', decay = 0.9 }").to_toml();
    for (from, to, words) in [
        ("decay = 0.9", "decay = 1.0", "optimizer.average.decay: 1 is not between 0 and 1"),
        ("every = 5", "every = 0", "optimizer.average.every: 0 steps"),
        ("polar_every = 7", "polar_every = 0", "optimizer.polar_every: 0 steps"),
        ("weight_decay = 0.01", "weight_decay = 0.0", "optimizer.decay_schedule: has no effect"),
        (
            "momentum = [0.95, 0.85]",
            "momentum = [0.95, 1.0]",
            "schedule.momentum: 1 is not in [0, 1)",
        ),
        ("[train]", "[unknown]", "unknown field"),
    ] {
        assert!(text.contains(from), "{from} in\n{text}");
        let error = Config::parse(&text.replace(from, to), "test").expect_err(to).to_string();
        assert!(error.contains(words), "{to}: {error}");
    }
    let mut config = config("{ kind = 'ema', decay = 0.9 }");
    config.optimizer.decay_schedule = None;
    assert!(config.validate().is_ok());
    config.optimizer.weight_decay = 0.0;
    let error = config.validate().expect_err("no decay").to_string();
    assert!(error.contains("model.layers[1].polar_decay: 1 has no effect"), "{error}");
}
