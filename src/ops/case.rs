//! Test and benchmark cases: every operation lists its own, and tests, gradient checks and
//! benchmarks run over all of them.

use super::operation::Operation;
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

/// How the values of a case's input are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Uniform between the two bounds.
    Uniform(f64, f64),
    /// Small integers from -4 to 4, for results that are exact.
    Integers,
    /// Class indices or row numbers below the bound.
    Indices(u32),
    /// Every row of the last axis is a probability distribution.
    Distributions,
    /// A permutation of 0..len, for row orders.
    Permutation,
}

/// One input of a case.
#[derive(Clone, Debug)]
pub struct CaseInput {
    /// Shape and element type.
    pub tensor_type: TensorType,
    /// Its values.
    pub fill: Fill,
    /// Whether the gradient with respect to it is checked.
    pub differentiable: bool,
}

/// How far a kernel may be from the oracle.
///
/// `Rounding` and `Accumulation` bound |kernel - oracle| by `factor * eps * scale`, where eps is
/// 2^-24 (half a unit in the last place of f32, the error of one rounded operation) and scale is the larger of |oracle|
/// and the root mean square of that output. See [`Tolerance::bound`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Equal to the last bit after rounding the oracle to the output's type.
    Exact,
    /// So many rounding errors: elementwise arithmetic and functions of stated ulp error.
    Rounding(f64),
    /// A sum of so many terms of mixed sign. Rounding errors of a sum of n terms grow like sqrt(n)
    /// for random signs (Higham, Accuracy and Stability, section 4.2); a factor of 8 covers the tail.
    Accumulation(usize),
}

impl Tolerance {
    /// Largest allowed absolute error at an element whose oracle value is `want`, in an output
    /// whose root mean square is `rms`.
    pub fn bound(self, want: f64, rms: f64) -> f64 {
        let scale = want.abs().max(rms);
        let unit = f64::from(f32::EPSILON) / 2.0;
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Rounding(count) => count * unit * scale,
            Tolerance::Accumulation(terms) => 8.0 * (terms.max(1) as f64).sqrt() * unit * scale,
        }
    }
}

/// One call of an operation with inputs of stated types.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it, with its sizes: `nt_128x64x10`.
    pub name: String,
    /// The operation.
    pub op: Arc<dyn Operation>,
    /// Its inputs.
    pub inputs: Vec<CaseInput>,
    /// How far kernels may be from the oracle.
    pub tolerance: Tolerance,
    /// Relative bound of the gradient check (central differences of the f64 oracle against the
    /// recorded gradient evaluated in f64); `None` for operations without a gradient.
    pub gradient_tolerance: Option<f64>,
}

impl Case {
    /// A case whose gradient, if any input asks for it, is checked to 1e-6: central differences in
    /// f64 with step 1e-5 have an error near 1e-10 relative to third derivatives, and rounding
    /// adds 1e-11.
    pub fn new(name: impl Into<String>, op: impl Operation, tolerance: Tolerance) -> Case {
        Case {
            name: name.into(),
            op: Arc::new(op),
            inputs: Vec::new(),
            tolerance,
            gradient_tolerance: Some(1e-6),
        }
    }

    /// Adds an f32 input with a checked gradient.
    #[must_use]
    pub fn input(mut self, shape: &[usize], fill: Fill) -> Case {
        let tensor_type = TensorType::f32(shape);
        self.inputs.push(CaseInput { tensor_type, fill, differentiable: true });
        self
    }

    /// Adds an input of any type whose gradient is not checked.
    #[must_use]
    pub fn fixed(mut self, shape: &[usize], dtype: DType, fill: Fill) -> Case {
        let tensor_type = TensorType::new(shape, dtype);
        self.inputs.push(CaseInput { tensor_type, fill, differentiable: false });
        self
    }

    /// States that the operation has no gradient.
    #[must_use]
    pub fn without_gradient(mut self) -> Case {
        self.gradient_tolerance = None;
        self
    }
}

/// An operation in the table.
pub struct Entry {
    /// Name of the folder.
    pub name: &'static str,
    /// Cases for tests: sizes 0, 1, around the vector and tile widths, primes; every variant.
    pub cases: fn(&mut crate::device::Control) -> Vec<Case>,
    /// Cases for benchmarks: sizes of real steps, named with their sizes.
    pub benches: fn(&mut crate::device::Control) -> Vec<Case>,
}
