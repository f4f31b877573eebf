//! What the rest of a run will do to the slow clock, as planned.

use super::watch::Outlook;
use crate::optim;
use crate::train::runner::Runner;
use crate::train::state::Position;

/// Places of the rest of the run at which the schedules are read.
const SAMPLES: usize = 256;

impl Runner<'_> {
    /// The rest of the run as planned: its contraction and its seconds.
    pub(in crate::train) fn outlook(&self) -> Outlook {
        let by_time = self.seconds_left();
        let by_steps = self.total_steps.map(|total| total.saturating_sub(self.position.step));
        let step_seconds = self.times.step.filter(|&seconds| seconds > 0.0);
        let in_time = by_time.zip(step_seconds).map(|(left, step)| (left / step).max(0.0));
        // The first bound that is met ends the run.
        let steps = match (by_steps.map(|steps| steps as f64), in_time) {
            (Some(steps), Some(in_time)) => Some(steps.min(in_time)),
            // Not before it is known how many steps the time has.
            (Some(_), None) if by_time.is_some() => None,
            (steps, in_time) => steps.or(in_time),
        };
        let seconds = steps.zip(step_seconds).map(|(steps, step)| steps * step);
        Outlook {
            contraction_left: steps.map(|steps| self.contraction_of(steps)),
            seconds_left: by_time.into_iter().chain(seconds).reduce(f64::min),
        }
    }

    /// C of so many steps that follow and end the run.
    fn contraction_of(&self, steps: f64) -> f64 {
        let total_steps = self.total_steps.filter(|_| self.config.train.seconds.is_none());
        let (now, progress) = (self.position.step as f64, self.progress());
        let (limits, rows) = (&self.config.train, self.trainer.rows());
        let over = match limits.seconds {
            Some(_) => progress,
            None => {
                let Position { epoch, offset, step, .. } = self.position;
                limits.share_at(rows, step, epoch, offset)
            }
        };
        let of = |sample: usize| {
            let share = (sample as f64 + 0.5) / SAMPLES as f64;
            let position = optim::Position {
                step: (now + share * steps) as u64,
                total_steps,
                progress: progress + share * (1.0 - progress),
            };
            let rates = self.config.rates(position);
            let factor = match limits.scale_rate {
                Some(_) => limits.rate_factor(limits.batch_after(rows, over, share)),
                None => 1.0,
            };
            factor * rates.rate * rates.decay * self.config.optimizer.weight_decay
        };
        let mean = (0..SAMPLES).map(of).sum::<f64>() / SAMPLES as f64;
        self.watch.contraction_of(mean * steps)
    }
}
