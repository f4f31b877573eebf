//! `C = op(A) op(B)` for matrices and batches of them. f32.
//!
//! Shapes: `A` is \[.., m, k\], or \[.., k, m\] with `transpose_a`; `B` is \[.., k, n\], or \[.., n, k\]
//! with `transpose_b`; `C` is \[.., m, n\]. Leading axes of `A` and `B` are equal, or `B` has rank 2
//! and serves every batch: then the leading axes of `A` are taken as further rows, and the whole is
//! one product.
//! `m`, `n`, `k` and the number of batches may be 0; with `k = 0` the product is zeros. NaN and
//! infinity go where IEEE arithmetic takes them.
//! Error: each element is a sum of `k` products in f32 whose order depends on the shapes and the
//! instruction set alone; at most about `k eps |A| |B|` (Higham, Accuracy and Stability of
//! Numerical Algorithms, section 3.5).
//!
//! A product may end with a mask, `C = op(A) op(B) act'(saved)`: what comes back through a product and
//! the activation before it, as [`mod@super::activation_backward`] has it of a product of its own.
//! `saved` is as large as `C`.
//!
//! A single product is cut into the phases of [`crate::gemm::Plan`]. Of many small ones each is
//! done by one thread. The gradients are products again: `dA = dC op(B)^T`, `dB = op(A)^T dC`.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(feature = "cuda")]
mod hopper;
pub(super) mod naive;

use super::linear::{Activation, derivative};
use super::{
    Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, activation_backward,
    push_one, reshape, transpose,
};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::{Launches, Place};
use crate::error::{Error, Result};
use crate::gemm::{Precision, Spec, Transpose};
use cpu::Others;
use crate::tensor::{DType, Shape, TensorType};
use std::any::Any;

/// The operation `matmul`.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    transpose_a: bool,
    transpose_b: bool,
    precision: Precision,
    /// Whether there is a third input: the second one, packed for this product.
    packed: bool,
    /// Unless there is none, the last input is what the derivative of this activation is taken of.
    mask: Activation,
}

/// Records `op(a) op(b)`: `a` is \[.., m, k\] (\[.., k, m\] with `transpose_a`), `b` is \[.., k, n\]
/// (\[.., n, k\] with `transpose_b`) with the same leading axes or of rank 2, the result is
/// \[.., m, n\].
///
/// # Errors
/// A rank is below 2, the inner extents or the leading axes differ, or a tensor is not f32.
pub fn matmul(
    tape: &mut dyn Recorder,
    a: Var,
    b: Var,
    transpose_a: bool,
    transpose_b: bool,
) -> Result<Var> {
    matmul_in(tape, Precision::F32, a, b, transpose_a, transpose_b)
}

/// The same in another precision. Gradients are products in that precision too.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_in(
    tape: &mut dyn Recorder,
    precision: Precision,
    a: Var,
    b: Var,
    transpose_a: bool,
    transpose_b: bool,
) -> Result<Var> {
    let plain = Matmul { transpose_a: false, transpose_b, precision, packed: false, mask: Activation::None };
    let op = |transpose_a| Matmul { transpose_a, ..plain };
    let (rank_a, rank_b) = (tape.tensor_type(a).shape.rank(), tape.tensor_type(b).shape.rank());
    if transpose_a && rank_a > 2 && rank_b == 2 {
        // Rows of all batches can be folded only where they follow one another.
        let mut perm: Vec<usize> = (0..rank_a).collect();
        perm.swap(rank_a - 2, rank_a - 1);
        let a = transpose(tape, a, &perm)?;
        return push_one(tape, op(false), &[a, b]);
    }
    push_one(tape, op(transpose_a), &[a, b])
}

/// Records `a b^T`, where `packed` is `b` as [`crate::gemm::PackedWeights`] has it for this product.
///
/// # Errors
/// As [`matmul`].
pub(super) fn matmul_packed(
    tape: &mut dyn Recorder,
    precision: Precision,
    a: Var,
    b: Var,
    packed: Var,
) -> Result<Var> {
    let mask = Activation::None;
    let op = Matmul { transpose_a: false, transpose_b: true, precision, packed: true, mask };
    push_one(tape, op, &[a, b, packed])
}

