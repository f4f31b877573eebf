//! `y[..., :] = table[indices[...], :]`
//!
//! - `table`: f32 `[V, D]`; `indices`: u32 of any shape; `y`: f32, the shape of the indices and then
//!   `D`. All row-major.
//!
//! A row whose index is `V` or more reads nothing and is NaN, so that the loss diverges instead of
//! being a wrong number. Exact. The gradient is `embedding_backward`.

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
use crate::tensor::{DType, Shape, TensorType};

/// The operation `embedding`.
#[derive(Clone, Copy, Debug)]
pub struct Embedding;

/// Records `y[..., :] = table[indices[...], :]`: `table` f32 `[V, D]`, `indices` u32 `[...]`, `y` f32
/// `[..., D]`. At replay, an index of `V` or more makes its row NaN.
///
/// # Errors
/// The table is not f32 with two axes, or the indices are not u32.
pub fn embedding(tape: &mut dyn Recorder, table: Var, indices: Var) -> Result<Var> {
    push_one(tape, Embedding, &[table, indices])
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_types(self.name(), inputs, &[DType::F32, DType::U32])?;
        let &[_, columns] = inputs[0].shape.extents() else {
            let problem = format!("the table must be [rows, columns], not {}", inputs[0]);
            return Err(Error::operation(self.name(), problem));
        };
        let mut extents = inputs[1].shape.extents().to_vec();
        extents.push(columns);
        Ok(vec![TensorType::f32(Shape::new(extents))])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::embedding(&inputs[0], &inputs[1], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let rows = rule.tape.tensor_type(rule.inputs[0]).shape.extents()[0];
        let dtable = super::embedding_backward(rule.tape, dy, rule.inputs[1], rows)?;
        rule.give(0, dtable)
    }

    /// Rows that are read twice are counted once, as far as the table has so many.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let read = site.inputs[0].bytes().min(site.outputs[0].bytes());
        let bytes = read + site.inputs[1].bytes() + site.outputs[0].bytes();
        Cost { flops: 0.0, bytes: bytes as f64 }
    }
}

fn case([rows, columns]: [usize; 2], indices: &[usize]) -> Case {
    let extents: Vec<String> = indices.iter().map(usize::to_string).collect();
    let name = format!("{rows}x{columns}_at_{}", extents.join("x"));
    Case::new(name, Embedding, Tolerance::Exact)
        .input(&[rows, columns], Fill::Uniform(-1.0, 1.0))
        .fixed(indices, DType::U32, Fill::Indices(rows as u32))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut all = vec![
        case([5, 3], &[]),
        case([5, 3], &[0]),
        case([5, 0], &[4]),
        case([13, 8], &[2, 3, 5]),
        case([97, 31], &[1009]),
    ];
    all.extend([1, 7, 16, 17, 64, 65].map(|columns| case([6, columns], &[11])));
    all
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    vec![case([50_257, 384], &[4096])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        for (table, indices, names) in [
            (TensorType::f32([3]), TensorType::u32([2]), "f32[3]"),
            (TensorType::f32([3, 2]), TensorType::f32([2]), "f32[2], not u32"),
        ] {
            let error = Embedding.infer(&[table, indices]).expect_err(names).to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
