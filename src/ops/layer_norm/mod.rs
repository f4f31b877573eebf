//! `y = (x - mean) * rstd * gamma + beta` along the last axis, with `rstd = 1 / sqrt(variance + eps)`
//! and the variance divided by `D`.
//!
//! - `x`, `y`: f32 `[..., D]`, row-major, `D` at least 1; `gamma`, `beta`: f32 `[D]`.
//! - Further outputs, for the gradient: `mean` and `rstd`, f32 `[...]`.
//!
//! Mean and variance are of two passes with a correction, so that rows far from zero keep their
//! digits; what is left is the rounding of the mean itself, `2^-24 |mean| rstd` in `y`. No rows: nothing
//! to do. NaN or infinity in a row makes that row NaN; so does a constant row if `eps` is 0. The
//! gradient is `layer_norm_backward`.
//! Source: Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod naive;

use super::layer_norm_backward::LayerNormBackward;
use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};
use std::sync::Arc;

/// The operation `layer_norm`: outputs `y`, `mean` and `rstd`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

/// Records `y = (x - mean) * rstd * gamma + beta` along the last axis: `x` f32 `[..., D]`, `gamma` and
/// `beta` f32 `[D]`.
///
/// # Errors
/// The shapes or element types do not fit, `D` is 0, or `eps` is negative or not finite.
pub fn layer_norm(
    tape: &mut dyn Recorder,
    x: Var,
    gamma: Var,
    beta: Var,
    eps: f32,
) -> Result<Var> {
    Ok(tape.push(Arc::new(LayerNorm { eps }), &[x, gamma, beta])?[0])
}

/// Shape of the statistics of `x`, after checks that all norms share: f32, at least one column,
/// parameters of that many, a usable `eps`.
pub(super) fn check(op: &str, inputs: &[TensorType], count: usize, eps: f32) -> Result<Shape> {
    super::expect_f32(op, inputs, count)?;
    let x = &inputs[0];
    let columns = match x.shape.extents() {
        &[.., columns] if columns > 0 => columns,
        _ => return Err(Error::operation(op, format!("nothing to normalise in {x}"))),
    };
    if let Some(parameter) = inputs[1..].iter().find(|p| p.shape.extents() != [columns]) {
        let problem = format!("parameters {parameter} for rows of {x}");
        return Err(Error::operation(op, problem));
    }
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(Error::operation(op, format!("eps {eps} is negative or not finite")));
    }
    Ok(Shape::new(&x.shape.extents()[..x.shape.rank() - 1]))
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let rows = TensorType::f32(check(self.name(), inputs, 3, self.eps)?);
        Ok(vec![inputs[0].clone(), rows.clone(), rows])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::layer_norm(inputs, outputs, f64::from(self.eps));
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.eps))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.name(), self.eps)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let inputs = [dy, rule.inputs[0], rule.inputs[1], rule.outputs[1], rule.outputs[2]];
        let gradients = rule.tape.push(Arc::new(LayerNormBackward), &inputs)?;
        for (i, gradient) in gradients.into_iter().enumerate() {
            if rule.needs(i) {
                rule.give(i, gradient)?;
            }
        }
        Ok(())
    }

    /// An element: 1 for the mean, 3 for the variance, 4 for `y`. A row: 4.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let x = &site.inputs[0].shape;
        Cost::of((8 * x.elements() + 4 * x.rows()) as f64, site)
    }
}

fn case(shape: &[usize], fill: Fill, tolerance: usize) -> Case {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let columns = [*shape.last().unwrap_or(&0)];
    let op = LayerNorm { eps: 1e-5 };
    Case::new(extents.join("x"), op, Tolerance::Accumulation(tolerance))
        .input(shape, fill)
        .input(&columns, Fill::Uniform(0.5, 1.5))
        .input(&columns, Fill::Uniform(-1.0, 1.0))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let fill = Fill::Uniform(-1.0, 1.0);
    let widths = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 384];
    let mut all: Vec<Case> = widths.iter().map(|&n| case(&[3, n], fill, n)).collect();
    all.push(case(&[0, 5], fill, 5));
    all.push(case(&[19], fill, 19));
    all.push(case(&[13, 17, 41], fill, 41));
    // The mean is rounded: 10.5 / 0.29 times one rounding.
    let mut far = case(&[5, 129], Fill::Uniform(10.0, 11.0), 129);
    far.name += "_far";
    all.push(far);
    all
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let fill = Fill::Uniform(-1.0, 1.0);
    vec![case(&[4096, 384], fill, 384), case(&[128, 512], fill, 512)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_eps_that_do_not_fit_are_named() {
        let infer = |eps: f32, x: &[usize], gamma: &[usize]| {
            let types = [TensorType::f32(x), TensorType::f32(gamma), TensorType::f32(gamma)];
            LayerNorm { eps }.infer(&types)
        };
        let good = infer(0.0, &[4, 2, 3], &[3]).expect("they fit");
        assert_eq!(good[1], TensorType::f32([4, 2]));
        for (bad, names) in [
            (infer(0.1, &[4, 3], &[4]), "f32[4] for rows of f32[4, 3]"),
            (infer(0.1, &[4, 0], &[0]), "f32[4, 0]"),
            (infer(0.1, &[], &[]), "f32[]"),
            (infer(-0.1, &[4, 3], &[3]), "eps -0.1"),
            (infer(f32::NAN, &[4, 3], &[3]), "eps NaN"),
        ] {
            let error = bad.expect_err(names).to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
