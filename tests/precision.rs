//! Training in bf16: gradients and losses beside those of f32, and the packed weights behind it.

use std::path::PathBuf;
use std::sync::Arc;
use twoclocks::data::{Split, synthetic};
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::gemm::Precision;
use twoclocks::nn::{ActivationName, LayerConfig, Parameters, Sequential};
use twoclocks::optim::Position;
use twoclocks::train::{Config, TrainOptions, Trainer, recipe};
use twoclocks::{Device, train};

const BATCH: usize = 128;

fn net(widths: &[usize]) -> Vec<LayerConfig> {
    let last = widths.len() - 1;
    let layer = |(number, &outputs): (usize, &usize)| LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs,
        activation: if number == last { ActivationName::None } else { ActivationName::Tanh },
        bias: true,
        initial: None,
        decay_factor: None,
        polar_decay: None,
    };
    widths.iter().enumerate().map(layer).collect()
}

fn trainer(isa: Isa, precision: Precision, widths: &[usize], data: &Split) -> Trainer {
    let device = Device::Cpu(Arc::new(Cpu::with_isa(2, isa).expect("available")));
    let mut parameters = Parameters::new();
    let model = Sequential::new(&net(widths), data.train.shape(), &mut parameters).expect("model");
    let options = TrainOptions { batch: BATCH, precision, ..TrainOptions::default() };
    let mut trainer =
        Trainer::new(&device, Box::new(model), parameters, data, options).expect("trainer");
    trainer.start_epoch(0).expect("epoch");
    trainer
}

fn weights(trainer: &Trainer) -> Vec<f32> {
    let region = trainer.parameters().weights();
    let mut values = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut values).expect("read");
    values
}

/// Relative distance of the gradients of one step, parameter by parameter. A bf16 has 8 bits: each
/// product of two rounded values errs by up to 2^-8, and errors of either sign average out. (With a
/// kink, as of ReLU, some rows would fall to its other side.)
#[test]
fn gradients_are_those_of_f32_within_the_rounding() {
    let data = Split { train: synthetic(BATCH, 70, 10, 1), test: synthetic(10, 70, 10, 2) };
    for isa in Isa::available() {
        let gradients = |precision| {
            let mut trainer = trainer(isa, precision, &[96, 50, 10], &data);
            let loss = trainer.step(1, 0, 1e-3).expect("step");
            let region = trainer.parameters().gradients();
            let mut values = vec![0f32; trainer.store().len(region)];
            trainer.store().read(region, 0, &mut values).expect("read");
            (loss, values, trainer.parameters().infos().to_vec())
        };
        let (f32_loss, exact, infos) = gradients(Precision::F32);
        let (bf16_loss, rounded, _) = gradients(Precision::Bf16);
        assert!((f32_loss - bf16_loss).abs() <= 1e-2 * f32_loss, "{isa}: {f32_loss}, {bf16_loss}");
        assert_ne!(exact, rounded, "{isa}: nothing was rounded");
        for info in infos {
            let place = info.offset..info.offset + info.shape.elements();
            let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let size = norm(&mut exact[place.clone()].iter().copied());
            let pairs = exact[place.clone()].iter().zip(&rounded[place]);
            let distance = norm(&mut pairs.map(|(a, b)| a - b));
            assert!(
                size > 0.0 && distance <= 0.02 * size,
                "{isa} {}: {distance} of {size}",
                info.name
            );
        }
    }
}

/// Whoever writes the weights, the products read their new values: what a trainer gives after its
/// weights were overwritten is what another one gives that has had them for long.
#[test]
fn packed_weights_follow_the_weights() {
    let data = Split { train: synthetic(400, 33, 7, 1), test: synthetic(100, 33, 7, 2) };
    for isa in Isa::available() {
        let mut long = trainer(isa, Precision::Bf16, &[40, 7], &data);
        for step in 1..=3 {
            long.step(step, 0, 0.05).expect("step");
        }
        let after = long.review().expect("review");
        let mut fresh = trainer(isa, Precision::Bf16, &[40, 7], &data);
        let before = fresh.review().expect("review");
        assert_ne!(before, after, "{isa}: three steps change something");
        let region = fresh.parameters().weights();
        fresh.store_mut().write(region, 0, &weights(&long)).expect("write");
        assert_eq!(fresh.review().expect("review"), after, "{isa}");
    }
}

