//! `y = x * rstd * gamma` along the last axis, with `rstd = 1 / sqrt(mean(x^2) + eps)`.
//!
//! - `x`, `y`: f32 `[..., D]`, row-major, `D` at least 1; `gamma`: f32 `[D]`.
//! - A further output, for the gradient: `rstd`, f32 `[...]`.
//!
//! No rows: nothing to do. NaN in a row makes that row NaN; so does a row of zeros if `eps` is 0.
//! Squares past the range of f32 make `rstd` zero. Error: that of the sum of squares, halved by the
//! root, and four roundings. The gradient is `rms_norm_backward`.
//! Source: Zhang and Sennrich, "Root mean square layer normalization", arXiv:1910.07467.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::rms_norm_backward::RmsNormBackward;
use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::TensorType;
use std::sync::Arc;

/// The operation `rms_norm`: outputs `y` and `rstd`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

/// Records `y = x * rstd * gamma` along the last axis: `x` f32 `[..., D]`, `gamma` f32 `[D]`.
///
/// # Errors
/// The shapes or element types do not fit, `D` is 0, or `eps` is negative or not finite.
pub fn rms_norm(tape: &mut dyn Recorder, x: Var, gamma: Var, eps: f32) -> Result<Var> {
    Ok(tape.push(Arc::new(RmsNorm { eps }), &[x, gamma])?[0])
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let rows = super::layer_norm::check(self.name(), inputs, 2, self.eps)?;
        Ok(vec![inputs[0].clone(), TensorType::f32(rows)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::rms_norm(inputs, outputs, f64::from(self.eps));
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.eps))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.eps)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let inputs = [dy, rule.inputs[0], rule.inputs[1], rule.outputs[1]];
        let gradients = rule.tape.push(Arc::new(RmsNormBackward), &inputs)?;
        for (i, gradient) in gradients.into_iter().enumerate() {
            if rule.needs(i) {
                rule.give(i, gradient)?;
            }
        }
        Ok(())
    }

    /// An element: 2 for the mean square, 2 for `y`. A row: 4.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let x = &site.inputs[0].shape;
        Cost::of((4 * x.elements() + 4 * x.rows()) as f64, site)
    }
}

fn case(shape: &[usize]) -> Case {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let columns = *shape.last().unwrap_or(&0);
    Case::new(extents.join("x"), RmsNorm { eps: 1e-6 }, Tolerance::Accumulation(columns))
        .input(shape, Fill::Uniform(-1.0, 1.0))
        .input(&[columns], Fill::Uniform(0.5, 1.5))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let widths = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 384];
    let mut all: Vec<Case> = widths.iter().map(|&columns| case(&[3, columns])).collect();
    all.extend([&[0, 5][..], &[19], &[13, 17, 41]].map(case));
    all
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    vec![case(&[4096, 384]), case(&[128, 512])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let types = [TensorType::f32([4, 3]), TensorType::f32([4])];
        let error = RmsNorm { eps: 0.1 }.infer(&types).expect_err("4 for 3").to_string();
        assert!(error.contains("f32[4] for rows of f32[4, 3]"), "{error}");
    }
}
