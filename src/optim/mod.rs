//! Update rules, and schedules of the learning rate.
//!
//! An [`Optimizer`] records the update of all parameters as one operation over flat regions; what
//! changes from step to step goes through control slots ([`Optimizer::prepare`]), so that one
//! recording serves a whole run. A [`Schedule`] says the learning rate of each step.

mod config;
mod schedule;

pub use crate::ops::update::{Decay, Rule, Segment};
pub use config::OptimizerConfig;
pub use schedule::{Anneal, CycleMode, Position, Schedule};

use crate::device::{Control, F32Slot};
use crate::error::{Error, Result};
use crate::gemm::PackedWeights;
use crate::ops::update::{Operands, UpdateSlots};
use crate::ops::{Var, global_norm, update};
use crate::tape::{Region, Store, Tape};
use crate::tensor::DType;
use std::sync::Arc;

/// An update rule with its memory: moments and slots.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Rule,
    decay: Decay,
    weight_decay: f64,
    clip_norm: Option<f64>,
    segments: Vec<Segment>,
    flat_len: usize,
    slots: UpdateSlots,
    max_norm: F32Slot,
    moments: Vec<(&'static str, Region)>,
    packed: Option<(Arc<PackedWeights>, Region)>,
}

/// What [`Optimizer::record`] recorded.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// `g.g`, `w.w`, `g.w` of each segment before the update, f32 `[segments, 3]`. Computed only if
    /// it is read: mark it with [`Tape::output`].
    pub statistics: Var,
    /// Norm of all gradients before clipping, f32 `[]`; `None` without `clip_norm`.
    pub norm: Option<Var>,
}

impl Optimizer {
    /// Allocates the moments for flat regions of `flat_len` elements whose parameters lie in
    /// `segments`, and makes the control slots. To be called before the tapes are made, and once a
    /// store: the slots are found by name.
    ///
    /// # Errors
    /// The configuration is not valid. Segments are checked by [`Optimizer::record`].
    pub fn new(
        config: &OptimizerConfig,
        segments: Vec<Segment>,
        flat_len: usize,
        store: &mut Store,
    ) -> Result<Optimizer> {
        config.validate()?;
        let OptimizerConfig { rule, weight_decay, decay, clip_norm, .. } = *config;
        let names = ["optimizer.first", "optimizer.second"];
        let moments = names[..rule.moments()]
            .iter()
            .map(|&name| (name, store.allocate(name, DType::F32, flat_len)))
            .collect();
        let control = store.control_mut();
        let slots = UpdateSlots::register(control, "optimizer");
        let max_norm = control.f32_slot("optimizer.max_norm", f32::INFINITY);
        Ok(Optimizer {
            rule,
            decay,
            weight_decay,
            clip_norm,
            segments,
            flat_len,
            slots,
            max_norm,
            moments,
            packed: None,
        })
    }

    /// Also writes the packed copies of the weights in the region `copies`, in the same pass.
    /// Without it they are packed anew before each replay, which is slower.
    #[must_use]
    pub fn with_packed(mut self, packed: Option<(Arc<PackedWeights>, Region)>) -> Optimizer {
        self.packed = packed;
        self
    }

    /// Records clipping (if configured) and the update of `weights` by `gradients`, flat regions of
    /// `flat_len` f32. Where `guard` (the loss) or, with clipping, the norm of the gradients is not
    /// finite in a step, that step changes nothing.
    ///
    /// # Errors
    /// Regions of another type or too short, or allocated after the tape was made; segments that
    /// overlap or reach past the end; a guard that is not a scalar.
    pub fn record(
        &self,
        tape: &mut Tape,
        weights: Region,
        gradients: Region,
        guard: Option<Var>,
    ) -> Result<Recorded> {
        tape.scoped("optimizer", |tape| {
            let weights = tape.persistent("weights", weights, 0, [self.flat_len])?;
            let gradients = tape.persistent("gradients", gradients, 0, [self.flat_len])?;
            let mut moments = Vec::new();
            for &(name, region) in &self.moments {
                moments.push(tape.persistent(name, region, 0, [self.flat_len])?);
            }
            let norm = match self.clip_norm {
                Some(_) => {
                    let scale = self.slots.gradient_scale;
                    Some(global_norm(tape, gradients, self.max_norm, scale)?)
                }
                None => None,
            };
            let factor = norm.map(|norm| norm.factor);
            let packed = match &self.packed {
                Some((packed, region)) => {
                    let copies = tape.persistent("packed", *region, 0, [packed.len()])?;
                    Some((packed, copies))
                }
                None => None,
            };
            let moments = &moments;
            let operands = Operands { weights, gradients, moments, guard, factor, packed };
            let slots = self.slots;
            let updated = update(tape, self.rule, self.decay, &self.segments, slots, operands)?;
            Ok(Recorded { statistics: updated.statistics, norm: norm.map(|norm| norm.norm) })
        })
    }

    /// Sets the slots for the step to come.
    ///
    /// `step` counts updates from 1 (for the bias corrections), `rate` is the learning rate of this
    /// step, `gradient_scale` what the gradients in memory are multiplied by: 1 / micro-batches
    /// where those of several are added up.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn prepare(&self, control: &mut Control, step: u64, rate: f64, gradient_scale: f64) {
        assert!(step > 0, "steps count from 1");
        control.set_f32(self.slots.rate, rate as f32);
        control.set_f32(self.slots.decay, self.weight_decay as f32);
        control.set_f32(self.slots.gradient_scale, gradient_scale as f32);
        control.set_f32(self.max_norm, self.clip_norm.unwrap_or(f64::INFINITY) as f32);
        if let Rule::AdamW { beta1, beta2, .. } = self.rule {
            let left = |beta: f64| 1.0 - beta.powf(step as f64);
            control.set_f32(self.slots.first_correction, (1.0 / left(beta1)) as f32);
            control.set_f32(self.slots.second_correction, (1.0 / left(beta2).sqrt()) as f32);
        }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    /// Sets the weight decay of the steps that are prepared from now on: advice of the clocks.
    ///
    /// # Errors
    /// It is negative or not finite, or above 0 where the configuration says that nothing decays.
    pub fn set_weight_decay(&mut self, weight_decay: f64) -> Result<()> {
        if !(weight_decay.is_finite() && weight_decay >= 0.0) {
            let problem = format!("{weight_decay} is not 0 or more");
            return Err(Error::config("optimizer.weight_decay", problem));
        }
        if self.decay == Decay::None && weight_decay > 0.0 {
            let problem = format!("{weight_decay} has no effect with decay = \"none\"");
            return Err(Error::config("optimizer.weight_decay", problem));
        }
        self.weight_decay = weight_decay;
        Ok(())
    }

    /// The parameters' places.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The moments by name, for checkpoints; beside them only the number of steps is state.
    pub fn state(&self) -> &[(&'static str, Region)] {
        &self.moments
    }
}

#[cfg(test)]
mod tests;
