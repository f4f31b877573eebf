//! What this machine can do at most, measured: the figures that floors are computed from.

use super::simd::{Kernel, Simd, dispatch, fold_many, update1};
use super::{Cpu, Isa, Memory, touch};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Measured ceilings of all threads of a CPU together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// f32 operations a second, registers only: 12 independent chains of fused multiply-adds.
    pub flops_per_s: f64,
    /// Bytes a second between main memory and the threads: the most of a sum over 256 MB and of
    /// [`Peak::update_bytes_per_s`].
    pub memory_bytes_per_s: f64,
    /// Bytes read and bytes written a second of a loop that changes 256 MB in place.
    pub update_bytes_per_s: f64,
    /// Bytes read a second from the second-level cache: a sum over 256 kB a thread.
    pub cache_bytes_per_s: f64,
    /// Whether each figure comes from a moment in which all threads ran at the same time. Where not,
    /// other work had the processors, and the figures are lower than what the machine can do.
    pub together: bool,
}

/// Independent chains: enough to fill the latency of every pipe.
const CHAINS: usize = 12;
const ROUNDS: usize = 40_000;

/// Values a thread that lie in its second-level cache: 256 kB.
const SMALL: usize = 64 << 10;

/// For how long one ceiling is measured.
const WHILE: Duration = Duration::from_millis(60);

struct Multiply {
    start: f32,
}

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(0.999_999);
        let mut chains = [s.splat(self.start); CHAINS];
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, factor, factor);
            }
        }
        let mut sum = chains[0];
        for &chain in &chains[1..] {
            sum = s.add(sum, chain);
        }
        s.reduce_add(sum)
    }
}

struct Sum<'a> {
    values: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const UNROLL: usize = 8;
        let mut sums = [s.zero(); UNROLL];
        for block in self.values.chunks_exact(UNROLL * S::LANES) {
            for (sum, values) in sums.iter_mut().zip(block.chunks_exact(S::LANES)) {
                *sum = s.add(*sum, s.load_slice(values));
            }
        }
        let mut sum = sums[0];
        for &other in &sums[1..] {
            sum = s.add(sum, other);
        }
        s.reduce_add(sum)
    }
}

/// Adds 1 to all values.
struct Increment<'a> {
    values: &'a mut [f32],
}

impl Kernel for Increment<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = s.splat(1.0);
        update1(
            s,
            self.values,
            #[inline(always)]
            |s, x| s.add(x, one),
        );
    }
}

/// Parts in which a thread reads memory at once: one alone does not keep all of its misses in flight.
const STREAMS: usize = 4;

/// The sum of values that lie in memory.
struct SumStreams<'a> {
    values: &'a [f32],
}

impl Kernel for SumStreams<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let len = self.values.len() / STREAMS / S::LANES * S::LANES;
        let parts: [&[f32]; STREAMS] = std::array::from_fn(|i| &self.values[i * len..][..len]);
        let sum = fold_many(
            s,
            parts,
            s.zero(),
            #[inline(always)]
            |s, acc, [a, b, c, d]| s.add(acc, s.add(s.add(a, b), s.add(c, d))),
            S::add,
        );
        s.reduce_add(sum)
    }
}

fn lanes(isa: Isa) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd>(self, _s: S) -> usize {
            S::LANES
        }
    }
    dispatch(isa, Lanes)
}

impl Cpu {
    /// Measures the peaks; takes about 0.4 s. Other load on the machine lowers them.
    pub fn peak(&self) -> Peak {
        self.peak_within(256 << 20, WHILE)
    }

    /// As [`Cpu::peak`], in some 60 ms and over 64 MB: no ceilings to quote, but near them.
    pub fn quick_peak(&self) -> Peak {
        self.peak_within(64 << 20, WHILE / 6)
    }

    /// The peaks of what stays in caches, in some 6 ms; those of memory are NaN.
    pub fn cache_peak(&self) -> Peak {
        let time = WHILE / 20;
        let (flops_per_s, multiply) = self.multiply_peak(time);
        let values = vec![1f32; SMALL * self.threads()];
        let (cache_bytes_per_s, cache) = self.sum_peak(&values, time);
        Peak {
            flops_per_s,
            memory_bytes_per_s: f64::NAN,
            update_bytes_per_s: f64::NAN,
            cache_bytes_per_s,
            together: multiply && cache,
        }
    }

    /// FLOPs a second, and whether all threads ran together.
    fn multiply_peak(&self, time: Duration) -> (f64, bool) {
        let (isa, threads) = (self.isa(), self.threads());
        let flops = (ROUNDS * CHAINS * lanes(isa) * 2 * threads) as f64;
        let multiply = self.best(time, |_| dispatch(isa, Multiply { start: black_box(0.5) }));
        (flops / multiply.seconds, multiply.together)
    }

    /// Bytes a second that all threads read of a part each, and whether they ran together.
    fn sum_peak(&self, values: &[f32], time: Duration) -> (f64, bool) {
        const REPEATS: usize = 400;
        let isa = self.isa();
        let cache = self.best(time, |thread| {
            let values = &values[thread * SMALL..(thread + 1) * SMALL];
            (0..REPEATS).map(|_| dispatch(isa, Sum { values: black_box(values) })).sum()
        });
        ((SMALL * self.threads() * 4 * REPEATS) as f64 / cache.seconds, cache.together)
    }

