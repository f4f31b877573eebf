//! What happens between two steps, every so many of them: the average of the weights, and their decay along
//! the polar factor. Each is a recording of its own, so that the step stays as fast as it is.

use super::{Average, AverageConfig, Optimizer, Polar, Rates};
use crate::device::Control;
use crate::error::Result;
use crate::ops::average;
use crate::tape::{Region, Tape};

/// What happens between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Between {
    /// Weights decay along their polar factor.
    Polar,
    /// The slow weights follow.
    Average,
}

impl Optimizer {
    /// What there is, in the order in which it happens, and after how many steps each.
    fn between(&self) -> impl Iterator<Item = (Between, u64)> + use<> {
        let polar = self.polar.as_ref().map(|polar| (Between::Polar, polar.every));
        let average =
            self.average.as_ref().map(|average| (Between::Average, average.config.every()));
        polar.into_iter().chain(average)
    }

    /// What follows the update `step`, counted from 1. A function of the step alone, so that a run that goes
    /// on from a checkpoint does the same.
    pub fn after(&self, step: u64) -> impl Iterator<Item = Between> + use<> {
        self.between().filter(move |(_, every)| step.is_multiple_of(*every)).map(|(what, _)| what)
    }

    /// How many updates from `step` on come before anything else, that one included.
    pub fn unbroken(&self, step: u64) -> u64 {
        let left = |(_, every): (_, u64)| every - (step - 1) % every;
        self.between().map(left).min().unwrap_or(u64::MAX)
    }

    /// Records what follows a step. `weights` and `gradients` as for [`Optimizer::record`]; the region of the
    /// gradients is written over.
    ///
    /// # Errors
    /// As [`Optimizer::record`].
    pub fn record_between(
        &self,
        tape: &mut Tape,
        what: Between,
        weights: Region,
        gradients: Region,
    ) -> Result<()> {
        tape.scoped("optimizer", |tape| match (what, &self.polar, &self.average) {
            (Between::Polar, Some(polar), _) => {
                polar.record(tape, weights, gradients, self.flat_len)
            }
            (Between::Average, _, Some(slow)) => self.record_average(tape, slow, weights),
            // Not configured.
            _ => Ok(()),
        })
    }

    fn record_average(&self, tape: &mut Tape, slow: &Average, weights: Region) -> Result<()> {
        let fast = tape.persistent("weights", weights, 0, [self.flat_len])?;
        let slow_weights = tape.persistent("average", slow.region, 0, [self.flat_len])?;
        let (kind, packed) = match slow.config {
            AverageConfig::Ema { .. } => (average::Kind::Ema, None),
            AverageConfig::Lookahead { .. } => (average::Kind::Lookahead, self.packed.as_ref()),
        };
        let packed = match packed {
            Some((packed, region)) => {
                let copies = tape.persistent("packed", *region, 0, [packed.len()])?;
                Some((packed, copies))
            }
            None => None,
        };
        average(tape, kind, slow_weights, fast, slow.share, packed)
    }

    /// Sets the slots for what follows the update `step`, which had these rates.
    pub fn prepare_between(&self, control: &mut Control, what: Between, step: u64, rates: Rates) {
        match (what, &self.polar, &self.average) {
            (Between::Polar, Some(Polar { every, slots, .. }), _) => {
                let contraction = self.contraction(rates) * *every as f64;
                control.set_f32(slots.rate, contraction as f32);
            }
            (Between::Average, _, Some(slow)) => {
                control.set_f32(slow.share, slow.config.share(step) as f32);
            }
            _ => {}
        }
    }

    /// The slow weights, laid out as the others: those that a model is reviewed with.
    pub fn average(&self) -> Option<Region> {
        self.average.as_ref().map(|average| average.region)
    }
}
