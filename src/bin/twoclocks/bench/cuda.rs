//! `twoclocks bench --device cuda:N`: the same rows on a GPU, by its own clock.
//!
//! A sample is one graph of as many repetitions as take 2 ms, so that launches do not count. Of a step
//! there are two rows: `graph`, such a sample of the step's kernels alone; and `training`, what a run does, by the
//! host's clock: up to 32 steps that are uploaded, launched and waited for together, and all their losses fetched.

use super::steps::{self, Start, Training};
use super::works::{self, Gradient, Recorded};
use super::{BenchArgs, PASSES, Stored, What, sizes};
use crate::output;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use twoclocks::device::Control;
use twoclocks::device::cuda::{Bound, Buffer, Cuda, Feed, Peak, Program, Range};
use twoclocks::gemm::{Precision, Spec};
use twoclocks::ops::{self, Cost};
use twoclocks::tape::Store;
use twoclocks::{DType, Device, Error, Result, Tape};

/// Samples of a row at least.
const LEAST: usize = 5;

struct Row {
    work: String,
    batch: usize,
    precision: Precision,
    operands: Option<&'static str>,
    /// `graph` or `training`, of steps.
    mode: Option<&'static str>,
    cost: Cost,
    /// Kernels, or nodes at least.
    nodes: usize,
    seconds: Vec<f64>,
    start: Option<Start>,
}

impl Row {
    fn of(work: String, batch: usize, cost: Cost, nodes: usize, seconds: Vec<f64>) -> Row {
        let (precision, operands, mode, start) = (Precision::F32, None, None, None);
        Row { work, batch, precision, operands, mode, cost, nodes, seconds, start }
    }

    fn timed(recorded: Recorded, budget: Duration) -> Result<Row> {
        let Recorded { work, batch, mut recording, mut store } = recorded;
        let seconds = recording.device_seconds(&mut store, budget, LEAST)?;
        Ok(Row::of(work, batch, recording.cost(), recording.nodes().len(), seconds))
    }
}

