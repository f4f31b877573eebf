//! The learning-rate range test: one short run in which the rate rises from far too low to too high, and what its loss says of
//! the rates between.
//!
//! The highest rate of a cycle is that at which the smoothed loss was lowest, the lowest one that at which it had done a tenth of its
//! fall; each as many steps earlier as smoothing delays it.
//!
//! Source: Smith, "Cyclical learning rates for training neural networks", 2017 (first 2015), section 3.3.

use super::config::Config;
use super::make::trainer;
use crate::error::{Error, Result};
use std::time::Instant;

/// Steps of a test that is not told how many; fewer where an epoch has no more.
const STEPS: usize = 250;
/// A loss is so many steps behind, for each step of the test, and at least this many.
const DELAY: (f64, f64) = (0.04, 1.0);
/// The loss has broken where it is so many times what it was at the start, or has lost this share of its fall again.
const WORSE_THAN_START: f64 = 1.5;
const LOST: f64 = 0.5;
/// Share of the fall that is done at the lowest rate of a cycle.
const BEGUN: f64 = 0.1;
/// A fall is one where it is so many times the scatter of the batches' losses; and to have been lost again, it must have been more.
const SEEN: f64 = 2.0;
const SURE: f64 = 3.0;

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
        RangeOptions { from: 1e-5, to: 10.0, steps: None, linear: false }
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
    let (mut trainer, _) = trainer(config, (&data).into())?;
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
    for step in 0..steps {
        let rate = rate_of(step);
        let loss = trainer.step(step as u64 + 1, step * rows, rate)?;
        let smoothed = smooth.add(loss);
        broke = !loss.is_finite();
        if !broke {
            points.push(RangePoint { rate, loss, smoothed });
            broke = has_broken(&points);
        }
        if broke {
            break;
        }
    }
    Ok(RangeTest {
        suggestion: suggest(&points, steps),
        epochs: (points.len() * rows) as f64 / trainer.rows() as f64,
        points,
        broke,
        seconds_training: started.elapsed().as_secs_f64(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

impl RangeTest {
    /// Whether there were so few steps that the rates are no more than an order of magnitude.
    pub fn rough(&self) -> bool {
        self.points.len() < ROUGH
    }
}

/// A mean whose weights fall by a factor from each value to the one before.
struct Smooth {
    factor: f64,
    sum: f64,
    weight: f64,
}

/// By how many steps the smoothed loss is behind.
fn delay(steps: usize) -> f64 {
    (steps as f64 * DELAY.0).max(DELAY.1)
}

impl Smooth {
    fn over(steps: usize) -> Smooth {
        // The mean age of what is summed.
        let delay = delay(steps);
        Smooth { factor: delay / (delay + 1.0), sum: 0.0, weight: 0.0 }
    }

    fn add(&mut self, value: f64) -> f64 {
        self.sum = self.factor * self.sum + value;
        self.weight = self.factor * self.weight + 1.0;
        self.sum / self.weight
    }
}

/// Steps below which rates are a guess: over the range of the defaults two neighbours are more than a quarter apart, and each loss is
/// of one batch.
const ROUGH: usize = 50;
/// Steps from which on something can be said of a fall.
const FEWEST: usize = 8;

/// How a loss fell.
struct Fall {
    /// The loss before.
    start: f64,
    /// Where it was lowest.
    lowest: usize,
    /// How far it fell, and by how much the losses of batches scatter.
    depth: f64,
    scatter: f64,
}

fn fall(points: &[RangePoint]) -> Option<Fall> {
    if points.len() < FEWEST {
        return None;
    }
    let count = (points.len() / 10).max(3);
    let start = points[..count].iter().map(|point| point.loss).sum::<f64>() / count as f64;
    let at = |&i: &usize, &j: &usize| points[i].smoothed.total_cmp(&points[j].smoothed);
    let lowest = (0..points.len()).min_by(at)?;
    // Of neighbours, so that the fall itself does not count.
    let seen = &points[..=lowest.max(FEWEST - 1)];
    let squares = seen.windows(2).map(|pair| (pair[1].loss - pair[0].loss).powi(2));
    let scatter = (squares.sum::<f64>() / (2 * (seen.len() - 1)) as f64).sqrt();
    Some(Fall { start, lowest, depth: start - points[lowest].smoothed, scatter })
}

fn has_broken(points: &[RangePoint]) -> bool {
    let (Some(fall), Some(last)) = (fall(points), points.last()) else { return false };
    let lost = last.smoothed - (fall.start - fall.depth) > LOST * fall.depth;
    last.smoothed > WORSE_THAN_START * fall.start || (fall.depth > SURE * fall.scatter && lost)
}

fn suggest(points: &[RangePoint], steps: usize) -> Option<Suggestion> {
    let Fall { start, lowest, depth, scatter } = fall(points)?;
    if depth <= SEEN * scatter {
        return None;
    }
    let before = |place: usize| points[place.saturating_sub(delay(steps).round() as usize)].rate;
    let begun = points.iter().position(|point| point.smoothed < start - BEGUN * depth)?;
    let (minimum, maximum) = (before(begun.min(lowest)), before(lowest));
    (minimum < maximum).then_some(Suggestion { minimum, maximum })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(losses: impl Iterator<Item = f64>) -> Vec<RangePoint> {
        let losses: Vec<f64> = losses.collect();
        let mut smooth = Smooth::over(losses.len());
        let point = |(i, &loss): (usize, &f64)| {
            let rate = 10f64.powf(-5.0 + 6.0 * i as f64 / losses.len() as f64);
            RangePoint { rate, loss, smoothed: smooth.add(loss) }
        };
        losses.iter().enumerate().map(point).collect()
    }

    /// 2.3, from 1e-4 on down to 0.5 at 1e-2, and up again.
    fn curve(i: usize) -> f64 {
        let x = -5.0 + 6.0 * i as f64 / 200.0;
        let noise = [0.03, -0.02, -0.03, 0.02][i % 4];
        noise + (2.3 - 0.9 * (x + 4.0).max(0.0) + 2.7 * (x + 2.0).max(0.0)).max(0.3)
    }

    #[test]
    fn rates_are_those_of_the_loss_without_the_delay() {
        let points = points((0..200).map(curve));
        let Suggestion { minimum, maximum } = suggest(&points, 200).expect("rates");
        // The loss rises faster than it fell: so it is behind by less than the delay.
        assert!((0.5e-2..1.2e-2).contains(&maximum), "{maximum}");
        // A tenth of the fall is at 1.6e-4.
        assert!((1e-4..2.5e-4).contains(&minimum), "{minimum}");
        let broken = (1..=200).find(|&count| has_broken(&points[..count])).expect("it breaks");
        // Half of the fall is lost at 3.6e-2, and seen 8 steps later.
        assert!((3.6e-2..8e-2).contains(&points[broken - 1].rate), "{broken}");
    }

    #[test]
    fn noise_is_no_fall() {
        let noise = |i: usize| 2.3 + ((i * 7919) % 101) as f64 / 101.0;
        for count in [20, 200] {
            let points = points((0..count).map(noise));
            assert_eq!(suggest(&points, count), None);
            assert!((1..=count).all(|first| !has_broken(&points[..first])));
        }
        assert_eq!(suggest(&[], 20), None);
    }
}
