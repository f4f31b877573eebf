//! What several test files share: reproducible values, a comparator that fails on NaN, runs in folders.
#![allow(dead_code)]

#[cfg(feature = "cli")]
pub mod command;
pub mod runs;
pub mod trajectory;

use twoclocks::ops::{CaseInput, Fill, Tolerance};

/// A small reproducible generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), a multiple of 2^-24: exact in f32.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / (1u64 << 24) as f64
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound.max(1)
    }
}

/// Values for an input of a case, each exact in the input's type.
pub fn values(input: &CaseInput, random: &mut Random) -> Vec<f64> {
    let n = input.tensor_type.elements();
    match input.fill {
        Fill::Uniform(low, high) => {
            (0..n).map(|_| f64::from((low + (high - low) * random.unit()) as f32)).collect()
        }
        Fill::Integers => (0..n).map(|_| random.below(9) as f64 - 4.0).collect(),
        Fill::Indices(bound) => (0..n).map(|_| random.below(u64::from(bound)) as f64).collect(),
        Fill::Distributions => {
            let columns = input.tensor_type.shape.columns().max(1);
            let mut all: Vec<f64> = (0..n).map(|_| random.unit() + 0.01).collect();
            for row in all.chunks_mut(columns) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|x| *x = f64::from((*x / sum) as f32));
            }
            all
        }
        Fill::Permutation => {
            let mut all: Vec<f64> = (0..n).map(|i| i as f64).collect();
            for i in (1..n).rev() {
                all.swap(i, random.below(i as u64 + 1) as usize);
            }
            all
        }
    }
}

/// Asserts that every value is finite and within the tolerance of the oracle.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!(want.is_finite(), "{what}: the oracle gives {want} at {i}");
        assert!(got.is_finite(), "{what}: {got} at {i}, the oracle gives {want}");
        let rounded = f64::from(want as f32);
        let error =
            (f64::from(got) - if tolerance == Tolerance::Exact { rounded } else { want }).abs();
        let bound = tolerance.bound(want, rms);
        assert!(error <= bound, "{what}: {got} at {i}, want {want}: error {error:e} > {bound:e}");
    }
}
