//! Reviews: loss, accuracy and margin on the test set, or on a sample of it.

use super::{Pass, Resident, Trainer};
use crate::data::order;
use crate::error::Result;
use crate::nn::Mode;
use crate::ops::{self, Var};
use crate::tape::{Recording, Tape};

/// Rows of a review batch.
pub(super) const REVIEW_ROWS: usize = 512;

/// Seed of the sample of the test set: one for all runs, so that they can be compared.
const SAMPLE_SEED: u64 = 0x7e57;

/// What a review found on the test set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Review {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Share of rows classified right, 0 to 1.
    pub accuracy: f64,
    /// Mean logit of the right class minus the largest other one.
    pub margin: f64,
}

impl Trainer {
    fn record_review(&self, data: &Resident, rows: usize) -> Result<(Recording, Var)> {
        let mut tape = Tape::new(&self.store);
        let parameters = self.evaluated();
        let Pass { logits, labels, .. } =
            self.record_forward(&mut tape, &parameters, data, rows, Mode::Eval)?;
        let loss =
            tape.scoped("loss", |tape| ops::softmax_cross_entropy(tape, logits, labels, 0.0))?;
        tape.keep(loss.loss)?;
        tape.keep(loss.statistics)?;
        tape.output(logits)?;
        Ok((tape.compile(&self.store)?, logits))
    }

    /// Loss, accuracy and margin on the test set.
    ///
    /// # Errors
    /// Recording fails.
    pub fn review(&mut self) -> Result<Review> {
        self.review_of(self.test)
    }

    /// The same on a sample of so many rows of the test set, which are always the same; all of them where it has no more.
    ///
    /// # Errors
    /// Recording fails.
    pub fn review_sample(&mut self, rows: usize) -> Result<Review> {
        if rows >= self.test.rows {
            return self.review();
        }
        let sample = match self.sample.filter(|sample| self.store.len(sample.order) == rows) {
            Some(sample) => sample,
            None => {
                let all = order(SAMPLE_SEED, 0, self.test.rows);
                let name = format!("test.sample of {rows}");
                Resident { order: self.store.upload(&name, &all[..rows]), ..self.test }
            }
        };
        self.sample = Some(sample);
        self.review_of(sample)
    }

    fn review_of(&mut self, data: Resident) -> Result<Review> {
        let total = self.store.len(data.order);
        let (mut loss, mut right, mut margin) = (0.0, 0.0, 0.0);
        let all = data.order == self.test.order;
        self.reviewed.begin(&self.store, if all { total * self.classes } else { 0 });
        for start in (0..total).step_by(REVIEW_ROWS) {
            let rows = REVIEW_ROWS.min(total - start);
            let key = (data.order, rows);
            if !self.reviews.contains(&key) {
                let (recording, logits) = self.record_review(&data, rows)?;
                self.reviews.get(key, || Ok(recording))?;
                self.reviewed.recorded(key, logits);
            }
            let recording = self.reviews.get(key, || unreachable!("recorded above"))?;
            let offset = self.offset;
            recording.enqueue(&mut self.store, 1, |_, control| {
                control.set_u64(offset, start as u64);
            })?;
            self.reviewed.take(recording, key, self.classes)?;
        }
        self.store.collect(&mut self.kept)?;
        for (start, kept) in (0..total).step_by(REVIEW_ROWS).zip(&self.kept) {
            let rows = REVIEW_ROWS.min(total - start) as f64;
            let [of_batch, of_margin, _, of_right, ..] = kept.map(f64::from);
            loss += of_batch * rows;
            margin += of_margin * rows;
            right += of_right;
        }
        let total = total as f64;
        Ok(Review { loss: loss / total, accuracy: right / total, margin: margin / total })
    }
}