/// Whether `op` is `a^T b` of two matrices, as gradients of weights are, and how it is computed.
pub(crate) fn is_transposed_product(op: &dyn Operation, inputs: &[TensorType]) -> Option<Precision> {
    let op: &dyn Any = op;
    let &Matmul { transpose_a, transpose_b, precision, packed, mask } = op.downcast_ref()?;
    let matrices = inputs.iter().all(|input| input.shape.rank() == 2);
    let plain = !packed && mask == Activation::None;
    (transpose_a && !transpose_b && plain && matrices).then_some(precision)
}

/// Records `dy act'(saved)` with the product that `dy` is, if it is one.
///
/// # Errors
/// The shapes differ.
pub(super) fn with_mask(
    tape: &mut dyn Recorder,
    dy: Var,
    saved: Var,
    mask: Activation,
) -> Result<Option<Var>> {
    let Some((op, mut inputs)) = tape.computed_by(dy) else { return Ok(None) };
    let op: &dyn Any = &*op;
    let Some(&op) = op.downcast_ref::<Matmul>().filter(|op| op.mask == Activation::None) else {
        return Ok(None);
    };
    inputs.push(saved);
    push_one(tape, Matmul { mask, ..op }, &inputs).map(Some)
}

/// As many products as `batches`, each of `spec`, of matrices that lie one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Products {
    pub(super) batches: usize,
    pub(super) spec: Spec,
}

/// `[.., rows, columns]` without the matrix.
fn leading(shape: &Shape) -> &[usize] {
    &shape.extents()[..shape.rank() - 2]
}

/// Rows and columns of the matrix or matrices of a tensor.
fn matrix(shape: &Shape) -> (usize, usize) {
    let extents = shape.extents();
    (extents[extents.len() - 2], extents[extents.len() - 1])
}

impl Matmul {
    /// Which inputs there are beside A and B.
    fn others(&self) -> Others {
        let saved = 2 + usize::from(self.packed);
        Others {
            bias: None,
            packed: self.packed.then_some(2),
            saved: (self.mask != Activation::None).then_some(saved),
        }
    }

    fn products(&self, a: &Shape, b: &Shape) -> Result<Products> {
        let wrong = |what: &str| {
            let of = |transposed| if transposed { " transposed" } else { "" };
            let (ta, tb) = (of(self.transpose_a), of(self.transpose_b));
            Error::operation(self.name(), format!("{what} in {a}{ta} times {b}{tb}"))
        };
        if a.rank() < 2 || b.rank() < 2 {
            return Err(wrong("there are no rows and columns"));
        }
        let fold = b.rank() == 2 && !self.transpose_a;
        if !fold && leading(a) != leading(b) {
            return Err(wrong("leading axes differ"));
        }
        let (batches, rows) = if fold { (1, a.rows()) } else { (batches(a), matrix(a).0) };
        let (m, inner_a) =
            if self.transpose_a { (matrix(a).1, rows) } else { (rows, matrix(a).1) };
        let (inner_b, n) = match matrix(b) {
            (rows, columns) if self.transpose_b => (columns, rows),
            shape => shape,
        };
        if inner_a != inner_b {
            return Err(wrong("inner extents differ"));
        }
        let stored = |transposed| if transposed { Transpose::Yes } else { Transpose::No };
        let (a, b) = (stored(self.transpose_a), stored(self.transpose_b));
        let spec = Spec { a, b, precision: self.precision, ..Spec::new(m, n, inner_a) };
        Ok(Products { batches, spec })
    }

    /// The products of a site, whose types `infer` has checked.
    fn known(&self, a: &Shape, b: &Shape) -> Products {
        match self.products(a, b) {
            Ok(products) => products,
            Err(error) => panic!("infer let it pass: {error}"),
        }
    }
}

fn batches(shape: &Shape) -> usize {
    leading(shape).iter().product()
}

