//! Which device `auto` takes, and why.
//!
//! Both devices' step times are estimated, and with them the run's. The GPU is taken where the whole run
//! is expected to be at least twice as fast there. Nothing is tried out on the GPU:
//! opening one takes longer than many of the runs that this crate is for. For runs as short as that the
//! driver is not even asked; and where there is none, asking is all that is done.
//!
//! The figures of the CPU are measured (some 60 ms, and only where there is a GPU), those of the GPU come
//! from what the driver says of it. So where the two are near, another run may choose otherwise, and
//! its bits differ: the run's `config.toml` has the choice, and a resumed run keeps it.

use crate::device::cpu::Peak;
#[cfg(feature = "cuda")]
use crate::device::{cpu::Cpu, cuda};
#[cfg(feature = "cuda")]
use crate::gemm::{self, Precision};
use crate::ops::Cost;

/// By how much the GPU must be faster over the whole run. The estimates are not better than that.
const LEAST_GAIN: f64 = 2.0;

/// A step on the CPU over the sum of its nodes' floors: 1.2 and 1.45 on the nets of the README.
const CPU_OVER_FLOORS: f64 = 1.4;
/// Seconds between two stages of a step on the CPU (`bench dispatch`).
const CPU_STAGE: f64 = 1e-6;
/// Bytes up to which the CPU's cache serves a node: a large last-level cache.
const CPU_CACHE: f64 = (32u64 << 20) as f64;

/// Shares of a GPU's nominal rates that the kernels are expected to reach: of f32, bf16 and memory.
/// The aims of the kernels, not measured yet.
const GPU_SHARES: (f64, f64, f64) = (0.5, 0.4, 0.8);
/// Seconds that a launch takes in a graph at least: published figures are 0.6 to 1.3 us between nodes,
/// and a kernel with nothing to do runs for 1 to 2.
const GPU_LAUNCH: f64 = 2.5e-6;
/// Seconds of a step beside its kernels: control block, launch of the graph, and the way of the loss to the
/// host. Published figures are 6 to 15 us.
const GPU_STEP: f64 = 15e-6;
/// Seconds until a GPU is open and has its kernels, when the driver has compiled them before.
const GPU_START: f64 = 0.4;

/// A training step and how often it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Cost of each node.
    pub nodes: Vec<Cost>,
    /// Stages on the CPU.
    pub stages: usize,
    /// Steps of the run, where they are known; none where time bounds it.
    pub steps: Option<u64>,
}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuFigures {
    /// `cuda:0`
    pub device: String,
    /// Nominal rate of products in the precision that it would train in.
    pub flops_per_s: f64,
    /// The share of it that kernels reach.
    pub share: f64,
    /// Nominal bytes a second of its memory.
    pub bytes_per_s: f64,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether the GPU is taken.
    pub gpu: bool,
    /// In words.
    pub why: String,
}

/// Seconds of a step on the CPU.
fn cpu_seconds(work: &Work, peak: &Peak) -> f64 {
    let floors =
        work.nodes.iter().map(|cost| peak.floor_seconds(cost.flops, cost.bytes, CPU_CACHE));
    CPU_OVER_FLOORS * floors.sum::<f64>() + CPU_STAGE * work.stages as f64
}

/// Seconds of a step on the GPU.
fn gpu_seconds(work: &Work, gpu: &GpuFigures) -> f64 {
    let (flops_per_s, bytes_per_s) = (gpu.flops_per_s * gpu.share, gpu.bytes_per_s * GPU_SHARES.2);
    let node = |cost: &Cost| {
        GPU_LAUNCH.max(cost.flops / flops_per_s).max(cost.bytes / bytes_per_s.max(1.0))
    };
    GPU_STEP + work.nodes.iter().map(node).sum::<f64>()
}

/// Why no GPU need be asked for: where even a slow CPU, of 10 GFLOP/s a thread and 5 GB/s, has done the run
/// before a GPU is open.
pub fn too_short(work: &Work, threads: usize) -> Option<String> {
    let slow = Peak {
        flops_per_s: 10e9 * threads as f64,
        memory_bytes_per_s: 5e9,
        update_bytes_per_s: 5e9,
        cache_bytes_per_s: 5e9,
        together: false,
    };
    let most = work.steps? as f64 * cpu_seconds(work, &slow);
    (most < GPU_START).then(|| {
        let steps = work.steps.unwrap_or_default();
        format!(
            "{steps} steps take at most {most:.2} s on the CPU; opening a GPU takes {GPU_START} s"
        )
    })
}

