//! The trainer that a configuration asks for, on the device that it names or that `auto` takes.

use super::config::Config;
#[cfg(feature = "cuda")]
use super::config::Precision;
#[cfg(feature = "cuda")]
use super::select;
use super::shared::Input;
use super::trainer::{TrainOptions, Trainer};
use crate::device::Device;
#[cfg(feature = "cuda")]
use crate::error::Error;
use crate::error::Result;
use crate::nn::{Parameters, Sequential};

/// The configuration with what `auto` chose.
pub(super) fn chosen(config: &Config, trainer: &Trainer) -> Config {
    let precision = trainer.precision().into();
    Config { precision, device: trainer.store().device().name(), ..config.clone() }
}

/// A trainer as the configuration wants it, and why its device, where `auto` chose that.
///
/// # Errors
/// The device is not to be had, or the model does not fit the data.
pub(super) fn trainer(config: &Config, data: Input<'_>) -> Result<(Trainer, Option<String>)> {
    if config.device != "auto" {
        return Ok((trainer_on(&config.open_device()?, config, data)?, None));
    }
    let cpu = Device::cpu(config.threads)?;
    let on_cpu = trainer_on(&cpu, config, data)?;
    let (trainer, why) = choose(on_cpu, config, data)?;
    Ok((trainer, Some(why)))
}

/// The trainer of the CPU or that of a GPU, whichever the rule takes, and why.
#[cfg(feature = "cuda")]
fn choose(mut on_cpu: Trainer, config: &Config, data: Input<'_>) -> Result<(Trainer, String)> {
    let (seconds, accumulate) = (config.train.seconds, config.train.accumulate);
    let steps = config.train.total_steps(on_cpu.rows()).filter(|_| seconds.is_none());
    let (recording, store) = on_cpu.step_recording()?;
    let work = select::Work {
        nodes: recording.nodes().iter().map(|node| node.cost).collect(),
        stages: recording.stages(),
        steps: steps.map(|steps| steps.saturating_mul(accumulate as u64)),
    };
    let peak = match store.device().clone() {
        Device::Cpu(cpu) => match select::too_short(&work, cpu.threads()) {
            Some(why) => return Ok((on_cpu, why)),
            None => move |precision| select::cpu_figures(&cpu, precision),
        },
        device => return Err(Error::device(device.name(), "`auto` begins on the CPU")),
    };
    let info = match select::candidate() {
        Ok(info) => info,
        Err(why) => return Ok((on_cpu, why)),
    };
    let peak = peak(on_cpu.precision());
    // The precision that it would be trained in there.
    let precision = match config.precision {
        Precision::Bf16 => crate::gemm::Precision::Bf16,
        _ => crate::gemm::Precision::F32,
    };
    let select::Verdict { gpu, mut why } =
        select::decide(&work, &peak, &select::figures(&info, precision));
    if gpu {
        let name = format!("cuda:{}", info.ordinal);
        match Device::cuda(&name).and_then(|device| trainer_on(&device, config, data)) {
            Ok(trainer) => return Ok((trainer, why)),
            Err(error) => why = format!("{why}; but {error}"),
        }
    }
    Ok((on_cpu, why))
}

#[cfg(not(feature = "cuda"))]
fn choose(on_cpu: Trainer, _: &Config, _: Input<'_>) -> Result<(Trainer, String)> {
    Ok((on_cpu, "this build is without the feature `cuda`".to_owned()))
}

/// A trainer as the configuration wants it, on that device.
fn trainer_on(device: &Device, config: &Config, data: Input<'_>) -> Result<Trainer> {
    let mut parameters = Parameters::new();
    let model = Sequential::new(&config.model.layers, data.split.train.shape(), &mut parameters)?;
    let options = TrainOptions {
        batch: config.train.batch,
        accumulate: config.train.accumulate,
        label_smoothing: config.train.label_smoothing,
        seed: config.seed,
        optimizer: config.optimizer,
        normalise: config.data.normalise.into(),
        precision: config.precision.resolve(device, config.train.batch, &parameters),
        telemetry: config.clocks.telemetry,
        probe_rows: config.clocks.probe_rows,
    };
    Trainer::of(device, Box::new(model), parameters, data, options)
}