impl Operation for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let others = self.others();
        let count = inputs.len().min(2);
        super::expect_f32(self.name(), &inputs[..count], 2)?;
        if inputs.len() != 2 + usize::from(self.packed) + usize::from(others.saved.is_some()) {
            let problem = format!("{self:?} does not take {} inputs", inputs.len());
            return Err(Error::operation(self.name(), problem));
        }
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        let Spec { n, .. } = self.products(a, b)?.spec;
        let m = if self.transpose_a { matrix(a).1 } else { matrix(a).0 };
        let mut extents = leading(a).to_vec();
        extents.extend([m, n]);
        let c = TensorType::f32(extents);
        if let Some(saved) = others.saved.map(|saved| &inputs[saved])
            && *saved != c
        {
            let problem = format!("takes the derivative of an activation of {saved} for {c}");
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![c])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        let products = self.known(&inputs[0].tensor_type.shape, &inputs[1].tensor_type.shape);
        naive::matmul(&products, &inputs[0].data, &inputs[1].data, &mut outputs[0].data);
        if let Some(saved) = self.others().saved {
            for (c, &saved) in outputs[0].data.iter_mut().zip(&inputs[saved].data) {
                *c *= derivative(self.mask, saved);
            }
        }
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        let products = self.known(&site.inputs[0].shape, &site.inputs[1].shape);
        Some(cpu::launch(site, products, 0, self.others(), cpu::masking(site, self.mask)))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        let products = self.known(&site.inputs[0].shape, &site.inputs[1].shape);
        let Others { packed: None, saved, .. } = self.others() else { return None };
        let saved = saved.map_or(Place::Null, Place::Input);
        let epilogue = cuda::Epilogue { saved, mask: self.mask, ..cuda::Epilogue::to(Place::Output(0)) };
        let mut launches = Launches::new();
        let operands = [Place::Input(0), Place::Input(1)];
        cuda::product(&mut launches, site.target, products, operands, &epilogue)?;
        Some(launches)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let mut dc = rule.only_upstream()?;
        let (a, b) = (rule.inputs[0], rule.inputs[1]);
        let Matmul { transpose_a, transpose_b, precision, .. } = *self;
        if let Some(saved) = self.others().saved {
            if rule.needs(saved) {
                let c = matmul_in(rule.tape, precision, a, b, transpose_a, transpose_b)?;
                let gradient = super::activation_backward::of_saved(rule, [c, rule.inputs[saved]], dc, self.mask)?;
                rule.give(saved, gradient)?;
            }
            dc = activation_backward(rule.tape, dc, rule.inputs[saved], self.mask)?.0;
        }
        if rule.needs(0) {
            let da = match transpose_a {
                false => matmul_in(rule.tape, precision, dc, b, false, !transpose_b)?,
                true => matmul_in(rule.tape, precision, b, dc, transpose_b, true)?,
            };
            rule.give(0, da)?;
        }
        if rule.needs(1) {
            let (a, dc) = match rule.tape.tensor_type(b).shape.rank() {
                2 => (as_matrix(rule.tape, a)?, as_matrix(rule.tape, dc)?),
                _ => (a, dc),
            };
            let db = match transpose_b {
                false => matmul_in(rule.tape, precision, a, dc, !transpose_a, false)?,
                true => matmul_in(rule.tape, precision, dc, a, true, transpose_a)?,
            };
            rule.give(1, db)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let Products { batches, spec } =
            self.known(&site.inputs[0].shape, &site.inputs[1].shape);
        let mut flops = batches as f64 * spec.flops() as f64;
        if let Some(saved) = self.others().saved {
            let of_mask = Site { inputs: &[site.outputs[0].clone(), site.inputs[saved].clone()], ..*site };
            flops += super::activation_backward::flops(self.mask, &of_mask);
        }
        if self.packed {
            return without(1, flops, site);
        }
        Cost::of(flops, site)
    }
}

/// The cost of a node that does not read input `i`.
pub(super) fn without(i: usize, flops: f64, site: &Site<'_>) -> Cost {
    let all = Cost::of(flops, site);
    Cost { bytes: all.bytes - site.inputs[i].bytes() as f64, ..all }
}

/// `x` seen as a matrix: all axes but the last are its rows.
///
/// # Errors
/// None are expected: the number of elements stays.
pub(super) fn as_matrix(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let shape = &tape.tensor_type(x).shape;
    let matrix = [shape.rows(), shape.columns()];
    reshape(tape, x, matrix)
}

