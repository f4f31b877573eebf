//! `twoclocks bench`: time, rate, floor and ratio.

mod passes;
mod products;

use crate::problem::Problem;
use crate::{Common, output};
use clap::{Args, ValueEnum};
use passes::Pass;
use products::Stored;
use serde_json::json;
use std::cell::LazyCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use twoclocks::data::{NormalisationKind, Split, synthetic};
use twoclocks::device::Control;
use twoclocks::device::cpu::program::{Bound, Span, Task};
use twoclocks::device::cpu::{Chunk, Cpu, Launch, Memory, Peak, Program};
use twoclocks::gemm::{self, Precision};
use twoclocks::nn::{Forward, Linear, Module, Parameters};
use twoclocks::ops::{self, Activation, Var};
use twoclocks::optim::{Optimizer, OptimizerConfig, Segment};
use twoclocks::runs::Environment;
use twoclocks::tape::{Recording, Store};
use twoclocks::tensor::DType;
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Error, Result, Tape};

/// Bytes up to which a floor counts data at the cache's rate: a large last-level cache.
const CACHE_BYTES: f64 = (32u64 << 20) as f64;

/// Flags of `twoclocks bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// What to time; everything when nothing is named.
    #[arg(value_enum)]
    what: Option<What>,
    /// Sizes: gemm MxNxK, ce ROWSxCLASSES, adamw PARAMETERSxTENSORS, norm and softmax ROWSxCOLUMNS,
    /// dispatch NODESxCHUNKS.
    sizes: Vec<String>,
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

/// How a net began to train.
struct Start {
    /// From the start of the process to the end of the first step.
    first_step: Duration,
    /// Mean loss of the last pass over the batches in the first [`CHECKED_STEPS`] steps of a
    /// problem.
    loss: Option<f64>,
}

/// Steps of a problem after which all programs must have the same loss.
const CHECKED_STEPS: u64 = 200;

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
    let cpu = Arc::new(Cpu::new(args.common.threads.unwrap_or(0))?);
    let device = Device::Cpu(Arc::clone(&cpu));
    if args.problem.is_some() && (args.what != Some(What::Step) || args.work.len() != 1) {
        return Err(Error::config("--problem", "is of one net: bench step --work NET"));
    }
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
            let row = cross_entropy(&cpu, &device, &size, Gradient::Apart, budget)?;
            let from_memory = row.bytes > CACHE_BYTES;
            print(row);
            if from_memory {
                print(cross_entropy(&cpu, &device, &size, Gradient::OverLogits, budget)?);
            }
        }
    }
    if wanted(What::Adamw) {
        for size in sizes(&["10000000x1", "10000000x50"]) {
            print(adamw(&cpu, &device, &size, budget)?);
        }
    }
    let passes = [
        (What::Norm, [Pass::LayerNorm, Pass::LayerNormBackward]),
        (What::Softmax, [Pass::Softmax, Pass::SoftmaxBackward]),
    ];
    for (_, passes) in passes.into_iter().filter(|&(what, _)| wanted(what)) {
        for size in sizes(&["4096x1024"]) {
            for pass in passes {
                print(pass.row(&cpu, &device, &size, budget)?);
            }
        }
    }
    if wanted(What::Step) {
        let nets = match args.work.is_empty() {
            true => vec!["mlp64".to_owned(), "mlp".to_owned(), "mlp2048".to_owned()],
            false => args.work.clone(),
        };
        for net in nets {
            let problem = args.problem.as_deref();
            print(step(&device, &net, precision, budget, problem, began)?);
        }
    }
    if wanted(What::Dispatch) {
        for size in sizes(&["50x1", "50x2", "50x8"]) {
            print(dispatch(&cpu, &size, budget)?);
        }
    }
    Ok(ExitCode::SUCCESS)
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

/// Refuses sizes whose matrices of f32 do not fit into memory.
fn require(size: &str, matrices: &[[usize; 2]]) -> Result<()> {
    let elements: f64 = matrices.iter().map(|&[rows, columns]| rows as f64 * columns as f64).sum();
    // An operand is made on the host before it is copied to its place.
    let bytes = 2.0 * elements * size_of::<f32>() as f64;
    Environment::require_memory(&format!("'{size}'"), bytes)
}

