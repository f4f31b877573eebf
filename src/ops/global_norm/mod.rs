//! The norm of all gradients, and the factor that clips it: as PyTorch's `clip_grad_norm_`.
//!
//! `norm = scale * sqrt(sum g^2)`, `factor = min(1, max_norm / (norm + 1e-6))`.
//!
//! - `g` is the flat f32 `[P]` region of all gradients; gaps between parameters must be zero.
//!   `scale` (1 / micro-batches of an accumulated gradient) and `max_norm` are control slots, so
//!   that both can change between replays; an infinite `max_norm` clips nothing.
//! - Outputs: `norm` `[]` and `factor` `[]`, both f32.
//! - `P = 0`: norm 0. A norm that is not finite gives a factor of NaN, where PyTorch would scale by
//!   zero or NaN: [`mod@super::update`] then leaves everything as it is.
//! - Error: squares are summed in f32 over blocks of 1024 elements, the blocks in f64 in a fixed
//!   order: a few units in the last place. Elements above 1.8e19 overflow, as in PyTorch.
//!
//! Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
//! 2013; `torch.nn.utils.clip_grad_norm_` for the 1e-6.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, F32Slot};
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};
use std::sync::Arc;

/// What PyTorch adds to the norm, so that a norm of zero divides nothing.
const NORM_OFFSET: f64 = 1e-6;

/// The operation `global_norm`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalNorm {
    max_norm: F32Slot,
    gradient_scale: F32Slot,
}

/// What [`global_norm`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Norm of the scaled gradients, before clipping: `[]`.
    pub norm: Var,
    /// Factor in (0, 1] that brings the norm down to its maximum: `[]`.
    pub factor: Var,
}

/// Records the norm of `gradients` `[P]` times the value of `gradient_scale`, and the factor that
/// clips it to the value of `max_norm`.
///
/// # Errors
/// `gradients` is not f32 of one axis.
pub fn global_norm(
    tape: &mut dyn Recorder,
    gradients: Var,
    max_norm: F32Slot,
    gradient_scale: F32Slot,
) -> Result<Norm> {
    let op = GlobalNorm { max_norm, gradient_scale };
    let outputs = tape.push(Arc::new(op), &[gradients])?;
    Ok(Norm { norm: outputs[0], factor: outputs[1] })
}

impl GlobalNorm {
    /// Norm and factor from the sum of squares.
    fn finish(&self, squares: f64, control: &Control) -> (f64, f64) {
        let norm = squares.sqrt() * f64::from(control.f32(self.gradient_scale)).abs();
        if !norm.is_finite() {
            return (norm, f64::NAN);
        }
        let ratio = f64::from(control.f32(self.max_norm)) / (norm + NORM_OFFSET);
        (norm, ratio.min(1.0))
    }
}

impl Operation for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        if inputs[0].shape.extents().len() != 1 {
            let problem = format!("takes the flat gradients [P], not {}", inputs[0]);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(vec![TensorType::f32(Shape::scalar()); 2])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        let (norm, factor) = self.finish(naive::squares(&inputs[0].data), control);
        outputs[0].data[0] = norm;
        outputs[1].data[0] = factor;
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(*self, site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(self, site)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(2.0 * site.inputs[0].elements() as f64, site)
    }
}

fn case(control: &mut Control, len: usize, max_norm: f32) -> Case {
    let name = format!("{len}_max_{max_norm}");
    let op = GlobalNorm {
        max_norm: control.f32_slot(&format!("{name}.max_norm"), max_norm),
        gradient_scale: control.f32_slot(&format!("{name}.gradient_scale"), 0.25),
    };
    // Blocks of positive terms, each lane a sum of at most 32 of them; then root and product.
    let case = Case::new(name, op, Tolerance::Rounding(8.0));
    case.input(&[len], Fill::Uniform(-1.0, 1.0)).without_gradient()
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 7, 8, 15, 17, 1023, 1025, 40_009] {
        for max_norm in [0.5, f32::INFINITY] {
            cases.push(case(control, len, max_norm));
        }
    }
    cases
}

/// Benchmark cases.
pub fn benches(control: &mut Control) -> Vec<Case> {
    vec![case(control, 10_000_000, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, Store, Tape};

    fn run(gradients: &[f32], max_norm: f32) -> (f32, f32) {
        let mut store = Store::new(&Device::cpu(1).unwrap());
        let max_norm = store.control_mut().f32_slot("max_norm", max_norm);
        let scale = store.control_mut().f32_slot("scale", 1.0);
        let mut tape = Tape::new(&store);
        let g = tape.input("g", [gradients.len()]).unwrap();
        let Norm { norm, factor } = global_norm(&mut tape, g, max_norm, scale).unwrap();
        tape.output(norm).unwrap();
        tape.output(factor).unwrap();
        let mut recording = tape.compile(&store).unwrap();
        recording.write(g, gradients).unwrap();
        recording.replay(&mut store).unwrap();
        (recording.read(norm).unwrap()[0], recording.read(factor).unwrap()[0])
    }

    #[test]
    fn the_factor_is_that_of_pytorch() {
        assert_eq!(run(&[3.0, 4.0], 10.0), (5.0, 1.0));
        let (norm, factor) = run(&[3.0, 4.0], 0.5);
        assert_eq!(norm, 5.0);
        assert_eq!(factor, (0.5 / (5.0 + 1e-6)) as f32);
        assert_eq!(run(&[0.0; 5], 0.5), (0.0, 1.0));
    }

    #[test]
    fn a_norm_that_is_not_finite_gives_no_factor() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (norm, factor) = run(&[1.0, bad, 2.0], 1.0);
            assert!(!norm.is_finite() && factor.is_nan());
            assert!(run(&[1.0, bad, 2.0], f32::INFINITY).1.is_nan());
        }
    }

    #[test]
    fn gradients_that_are_not_flat_f32_are_refused() {
        let mut control = Control::new();
        let slot = control.f32_slot("slot", 1.0);
        let op = GlobalNorm { max_norm: slot, gradient_scale: slot };
        let error = op.infer(&[TensorType::f32([2, 3])]).unwrap_err().to_string();
        assert!(error.contains("[2, 3]"), "{error}");
        assert!(op.infer(&[TensorType::new([6], DType::Bf16)]).is_err());
    }
}