pub(super) fn run(
    args: &BenchArgs,
    precision: Option<Precision>,
    budget: Duration,
    began: Instant,
) -> Result<ExitCode> {
    let device = Device::cuda(&args.device)?;
    let Device::Cuda(cuda) = &device else { unreachable!("opened as such") };
    // Measured after the first step: that is timed from the start of the process.
    let mut peak: Option<Peak> = None;
    let mut print = |row: Row| -> Result<()> {
        let peak = match peak {
            Some(peak) => peak,
            None => *peak.insert(introduce(cuda, args.common.json)?),
        };
        report(&row, cuda, &peak, args.common.json);
        Ok(())
    };
    let sizes = |defaults: &[&str]| -> Vec<String> {
        match args.sizes.is_empty() {
            true => defaults.iter().map(|&size| size.to_owned()).collect(),
            false => args.sizes.clone(),
        }
    };
    let wanted = |what: What| args.what.is_none_or(|only| only == what);
    if wanted(What::Step) {
        for net in steps::nets(&args.work) {
            for &telemetry in steps::variants(args.telemetry) {
                let problem = args.problem.as_deref();
                let mut training = Training::new(&device, &net, precision, problem, telemetry)?;
                let work = steps::named(&net, telemetry);
                for row in steps_of(&mut training, &work, budget, began)? {
                    print(row)?;
                }
            }
        }
    }
    if wanted(What::Gemm) {
        let defaults = [
            "1024x1024x1024",
            "2048x2048x2048",
            "4096x4096x4096",
            "8192x8192x8192",
            "128x512x784",
            "128x512x512",
            "128x10x512",
            "784x512x128:tn",
            "512x512x128:tn",
            "512x10x128:tn",
            "128x512x10:nt",
        ];
        let stored = args.operands.unwrap_or(Stored::F32);
        for size in sizes(&defaults) {
            print(product(&device, cuda, &size, precision.unwrap_or_default(), stored, budget)?)?;
        }
    }
    if wanted(What::Ce) {
        for size in sizes(&["128x10", "65536x1000", "8192x50257", "4096x131072"]) {
            print(Row::timed(works::cross_entropy(&device, &size, Gradient::Apart)?, budget)?)?;
        }
    }
    if wanted(What::Adamw) {
        for size in sizes(&["10000000x1", "100000000x50"]) {
            let (mut recorded, optimizer, rate) = works::adamw(&device, &size)?;
            optimizer.prepare(recorded.store.control_mut(), 1, rate, 1.0);
            print(Row::timed(recorded, budget)?)?;
        }
    }
    for (_, passes) in PASSES.into_iter().filter(|&(what, _)| wanted(what)) {
        for size in sizes(&["65536x1024", "8192x8192", "2048x65536"]) {
            for pass in passes {
                print(Row::timed(pass.record(&device, &size)?, budget)?)?;
            }
        }
    }
    if wanted(What::Reduce) {
        for size in sizes(&["65536x1024"]) {
            for axis in [1, 0] {
                print(Row::timed(works::sum(&device, &size, axis)?, budget)?)?;
            }
        }
    }
    if wanted(What::Dispatch) {
        for size in sizes(&["50x1", "50x8"]) {
            print(dispatch(&device, &size, budget)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the peaks, and says what they are.
fn introduce(cuda: &Arc<Cuda>, json: bool) -> Result<Peak> {
    let peak = cuda.peak()?;
    let unknown = "unknown".to_owned();
    let rate = |rate: Option<f64>| rate.map_or(unknown.clone(), output::quantity);
    if json {
        let info = cuda.info();
        output::line(&json!({
            "event": "device",
            "device": cuda.name(),
            "isa": cuda.architecture(),
            "name": info.name,
            "stand_in": cuda.is_stand_in(),
            "driver": cuda.driver(),
            "multiprocessors": info.multiprocessors,
            "clock_hz": info.clock_hz,
            "copy_bytes_per_s": peak.copy_bytes_per_s,
            "copied_bytes": peak.copied_bytes,
            "node_us": peak.node_seconds * 1e6,
            "f32_flops_per_s": peak.f32_flops_per_s,
            "bf16_flops_per_s": peak.bf16_flops_per_s,
            "l2_bytes": peak.l2_bytes,
        }));
    } else {
        if cuda.is_stand_in() {
            eprintln!("NOT A GPU: the stand-in of this crate's tests; its times mean nothing");
        }
        eprintln!(
            "{cuda:?}; copies of {}B here: {}B/s; a node of a graph {}; at the driver's clock f32 \
             {}FLOP/s, bf16 {}FLOP/s",
            output::quantity(peak.copied_bytes as f64),
            output::quantity(peak.copy_bytes_per_s),
            output::seconds(peak.node_seconds),
            rate(peak.f32_flops_per_s),
            rate(peak.bf16_flops_per_s),
        );
    }
    Ok(peak)
}

fn product(
    device: &Device,
    cuda: &Arc<Cuda>,
    size: &str,
    precision: Precision,
    stored: Stored,
    budget: Duration,
) -> Result<Row> {
    let mut row = match stored {
        Stored::F32 => Row::timed(works::product(device, size, precision)?.0, budget)?,
        Stored::Bf16 if precision == Precision::Bf16 => of_bf16(cuda, size, budget)?,
        Stored::Bf16 => {
            let problem = format!("bf16 is for --precision bf16, not {precision}");
            return Err(Error::config("--operands", problem));
        }
        Stored::Packed => {
            return Err(Error::config("--operands", "packed is for the CPU: GPUs pack nothing"));
        }
    };
    (row.precision, row.operands) = (precision, Some(stored.name()));
    Ok(row)
}

/// A product of matrices that lie in memory as bf16, with an f32 result.
fn of_bf16(cuda: &Arc<Cuda>, size: &str, budget: Duration) -> Result<Row> {
    let (extents, layout) = size.split_once(':').unwrap_or((size, "nn"));
    let [m, n, k] = sizes(extents, "MxNxK")?;
    works::require(size, &[[m, k], [k, n], [m, n]])?;
    let spec = Spec::new(m, n, k).in_precision(Precision::Bf16);
    let spec = match layout {
        "nn" => spec,
        "nt" => spec.b_transposed(),
        "tn" => spec.a_transposed(),
        other => return Err(Error::config("sizes", format!("'{other}' is not nn, nt or tn"))),
    };
    let Some(launches) = ops::matmul::of_bf16(cuda.target(), spec) else {
        return Err(Error::device(cuda.name(), format!("there is no kernel for {spec:?} of bf16")));
    };
    let bf16 = |len: usize| -> Vec<u8> {
        let values = works::values(len).into_iter();
        values.flat_map(|x| half::bf16::from_f32(x).to_bits().to_ne_bytes()).collect()
    };
    let bytes = [m * k * 2, k * n * 2, m * n * 4, launches.scratch_bytes()];
    let mut blocks = Vec::new();
    for (number, bytes) in bytes.into_iter().enumerate() {
        let mut block = Buffer::zeroed(cuda, &format!("'{size}'"), bytes)?;
        if number < 2 {
            block.write(0, &bf16(bytes / 2))?;
        }
        blocks.push(block);
    }
    let range = |block: usize| Range { block, offset: 0, bytes: bytes[block] };
    let (work, nodes) = (works::product_name(size), launches.tasks().len());
    let bound = Bound {
        label: work.clone(),
        launches,
        inputs: vec![range(0), range(1)],
        outputs: vec![Some(range(2))],
        scratch: range(3),
        after: vec![],
    };
    let blocks: Vec<&Buffer> = blocks.iter().collect();
    let (feed, control) = (Feed::new(cuda)?, Control::new());
    let mut program = Program::new(cuda, vec![bound], &blocks, &[], &feed, &control)?;
    let seconds = program.device_seconds(budget, LEAST)?;
    let bytes = bytes[..3].iter().sum::<usize>() as f64;
    let cost = Cost { flops: spec.flops() as f64, bytes };
    Ok(Row::of(work, m, cost, nodes, seconds))
}

/// A chain of nodes that add 1024 numbers a chunk, each to the result of the one before it.
fn dispatch(device: &Device, size: &str, budget: Duration) -> Result<Row> {
    let [nodes, chunks] = sizes(size, "NODESxCHUNKS")?;
    works::require(size, &[[nodes, chunks * 1024]])?;
    let mut store = Store::new(device);
    let len = chunks * 1024;
    let zeros = store.allocate("zeros", DType::F32, len);
    let mut tape = Tape::new(&store);
    let zeros = tape.persistent("zeros", zeros, 0, [len])?;
    let mut sum = zeros;
    for _ in 0..nodes {
        sum = ops::add(&mut tape, sum, zeros)?;
    }
    tape.output(sum)?;
    let recording = tape.compile(&store)?;
    let work = format!("dispatch_{nodes}x{chunks}");
    Row::timed(Recorded { work, batch: nodes, recording, store }, budget)
}

fn steps_of(
    training: &mut Training,
    net: &str,
    budget: Duration,
    began: Instant,
) -> Result<[Row; 2]> {
    /// Steps that are given at once, as a run gives them.
    const AT_ONCE: usize = 32;
    let start = training.start(began)?;
    let precision = training.trainer.precision();
    // To the end of the epoch, and a whole one: every graph that is timed below is captured then.
    training.finish_epoch(AT_ONCE)?;
    training.finish_epoch(AT_ONCE)?;
    let (mut host, timed) = (Vec::new(), Instant::now());
    while host.len() < LEAST || timed.elapsed() < budget / 2 {
        let start = Instant::now();
        let steps = training.steps(AT_ONCE)?;
        host.push(start.elapsed().as_secs_f64() / steps as f64);
    }
    let (recording, store) = training.trainer.step_recording()?;
    let (cost, nodes) = (recording.cost(), recording.nodes().len());
    let device = recording.device_seconds(store, budget / 2, LEAST)?;
    let row = |mode, seconds, start| {
        let row = Row::of(net.to_owned(), steps::BATCH, cost, nodes, seconds);
        Row { precision, mode: Some(mode), start, ..row }
    };
    Ok([row("graph", device, Some(start)), row("training", host, None)])
}

fn report(row: &Row, cuda: &Cuda, peak: &Peak, json: bool) {
    let mut sorted = row.seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let [p05, median, p95] = [0.05, 0.5, 0.95].map(|share| output::quantile(&sorted, share));
    let Cost { flops, bytes } = row.cost;
    let bf16 = row.precision == Precision::Bf16;
    let floor = peak.floor_seconds(flops, bytes, row.nodes, bf16);
    let rate = if bf16 { peak.bf16_flops_per_s } else { peak.f32_flops_per_s };
    let share_of_copy = bytes / median / peak.copy_bytes_per_s;
    if json {
        let mut line = json!({
            "event": "bench",
            "work": row.work,
            "device": cuda.name(),
            "isa": cuda.architecture(),
            "stand_in": cuda.is_stand_in(),
            "precision": row.precision.to_string(),
            "operands": row.operands,
            "mode": row.mode,
            "clock": if row.mode == Some("training") { "host" } else { "device" },
            "threads": 1,
            "batch": row.batch,
            "nodes": row.nodes,
            "median_ms": median * 1e3,
            "p05_ms": p05 * 1e3,
            "p95_ms": p95 * 1e3,
            "n": sorted.len(),
            "items_per_s": row.batch as f64 / median,
            "flops": flops,
            "bytes": bytes,
            "floor_ms": floor * 1e3,
            "ratio_to_floor": median / floor,
            "peak_flops_per_s": rate,
            "share_of_peak": rate.map(|rate| flops / median / rate),
            "flops_per_s": flops / median,
            "bytes_per_s": bytes / median,
            "copy_bytes_per_s": peak.copy_bytes_per_s,
            "share_of_copy": share_of_copy,
        });
        if let Some(start) = &row.start {
            line["first_step_ms"] = json!(start.first_step.as_secs_f64() * 1e3);
            line["loss_200"] = json!(start.loss);
        }
        output::line(&line);
        return;
    }
    let mode = row.mode.map_or(String::new(), |mode| format!(" {mode}"));
    let from = match row.operands {
        Some(operands) if operands != "f32" => format!(" from {operands}"),
        _ => String::new(),
    };
    let first = row.start.as_ref().map_or(String::new(), |start| {
        format!("; first step after {}", output::seconds(start.first_step.as_secs_f64()))
    });
    output::say!(
        "{:<28} {}{from}{mode} {:>10}  (5 % {}, 95 % {}, n {})  {}FLOP/s  {}B/s ({:.0} % of a copy)  \
         {:.2} x the floor of {}{first}",
        row.work,
        row.precision,
        output::seconds(median),
        output::seconds(p05),
        output::seconds(p95),
        sorted.len(),
        output::quantity(flops / median),
        output::quantity(bytes / median),
        100.0 * share_of_copy,
        median / floor,
        output::seconds(floor),
    );
}
