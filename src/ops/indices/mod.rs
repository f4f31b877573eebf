//! `y = x` as a row number: f32 whole numbers to u32, any shape.
//!
//! What is no row number (negative, fractional, NaN, 2^32 or more) becomes `u32::MAX`, which no
//! table has a row for: an embedding gives NaN there, and the run stops. No gradient.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::{DType, TensorType};

/// The operation `indices`.
#[derive(Clone, Copy, Debug)]
pub struct Indices;

/// Records `y = x` as u32.
///
/// # Errors
/// `x` is not f32.
pub fn indices(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Indices, &[x])
}

impl Operation for Indices {
    fn name(&self) -> &'static str {
        "indices"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        Ok(vec![TensorType::new(&inputs[0].shape, DType::U32)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::indices(&inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site))
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let case = |n: usize, fill| {
        let case = Case::new(format!("{n}"), Indices, Tolerance::Exact);
        case.input(&[n], fill).without_gradient()
    };
    let mut cases: Vec<Case> = [0, 1, 17, 20_011].map(|n| case(n, Fill::Integers)).into();
    cases.push(case(33, Fill::Uniform(-2.0, 5.0)));
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let case = Case::new("128x64", Indices, Tolerance::Exact);
    vec![case.input(&[128, 64], Fill::Integers).without_gradient()]
}
