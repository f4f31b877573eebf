//! The trainer as a library's user meets it.

use twoclocks::Device;
use twoclocks::data::{Dataset, NormalisationKind, Split, synthetic};
use twoclocks::nn::{ActivationName, Initial, LayerConfig, Parameters, Sequential};
use twoclocks::optim::OptimizerConfig;
use twoclocks::train::{TrainOptions, Trainer};

fn trainer(outputs: usize) -> twoclocks::Result<Trainer> {
    let data = Split { train: synthetic(40, 4, 3, 1), test: synthetic(20, 4, 3, 2) };
    let layers = [LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs,
        activation: ActivationName::None,
        bias: true,
        initial: None,
        decay_factor: None,
        polar_decay: None,
    }];
    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers, &[4], &mut parameters)?;
    let options = TrainOptions { batch: 16, ..TrainOptions::default() };
    Trainer::new(&Device::cpu(1)?, Box::new(model), parameters, &data, options)
}

#[test]
fn a_step_past_the_end_is_refused() {
    let mut trainer = trainer(3).unwrap_or_else(|e| panic!("{e}"));
    trainer.start_epoch(0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!([0, 32, 40, 41].map(|offset| trainer.update_rows(offset)), [16, 8, 0, 0]);
    let before = trainer.review().unwrap_or_else(|e| panic!("{e}"));
    for offset in [40, 41, usize::MAX] {
        let error = trainer.step(1, offset, 1.0).expect_err("past the end").to_string();
        assert!(error.contains("past the end"), "{error}");
    }
    assert_eq!(trainer.review().unwrap_or_else(|e| panic!("{e}")), before, "it was trained");
}

#[test]
fn a_model_that_cannot_fit_into_memory_is_refused() {
    for outputs in [1 << 40, 1 << 58, 1 << 62] {
        let error = trainer(outputs).err().expect("more than any memory").to_string();
        assert!(error.contains("memory"), "{error}");
    }
}

/// With clipping the update is skipped where the norm of the gradients is not finite. The loss may be
/// finite all the same: the run must hear of it.
#[test]
fn gradients_that_cannot_be_clipped_are_a_divergence() {
    let (rows, features) = (16, 64);
    let values = vec![3e38f32; rows * features];
    let labels = (0..rows as u32).map(|row| row % 3).collect();
    let train = Dataset::from_arrays(values, features, labels, 3).expect("data");
    let data = Split { test: train.clone(), train };
    let layers = [LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs: 3,
        activation: ActivationName::None,
        bias: false,
        initial: Some(Initial::Zeros),
        decay_factor: None,
        polar_decay: None,
    }];
    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers, &[features], &mut parameters).expect("model");
    let options = TrainOptions {
        batch: 12,
        normalise: NormalisationKind::None,
        optimizer: OptimizerConfig { clip_norm: Some(1.0), ..OptimizerConfig::sgd() },
        ..TrainOptions::default()
    };
    let device = Device::cpu(1).expect("cpu");
    let mut trainer =
        Trainer::new(&device, Box::new(model), parameters, &data, options).expect("trainer");
    trainer.start_epoch(0).expect("epoch");
    let loss = trainer.step(1, 0, 1e-3).expect("step");
    assert!(loss.is_nan(), "{loss}");
    let mut weight = vec![1f32; features * 3];
    trainer.store().read(trainer.parameters().weights(), 0, &mut weight).expect("weight");
    assert!(weight.iter().all(|&w| w == 0.0), "it was updated");
}
