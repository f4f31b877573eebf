//! The gradient of `layer_norm`: with `n = (x - mean) * rstd` and `g = dy * gamma`, along the last axis
//! `dx = rstd * (g - mean(g) - n * mean(g n))`, and over all rows `dgamma = sum(dy * n)`, `dbeta = sum(dy)`.
//!
//! - `dy`, `x`, `dx`: f32 `[..., D]`, row-major, `D` at least 1; `gamma`, `dgamma`, `dbeta`: f32 `[D]`;
//!   `mean`, `rstd`: f32 `[...]`, as the forward pass left them.
//!
//! Column sums are made a chunk of rows at a time and added in the order of the chunks, which are
//! fixed by the shape. No rows: `dgamma` and `dbeta` are zero. NaN in a row makes its `dx` and the column
//! sums NaN. Error: that of sums in f32 over a row and over the rows. There is no rule for second
//! derivatives.
//! Source: Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Site, Tolerance, Values};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `layer_norm_backward`: inputs `dy, x, gamma, mean, rstd`, outputs `dx, dgamma, dbeta`.
/// The gradient rule of `layer_norm` records it.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormBackward;

/// The types of `x` and `gamma`, after checks that both gradients share: `dy, x, gamma` and then the
/// statistics.
pub(super) fn check(op: &str, inputs: &[TensorType], count: usize) -> Result<[TensorType; 2]> {
    super::expect_f32(op, inputs, count)?;
    let rows = super::layer_norm::check(op, &inputs[1..3], 2, 0.0)?;
    if inputs[0] != inputs[1] {
        return Err(Error::operation(op, format!("dy {} for x {}", inputs[0], inputs[1])));
    }
    if let Some(statistic) = inputs[3..].iter().find(|s| s.shape != rows) {
        let problem = format!("statistics {statistic} for rows of {}", inputs[1]);
        return Err(Error::operation(op, problem));
    }
    Ok([inputs[1].clone(), inputs[2].clone()])
}

impl Operation for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x, gamma] = check(self.name(), inputs, 5)?;
        Ok(vec![x, gamma.clone(), gamma])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::layer_norm_backward(inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch::<true>(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.name(), true)
    }

    /// An element: 2 for `n`; 1 for `g`, 3 for the two sums and 4 for `dx`; 2 for `dgamma`; 1 for `dbeta`.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let parts = [8, 2, 1].into_iter().zip(site.used).filter(|(_, used)| **used);
        let flops = 2 + parts.map(|(flops, _)| flops).sum::<usize>();
        Cost::of((flops * site.inputs[1].elements()) as f64, site)
    }
}

fn case(shape: &[usize]) -> Case {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let [outer @ .., columns] = shape else { panic!("a case without columns") };
    let terms = outer.iter().product::<usize>().max(*columns);
    Case::new(extents.join("x"), LayerNormBackward, Tolerance::Accumulation(terms))
        .input(shape, Fill::Uniform(-1.0, 1.0))
        .input(shape, Fill::Uniform(-1.0, 1.0))
        .input(&[*columns], Fill::Uniform(0.5, 1.5))
        .input(outer, Fill::Uniform(-0.1, 0.1))
        .input(outer, Fill::Uniform(1.0, 2.0))
        .without_gradient()
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let widths = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 384];
    let mut all: Vec<Case> = widths.iter().map(|&columns| case(&[7, columns])).collect();
    // Several chunks: of few wide rows, and of many narrow ones.
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
        let infer = |dy: &[usize], statistics: &[usize]| {
            let statistics = TensorType::f32(statistics);
            let (x, gamma) = (TensorType::f32([4, 3]), TensorType::f32([3]));
            LayerNormBackward.infer(&[TensorType::f32(dy), x, gamma, statistics.clone(), statistics])
        };
        assert_eq!(infer(&[4, 3], &[4]).expect("they fit").len(), 3);
        for (bad, names) in [
            (infer(&[3, 4], &[4]), "dy f32[3, 4] for x f32[4, 3]"),
            (infer(&[4, 3], &[3]), "f32[3] for rows of f32[4, 3]"),
        ] {
            let error = bad.expect_err(names).to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
