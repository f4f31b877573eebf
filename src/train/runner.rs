//! The loop of a run: steps, reviews, checkpoints, and its end.

use super::config::{Config, LoopConfig};
use super::observer::{Observer, Outcome, Progress, Reason, Started};
use super::state::{self, Position};
use super::trainer::{Review, Trainer};
use super::watch::Watch;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::optim::{self, Rates};
use crate::runs::{Done, Environment, Epoch, Journal, RunFolder, Step, clocks, render};
use crate::tape::NotFinite;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Points of the loss trace that a run keeps, at most about twice this many.
const TRACE_POINTS: u64 = 1000;

/// A run that is under way.
pub(super) struct Runner<'a> {
    pub(super) config: &'a Config,
    folder: RunFolder,
    pub(super) trainer: Trainer,
    journal: Journal,
    pub(super) position: Position,
    pub(super) watch: Watch,
    test_rows: usize,
    /// Why this device, where `auto` chose it.
    why: Option<String>,
    /// When this process began, and all seconds of the run before that.
    started: Instant,
    seconds_before: f64,
    last_checkpoint: Instant,
    has_checkpoint: bool,
    last_review_step: u64,
    /// Rows and seconds of training in this process, and since the last review.
    trained: (u64, f64),
    since_review: (u64, f64),
    last_review_seconds: f64,
    /// How long a step took, when that was last seen; not the first one.
    pub(super) step_seconds: Option<f64>,
    /// How many were given at once then.
    pub(super) last_count: usize,
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        config: &'a Config,
        folder: RunFolder,
        trainer: Trainer,
        why: Option<String>,
        data: &Split,
        position: Position,
        started: Instant,
    ) -> Result<Self> {
        let device = trainer.store().device();
        let environment = Environment::collect(&device.name(), device.isa(), device.threads());
        Environment { device_why: why.clone(), ..environment }.write(&folder)?;
        let mut journal = Journal::open(&folder)?;
        journal.truncate_after_step(position.step)?;
        Ok(Runner {
            config,
            has_checkpoint: state::path(&folder).exists(),
            folder,
            trainer,
            journal,
            test_rows: data.test.rows(),
            watch: Watch::new(config, data.train.classes(), data.test.rows(), &position.watch),
            why,
            started,
            seconds_before: position.seconds_total(),
            last_checkpoint: Instant::now(),
            // No update since the last review: a resumed run need not review again, and has no
            // training loss to say with it.
            last_review_step: match position.loss_count {
                0 if position.step > 0 => position.step,
                _ => u64::MAX,
            },
            trained: (0, 0.0),
            since_review: (0, 0.0),
            last_review_seconds: 0.0,
            step_seconds: None,
            last_count: 0,
            position,
        })
    }

    pub(super) fn train(
        mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        observer.started(&self.describe()?);
        let ended = self.run_steps(observer, stop).and_then(|reason| {
            self.checkpoint()?;
            Ok(reason)
        });
        let reason = match ended {
            Ok(reason) => reason,
            Err(error) => {
                // The journal says that the run failed; the checkpoint stays the last good one.
                if matches!(error, Error::Diverged { .. }) {
                    self.finish("diverged", observer)?;
                }
                return Err(error);
            }
        };
        let done = self.finish(reason.name(), observer)?;
        let missed_target = self.config.train.target_acc.is_some()
            && !matches!(reason, Reason::Target | Reason::Interrupted);
        Ok(Outcome { reason, done, missed_target })
    }

    fn describe(&mut self) -> Result<Started> {
        let (rows, steps_per_epoch) = (self.trainer.rows(), self.trainer.steps_per_epoch());
        let device = self.trainer.store().device();
        let device = format!(
            "{} ({}, {} threads), {}",
            device.name(),
            device.isa(),
            device.threads(),
            self.trainer.precision()
        );
        let (total_steps, outlook) = (self.total_steps(), self.outlook());
        let parameters = self.trainer.parameters().parameters().count();
        let (recording, _) = self.trainer.step_recording()?;
        Ok(Started {
            folder: self.folder.path().to_owned(),
            parameters,
            step_flops: recording.cost().flops,
            arena_bytes: recording.memory().arena_bytes,
            device,
            device_why: self.why.clone(),
            rows: (rows, self.test_rows),
            steps_per_epoch,
            total_steps,
            planned_contraction: outlook
                .contraction_left
                .map(|left| self.watch.contraction() + left),
            resumed_at: self.position.step,
        })
    }

    fn run_steps(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Reason> {
        let limits = self.config.train.clone();
        if let Some(reason) = self.ended_before(&limits) {
            return Ok(reason);
        }
        let trace_every = self.total_steps().map_or(1, |total| total.div_ceil(TRACE_POINTS)).max(1);
        loop {
            self.trainer.start_epoch(self.position.epoch)?;
            while self.position.offset < self.trainer.rows() {
                if stop.load(Ordering::Relaxed) {
                    return Ok(Reason::Interrupted);
                }
                if let Some(reason) = self.used_up(&limits) {
                    self.review(observer)?;
                    return Ok(self.reached(&limits).unwrap_or(reason));
                }
                self.steps(observer, trace_every, &limits)?;
                // At the end of the run, or of the epoch, the review comes first: a run that is killed between
                // the two would review again.
                let mid_epoch = self.position.offset < self.trainer.rows();
                if mid_epoch && self.used_up(&limits).is_none() && self.checkpoint_is_due() {
                    self.checkpoint()?;
                }
            }
            self.position.epoch += 1;
            self.position.offset = 0;
            let last = limits.epochs.is_some_and(|epochs| self.position.epoch >= epochs);
            if last || self.review_is_affordable() {
                self.review(observer)?;
                if let Some(reason) = self.reached(&limits) {
                    return Ok(reason);
                }
            }
            if last {
                return Ok(Reason::Epochs);
            }
            if self.checkpoint_is_due() {
                self.checkpoint()?;
            }
        }
    }

    fn steps(
        &mut self,
        observer: &mut dyn Observer,
        trace_every: u64,
        limits: &LoopConfig,
    ) -> Result<()> {
        let began = Instant::now();
        let count = self.at_once(limits);
        // With a time budget the horizon is the clock, not a number of steps, and a step comes as much
        // later as those before it will take.
        let total_steps = self.total_steps().filter(|_| self.config.train.seconds.is_none());
        let of_step = |i: usize| {
            let step = self.position.step + i as u64;
            let seconds = i as f64 * self.step_seconds.unwrap_or(0.0);
            let progress = self.progress_after(i as u64, seconds);
            let position = optim::Position { step, total_steps, progress };
            self.config.rates(position)
        };
        let rates: Vec<Rates> = (0..count).map(of_step).collect();
        let (step, offset) = (self.position.step + 1, self.position.offset);
        let losses = self.trainer.steps(step, offset, &rates)?.to_vec();
        let seconds = began.elapsed().as_secs_f64() / losses.len() as f64;
        // The short last batch of an epoch says nothing of the others.
        let all_full = offset + count * self.trainer.update_rows(0) <= self.trainer.rows();
        if self.trained.0 > 0 && all_full {
            self.step_seconds = Some(seconds);
            self.last_count = count;
        }
        for (loss, rates) in losses.into_iter().zip(rates) {
            self.position.set_rate(rates.rate);
            self.step_done(loss, seconds, rates, observer, trace_every)?;
        }
        Ok(())
    }

    /// Takes account of a step that is over.
    fn step_done(
        &mut self,
        loss: f64,
        seconds: f64,
        rates: Rates,
        observer: &mut dyn Observer,
        trace_every: u64,
    ) -> Result<()> {
        let (step, offset) = (self.position.step + 1, self.position.offset);
        if !loss.is_finite() {
            let found = self.trainer.diagnose(step, offset)?;
            return Err(self.diverged_at(step, found, loss));
        }
        let rows = self.trainer.update_rows(offset);
        self.position.step = step;
        self.position.offset += rows;
        self.position.set_loss_sum(self.position.loss_sum() + loss);
        self.position.loss_count += 1;
        self.position.set_seconds_training(self.position.seconds_training() + seconds);
        let decay = rates.decay * self.config.optimizer.weight_decay;
        self.watch.step(step, self.position.seconds_training(), loss, rates.rate, decay);
        for (count, time) in [&mut self.trained, &mut self.since_review] {
            *count += rows as u64;
            *time += seconds;
        }
        if step.is_multiple_of(trace_every) {
            let seconds = self.position.seconds_training();
            self.journal.append(Step { step, seconds, loss, lr: self.position.rate() })?;
        }
        observer.step(&Progress {
            step,
            epoch: self.position.epoch + 1,
            progress: self.progress(),
            loss,
            rate: self.position.rate(),
            seconds: self.position.seconds_training(),
            rows: self.trained,
        });
        Ok(())
    }

    fn diverged_at(&self, step: u64, found: Option<NotFinite>, loss: f64) -> Error {
        let place = match found {
            Some(found) => {
                format!("{} is {} at index {}", found.place, found.value, found.index)
            }
            None => format!("the loss is {loss}"),
        };
        let checkpoint = match self.has_checkpoint {
            true => state::path(&self.folder).display().to_string(),
            false => "none yet".to_owned(),
        };
        Error::Diverged { step, place, checkpoint }
    }

    /// Whether another review keeps within its share of the training time.
    fn review_is_affordable(&self) -> bool {
        let next = self.position.seconds_review() + self.last_review_seconds;
        next <= self.config.train.review_share * self.position.seconds_training()
    }

    fn review(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.last_review_step == self.position.step {
            return Ok(());
        }
        let began = Instant::now();
        let Review { loss, accuracy, margin } = self.trainer.review()?;
        self.last_review_seconds = began.elapsed().as_secs_f64();
        let seconds_review = self.position.seconds_review() + self.last_review_seconds;
        self.position.set_seconds_review(seconds_review);
        self.position.accuracy = Some(accuracy.to_bits());
        let seconds = self.position.seconds_training();
        let reached = self.config.train.target_acc.is_some_and(|target| accuracy >= target);
        if reached && self.position.seconds_to_target.is_none() {
            self.position.seconds_to_target = Some(seconds.to_bits());
        }
        let mut row = Epoch {
            epoch: self.position.epoch,
            step: self.position.step,
            seconds,
            train_loss: self.position.loss_sum() / self.position.loss_count as f64,
            test_loss: loss,
            test_acc: accuracy,
            train_acc: None,
            margin,
            lr: self.position.rate(),
            samples_per_s: self.since_review.0 as f64 / self.since_review.1,
            review_seconds: self.last_review_seconds,
            extra: Default::default(),
        };
        let outlook = self.outlook();
        self.watch.review(&mut row, None, None, outlook);
        self.journal.append(row.clone())?;
        self.position.set_loss_sum(0.0);
        self.position.loss_count = 0;
        self.since_review = (0, 0.0);
        self.last_review_step = self.position.step;
        observer.review(&row);
        Ok(())
    }

    fn reached(&self, limits: &LoopConfig) -> Option<Reason> {
        let accuracy = f64::from_bits(self.position.accuracy?);
        limits.target_acc.filter(|target| accuracy >= *target).map(|_| Reason::Target)
    }

    fn checkpoint_is_due(&self) -> bool {
        self.last_checkpoint.elapsed().as_secs_f64() >= self.config.train.checkpoint_seconds
    }

    fn checkpoint(&mut self) -> Result<()> {
        // A step may leave the loss finite and the weights not: such weights are not saved.
        if let Some(found) = self.trainer.first_bad_weight()? {
            return Err(self.diverged_at(self.position.step, Some(found), f64::NAN));
        }
        let seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.position.set_seconds_total(seconds);
        self.position.watch = self.watch.memory();
        self.journal.flush()?;
        state::save(&self.trainer, &self.folder, &self.position)?;
        self.has_checkpoint = true;
        self.last_checkpoint = Instant::now();
        Ok(())
    }

    fn finish(&mut self, reason: &str, observer: &mut dyn Observer) -> Result<Done> {
        let done = Done {
            reason: reason.to_owned(),
            seconds_training: self.position.seconds_training(),
            seconds_total: self.seconds_before + self.started.elapsed().as_secs_f64(),
            seconds_to_target: self.position.seconds_to_target.map(f64::from_bits),
            test_acc: self.position.accuracy.map_or(f64::NAN, f64::from_bits),
            run: self.folder.path().display().to_string(),
            epochs: self.position.epoch,
            step: self.position.step,
            extra: [(clocks::KEY.to_owned(), self.watch.now().to_value())].into(),
        };
        self.journal.append(done.clone())?;
        self.journal.flush()?;
        render(&self.folder)?;
        observer.done(&done);
        Ok(done)
    }
}
