//! The part of a configuration that says how long to train, in what batches, and when to look.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The loop: batch, budget, reviews, checkpoints. The first bound that is met ends the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Rows of a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged for one update.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// How the learning rate follows the batch of `batch_schedule`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rate: Option<RateScale>,
    /// Share of a label that is spread over all classes.
    #[serde(default)]
    pub label_smoothing: f32,
    /// Epochs at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Updates at most; where they end within an epoch, the run does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Seconds of the whole run, from its start to its report: loading, training and reviews. The schedule is fitted
    /// into what training has of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Test accuracy, 0 to 1, that ends the run. One found on a sample of the test rows is confirmed on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_acc: Option<f64>,
    /// Ends the run when its advice is to stop.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_on_advice: bool,
    /// Largest share of the training time that reviews before the end may take: where one of all test rows would be
    /// more, it is one of a sample of them, or none. The review at the end is always of all.
    #[serde(default = "review_share")]
    pub review_share: f64,
    /// Updates between reviews; without it they are between epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review_steps: Option<u64>,
    /// Seconds between checkpoints.
    #[serde(default = "checkpoint_seconds")]
    pub checkpoint_seconds: f64,
    /// Ends the run when reviews find no gain any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau: Option<Plateau>,
    /// Batches of other sizes from given shares of the run on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch_schedule: Vec<BatchFrom>,
}

/// A batch from a share of the run on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchFrom {
    /// Share of the run, 0 to 1: of its epochs, updates or seconds, whichever bounds it.
    pub at: f64,
    /// Rows of a batch from there on.
    pub batch: usize,
}

/// How the learning rate follows the batch, measured against the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateScale {
    /// In proportion: Goyal et al., 2017, for SGD.
    Linear,
    /// By the square root: for rules that divide by a root of the second moment.
    Sqrt,
}

/// When a run is taken to gain nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plateau {
    /// So many reviews in a row.
    pub reviews: u64,
    /// A test accuracy counts as a gain where it is above the best one by more than this.
    pub min_gain: f64,
}

fn one() -> usize {
    1
}
fn review_share() -> f64 {
    0.05
}
fn checkpoint_seconds() -> f64 {
    30.0
}

impl LoopConfig {
    /// Rows of a batch at a share of the run, 0 to 1.
    pub fn batch_at(&self, share: f64) -> usize {
        let reached = self.batch_schedule.iter().take_while(|from| share >= from.at);
        reached.last().map_or(self.batch, |from| from.batch)
    }

    /// Factor of the learning rate for batches of so many rows.
    pub fn rate_factor(&self, batch: usize) -> f64 {
        let ratio = batch as f64 / self.batch as f64;
        match self.scale_rate {
            None => 1.0,
            Some(RateScale::Linear) => ratio,
            Some(RateScale::Sqrt) => ratio.sqrt(),
        }
    }

    /// Share of the run that is over at a place, by epochs and updates, whichever is further; 0 where neither bounds it.
    pub(super) fn share_at(&self, rows: usize, step: u64, epoch: u64, offset: usize) -> f64 {
        let done = epoch as f64 * rows as f64 + offset as f64;
        let by_epochs = self.epochs.map_or(0.0, |epochs| done / (epochs as f64 * rows as f64));
        let by_steps = self.steps.map_or(0.0, |steps| step as f64 / steps as f64);
        by_epochs.max(by_steps).clamp(0.0, 1.0)
    }

    /// All updates of a run over `rows` training rows, when it is not time alone that bounds it.
    pub(super) fn total_steps(&self, rows: usize) -> Option<u64> {
        let update = |batch: usize| batch.saturating_mul(self.accumulate);
        let Some(epochs) = self.epochs else { return self.steps };
        let limit = self.steps.unwrap_or(u64::MAX);
        if self.batch_schedule.is_empty() {
            let of_epoch = rows.div_ceil(update(self.batch)) as u64;
            return Some(epochs.saturating_mul(of_epoch).min(limit));
        }
        // An update keeps the size that it begins with, and ends with its epoch: so they are counted one by one in the epochs in
        // which the size may change, and at once in those between.
        let (mut step, mut epoch) = (0u64, 0u64);
        while epoch < epochs {
            let share = self.share_at(rows, step, epoch, 0);
            let of_epoch = rows.div_ceil(update(self.batch_at(share)).max(1)) as u64;
            let next = self.batch_schedule.iter().map(|from| from.at).find(|&at| at > share);
            let next = next.unwrap_or(f64::INFINITY);
            // Two fewer than there may be: shares are rounded.
            let whole = |bound: f64, done: u64, size: u64| {
                ((next * bound - done as f64) / size.max(1) as f64 - 2.0).max(0.0) as u64
            };
            let by_steps = self.steps.map_or(u64::MAX, |all| whole(all as f64, step, of_epoch));
            let count = whole(epochs as f64, epoch, 1).min(by_steps).min(epochs - epoch);
            if count > 0 {
                step = step.saturating_add(count.saturating_mul(of_epoch));
                epoch += count;
                if step >= limit {
                    return Some(limit);
                }
                continue;
            }
            let mut offset = 0usize;
            while offset < rows {
                if step >= limit {
                    return Some(limit);
                }
                let batch = self.batch_at(self.share_at(rows, step, epoch, offset));
                offset = offset.saturating_add(update(batch));
                step += 1;
            }
            epoch += 1;
        }
        Some(step)
    }

