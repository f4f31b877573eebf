//! `y = x`, repeated along the axes that `x` lacks or where its extent is 1.
//!
//! f32; NumPy's rule for [`broadcast_to`]; the operation itself also inserts axes elsewhere than in
//! front, for the gradients of reductions. Extents may be 0. Exact. The gradient is the sum over
//! the repetitions.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};

/// The operation `broadcast`.
#[derive(Clone, Debug)]
pub struct Broadcast {
    /// Shape of the output.
    pub shape: Shape,
    /// Axes of the output that the input lacks, ascending.
    pub inserted: Vec<usize>,
}

/// Records `x` broadcast to a shape by NumPy's rule; `x` itself where it has that shape.
///
/// # Errors
/// `x` is not f32, or its shape does not broadcast to that one.
pub fn broadcast_to(tape: &mut dyn Recorder, x: Var, shape: &Shape) -> Result<Var> {
    let own = &tape.tensor_type(x).shape;
    if own == shape {
        return Ok(x);
    }
    if own.rank() > shape.rank() {
        let problem = format!("{own} does not broadcast to {shape}");
        return Err(Error::operation("broadcast", problem));
    }
    let inserted = (0..shape.rank() - own.rank()).collect();
    push_one(tape, Broadcast { shape: shape.clone(), inserted }, &[x])
}

/// Records `x` with axes inserted and then broadcast to a shape; `x` itself where nothing changes,
/// and ones where `x` is ones.
pub(super) fn insert_and_broadcast(
    tape: &mut dyn Recorder,
    x: Var,
    inserted: &[usize],
    shape: &Shape,
) -> Result<Var> {
    if tape.tensor_type(x).shape == *shape {
        return Ok(x);
    }
    if tape.is_fill(x, 1.0) {
        return Ok(tape.fill(shape.clone(), 1.0));
    }
    push_one(tape, Broadcast { shape: shape.clone(), inserted: inserted.to_vec() }, &[x])
}

impl Broadcast {
    /// Shape of the input with an extent of 1 at every inserted axis.
    fn aligned(&self, input: &Shape) -> Shape {
        let mut own = input.extents().iter().copied();
        let extent = |axis| match self.inserted.contains(&axis) {
            true => 1,
            false => own.next().unwrap_or(1),
        };
        (0..self.shape.rank()).map(extent).collect::<Vec<_>>().into()
    }
}

impl Operation for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        let (own, shape) = (&inputs[0].shape, &self.shape);
        let aligned = self.aligned(own);
        let ranks_fit = own.rank() + self.inserted.len() == shape.rank()
            && self.inserted.iter().all(|&axis| axis < shape.rank());
        let mut extents = aligned.extents().iter().zip(shape.extents());
        if !ranks_fit || !extents.all(|(&own, &wanted)| own == wanted || own == 1) {
            let problem = format!("{own} does not broadcast to {shape}");
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::f32(shape)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let aligned = self.aligned(&inputs[0].tensor_type.shape);
        naive::broadcast(&inputs[0], &aligned, &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, &self.aligned(&site.inputs[0].shape)))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, &self.aligned(&site.inputs[0].shape))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let aligned = self.aligned(&rule.tape.tensor_type(rule.inputs[0]).shape);
        let repeated = |axis: &usize| {
            self.inserted.contains(axis) || aligned.extents()[*axis] != self.shape.extents()[*axis]
        };
        let axes = (0..self.shape.rank()).filter(repeated).collect();
        let dx = super::reduce::sum_and_drop(rule.tape, dy, axes, self.inserted.clone())?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

fn case(from: &[usize], inserted: &[usize], to: &[usize]) -> Case {
    let op = Broadcast { shape: to.into(), inserted: inserted.to_vec() };
    let name = format!("{}_to_{}", Shape::from(from), op.shape);
    Case::new(name, op, Tolerance::Exact).input(from, Fill::Uniform(-1.0, 1.0))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    vec![
        case(&[], &[], &[]),
        case(&[], &[0], &[1]),
        case(&[], &[0], &[17]),
        case(&[1], &[], &[0]),
        case(&[3], &[0], &[0, 3]),
        case(&[17], &[0], &[5, 17]),
        case(&[5], &[1], &[5, 17]),
        case(&[5, 1], &[], &[5, 16]),
        case(&[1], &[], &[20_011]),
        case(&[97], &[0], &[211, 97]),
        case(&[3, 1, 5, 1], &[], &[3, 4, 5, 7]),
        case(&[3, 5], &[0, 2], &[2, 3, 4, 5]),
    ]
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    vec![case(&[512], &[0], &[128, 512]), case(&[128], &[1], &[128, 512])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let op = Broadcast { shape: [2, 3].into(), inserted: vec![0] };
        let error = op.infer(&[TensorType::f32([2])]).expect_err("2 against 3");
        assert_eq!(error.to_string(), "broadcast: [2] does not broadcast to [2, 3]");
        let op = Broadcast { shape: [2, 3].into(), inserted: vec![] };
        assert!(op.infer(&[TensorType::f32([3])]).is_err(), "an axis too few");
    }
}
