//! Functions of each element: `-x`, `e^x`, `log x`, `sqrt x`, `tanh x`, `sigmoid x`,
//! `max(x, 0)`, `x Phi(x)` (gelu, exact, by the error function) and `x sigmoid(x)` (silu).
//!
//! f32 of any shape. NaN gives NaN. As IEEE says: the logarithm of 0 is negative infinity, that of
//! a negative value and its square root are NaN. gelu and silu of negative infinity are NaN, as 0
//! times infinity is. Errors: [`crate::device::cpu::simd::math`]; none in `-x` and `max(x, 0)`, half
//! a unit in the last place in the square root. The gradient of `max(x, 0)` at 0 is 0.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod naive;

use super::unary_gradient::{self, unary_gradient};
use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, div, mul, push_one,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::Result;
use crate::tensor::TensorType;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// The natural logarithm.
    Log,
    /// The square root.
    Sqrt,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x Phi(x)`, with the distribution function of the normal distribution.
    Gelu,
    /// `x sigmoid(x)`
    Silu,
}

impl Kind {
    /// Floating-point operations of the kernel for one element, a fused multiply-add counted as
    /// two; comparisons, selections and bit operations are none.
    fn flops(self) -> f64 {
        match self {
            Kind::Neg | Kind::Sqrt | Kind::Relu => 1.0,
            Kind::Exp => 24.0,
            Kind::Log => 33.0,
            Kind::Tanh => 41.0,
            Kind::Sigmoid => 26.0,
            Kind::Gelu => 56.0,
            Kind::Silu => 27.0,
        }
    }
}

/// A function of each element.
#[derive(Clone, Copy, Debug)]
pub struct Unary {
    /// Which function.
    pub kind: Kind,
}

/// Records `-x`.
///
/// # Errors
/// `x` is not f32.
pub fn neg(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Neg }, &[x])
}

/// Records `e^x`.
///
/// # Errors
/// `x` is not f32.
pub fn exp(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Exp }, &[x])
}

/// Records the natural logarithm of `x`.
///
/// # Errors
/// `x` is not f32.
pub fn log(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Log }, &[x])
}

/// Records the square root of `x`.
///
/// # Errors
/// `x` is not f32.
pub fn sqrt(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Sqrt }, &[x])
}

/// Records the hyperbolic tangent of `x`.
///
/// # Errors
/// `x` is not f32.
pub fn tanh(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Tanh }, &[x])
}

/// Records `1 / (1 + e^-x)`.
///
/// # Errors
/// `x` is not f32.
pub fn sigmoid(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Sigmoid }, &[x])
}

/// Records `max(x, 0)`.
///
/// # Errors
/// `x` is not f32.
pub fn relu(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Relu }, &[x])
}

/// Records `x Phi(x) = x / 2 (1 + erf(x / sqrt 2))`.
///
/// # Errors
/// `x` is not f32.
pub fn gelu(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Gelu }, &[x])
}

/// Records `x sigmoid(x)`.
///
/// # Errors
/// `x` is not f32.
pub fn silu(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, Unary { kind: Kind::Silu }, &[x])
}

impl Operation for Unary {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Neg => "neg",
            Kind::Exp => "exp",
            Kind::Log => "log",
            Kind::Sqrt => "sqrt",
            Kind::Tanh => "tanh",
            Kind::Sigmoid => "sigmoid",
            Kind::Relu => "relu",
            Kind::Gelu => "gelu",
            Kind::Silu => "silu",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::unary(self.kind, &inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.kind))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site, self.kind))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        use unary_gradient::Kind as Of;
        let dy = rule.only_upstream()?;
        let (x, y) = (rule.inputs[0], rule.outputs[0]);
        let tape = &mut *rule.tape;
        let dx = match self.kind {
            Kind::Neg => neg(tape, dy)?,
            Kind::Exp if tape.is_fill(dy, 1.0) => y,
            Kind::Exp => mul(tape, dy, y)?,
            Kind::Log => div(tape, dy, x)?,
            Kind::Sqrt => unary_gradient(tape, Of::Sqrt, y, dy)?,
            Kind::Tanh => unary_gradient(tape, Of::Tanh, y, dy)?,
            Kind::Sigmoid => unary_gradient(tape, Of::Sigmoid, y, dy)?,
            Kind::Relu => unary_gradient(tape, Of::Relu, y, dy)?,
            Kind::Gelu => unary_gradient(tape, Of::Gelu, x, dy)?,
            Kind::Silu => unary_gradient(tape, Of::Silu, x, dy)?,
        };
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(self.kind.flops() * site.inputs[0].elements() as f64, site)
    }
}

fn case(kind: Kind, n: usize, low: f64, high: f64) -> Case {
    let op = Unary { kind };
    // A unit in the last place is up to two rounding errors.
    let tolerance = match kind {
        Kind::Neg | Kind::Relu => Tolerance::Exact,
        Kind::Sqrt => Tolerance::Rounding(1.0),
        _ => Tolerance::Rounding(6.0),
    };
    let name = format!("{}_{n}_{low}_to_{high}", op.name());
    Case::new(name, op, tolerance).input(&[n], Fill::Uniform(low, high))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, low, high) in [
        (Kind::Neg, -1.0, 1.0),
        (Kind::Exp, -5.0, 5.0),
        (Kind::Log, 0.01, 10.0),
        (Kind::Sqrt, 0.01, 10.0),
        (Kind::Tanh, -4.0, 4.0),
        (Kind::Sigmoid, -8.0, 8.0),
        (Kind::Gelu, -4.0, 4.0),
        (Kind::Silu, -8.0, 8.0),
    ] {
        cases.extend([0, 1, 7, 8, 17, 10_007].map(|n| case(kind, n, low, high)));
    }
    for n in [0, 1, 7, 8, 17] {
        cases.push(case(Kind::Relu, n, 0.1, 1.0));
        cases.push(case(Kind::Relu, n, -1.0, -0.1));
    }
    // Differences meet the kink in this one.
    cases.push(case(Kind::Relu, 10_007, -1.0, 1.0).without_gradient());
    // Tails.
    for (kind, low, high) in [
        (Kind::Exp, -100.0, -80.0),
        (Kind::Exp, 80.0, 88.0),
        (Kind::Log, 1e-44, 1e-38),
        (Kind::Tanh, -40.0, 40.0),
        (Kind::Sigmoid, -85.0, -60.0),
        (Kind::Gelu, -12.0, -8.0),
        (Kind::Gelu, 4.0, 100.0),
        (Kind::Silu, -80.0, -60.0),
    ] {
        cases.push(case(kind, 1009, low, high).without_gradient());
    }
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let kinds =
        [Kind::Exp, Kind::Log, Kind::Sqrt, Kind::Tanh, Kind::Sigmoid, Kind::Relu, Kind::Gelu];
    kinds.map(|kind| case(kind, 1 << 20, 0.5, 2.0)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_types_than_f32_are_refused() {
        let error = Unary { kind: Kind::Gelu }.infer(&[TensorType::u32([3])]).expect_err("u32");
        assert_eq!(error.to_string(), "gelu: input 0 is u32[3], not f32");
    }
}
