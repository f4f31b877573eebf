//! Rows that are bound by memory: passes over tensors, beside a read-modify-write loop.

use super::works::Recorded;
use super::{CACHE_BYTES, Row, repeat};
use std::time::Duration;
use twoclocks::Result;
use twoclocks::device::cpu::{Cpu, Memory, touch};
use twoclocks::gemm::Precision;
use twoclocks::ops::Cost;

/// Most bytes that the loop goes over: far more than a cache holds.
const MOST_BYTES: usize = 256 << 20;

/// Turns between the work and the loop: the memory of a shared machine is faster in one second
/// than in the next.
const TURNS: u32 = 8;

/// Seconds of each repetition of `work`, which moves `bytes`; and bytes read and written a second of
/// each pass of a read-modify-write loop over as many, if they are more than a cache holds. Both take
/// turns.
pub(super) fn beside_updates(
    cpu: &Cpu,
    bytes: f64,
    budget: Duration,
    mut work: impl FnMut() -> Result<()>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    turns(cpu, bytes, budget, |budget| repeat(budget, &mut work))
}

/// As [`beside_updates`], of work that times its repetitions itself in the time that it is given.
fn turns(
    cpu: &Cpu,
    bytes: f64,
    budget: Duration,
    mut work: impl FnMut(Duration) -> Result<Vec<f64>>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    if bytes <= CACHE_BYTES {
        return Ok((work(budget)?, Vec::new()));
    }
    let mut memory = Memory::zeroed((bytes as usize).min(MOST_BYTES));
    touch(memory.bytes_mut());
    let (mut seconds, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        seconds.extend(work(budget / TURNS)?);
        let loops = repeat(budget / TURNS / 2, || {
            cpu.update_seconds(&mut memory);
            Ok(())
        })?;
        rates.extend(loops.iter().map(|seconds| 2.0 * memory.len() as f64 / seconds));
    }
    Ok((seconds, rates))
}

fn row(work: String, batch: usize, cost: Cost, (seconds, updates): (Vec<f64>, Vec<f64>)) -> Row {
    let Cost { flops, bytes } = cost;
    let (items, precision) = (batch as f64, Precision::F32);
    let operands = None;
    Row { work, items, batch, precision, operands, flops, bytes, seconds, updates, start: None }
}

/// Times the last node of a recording beside the loop, when the others have run.
pub(super) fn timed_last(cpu: &Cpu, recorded: Recorded, budget: Duration) -> Result<Row> {
    let Recorded { work, batch, mut recording, mut store } = recorded;
    let last = recording.nodes().len() - 1;
    let cost = recording.nodes()[last].cost;
    let (seconds, updates) = turns(cpu, cost.bytes, budget, |budget| {
        let mut seconds = Vec::new();
        let timed = repeat(budget, || {
            recording.replay_timed(&mut store, |node, nanoseconds| {
                if node == last {
                    seconds.push(nanoseconds as f64 * 1e-9);
                }
            })
        })?;
        // What `repeat` does to warm up is not timed.
        Ok(seconds.split_off(seconds.len() - timed.len()))
    })?;
    Ok(row(work, batch, cost, (seconds, updates)))
}

/// Times a recording beside the loop.
pub(super) fn timed(cpu: &Cpu, recorded: Recorded, budget: Duration) -> Result<Row> {
    let Recorded { work, batch, mut recording, mut store } = recorded;
    let cost = recording.cost();
    let (seconds, updates) =
        beside_updates(cpu, cost.bytes, budget, || recording.replay(&mut store))?;
    Ok(row(work, batch, cost, (seconds, updates)))
}
