//! `dz = dy act'(z)` and `db = sum of dz over its rows`, in one pass: what comes back through the
//! activation of [`mod@super::linear`]. f32.
//!
//! Shapes: `dy`, `dz` and `saved` are \[.., n\] of rank 1 or more, `db` is \[n\]; any extent may be 0,
//! and the sum of nothing is 0. `saved` is `z` for GELU and SiLU, and `y = act(z)` for ReLU and tanh,
//! whose derivatives are 1 where `y > 0` and `1 - y^2`. Of the two outputs, one that nobody reads is not
//! computed. NaN goes through, except that of `dy` where ReLU is off.
//! Error: a few units in the last place in `dz` (for GELU and SiLU, of the larger of `dz` and `dy`); `db`
//! is summed in a fixed order, in blocks.
//!
//! Gradients: both outputs are linear in `dy`, and that gradient is this operation again; the one of
//! `saved` is that of [`mod@super::unary_gradient`], which does the same for one tensor without a sum.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod naive;

use super::unary_gradient::{Kind, UnaryGradient};
use super::matmul::with_mask;
use super::{
    Activation, Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, add,
    broadcast_to, sum,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};
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

/// The same where nobody else reads `dy`: if it is a product, `dz` is computed with it
/// ([`mod@super::matmul`]), and `db` from `dz`.
///
/// # Errors
/// As [`activation_backward`].
pub(super) fn of_product(
    tape: &mut dyn Recorder,
    dy: Var,
    saved: Var,
    activation: Activation,
) -> Result<(Var, Var)> {
    let Some(dz) = with_mask(tape, dy, saved, activation)? else {
        return activation_backward(tape, dy, saved, activation);
    };
    let rows: Vec<usize> = (0..tape.tensor_type(dz).shape.rank() - 1).collect();
    Ok((dz, sum(tape, dz, &rows, false)?))
}

/// FLOPs of one element of `dz`.
pub(super) fn flops(activation: Activation, site: &Site<'_>) -> f64 {
    let kind = ActivationBackward { activation }.kind();
    kind.map_or(0.0, |kind| UnaryGradient { kind }.cost(site).flops)
}

/// Records the gradient of `saved`, where `upstream` is that of `dz`.
///
/// # Errors
/// As [`activation_backward`].
pub(super) fn of_saved(
    rule: &mut Rule<'_>,
    [dy, saved]: [Var; 2],
    upstream: Var,
    activation: Activation,
) -> Result<Var> {
    let op = ActivationBackward { activation };
    // dz alone is `unary_gradient`, which knows its derivative.
    let alone = UnaryGradient { kind: op.kind()? };
    let (inputs, upstream) = ([saved, dy], [Some(upstream)]);
    let (outputs, needs) = (&rule.outputs[..1], [true, false]);
    let mut of_saved = Rule::new(&mut *rule.tape, op.name(), &inputs, outputs, &upstream, &needs);
    alone.gradient(&mut of_saved)?;
    let gradient = of_saved.finish()?[0];
    gradient.ok_or_else(|| Error::gradient(op.name(), "no gradient of an activation's derivative"))
}

impl ActivationBackward {
    /// The function of which `dz` is the gradient.
    fn kind(&self) -> Result<Kind> {
        match self.activation {
            Activation::None => Err(Error::operation(self.name(), "there is no activation")),
            Activation::Relu => Ok(Kind::Relu),
            Activation::Gelu => Ok(Kind::Gelu),
            Activation::Tanh => Ok(Kind::Tanh),
            Activation::Silu => Ok(Kind::Silu),
        }
    }
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
        self.kind()?;
        Ok(vec![dy.clone(), TensorType::f32([dy.shape.columns()])])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::activation_backward(self.activation, inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.activation))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.activation)
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
            let gradient = of_saved(rule, [dy, saved], upstream, self.activation)?;
            rule.give(1, gradient)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let elements = site.inputs[0].elements() as f64;
        let sum = if site.used[1] { elements } else { 0.0 };
        let alone =
            self.kind().map_or(0.0, |kind| UnaryGradient { kind }.cost(site).flops);
        Cost::of(alone + sum, site)
    }
}

fn case(shape: &[usize], activation: Activation) -> Case {
    let rows = shape[..shape.len() - 1].iter().product();
    let op = ActivationBackward { activation };
    let case = Case::new(format!("{activation}_{shape:?}"), op, Tolerance::Accumulation(rows));
    let uniform = Fill::Uniform(-1.0, 1.0);
    let case = case.input(shape, uniform);
    match activation {
        // Differences could meet the kink.
        Activation::Relu => case.fixed(shape, DType::F32, uniform),
        _ if activation.needs_argument() => case.input(shape, Fill::Uniform(-4.0, 4.0)),
        _ => case.input(shape, uniform),
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
