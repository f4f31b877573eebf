//! `y = act(x W + b)`: a product with bias and activation in one pass. f32.
//!
//! Shapes: `x` is \[.., in\] of rank 1 or more, `W` \[in, out\] row-major, `b` \[out\], `y` \[.., out\];
//! any extent may be 0, and with `in = 0` the result is `act(b)`. For GELU and SiLU there is a second
//! output, `z = x W + b`, which the gradient reads; it is computed only if somebody does. ReLU and tanh
//! take their derivative from `y`. NaN and infinity go where IEEE arithmetic takes them (ReLU keeps
//! NaN).
//! Error: that of the sum of `in` products (see [`mod@super::matmul`]), one rounding for the bias, and a
//! few units in the last place of the activation.
//! Sources: GELU, D. Hendrycks and K. Gimpel, arXiv 1606.08415 (with the error function, not the
//! tanh form); SiLU, S. Elfwing et al., arXiv 1702.03118.
//!
//! Gradient: `dz, db` in one pass by `activation_backward` (without an activation `dz` is `dy`, and
//! `db` a sum), then `dx = dz W^T` and `dW = x^T dz`.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

pub(super) use naive::derivative;

use super::activation_backward::of_product;
use super::matmul::cpu::Others;
use super::matmul::{Products, as_matrix, matmul_in, matmul_packed, without};
use super::unary::{Kind, Unary};
use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, activation_backward,
    add, reshape, sum,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::gemm::{Precision, Spec};
use crate::tensor::TensorType;
use std::fmt;
use std::sync::Arc;

/// The function after a linear map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(z, 0)`; its derivative at 0 is 0.
    Relu,
    /// `z Phi(z)`, with the distribution function of the normal distribution.
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
    /// `z / (1 + e^-z)`, also called swish.
    Silu,
}

impl Activation {
    /// Whether the derivative is taken from the function's argument rather than from its value.
    pub fn needs_argument(self) -> bool {
        matches!(self, Activation::Gelu | Activation::Silu)
    }

    /// The operation that applies it to each element; `None` for the identity.
    fn unary(self) -> Option<Unary> {
        let kind = match self {
            Activation::None => return None,
            Activation::Relu => Kind::Relu,
            Activation::Gelu => Kind::Gelu,
            Activation::Tanh => Kind::Tanh,
            Activation::Silu => Kind::Silu,
        };
        Some(Unary { kind })
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::None => "none",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::Tanh => "tanh",
            Activation::Silu => "silu",
        })
    }
}

/// The operation `linear`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    activation: Activation,
    precision: Precision,
    /// Whether input 2 is a bias.
    bias: bool,
    /// Whether the last two inputs are W packed for this product, and for that of the gradient.
    packed: bool,
}

impl Linear {
    /// Which inputs there are beside `x` and `W`.
    fn others(&self) -> Others {
        let packed = 2 + usize::from(self.bias);
        Others { bias: self.bias.then_some(2), packed: self.packed.then_some(packed), saved: None }
    }
}

/// Records `activation(x w + bias)`: `x` is \[.., in\], `w` \[in, out\], `bias` \[out\].
///
/// # Errors
/// The shapes do not fit each other, or a tensor is not f32.
pub fn linear(
    tape: &mut dyn Recorder,
    x: Var,
    w: Var,
    bias: Option<Var>,
    activation: Activation,
) -> Result<Var> {
    linear_in(tape, Precision::F32, x, Weight { values: w, packed: None }, bias, activation)
}

/// A weight, and where they are kept its copies packed for `x W` and for `dy W^T`
/// ([`crate::gemm::PackedWeights`]).
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// W \[in, out\], f32.
    pub(crate) values: Var,
    /// The copies, flat: right for the machine and the precision, and up to date.
    pub(crate) packed: Option<[Var; 2]>,
}

impl From<Var> for Weight {
    /// W \[in, out\], f32, without copies.
    fn from(values: Var) -> Weight {
        Weight { values, packed: None }
    }
}

/// The same in another precision. Products are in that precision, in the gradients too; bias,
/// activation and results are f32. Layers have packed weights (`nn::Forward::weight`).
///
/// # Errors
/// As [`linear`].
pub fn linear_in(
    tape: &mut dyn Recorder,
    precision: Precision,
    x: Var,
    weight: Weight,
    bias: Option<Var>,
    activation: Activation,
) -> Result<Var> {
    let op = Linear { activation, precision, bias: bias.is_some(), packed: weight.packed.is_some() };
    let packed = weight.packed.into_iter().flatten();
    let inputs: Vec<Var> = [x, weight.values].into_iter().chain(bias).chain(packed).collect();
    Ok(tape.push(Arc::new(op), &inputs)?[0])
}

