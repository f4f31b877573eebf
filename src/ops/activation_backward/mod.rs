//! `dz = dy act'(z)` and `db = sum of dz over its rows`, in one pass: what comes back through the
//! activation of [`super::linear`]. f32.
//!
//! Shapes: `dy`, `dz` and `saved` are \[.., n\] of rank 1 or more, `db` is \[n\]; any extent may be 0,
//! and the sum of nothing is 0. `saved` is `z` for GELU and SiLU, and `y = act(z)` for ReLU and tanh,
//! whose derivatives are 1 where `y > 0` and `1 - y^2`. Of the two outputs, one that nobody reads is not
//! computed. NaN goes through, except that of `dy` where ReLU is off.
//! Error: a few units in the last place in `dz` (for GELU and SiLU, of the larger of `dz` and `dy`); `db`
//! is summed in a fixed order, in blocks.
//!
//! Gradients: both outputs are linear in `dy`, and their gradient is this operation again; that of
//! `saved` needs the second derivative, which is there for ReLU (zero) and tanh.

mod cpu;
mod naive;

use super::{
    Activation, Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, add,
    broadcast_to, mul, scale,
};
use crate::device::Control;
use crate::device::cpu::Launch;
use crate::error::{Error, Result};
use crate::tensor::TensorType;
use std::sync::Arc;

/// The operation `activation_backward`.
#[derive(Clone, Copy, Debug)]
pub struct ActivationBackward {
    activation: Activation,
}

/// Records `dz = dy act'` and `db`, the sum of `dz` over all axes but the last, and returns them in
/// this order. `saved` is the argument of the activation where
/// [`Activation::needs_argument`], else its value.
///
/// # Errors
/// The shapes differ or are scalars, a tensor is not f32, or the activation is
/// [`Activation::None`], of which there is nothing to compute.
pub fn activation_backward(
    tape: &mut dyn Recorder,
    dy: Var,
    saved: Var,
    activation: Activation,
) -> Result<(Var, Var)> {
    let outputs = tape.push(Arc::new(ActivationBackward { activation }), &[dy, saved])?;
    Ok((outputs[0], outputs[1]))
}

impl Operation for ActivationBackward {
    fn name(&self) -> &'static str {
        "activation_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        let [dy, saved] = super::expect_count(self.name(), inputs)?;
        if dy != saved || dy.shape.rank() == 0 {
            let problem = format!("takes two tensors [.., n] of one shape, not {dy} and {saved}");
            return Err(Error::operation(self.name(), problem));
        }
        if self.activation == Activation::None {
            return Err(Error::operation(self.name(), "there is no activation"));
        }
        Ok(vec![dy.clone(), TensorType::f32([dy.shape.columns()])])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::activation_backward(self.activation, inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.activation))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let (dy, saved) = (rule.inputs[0], rule.inputs[1]);
        let shape = rule.tape.tensor_type(dy).shape.clone();
        // db repeats over the rows of dz.
        let upstream = match (rule.upstream(0), rule.upstream(1)) {
            (Some(of_dz), Some(of_db)) => add(rule.tape, of_dz, of_db)?,
            (Some(of_dz), None) => of_dz,
            (None, Some(of_db)) => broadcast_to(rule.tape, of_db, &shape)?,
            (None, None) => return Ok(()),
        };
        if rule.needs(0) {
            let (gradient, _) =
                activation_backward(rule.tape, upstream, saved, self.activation)?;
            rule.give(0, gradient)?;
        }
        if rule.needs(1) {
            let gradient = match self.activation {
                Activation::None | Activation::Relu => rule.tape.fill(shape, 0.0),
                Activation::Tanh => {
                    let product = mul(rule.tape, upstream, dy)?;
                    let product = mul(rule.tape, product, saved)?;
                    scale(rule.tape, product, -2.0)?
                }
                Activation::Gelu | Activation::Silu => {
                    let problem = format!("the second derivative of {} is not there", self.activation);
                    return Err(Error::gradient(self.name(), problem));
                }
            };
            rule.give(1, gradient)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64 * (self.activation.flops() + 2.0), site)
    }
}

fn case(shape: &[usize], activation: Activation) -> Case {
    let rows = shape[..shape.len() - 1].iter().product();
    let op = ActivationBackward { activation };
    let case = Case::new(format!("{activation}_{shape:?}"), op, Tolerance::Accumulation(rows));
    let uniform = Fill::Uniform(-1.0, 1.0);
    match activation {
        // Nothing is differentiated with respect to what ReLU tests.
        Activation::Gelu | Activation::Silu | Activation::Relu => {
            let wide = Fill::Uniform(-4.0, 4.0);
            case.input(shape, uniform).fixed(shape, crate::tensor::DType::F32, wide)
        }
        Activation::Tanh | Activation::None => case.input(shape, uniform).input(shape, uniform),
    }
}

const ACTIVATIONS: [Activation; 4] =
    [Activation::Relu, Activation::Gelu, Activation::Tanh, Activation::Silu];

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let shapes: [&[usize]; 10] = [
        &[3],
        &[0, 5],
        &[5, 0],
        &[1, 1],
        &[4, 3, 7],
        &[17, 16],
        &[9, 63],
        &[128, 129],
        &[257, 64],
        &[1031, 71],
    ];
    let of = |activation: Activation| shapes.map(|shape| case(shape, activation));
    ACTIVATIONS.into_iter().flat_map(of).collect()
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let shapes: [&[usize]; 4] = [&[128, 64], &[128, 512], &[128, 2048], &[1024, 3072]];
    let of = |activation: Activation| shapes.map(|shape| case(shape, activation));
    [Activation::Relu, Activation::Gelu].into_iter().flat_map(of).collect()
}
