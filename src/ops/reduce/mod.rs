//! Sum, mean and largest value over axes: `y = sum x`, `y = sum x / count`, `y = max x`.
//!
//! f32 of any shape, over any set of axes; the reduced axes are dropped, or kept with extent 1.
//! The sum of nothing is 0; mean and maximum of nothing are refused at recording. NaN anywhere
//! makes the result NaN, that of a maximum too. Sums are formed in a fixed order, in vectors and
//! blocks, so that an error of n terms stays within some 2^-24 sqrt(n) of their magnitude; a
//! maximum is exact. The gradient of a maximum goes in equal parts to all elements that attain it.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod naive;

use super::broadcast::insert_and_broadcast;
use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, div, equal, mul,
    push_one, scale,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};

/// Which reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The sum.
    Sum,
    /// The sum divided by the number of terms.
    Mean,
    /// The largest value.
    Max,
}

/// A reduction over axes.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// Which reduction.
    pub kind: Kind,
    /// The axes over which it goes, ascending.
    pub axes: Vec<usize>,
    /// Those of them that the output lacks; the others stay with extent 1.
    pub dropped: Vec<usize>,
}

/// Records the sum over `axes`, which stay with extent 1 if `keep` is true.
///
/// # Errors
/// `x` is not f32; no axis is named, or one that `x` does not have, or one twice. All axes are the
/// business of [`sum_all`].
pub fn sum(tape: &mut dyn Recorder, x: Var, axes: &[usize], keep: bool) -> Result<Var> {
    record(tape, Kind::Sum, x, axes, keep)
}

/// Records the mean over `axes`, which stay with extent 1 if `keep` is true.
///
/// # Errors
/// As [`sum`]; and there is nothing to take the mean of.
pub fn mean(tape: &mut dyn Recorder, x: Var, axes: &[usize], keep: bool) -> Result<Var> {
    record(tape, Kind::Mean, x, axes, keep)
}

/// Records the largest value over `axes`, which stay with extent 1 if `keep` is true.
///
/// # Errors
/// As [`sum`]; and there is nothing to take the maximum of.
pub fn max(tape: &mut dyn Recorder, x: Var, axes: &[usize], keep: bool) -> Result<Var> {
    record(tape, Kind::Max, x, axes, keep)
}

/// Records the sum of all elements, a scalar.
///
/// # Errors
/// `x` is not f32.
pub fn sum_all(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let axes: Vec<usize> = (0..tape.tensor_type(x).shape.rank()).collect();
    push_one(tape, Reduce { kind: Kind::Sum, dropped: axes.clone(), axes }, &[x])
}

/// Records the mean of all elements, a scalar.
///
/// # Errors
/// `x` is not f32, or has no elements.
pub fn mean_all(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let axes: Vec<usize> = (0..tape.tensor_type(x).shape.rank()).collect();
    push_one(tape, Reduce { kind: Kind::Mean, dropped: axes.clone(), axes }, &[x])
}

/// Records the sum of `x` over the axes along which `shape` was broadcast to `x`'s: the gradient
/// of broadcasting. `x` itself where it has that shape.
///
/// # Errors
/// `x` is not f32, or `shape` does not broadcast to the shape of `x`.
pub fn sum_to(tape: &mut dyn Recorder, x: Var, shape: &Shape) -> Result<Var> {
    let own = tape.tensor_type(x).shape.clone();
    if own == *shape {
        return Ok(x);
    }
    if shape.broadcast(&own).ok().as_ref() != Some(&own) {
        let problem = format!("{own} is not a broadcast of {shape}");
        return Err(Error::operation("sum", problem));
    }
    let missing = own.rank() - shape.rank();
    let repeated = |&axis: &usize| {
        axis < missing || shape.extents()[axis - missing] != own.extents()[axis]
    };
    let axes = (0..own.rank()).filter(repeated).collect();
    sum_and_drop(tape, x, axes, (0..missing).collect())
}