/// A case of the product with `m x n x k` and these leading axes of A, and of B if it is not shared.
fn case(
    [m, n, k]: [usize; 3],
    (transpose_a, transpose_b): (bool, bool),
    leading: &[usize],
    shared: bool,
    fill: Fill,
) -> Case {
    let letter = |transposed| if transposed { "t" } else { "n" };
    let batch: String = leading.iter().map(|extent| format!("{extent}x")).collect();
    let kind = if shared { "_shared" } else { "" };
    let name =
        format!("{}{}_{batch}{m}x{n}x{k}{kind}", letter(transpose_a), letter(transpose_b));
    let tolerance = match fill {
        Fill::Integers => Tolerance::Exact,
        _ => Tolerance::Accumulation(k),
    };
    let with = |leading: &[usize], transposed: bool, rows: usize, columns: usize| {
        let matrix = if transposed { [columns, rows] } else { [rows, columns] };
        [leading, &matrix[..]].concat()
    };
    let a = with(leading, transpose_a, m, k);
    let b = with(if shared { &[] } else { leading }, transpose_b, k, n);
    let mask = Activation::None;
    let op = Matmul { transpose_a, transpose_b, precision: Precision::F32, packed: false, mask };
    Case::new(name, op, tolerance).input(&a, fill).input(&b, fill)
}

/// A case in bf16. Rounding has no derivative.
fn case_bf16([m, n, k]: [usize; 3], (transpose_a, transpose_b): (bool, bool), fill: Fill) -> Case {
    let letter = |transposed| if transposed { "t" } else { "n" };
    let name = format!("{}{}_{m}x{n}x{k}_bf16", letter(transpose_a), letter(transpose_b));
    let tolerance = match fill {
        Fill::Integers => Tolerance::Exact,
        _ => Tolerance::Accumulation(k),
    };
    let mask = Activation::None;
    let op = Matmul { transpose_a, transpose_b, precision: Precision::Bf16, packed: false, mask };
    let shape = |transposed, rows, columns| if transposed { [columns, rows] } else { [rows, columns] };
    let a = shape(transpose_a, m, k);
    let b = shape(transpose_b, k, n);
    Case::new(name, op, tolerance).input(&a, fill).input(&b, fill).without_gradient()
}

/// A case with a mask.
fn case_masked(size: [usize; 3], storage: (bool, bool), leading: &[usize], mask: Activation) -> Case {
    let plain = case(size, storage, leading, false, Fill::Uniform(-1.0, 1.0));
    let op = Matmul {
        transpose_a: storage.0,
        transpose_b: storage.1,
        precision: Precision::F32,
        packed: false,
        mask,
    };
    let [m, n, k] = size;
    let mut masked = Case::new(format!("{}_{mask}", plain.name), op, Tolerance::Accumulation(k.max(1)));
    masked.inputs = plain.inputs;
    let shape = [leading, &[m, n]].concat();
    match mask {
        // Differences could meet the kink.
        Activation::Relu => masked.fixed(&shape, DType::F32, Fill::Uniform(-1.0, 1.0)),
        _ => masked.input(&shape, Fill::Uniform(-1.0, 1.0)),
    }
}

