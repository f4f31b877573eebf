//! Elementwise arithmetic of two tensors: `y = a + b`, `a - b`, `a b`, `a / b`, and `a == b` as 1
//! or 0.
//!
//! f32; shapes broadcast by NumPy's rule ([`Shape::broadcast`]): aligned at the last axis, an
//! extent of 1 or a missing axis repeats. Any extent may be 0. Division by zero and NaN as IEEE
//! says; NaN equals nothing. Each element is rounded once, so the error is half a unit in the last
//! place. Gradients of an operand that repeats are summed over its repetitions; that of `a == b`
//! is zero.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one, sum_to,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};

/// Which function of the two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a b`
    Mul,
    /// `a / b`
    Div,
    /// 1 where `a == b`, else 0
    Equal,
}

/// Elementwise arithmetic of two tensors.
#[derive(Clone, Copy, Debug)]
pub struct Binary {
    /// Which function.
    pub kind: Kind,
}

/// Records `a + b`, broadcast.
///
/// # Errors
/// One of the two is not f32, or the shapes do not fit each other.
pub fn add(tape: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    push_one(tape, Binary { kind: Kind::Add }, &[a, b])
}

/// Records `a - b`, broadcast.
///
/// # Errors
/// As [`add`].
pub fn sub(tape: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    push_one(tape, Binary { kind: Kind::Sub }, &[a, b])
}

/// Records `a b`, element by element, broadcast.
///
/// # Errors
/// As [`add`].
pub fn mul(tape: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    push_one(tape, Binary { kind: Kind::Mul }, &[a, b])
}

/// Records `a / b`, element by element, broadcast.
///
/// # Errors
/// As [`add`].
pub fn div(tape: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    push_one(tape, Binary { kind: Kind::Div }, &[a, b])
}

/// Records 1 where `a == b` and 0 elsewhere, broadcast. Its gradient is zero.
///
/// # Errors
/// As [`add`].
pub fn equal(tape: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    push_one(tape, Binary { kind: Kind::Equal }, &[a, b])
}

/// Records `factor x`, with the factor baked into the recording.
///
/// # Errors
/// `x` is not f32.
pub fn scale(tape: &mut dyn Recorder, x: Var, factor: f32) -> Result<Var> {
    let factor = tape.fill(Shape::scalar(), factor);
    mul(tape, x, factor)
}

/// Records `x + value`, with the value baked into the recording.
///
/// # Errors
/// `x` is not f32.
pub fn offset(tape: &mut dyn Recorder, x: Var, value: f32) -> Result<Var> {
    let value = tape.fill(Shape::scalar(), value);
    add(tape, x, value)
}

impl Operation for Binary {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Add => "add",
            Kind::Sub => "sub",
            Kind::Mul => "mul",
            Kind::Div => "div",
            Kind::Equal => "equal",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        let shape = a.broadcast(b).map_err(|_| {
            Error::operation(self.name(), format!("shapes {a} and {b} do not fit each other"))
        })?;
        Ok(vec![TensorType::f32(shape)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::binary(self.kind, &inputs[0], &inputs[1], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.kind))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.kind)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let [a, b] = [rule.inputs[0], rule.inputs[1]];
        let shapes = [a, b].map(|input| rule.tape.tensor_type(input).shape.clone());
        let y = rule.outputs[0];
        for (i, shape) in shapes.iter().enumerate() {
            if !rule.needs(i) {
                continue;
            }
            let tape = &mut *rule.tape;
            let gradient = match (self.kind, i) {
                (Kind::Add, _) | (Kind::Sub, 0) => sum_to(tape, dy, shape)?,
                (Kind::Sub, _) => {
                    let sum = sum_to(tape, dy, shape)?;
                    scale(tape, sum, -1.0)?
                }
                (Kind::Mul, _) => {
                    let other = if i == 0 { b } else { a };
                    let product = times(tape, dy, other)?;
                    sum_to(tape, product, shape)?
                }
                (Kind::Div, 0) => {
                    let quotient = div(tape, dy, b)?;
                    sum_to(tape, quotient, shape)?
                }
                (Kind::Div, _) => {
                    let product = times(tape, dy, y)?;
                    let quotient = div(tape, product, b)?;
                    let sum = sum_to(tape, quotient, shape)?;
                    scale(tape, sum, -1.0)?
                }
                (Kind::Equal, _) => tape.fill(shape.clone(), 0.0),
            };
            rule.give(i, gradient)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.outputs[0].elements() as f64, site)
    }
}

