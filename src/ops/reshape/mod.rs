//! `y = x` in another shape: the same memory, no kernel. Any element type.
//!
//! Shapes: any two with equally many elements, scalars and empty ones included; row-major order is
//! kept. The gradient is reshaped back.

mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};

/// The operation `reshape`.
#[derive(Clone, Debug)]
pub struct Reshape {
    shape: Shape,
}

/// Records `x` in another shape; `x` itself if it has that shape already.
///
/// # Errors
/// The shapes differ in their number of elements.
pub fn reshape(tape: &mut dyn Recorder, x: Var, shape: impl Into<Shape>) -> Result<Var> {
    let shape = shape.into();
    if tape.tensor_type(x).shape == shape {
        return Ok(x);
    }
    push_one(tape, Reshape { shape }, &[x])
}

impl Operation for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = super::expect_count(self.name(), inputs)?;
        if x.elements() != self.shape.elements() {
            let problem = format!("{x} does not fit into {}", self.shape);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::new(&self.shape, x.dtype)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::reshape(&inputs[0].data, &mut outputs[0].data);
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let shape = rule.tape.tensor_type(rule.inputs[0]).shape.clone();
        let dx = reshape(rule.tape, dy, shape)?;
        rule.give(0, dx)
    }

    fn cost(&self, _site: &Site<'_>) -> Cost {
        Cost::default()
    }

    fn view(&self, _inputs: &[TensorType]) -> Option<usize> {
        Some(0)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let shapes: [(&[usize], &[usize]); 5] = [
        (&[], &[1, 1]),
        (&[0, 3], &[5, 0]),
        (&[2, 3, 4], &[6, 4]),
        (&[24], &[2, 3, 4]),
        (&[4, 3], &[4, 3]),
    ];
    shapes
        .map(|(from, to)| {
            let op = Reshape { shape: Shape::from(to) };
            let name = format!("{}_to_{}", Shape::from(from), Shape::from(to));
            Case::new(name, op, Tolerance::Exact).input(from, Fill::Uniform(-1.0, 1.0))
        })
        .into()
}

/// No benchmark cases: nothing runs.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn the_number_of_elements_is_kept() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let x = tape.input("x", [2, 3]).expect("input");
        assert_eq!(reshape(&mut tape, x, [2, 3]).expect("same shape"), x);
        let error = reshape(&mut tape, x, [4]).expect_err("6 elements into 4").to_string();
        assert!(error.contains("[2, 3]") && error.contains("[4]"), "{error}");
    }
}