    /// The peaks, each measured for `time`, those of memory over so many bytes.
    fn peak_within(&self, bytes: usize, time: Duration) -> Peak {
        let (isa, threads) = (self.isa(), self.threads());
        let (flops_per_s, multiplied_together) = self.multiply_peak(time);

        let mut big = Memory::zeroed(bytes);
        touch(big.bytes_mut());
        let bytes = big.len() as f64;
        let mut update = f64::INFINITY;
        let began = Instant::now();
        while update.is_infinite() || began.elapsed() < time {
            update = update.min(self.update_seconds(&mut big));
        }
        let update_bytes_per_s = 2.0 * bytes / update;
        let all: &[f32] = big.elements(0, big.len() / 4);
        let part = all.len() / threads;
        let read = self.best(time, |thread| {
            dispatch(isa, SumStreams { values: &all[thread * part..(thread + 1) * part] })
        });
        let (cache_bytes_per_s, summed_together) = self.sum_peak(all, time);
        Peak {
            flops_per_s,
            memory_bytes_per_s: update_bytes_per_s.max(bytes / read.seconds),
            update_bytes_per_s,
            cache_bytes_per_s,
            together: multiplied_together && read.together && summed_together,
        }
    }

    /// Seconds in which all threads together add 1 to every f32 of `memory`, each in a part of its
    /// own: the read-modify-write loop that updates in place are compared with.
    pub fn update_seconds(&self, memory: &mut Memory) -> f64 {
        let isa = self.isa();
        let values = memory.elements_mut::<f32>(0, memory.len() / size_of::<f32>());
        let part = values.len().div_ceil(self.threads()).next_multiple_of(lanes(isa)).max(1);
        let parts: Vec<Mutex<&mut [f32]>> = values.chunks_mut(part).map(Mutex::new).collect();
        let start = Instant::now();
        self.team().run(&|member| {
            if let Some(part) = parts.get(member.index()) {
                let mut values = part.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                dispatch(isa, Increment { values: &mut values });
            }
        });
        start.elapsed().as_secs_f64()
    }

    /// The fastest region in which every thread does `work`, of those that fit into a while:
    /// threads that just woke, and neighbours on the machine, are slow for milliseconds. While no
    /// region was seen in which all ran at the same time, for up to ten times as long.
    fn best(&self, time: Duration, work: impl Fn(usize) -> f32 + Sync) -> Fastest {
        let mut best = Fastest { seconds: f64::INFINITY, together: false };
        let began = Instant::now();
        while best.seconds.is_infinite()
            || began.elapsed() < if best.together { time } else { 10 * time }
        {
            let sink = AtomicU64::new(0);
            // The latest start and the earliest end of a thread: between them all of them ran.
            let (latest, earliest) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
            let start = Instant::now();
            let now = || start.elapsed().as_nanos() as u64;
            self.team().run(&|member| {
                latest.fetch_max(now(), Ordering::Relaxed);
                let result = work(member.index());
                earliest.fetch_min(now(), Ordering::Relaxed);
                sink.fetch_add(u64::from(result.to_bits()), Ordering::Relaxed);
            });
            let whole = now();
            black_box(sink.into_inner());
            let shared = earliest.into_inner().saturating_sub(latest.into_inner());
            let together = shared as f64 > 0.8 * whole as f64;
            let seconds = whole as f64 * 1e-9;
            if (together, -seconds) > (best.together, -best.seconds) {
                best = Fastest { seconds, together };
            }
        }
        best
    }
}

struct Fastest {
    seconds: f64,
    together: bool,
}

impl Peak {
    /// Seconds below which work of so many FLOPs and bytes cannot be done: the larger of the two.
    /// Bytes count at the memory's rate when they exceed `cache_bytes`, else at the cache's.
    pub fn floor_seconds(&self, flops: f64, bytes: f64, cache_bytes: f64) -> f64 {
        let rate =
            if bytes > cache_bytes { self.memory_bytes_per_s } else { self.cache_bytes_per_s };
        (flops / self.flops_per_s).max(bytes / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_those_of_a_computer() {
        let cpu = Cpu::new(1).expect("cpu");
        for peak in [cpu.peak(), cpu.quick_peak()] {
            are_those_of_a_computer(peak);
        }
        let (all, cache) = (cpu.quick_peak(), cpu.cache_peak());
        let like = |a: f64, b: f64| a > b / 4.0 && a < b * 4.0;
        assert!(like(cache.flops_per_s, all.flops_per_s), "{cache:?} {all:?}");
        assert!(like(cache.cache_bytes_per_s, all.cache_bytes_per_s), "{cache:?} {all:?}");
        assert!(cache.memory_bytes_per_s.is_nan(), "not measured: {cache:?}");
    }

    fn are_those_of_a_computer(peak: Peak) {
        assert!(peak.flops_per_s > 1e8 && peak.flops_per_s < 1e13, "{peak:?}");
        assert!(peak.memory_bytes_per_s > 1e8 && peak.memory_bytes_per_s < 1e12, "{peak:?}");
        assert!(peak.update_bytes_per_s > 1e8, "{peak:?}");
        assert!(peak.update_bytes_per_s <= peak.memory_bytes_per_s, "{peak:?}");
        assert!(peak.cache_bytes_per_s > 1e8 && peak.cache_bytes_per_s < 1e13, "{peak:?}");
    }
}
