//! What bounds a run, how much of it is used, and how a schedule is fitted into a time.
//!
//! A time is that of the whole run, as whoever waits for it has it. What comes after the last step (the review of all
//! test rows, the checkpoint, the report) is kept back for it: as measured in this run where that is known. What is then left,
//! over the time of a step, is a number of steps, and each step moves the schedule by its share of what is left
//! of it. So the schedule has neither jumps nor an end that is cut off, however the speed changes.

use super::closing;
use super::loop_config::LoopConfig;
use super::observer::Reason;
use super::runner::Runner;
use crate::error::Result;
use crate::optim;
use std::time::Instant;

/// How long the steps may take that a device is given at once: so long after it ends a run that is to stop.
const AT_ONCE_SECONDS: f64 = 0.004;

/// Weight of the newest step in the mean of their times, and by how much it can seem to be longer than that.
const NEWEST: f64 = 0.05;
const LONGEST: f64 = 4.0;

/// Seconds that a checkpoint and a report take before they are measured: so much, and as long as this many bytes a second need.
const ENDING_SECONDS: f64 = 0.03;
const ENDING_BYTES_PER_S: f64 = 4e8;
/// Seconds in which the process begins and ends.
const EXIT_SECONDS: f64 = 0.012;
/// Largest share of a time that measuring its end may take.
const REHEARSAL_SHARE: f64 = 0.03;

/// Share of a time that is kept for what is found out about the net after the last step.
const CLOSING_SHARE: f64 = 0.01;

/// Test rows of a review that is not of all of them.
const SAMPLE_ROWS: usize = 2048;
/// Test rows by which the cost of a review is measured.
const PROBED_ROWS: usize = 512;

/// Times of steps, reviews and what ends a run, as this process measured them.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    /// A step, in the mean; not the first one.
    pub(super) step: Option<f64>,
    /// How many steps were given at once when they were last timed.
    last_count: usize,
    /// A test row in a review, and a review beside its rows.
    pub(super) test_row: Option<f64>,
    pub(super) review_rest: f64,
    /// A probe without effective ranks, and these.
    pub(super) probe: f64,
    pub(super) effective: Option<f64>,
    /// A checkpoint and a report.
    pub(super) checkpoint: Option<f64>,
    pub(super) report: Option<f64>,
}

/// A sample of so many test rows, where it is much less than all of them.
pub(super) fn sample(rows: usize) -> Option<usize> {
    (rows >= 2 * SAMPLE_ROWS).then_some(SAMPLE_ROWS)
}

impl Times {
    /// Takes account of `count` steps that were given at once.
    pub(super) fn stepped(&mut self, seconds: f64, count: usize) {
        self.last_count = count;
        self.step = Some(match self.step {
            Some(mean) => mean + NEWEST * (seconds.min(LONGEST * mean) - mean),
            None => seconds,
        });
    }

    /// Seconds of a review of so many rows.
    fn review(&self, rows: usize) -> f64 {
        self.review_rest + self.test_row.unwrap_or(0.0) * rows as f64
    }

    /// Rows of a review of `all` test rows that takes no more than `seconds`: all, a sample, or none.
    fn affordable(&self, seconds: f64, all: usize) -> Option<usize> {
        [Some(all), sample(all)].into_iter().flatten().find(|&rows| self.review(rows) <= seconds)
    }

    /// Seconds of a probe with effective ranks, which take as long as the rest where they have not been timed.
    pub(super) fn whole_probe(&self) -> f64 {
        self.probe + self.effective.unwrap_or(self.probe)
    }

    /// Seconds of all that comes after the last step: `rows` test rows are reviewed, a checkpoint has so many bytes.
    fn ending(&self, rows: usize, bytes: f64) -> f64 {
        let unmeasured = ENDING_SECONDS + bytes / ENDING_BYTES_PER_S;
        let written = self.checkpoint.zip(self.report).map_or(unmeasured, |(a, b)| a + b);
        self.review(rows) + self.whole_probe() + written + EXIT_SECONDS
    }
}

/// Steps that go into so many seconds, this one included.
fn steps_within(seconds: f64, step: f64) -> u64 {
    (seconds / step).round().max(1.0) as u64
}

