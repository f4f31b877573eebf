//! `y = (x - m) - log sum exp(x - m)` along the last axis, with its maximum `m`. f32 of any shape
//! with at least one axis.
//!
//! An element of negative infinity gives negative infinity. A row that is negative infinity
//! everywhere, or holds NaN, gives NaN; one with positive infinity gives NaN there. Rows without elements give nothing.
//! Where one element is far above the others, its own `y` is `-log1p` of what they sum to, which
//! does not round to zero. Error: a rounding error of `x - m`, and 2 ulp of the logarithm.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::softmax::{SHAPES, expect_axis};
use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::TensorType;

/// The operation `log_softmax`.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax;

/// Records the logarithm of the softmax of `x` along its last axis.
///
/// # Errors
/// `x` is not f32, or has no axis.
pub fn log_softmax(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, LogSoftmax, &[x])
}

impl Operation for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        expect_axis(self.name(), inputs)?;
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::log_softmax(&inputs[0], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    /// `dx = dy - softmax(x) sum dy`
    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let x = rule.inputs[0];
        let tape = &mut *rule.tape;
        let axis = tape.tensor_type(x).shape.rank() - 1;
        let p = super::softmax(tape, x)?;
        let sum = super::sum(tape, dy, &[axis], true)?;
        let product = super::mul(tape, p, sum)?;
        let dx = super::sub(tape, dy, product)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        // Maximum, difference, exponential (counted as one), sum, difference.
        Cost::of(5.0 * site.inputs[0].elements() as f64, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let case = |shape: &[usize], spread: f64| {
        let case = Case::new(format!("{shape:?}_spread{spread}"), LogSoftmax, Tolerance::Rounding(8.0));
        case.input(shape, Fill::Uniform(-spread, spread))
    };
    let mut cases: Vec<Case> = SHAPES.map(|shape| case(shape, 4.0)).into();
    cases.push(case(&[33, 10], 60.0));
    cases
}

/// Benchmark cases: rows of a vocabulary.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [[1024, 64], [128, 50257]]
        .map(|[rows, columns]| {
            Case::new(format!("{rows}x{columns}"), LogSoftmax, Tolerance::Rounding(8.0))
                .input(&[rows, columns], Fill::Uniform(-4.0, 4.0))
        })
        .into()
}