/// A traced replay is a replay: it too packs weights that nobody has packed yet.
#[test]
fn a_traced_first_step_has_packed_weights() {
    let data = Split { train: synthetic(400, 33, 7, 1), test: synthetic(100, 33, 7, 2) };
    let gradients = |traced: bool| {
        let mut fresh = trainer(Isa::detect().expect("isa"), Precision::Bf16, &[40, 7], &data);
        let (recording, store) = fresh.step_recording().expect("recorded");
        match traced {
            true => drop(recording.replay_traced(store).expect("replay")),
            false => recording.replay(store).expect("replay"),
        }
        let region = fresh.parameters().gradients();
        let mut values = vec![0f32; fresh.store().len(region)];
        fresh.store().read(region, 0, &mut values).expect("read");
        values
    };
    assert_eq!(gradients(true), gradients(false));
}

/// The optimizer's copies are those that packing the weights anew gives.
#[test]
fn the_optimizer_writes_the_copies_that_packing_gives() {
    let data = Split { train: synthetic(400, 33, 7, 1), test: synthetic(100, 33, 7, 2) };
    let mut trained = trainer(Isa::detect().expect("isa"), Precision::Bf16, &[40, 7], &data);
    for step in 1..=3 {
        trained.step(step, 0, 0.05).expect("step");
    }
    let (packed, region) = trained.parameters().packed().expect("kept packed in bf16");
    let mut found = vec![0u8; packed.len() * packed.element().size()];
    match packed.element() {
        twoclocks::DType::Bf16 => {
            let mut values = vec![half::bf16::ZERO; packed.len()];
            trained.store().read(region, 0, &mut values).expect("read");
            found.copy_from_slice(bytemuck::cast_slice(&values));
        }
        _ => {
            let mut values = vec![0f32; packed.len()];
            trained.store().read(region, 0, &mut values).expect("read");
            found.copy_from_slice(bytemuck::cast_slice(&values));
        }
    }
    let mut expected = vec![0f32; found.len().div_ceil(4)];
    packed.pack_all(&weights(&trained), bytemuck::cast_slice_mut(&mut expected));
    assert!(found == bytemuck::cast_slice::<f32, u8>(&expected)[..found.len()]);
}

/// Test accuracy and loss after training, by the recipe's own schedule.
fn train(config: &Config, precision: train::Precision) -> (f64, f64) {
    let mut config = config.clone();
    config.precision = precision;
    config.threads = 2;
    let mut trainer = config.trainer().expect("trainer");
    let epochs = config.train.epochs.expect("bounded by epochs");
    let total = epochs * trainer.steps_per_epoch();
    let mut step = 0;
    for epoch in 0..epochs {
        trainer.start_epoch(epoch).expect("epoch");
        let mut offset = 0;
        while offset < trainer.rows() {
            let progress = step as f64 / total as f64;
            let at = Position { step, total_steps: Some(total), progress };
            let rate = config.schedule.rate(config.optimizer.rate, at);
            step += 1;
            assert!(trainer.step(step, offset, rate).expect("step").is_finite());
            offset += trainer.update_rows(offset);
        }
    }
    let review = trainer.review().expect("review");
    (review.accuracy, review.loss)
}

/// bf16 learns what f32 learns: within a percent of accuracy and a tenth of the loss.
fn parity(config: &Config, least: f64) {
    let (f32_accuracy, f32_loss) = train(config, train::Precision::F32);
    let (accuracy, loss) = train(config, train::Precision::Bf16);
    let what = format!(
        "{}: f32 {f32_accuracy:.4} ({f32_loss:.4}), bf16 {accuracy:.4} ({loss:.4})",
        config.recipe
    );
    println!("{what}");
    assert!(f32_accuracy >= least && accuracy >= least, "{what}");
    assert!((accuracy - f32_accuracy).abs() <= 0.01, "{what}");
    assert!((loss - f32_loss).abs() <= 0.1 * f32_loss, "{what}");
}

#[test]
fn bf16_learns_the_digits_as_f32_does() {
    parity(&recipe("digits").expect("recipe"), 0.965);
}

#[test]
fn bf16_learns_mnist_as_f32_does() {
    let root = std::env::var_os("TWOCLOCKS_DATA").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/twoclocks"))
    });
    let Some(folder) = root.map(|root| root.join("mnist")).filter(|folder| folder.is_dir()) else {
        println!("SKIPPED: there is no MNIST on this machine");
        return;
    };
    let mut config = recipe("mnist").expect("recipe");
    config.data.path = Some(folder);
    config.train.epochs = Some(1);
    parity(&config, 0.96);
}
