//! `twoclocks bench`: time, rate, floor and ratio.

#[cfg(feature = "cuda")]
mod cuda;
mod passes;
mod products;
mod steps;
mod works;

use crate::{Common, output};
use clap::{Args, ValueEnum};
use products::Stored;
use serde_json::json;
use std::cell::LazyCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use steps::{Start, Training};
use twoclocks::device::Control;
use twoclocks::device::cpu::program::{Bound, Span, Task};
use twoclocks::device::cpu::{Chunk, Cpu, Launch, Memory, Peak, Program};
use twoclocks::gemm::{self, Precision};
use twoclocks::tensor::DType;
use twoclocks::{Device, Error, Result};
use works::{Gradient, Pass, Recorded};

/// Bytes up to which a floor counts data at the cache's rate: a large last-level cache.
const CACHE_BYTES: f64 = (32u64 << 20) as f64;

/// Flags of `twoclocks bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// What to time; everything when nothing is named.
    #[arg(value_enum)]
    what: Option<What>,
    /// Sizes: gemm MxNxK (with :nt or :tn where B or A lies transposed), ce ROWSxCLASSES, adamw
    /// PARAMETERSxTENSORS, norm, softmax and reduce ROWSxCOLUMNS, dispatch NODESxCHUNKS.
    sizes: Vec<String>,
    /// Where to compute: cpu or cuda:N, whose own clock is then read.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Nets of `bench step`: mlp64, mlp, mlp2048.
    #[arg(long, value_name = "NET", num_args = 1..)]
    work: Vec<String>,
    /// Batches and starting weights of the one net of `bench step`, in a safetensors file; biases
    /// decay too, as with the peers.
    #[arg(long, value_name = "FILE")]
    problem: Option<PathBuf>,
    /// Precision of products: f32, bf16 or auto (bf16 where a step's net gains from it).
    #[arg(long, default_value = "auto")]
    precision: String,
    /// `bench step`: also steps that are measured for the two clocks, on a CPU in turn with those that are not.
    #[arg(long)]
    telemetry: bool,
    /// What of `bench gemm` lies in memory: matrices in f32 (default) or bf16, or B packed.
    #[arg(long, value_enum)]
    operands: Option<Stored>,
    /// Seconds to measure each row for.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum What {
    /// Matrix products.
    Gemm,
    /// Softmax cross-entropy with its gradient.
    Ce,
    /// The AdamW update.
    Adamw,
    /// Layer normalisation and its gradient.
    Norm,
    /// Softmax and its gradient.
    Softmax,
    /// Sums along rows and along columns.
    Reduce,
    /// Whole training steps.
    Step,
    /// What it costs to run a node, beyond the time of its kernel.
    Dispatch,
}

/// One measured row.
struct Row {
    work: String,
    /// Items that one repetition handles, for `items_per_s`.
    items: f64,
    batch: usize,
    precision: Precision,
    /// What lay in memory before a product.
    operands: Option<&'static str>,
    flops: f64,
    bytes: f64,
    seconds: Vec<f64>,
    /// Bytes read and written a second of a read-modify-write loop that took turns with the work;
    /// empty where that does not come from memory.
    updates: Vec<f64>,
    start: Option<Start>,
}

