//! `twoclocks profile --device cuda:N`: each node by the GPU's own clock.

use crate::output;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use twoclocks::Result;
use twoclocks::device::cuda::Cuda;
use twoclocks::gemm::Precision;
use twoclocks::train::Trainer;

/// Operations whose FLOPs are products, which tensor cores do in bf16.
const PRODUCTS: [&str; 4] = ["matmul", "linear", "product_update", "linear_cross_entropy"];

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
    let bf16 = trainer.precision() == Precision::Bf16;
    trainer.start_epoch(0)?;
    for step in 1..=20 {
        trainer.step(step, 0, 1e-6)?;
    }
    let (recording, store) = trainer.step_recording()?;
    let mut whole = recording.device_seconds(store, budget, 5)?;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); recording.nodes().len()];
    let began = Instant::now();
    while began.elapsed() < budget || times[0].len() < 5 {
        recording.replay_timed(store, |node, nanoseconds| {
            times[node].push(nanoseconds as f64 * 1e-9);
        })?;
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        output::quantile(times, 0.5)
    };
    let whole = median(&mut whole);
    let medians: Vec<f64> = times.iter_mut().map(median).collect();
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
    let mut floor_sum = 0.0;
    for (node, &seconds) in nodes.iter().zip(&medians) {
        let launches = node.chunks.len();
        let tensor_cores = bf16 && PRODUCTS.contains(&node.op);
        let floor =
            peak.floor_seconds(node.cost.flops, node.cost.bytes, launches.max(1), tensor_cores);
        floor_sum += floor;
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
