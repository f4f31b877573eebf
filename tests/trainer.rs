//! The trainer as a library's user meets it.

use twoclocks::Device;
use twoclocks::data::{Split, synthetic};
use twoclocks::nn::{ActivationName, LayerConfig, Parameters, Sequential};
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
