//! Number of rows whose largest logit is that of the label: f32, shape `[]`.
//!
//! Logits f32 `[rows, classes]`, labels u32 `[rows]`. Of equal logits the first is the largest. A
//! row that holds NaN is not right. A label that is not below `classes` makes the result NaN: it is
//! an error of the data, and no row counts for it. No rows: 0; no classes: refused at recording.
//! Exact up to 2^24 rows. No gradient rule.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};

/// The operation `accuracy`.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy;

/// Records the number of rows of `logits` (f32 `[rows, classes]`) whose largest is that of the label
/// (u32 `[rows]`).
///
/// # Errors
/// The shapes do not fit, or there are no classes.
pub fn accuracy(tape: &mut dyn Recorder, logits: Var, labels: Var) -> Result<Var> {
    push_one(tape, Accuracy, &[logits, labels])
}

impl Operation for Accuracy {
    fn name(&self) -> &'static str {
        "accuracy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_types(self.name(), inputs, &[DType::F32, DType::U32])?;
        let (logits, labels) = (&inputs[0], &inputs[1]);
        match (logits.shape.extents(), labels.shape.extents()) {
            (&[rows, classes], &[count]) if rows == count && classes > 0 => {
                Ok(vec![TensorType::f32([])])
            }
            _ => {
                let problem = format!(
                    "takes logits [rows, classes] and labels [rows], not {logits} and {labels}"
                );
                Err(Error::operation(self.name(), problem))
            }
        }
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        outputs[0].data[0] = naive::accuracy(&inputs[0], &inputs[1]);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64, site)
    }
}

fn case(rows: usize, classes: usize, fill: Fill) -> Case {
    Case::new(format!("{rows}x{classes}_{fill:?}"), Accuracy, Tolerance::Exact)
        .fixed(&[rows, classes], DType::F32, fill)
        .fixed(&[rows], DType::U32, Fill::Indices(classes as u32))
        .without_gradient()
}

/// Test cases; small integers give many ties.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let sizes = [(0, 3), (1, 1), (64, 2), (64, 10), (33, 16), (40, 17), (1301, 10), (7, 1031)];
    let fills = [Fill::Integers, Fill::Uniform(-1.0, 1.0)];
    sizes.iter().flat_map(|&(rows, classes)| fills.map(|fill| case(rows, classes, fill))).collect()
}

/// Benchmark cases: a classifier's batch, and a vocabulary.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [(128, 10), (1024, 10), (128, 50257)]
        .map(|(rows, classes)| {
            let mut case = case(rows, classes, Fill::Uniform(-1.0, 1.0));
            case.name = format!("{rows}x{classes}");
            case
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_shape() {
        for (logits, labels) in [(vec![3, 4], 4), (vec![3], 3), (vec![3, 0], 3)] {
            let types = [TensorType::f32(logits), TensorType::u32([labels])];
            let found = Accuracy.infer(&types).expect_err("unfit").to_string();
            assert!(found.contains(&types[0].to_string()), "{found}");
        }
    }
}