/// The product of tensors whose types `infer` has checked.
fn products(op: &Linear, x: &TensorType, w: &TensorType) -> Products {
    let spec = Spec::new(x.shape.rows(), w.shape.columns(), w.shape.rows());
    Products { batches: 1, spec: spec.in_precision(op.precision) }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let count = 2 + usize::from(self.bias);
        let operands = if self.packed { &inputs[..inputs.len().min(count)] } else { inputs };
        super::expect_f32(self.name(), operands, count)?;
        let (x, w) = (&inputs[0].shape, &inputs[1].shape);
        let bias = operands.get(2);
        let bias_fits = bias.is_none_or(|bias| bias.shape.extents() == [w.columns()]);
        if x.rank() == 0 || w.rank() != 2 || x.columns() != w.rows() || !bias_fits {
            let bias = bias.map_or(String::new(), |bias| format!(" + {}", bias.shape));
            let problem = format!("{x} times {w}{bias} does not fit: it takes [.., in], [in, out] and [out]");
            return Err(Error::operation(self.name(), problem));
        }
        let mut extents = x.extents().to_vec();
        extents.pop();
        extents.push(w.columns());
        let outputs = if self.activation.needs_argument() { 2 } else { 1 };
        Ok(vec![TensorType::f32(extents); outputs])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let products = products(self, &inputs[0].tensor_type, &inputs[1].tensor_type);
        let operands = &inputs[..2 + usize::from(self.bias)];
        naive::linear(self.activation, &products, operands, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        let products = products(self, &site.inputs[0], &site.inputs[1]);
        Some(cpu::launch(site, products, self.activation, self.others()))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        let products = products(self, &site.inputs[0], &site.inputs[1]);
        cuda::launch(site, products, self.activation, self.others())
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let (x, w, precision) = (rule.inputs[0], rule.inputs[1], self.precision);
        let of_argument = self.activation.needs_argument().then(|| rule.upstream(1)).flatten();
        let (mut dz, mut db) = match (rule.upstream(0), self.activation) {
            (None, _) => (None, None),
            (Some(dy), Activation::None) => (Some(dy), None),
            (Some(dy), activation) => {
                let saved = rule.outputs[usize::from(activation.needs_argument())];
                let (dz, db) = match rule.owns_upstream(0) {
                    true => of_product(rule.tape, dy, saved, activation)?,
                    false => activation_backward(rule.tape, dy, saved, activation)?,
                };
                (Some(dz), Some(db))
            }
        };
        // The loss depends on z itself where a first gradient did.
        if let Some(more) = of_argument {
            db = None;
            dz = Some(match dz {
                Some(dz) => add(rule.tape, dz, more)?,
                None => more,
            });
        }
        let Some(dz) = dz else { return Ok(()) };
        let dz = as_matrix(rule.tape, dz)?;
        if rule.needs(0) {
            let shape = rule.tape.tensor_type(x).shape.clone();
            let dx = match self.others().packed {
                Some(packed) => {
                    matmul_packed(rule.tape, precision, dz, w, rule.inputs[packed + 1])?
                }
                None => matmul_in(rule.tape, precision, dz, w, false, true)?,
            };
            let dx = reshape(rule.tape, dx, shape)?;
            rule.give(0, dx)?;
        }
        if rule.needs(1) {
            let x = as_matrix(rule.tape, x)?;
            let dw = matmul_in(rule.tape, precision, x, dz, true, false)?;
            rule.give(1, dw)?;
        }
        if self.bias && rule.needs(2) {
            let db = match db {
                Some(db) => db,
                None => sum(rule.tape, dz, &[0], false)?,
            };
            rule.give(2, db)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let Spec { m, n, k, .. } = products(self, &site.inputs[0], &site.inputs[1]).spec;
        let bias = f64::from(u8::from(self.bias));
        let z = Site { inputs: &site.outputs[..1], ..*site };
        let activation = match self.activation.unary() {
            Some(unary) if site.used[0] => unary.cost(&z).flops,
            _ => 0.0,
        };
        let flops = m as f64 * n as f64 * (2.0 * k as f64 + bias) + activation;
        match self.others().packed {
            // Neither W itself nor the copy for the gradient is read.
            Some(packed) => {
                let cost = without(1, flops, site);
                Cost { bytes: cost.bytes - site.inputs[packed + 1].bytes() as f64, ..cost }
            }
            None => Cost::of(flops, site),
        }
    }
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::Tanh,
    Activation::Silu,
];

fn case(
    rows: &[usize],
    [inner, out]: [usize; 2],
    bias: bool,
    activation: Activation,
    fill: Fill,
) -> Case {
    let exact = fill == Fill::Integers && !matches!(activation, Activation::Tanh)
        && !activation.needs_argument();
    let tolerance =
        if exact { Tolerance::Exact } else { Tolerance::Accumulation(inner.max(1)) };
    let rows_name: String = rows.iter().map(|extent| format!("{extent}x")).collect();
    let bias_name = if bias { "_bias" } else { "" };
    let name = format!("{activation}_{rows_name}{inner}x{out}{bias_name}");
    let op = Linear { activation, precision: Precision::F32, bias, packed: false };
    let case = Case::new(name, op, tolerance)
        .input(&[rows, &[inner]].concat(), fill)
        .input(&[inner, out], fill);
    if bias { case.input(&[out], fill) } else { case }
}

/// A case in bf16. Rounding has no derivative.
fn case_bf16(rows: usize, [inner, out]: [usize; 2], activation: Activation) -> Case {
    let name = format!("{activation}_{rows}x{inner}x{out}_bias_bf16");
    let op = Linear { activation, precision: Precision::Bf16, bias: true, packed: false };
    let fill = Fill::Uniform(-1.0, 1.0);
    let case = Case::new(name, op, Tolerance::Accumulation(inner.max(1)));
    let case = case.input(&[rows, inner], fill).input(&[inner, out], fill).input(&[out], fill);
    case.without_gradient()
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for activation in ACTIVATIONS {
        // Integers would put z on the kink of ReLU; positive values and a positive bias keep off it.
        let smooth = match activation {
            Activation::Relu => Fill::Uniform(0.1, 1.0),
            _ => Fill::Uniform(-1.0, 1.0),
        };
        for bias in [false, true] {
            for (rows, sizes) in [
                (&[][..], [3, 5]),
                (&[0], [3, 2]),
                (&[4], [3, 0]),
                (&[1], [1, 1]),
                (&[2, 7], [5, 17]),
                (&[31], [64, 33]),
                (&[131], [61, 129]),
            ] {
                cases.push(case(rows, sizes, bias, activation, smooth));
            }
            let integers = case(&[29], [19, 35], bias, activation, Fill::Integers);
            cases.push(integers.without_gradient());
        }
        // Without inner terms z is the bias; a split K.
        cases.push(case(&[5], [0, 19], true, activation, Fill::Uniform(0.1, 1.0)));
        let split = case(&[10], [4099, 17], true, activation, Fill::Uniform(-0.1, 0.1));
        cases.push(split.without_gradient());
    }
    for activation in ACTIVATIONS {
        cases.push(case_bf16(31, [64, 33], activation));
        cases.push(case_bf16(131, [61, 129], activation));
    }
    cases
}

/// Benchmark cases: the layers of `mlp64`, `mlp` and `mlp2048` at batch 128.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let relu = [[64, 64], [784, 512], [512, 512], [784, 2048], [2048, 2048]];
    let last = [[64, 10], [512, 10], [2048, 10]];
    let uniform = Fill::Uniform(-1.0, 1.0);
    let with = |activation: Activation| {
        move |sizes: &[usize; 2]| case(&[128], *sizes, true, activation, uniform)
    };
    let mut cases: Vec<Case> = relu.iter().map(with(Activation::Relu)).collect();
    cases.extend(last.iter().map(with(Activation::None)));
    cases.push(case(&[1024], [768, 3072], true, Activation::Gelu, uniform));
    cases.extend(relu.iter().map(|sizes| case_bf16(128, *sizes, Activation::Relu)));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn shapes_fit() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let x = tape.input("x", [4, 3]).expect("input");
        let w = tape.input("w", [3, 2]).expect("input");
        let b = tape.input("b", [3]).expect("input");
        let error = linear(&mut tape, x, w, Some(b), Activation::Relu).expect_err("bias of 3");
        assert!(error.to_string().contains("[4, 3] times [3, 2] + [3]"), "{error}");
        let error = linear(&mut tape, w, x, None, Activation::Relu).expect_err("2 with 4");
        assert!(error.to_string().contains("[3, 2] times [4, 3]"), "{error}");
    }

    /// z is neither stored nor computed apart unless the gradient is recorded.
    #[test]
    fn the_argument_is_kept_only_for_a_gradient() {
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let bytes = |backward: bool| {
            let mut tape = Tape::new(&store);
            let x = tape.input("x", [64, 64]).expect("input");
            let w = tape.input("w", [64, 64]).expect("input");
            let y = linear(&mut tape, x, w, None, Activation::Gelu).expect("linear");
            tape.output(y).expect("output");
            if backward {
                let dw = tape.vector_jacobian(&[(y, y)], &[w]).expect("gradient")[0];
                tape.output(dw).expect("output");
            }
            let recording = tape.compile(&store).expect("compile");
            recording.nodes()[0].cost.bytes
        };
        let matrix = 64.0 * 64.0 * 4.0;
        assert_eq!(bytes(false), 3.0 * matrix);
        assert_eq!(bytes(true), 4.0 * matrix);
    }
}
