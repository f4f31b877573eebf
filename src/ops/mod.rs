//! Operations: one folder each, listed in one table.
//!
//! A folder holds `mod.rs` (contract, recording, gradient, cost, cases), `naive.rs` (the oracle in
//! f64) and `cpu.rs` (the SIMD kernel). To add one, write the folder and add its row below.

pub mod case;
mod layout;
pub mod operation;
#[cfg(feature = "cuda")]
mod places;
mod segments;

pub use case::{Case, CaseInput, Entry, Fill, Tolerance};
pub use operation::{Cost, Operation, Recorder, Rule, Site, Values, Var, push_one};

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every operation of the crate: tests, gradient checks and benchmarks run over it.
        pub const TABLE: &[Entry] = &[$(Entry {
            name: stringify!($name),
            cases: $name::cases,
            benches: $name::benches,
        }),*];
    };
}

operations! {
    accumulate,
    accuracy,
    activation_backward,
    average,
    batch,
    binary,
    broadcast,
    concat,
    copy,
    dropout,
    embedding,
    embedding_backward,
    global_norm,
    indices,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_cross_entropy,
    log_softmax,
    matmul,
    mse,
    orthogonal_gradient,
    pad,
    permutation,
    product_update,
    reduce,
    reshape,
    rms_norm,
    rms_norm_backward,
    slice,
    softmax,
    softmax_backward,
    softmax_cross_entropy,
    transpose,
    unary,
    unary_gradient,
    update,
}

pub use accumulate::accumulate;
pub use accuracy::accuracy;
pub use activation_backward::activation_backward;
pub use average::average;
pub use batch::{Batch, batch};
pub use binary::{add, div, equal, mul, offset, scale, sub};
pub use broadcast::broadcast_to;
pub use concat::concat;
pub use copy::copy;
pub use dropout::dropout;
pub use embedding::embedding;
pub use embedding_backward::embedding_backward;
pub use global_norm::global_norm;
pub use indices::indices;
pub use layer_norm::layer_norm;
pub use linear::{Activation, Weight, linear, linear_in};
pub use linear_cross_entropy::{LinearLoss, linear_cross_entropy};
pub use log_softmax::log_softmax;
pub use matmul::{matmul, matmul_in};
pub use mse::mse;
pub use orthogonal_gradient::orthogonal_gradient;
pub use pad::pad;
pub use permutation::permutation;
pub use product_update::product_update;
pub use reduce::{max, mean, mean_all, sum, sum_all, sum_to};
pub use reshape::reshape;
pub use rms_norm::rms_norm;
pub use slice::slice;
pub use softmax::softmax;
pub use softmax_backward::softmax_backward;
pub use softmax_cross_entropy::{CrossEntropy, softmax_cross_entropy, softmax_cross_entropy_soft};
pub use transpose::transpose;
pub use unary::{exp, gelu, log, neg, relu, sigmoid, silu, sqrt, tanh};
pub use unary_gradient::unary_gradient;
pub use update::update;

pub(crate) use segments::AxisShape;

use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};

/// Checks that there are `count` inputs, all f32.
///
/// # Errors
/// There are not; the error names `op` and what was found.
pub fn expect_f32(op: &str, inputs: &[TensorType], count: usize) -> Result<()> {
    expect_types(op, inputs, &vec![DType::F32; count])
}

/// Checks number and element types of the inputs.
///
/// # Errors
/// They differ; the error names `op`, the input and what was found.
pub fn expect_types(op: &str, inputs: &[TensorType], wanted: &[DType]) -> Result<()> {
    if inputs.len() != wanted.len() {
        let problem = format!("takes {} inputs, not {}", wanted.len(), inputs.len());
        return Err(Error::operation(op, problem));
    }
    for (i, (input, wanted)) in inputs.iter().zip(wanted).enumerate() {
        if input.dtype != *wanted {
            return Err(Error::operation(op, format!("input {i} is {input}, not {wanted}")));
        }
    }
    Ok(())
}

/// Checks the number of inputs of an operation that takes any element type.
///
/// # Errors
/// It differs; the error names `op` and what was found.
pub fn expect_count<'a, const N: usize>(
    op: &str,
    inputs: &'a [TensorType],
) -> Result<&'a [TensorType; N]> {
    inputs
        .try_into()
        .map_err(|_| Error::operation(op, format!("takes {N} inputs, not {}", inputs.len())))
}
