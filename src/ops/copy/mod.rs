//! `y = x`, in memory of its own. f32 of any shape.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::TensorType;

/// The operation `copy`.
#[derive(Clone, Copy, Debug)]
pub struct Copy;

/// Records `y = x`.
///
/// # Errors
/// `x` is not f32.
pub fn copy(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Copy, &[x])
}

impl Operation for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::copy(&inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        rule.give(0, dy)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    [0, 1, 7, 16, 17, 40_009]
        .map(|n| {
            let case = Case::new(format!("{n}"), Copy, Tolerance::Exact);
            case.input(&[n], Fill::Uniform(-1.0, 1.0))
        })
        .into()
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let case = Case::new("1048576", Copy, Tolerance::Exact);
    vec![case.input(&[1 << 20], Fill::Uniform(-1.0, 1.0))]
}
