//! A net that is trained on all of its samples at once, a step a replay.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Bound, Forward, Mode, Parameter, Parameters};
use crate::ops::Var;
use crate::optim::{Optimizer, OptimizerConfig, Segment};
use crate::tape::{Recording, Store, Tape};

/// What a step is recorded as.
pub(super) struct Objective {
    /// What is differentiated.
    pub(super) minimised: Var,
    /// What [`FullBatch::step`] returns: the mean cross-entropy.
    pub(super) loss: Var,
}

/// A net with its samples, optimizer and recorded step.
pub(super) struct FullBatch {
    store: Store,
    bound: Bound,
    optimizer: Optimizer,
    step: Recording,
    loss: Var,
    steps: u64,
}

impl FullBatch {
    /// Puts data on the device by `upload`, and records a step by `record`. All weights of the parameters are updated.
    pub(super) fn new<D>(
        device: &Device,
        parameters: Parameters,
        seed: u64,
        optimizer: &OptimizerConfig,
        upload: impl FnOnce(&mut Store) -> D,
        record: impl FnOnce(&mut Forward<'_>, &D) -> Result<Objective>,
    ) -> Result<(FullBatch, D)> {
        let mut store = Store::new(device);
        let bound = parameters.bind(&mut store, seed)?;
        let segments: Vec<Segment> = bound
            .infos()
            .iter()
            .map(|info| Segment {
                offset: info.offset,
                len: info.shape.elements(),
                rate_factor: info.rate_factor,
                decay_factor: info.decay_factor,
            })
            .collect();
        let flat = bound.parameters().flat_len();
        let optimizer = Optimizer::new(optimizer, segments, flat, &mut store)?;
        let data = upload(&mut store);
        let mut tape = Tape::new(&store);
        let mut pass = Forward::new(&mut tape, Mode::Train, &bound);
        let Objective { minimised, loss } = record(&mut pass, &data)?;
        let weights: Vec<Var> = pass.into_read().into_iter().map(|(_, var)| var).collect();
        let gradients = tape.backward(minimised, &weights)?;
        let (to, of) = (bound.weights(), bound.gradients());
        optimizer.record_from(&mut tape, to, of, &gradients, Some(loss))?;
        tape.output(loss)?;
        let step = tape.compile(&store)?;
        Ok((FullBatch { store, bound, optimizer, step, loss, steps: 0 }, data))
    }

    /// One update. Returns the loss before it.
    pub(super) fn step(&mut self, rate: f64) -> Result<f64> {
        self.steps += 1;
        self.optimizer.prepare(self.store.control_mut(), self.steps, rate, 1.0);
        self.step.replay(&mut self.store)?;
        let mut loss = [0f32];
        self.step.read_into(self.loss, &mut loss)?;
        if !loss[0].is_finite() {
            let place = format!("the loss is {}", loss[0]);
            let checkpoint = "none: an experiment keeps none".to_owned();
            return Err(Error::Diverged { step: self.steps, place, checkpoint });
        }
        Ok(f64::from(loss[0]))
    }

    /// Updates done.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Values of a parameter.
    pub(super) fn read(&self, parameter: Parameter) -> Result<Vec<f32>> {
        self.bound.read(&self.store, parameter)
    }

    /// All weights, to begin another net with.
    pub(super) fn weights(&self) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.bound.parameters().flat_len()];
        self.store.read(self.bound.weights(), 0, &mut values)?;
        Ok(values)
    }

    /// Replaces all weights.
    pub(super) fn set_weights(&mut self, values: &[f32]) -> Result<()> {
        self.store.write(self.bound.weights(), 0, values)
    }

    /// A pass that only looks: what `record` gives is read with [`FullBatch::look`].
    pub(super) fn recording(
        &self,
        record: impl FnOnce(&mut Forward<'_>) -> Result<Vec<Var>>,
    ) -> Result<(Recording, Vec<Var>)> {
        let mut tape = Tape::new(&self.store);
        let mut pass = Forward::new(&mut tape, Mode::Eval, &self.bound);
        let wanted = record(&mut pass)?;
        wanted.iter().try_for_each(|&var| tape.output(var))?;
        Ok((tape.compile(&self.store)?, wanted))
    }

    /// Runs such a pass.
    pub(super) fn look(
        &mut self,
        (pass, wanted): &mut (Recording, Vec<Var>),
    ) -> Result<Vec<Vec<f32>>> {
        pass.replay(&mut self.store)?;
        wanted.iter().map(|&var| pass.read(var)).collect()
    }
}