/// Records the sum over `axes`, of which the output lacks those in `dropped`; `x` itself where
/// there are none.
pub(super) fn sum_and_drop(
    tape: &mut dyn Recorder,
    x: Var,
    axes: Vec<usize>,
    dropped: Vec<usize>,
) -> Result<Var> {
    if axes.is_empty() { Ok(x) } else { push_one(tape, Reduce { kind: Kind::Sum, axes, dropped }, &[x]) }
}

fn record(
    tape: &mut dyn Recorder,
    kind: Kind,
    x: Var,
    axes: &[usize],
    keep: bool,
) -> Result<Var> {
    let mut axes = axes.to_vec();
    axes.sort_unstable();
    let op = Reduce { kind, dropped: if keep { Vec::new() } else { axes.clone() }, axes };
    if op.axes.is_empty() {
        return Err(Error::operation(op.name(), "no axis is named"));
    }
    push_one(tape, op, &[x])
}

impl Reduce {
    /// For each axis of the input, whether it is reduced.
    fn reduced(&self, input: &Shape) -> Vec<bool> {
        (0..input.rank()).map(|axis| self.axes.contains(&axis)).collect()
    }

    /// How many elements of the input make one of the output.
    fn count(&self, input: &Shape) -> usize {
        self.axes.iter().map(|&axis| input.extents()[axis]).product()
    }

    /// The output's shape with all reduced axes kept.
    fn kept(&self, input: &Shape) -> Shape {
        let extent = |(axis, &extent)| if self.axes.contains(&axis) { 1 } else { extent };
        input.extents().iter().enumerate().map(extent).collect::<Vec<_>>().into()
    }
}

impl Operation for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sum => "sum",
            Kind::Mean => "mean",
            Kind::Max => "max",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        let shape = &inputs[0].shape;
        let in_range = self.axes.last().is_none_or(|&axis| axis < shape.rank());
        if !in_range || !self.axes.is_sorted_by(|a, b| a < b) {
            let problem = format!("axes {:?} of a tensor of shape {shape}", self.axes);
            return Err(Error::operation(self.name(), problem));
        }
        if self.kind != Kind::Sum && self.count(shape) == 0 {
            let problem = format!("of nothing: axes {:?} of shape {shape}", self.axes);
            return Err(Error::operation(self.name(), problem));
        }
        let kept = self.kept(shape);
        let stays = |(axis, _): &(usize, &usize)| !self.dropped.contains(axis);
        let extents: Vec<usize> =
            kept.extents().iter().enumerate().filter(stays).map(|(_, &extent)| extent).collect();
        Ok(vec![TensorType::f32(extents)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let reduced = self.reduced(&inputs[0].tensor_type.shape);
        naive::reduce(self.kind, &reduced, &inputs[0], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.kind, &self.reduced(&site.inputs[0].shape)))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.kind, &self.reduced(&site.inputs[0].shape))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let (x, y) = (rule.inputs[0], rule.outputs[0]);
        let tape = &mut *rule.tape;
        let shape = tape.tensor_type(x).shape.clone();
        let dx = match self.kind {
            Kind::Sum => insert_and_broadcast(tape, dy, &self.dropped, &shape)?,
            Kind::Mean => {
                let share = 1.0 / self.count(&shape) as f32;
                if tape.is_fill(dy, 1.0) {
                    tape.fill(shape, share)
                } else {
                    let dy = scale(tape, dy, share)?;
                    insert_and_broadcast(tape, dy, &self.dropped, &shape)?
                }
            }
            Kind::Max => {
                let kept = self.kept(&shape);
                let y = insert_and_broadcast(tape, y, &self.dropped, &kept)?;
                let dy = insert_and_broadcast(tape, dy, &self.dropped, &kept)?;
                let attained = equal(tape, x, y)?;
                let ties = sum_and_drop(tape, attained, self.axes.clone(), Vec::new())?;
                let share = div(tape, dy, ties)?;
                mul(tape, attained, share)?
            }
        };
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64, site)
    }
}

