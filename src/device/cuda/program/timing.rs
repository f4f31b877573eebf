//! How long a program takes by the device's own clock: as a whole, and node by node.

use super::{Graph, Kernel, Node, Program, Step, give_steps, record};
use crate::device::cuda::{Buffer, Cuda, Stopwatch};
use crate::error::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds of work in a graph that is timed: beside them the few microseconds of its launch do not count.
const SAMPLE: f64 = 2e-3;
/// Repetitions in a graph at most.
const MOST_REPEATS: usize = 1000;
/// Nodes in a graph at most, unless one repetition has more.
const MOST_NODES: usize = 20_000;
/// Bytes of a head start.
const HEAD_START: usize = 32 << 20;
/// Nodes of a graph that the host is taken to launch within one head start, beside the launch itself.
const NODES_WITHIN: usize = 100;

/// Keeps the device busy before its time is taken: meanwhile the host gives it what is timed, and the device never
/// waits for the host within a sample.
pub(in crate::device::cuda) struct HeadStart(Buffer);

impl HeadStart {
    pub(in crate::device::cuda) fn new(device: &Arc<Cuda>) -> Result<HeadStart> {
        // The stand-in does everything at once.
        let bytes = if device.is_stand_in() { 4 << 10 } else { HEAD_START };
        Ok(HeadStart(Buffer::zeroed(device, "the head start of a profile", bytes)?))
    }

    /// Clears its bytes so many times: some 10 us each.
    pub(in crate::device::cuda) fn give(&self, times: usize) -> Result<()> {
        (0..times).try_for_each(|_| self.0.clear())
    }
}

/// A graph of so many kernels one after another that do next to nothing: each negates one float.
pub(in crate::device::cuda) fn trivial(
    device: &Arc<Cuda>,
    float: &Buffer,
    nodes: usize,
) -> Result<Graph> {
    let (x, y) = (float.address(0), float.address(0));
    let kernel = Kernel::new("unary", "unary_neg_f32").block(256).with(x).with(y).with(1u64);
    let function = device.function(kernel.module, &kernel.name, kernel.shared)?;
    let nowhere = |_| unreachable!("it has no places of a node");
    let arguments = kernel.arguments.iter().map(|argument| argument.words(&nowhere)).collect();
    let step = Step::Kernel { function, kernel, arguments };
    let what = "kernels that do nothing";
    record(device, what, |stream| (0..nodes).try_for_each(|_| step.give(device, stream, what)))
}

impl Program {
    /// Seconds of one run of all nodes with the control block that is there, one value a sample: a graph in which
    /// such runs are repeated, one after another, until it takes 2 ms. The first one warms up and is left out. Ends after `budget`, and not
    /// before `least` samples.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn device_seconds(&mut self, budget: Duration, least: usize) -> Result<Vec<f64>> {
        let began = Instant::now();
        let watch = Stopwatch::new(&self.device)?;
        let head_start = HeadStart::new(&self.device)?;
        let steps: usize = self.nodes.iter().map(|node| node.steps.len()).sum();
        let mut repeats = 1;
        let graph_of = |repeats: usize| {
            let what = format!("the graph of {repeats} times {} nodes", self.nodes.len());
            record(&self.device, &what, |stream| {
                give_steps(&self.device, stream, &self.nodes, None, repeats)
            })
        };
        let mut graph = graph_of(1)?;
        let mut samples = Vec::new();
        loop {
            head_start.give(4 + steps * repeats / NODES_WITHIN)?;
            watch.start()?;
            graph.launch()?;
            watch.stop()?;
            samples.push(watch.seconds()? / repeats as f64);
            // The second one was warm: it says how many make a sample.
            if repeats == 1 && samples.len() == 2 {
                let enough = (SAMPLE / samples[1].max(1e-7)).ceil() as usize;
                repeats = enough.clamp(1, MOST_REPEATS.min((MOST_NODES / steps.max(1)).max(1)));
                if repeats > 1 {
                    graph = graph_of(repeats)?;
                    samples.clear();
                    continue;
                }
            }
            if samples.len() > least.max(2) && began.elapsed() >= budget {
                samples.remove(0);
                return Ok(samples);
            }
        }
    }

    /// Seconds of each node of one run, by the device's clock. Nodes are given one by one; the device
    /// begins with the first when it has them all.
    ///
    /// # Errors
    /// The device failed; the error names the node where it is known.
    pub fn node_seconds(&mut self) -> Result<Vec<f64>> {
        self.device.enter()?;
        self.turns.first.give(&self.device, self.device.stream(), "a step")?;
        let head_start = HeadStart::new(&self.device)?;
        let watches = self.nodes.iter().map(|_| Stopwatch::new(&self.device));
        let watches = watches.collect::<Result<Vec<Stopwatch>>>()?;
        self.device.synchronize()?;
        head_start.give(self.nodes.len())?;
        for (Node { label, steps, .. }, watch) in self.nodes.iter().zip(&watches) {
            watch.start()?;
            let stream = self.device.stream();
            steps.iter().try_for_each(|step| step.give(&self.device, stream, label))?;
            watch.stop()?;
        }
        watches.iter().map(Stopwatch::seconds).collect()
    }
}
