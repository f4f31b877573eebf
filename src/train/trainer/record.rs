//! What a trainer records: the model's pass over a batch, and a step.

use super::{Resident, StepKey, Telemetry, Trainer};
use crate::error::{Error, Result};
use crate::nn::{Bound, Forward, Mode, Noted};
use crate::ops::{self, Recorder, Var};
use crate::tape::{Recording, Tape};
use crate::tensor::Shape;

/// A recorded pass of the model over a batch.
pub(in crate::train) struct Pass {
    /// `[rows, classes]`.
    pub(in crate::train) logits: Var,
    pub(in crate::train) labels: Var,
    /// The parameters, in their order.
    parameters: Vec<Var>,
    /// The layers, in the order of the pass.
    pub(in crate::train) noted: Vec<Noted>,
}

impl Trainer {
    /// Records the model's pass over a batch.
    pub(in crate::train) fn record_forward(
        &self,
        tape: &mut Tape,
        parameters: &Bound,
        data: &Resident,
        rows: usize,
        mode: Mode,
    ) -> Result<Pass> {
        let values = tape.persistent("values", data.values, 0, [data.rows, data.features])?;
        let labels = tape.persistent("labels", data.labels, 0, [data.rows])?;
        let order = tape.persistent("order", data.order, 0, [self.store.len(data.order)])?;
        let scale = tape.persistent("scale", self.scale, 0, [data.features])?;
        let shift = tape.persistent("shift", self.shift, 0, [data.features])?;
        let batch = tape.scoped("data", |tape| {
            ops::batch(tape, values, labels, order, scale, shift, rows, self.offset)
        })?;
        let shape: Vec<usize> = [&[rows], &self.row_shape[..]].concat();
        let inputs = match self.row_shape.len() {
            1 => batch.inputs,
            _ => ops::reshape(tape, batch.inputs, Shape::from(shape))?,
        };
        let mut pass = Forward::new(tape, mode, parameters);
        let logits = self.model.forward(&mut pass, inputs)?;
        let noted = pass.noted().to_vec();
        let read = pass.into_read();
        if read.len() != self.parameters.infos().len() {
            let unread = self
                .parameters
                .infos()
                .iter()
                .enumerate()
                .find(|(i, _)| !read.iter().any(|(parameter, _)| parameter.index() == *i));
            let name = unread.map_or("", |(_, info)| &info.name);
            return Err(Error::config(
                name,
                "this parameter is declared, but the model does not use it",
            ));
        }
        let found = &tape.tensor_type(logits).shape;
        let wanted = Shape::from([rows, self.classes]);
        if *found != wanted {
            let given = &found.extents()[1..];
            let hint = match given.len() {
                1 => "its `outputs` must be the number of classes",
                _ => "a `flatten` layer joins the axes of an image",
            };
            let problem = format!(
                "a row of the data, of shape {:?}, comes out of the last layer with shape {given:?}, \
                 but the data has {} classes ({hint})",
                self.row_shape, self.classes
            );
            return Err(Error::config("model.layers", problem));
        }
        let parameters = read.into_iter().map(|(_, var)| var).collect();
        Ok(Pass { logits, labels: batch.labels, parameters, noted })
    }

    pub(super) fn record_step(&self, key: StepKey) -> Result<Recording> {
        let mut tape = Tape::new(&self.store);
        let Pass { logits, labels, parameters, .. } =
            self.record_forward(&mut tape, &self.parameters, &self.train, key.rows, Mode::Train)?;
        let loss = tape.scoped("loss", |tape| {
            ops::softmax_cross_entropy(tape, logits, labels, self.options.label_smoothing)
        })?;
        // Batches of one update count by their rows.
        let share = key.rows as f32 / key.total as f32;
        let shape = tape.tensor_type(loss.loss).shape.clone();
        let upstream = tape.fill(shape, share);
        let gradients = tape.vector_jacobian(&[(loss.loss, upstream)], &parameters)?;
        let (weights, region) = (self.parameters.weights(), self.parameters.gradients());
        let guard = Some(loss.loss);
        let mut update = None;
        if key.first && key.last {
            let recorded =
                self.optimizer.record_from(&mut tape, weights, region, &gradients, guard)?;
            update = Some(recorded);
        } else {
            for (info, gradient) in self.parameters.infos().iter().zip(gradients) {
                if key.first {
                    tape.place(gradient, region, info.offset)?;
                } else {
                    let name = format!("{}.gradient", info.name);
                    let sum = tape.persistent(&name, region, info.offset, &info.shape)?;
                    ops::accumulate(&mut tape, sum, gradient)?;
                }
            }
            if key.last {
                update = Some(self.optimizer.record(&mut tape, weights, region, guard)?);
            }
        }
        // Kept in this order: see `loss_of`.
        tape.stop_on(loss.loss)?;
        if self.telemetry.is_some() {
            Telemetry::record_batch(&mut tape, &loss)?;
        }
        if let Some(update) = update {
            if let Some(norm) = update.norm {
                tape.stop_on(norm)?;
            }
            if let Some(telemetry) = &self.telemetry {
                telemetry.record_update(&mut tape, update.statistics)?;
            }
        }
        tape.compile(&self.store)
    }
}