/// Where the steps of a schedule lie: the first one, of `left`, at `from`, and the last one at 1. Without a number
/// that is known they stay where they are.
fn places(from: f64, left: Option<u64>) -> impl Iterator<Item = f64> {
    let mut next = (from.min(1.0), left);
    std::iter::from_fn(move || {
        let (place, left) = next;
        next = match left {
            Some(..=1) => (1.0, left),
            Some(left) => (place + (1.0 - place) / (left - 1) as f64, Some(left - 1)),
            None => next,
        };
        Some(if matches!(left, Some(..=1)) { 1.0 } else { place })
    })
}

/// Steps that are given to a device together.
pub(super) struct Planned {
    /// Where in the schedule each is.
    pub(super) places: Vec<optim::Position>,
    /// Rows of their batches.
    pub(super) batch: usize,
    /// Where in the schedule the one after them is, and whether one of them was the last one; of use to a run that time bounds.
    pub(super) next: f64,
    pub(super) last: bool,
}

impl Runner<'_> {
    /// Share of the run that is over, 0 to 1: by its steps, or by the schedule where time bounds it; whichever is larger.
    pub(super) fn progress(&self) -> f64 {
        let by_steps = self.total_steps.map_or(0.0, |all| self.position.step as f64 / all as f64);
        by_steps.max(self.position.progress()).clamp(0.0, 1.0)
    }

    /// Seconds of the whole run so far.
    pub(super) fn elapsed(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Seconds that are left for steps, where time bounds the run.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let ending = self.times.ending(self.test_rows, self.checkpoint_bytes());
        let all = self.config.train.seconds?;
        Some(all - self.elapsed() - ending - self.closing_allowance())
    }

    /// Whether a review at this moment is the last one, as far as budgets say.
    fn is_over(&self) -> bool {
        let limits = &self.config.train;
        let by_epochs = limits.epochs.is_some_and(|epochs| self.position.epoch >= epochs);
        by_epochs || self.used_up(limits).is_some()
    }

    /// Whether a review of which `seconds` are spent looks at the weights too, for `cost` more: at the end (of the budget, or as the target is
    /// reached), and else where all such looks stay within half of the share of reviews.
    pub(super) fn probe_is_due(&self, seconds: f64, reached: bool, cost: f64) -> bool {
        let LoopConfig { review_share, .. } = self.config.train;
        let all = review_share * self.position.seconds_training();
        let probes = self.position.seconds_probe() + cost;
        let reviews = self.position.seconds_review() + seconds + cost;
        let over = reached || self.is_over();
        self.config.clocks.telemetry && (over || (probes <= all / 2.0 && reviews <= all))
    }

    /// Seconds that may go into finding out about the net after the last step.
    pub(super) fn closing_allowance(&self) -> f64 {
        let LoopConfig { seconds, review_share, .. } = self.config.train;
        let usual = closing::allowance(review_share, self.position.seconds_training());
        seconds.map_or(usual, |all| usual.min(CLOSING_SHARE * all))
    }

    fn checkpoint_bytes(&self) -> f64 {
        // Weights and, as a rule, two moments.
        let values = self.trainer.parameters().parameters().flat_len();
        (3 * values * size_of::<f32>()) as f64
    }

    /// Steps that are left, the next one included, where time bounds the run and it is known how long one takes.
    fn steps_left(&self) -> Option<u64> {
        let seconds = self.seconds_left()?;
        let by_steps = self.total_steps.map(|all| all.saturating_sub(self.position.step).max(1));
        let by_time = match self.times.step {
            Some(step) => Some(steps_within(seconds, step)),
            None if seconds <= 0.0 => Some(1),
            None => None,
        };
        by_steps.into_iter().chain(by_time).min().filter(|_| by_time.is_some())
    }

    /// Which of the budgets that may end within an epoch is used up.
    pub(super) fn used_up(&self, limits: &LoopConfig) -> Option<Reason> {
        if limits.steps.is_some_and(|steps| self.position.step >= steps) {
            return Some(Reason::Steps);
        }
        (limits.seconds.is_some() && self.position.out_of_time).then_some(Reason::Time)
    }

    /// Whether a resumed run was at its end already.
    pub(super) fn ended_before(&self, limits: &LoopConfig) -> Option<Reason> {
        if self.position.step == 0 {
            return None;
        }
        match self.position.ended_by {
            Some(Reason::Plateau) if limits.plateau.is_some() => return Some(Reason::Plateau),
            Some(Reason::Advice) if limits.stop_on_advice => return Some(Reason::Advice),
            _ => {}
        }
        if limits.target_acc.is_some() && self.position.seconds_to_target.is_some() {
            return Some(Reason::Target);
        }
        if limits.epochs.is_some_and(|epochs| self.position.epoch >= epochs) {
            return Some(Reason::Epochs);
        }
        None
    }

    /// Rows of the batches of an update at this place, where the schedule is at `progress`.
    fn batch_at(&self, limits: &LoopConfig, step: u64, offset: usize, progress: f64) -> usize {
        if limits.batch_schedule.is_empty() {
            return limits.batch;
        }
        let share = limits.share_at(self.trainer.rows(), step, self.position.epoch, offset);
        limits.batch_at(match limits.seconds {
            Some(_) => share.max(progress),
            None => share,
        })
    }

    /// The steps to give to the device at once: as many as take some milliseconds, of batches alike, no more than are left of
    /// the epoch, the updates and the time.
    pub(super) fn plan(&self, limits: &LoopConfig) -> Planned {
        let (first, rows) = (self.position.step, self.trainer.rows());
        let left = self.steps_left();
        let mut places = places(self.position.progress(), left);
        let mut next = places.next().unwrap_or(1.0);
        let batch = self.batch_at(limits, first, self.position.offset, next);
        let per_update = batch.saturating_mul(limits.accumulate);
        let most = self.most_at_once(limits, per_update, left);
        let mut planned = Planned { places: Vec::new(), batch, next, last: false };
        for i in 0..most {
            let (step, offset) = (first + i as u64, self.position.offset + i * per_update);
            if i > 0 && (offset >= rows || self.batch_at(limits, step, offset, next) != batch) {
                break;
            }
            // With a time budget the horizon is the schedule's own, not a number of steps.
            planned.places.push(match limits.seconds {
                Some(_) => optim::Position { step, total_steps: None, progress: next },
                None => {
                    let progress = self.total_steps.map_or(0.0, |all| step as f64 / all as f64);
                    optim::Position { step, total_steps: self.total_steps, progress }
                }
            });
            planned.last = limits.seconds.is_some() && next >= 1.0;
            next = places.next().unwrap_or(1.0);
        }
        planned.next = next;
        planned
    }

    fn most_at_once(&self, limits: &LoopConfig, per_update: usize, left: Option<u64>) -> usize {
        let of_epoch = (self.trainer.rows() - self.position.offset).div_ceil(per_update.max(1));
        // Not many at once before some have shown how long they take.
        let mut count = self.trainer.at_once().min(of_epoch).min(2 * self.times.last_count.max(1));
        let of_steps = limits.steps.map(|steps| steps - self.position.step);
        for limit in of_steps.into_iter().chain(left) {
            count = count.min(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        // The first step also waits for the copies before it: it says nothing of the others.
        match self.times.step {
            Some(step) => count.min((AT_ONCE_SECONDS / step) as usize).max(1),
            None => 1,
        }
    }

    /// Measures what a review costs, if nothing has yet: with some rows, whose figures nobody asks for.
    pub(super) fn measure_review(&mut self) -> Result<()> {
        if self.times.test_row.is_none() {
            let rows = PROBED_ROWS.min(self.test_rows);
            // The first time it is recorded, which the ones that follow are not.
            self.score(rows)?;
            let began = Instant::now();
            self.score(rows)?;
            self.times.test_row = Some(began.elapsed().as_secs_f64() / rows as f64);
        }
        Ok(())
    }

    /// Test rows of a review that keeps within its share of the training time: all, a sample, or none.
    pub(super) fn affordable_rows(&mut self) -> Result<Option<usize>> {
        self.measure_review()?;
        let share = self.config.train.review_share;
        let time = share * self.position.seconds_training() - self.position.seconds_review();
        Ok(self.times.affordable(time, self.test_rows))
    }

    /// Whether the end of the run should be measured now: where its time is short enough for that to matter, and long enough
    /// to bear it.
    pub(super) fn rehearsal_is_due(&self) -> bool {
        let unmeasured = self.times.checkpoint.is_none() || self.times.report.is_none();
        self.config.train.seconds.is_some_and(|all| {
            let cost = self.times.ending(0, self.checkpoint_bytes());
            unmeasured && self.elapsed() >= 0.1 * all && cost <= REHEARSAL_SHARE * all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `seconds` whose steps take what `step` says of them: where each was, and how long it took in all.
    fn simulated(seconds: f64, step: impl Fn(usize) -> f64) -> (Vec<f64>, f64) {
        let (mut times, mut place, mut clock) = (Times::default(), 0.0, 0.0);
        let mut seen: Vec<f64> = Vec::new();
        while seen.last().is_none_or(|&at| at < 1.0) {
            let left = times.step.map(|step| steps_within(seconds - clock, step));
            let mut places = places(place, left);
            seen.extend(places.next());
            place = places.next().expect("there is always one");
            let took = step(seen.len() - 1);
            clock += took;
            if seen.len() > 1 {
                times.stepped(took, 1);
            }
        }
        (seen, clock)
    }

    #[test]
    fn steps_of_one_length_are_spaced_alike_and_end_in_time() {
        let (places, clock) = simulated(1.0, |_| 0.01);
        assert!((clock - 1.0).abs() < 0.011, "{clock}");
        assert_eq!(places.last(), Some(&1.0));
        for pair in places[2..].windows(2) {
            assert!((pair[1] - pair[0] - 1.0 / 97.0).abs() < 1e-9, "{pair:?}");
        }
    }

    /// The first step is long; then the machine is three times as slow for the middle third; and at times it stands still.
    #[test]
    fn a_schedule_is_whole_whatever_the_speed_does() {
        let step = |i: usize| match i {
            0 => 0.2,
            i if i.is_multiple_of(97) => 0.05,
            300..500 => 0.006,
            _ => 0.002,
        };
        let (places, clock) = simulated(2.0, step);
        assert!((clock - 2.0).abs() < 0.02, "{clock}");
        assert!(places.is_sorted());
        assert_eq!(places.last(), Some(&1.0));
        // It comes to its end, and does not jump there.
        let widest = places.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        assert!(widest < 0.02, "{widest}");
    }

    #[test]
    fn a_time_that_is_over_has_one_last_step() {
        let (places, _) = simulated(-1.0, |_| 0.01);
        // The second one is the first whose length is known.
        assert_eq!(places, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_review_is_of_as_many_rows_as_its_time_has_room_for() {
        let times = Times { test_row: Some(1e-5), review_rest: 0.01, ..Times::default() };
        // All 40 000 take 0.41 s, a sample 0.0305 s.
        for (seconds, rows) in [
            (0.42, Some(40_000)),
            (0.4, Some(SAMPLE_ROWS)),
            (0.031, Some(SAMPLE_ROWS)),
            (0.03, None),
        ] {
            assert_eq!(times.affordable(seconds, 40_000), rows, "{seconds} s");
        }
        assert_eq!(times.affordable(-1.0, 40_000), None);
        // Half of a set is no sample of it.
        let small = 2 * SAMPLE_ROWS - 1;
        assert_eq!(times.affordable(0.051, small), Some(small));
        assert_eq!(times.affordable(0.05, small), None);
    }

    #[test]
    fn the_end_is_kept_back_as_it_was_measured() {
        let mut times = Times { test_row: Some(1e-5), ..Times::default() };
        let guessed = times.ending(10_000, 4e6);
        let wanted = 0.1 + ENDING_SECONDS + 0.01 + EXIT_SECONDS;
        assert!((guessed - wanted).abs() < 1e-12, "{guessed}");
        times = Times { checkpoint: Some(0.5), report: Some(0.25), review_rest: 1.0, ..times };
        assert!((times.ending(10_000, 4e6) - (0.1 + 1.0 + 0.75 + EXIT_SECONDS)).abs() < 1e-12);
    }
}