/// The rule: `peak` is that of the CPU, its FLOPs those of products in the precision that it would train
/// in.
pub fn decide(work: &Work, peak: &Peak, gpu: &GpuFigures) -> Verdict {
    let (cpu_step, gpu_step) = (cpu_seconds(work, peak), gpu_seconds(work, gpu));
    let milliseconds = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
    let device = &gpu.device;
    let mut why = format!(
        "a step is expected to take {} on the CPU and {} on {device}",
        milliseconds(cpu_step),
        milliseconds(gpu_step)
    );
    let gain = match work.steps {
        None => cpu_step / gpu_step,
        Some(steps) => {
            let cpu = steps as f64 * cpu_step;
            let gpu = GPU_START + steps as f64 * gpu_step;
            why += &format!(
                ", {steps} steps {cpu:.2} s and {gpu:.2} s with {GPU_START} s to open the GPU"
            );
            cpu / gpu
        }
    };
    let gpu = gain >= LEAST_GAIN;
    why += &match gpu {
        true => format!(": {gain:.1} times as fast"),
        false => format!(": the GPU would have to be {LEAST_GAIN} times as fast, not {gain:.2}"),
    };
    Verdict { gpu, why }
}

/// The GPU that `auto` may take, or why there is none. Asks the driver, if there is one, and opens
/// nothing.
#[cfg(feature = "cuda")]
pub(super) fn candidate() -> Result<cuda::Info, String> {
    let driver = cuda::probe().map_err(|error| match error {
        crate::Error::Device { problem, .. } => problem,
        other => other.to_string(),
    })?;
    if driver.stand_in {
        let found = "the driver is the stand-in of this crate's tests, NOT A GPU";
        return Err(format!("{found}: --device cuda:0 insists on it"));
    }
    let rate = |info: &cuda::Info| f64::from(info.multiprocessors) * info.clock_hz;
    let best = driver.devices.into_iter().reduce(|a, b| if rate(&b) > rate(&a) { b } else { a });
    best.ok_or_else(|| "the driver finds no GPU".to_owned())
}

/// What the driver says of a GPU, for products in that precision.
#[cfg(feature = "cuda")]
pub(super) fn figures(info: &cuda::Info, precision: Precision) -> GpuFigures {
    // An architecture that is not known here is newer than those that are: at least Ampere's rates.
    let clocks = f64::from(info.multiprocessors) * info.clock_hz;
    let (f32_rate, bf16_rate) = info.flops_per_s().unwrap_or((256.0 * clocks, 1024.0 * clocks));
    let (flops_per_s, share) = match precision {
        Precision::Bf16 => (bf16_rate, GPU_SHARES.1),
        Precision::F32 | Precision::F32Split => (f32_rate, GPU_SHARES.0),
    };
    // Where the driver does not say: half of the slowest that CUDA 12 supports.
    let bytes_per_s = if info.memory_bytes_per_s > 0.0 { info.memory_bytes_per_s } else { 1e11 };
    GpuFigures { device: format!("cuda:{}", info.ordinal), flops_per_s, share, bytes_per_s }
}

/// What `auto` would take on this machine, for `doctor`: the GPU that it weighs for each run, or none; and
/// why.
pub fn outlook() -> (Option<String>, String) {
    #[cfg(feature = "cuda")]
    return match candidate() {
        Ok(info) => {
            let device = format!("cuda:{}", info.ordinal);
            let why = format!(
                "each run is weighed: {device} is taken where the run is expected to be {LEAST_GAIN} times \
                 as fast there, {GPU_START} s to open it counted"
            );
            (Some(device), why)
        }
        Err(why) => (None, format!("the CPU: {why}")),
    };
    #[cfg(not(feature = "cuda"))]
    (None, "the CPU: this build is without the feature `cuda`".to_owned())
}

