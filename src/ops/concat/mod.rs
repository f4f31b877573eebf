//! `y = [x0, x1, ...]`: tensors one after another along one axis. Any element type.
//!
//! Shapes: all of one rank and element type, equal but for that axis; `y` has the sum of their
//! extents there. Empty tensors are allowed. Exact to the bit. The gradients are slices of `dy`.

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
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};

/// The operation `concat`.
#[derive(Clone, Copy, Debug)]
pub struct Concat {
    axis: usize,
}

/// Records the tensors `xs` one after another along `axis`, counted from 0; the tensor itself if
/// there is one.
///
/// # Errors
/// There are no tensors, they have no such axis, or their types differ elsewhere.
pub fn concat(tape: &mut dyn Recorder, xs: &[Var], axis: usize) -> Result<Var> {
    if let [x] = *xs
        && axis < tape.tensor_type(x).shape.rank()
    {
        return Ok(x);
    }
    push_one(tape, Concat { axis }, xs)
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let Some(first) = inputs.first() else {
            return Err(Error::operation(self.name(), "takes one input at least"));
        };
        let mut total = 0;
        for input in inputs {
            let extent = AxisShape::of(self.name(), &input.shape, self.axis)?.extent;
            total += extent;
            let wanted = AxisShape::replace(&first.shape, self.axis, extent);
            if input.dtype != first.dtype || input.shape != wanted {
                let problem = format!("{first} and {input} do not join in axis {}", self.axis);
                return Err(Error::operation(self.name(), problem));
            }
        }
        let shape = AxisShape::replace(&first.shape, self.axis, total);
        Ok(vec![TensorType::new(shape, first.dtype)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::concat(self.axis, inputs, &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.axis))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site, self.axis))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let mut start = 0;
        for i in 0..rule.inputs.len() {
            let shape = &rule.tape.tensor_type(rule.inputs[i]).shape;
            let end = start + AxisShape::known(shape, self.axis).extent;
            if rule.needs(i) {
                let dx = slice(rule.tape, dy, self.axis, start..end)?;
                rule.give(i, dx)?;
            }
            start = end;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let joined = |shapes: &[&[usize]], axis: usize| {
        Case::new(format!("axis{axis}_{shapes:?}"), Concat { axis }, Tolerance::Exact)
    };
    let lists: [(&[&[usize]], usize); 8] = [
        (&[&[3]], 0),
        (&[&[1], &[0], &[4]], 0),
        (&[&[0, 2], &[0, 3]], 1),
        (&[&[2, 3], &[5, 3]], 0),
        (&[&[7, 1], &[7, 16], &[7, 3]], 1),
        (&[&[3, 2, 5], &[3, 4, 5]], 1),
        (&[&[3, 2, 5], &[3, 2, 1]], 2),
        (&[&[251, 61], &[251, 7], &[251, 29]], 1),
    ];
    let mut cases: Vec<Case> = lists
        .map(|(shapes, axis)| {
            let all = shapes.iter();
            all.fold(joined(shapes, axis), |case, shape| case.input(shape, Fill::Uniform(-1.0, 1.0)))
        })
        .into();
    for (dtype, bound) in [(DType::U8, 256), (DType::U32, 1 << 20), (DType::Bf16, 200)] {
        let case = joined(&[&[13, 37], &[13, 3]], 1).without_gradient();
        let fill = Fill::Indices(bound);
        cases.push(case.fixed(&[13, 37], dtype, fill).fixed(&[13, 3], dtype, fill));
    }
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let case = Case::new("3_of_1024x768_by_columns", Concat { axis: 1 }, Tolerance::Exact);
    vec![(0..3).fold(case, |case, _| case.input(&[1024, 768], Fill::Uniform(-1.0, 1.0)))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn other_axes_and_types_are_equal() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let a = tape.input("a", [2, 3]).expect("input");
        let b = tape.input("b", [2, 4]).expect("input");
        let c = tape.input_of("c", TensorType::u32([2, 3])).expect("input");
        assert_eq!(concat(&mut tape, &[a], 1).expect("one tensor"), a);
        let joined = concat(&mut tape, &[a, b], 1).expect("equal rows");
        assert_eq!(*tape.tensor_type(joined), TensorType::f32([2, 7]));
        for (xs, axis) in [(&[a, b][..], 0), (&[a, c], 1), (&[], 0), (&[a, b], 2)] {
            let error = concat(&mut tape, xs, axis).expect_err("does not join").to_string();
            assert!(error.starts_with("concat"), "{error}");
        }
    }
}
