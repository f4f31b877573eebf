//! How long the nodes of a training step take, each beside its floor.

use super::Trainer;
use crate::device::Device;
use crate::device::cpu::{Cpu, Peak};
use crate::error::{Error, Result};
use crate::gemm::{self, Plan, Precision, Spec};
use crate::runs::closing::{NodeTime, Profile};
use crate::tape::NodeReport;
use std::time::{Duration, Instant};

/// Bytes up to which a floor counts a tensor at the cache's rate: a large last-level cache.
const CACHE_BYTES: f64 = (32u64 << 20) as f64;

/// Operations whose FLOPs are products, which tensor cores do in bf16.
#[cfg(feature = "cuda")]
const PRODUCTS: [&str; 4] = ["matmul", "linear", "product_update", "linear_cross_entropy"];

/// Replays behind a median, at least.
const LEAST: usize = 3;

/// Median seconds of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// The whole step.
    pub whole: f64,
    /// Its nodes, one after another.
    pub nodes: Vec<f64>,
}

/// Times the step of the first batch: half of `time` for whole steps, half node by node, and at least three of
/// each. Weights stay as they are, as the learning rate is 0; the optimizer's moments do not.
///
/// # Errors
/// As [`Trainer::step`].
pub fn step_times(trainer: &mut Trainer, time: Duration) -> Result<StepTimes> {
    trainer.start_epoch(0)?;
    trainer.step(1, 0, 0.0)?;
    let (recording, store) = trainer.step_recording()?;
    let whole = match store.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => recording.device_seconds(store, time / 2, LEAST)?,
        _ => {
            let (began, mut seconds) = (Instant::now(), Vec::new());
            while began.elapsed() < time / 2 || seconds.len() < LEAST {
                let start = Instant::now();
                recording.replay(store)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            seconds
        }
    };
    let mut nodes: Vec<Vec<f64>> = vec![Vec::new(); recording.nodes().len()];
    let (began, mut replays) = (Instant::now(), 0);
    while began.elapsed() < time / 2 || replays < LEAST {
        recording.replay_timed(store, |node, nanoseconds| {
            nodes[node].push(nanoseconds as f64 * 1e-9);
        })?;
        replays += 1;
    }
    Ok(StepTimes { whole: median(whole), nodes: nodes.into_iter().map(median).collect() })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Floors of nodes on a CPU of that peak, in seconds: products of another precision than f32 have a ceiling of
/// their own.
pub fn cpu_floors(cpu: &Cpu, peak: &Peak, precision: Precision, nodes: &[NodeReport]) -> Vec<f64> {
    let spec = Spec::new(512, 512, 512).in_precision(precision);
    let product = Plan::new(cpu.isa(), spec, false, false).engine();
    let ceiling = match precision {
        Precision::F32 => peak.flops_per_s,
        _ => gemm::ceiling(cpu.isa(), precision) * cpu.threads() as f64,
    };
    let products = Peak { flops_per_s: ceiling.max(peak.flops_per_s), ..*peak };
    let floor = |node: &NodeReport| {
        let peak = if node.kernel == product { &products } else { peak };
        peak.floor_seconds(node.cost.flops, node.cost.bytes, CACHE_BYTES)
    };
    nodes.iter().map(floor).collect()
}

/// Floors of nodes on a GPU of that peak, in seconds: by tensor cores where products are in bf16.
#[cfg(feature = "cuda")]
pub fn gpu_floors(
    peak: &crate::device::cuda::Peak,
    precision: Precision,
    nodes: &[NodeReport],
) -> Vec<f64> {
    let floor = |node: &NodeReport| {
        let tensor_cores = precision == Precision::Bf16 && PRODUCTS.contains(&node.op);
        let launches = node.chunks.len().max(1);
        peak.floor_seconds(node.cost.flops, node.cost.bytes, launches, tensor_cores)
    };
    nodes.iter().map(floor).collect()
}

/// How carefully a profile is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// In milliseconds, for the end of a run.
    Quick,
    /// In about a second.
    Thorough,
}

/// What a quick profile takes beside its steps, seconds: measured 6 to 10 ms of peaks in cache, 60 to 90 ms with
/// those of memory.
const PEAKS_IN_CACHE: f64 = 0.010;
const PEAKS: f64 = 0.090;

/// Seconds that a quick profile takes, estimated from those of a step; `None` where it has none (on a GPU).
pub(super) fn estimate(trainer: &mut Trainer, step_seconds: f64) -> Result<Option<f64>> {
    let (recording, store) = trainer.step_recording()?;
    if !matches!(store.device(), Device::Cpu(_)) {
        return Ok(None);
    }
    let peaks = if fits_in_cache(recording.nodes()) { PEAKS_IN_CACHE } else { PEAKS };
    // The nodes one after another take longer than the step.
    Ok(Some(peaks + (1 + 3 * LEAST) as f64 * step_seconds))
}

fn fits_in_cache(nodes: &[NodeReport]) -> bool {
    nodes.iter().all(|node| node.cost.bytes <= CACHE_BYTES)
}

/// A profile of the trainer's step. Weights stay as they are, the optimizer's moments do not.
pub(super) fn profile(trainer: &mut Trainer, care: Care) -> Result<Profile> {
    let time = match care {
        Care::Quick => Duration::ZERO,
        Care::Thorough => Duration::from_millis(600),
    };
    let times = step_times(trainer, time)?;
    let precision = trainer.precision();
    let (recording, store) = trainer.step_recording()?;
    let nodes = recording.nodes();
    let (floors, together) = match store.device() {
        Device::Cpu(cpu) => {
            let peak = match care {
                Care::Quick if fits_in_cache(nodes) => cpu.cache_peak(),
                Care::Quick => cpu.quick_peak(),
                Care::Thorough => cpu.peak(),
            };
            (cpu_floors(cpu, &peak, precision, nodes), peak.together)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => (gpu_floors(&cuda.peak()?, precision, nodes), true),
        #[allow(unreachable_patterns)]
        device => return Err(Error::device(device.name(), "is of a kind that has no profiles")),
    };
    let device = store.device();
    let device =
        format!("{} ({}, {} threads), {precision}", device.name(), device.isa(), device.threads());
    let nodes =
        nodes.iter().zip(times.nodes).zip(floors).map(|((node, seconds), floor_seconds)| {
            let (node, kernel) = (node.label.clone(), node.kernel.to_owned());
            NodeTime { node, kernel, seconds, floor_seconds }
        });
    Ok(Profile { device, step_seconds: times.whole, nodes: nodes.collect(), disturbed: !together })
}
