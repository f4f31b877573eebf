//! Operations: one folder each, listed in one table.
//!
//! A folder holds `mod.rs` (contract, recording, gradient, cost, cases), `naive.rs` (the oracle in
//! f64) and `cpu.rs` (the SIMD kernel). To add one, write the folder and add its row below.

pub mod case;
pub mod operation;

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
    copy,
    global_norm,
    update,
}

pub use accumulate::accumulate;
pub use copy::copy;
pub use global_norm::global_norm;
pub use update::update;

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

/// PLACEHOLDER until ops/binary lands.
///
/// # Errors
/// Always.
pub fn add(_tape: &mut dyn Recorder, _a: Var, _b: Var) -> Result<Var> {
    Err(Error::operation("add", "placeholder"))
}
