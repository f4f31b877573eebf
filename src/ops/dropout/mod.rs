//! `y = x * mask / (1 - p)`, the mask 1 with probability `1 - p` and 0 otherwise. f32 of any shape.
//!
//! The mask is never stored: it is a function of the seed, of a counter in the control block and
//! of the element's index alone, the same on every instruction set and with any number of threads.
//! The gradient makes it again, as the same operation applied to `dy`. Whoever runs the step gives
//! the counter another value for every step; layers that share a counter have different seeds.
//!
//! Element `e` is kept where `u >= p`, `u` being the upper 24 bits of word `e % 64 / 16` of Philox
//! counter `e / 64 * 16 + e % 16` as a number in 0..1; key: the seed; upper half of the counter: the
//! control value. So the probability is exact to 2^-24. `p` = 0 copies. Zero size does nothing, and
//! NaN times 0 stays NaN. Error: two roundings, of the factor and of the product.
//!
//! Sources: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", JMLR 15 (2014);
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, U64Slot};
use crate::error::{Error, Result};
use crate::tensor::TensorType;

/// The operation `dropout`.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability of a zero, in 0..1.
    pub p: f32,
    /// Names the mask among those of other layers.
    pub seed: u64,
    /// Number of the mask: another one for every step.
    pub counter: U64Slot,
}

impl Dropout {
    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

/// Records `y = x * mask / (1 - p)`: each element is zero with probability `p`. The mask is that of
/// `seed` and of the value that `counter` has at replay.
///
/// # Errors
/// `x` is not f32, or `p` is not in 0..1.
pub fn dropout(tape: &mut dyn Recorder, x: Var, p: f32, seed: u64, counter: U64Slot) -> Result<Var> {
    if p == 0.0 {
        return super::copy(tape, x);
    }
    push_one(tape, Dropout { p, seed, counter }, &[x])
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 1)?;
        if !(0.0..1.0).contains(&self.p) {
            let problem = format!("the probability {} is not in 0..1", self.p);
            return Err(Error::operation(self.name(), problem));
        }
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        let stream = control.u64(self.counter);
        naive::dropout(&inputs[0].data, &mut outputs[0].data, self.key(), stream, self.p);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, *self))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let dx = push_one(rule.tape, *self, &[dy])?;
        rule.give(0, dx)
    }

    /// One product an element; the random bits are integer work.
    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(site.inputs[0].elements() as f64, site)
    }
}

fn case(control: &mut Control, p: f32, shape: &[usize]) -> Case {
    // Key and counter with both halves in use.
    let counter = control.u64_slot("dropout.counter", 5 << 32 | 7);
    let op = Dropout { p, seed: 0x1234_5678_9abc_def0, counter };
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let name = format!("{}_p{p}", extents.join("x"));
    Case::new(name, op, Tolerance::Rounding(2.01)).input(shape, Fill::Uniform(-1.0, 1.0))
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let sizes = [0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 20_011];
    let mut all: Vec<Case> = sizes.iter().map(|&n| case(control, 0.5, &[n])).collect();
    for p in [0.0, 0.1, 0.9, 0.999_999_9] {
        all.push(case(control, p, &[7, 37]));
    }
    all
}

/// Benchmark cases.
pub fn benches(control: &mut Control) -> Vec<Case> {
    vec![case(control, 0.1, &[128, 512])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_outside_0_to_1_are_refused() {
        let counter = Control::new().u64_slot("counter", 0);
        for p in [-0.1, 1.0, 2.0, f32::NAN] {
            let op = Dropout { p, seed: 0, counter };
            let error = op.infer(&[TensorType::f32([3])]).expect_err("p").to_string();
            assert!(error.contains(&format!("{p}")), "{error}");
        }
    }

    /// The kept share is within 5 standard deviations of 1 - p, for
    /// several masks, and masks of neighbouring counters and seeds are independent: they agree in
    /// p^2 + (1 - p)^2 of the elements.
    #[test]
    fn masks_keep_what_they_should_and_are_independent() {
        const N: u64 = 1 << 18;
        let kept = |key, stream, p| -> Vec<bool> {
            (0..N).map(|e| naive::multiplier(key, stream, e, p) != 0.0).collect()
        };
        let share = |bits: &[bool]| bits.iter().filter(|&&b| b).count() as f64 / N as f64;
        let spread = |q: f64| 5.0 * (q * (1.0 - q) / N as f64).sqrt();
        for p in [0.1f32, 0.5, 0.9] {
            let q = f64::from(1.0 - p);
            let masks =
                [([1, 2], 0), ([1, 2], 1), ([2, 2], 0), ([1, 3], 0), ([1, 2], 1 << 32)].map(
                    |(key, stream)| kept(key, stream, p),
                );
            let agreement = q * q + (1.0 - q) * (1.0 - q);
            for (i, mask) in masks.iter().enumerate() {
                assert!((share(mask) - q).abs() <= spread(q), "p {p}: {}", share(mask));
                for other in &masks[..i] {
                    let same: Vec<bool> = mask.iter().zip(other).map(|(a, b)| a == b).collect();
                    assert!((share(&same) - agreement).abs() <= spread(agreement), "p {p} mask {i}");
                }
            }
        }
    }
}