/// `dy x`, of `dy`'s shape; `x` itself where `dy` is ones.
fn times(tape: &mut dyn Recorder, dy: Var, x: Var) -> Result<Var> {
    let same = tape.tensor_type(dy) == tape.tensor_type(x);
    if same && tape.is_fill(dy, 1.0) { Ok(x) } else { mul(tape, dy, x) }
}

fn case(kind: Kind, a: &[usize], b: &[usize]) -> Case {
    let op = Binary { kind };
    let name = format!("{}_{}_{}", op.name(), Shape::from(a), Shape::from(b));
    match kind {
        Kind::Equal => Case::new(name, op, Tolerance::Exact)
            .input(a, Fill::Integers)
            .input(b, Fill::Integers)
            .without_gradient(),
        Kind::Div => Case::new(name, op, Tolerance::Rounding(1.0))
            .input(a, Fill::Uniform(-1.0, 1.0))
            .input(b, Fill::Uniform(0.5, 2.0)),
        _ => Case::new(name, op, Tolerance::Rounding(1.0))
            .input(a, Fill::Uniform(-1.0, 1.0))
            .input(b, Fill::Uniform(-1.0, 1.0)),
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let pairs: [(&[usize], &[usize]); 22] = [
        (&[], &[]),
        (&[0], &[0]),
        (&[1], &[1]),
        (&[7], &[7]),
        (&[16], &[16]),
        (&[17], &[17]),
        (&[40_009], &[40_009]),
        (&[], &[33]),
        (&[10_007], &[1]),
        (&[5, 17], &[17]),
        (&[16], &[5, 16]),
        (&[5, 17], &[5, 1]),
        (&[5, 1], &[5, 17]),
        (&[5, 1], &[1, 17]),
        (&[0, 3], &[3]),
        (&[3, 1], &[1, 0]),
        (&[211, 97], &[97]),
        (&[97, 1], &[97, 211]),
        (&[3, 1, 5, 1], &[4, 1, 7]),
        (&[2, 3, 1, 9], &[1, 3, 4, 1]),
        (&[2, 3, 4, 5], &[3, 1, 1]),
        (&[3, 1, 1, 31], &[3, 5, 67, 31]),
    ];
    let kinds = [Kind::Add, Kind::Sub, Kind::Mul, Kind::Div, Kind::Equal];
    kinds.iter().flat_map(|&kind| pairs.iter().map(move |(a, b)| case(kind, a, b))).collect()
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let million = 1 << 20;
    let pairs: [(Kind, &[usize], &[usize]); 6] = [
        (Kind::Add, &[million], &[million]),
        (Kind::Mul, &[million], &[million]),
        (Kind::Div, &[million], &[million]),
        (Kind::Mul, &[million], &[]),
        (Kind::Add, &[128, 512], &[512]),
        (Kind::Mul, &[128, 512], &[128, 1]),
    ];
    pairs.map(|(kind, a, b)| case(kind, a, b)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let [a, b] = [TensorType::f32([2, 3]), TensorType::f32([4])];
        let error = Binary { kind: Kind::Div }.infer(&[a.clone(), b]).expect_err("3 against 4");
        assert_eq!(error.to_string(), "div: shapes [2, 3] and [4] do not fit each other");
        let labels = TensorType::u32([3]);
        let error = Binary { kind: Kind::Add }.infer(&[a, labels]).expect_err("u32");
        assert_eq!(error.to_string(), "add: input 1 is u32[3], not f32");
    }
}
