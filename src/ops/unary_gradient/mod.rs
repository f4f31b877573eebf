//! `dx = dy f'`, the gradient of a function of each element, in one pass.
//!
//! f32; `v` and `dy` have one shape. `v` is what the derivative is formed from: the function's
//! value `y` for the square root (`1 / 2y`), tanh (`(1 - y)(1 + y)`), the sigmoid (`y (1 - y)`) and
//! relu (1 where `y > 0`), so that `x` need not be kept; its argument `x` for gelu
//! (`Phi(x) + x phi(x)`) and silu (`s + x s (1 - s)`, `s` the sigmoid). Errors: some units of 2^-24 of the
//! largest value of `f'`, as `y` itself is rounded; where `f'` is small the relative error is
//! larger. It is differentiable again, in `v` and in `dy`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, div, exp, mul,
    offset, push_one, scale, sigmoid,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};

/// The function whose derivative it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The square root, from its value.
    Sqrt,
    /// The hyperbolic tangent, from its value.
    Tanh,
    /// The sigmoid, from its value.
    Sigmoid,
    /// `max(x, 0)`, from its value.
    Relu,
    /// gelu by the error function, from its argument.
    Gelu,
    /// silu, from its argument.
    Silu,
}

impl Kind {
    /// Floating-point operations of the kernel for one element, counted as for the functions.
    fn flops(self) -> f64 {
        match self {
            Kind::Sqrt => 2.0,
            Kind::Tanh => 4.0,
            Kind::Sigmoid => 3.0,
            Kind::Relu => 0.0,
            Kind::Gelu => 61.0,
            Kind::Silu => 33.0,
        }
    }
}

/// The gradient of a function of each element.
#[derive(Clone, Copy, Debug)]
pub struct UnaryGradient {
    /// The function.
    pub kind: Kind,
}

/// Records `dy f'`, with `v` the value or the argument of the function as [`Kind`] says.
///
/// # Errors
/// One of the two is not f32, or the shapes differ.
pub fn unary_gradient(tape: &mut dyn Recorder, kind: Kind, v: Var, dy: Var) -> Result<Var> {
    push_one(tape, UnaryGradient { kind }, &[v, dy])
}

impl Operation for UnaryGradient {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sqrt => "sqrt_gradient",
            Kind::Tanh => "tanh_gradient",
            Kind::Sigmoid => "sigmoid_gradient",
            Kind::Relu => "relu_gradient",
            Kind::Gelu => "gelu_gradient",
            Kind::Silu => "silu_gradient",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        if inputs[0] != inputs[1] {
            let problem = format!("{} and {} differ in shape", inputs[0], inputs[1]);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::unary_gradient(self.kind, &inputs[0].data, &inputs[1].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.kind))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site, self.kind))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let upstream = rule.only_upstream()?;
        let [v, dy] = [rule.inputs[0], rule.inputs[1]];
        if rule.needs(1) {
            // Linear in dy.
            let gradient = unary_gradient(rule.tape, self.kind, v, upstream)?;
            rule.give(1, gradient)?;
        }
        if rule.needs(0) {
            let tape = &mut *rule.tape;
            let second = derivative(tape, self.kind, v)?;
            let gradient = if tape.is_fill(second, 0.0) {
                second
            } else if tape.is_fill(upstream, 1.0) {
                mul(tape, dy, second)?
            } else if tape.is_fill(dy, 1.0) {
                mul(tape, upstream, second)?
            } else {
                let factor = mul(tape, upstream, dy)?;
                mul(tape, factor, second)?
            };
            rule.give(0, gradient)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(self.kind.flops() * site.inputs[0].elements() as f64, site)
    }
}

/// The derivative with respect to `v` of the factor of `dy`.
fn derivative(tape: &mut dyn Recorder, kind: Kind, v: Var) -> Result<Var> {
    match kind {
        // 1 / 2v: -1 / 2v^2
        Kind::Sqrt => {
            let half = tape.fill(Shape::scalar(), -0.5);
            let square = mul(tape, v, v)?;
            div(tape, half, square)
        }
        // 1 - v^2: -2v
        Kind::Tanh => scale(tape, v, -2.0),
        // v - v^2: 1 - 2v
        Kind::Sigmoid => {
            let double = scale(tape, v, -2.0)?;
            offset(tape, double, 1.0)
        }
        Kind::Relu => {
            let shape = tape.tensor_type(v).shape.clone();
            Ok(tape.fill(shape, 0.0))
        }
        // Phi + v phi: phi (2 - v^2)
        Kind::Gelu => {
            const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
            let square = mul(tape, v, v)?;
            let exponent = scale(tape, square, -0.5)?;
            let density = exp(tape, exponent)?;
            let minus = scale(tape, square, -1.0)?;
            let rest = offset(tape, minus, 2.0)?;
            let product = mul(tape, density, rest)?;
            scale(tape, product, INVERSE_SQRT_2PI)
        }
        // s + v s (1 - s): s (1 - s) (2 + v (1 - 2s))
        Kind::Silu => {
            let s = sigmoid(tape, v)?;
            let minus = scale(tape, s, -1.0)?;
            let rest = offset(tape, minus, 1.0)?;
            let slope = mul(tape, s, rest)?;
            let double = scale(tape, s, -2.0)?;
            let skew = offset(tape, double, 1.0)?;
            let bend = mul(tape, v, skew)?;
            let bend = offset(tape, bend, 2.0)?;
            mul(tape, slope, bend)
        }
    }
}

fn case(kind: Kind, n: usize, low: f64, high: f64) -> Case {
    let op = UnaryGradient { kind };
    let tolerance = match kind {
        Kind::Relu => Tolerance::Exact,
        Kind::Sqrt => Tolerance::Rounding(2.0),
        _ => Tolerance::Rounding(6.0),
    };
    let name = format!("{}_{n}_{low}_to_{high}", op.name());
    Case::new(name, op, tolerance)
        .input(&[n], Fill::Uniform(low, high))
        .input(&[n], Fill::Uniform(-1.0, 1.0))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, low, high) in [
        (Kind::Sqrt, 0.1, 3.0),
        (Kind::Tanh, -1.0, 1.0),
        (Kind::Sigmoid, 0.0, 1.0),
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
    cases.push(case(Kind::Gelu, 1009, -16.0, -5.0).without_gradient());
    cases.push(case(Kind::Gelu, 1009, 4.0, 100.0).without_gradient());
    cases.push(case(Kind::Silu, 1009, -60.0, -20.0).without_gradient());
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [Kind::Tanh, Kind::Relu, Kind::Gelu, Kind::Silu]
        .map(|kind| case(kind, 1 << 20, 0.1, 0.9))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_differ_are_named() {
        let op = UnaryGradient { kind: Kind::Relu };
        let error = op.infer(&[TensorType::f32([3]), TensorType::f32([1])]).expect_err("3 and 1");
        assert_eq!(error.to_string(), "relu_gradient: f32[3] and f32[1] differ in shape");
    }
}
