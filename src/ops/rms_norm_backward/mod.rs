//! The gradient of `rms_norm`: with `n = x * rstd` and `g = dy * gamma`, along the last axis
//! `dx = rstd * (g - n * mean(g n))`, and over all rows `dgamma = sum(dy * n)`.
//!
//! - `dy`, `x`, `dx`: f32 `[..., D]`, row-major, `D` at least 1; `gamma`, `dgamma`: f32 `[D]`; `rstd`: f32
//!   `[...]`, as the forward pass left it.
//!
//! Chunks, sums, NaN and errors as in `layer_norm_backward`, whose kernel this is without the mean.
//! There is no rule for second derivatives.
//! Source: Zhang and Sennrich, "Root mean square layer normalization", arXiv:1910.07467.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Site, Tolerance, Values};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::TensorType;

/// The operation `rms_norm_backward`: inputs `dy, x, gamma, rstd`, outputs `dx, dgamma`. The gradient
/// rule of `rms_norm` records it.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormBackward;

impl Operation for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(super::layer_norm_backward::check(self.name(), inputs, 4)?.into())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::rms_norm_backward(inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    /// An element: 1 for `n`; 1 for `g`, 2 for the sum and 3 for `dx`; 2 for `dgamma`.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let parts = [6, 2].into_iter().zip(site.used).filter(|(_, used)| **used);
        let flops = 1 + parts.map(|(flops, _)| flops).sum::<usize>();
        Cost::of((flops * site.inputs[1].elements()) as f64, site)
    }
}

fn case(shape: &[usize]) -> Case {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let [outer @ .., columns] = shape else { panic!("a case without columns") };
    let terms = outer.iter().product::<usize>().max(*columns);
    Case::new(extents.join("x"), RmsNormBackward, Tolerance::Accumulation(terms))
        .input(shape, Fill::Uniform(-1.0, 1.0))
        .input(shape, Fill::Uniform(-1.0, 1.0))
        .input(&[*columns], Fill::Uniform(0.5, 1.5))
        .input(outer, Fill::Uniform(1.0, 2.0))
        .without_gradient()
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let widths = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 384];
    let mut all: Vec<Case> = widths.iter().map(|&columns| case(&[7, columns])).collect();
    all.extend([&[0, 5][..], &[19], &[13, 17, 41], &[71, 307], &[1009, 3]].map(case));
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
        let types = [&[4, 3][..], &[4, 3], &[3], &[3]].map(TensorType::f32);
        let error = RmsNormBackward.infer(&types).expect_err("3 for 4").to_string();
        assert!(error.contains("f32[3] for rows of f32[4, 3]"), "{error}");
    }
}
