//! `twoclocks profile`: the nodes of one training step, each beside its floor.

#[cfg(feature = "cuda")]
mod cuda;

use crate::{Common, Work, output};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use twoclocks::device::Device;
use twoclocks::tape::{Recording, Store};
use twoclocks::train::{StepTimes, cpu_floors, step_times};
use twoclocks::{Error, Result};

/// Flags of `twoclocks profile`.
#[derive(Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    work: Work,
    /// Seconds to measure for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Print when and on which thread each unit of a step of median length ran.
    #[arg(long)]
    timeline: bool,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: ProfileArgs) -> Result<ExitCode> {
    let budget = output::budget(args.seconds)? / 2;
    let config = args.work.config("digits", args.common.threads)?;
    let mut trainer = config.trainer().map_err(|error| args.work.name_file(error))?;
    let cpu = match trainer.store().device().clone() {
        Device::Cpu(cpu) => cpu,
        #[cfg(feature = "cuda")]
        Device::Cuda(_) if args.timeline => {
            let problem = "timelines are of the CPU's threads: leave out --timeline";
            return Err(Error::device(config.device, problem));
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            output::note(format_args!("on {cuda:?}"));
            return cuda::run(&mut trainer, &cuda, budget, args.common.json);
        }
        _ => return Err(Error::device(config.device, "is of a kind that has no profiles")),
    };
    let peak = cpu.peak();
    if args.timeline {
        trainer.start_epoch(0)?;
        for step in 1..=20 {
            trainer.step(step, 0, 1e-6)?;
        }
        return timeline(trainer.step_recording()?, budget, args.common.json);
    }
    let precision = trainer.precision();
    let StepTimes { whole, nodes: medians } = step_times(&mut trainer, 2 * budget)?;
    let (recording, _) = trainer.step_recording()?;
    let sum: f64 = medians.iter().sum();
    let nodes = recording.nodes();
    let floors = cpu_floors(&cpu, &peak, precision, nodes);
    let floor_sum: f64 = floors.iter().sum();
    if !args.common.json {
        output::say!(
            "{:<34} {:<18} {:>10} {:>6} {:>10} {:>7}  {:>14} {:>12}",
            "node",
            "kernel",
            "time",
            "share",
            "floor",
            "ratio",
            "FLOP/s",
            "B/s"
        );
    }
    for ((node, &seconds), &floor) in nodes.iter().zip(&medians).zip(&floors) {
        if args.common.json {
            output::line(&json!({
                "event": "node",
                "node": node.label,
                "kernel": node.kernel,
                "chunks": node.chunks,
                "median_us": seconds * 1e6,
                "share": seconds / sum,
                "flops": node.cost.flops,
                "bytes": node.cost.bytes,
                "floor_us": floor * 1e6,
                "ratio_to_floor": seconds / floor,
            }));
        } else {
            output::say!(
                "{:<34} {:<18} {:>10} {:>5.1}% {:>10} {:>7.1}  {:>14} {:>12}",
                node.label,
                node.kernel,
                output::seconds(seconds),
                100.0 * seconds / sum,
                output::seconds(floor),
                seconds / floor,
                output::quantity(node.cost.flops / seconds),
                output::quantity(node.cost.bytes / seconds),
            );
        }
    }
    let (memory, trial) = (recording.memory(), recording.trial());
    if args.common.json {
        output::line(&json!({
            "event": "profile",
            "nodes": nodes.len(),
            "stages": recording.stages(),
            "step_us": whole * 1e6,
            "nodes_us": sum * 1e6,
            "floor_us": floor_sum * 1e6,
            "arena_bytes": memory.arena_bytes,
            "live_bytes": memory.live_bytes,
            "unshared_bytes": memory.unshared_bytes,
            "peak_flops_per_s": peak.flops_per_s,
            "memory_bytes_per_s": peak.memory_bytes_per_s,
            "cache_bytes_per_s": peak.cache_bytes_per_s,
            "peaks_together": peak.together,
            "helped_us": trial.map(|trial| trial.helped.as_secs_f64() * 1e6),
            "alone_us": trial.map(|trial| trial.alone.as_secs_f64() * 1e6),
        }));
    } else {
        output::say!(
            "\n{} nodes in {} stages; the whole step {}, node after node {}, floor {}",
            nodes.len(),
            recording.stages(),
            output::seconds(whole),
            output::seconds(sum),
            output::seconds(floor_sum),
        );
        output::say!(
            "arena {}B (alive at once {}B, without sharing {}B)",
            output::quantity(memory.arena_bytes as f64),
            output::quantity(memory.live_bytes as f64),
            output::quantity(memory.unshared_bytes as f64),
        );
        output::say!(
            "peaks of this run: {}FLOP/s, cache {}B/s, memory {}B/s",
            output::quantity(peak.flops_per_s),
            output::quantity(peak.cache_bytes_per_s),
            output::quantity(peak.memory_bytes_per_s),
        );
        if !peak.together {
            output::say!("{}", output::NOT_TOGETHER);
        }
        if let Some(trial) = trial {
            output::say!(
                "with the help of other threads {}, alone {}: the faster is used",
                output::seconds(trial.helped.as_secs_f64()),
                output::seconds(trial.alone.as_secs_f64()),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The step of median length, unit by unit.
fn timeline(
    (recording, store): (&mut Recording, &mut Store),
    budget: Duration,
    json: bool,
) -> Result<ExitCode> {
    let began = Instant::now();
    let mut steps = Vec::new();
    while began.elapsed() < budget && steps.len() < 2000 || steps.len() < 5 {
        steps.push(recording.replay_traced(store)?);
    }
    steps.sort_by_key(|&(_, whole)| whole);
    let (mut units, whole) = steps.swap_remove(steps.len() / 2);
    units.sort_by_key(|unit| (unit.stage, unit.thread, unit.start));
    let nodes = recording.nodes();
    let micros = |nanoseconds: u64| nanoseconds as f64 * 1e-3;
    if !json {
        output::say!(
            "{:>5} {:>6} {:>9} {:>9} {:>9}  work",
            "stage",
            "thread",
            "start",
            "end",
            "us"
        );
    }
    let mut busy = 0;
    for unit in &units {
        let labels: Vec<String> = unit
            .tasks
            .iter()
            .map(|task| match task.phase {
                0 => nodes[task.node].label.clone(),
                phase => format!("{} phase {phase}", nodes[task.node].label),
            })
            .collect();
        busy += unit.end - unit.start;
        if json {
            output::line(&json!({
                "event": "unit", "stage": unit.stage, "thread": unit.thread, "home": unit.home,
                "start_us": micros(unit.start), "end_us": micros(unit.end),
                "chunk": unit.chunk, "work": labels,
            }));
        } else {
            output::say!(
                "{:>5} {:>6} {:>9.2} {:>9.2} {:>9.2}  {} chunk {}{}",
                unit.stage,
                unit.thread,
                micros(unit.start),
                micros(unit.end),
                micros(unit.end - unit.start),
                labels.join(" + "),
                unit.chunk,
                if unit.home == unit.thread { "" } else { " (not at home)" },
            );
        }
    }
    if json {
        output::line(&json!({
            "event": "timeline", "step_us": micros(whole), "busy_us": micros(busy),
        }));
    } else {
        output::say!("\nthe step {:.2} us, units {:.2} us", micros(whole), micros(busy));
    }
    Ok(ExitCode::SUCCESS)
}
