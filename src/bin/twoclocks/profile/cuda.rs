//! `twoclocks profile --device cuda:N`: each node by the GPU's own clock.

use crate::output;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use twoclocks::Result;
use twoclocks::device::cuda::Cuda;
use twoclocks::train::{StepTimes, Trainer, gpu_floors, step_times};

pub(super) fn run(
    trainer: &mut Trainer,
    cuda: &Arc<Cuda>,
    budget: Duration,
    json: bool,
) -> Result<ExitCode> {
    if cuda.is_stand_in() && !json {
        eprintln!("NOT A GPU: the stand-in of this crate's tests; its times mean nothing");
    }
    let peak = cuda.peak()?;
    let precision = trainer.precision();
    let StepTimes { whole, nodes: medians } = step_times(trainer, 2 * budget)?;
    let (recording, _) = trainer.step_recording()?;
    let sum: f64 = medians.iter().sum();
    let nodes = recording.nodes();
    if !json {
        output::say!(
            "{:<34} {:<24} {:>8} {:>10} {:>6} {:>10} {:>7}  {:>14} {:>12}",
            "node",
            "kernels",
            "launches",
            "time",
            "share",
            "floor",
            "ratio",
            "FLOP/s",
            "B/s"
        );
    }
    let floors = gpu_floors(&peak, precision, nodes);
    let floor_sum: f64 = floors.iter().sum();
    for ((node, &seconds), &floor) in nodes.iter().zip(&medians).zip(&floors) {
        let launches = node.chunks.len();
        if json {
            output::line(&json!({
                "event": "node",
                "node": node.label,
                "kernel": node.kernel,
                "launches": launches,
                "median_us": seconds * 1e6,
                "share": seconds / sum,
                "flops": node.cost.flops,
                "bytes": node.cost.bytes,
                "floor_us": floor * 1e6,
                "ratio_to_floor": seconds / floor,
            }));
        } else {
            output::say!(
                "{:<34} {:<24} {launches:>8} {:>10} {:>5.1}% {:>10} {:>7.1}  {:>14} {:>12}",
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
    let memory = recording.memory();
    if json {
        output::line(&json!({
            "event": "profile",
            "device": cuda.name(),
            "stand_in": cuda.is_stand_in(),
            "clock": "device",
            "nodes": nodes.len(),
            "step_us": whole * 1e6,
            "nodes_us": sum * 1e6,
            "floor_us": floor_sum * 1e6,
            "arena_bytes": memory.arena_bytes,
            "copy_bytes_per_s": peak.copy_bytes_per_s,
            "node_us": peak.node_seconds * 1e6,
        }));
    } else {
        output::say!(
            "\n{} nodes; the whole step as a graph {}, node after node {}, floor {} (at least {} a \
             launch)\narena {}B; copies of this run {}B/s",
            nodes.len(),
            output::seconds(whole),
            output::seconds(sum),
            output::seconds(floor_sum),
            output::seconds(peak.node_seconds),
            output::quantity(memory.arena_bytes as f64),
            output::quantity(peak.copy_bytes_per_s),
        );
    }
    Ok(ExitCode::SUCCESS)
}
