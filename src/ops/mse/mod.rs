//! `y = mean (prediction - target)^2` over all elements, a scalar. f32 of one shape, any.
//!
//! The mean of no elements is refused at recording. NaN or infinity anywhere gives NaN or infinity.
//! Sums go by vectors and chunks in a fixed order; error: that of a sum of as many squares. The
//! gradient is `2 (prediction - target) / elements` times the upstream one, and its negative.

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
use crate::tensor::TensorType;

/// The operation `mse`.
#[derive(Clone, Copy, Debug)]
pub struct Mse;

/// Records the mean squared error of `prediction` against `target`, shape `[]`.
///
/// # Errors
/// The shapes differ, there are no elements, or one of the two is not f32.
pub fn mse(tape: &mut dyn Recorder, prediction: Var, target: Var) -> Result<Var> {
    push_one(tape, Mse, &[prediction, target])
}

impl Operation for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        let (prediction, target) = (&inputs[0], &inputs[1]);
        if prediction != target {
            let problem = format!("the prediction {prediction} has another shape than {target}");
            return Err(Error::operation(self.name(), problem));
        }
        if prediction.elements() == 0 {
            let problem = format!("there is no mean over {prediction}");
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::f32([])])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        outputs[0].data[0] = naive::mse(&inputs[0].data, &inputs[1].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        Some(cuda::launch(site))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let (prediction, target) = (rule.inputs[0], rule.inputs[1]);
        let share = 2.0 / rule.tape.tensor_type(prediction).elements() as f32;
        for (i, a, b) in [(0, prediction, target), (1, target, prediction)] {
            if !rule.needs(i) {
                continue;
            }
            let difference = super::sub(rule.tape, a, b)?;
            let mut gradient = super::scale(rule.tape, difference, share)?;
            if !rule.tape.is_fill(dy, 1.0) {
                gradient = super::mul(rule.tape, gradient, dy)?;
            }
            rule.give(i, gradient)?;
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(3.0 * site.inputs[0].elements() as f64, site)
    }
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let case = |shape: &[usize]| {
        let terms = shape.iter().product();
        Case::new(format!("{shape:?}"), Mse, Tolerance::Accumulation(terms))
            .input(shape, Fill::Uniform(-1.0, 1.0))
            .input(shape, Fill::Uniform(-1.0, 1.0))
    };
    let shapes: [&[usize]; 9] =
        [&[], &[1], &[7], &[8], &[3, 5], &[16], &[17], &[2, 3, 131], &[5, 8009]];
    shapes.map(case).into()
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [[128, 10], [128, 8192]]
        .map(|[rows, columns]| {
            let terms = Tolerance::Accumulation(rows * columns);
            Case::new(format!("{rows}x{columns}"), Mse, terms)
                .input(&[rows, columns], Fill::Uniform(-1.0, 1.0))
                .input(&[rows, columns], Fill::Uniform(-1.0, 1.0))
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_shape() {
        let infer = |a: TensorType, b: TensorType| Mse.infer(&[a, b]).expect_err("unfit").to_string();
        let found = infer(TensorType::f32([2, 3]), TensorType::f32([3]));
        assert!(found.contains("f32[2, 3]") && found.contains("f32[3]"), "{found}");
        let found = infer(TensorType::f32([0, 3]), TensorType::f32([0, 3]));
        assert!(found.contains("no mean over f32[0, 3]"), "{found}");
    }
}
