//! The gradient of `embedding`: `dtable[v, :] = sum of dy[r, :] over the r with indices[r] = v`.
//!
//! - `dy`: f32 `[..., D]`; `indices`: u32 `[...]`; `dtable`: f32 `[V, D]`, rows that no index names are
//!   zero. All row-major.
//!
//! Every element is summed in the order of the indices, whatever the threads do; on a GPU by parts of them where
//! the table is small, and the parts in order. An index of `V` or
//! more adds nothing: its row of `embedding` was NaN already. Error: that of a sum in f32, one rounding
//! an index. The gradient with respect to `dy` is `embedding` of the upstream.

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
use crate::tensor::{DType, TensorType};

/// The operation `embedding_backward`, for a table of `rows` rows.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingBackward {
    /// Rows of the table.
    pub rows: usize,
}

/// Records the gradient of a table of `rows` rows: the sum of the rows of `dy` (f32 `[..., D]`) by
/// their index (u32 `[...]`), f32 `[rows, D]`. Indices of `rows` or more are left out.
///
/// # Errors
/// `dy` is not f32, the indices are not u32, their shape is not that of `dy` without its last axis, or
/// `rows` is 2^31 or more.
pub fn embedding_backward(
    tape: &mut dyn Recorder,
    dy: Var,
    indices: Var,
    rows: usize,
) -> Result<Var> {
    push_one(tape, EmbeddingBackward { rows }, &[dy, indices])
}

impl Operation for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_types(self.name(), inputs, &[DType::F32, DType::U32])?;
        let fits = |(columns, outer): (&usize, &[usize])| {
            (outer == inputs[1].shape.extents()).then_some(*columns)
        };
        let Some(columns) = inputs[0].shape.extents().split_last().and_then(fits) else {
            let problem = format!("dy {} for indices {}", inputs[0], inputs[1]);
            return Err(Error::operation(self.name(), problem));
        };
        if self.rows > i32::MAX as usize {
            let problem = format!("a table of {} rows: 2^31 - 1 are the most", self.rows);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::f32([self.rows, columns])])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::embedding_backward(&inputs[0], &inputs[1], &mut outputs[0]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let upstream = rule.only_upstream()?;
        let ddy = super::embedding(rule.tape, upstream, rule.inputs[1])?;
        rule.give(0, ddy)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64, site)
    }
}

fn case([rows, columns]: [usize; 2], indices: &[usize], fill: Fill) -> Case {
    let extents: Vec<String> = indices.iter().map(usize::to_string).collect();
    let name = format!("{rows}x{columns}_at_{}", extents.join("x"));
    let count: usize = indices.iter().product();
    let shape: Vec<usize> = indices.iter().copied().chain([columns]).collect();
    let tolerance =
        if fill == Fill::Integers { Tolerance::Exact } else { Tolerance::Accumulation(count) };
    Case::new(name, EmbeddingBackward { rows }, tolerance)
        .input(&shape, fill)
        .fixed(indices, DType::U32, Fill::Indices(rows as u32))
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let uniform = Fill::Uniform(-1.0, 1.0);
    let mut all = vec![
        case([5, 3], &[], uniform),
        case([5, 3], &[0], uniform),
        case([5, 0], &[4], uniform),
        case([13, 8], &[2, 3, 5], uniform),
        // Stripes of columns; then bands of rows; then both.
        case([7, 203], &[509], uniform),
        case([3001, 67], &[37], Fill::Integers),
        case([1009, 130], &[1013], uniform),
    ];
    all.extend([1, 7, 16, 17, 64, 65].map(|columns| case([6, columns], &[33], uniform)));
    all
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let uniform = Fill::Uniform(-1.0, 1.0);
    vec![case([50_257, 384], &[4096], uniform), case([65, 384], &[8192], uniform)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let op = EmbeddingBackward { rows: 9 };
        for (dy, indices, names) in [
            (TensorType::f32([]), TensorType::u32([]), "dy f32[]"),
            (TensorType::f32([3, 2]), TensorType::u32([2]), "indices u32[2]"),
            (TensorType::f32([3, 2]), TensorType::f32([3]), "f32[3], not u32"),
        ] {
            let error = op.infer(&[dy, indices]).expect_err(names).to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