/// A region of small reproducible values.
fn region(store: &mut Store, len: usize) -> twoclocks::tape::Region {
    let mut random = twoclocks::random::Random::new(1, len as u64);
    let values: Vec<f32> = (0..len).map(|_| random.uniform(-1.0, 1.0) as f32).collect();
    store.upload("values", &values)
}

fn timed(mut recording: Recording, mut store: Store, budget: Duration) -> Result<Vec<f64>> {
    repeat(budget, || recording.replay(&mut store))
}

/// Where the gradient goes.
#[derive(Clone, Copy, PartialEq)]
enum Gradient {
    /// To memory of its own: the logits stay as they are.
    Apart,
    /// Over the logits, which a node computed, as in a training step.
    OverLogits,
}

fn cross_entropy(
    cpu: &Cpu,
    device: &Device,
    size: &str,
    gradient: Gradient,
    budget: Duration,
) -> Result<Row> {
    let [rows, classes] = sizes(size, "ROWSxCLASSES")?;
    require(size, &[[rows, classes], [rows, classes]])?;
    let mut store = Store::new(device);
    let logits = region(&mut store, rows * classes);
    let labels: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
    let labels = store.upload("labels", &labels);
    let mut tape = Tape::new(&store);
    let mut logits = tape.persistent("logits", logits, 0, [rows, classes])?;
    let labels = tape.persistent("labels", labels, 0, [rows])?;
    if gradient == Gradient::OverLogits {
        logits = ops::copy(&mut tape, logits)?;
    }
    let loss = ops::softmax_cross_entropy(&mut tape, logits, labels, 0.0)?;
    tape.output(loss.loss)?;
    tape.output(loss.dlogits)?;
    tape.output(loss.statistics)?;
    let recording = (tape.compile(&store)?, store);
    match gradient {
        Gradient::Apart => {
            passes::timed(format!("ce_{rows}x{classes}"), rows, cpu, recording, budget)
        }
        Gradient::OverLogits => {
            let work = format!("ce_{rows}x{classes}_in_place");
            passes::timed_last(work, rows, cpu, recording, budget)
        }
    }
}

