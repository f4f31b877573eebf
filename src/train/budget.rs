//! What bounds a run, and how much of it is used.

use super::config::LoopConfig;
use super::observer::Reason;
use super::runner::Runner;

/// How long the steps may take that a device is given at once: so long after it ends a run that is to stop.
const AT_ONCE_SECONDS: f64 = 0.004;

impl Runner<'_> {
    /// All updates of the run, when it is not time alone that bounds it.
    pub(super) fn total_steps(&self) -> Option<u64> {
        let LoopConfig { epochs, steps, .. } = self.config.train;
        let by_epochs = epochs.map(|epochs| epochs.saturating_mul(self.trainer.steps_per_epoch()));
        by_epochs.into_iter().chain(steps).min()
    }

    /// Share of the budget that is used, 0 to 1: by steps, by time, or the larger of the two.
    pub(super) fn progress(&self) -> f64 {
        self.progress_after(0, 0.0)
    }

    /// The same after so many more steps, and seconds.
    pub(super) fn progress_after(&self, steps: u64, seconds: f64) -> f64 {
        let step = (self.position.step + steps) as f64;
        let by_steps = self.total_steps().map_or(0.0, |total| step / total as f64);
        let time = self.position.seconds_training() + seconds;
        let by_time = self.config.train.seconds.map_or(0.0, |all| time / all);
        by_steps.max(by_time).clamp(0.0, 1.0)
    }

    /// Which of the budgets that may end within an epoch is used up.
    pub(super) fn used_up(&self, limits: &LoopConfig) -> Option<Reason> {
        if limits.seconds.is_some_and(|s| self.position.seconds_training() >= s) {
            return Some(Reason::Time);
        }
        limits.steps.is_some_and(|steps| self.position.step >= steps).then_some(Reason::Steps)
    }

    /// Whether a resumed run was at its end already.
    pub(super) fn ended_before(&self, limits: &LoopConfig) -> Option<Reason> {
        if self.position.step == 0 {
            return None;
        }
        if self.position.seconds_to_target.is_some() {
            return Some(Reason::Target);
        }
        if limits.epochs.is_some_and(|epochs| self.position.epoch >= epochs) {
            return Some(Reason::Epochs);
        }
        None
    }

    /// Steps to give to the device at once: as many as take some milliseconds, no more than are left of the
    /// epoch, the updates and the time.
    pub(super) fn at_once(&self, limits: &LoopConfig) -> usize {
        let per_update = self.trainer.update_rows(0).max(1);
        let left = (self.trainer.rows() - self.position.offset).div_ceil(per_update);
        // Not many at once before some have shown how long they take.
        let mut count = self.trainer.at_once().min(left).min(2 * self.last_count.max(1));
        if let Some(steps) = limits.steps {
            count = count.min(usize::try_from(steps - self.position.step).unwrap_or(usize::MAX));
        }
        let time = match limits.seconds {
            Some(seconds) => AT_ONCE_SECONDS.min(seconds - self.position.seconds_training()),
            None => AT_ONCE_SECONDS,
        };
        // The first step also waits for the copies before it: it says nothing of the others.
        match self.step_seconds {
            Some(step) => count.min((time / step) as usize).max(1),
            None => 1,
        }
    }
}
