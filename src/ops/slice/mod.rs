//! `y = x[.., start..end, ..]`: a range of one axis. Any element type.
//!
//! Shapes: `x` of rank 1 or more; `y` has `end - start` in that axis. Where all axes before it have
//! extent 1 the range is contiguous and `y` is a view of `x`'s memory; otherwise it is a copy, exact
//! to the bit. Empty ranges and tensors are allowed. The gradient is `dy` between zeros.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{
    AxisShape, Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, pad,
    push_one,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};
use std::ops::Range;

/// The operation `slice`.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    axis: usize,
    start: usize,
    end: usize,
}

/// Records `x[.., range, ..]` in `axis`, counted from 0; `x` itself if the range is all of it.
///
/// # Errors
/// `x` has no such axis, or the range does not lie within it.
pub fn slice(tape: &mut dyn Recorder, x: Var, axis: usize, range: Range<usize>) -> Result<Var> {
    if tape.tensor_type(x).shape.extents().get(axis) == Some(&range.end) && range.start == 0 {
        return Ok(x);
    }
    push_one(tape, Slice { axis, start: range.start, end: range.end }, &[x])
}

impl Operation for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = super::expect_count(self.name(), inputs)?;
        let Slice { axis, start, end } = *self;
        let extent = AxisShape::of(self.name(), &x.shape, axis)?.extent;
        if start > end || end > extent {
            let problem = format!("{start}..{end} does not lie within axis {axis} of {x}");
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::new(AxisShape::replace(&x.shape, axis, end - start), x.dtype)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let shape = AxisShape::known(&inputs[0].tensor_type.shape, self.axis);
        naive::slice(shape, self.start..self.end, &inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, AxisShape::known(&site.inputs[0].shape, self.axis), self.start))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site, AxisShape::known(&site.inputs[0].shape, self.axis), self.start))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let shape = &rule.tape.tensor_type(rule.inputs[0]).shape;
        let after = AxisShape::known(shape, self.axis).extent - self.end;
        let dx = pad(rule.tape, dy, self.axis, self.start, after)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost { flops: 0.0, bytes: 2.0 * site.outputs[0].bytes() as f64 }
    }

    fn view(&self, inputs: &[TensorType]) -> Option<usize> {
        let AxisShape { outer, inner, .. } = AxisShape::known(&inputs[0].shape, self.axis);
        match outer * (self.end - self.start) * inner {
            0 => Some(0),
            _ => (outer == 1).then_some(self.start * inner),
        }
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let sliced = |shape: &[usize], axis: usize, range: Range<usize>| {
        let name = format!("axis{axis}_{}to{}_{shape:?}", range.start, range.end);
        let op = Slice { axis, start: range.start, end: range.end };
        Case::new(name, op, Tolerance::Exact)
    };
    let mut cases: Vec<Case> = [
        (&[5][..], 0, 1..4),
        (&[5], 0, 2..2),
        (&[7, 3], 0, 2..7),
        (&[7, 3], 1, 1..3),
        (&[7, 3], 1, 0..0),
        (&[0, 3], 1, 1..2),
        (&[1, 9, 2], 1, 3..8),
        (&[3, 17, 5], 1, 16..17),
        (&[67, 97], 1, 13..96),
        (&[211, 3, 37], 2, 1..34),
    ]
    .map(|(shape, axis, range)| {
        sliced(shape, axis, range).input(shape, Fill::Uniform(-1.0, 1.0))
    })
    .into();
    for (dtype, bound) in [(DType::U8, 256), (DType::U32, 1 << 20), (DType::Bf16, 200)] {
        let case = sliced(&[13, 37], 1, 5..36).without_gradient();
        cases.push(case.fixed(&[13, 37], dtype, Fill::Indices(bound)));
    }
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let op = Slice { axis: 1, start: 768, end: 1536 };
    let case = Case::new("second_third_1024x2304", op, Tolerance::Exact);
    vec![case.input(&[1024, 2304], Fill::Uniform(-1.0, 1.0))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn ranges_lie_within_the_axis() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let x = tape.input("x", [2, 3]).expect("input");
        assert_eq!(slice(&mut tape, x, 1, 0..3).expect("all of it"), x);
        let error = slice(&mut tape, x, 1, 2..4).expect_err("4 of 3").to_string();
        assert!(error.contains("2..4") && error.contains("[2, 3]"), "{error}");
        let error = slice(&mut tape, x, 2, 0..1).expect_err("no axis 2").to_string();
        assert!(error.contains("axis 2") && error.contains("[2, 3]"), "{error}");
    }
}
