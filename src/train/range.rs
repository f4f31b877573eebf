//! The learning-rate range test: one short run in which the rate rises from far too low to too high, and what its loss says of
//! the rates between.
//!
//! Source: Smith, "Cyclical learning rates for training neural networks", 2017 (first 2015), section 3.3.

use super::config::Config;
use super::make::trainer;
use crate::error::{Error, Result};
use std::time::Instant;

/// Steps of a test that is not told how many; fewer where an epoch has no more.
const STEPS: usize = 250;
/// A loss that is so many times the lowest one, or more than this times the first, has broken: the test ends.
const BROKEN: f64 = 4.0;
const WORSE_THAN_START: f64 = 1.5;

/// How a range test goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeOptions {
    /// First rate.
    pub from: f64,
    /// Last rate, if the loss does not break before.
    pub to: f64,
    /// Steps from the one to the other.
    pub steps: Option<usize>,
    /// Whether the rate rises by as much in each step; it rises by a factor otherwise.
    pub linear: bool,
}

impl Default for RangeOptions {
    fn default() -> Self {
        RangeOptions { from: 1e-6, to: 10.0, steps: None, linear: false }
    }
}

/// A step of a range test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangePoint {
    /// Learning rate.
    pub rate: f64,
    /// Loss of the step's batch, before its update.
    pub loss: f64,
    /// The same, smoothed.
    pub smoothed: f64,
}

/// What a range test found.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeTest {
    /// The steps, up to where the loss broke.
    pub points: Vec<RangePoint>,
    /// Whether it broke before the last rate.
    pub broke: bool,
    /// The rates that are suggested; none where the loss never fell.
    pub suggestion: Option<Suggestion>,
    /// Share of an epoch that was trained on.
    pub epochs: f64,
    /// Seconds of the steps, and of all.
    pub seconds_training: f64,
    /// Seconds from the start, data and recording included.
    pub seconds: f64,
}

/// Learning rates for a schedule that goes up and down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suggestion {
    /// Lowest rate.
    pub minimum: f64,
    /// Highest rate: the `rate` of a one-cycle.
    pub maximum: f64,
}

/// Runs a range test of a configuration: with its model, data, batch and optimizer as at its first step. Nothing is kept.
///
/// # Errors
/// The options or the configuration cannot be used, or an epoch has too few full batches.
pub fn range_test(config: &Config, options: RangeOptions) -> Result<RangeTest> {
    let began = Instant::now();
    config.validate()?;
    let RangeOptions { from, to, steps, linear } = options;
    let refuse = |place: &str, problem: String| Err(Error::config(place, problem));
    for (place, rate) in [("--from", from), ("--to", to)] {
        if !(rate.is_finite() && rate > 0.0) {
            return refuse(place, format!("{rate} is not a learning rate above 0"));
        }
    }
    if to <= from {
        return refuse("--to", format!("{to} is not above the first rate, {from}"));
    }
    let data = config.data.source()?.load()?;
    let (mut trainer, _) = trainer(config, &data)?;
    let rows = trainer.update_rows(0);
    let full = trainer.rows() / rows;
    let steps = steps.unwrap_or(STEPS.min(full));
    if steps < 10 || steps > full {
        let problem = format!(
            "{steps} steps: an epoch has {full} of {rows} rows, and a test takes 10 to that many"
        );
        return refuse("--steps", problem);
    }
    trainer.start_epoch(0)?;
    let started = Instant::now();
    let rate_of = |step: usize| {
        let x = step as f64 / (steps - 1) as f64;
        if linear { from + (to - from) * x } else { from * (to / from).powf(x) }
    };
    let mut smooth = Smooth::over(steps);
    let (mut points, mut broke) = (Vec::with_capacity(steps), false);
    let mut lowest = f64::INFINITY;
    for step in 0..steps {
        let rate = rate_of(step);
        let loss = trainer.step(step as u64 + 1, step * rows, rate)?;
        let smoothed = smooth.add(loss);
        broke = !loss.is_finite();
        if !broke {
            points.push(RangePoint { rate, loss, smoothed });
            lowest = lowest.min(smoothed);
            broke = smoothed > BROKEN * lowest || smoothed > WORSE_THAN_START * points[0].loss;
        }
        if broke {
            break;
        }
    }
    Ok(RangeTest {
        suggestion: suggest(&points),
        epochs: (points.len() * rows) as f64 / trainer.rows() as f64,
        points,
        broke,
        seconds_training: started.elapsed().as_secs_f64(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// A mean whose weights fall by a factor from each value to the one before.
struct Smooth {
    factor: f64,
    sum: f64,
    weight: f64,
}

impl Smooth {
    fn over(steps: usize) -> Smooth {
        Smooth { factor: 1.0 - 1.0 / (steps as f64 / 25.0).max(2.0), sum: 0.0, weight: 0.0 }
    }

    fn add(&mut self, value: f64) -> f64 {
        self.sum = self.factor * self.sum + (1.0 - self.factor) * value;
        self.weight = self.factor * self.weight + (1.0 - self.factor);
        self.sum / self.weight
    }
}

fn suggest(points: &[RangePoint]) -> Option<Suggestion> {
    let lowest = points.iter().min_by(|a, b| a.smoothed.total_cmp(&b.smoothed))?;
    let first = points.first()?;
    (lowest.smoothed < first.loss)
        .then(|| Suggestion { minimum: lowest.rate / 100.0, maximum: lowest.rate / 10.0 })
}