/// `began`: the start of the process.
pub fn run(args: BenchArgs, began: Instant) -> Result<ExitCode> {
    let budget = output::budget(args.seconds)?;
    let precision = match args.precision.as_str() {
        "auto" => None,
        "f32" => Some(Precision::F32),
        "f32_split" => Some(Precision::F32Split),
        "bf16" => Some(Precision::Bf16),
        other => {
            return Err(Error::config(
                "--precision",
                format!("'{other}' is not auto, f32, f32_split or bf16"),
            ));
        }
    };
    if precision.is_some_and(|precision| precision != Precision::F32)
        && !matches!(args.what, Some(What::Gemm | What::Step))
    {
        let problem = "is for `bench gemm` and `bench step`: the other rows are f32";
        return Err(Error::config("--precision", problem));
    }
    if args.operands.is_some() && args.what != Some(What::Gemm) {
        return Err(Error::config("--operands", "is for `bench gemm`"));
    }
    if !args.work.is_empty() && !matches!(args.what, None | Some(What::Step)) {
        return Err(Error::config("--work", "names a net of `bench step`"));
    }
    if !args.sizes.is_empty() && args.what == Some(What::Step) {
        let problem = format!("bench step takes nets by --work, not '{}'", args.sizes[0]);
        return Err(Error::config("sizes", problem));
    }
    if args.telemetry && !matches!(args.what, None | Some(What::Step)) {
        return Err(Error::config("--telemetry", "is of `bench step`"));
    }
    if args.problem.is_some() && (args.what != Some(What::Step) || args.work.len() != 1) {
        return Err(Error::config("--problem", "is of one net: bench step --work NET"));
    }
    if args.device != "cpu" {
        return on_gpu(&args, precision, budget, began);
    }
    let cpu = Arc::new(Cpu::new(args.common.threads.unwrap_or(0))?);
    let device = Device::Cpu(Arc::clone(&cpu));
    // Measured when it is first read: not before the first step.
    let peak = LazyCell::new(|| cpu.peak());
    let sizes = |defaults: &[&str]| -> Vec<String> {
        match args.sizes.is_empty() {
            true => defaults.iter().map(|&size| size.to_owned()).collect(),
            false => args.sizes.clone(),
        }
    };
    if !args.common.json {
        eprintln!(
            "{device:?}; peaks of this run: {}FLOP/s, cache {}B/s, memory {}B/s",
            output::quantity(peak.flops_per_s),
            output::quantity(peak.cache_bytes_per_s),
            output::quantity(peak.memory_bytes_per_s)
        );
        if !peak.together {
            eprintln!("{}", output::NOT_TOGETHER);
        }
    }
    let print = |row: Row| report(&row, &cpu, &peak, args.common.json);
    let wanted = |what: What| args.what.is_none_or(|only| only == what);
    if wanted(What::Gemm) {
        let defaults = [
            "64x64x64",
            "128x128x128",
            "256x256x256",
            "512x512x512",
            "1024x1024x1024",
            "128x512x784",
            "784x512x128",
            "128x10x512",
        ];
        let how = (precision.unwrap_or_default(), args.operands.unwrap_or(Stored::F32));
        for size in sizes(&defaults) {
            print(products::row(&cpu, &device, &size, how, budget)?);
        }
    }
    if wanted(What::Ce) {
        for size in sizes(&["128x10", "4096x65", "512x50257"]) {
            let recorded = works::cross_entropy(&device, &size, Gradient::Apart)?;
            let row = passes::timed(&cpu, recorded, budget)?;
            let from_memory = row.bytes > CACHE_BYTES;
            print(row);
            if from_memory {
                let recorded = works::cross_entropy(&device, &size, Gradient::OverLogits)?;
                print(passes::timed_last(&cpu, recorded, budget)?);
            }
        }
    }
    if wanted(What::Adamw) {
        for size in sizes(&["10000000x1", "10000000x50"]) {
            print(adamw(&cpu, &device, &size, budget)?);
        }
    }
    for (_, passes) in PASSES.into_iter().filter(|&(what, _)| wanted(what)) {
        for size in sizes(&["4096x1024"]) {
            for pass in passes {
                print(passes::timed(&cpu, pass.record(&device, &size)?, budget)?);
            }
        }
    }
    if wanted(What::Reduce) {
        for size in sizes(&["4096x1024"]) {
            for axis in [1, 0] {
                print(passes::timed(&cpu, works::sum(&device, &size, axis)?, budget)?);
            }
        }
    }
    if wanted(What::Step) {
        for net in steps::nets(&args.work) {
            let mut nets = Vec::new();
            for &telemetry in steps::variants(args.telemetry) {
                let problem = args.problem.as_deref();
                let training = Training::new(&device, &net, precision, problem, telemetry)?;
                nets.push((steps::named(&net, telemetry), training));
            }
            steps::rows(nets, budget, began)?.into_iter().for_each(print);
        }
    }
    if wanted(What::Dispatch) {
        for size in sizes(&["50x1", "50x2", "50x8"]) {
            print(dispatch(&cpu, &size, budget)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of the two passes over rows.
const PASSES: [(What, [Pass; 2]); 2] = [
    (What::Norm, [Pass::LayerNorm, Pass::LayerNormBackward]),
    (What::Softmax, [Pass::Softmax, Pass::SoftmaxBackward]),
];

#[cfg(feature = "cuda")]
fn on_gpu(
    args: &BenchArgs,
    precision: Option<Precision>,
    budget: Duration,
    began: Instant,
) -> Result<ExitCode> {
    cuda::run(args, precision, budget, began)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(args: &BenchArgs, _: Option<Precision>, _: Duration, _: Instant) -> Result<ExitCode> {
    Err(Error::device(&args.device, "this build is without the feature `cuda`: use --device cpu"))
}

fn report(row: &Row, cpu: &Cpu, peak: &Peak, json: bool) {
    let mut sorted = row.seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = output::quantile(&sorted, 0.5);
    let mut peak = *peak;
    if row.precision != Precision::F32 {
        let ceiling = gemm::ceiling(cpu.isa(), row.precision) * cpu.threads() as f64;
        peak.flops_per_s = peak.flops_per_s.max(ceiling);
    }
    let floor = peak.floor_seconds(row.flops, row.bytes, CACHE_BYTES);
    let mut updates = row.updates.clone();
    updates.sort_by(f64::total_cmp);
    let update = (!updates.is_empty()).then(|| output::quantile(&updates, 0.5));
    let share = update.map(|rate| row.bytes / median / rate);
    if json {
        let mut line = json!({
            "event": "bench",
            "work": row.work,
            "device": "cpu",
            "isa": cpu.isa().name(),
            "precision": row.precision.to_string(),
            "operands": row.operands,
            "threads": cpu.threads(),
            "batch": row.batch,
            "median_ms": median * 1e3,
            "p05_ms": output::quantile(&sorted, 0.05) * 1e3,
            "p95_ms": output::quantile(&sorted, 0.95) * 1e3,
            "n": sorted.len(),
            "items_per_s": row.items / median,
            "flops": row.flops,
            "bytes": row.bytes,
            "floor_ms": floor * 1e3,
            "ratio_to_floor": median / floor,
            "peak_flops_per_s": peak.flops_per_s,
            "share_of_peak": row.flops / median / peak.flops_per_s,
            "update_bytes_per_s": update,
            "share_of_update": share,
            "peaks_together": peak.together,
        });
        if let Some(start) = &row.start {
            line["first_step_ms"] = json!(start.first_step.as_secs_f64() * 1e3);
            if let Some(loss) = start.loss {
                line["loss_200"] = json!(loss);
            }
        }
        output::line(&line);
        return;
    }
    if floor == 0.0 {
        output::say!(
            "{:<24} {:>10}  (5 % {}, 95 % {}, n {})  {} an item",
            row.work,
            output::seconds(median),
            output::seconds(output::quantile(&sorted, 0.05)),
            output::seconds(output::quantile(&sorted, 0.95)),
            sorted.len(),
            output::seconds(median / row.items),
        );
        return;
    }
    let beside = match (update, share) {
        (Some(rate), Some(share)) => {
            let rate = output::quantity(rate);
            format!(", {:.0} % of a read-modify-write loop's {rate}B/s", 100.0 * share)
        }
        _ => String::new(),
    };
    let from = match row.operands {
        Some(operands) if operands != "f32" => format!(" from {operands}"),
        _ => String::new(),
    };
    output::say!(
        "{:<24} {}{from} {:>10}  (5 % {}, 95 % {}, n {})  {}FLOP/s  {}B/s  {:.2} x the floor of {}{beside}",
        row.work,
        row.precision,
        output::seconds(median),
        output::seconds(output::quantile(&sorted, 0.05)),
        output::seconds(output::quantile(&sorted, 0.95)),
        sorted.len(),
        output::quantity(row.flops / median),
        output::quantity(row.bytes / median),
        median / floor,
        output::seconds(floor),
    );
}

/// Repeats `work` for the budget after a warm-up of a tenth of it (at least 3 repetitions), and
/// gives the seconds of each repetition.
fn repeat(budget: Duration, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    const MOST: usize = 200_000;
    let began = Instant::now();
    let mut warm = 0;
    while warm < 3 || began.elapsed() < budget / 10 {
        work()?;
        warm += 1;
    }
    let mut seconds = Vec::new();
    let began = Instant::now();
    while seconds.len() < 3 || (began.elapsed() < budget && seconds.len() < MOST) {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

fn sizes<const N: usize>(text: &str, form: &str) -> Result<[usize; N]> {
    let parts: Vec<usize> = text.split('x').map_while(|part| part.parse().ok()).collect();
    let whole = text.split('x').count() == N;
    <[usize; N]>::try_from(parts)
        .ok()
        .filter(|sizes| whole && sizes.iter().all(|&size| size > 0))
        .ok_or_else(|| Error::config("sizes", format!("'{text}' is not of the form {form}")))
}

fn adamw(cpu: &Cpu, device: &Device, size: &str, budget: Duration) -> Result<Row> {
    let (Recorded { work, mut recording, mut store, .. }, optimizer, rate) =
        works::adamw(device, size)?;
    let cost = recording.cost();
    let parameters = size.split('x').next().and_then(|count| count.parse().ok());
    let mut step = 0;
    let (seconds, updates) = passes::beside_updates(cpu, cost.bytes, budget, || {
        step += 1;
        optimizer.prepare(store.control_mut(), step, rate, 1.0);
        recording.replay(&mut store)
    })?;
    Ok(Row {
        work,
        items: parameters.unwrap_or(f64::NAN),
        batch: 1,
        precision: Precision::F32,
        operands: None,
        flops: cost.flops,
        bytes: cost.bytes,
        seconds,
        updates,
        start: None,
    })
}

/// Replays nodes in a stage each, whose chunks only wait a microsecond: what claims and barriers take
/// beyond that. Help by other threads is not optional here, unlike in a step.
fn dispatch(cpu: &Cpu, size: &str, budget: Duration) -> Result<Row> {
    let [nodes, chunks] = sizes(size, "NODESxCHUNKS")?;
    works::require(size, &[[nodes, chunks]])?;
    const CHUNK: Duration = Duration::from_micros(1);
    let wait = |_: &Chunk<'_>| {
        let start = Instant::now();
        while start.elapsed() < CHUNK {}
    };
    let span = Span { region: 0, offset: 0, len: 0, dtype: DType::F32, in_place: false };
    let bound = (0..nodes)
        .map(|_| Bound {
            launch: Launch::new("none").tiles(chunks, wait),
            inputs: Vec::new(),
            outputs: Vec::new(),
            scratch: span,
        })
        .collect();
    let stages: Vec<_> = (0..nodes).map(|node| vec![vec![Task { node, phase: 0 }]]).collect();
    let mut program = Program::new(bound, &stages, 1, cpu.threads());
    let mut memory = Memory::zeroed(64);
    program.always_help();
    let control = Control::new();
    let least = CHUNK.as_secs_f64() * (nodes * chunks.div_ceil(cpu.threads())) as f64;
    let mut seconds = repeat(budget, || {
        program.replay(cpu.team(), std::iter::once(&mut memory), &control);
        Ok(())
    })?;
    seconds.iter_mut().for_each(|seconds| *seconds -= least);
    Ok(Row {
        work: format!("dispatch_{nodes}x{chunks}"),
        items: nodes as f64,
        batch: nodes,
        precision: Precision::F32,
        operands: None,
        flops: 0.0,
        bytes: 0.0,
        seconds,
        updates: Vec::new(),
        start: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use twoclocks::runs::Environment;

    #[test]
    fn sizes_beyond_memory_are_refused() {
        if Environment::available_memory().is_some() {
            let cpu = Arc::new(Cpu::new(1).unwrap_or_else(|e| panic!("{e}")));
            let device = Device::Cpu(Arc::clone(&cpu));
            let how = (Precision::F32, Stored::F32);
            let (huge, budget) = (usize::MAX / 2, Duration::from_millis(1));
            let logits = format!("{huge}x{huge}");
            for refused in [
                products::row(&cpu, &device, &format!("{huge}x1x1"), how, budget).err(),
                works::cross_entropy(&device, &logits, Gradient::Apart).err(),
                adamw(&cpu, &device, &format!("{huge}x1"), budget).err(),
            ] {
                let error = refused.expect("more than any memory").to_string();
                assert!(error.contains("memory") && error.contains(&huge.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(sizes::<3>("1x2x3", "").ok(), Some([1, 2, 3]));
        for bad in ["1x2", "1x2x3x4", "1xax3", "0x2x3", ""] {
            assert!(sizes::<3>(bad, "MxNxK").is_err(), "{bad}");
        }
    }
}