const STORAGES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let uniform = Fill::Uniform(-1.0, 1.0);
    let mut cases = Vec::new();
    for storage in STORAGES {
        let sizes = [
            [0, 3, 2],
            [3, 0, 2],
            [2, 3, 0],
            [1, 1, 1],
            [5, 7, 3],
            [13, 31, 17],
            [14, 32, 16],
            [15, 33, 64],
            [61, 10, 67],
        ];
        for size in sizes {
            cases.push(case(size, storage, &[], false, Fill::Integers));
        }
        cases.push(case([67, 97, 89], storage, &[], false, uniform));
        // Several tiles; a split K.
        cases.push(case([129, 131, 127], storage, &[], false, uniform));
        cases.push(case([10, 17, 4099], storage, &[], false, uniform).without_gradient());
        for (leading, size) in
            [(&[0][..], [2, 3, 4]), (&[3], [2, 3, 0]), (&[2, 5], [9, 17, 6]), (&[37], [16, 16, 23])]
        {
            cases.push(case(size, storage, leading, false, Fill::Integers));
        }
        // Batches of several tiles each.
        cases.push(case([97, 127, 96], storage, &[3], false, uniform));
    }
    for mask in [Activation::Relu, Activation::Gelu, Activation::Tanh, Activation::Silu] {
        for (size, leading) in [
            ([3, 5, 1], &[][..]),
            ([0, 3, 2], &[]),
            ([3, 2, 0], &[]),
            ([31, 65, 17], &[]),
            ([129, 131, 64], &[]),
            ([9, 17, 6], &[2, 5]),
            ([16, 16, 23], &[17]),
            // Several tiles of several products; K in several blocks.
            ([97, 127, 96], &[3]),
            ([40, 70, 700], &[]),
        ] {
            cases.push(case_masked(size, (false, true), leading, mask));
        }
        let batched = case_masked([10, 17, 4099], (true, false), &[2], mask);
        cases.push(batched.without_gradient());
        cases.push(case_masked([33, 14, 21], (true, false), &[], mask));
        // A split K.
        let split = case_masked([10, 17, 4099], (false, true), &[], mask);
        cases.push(split.without_gradient());
    }
    for storage in [(false, false), (false, true)] {
        cases.push(case([7, 10, 5], storage, &[2, 3], true, Fill::Integers));
        cases.push(case([2, 3, 5], storage, &[0], true, Fill::Integers));
        cases.push(case([29, 33, 31], storage, &[4], true, uniform));
    }
    for storage in STORAGES {
        for size in [[0, 3, 2], [1, 1, 1], [2, 3, 0], [15, 33, 65], [61, 10, 67]] {
            cases.push(case_bf16(size, storage, Fill::Integers));
        }
        cases.push(case_bf16([129, 131, 127], storage, uniform));
        cases.push(case_bf16([10, 17, 4099], storage, uniform));
    }
    cases
}

/// Benchmark cases: the products of `mlp64`, `mlp` and `mlp2048` at batch 128, forward (nn), dX (nt)
/// and dW (tn), and those of 12 heads of attention.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let uniform = Fill::Uniform(-1.0, 1.0);
    let layers = [(64, 64), (64, 10), (784, 512), (512, 512), (512, 10)];
    let wide = [(784, 2048), (2048, 2048), (2048, 10)];
    let mut cases = Vec::new();
    for (k, n) in layers.into_iter().chain(wide) {
        let products =
            [([128, n, k], (false, false)), ([128, k, n], (false, true)), ([k, n, 128], (true, false))];
        for (size, storage) in products {
            cases.push(case(size, storage, &[], false, uniform));
            cases.push(case_bf16(size, storage, uniform));
        }
    }
    cases.push(case([256, 256, 64], (false, true), &[8, 12], false, uniform));
    cases.push(case([256, 64, 256], (false, false), &[8, 12], false, uniform));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn shapes_fit() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let mut input =
            |name: &str, shape: &[usize]| (tape.input(name, shape).expect("input"), shape.to_vec());
        let (a, b) = (input("a", &[2, 3, 5]), input("b", &[3, 5, 4]));
        let (c, d) = (input("c", &[5, 4]), input("d", &[7]));
        let wrong = [(&a, &b, false, false), (&a, &c, false, true), (&c, &d, false, false)];
        for (x, y, transpose_a, transpose_b) in wrong {
            let error = matmul(&mut tape, x.0, y.0, transpose_a, transpose_b);
            let error = error.expect_err("does not fit").to_string();
            let named = |shape: &[usize]| error.contains(&Shape::from(shape).to_string());
            assert!(named(&x.1) && named(&y.1), "{error}");
        }
        let shared = matmul(&mut tape, a.0, c.0, false, false).expect("5 with 5");
        assert_eq!(*tape.tensor_type(shared), TensorType::f32([2, 3, 4]));
    }

    /// A shared B with a transposed A goes by way of a transpose.
    #[test]
    fn a_shared_matrix_takes_transposed_batches() {
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let mut tape = Tape::new(&store);
        let a = tape.input("a", [2, 2, 3]).expect("input");
        let b = tape.input("b", [2, 1]).expect("input");
        let c = matmul(&mut tape, a, b, true, false).expect("2 with 2");
        assert_eq!(*tape.tensor_type(c), TensorType::f32([2, 3, 1]));
        let a_values = (1..=12).map(f64::from).collect();
        let oracle = tape.evaluate(&[(a, a_values), (b, vec![1.0, 10.0])], store.control());
        let c = oracle.expect("fed").get(c).expect("computed").data.clone();
        assert_eq!(c, [41.0, 52.0, 63.0, 107.0, 118.0, 129.0]);
    }
}