fn case(kind: Kind, shape: &[usize], axes: &[usize], keep: bool, fill: Fill) -> Case {
    let shape = Shape::from(shape);
    let dropped = if keep { Vec::new() } else { axes.to_vec() };
    let op = Reduce { kind, axes: axes.to_vec(), dropped };
    let kept = if keep { "_keep" } else { "" };
    let name = format!("{}_{shape}_over_{axes:?}{kept}", op.name());
    let tolerance = match (kind, fill) {
        (Kind::Max, _) | (Kind::Sum, Fill::Integers) => Tolerance::Exact,
        _ => Tolerance::Accumulation(op.count(&shape)),
    };
    Case::new(name, op, tolerance).input(shape.extents(), fill)
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    // Values that lie far apart, so that central differences do not meet a tie.
    let fill = Fill::Uniform(-100.0, 100.0);
    let forms: [(&[usize], &[usize], bool); 21] = [
        (&[], &[], false),
        (&[1], &[0], false),
        (&[1, 5], &[0], false),
        (&[7], &[0], true),
        (&[16], &[0], false),
        (&[257], &[0], false),
        (&[5, 1], &[1], false),
        (&[5, 17], &[1], false),
        (&[5, 64], &[1], true),
        (&[3, 1031], &[1], false),
        (&[5, 17], &[0], false),
        (&[8, 16], &[0], true),
        (&[9, 33], &[0], false),
        (&[23, 1100], &[0], false),
        (&[1601, 10], &[0], false),
        (&[4, 5, 6], &[1], true),
        (&[4, 5, 6], &[0, 1], false),
        (&[4, 5, 6], &[0, 2], false),
        (&[4, 5, 6], &[0, 2], true),
        (&[3, 2, 3, 2, 3], &[0, 2, 4], false),
        (&[0, 4], &[1], false),
    ];
    let mut cases = Vec::new();
    for kind in [Kind::Sum, Kind::Mean, Kind::Max] {
        cases.extend(forms.map(|(shape, axes, keep)| case(kind, shape, axes, keep, fill)));
        // Several blocks along rows and along columns; ties and near ties at this size.
        for (shape, axes) in [(&[2, 20_011], [1]), (&[1201, 65], [0]), (&[30_011, 3], [0])] {
            cases.push(case(kind, shape, &axes, false, Fill::Integers).without_gradient());
        }
    }
    cases.push(case(Kind::Sum, &[100_003], &[0], false, Fill::Uniform(0.0, 1.0)));
    cases.push(case(Kind::Mean, &[19, 20_011], &[1], false, Fill::Uniform(0.0, 1.0)));
    cases.push(case(Kind::Sum, &[0, 4], &[0], false, fill));
    cases.push(case(Kind::Sum, &[4, 0], &[1], true, fill));
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let fill = Fill::Uniform(-1.0, 1.0);
    vec![
        case(Kind::Sum, &[1 << 20], &[0], false, fill),
        case(Kind::Sum, &[128, 512], &[0], false, fill),
        case(Kind::Sum, &[128, 512], &[1], false, fill),
        case(Kind::Sum, &[4096, 768], &[0], false, fill),
        case(Kind::Sum, &[64, 32, 1024], &[0, 2], false, fill),
        case(Kind::Max, &[4096, 768], &[1], false, fill),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_axes_are_named() {
        let infer = |kind, axes: &[usize], shape: &[usize]| {
            let op = Reduce { kind, axes: axes.to_vec(), dropped: Vec::new() };
            op.infer(&[TensorType::f32(shape)]).map_err(|error| error.to_string())
        };
        let error = infer(Kind::Sum, &[2], &[4, 5]).expect_err("two axes");
        assert_eq!(error, "sum: axes [2] of a tensor of shape [4, 5]");
        assert!(infer(Kind::Sum, &[1, 1], &[4, 5]).is_err(), "one axis twice");
        let error = infer(Kind::Mean, &[0], &[0, 5]).expect_err("nothing");
        assert_eq!(error, "mean: of nothing: axes [0] of shape [0, 5]");
        assert!(infer(Kind::Max, &[0], &[0, 5]).is_err(), "nothing");
        assert!(infer(Kind::Sum, &[0], &[0, 5]).is_ok());
    }
}
