//! `dx = y (dy - sum y dy)` along the last axis: the gradient of softmax, from its output `y`, and
//! its Jacobian times any vector `dy`. f32 of one shape, with
//! at least one axis.
//!
//! Rows without elements give nothing. Error: that of a sum of as many terms as the row has.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `softmax_backward`.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxBackward;

/// Records `y (dy - sum y dy)` along the last axis.
///
/// # Errors
/// The shapes differ or have no axis, or one of the two is not f32.
pub fn softmax_backward(tape: &mut dyn Recorder, y: Var, dy: Var) -> Result<Var> {
    push_one(tape, SoftmaxBackward, &[y, dy])
}

impl Operation for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "softmax_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        if inputs[0] != inputs[1] || inputs[0].shape.rank() == 0 {
            let problem = format!("the output {} cannot have gradient {}", inputs[0], inputs[1]);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::softmax_backward(inputs, &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let v = rule.only_upstream()?;
        let (y, dy) = (rule.inputs[0], rule.inputs[1]);
        let axis = rule.tape.tensor_type(y).shape.rank() - 1;
        let dot = |tape: &mut dyn Recorder, a: Var, b: Var| -> Result<Var> {
            let product = super::mul(tape, a, b)?;
            super::sum(tape, product, &[axis], true)
        };
        if rule.needs(0) {
            // v (dy - sum y dy) - dy sum y v
            let tape = &mut *rule.tape;
            let sum = dot(tape, y, dy)?;
            let difference = super::sub(tape, dy, sum)?;
            let first = super::mul(tape, v, difference)?;
            let sum = dot(tape, y, v)?;
            let second = super::mul(tape, dy, sum)?;
            let of_y = super::sub(tape, first, second)?;
            rule.give(0, of_y)?;
        }
        if rule.needs(1) {
            let of_dy = softmax_backward(rule.tape, y, v)?;
            rule.give(1, of_dy)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(4.0 * site.inputs[0].elements() as f64, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    super::softmax::SHAPES
        .map(|shape| {
            let columns = shape.last().copied().unwrap_or(1);
            // Values of a mean size of 1 / columns, as probabilities have.
            let fill = Fill::Uniform(0.0, 2.0 / columns.max(1) as f64);
            Case::new(format!("{shape:?}"), SoftmaxBackward, Tolerance::Accumulation(columns))
                .input(shape, fill)
                .input(shape, Fill::Uniform(-1.0, 1.0))
        })
        .into()
}

/// Benchmark cases: attention scores.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let shape = [1024, 64];
    vec![
        Case::new("1024x64", SoftmaxBackward, Tolerance::Accumulation(64))
            .input(&shape, Fill::Distributions)
            .input(&shape, Fill::Uniform(-1.0, 1.0)),
    ]
}
