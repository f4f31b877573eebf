//! The order of an epoch's rows: `order` u32 `[rows]`, a permutation of `0..rows` that is a function of seed
//! and epoch. No inputs.
//!
//! Both are read from the control block at every replay. The same bits on every instruction set and
//! device, and the same as [`Permutation`](crate::random::Permutation), where its source stands; exact.
//! There is no gradient.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Operation, Recorder, Site, Tolerance, Values, Var, push_one};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, U64Slot};
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `permutation`.
#[derive(Clone, Copy, Debug)]
pub struct RowOrder {
    /// Rows of the data set, fewer than 2^32.
    pub rows: usize,
    /// Seed of the run.
    pub seed: U64Slot,
    /// Number of the epoch.
    pub epoch: U64Slot,
}

/// Records the order of `rows` rows in the epoch that the slot holds: u32 `[rows]`.
///
/// # Errors
/// `rows` does not fit in 32 bits.
pub fn permutation(
    tape: &mut dyn Recorder,
    rows: usize,
    seed: U64Slot,
    epoch: U64Slot,
) -> Result<Var> {
    push_one(tape, RowOrder { rows, seed, epoch }, &[])
}

impl Operation for RowOrder {
    fn name(&self) -> &'static str {
        "permutation"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_types(self.name(), inputs, &[])?;
        if u32::try_from(self.rows).is_err() {
            let problem = format!("{} rows are more than 32 bits count", self.rows);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::u32([self.rows])])
    }

    fn naive(&self, _inputs: &[Values], outputs: &mut [Values], control: &Control) {
        let (seed, epoch) = (control.u64(self.seed), control.u64(self.epoch));
        naive::permutation(seed, epoch, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, *self))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, _site: &Site<'_>) -> Option<Launches> {
        cuda::launch(*self)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

fn case(control: &mut Control, rows: usize, seed: u64, epoch: u64) -> Case {
    let seed = control.u64_slot(&format!("permutation.seed.{seed}"), seed);
    let epoch = control.u64_slot(&format!("permutation.epoch.{epoch}"), epoch);
    Case::new(format!("{rows}"), RowOrder { rows, seed, epoch }, Tolerance::Exact)
        .without_gradient()
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let sizes = [0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 255, 257, 1021, 1527, 20_011];
    let mut cases = Vec::new();
    for (epoch, rows) in (0..).zip(sizes) {
        cases.push(case(control, rows, 1 << 40 | 5, epoch));
    }
    cases.push(case(control, 1000, u64::MAX, u64::MAX));
    cases
}

/// Benchmark cases.
pub fn benches(control: &mut Control) -> Vec<Case> {
    vec![case(control, 1527, 1, 1), case(control, 60_000, 1, 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_than_32_bits_count_are_refused() {
        let mut control = Control::new();
        let (seed, epoch) = (control.u64_slot("seed", 0), control.u64_slot("epoch", 0));
        let op = RowOrder { rows: 1 << 32, seed, epoch };
        let error = op.infer(&[]).expect_err("too many").to_string();
        assert!(error.contains("4294967296"), "{error}");
    }
}