fn adamw(cpu: &Cpu, device: &Device, size: &str, budget: Duration) -> Result<Row> {
    let [parameters, tensors] = sizes(size, "PARAMETERSxTENSORS")?;
    if tensors > parameters {
        return Err(Error::config("sizes", format!("'{size}' has more tensors than parameters")));
    }
    // Weights, gradients, two moments.
    require(size, &[[parameters, 4]])?;
    let mut store = Store::new(device);
    let (weights, gradients) = (region(&mut store, parameters), region(&mut store, parameters));
    let bound = |i: usize| (i as u128 * parameters as u128 / tensors as u128) as usize;
    let segments = (0..tensors)
        .map(|i| Segment {
            offset: bound(i),
            len: bound(i + 1) - bound(i),
            rate_factor: 1.0,
            decay_factor: 1.0,
        })
        .collect();
    let config = OptimizerConfig::default();
    let optimizer = Optimizer::new(&config, segments, parameters, &mut store)?;
    let mut tape = Tape::new(&store);
    optimizer.record(&mut tape, weights, gradients, None)?;
    let mut recording = tape.compile(&store)?;
    let cost = recording.cost();
    let mut step = 0;
    let (seconds, updates) = passes::beside_updates(cpu, cost.bytes, budget, || {
        step += 1;
        optimizer.prepare(store.control_mut(), step, config.rate, 1.0);
        recording.replay(&mut store)
    })?;
    Ok(Row {
        work: format!("adamw_{parameters}x{tensors}"),
        items: parameters as f64,
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

/// Widths of the named nets, all with ReLU between.
fn widths(net: &str) -> Result<&'static [usize]> {
    Ok(match net {
        "mlp64" => &[64, 64, 64, 10],
        "mlp" => &[784, 512, 512, 10],
        "mlp2048" => &[784, 2048, 2048, 2048, 10],
        other => {
            return Err(Error::config("--work", format!("'{other}' is not mlp64, mlp or mlp2048")));
        }
    })
}

/// Linear layers one after another.
struct Net(Vec<Linear>);

impl Module for Net {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        self.0.iter().try_fold(x, |x, layer| layer.forward(pass, x))
    }
}

fn step(
    device: &Device,
    net: &str,
    precision: Option<Precision>,
    budget: Duration,
    problem: Option<&Path>,
    began: Instant,
) -> Result<Row> {
    const BATCH: usize = 128;
    const BATCHES: usize = 8;
    let widths = widths(net)?;
    let problem = problem.map(|path| Problem::read(path, widths, BATCH)).transpose()?;
    let mut parameters = Parameters::new();
    let mut layers = Vec::new();
    for (number, pair) in widths.windows(2).enumerate() {
        let last = number + 2 == widths.len();
        let activation = if last { Activation::None } else { Activation::Relu };
        let name = format!("linear{number}");
        let layer = Linear::new(&mut parameters, &name, pair[0], pair[1], activation)?;
        // Optimizers of the peers know one decay for all parameters.
        if let (Some(bias), true) = (layer.bias(), problem.is_some()) {
            parameters.info_mut(bias).decay_factor = 1.0;
        }
        layers.push(layer);
    }
    let classes = widths[widths.len() - 1];
    let mut options = TrainOptions { batch: BATCH, ..TrainOptions::default() };
    let mut batches = BATCHES;
    if let Some(problem) = &problem {
        options.normalise = NormalisationKind::None;
        batches = problem.batches;
    }
    let Device::Cpu(cpu) = device else { return Err(Error::device(device.name(), "not yet")) };
    let shapes: Vec<[usize; 2]> = widths.windows(2).map(|pair| [pair[0], pair[1]]).collect();
    // What is chosen is measured on one thread: another one makes the data meanwhile.
    let (precision, data) = rayon::join(
        || precision.unwrap_or_else(|| gemm::choose(cpu.isa(), BATCH, &shapes).precision),
        || -> Result<Split> {
            let train = match &problem {
                Some(problem) => problem.dataset(classes, options.seed)?,
                None => synthetic(BATCH * BATCHES, widths[0], classes, 1),
            };
            Ok(Split { train, test: synthetic(BATCH, widths[0], classes, 2) })
        },
    );
    let data = data?;
    options.precision = precision;
    let mut trainer = Trainer::new(device, Box::new(Net(layers)), parameters, &data, options)?;
    if let Some(problem) = &problem {
        problem.start(&mut trainer)?;
    }
    trainer.start_epoch(0)?;
    let mut number = 0;
    let mut next = || {
        let offset = number as usize % batches * BATCH;
        number += 1;
        let loss = trainer.step(number, offset, 1e-3)?;
        if loss.is_finite() {
            return Ok(loss);
        }
        Err(Error::config("bench step", format!("the loss of step {number} is {loss}")))
    };
    let mut losses = vec![next()?];
    let first_step = began.elapsed();
    if problem.is_some() {
        for _ in 1..CHECKED_STEPS {
            losses.push(next()?);
        }
    }
    let pass = &losses[losses.len().saturating_sub(batches)..];
    let loss = problem.is_some().then(|| pass.iter().sum::<f64>() / pass.len() as f64);
    let seconds = repeat(budget, || next().map(drop))?;
    let (recording, _) = trainer.step_recording()?;
    let cost = recording.cost();
    Ok(Row {
        work: net.to_owned(),
        items: BATCH as f64,
        batch: BATCH,
        precision,
        operands: None,
        flops: cost.flops,
        bytes: cost.bytes,
        seconds,
        updates: Vec::new(),
        start: Some(Start { first_step, loss }),
    })
}

/// Replays nodes in a stage each, whose chunks only wait a microsecond: what claims and barriers take
/// beyond that. Help by other threads is not optional here, unlike in a step.
fn dispatch(cpu: &Cpu, size: &str, budget: Duration) -> Result<Row> {
    let [nodes, chunks] = sizes(size, "NODESxCHUNKS")?;
    require(size, &[[nodes, chunks]])?;
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

    #[test]
    fn sizes_beyond_memory_are_refused() {
        if Environment::available_memory().is_some() {
            let cpu = Arc::new(Cpu::new(1).unwrap_or_else(|e| panic!("{e}")));
            let device = Device::Cpu(Arc::clone(&cpu));
            let how = (Precision::F32, Stored::F32);
            let (huge, budget) = (usize::MAX / 2, Duration::from_millis(1));
            for refused in [
                products::row(&cpu, &device, &format!("{huge}x1x1"), how, budget),
                cross_entropy(&cpu, &device, &format!("{huge}x{huge}"), Gradient::Apart, budget),
                adamw(&cpu, &device, &format!("{huge}x1"), budget),
            ] {
                let error = refused.err().expect("more than any memory").to_string();
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