/// What the CPU does at most, measured in a hurry; its FLOPs those of products in that precision.
#[cfg(feature = "cuda")]
pub(super) fn cpu_figures(cpu: &Cpu, precision: Precision) -> Peak {
    let peak = cpu.quick_peak();
    match precision {
        Precision::F32 => peak,
        other => {
            Peak { flops_per_s: gemm::ceiling(cpu.isa(), other) * cpu.threads() as f64, ..peak }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two cores with AVX-512, and a GPU like an H100.
    fn made_up() -> (Peak, GpuFigures) {
        let peak = Peak {
            flops_per_s: 200e9,
            memory_bytes_per_s: 30e9,
            update_bytes_per_s: 30e9,
            cache_bytes_per_s: 200e9,
            together: true,
        };
        let device = "cuda:0".to_owned();
        (peak, GpuFigures { device, flops_per_s: 67e12, share: 0.5, bytes_per_s: 3.3e12 })
    }

    /// A step of layers of that width: 3 nodes each, and the update.
    fn mlp(width: f64, layers: usize, steps: Option<u64>) -> Work {
        let product = Cost { flops: 2.0 * 128.0 * width * width, bytes: 4.0 * width * width };
        let update = Cost { flops: 0.0, bytes: 28.0 * layers as f64 * width * width };
        let mut nodes = vec![product; 3 * layers];
        nodes.push(update);
        Work { stages: nodes.len(), nodes, steps }
    }

    #[test]
    fn small_and_short_runs_stay_on_the_cpu() {
        let (peak, gpu) = made_up();
        // Launches are what a step of 64-wide layers would take on the GPU.
        let small = decide(&mlp(64.0, 3, None), &peak, &gpu);
        assert!(!small.gpu && small.why.contains("not "), "{small:?}");
        // 2 ms a step on the CPU, but few of them: the GPU is hardly open by then.
        let short = decide(&mlp(512.0, 3, Some(100)), &peak, &gpu);
        assert!(!short.gpu, "{short:?}");
        assert!(short.why.contains("100 steps") && short.why.contains("0.4 s"), "{short:?}");
    }

    #[test]
    fn the_driver_is_not_asked_for_runs_that_are_over_before() {
        let why = too_short(&mlp(64.0, 3, Some(500)), 2).expect("0.2 s");
        assert!(why.contains("500 steps"), "{why}");
        assert_eq!(too_short(&mlp(64.0, 3, Some(50_000)), 2), None);
        assert_eq!(too_short(&mlp(512.0, 3, Some(500)), 2), None);
        assert_eq!(too_short(&mlp(64.0, 3, None), 2), None, "time bounds it, not steps");
    }

    #[test]
    fn large_and_long_runs_go_to_the_gpu() {
        let (peak, gpu) = made_up();
        for work in [mlp(512.0, 3, Some(10_000)), mlp(512.0, 3, None), mlp(2048.0, 4, Some(500))] {
            let verdict = decide(&work, &peak, &gpu);
            assert!(verdict.gpu && verdict.why.contains("times as fast"), "{verdict:?}");
        }
        // Not to one that is no faster than the CPU.
        let slow = GpuFigures { flops_per_s: 400e9, bytes_per_s: 40e9, ..gpu };
        assert!(!decide(&mlp(2048.0, 4, None), &peak, &slow).gpu);
    }

    #[test]
    fn estimates_are_those_of_the_readme_within_a_factor_of_two() {
        // 784-512-512-10 takes 2.1 ms in f32 on two such cores.
        let (peak, _) = made_up();
        let shapes = [(784.0, 512.0), (512.0, 512.0), (512.0, 10.0)];
        let mut nodes = Vec::new();
        for (number, (inputs, outputs)) in shapes.into_iter().enumerate() {
            let cost = Cost { flops: 256.0 * inputs * outputs, bytes: 4.0 * inputs * outputs };
            nodes.extend(vec![cost; if number == 0 { 2 } else { 3 }]);
        }
        nodes.push(Cost { flops: 0.0, bytes: 28.0 * 669_706.0 });
        let work = Work { stages: nodes.len(), nodes, steps: None };
        let step = cpu_seconds(&work, &peak);
        assert!((1.05e-3..4.2e-3).contains(&step), "{step}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn figures_follow_the_precision() {
        let info = cuda::Info {
            ordinal: 1,
            name: "made up".to_owned(),
            capability: (9, 0),
            memory_bytes: 80 << 30,
            multiprocessors: 132,
            clock_hz: 1.98e9,
            l2_bytes: 50 << 20,
            memory_bytes_per_s: 0.0,
        };
        let [f32_figures, bf16_figures] =
            [Precision::F32, Precision::Bf16].map(|precision| figures(&info, precision));
        assert_eq!(f32_figures.device, "cuda:1");
        assert!(bf16_figures.flops_per_s > 10.0 * f32_figures.flops_per_s);
        assert!(f32_figures.bytes_per_s > 0.0, "a driver that does not say is no division by zero");
        let unknown = cuda::Info { capability: (99, 0), ..info };
        assert!(figures(&unknown, Precision::F32).flops_per_s > 1e13);
    }
}
