//! `y = [0, x, 0]` along one axis: zeros before and after, as the gradient of `slice` needs. Any element type.
//!
//! Shapes: `x` of rank 1 or more; the axis grows by `before + after`. Empty tensors are allowed.
//! Exact to the bit. The gradient is the slice of `dy` where `x` went.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{
    AxisShape, Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one,
    slice,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::{DType, TensorType};

/// The operation `pad`.
#[derive(Clone, Copy, Debug)]
pub struct Pad {
    axis: usize,
    before: usize,
    after: usize,
}

/// Records `x` with `before` and `after` zeros around it in `axis`, counted from 0; `x` itself if
/// both are 0.
///
/// # Errors
/// `x` has no such axis.
pub fn pad(
    tape: &mut dyn Recorder,
    x: Var,
    axis: usize,
    before: usize,
    after: usize,
) -> Result<Var> {
    if before == 0 && after == 0 && axis < tape.tensor_type(x).shape.rank() {
        return Ok(x);
    }
    push_one(tape, Pad { axis, before, after }, &[x])
}

impl Operation for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = super::expect_count(self.name(), inputs)?;
        let extent = AxisShape::of(self.name(), &x.shape, self.axis)?.extent;
        let padded = self.before + extent + self.after;
        Ok(vec![TensorType::new(AxisShape::replace(&x.shape, self.axis, padded), x.dtype)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let shape = AxisShape::known(&inputs[0].tensor_type.shape, self.axis);
        naive::pad(shape, self.before, self.after, &inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        let shape = AxisShape::known(&site.inputs[0].shape, self.axis);
        Some(cpu::launch(site, shape, self.before, self.after))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site, AxisShape::known(&site.inputs[0].shape, self.axis), self.before, self.after))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let shape = &rule.tape.tensor_type(rule.inputs[0]).shape;
        let extent = AxisShape::known(shape, self.axis).extent;
        let dx = slice(rule.tape, dy, self.axis, self.before..self.before + extent)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let padded = |shape: &[usize], axis: usize, before: usize, after: usize| {
        let name = format!("axis{axis}_{before}_{shape:?}_{after}");
        Case::new(name, Pad { axis, before, after }, Tolerance::Exact)
    };
    let mut cases: Vec<Case> = [
        (&[1][..], 0, 0, 1),
        (&[5], 0, 2, 3),
        (&[0], 0, 2, 3),
        (&[3, 0, 2], 1, 2, 0),
        (&[3, 5, 2], 1, 2, 1),
        (&[67, 97], 1, 13, 0),
        (&[67, 97], 0, 0, 3),
        (&[211, 3, 37], 2, 1, 31),
    ]
    .map(|(shape, axis, before, after)| {
        padded(shape, axis, before, after).input(shape, Fill::Uniform(-1.0, 1.0))
    })
    .into();
    for (dtype, bound) in [(DType::U8, 256), (DType::U32, 1 << 20), (DType::Bf16, 200)] {
        let case = padded(&[13, 37], 1, 5, 2).without_gradient();
        cases.push(case.fixed(&[13, 37], dtype, Fill::Indices(bound)));
    }
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let op = Pad { axis: 1, before: 768, after: 768 };
    let case = Case::new("middle_third_1024x2304", op, Tolerance::Exact);
    vec![case.input(&[1024, 768], Fill::Uniform(-1.0, 1.0))]
}
