//! What a GPU can do at most: its copies as measured, its arithmetic by its clock.

use super::program::{HeadStart, trivial};
use super::{Buffer, Cuda, Info, Stopwatch};
use crate::error::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ceilings of a GPU, from which floors are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Bytes read and bytes written a second by the driver's copy within the device's memory: the most of
    /// several copies of [`Peak::copied_bytes`].
    pub copy_bytes_per_s: f64,
    /// Bytes of such a copy.
    pub copied_bytes: usize,
    /// Seconds of a node of a graph that does next to nothing, after another one: a kernel that negates a float.
    pub node_seconds: f64,
    /// f32 operations a second of its multiply-add units, at the clock that the driver names; none
    /// where the architecture is not known here. Not measured, and under load the clock is lower.
    pub f32_flops_per_s: Option<f64>,
    /// bf16 operations a second of its tensor cores, dense, as above.
    pub bf16_flops_per_s: Option<f64>,
    /// Bytes of its second-level cache: fewer of them need not come from memory.
    pub l2_bytes: u64,
}

/// f32 and bf16 operations of a multiprocessor in a clock, by compute capability: NVIDIA's whitepapers of
/// Turing, Ampere (GA100, GA102), Ada, Hopper and Blackwell. Where chips of one capability differ, those
/// of the faster one.
fn flops_per_clock(capability: (u32, u32)) -> Option<(f64, f64)> {
    match capability {
        // Tensor cores without bf16: its products run on the multiply-add units.
        (7, 5) => Some((128.0, 128.0)),
        (8, 0) => Some((128.0, 2048.0)),
        (8, 6..=9) => Some((256.0, 1024.0)),
        (9, 0) => Some((256.0, 4096.0)),
        (10, _) => Some((256.0, 8192.0)),
        (12, _) => Some((256.0, 1024.0)),
        _ => None,
    }
}

impl Info {
    /// f32 and bf16 operations a second at the clock that the driver names, where the architecture is
    /// known.
    pub fn flops_per_s(&self) -> Option<(f64, f64)> {
        let (f32_rate, bf16_rate) = flops_per_clock(self.capability)?;
        let clocks = f64::from(self.multiprocessors) * self.clock_hz;
        Some((f32_rate * clocks, bf16_rate * clocks))
    }
}

impl Peak {
    /// Seconds below which work of so many FLOPs, bytes and kernels cannot be done. Bytes that fit into the
    /// second-level cache do not count.
    pub fn floor_seconds(&self, flops: f64, bytes: f64, kernels: usize, bf16: bool) -> f64 {
        let rate = if bf16 { self.bf16_flops_per_s } else { self.f32_flops_per_s };
        let by_flops = rate.map_or(0.0, |rate| flops / rate);
        let by_bytes =
            if bytes > self.l2_bytes as f64 { bytes / self.copy_bytes_per_s } else { 0.0 };
        by_flops.max(by_bytes).max(self.node_seconds * kernels as f64)
    }
}

impl Cuda {
    /// Measures copies and nodes; takes some hundred milliseconds on a GPU.
    ///
    /// # Errors
    /// The device failed, or has no memory left for the copies.
    pub fn peak(self: &Arc<Cuda>) -> Result<Peak> {
        const NODES: usize = 200;
        const TIMES: usize = 12;
        /// A GPU that did nothing has low clocks, and raises them within that.
        const WARM_UP: Duration = Duration::from_millis(80);
        // The stand-in's figures mean nothing; only that they are taken is tested.
        let copied_bytes = if self.is_stand_in() { 8 << 20 } else { 1 << 30 };
        let from = Buffer::zeroed(self, "the source of a copy", copied_bytes)?;
        let mut to = Buffer::zeroed(self, "the target of a copy", copied_bytes)?;
        let (watch, head_start) = (Stopwatch::new(self)?, HeadStart::new(self)?);
        let began = Instant::now();
        loop {
            to.copy_within(&from)?;
            self.synchronize()?;
            if began.elapsed() >= WARM_UP {
                break;
            }
        }
        let mut copy = f64::INFINITY;
        for _ in 0..TIMES {
            head_start.give(1)?;
            watch.start()?;
            to.copy_within(&from)?;
            watch.stop()?;
            copy = copy.min(watch.seconds()?);
        }
        drop((from, to));
        let small = Buffer::zeroed(self, "a node that does nothing", 4)?;
        let graph = trivial(self, &small, NODES)?;
        let mut nodes = f64::INFINITY;
        for _ in 0..TIMES {
            head_start.give(8)?;
            watch.start()?;
            graph.launch()?;
            watch.stop()?;
            nodes = nodes.min(watch.seconds()?);
        }
        let (f32_flops_per_s, bf16_flops_per_s) = self.info().flops_per_s().unzip();
        Ok(Peak {
            copy_bytes_per_s: 2.0 * copied_bytes as f64 / copy,
            copied_bytes,
            node_seconds: nodes / NODES as f64,
            f32_flops_per_s,
            bf16_flops_per_s,
            l2_bytes: self.info().l2_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nominal_rates_are_those_of_the_data_sheets() {
        let info = |capability, multiprocessors, clock_hz| Info {
            ordinal: 0,
            name: String::new(),
            capability,
            memory_bytes: 80 << 30,
            multiprocessors,
            clock_hz,
            l2_bytes: 50 << 20,
            memory_bytes_per_s: 3.35e12,
        };
        // H100 SXM: 66.9 TFLOP/s at 1.98 GHz; 989.5 TFLOP/s at 1.83 GHz. A100: 19.5 and 312 at 1.41 GHz.
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() <= 0.005, "{got} {want}");
        near(info((9, 0), 132, 1.98e9).flops_per_s().expect("known").0, 66.9e12);
        near(info((9, 0), 132, 1.83e9).flops_per_s().expect("known").1, 989.5e12);
        let (f32_rate, bf16_rate) = info((8, 0), 108, 1.41e9).flops_per_s().expect("known");
        near(f32_rate, 19.5e12);
        near(bf16_rate, 312e12);
        assert_eq!(info((99, 0), 1, 1e9).flops_per_s(), None);
    }

    #[test]
    fn floors_are_the_largest_of_three() {
        let peak = Peak {
            copy_bytes_per_s: 3e12,
            copied_bytes: 1 << 30,
            node_seconds: 1e-6,
            f32_flops_per_s: Some(60e12),
            bf16_flops_per_s: None,
            l2_bytes: 50 << 20,
        };
        assert_eq!(peak.floor_seconds(60e12, 0.0, 1, false), 1.0);
        assert_eq!(peak.floor_seconds(1.0, 3e12, 1, true), 1.0);
        // What lies in the cache; and an architecture that is not known.
        assert_eq!(peak.floor_seconds(1.0, 1e6, 3, false), 3e-6);
        assert_eq!(peak.floor_seconds(60e12, 0.0, 1, true), 1e-6);
    }
}