    /// Rows of a batch where `share` of the updates are done that come after the share `from` of the run, over `rows` training rows.
    pub(super) fn batch_after(&self, rows: usize, from: f64, share: f64) -> usize {
        // Where epochs bound the run, its shares are of rows: of large batches there are fewer updates.
        let by_rows = self.seconds.is_none()
            && self.epochs.is_some()
            && self.steps.is_none_or(|steps| self.total_steps(rows).is_some_and(|all| all < steps));
        let starts = [(0.0, self.batch)].into_iter();
        let starts = starts.chain(self.batch_schedule.iter().map(|from| (from.at, from.batch)));
        let ends = self.batch_schedule.iter().map(|from| from.at).chain([1.0]);
        let pieces: Vec<(usize, f64)> = starts
            .zip(ends)
            .map(|((start, batch), end)| {
                let size = if by_rows { batch as f64 } else { 1.0 };
                (batch, (end - start.max(from)).max(0.0) / size)
            })
            .collect();
        let mut left = share * pieces.iter().map(|piece| piece.1).sum::<f64>();
        let holds = |&(_, updates): &(usize, f64)| {
            left -= updates;
            left < 0.0
        };
        let last = pieces[pieces.len() - 1];
        pieces.iter().copied().find(holds).unwrap_or(last).0
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        let refuse =
            |key: &str, problem: String| Err(Error::config(format!("train.{key}"), problem));
        let LoopConfig { batch, epochs, steps, seconds, target_acc, .. } = *self;
        if batch == 0 {
            return refuse("batch", "0 rows: a batch has at least one".into());
        }
        if self.accumulate == 0 {
            return refuse("accumulate", "0 batches: an update takes at least one".into());
        }
        if epochs.is_none() && steps.is_none() && seconds.is_none() {
            let problem = "none of `epochs`, `steps` and `seconds` bounds the run";
            return Err(Error::config("train", problem));
        }
        if epochs == Some(0) {
            return refuse("epochs", "0 epochs: a run has at least one".into());
        }
        if steps == Some(0) {
            return refuse("steps", "0 updates: a run has at least one".into());
        }
        if let Some(seconds) = seconds.filter(|s| !(s.is_finite() && *s > 0.0)) {
            return refuse("seconds", format!("{seconds} is not a time above 0"));
        }
        if let Some(target) = target_acc.filter(|t| !(*t > 0.0 && *t <= 1.0)) {
            return refuse("target_acc", format!("{target} is not in (0, 1]"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse("label_smoothing", format!("{} is not in [0, 1)", self.label_smoothing));
        }
        if !(self.review_share > 0.0 && self.review_share.is_finite()) {
            let problem = format!("{} is not a share above 0", self.review_share);
            return refuse("review_share", problem);
        }
        if self.review_steps == Some(0) {
            return refuse("review_steps", "0 updates: there is at least one between two".into());
        }
        if self.checkpoint_seconds.is_nan() || self.checkpoint_seconds < 0.0 {
            return refuse(
                "checkpoint_seconds",
                format!("{} is not a time", self.checkpoint_seconds),
            );
        }
        if let Some(Plateau { reviews, min_gain }) = self.plateau {
            if reviews == 0 {
                return refuse("plateau.reviews", "0 reviews: it takes at least one".into());
            }
            if !(0.0..1.0).contains(&min_gain) {
                return refuse("plateau.min_gain", format!("{min_gain} is not in [0, 1)"));
            }
        }
        self.validate_batches()
    }

    fn validate_batches(&self) -> Result<()> {
        let refuse =
            |key: &str, problem: String| Err(Error::config(format!("train.{key}"), problem));
        if self.scale_rate.is_some() && self.batch_schedule.is_empty() {
            return refuse(
                "scale_rate",
                "there is no `batch_schedule` whose batches it is for".into(),
            );
        }
        let mut before = f64::NEG_INFINITY;
        for (number, &BatchFrom { at, batch }) in self.batch_schedule.iter().enumerate() {
            let key = format!("batch_schedule[{number}]");
            if !(0.0..1.0).contains(&at) {
                return refuse(&key, format!("at = {at} is not in [0, 1)"));
            }
            if at <= before {
                return refuse(&key, format!("at = {at} does not come after {before}"));
            }
            if batch == 0 {
                return refuse(&key, "batch = 0: a batch has at least one row".into());
            }
            if at == 0.0 && batch != self.batch {
                let problem =
                    format!("begins with batches of {batch}, but `batch` is {}", self.batch);
                return refuse(&key, problem);
            }
            before = at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LoopConfig> {
        let config: LoopConfig = toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        config.validate().map(|()| config)
    }

    #[test]
    fn updates_of_a_batch_schedule_are_counted_as_they_fall() {
        let batches = "batch_schedule = [{ at = 0.0, batch = 10 }, { at = 0.5, batch = 40 }]";
        for (bound, rows, want) in [
            // 10 of 10 rows, then 3 of 40 (the last one is short).
            ("epochs = 2", 100, 13),
            // The half is within an epoch: 15 of 10 in all, the rest by 40: 50 and 100 rows.
            ("epochs = 3", 100, 10 + 5 + 2 + 3),
            // Three of 10 rows reach the half only with their last one: 4 begin before it.
            ("epochs = 1", 70, 4 + 1),
            ("steps = 9", 70, 9),
            // Of 11 updates the half comes earlier, and then there are rows for 10 only.
            ("epochs = 2\nsteps = 11", 100, 10),
            ("epochs = 2\nsteps = 1000", 100, 13),
        ] {
            let config = parse(&format!("batch = 10\n{bound}\n{batches}")).expect("valid");
            assert_eq!(config.total_steps(rows), Some(want), "{bound}");
        }
        let config = parse("batch = 10\nepochs = 3").expect("valid");
        assert_eq!(config.total_steps(101), Some(33));
        // As many epochs as a run by time may be given: counted in no time, and as exactly.
        let config = |epochs: u64| LoopConfig {
            epochs: Some(epochs),
            ..parse(&format!("batch = 10\nepochs = 1\n{batches}")).expect("valid")
        };
        let half = 500_000_000_000;
        assert_eq!(config(2 * half).total_steps(100), Some(half * (10 + 3)));
        assert_eq!(config(u64::MAX).total_steps(100), Some(u64::MAX));
        let config = parse(&format!("batch = 10\nseconds = 3.0\n{batches}")).expect("valid");
        assert_eq!(config.total_steps(101), None);
        assert_eq!([0.0, 0.49, 0.5, 1.0].map(|share| config.batch_at(share)), [10, 10, 40, 40]);
    }

    #[test]
    fn batches_to_come_are_known_by_the_share_of_updates() {
        let batches = "batch_schedule = [{ at = 0.5, batch = 40 }]";
        let of = |bound: &str| parse(&format!("batch = 10\n{bound}\n{batches}")).expect("valid");
        let at = |config: &LoopConfig, from: f64| {
            [0.0, 0.45, 0.55, 0.79, 0.81, 0.99].map(|share| config.batch_after(1000, from, share))
        };
        // Of 250 updates 200 have 10 rows.
        assert_eq!(at(&of("epochs = 4"), 0.0), [10, 10, 10, 10, 40, 40]);
        assert_eq!(at(&of("epochs = 4\nsteps = 1000"), 0.0), [10, 10, 10, 10, 40, 40]);
        for bound in ["steps = 100", "seconds = 9.0", "epochs = 4\nsteps = 20"] {
            assert_eq!(at(&of(bound), 0.0), [10, 10, 40, 40, 40, 40], "{bound}");
            assert_eq!(at(&of(bound), 0.7), [40; 6], "{bound}");
        }
    }

    #[test]
    fn rates_follow_the_batch_where_they_are_to() {
        let text = "batch = 10\nepochs = 2\nbatch_schedule = [{ at = 0.5, batch = 40 }]\n";
        for (scale, want) in
            [("", 1.0), ("scale_rate = 'linear'", 4.0), ("scale_rate = 'sqrt'", 2.0)]
        {
            let config = parse(&format!("{text}{scale}")).expect("valid");
            assert_eq!((config.rate_factor(10), config.rate_factor(40)), (1.0, want));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_key() {
        for (text, words) in [
            ("batch_schedule = [{ at = 1.0, batch = 4 }]", "batch_schedule[0]: at = 1"),
            ("batch_schedule = [{ at = 0.0, batch = 4 }]", "batches of 4, but `batch` is 10"),
            (
                "batch_schedule = [{ at = 0.5, batch = 4 }, { at = 0.5, batch = 5 }]",
                "batch_schedule[1]: at = 0.5",
            ),
            ("batch_schedule = [{ at = 0.5, batch = 0 }]", "batch_schedule[0]: batch = 0"),
            ("scale_rate = 'sqrt'", "train.scale_rate"),
            ("plateau = { reviews = 0, min_gain = 0.1 }", "train.plateau.reviews"),
            ("plateau = { reviews = 1, min_gain = -0.1 }", "train.plateau.min_gain: -0.1"),
            ("review_steps = 0", "train.review_steps"),
            ("review_share = 0.0", "train.review_share: 0"),
        ] {
            let error = parse(&format!("batch = 10\nepochs = 1\n{text}")).expect_err(text);
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
