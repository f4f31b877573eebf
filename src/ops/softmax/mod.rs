//! `y = exp(x - m) / sum exp(x - m)` along the last axis, with its maximum `m`. f32 of any
//! shape with at least one axis.
//!
//! An element of negative infinity gives 0. A row that is negative infinity everywhere, or holds NaN
//! or positive infinity, gives NaN. Rows without elements give nothing. Error: a few rounding errors
//! of `x - m`, 2 to 5 ulp of the exponential (as far as it is from 1). Long rows: see `rows.rs`.

mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod naive;
pub(in crate::ops) mod rows;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `softmax`.
#[derive(Clone, Copy, Debug)]
pub struct Softmax;

/// Records the softmax of `x` along its last axis.
///
/// # Errors
/// `x` is not f32, or has no axis.
pub fn softmax(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Softmax, &[x])
}

impl Operation for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        expect_axis(self.name(), inputs)?;
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::softmax(&inputs[0], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.name())
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let dx = super::softmax_backward(rule.tape, rule.outputs[0], dy)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        // Maximum, difference, exponential (counted as one), sum, product.
        Cost::of(5.0 * site.inputs[0].elements() as f64, site)
    }
}

/// Checks that there is one input, f32 with at least one axis.
pub(in crate::ops) fn expect_axis(op: &str, inputs: &[TensorType]) -> Result<()> {
    super::expect_f32(op, inputs, 1)?;
    if inputs[0].shape.rank() == 0 {
        return Err(Error::operation(op, "a scalar has no last axis"));
    }
    Ok(())
}

/// Shapes of the tests of softmax and its kin: columns around the lanes and the blocks, and rows of
/// several chunks.
pub(in crate::ops) const SHAPES: [&[usize]; 12] = [
    &[0],
    &[1],
    &[3, 0],
    &[0, 3],
    &[2, 3, 7],
    &[5, 8],
    &[5, 16],
    &[5, 17],
    &[1300, 9],
    &[3, 257],
    &[2, 2049],
    &[2, 6007],
];

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let case = |shape: &[usize], spread: f64| {
        let name = format!("{shape:?}_spread{spread}");
        // An exponential has the absolute rounding error of x - m as a relative one.
        let case = Case::new(name, Softmax, Tolerance::Rounding(8.0 + 4.0 * spread));
        case.input(shape, Fill::Uniform(-spread, spread))
    };
    let mut cases: Vec<Case> = SHAPES.map(|shape| case(shape, 4.0)).into();
    cases.push(case(&[33, 10], 60.0));
    cases
}

/// Benchmark cases: attention scores, and rows of a vocabulary.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [[1024, 64], [128, 50257]]
        .map(|[rows, columns]| {
            Case::new(format!("{rows}x{columns}"), Softmax, Tolerance::Rounding(32.0))
                .input(&[rows, columns], Fill::Uniform(-4.0, 4.0))
        })
        .into()
}
