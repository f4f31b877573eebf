//! How long a program takes by the device's own clock: as a whole, and node by node.

use super::{Program, capture};
use crate::device::Control;
use crate::device::cuda::{Buffer, Stopwatch};
use crate::error::Result;
use std::time::{Duration, Instant};

/// Seconds of work in a graph that is timed: beside them the few microseconds of its launch do not count.
const SAMPLE: f64 = 2e-3;
/// Repetitions in a graph at most.
const MOST_REPEATS: usize = 1000;
/// Nodes in a graph at most, unless one repetition has more.
const MOST_NODES: usize = 20_000;
/// Bytes that are cleared for each node before nodes are timed: some 10 us, in which the host gives the
/// node to the device. So the device never waits for the host between nodes.
const HEAD_START: usize = 32 << 20;

impl Program {
    /// Seconds of one run of all nodes, one value a sample: a graph in which they are repeated, one after
    /// another, until it takes 2 ms. The first one warms up and is left out. Ends after `budget`, and not
    /// before `least` samples.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn device_seconds(
        &mut self,
        control: &Control,
        budget: Duration,
        least: usize,
    ) -> Result<Vec<f64>> {
        let began = Instant::now();
        let watch = Stopwatch::new(&self.device)?;
        let steps: usize = self.nodes.iter().map(|(_, steps)| steps.len()).sum();
        let mut repeats = 1;
        let mut graph = capture(&self.device, self.nodes.iter())?;
        let mut samples = Vec::new();
        self.upload(control)?;
        loop {
            watch.start()?;
            if !graph.executable.is_null() {
                graph.launch()?;
            }
            watch.stop()?;
            samples.push(watch.seconds()? / repeats as f64);
            // The second one was warm: it says how many make a sample.
            if repeats == 1 && samples.len() == 2 {
                let enough = (SAMPLE / samples[1].max(1e-7)).ceil() as usize;
                repeats = enough.clamp(1, MOST_REPEATS.min((MOST_NODES / steps.max(1)).max(1)));
                if repeats > 1 {
                    let nodes = std::iter::repeat_n(&self.nodes, repeats).flatten();
                    graph = capture(&self.device, nodes)?;
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
    pub fn node_seconds(&mut self, control: &Control) -> Result<Vec<f64>> {
        self.upload(control)?;
        let head_start = Buffer::zeroed(&self.device, "the head start of a profile", HEAD_START)?;
        let watches = self.nodes.iter().map(|_| Stopwatch::new(&self.device));
        let watches = watches.collect::<Result<Vec<Stopwatch>>>()?;
        self.device.synchronize()?;
        for _ in &self.nodes {
            head_start.clear()?;
        }
        for ((label, steps), watch) in self.nodes.iter().zip(&watches) {
            watch.start()?;
            let stream = self.device.stream();
            steps.iter().try_for_each(|step| step.give(&self.device, stream, label))?;
            watch.stop()?;
        }
        watches.iter().map(Stopwatch::seconds).collect()
    }
}
