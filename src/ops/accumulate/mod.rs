//! `sum += x`, in place: gradients of several batches. f32 of any shape; no gradient rule.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `accumulate`.
#[derive(Clone, Copy, Debug)]
pub struct Accumulate;

/// Records `sum += x`; the tensor that is returned has `sum`'s memory.
///
/// # Errors
/// The shapes differ, or one of the two is not f32.
pub fn accumulate(tape: &mut dyn Recorder, sum: Var, x: Var) -> Result<Var> {
    push_one(tape, Accumulate, &[sum, x])
}

impl Operation for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        if inputs[0] != inputs[1] {
            let problem = format!("{} cannot take {}", inputs[0], inputs[1]);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::accumulate(&mut outputs[0].data, &inputs[1].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site))
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64, site)
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    [0, 1, 7, 16, 17, 40_009]
        .map(|n| {
            Case::new(format!("{n}"), Accumulate, Tolerance::Rounding(1.0))
                .input(&[n], Fill::Uniform(-1.0, 1.0))
                .input(&[n], Fill::Uniform(-1.0, 1.0))
                .without_gradient()
        })
        .into()
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let case = Case::new("1048576", Accumulate, Tolerance::Rounding(1.0));
    let fill = Fill::Uniform(-1.0, 1.0);
    vec![case.input(&[1 << 20], fill).input(&[1 << 20], fill).without_gradient()]
}
