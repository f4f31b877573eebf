//! What a run found of its two clocks, as its last line keeps it under the key `clocks`.

use super::metrics::Epoch;
use serde::{Deserialize, Serialize};

/// The key of the journal's last line.
pub const KEY: &str = "clocks";
/// The key of a review at which levels were new.
pub const REACHED: &str = "reached";

/// Both clocks at the end of a run, or as far as it is. What was not measured, or is not to be told from the data, is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clocks {
    /// When the training loss, above its floor, first was at each of a ladder of levels, in nats.
    pub fit: Vec<Reached>,
    /// When the share of the excess stable rank that is left first was at each level.
    pub simple: Vec<Reached>,
    /// Mean training loss since the last review but one, in nats.
    pub loss: Option<f64>,
    /// The lowest loss that smoothed labels allow; 0 without smoothing.
    pub floor: f64,
    /// Share of training rows that were classified right.
    pub accuracy: Option<f64>,
    /// Mean margin of training rows: the right class's logit less the largest other one.
    pub margin: Option<f64>,
    /// The smallest margin.
    pub least_margin: Option<f64>,
    /// Growth of the mean margin in 1000 steps.
    pub growth: Option<Estimate>,
    /// Share of the training rows that are numerically saturated.
    pub saturated: Option<f64>,
    /// The tail exponent of the loss above its floor.
    pub tail_exponent: Option<Tail>,
    /// When the loss is at its next level.
    pub next: Option<Eta>,
    /// C so far: the sum over the steps of learning rate times decay.
    pub contraction: Option<f64>,
    /// C at the end as planned.
    pub planned: Option<f64>,
    /// Mean stable rank of the weight matrices at the start, and now.
    pub stable_rank: Option<[f64; 2]>,
    /// Mean effective rank of the weight matrices when it was last measured.
    pub effective_rank: Option<f64>,
    /// Share of the excess of the stable rank over 1 that is left.
    pub excess_rank: Option<f64>,
    /// Share of the ReLU gates that changed between the last two measurements.
    pub gate_flips: Option<f64>,
    /// Seconds of training until C is at what simplifies a linear net.
    pub done_in: Option<f64>,
    /// How much later half of the excess rank was gone than the loss was near its floor: in steps, and in seconds.
    pub ratio: Option<[f64; 2]>,
    /// The verdict on the run first, then remarks.
    pub advice: Vec<Said>,
}

/// The first moment at a level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// The level.
    pub level: f64,
    /// Updates done.
    pub step: f64,
    /// Seconds of training.
    pub seconds: f64,
}

/// Levels that were reached, as a review keeps them under [`REACHED`]: those that the review before did not know of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NewlyReached {
    /// Of the fit clock.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fit: Vec<Reached>,
    /// Of the simplicity clock.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub simple: Vec<Reached>,
}

/// A number with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A tail exponent: 1/2 is exponential, above it a power of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// The exponent.
    pub theta: Estimate,
    /// `polynomial` only where the interval excludes the exponential case.
    pub law: String,
}

/// A time to come, in seconds of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    /// The level.
    pub level: f64,
    /// At the earliest.
    pub early: f64,
    /// At the latest; `None` where it may never be.
    pub late: Option<f64>,
}

/// A piece of advice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// What to do.
    pub verdict: String,
    /// The rule and its numbers.
    pub reason: String,
    /// Reviews in a row that said so.
    pub reviews: usize,
    /// Whether these are enough.
    pub settled: bool,
}

impl Clocks {
    /// As a value of a journal's row.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or(serde_json::Value::Null)
    }

    /// What reviews say of a run that is not over, as far as they say it.
    pub fn so_far(epochs: &[Epoch]) -> Clocks {
        let mut clocks = Clocks::default();
        for epoch in epochs {
            let Some(value) = epoch.extra.get(REACHED) else { continue };
            // Of another form: as if it were not there.
            let Ok(new) = serde_json::from_value::<NewlyReached>(value.clone()) else { continue };
            for (known, new) in [(&mut clocks.fit, new.fit), (&mut clocks.simple, new.simple)] {
                // A resumed run says again what it knows.
                known.retain(|old| new.iter().all(|new| new.level != old.level));
                known.extend(new);
            }
        }
        let latest = |key: &str| epochs.iter().rev().find_map(|e| e.extra.get(key)?.as_f64());
        let last = epochs.last();
        clocks.loss = last.map(|epoch| epoch.train_loss).filter(|loss| loss.is_finite());
        clocks.accuracy = last.and_then(|epoch| epoch.train_acc);
        clocks.margin = latest("train_margin");
        clocks.least_margin = latest("least_margin");
        clocks.saturated = latest("saturated");
        clocks.contraction = latest("contraction");
        clocks.planned = latest("planned_contraction");
        clocks.excess_rank = latest("excess_rank");
        clocks
    }

    /// Of a journal's last line; `None` where that has none, or one of another form.
    pub fn of(done: &super::Done) -> Option<Clocks> {
        done.extra.get(KEY).and_then(|value| serde_json::from_value(value.clone()).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::{done, epoch};
    use super::*;

    #[test]
    fn reviews_add_up_to_what_is_reached_so_far() {
        let reached = |level: f64, step: f64| Reached { level, step, seconds: step / 100.0 };
        let review = |step: u64, new: NewlyReached| {
            let mut row = epoch(1, step, 0.9);
            row.extra.insert("contraction".into(), (step as f64 / 1e3).into());
            row.extra.insert(REACHED.into(), serde_json::to_value(new).unwrap());
            row
        };
        let (first, second) = (reached(1.0, 5.0), reached(0.3, 15.0));
        let slow = reached(0.9, 18.0);
        let mut odd = epoch(1, 30, 0.9);
        odd.extra.insert(REACHED.into(), "of another form".into());
        let epochs = [
            review(10, NewlyReached { fit: vec![first], simple: vec![] }),
            review(20, NewlyReached { fit: vec![second], simple: vec![slow] }),
            odd,
            // Resumed: all of it again.
            review(40, NewlyReached { fit: vec![first, second], simple: vec![slow] }),
        ];
        let found = Clocks::so_far(&epochs);
        assert_eq!((found.fit, found.simple), (vec![first, second], vec![slow]));
        assert_eq!(found.contraction, Some(0.04));
        assert_eq!(Clocks::so_far(&[]), Clocks::default());
    }

    #[test]
    fn it_comes_back_from_a_row() {
        let reached = Reached { level: 0.1, step: 120.5, seconds: 0.25 };
        let theta = Estimate { value: 0.5, low: 0.4, high: 0.6 };
        let clocks = Clocks {
            fit: vec![reached],
            loss: Some(0.5),
            tail_exponent: Some(Tail { theta, law: "exponential".into() }),
            next: Some(Eta { level: 0.03, early: 1.0, late: None }),
            ..Clocks::default()
        };
        let mut row = done(20, 0.9);
        assert_eq!(Clocks::of(&row), None);
        row.extra.insert(KEY.into(), clocks.to_value());
        let line = super::super::Row::from(row).to_json();
        let Ok(super::super::Row::Done(back)) = serde_json::from_str(&line) else {
            panic!("{line}")
        };
        assert_eq!(Clocks::of(&back), Some(clocks));
    }
}
