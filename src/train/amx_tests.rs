//! Whole steps on AMX, or on the stand-in for its tiles: the trainer, not the kernels.

use super::{TrainOptions, Trainer};
use crate::Device;
use crate::data::{Split, synthetic};
use crate::device::cpu::{Cpu, Isa, tiles};
use crate::gemm::Precision;
use crate::nn::{ActivationName, LayerConfig, Parameters, Sequential};
use std::sync::Arc;

/// Losses of some steps, the last one's review, and the bits of the weights.
fn train(isa: Isa, threads: usize) -> (Vec<f64>, f64, Vec<u32>) {
    let data = Split { train: synthetic(256, 70, 10, 1), test: synthetic(50, 70, 10, 2) };
    let layer = |outputs, activation| LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs,
        activation,
        bias: true,
        initial: None,
        decay_factor: None,
        polar_decay: None,
    };
    let layers = [layer(200, ActivationName::Relu), layer(10, ActivationName::None)];
    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers, &[70], &mut parameters).unwrap();
    let device = Device::Cpu(Arc::new(Cpu::with_isa(threads, isa).unwrap()));
    let options = TrainOptions { precision: Precision::Bf16, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&device, Box::new(model), parameters, &data, options).unwrap();
    trainer.start_epoch(0).unwrap();
    let losses = (1..=4).map(|step| trainer.step(step, (step as usize % 2) * 128, 0.01).unwrap());
    let losses = losses.collect();
    let region = trainer.parameters().weights();
    let mut weights = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut weights).unwrap();
    let review = trainer.review().unwrap().loss;
    (losses, review, weights.into_iter().map(f32::to_bits).collect())
}

#[test]
fn steps_on_amx_are_those_of_avx512_bf16() {
    if !Isa::Avx512Bf16.is_available() || !tiles::stand_in::install() {
        println!("SKIPPED: no AVX512-BF16");
        return;
    }
    let (losses, review, weights) = train(Isa::Amx, 1);
    for threads in [2, 3] {
        assert_eq!(train(Isa::Amx, threads).2, weights, "{threads} threads");
    }
    assert!(!tiles::is_configured(), "a thread left its tiles configured");
    // The same roundings of operands; only the order of sums differs, and what training makes of it.
    let (expected, expected_review, _) = train(Isa::Avx512Bf16, 2);
    for (loss, expected) in losses.iter().zip(&expected) {
        assert!((loss - expected).abs() <= 1e-3 * expected, "{losses:?}, not {expected:?}");
    }
    assert!((review - expected_review).abs() <= 1e-3 * expected_review, "{review}");
    assert!(losses[3] < losses[0], "{losses:?}");
}
