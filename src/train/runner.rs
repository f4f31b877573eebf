//! The loop of a run: steps, reviews, checkpoints, and its end.

use super::budget::{Planned, Times};
use super::clocks::measure::ProbeFigures;
use super::clocks::watch::Watch;
use super::closing;
use super::config::Config;
use super::loop_config::LoopConfig;
use super::observer::{Observer, Outcome, Progress, Reason, Started};
use super::state::{self, Position};
use super::trainer::{Review, Trainer};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::optim::Rates;
use crate::runs::folder::METRICS;
use crate::runs::{
    Clocks, Done, Environment, Epoch, Journal, Row, RunFolder, Step, clocks, metrics, nearest,
    render,
};
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
    pub(super) test_rows: usize,
    /// Those of the review at the end.
    final_rows: usize,
    /// Why this device, where `auto` chose it.
    why: Option<String>,
    /// When this process began, and all seconds of the run before that.
    pub(super) started: Instant,
    pub(super) seconds_before: f64,
    last_checkpoint: Instant,
    has_checkpoint: bool,
    /// Whether this process forced to disk what a checkpoint needs beside it.
    is_forced: bool,
    /// Updates when it was last reviewed, and how many test rows; and what that review said.
    last_review: (u64, usize),
    last_row: Option<Epoch>,
    /// Rows and seconds of training in this process, and since the last review.
    trained: (u64, f64),
    since_review: (u64, f64),
    /// Updates of the whole run, where it is not time alone that bounds it.
    pub(super) total_steps: Option<u64>,
    pub(super) times: Times,
    /// By how much the sample of the test rows seemed to be better than all of them, when a target was found on it.
    sample_bias: f64,
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
        let mut watch = Watch::new(config, data.train.classes(), data.test.rows(), &position.watch);
        if position.step > 0
            && let Some(Row::Done(done)) = metrics::last(&folder.file(METRICS))?
            && done.step == position.step
        {
            // A run that is at its end says again what it found.
            watch.recall(Clocks::of(&done));
        }
        journal.truncate_after_step(position.step)?;
        Ok(Runner {
            config,
            has_checkpoint: state::path(&folder).exists(),
            is_forced: false,
            folder,
            trainer,
            journal,
            test_rows: data.test.rows(),
            final_rows: data.test.rows(),
            watch,
            why,
            started,
            seconds_before: position.seconds_total(),
            last_checkpoint: Instant::now(),
            // No update since the last review, as a rule of all rows: a resumed run need not review again, and has no
            // training loss to say with it.
            last_review: match position.loss_count {
                0 if position.step > 0 => (position.step, data.test.rows()),
                _ => (u64::MAX, 0),
            },
            last_row: None,
            trained: (0, 0.0),
            since_review: (0, 0.0),
            total_steps: config.train.total_steps(data.train.rows()),
            times: Times::default(),
            sample_bias: 0.0,
            position,
        })
    }

    pub(super) fn train(
        mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        let shown = observer.shows_nearest();
        self.final_rows =
            observer.final_rows().map_or(self.test_rows, |rows| rows.min(self.test_rows));
        observer.started(&self.describe(shown)?);
        let ended = self.run_steps(observer, stop).and_then(|reason| {
            // What no budget says has to be kept, for a run that is resumed.
            let found = matches!(reason, Reason::Plateau | Reason::Advice);
            self.position.ended_by = found.then_some(reason);
            match reason == Reason::Interrupted || observer.wants_weights() {
                // What the journal says is forced to disk with its last line.
                true => self.save()?,
                false => self.check_weights()?,
            }
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
        if reason != Reason::Interrupted && observer.wants_report() {
            self.close()?;
        }
        let done = self.finish(reason.name(), observer)?;
        let missed_target = self.config.train.target_acc.is_some()
            && !matches!(reason, Reason::Target | Reason::Interrupted);
        Ok(Outcome { reason, done, missed_target })
    }

    fn describe(&mut self, nearest_shown: usize) -> Result<Started> {
        let (rows, steps_per_epoch) = (self.trainer.rows(), self.trainer.steps_per_epoch());
        let device = self.trainer.store().device();
        let device = format!(
            "{} ({}, {} threads), {}",
            device.name(),
            device.isa(),
            device.threads(),
            self.trainer.precision()
        );
        let (total_steps, outlook) = (self.total_steps, self.outlook());
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
            nearest: match self.position.step {
                0 => nearest(&self.folder, nearest_shown),
                _ => Vec::new(),
            },
        })
    }

    fn run_steps(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Reason> {
        let limits = self.config.train.clone();
        if let Some(reason) = self.ended_before(&limits) {
            return Ok(reason);
        }
        if self.config.clocks.telemetry {
            // Before the first step that is the beginning of the slow clock; after a resumption, what the next probe is
            // compared with.
            let probe = self.quick_probe()?;
            if self.position.step == 0 {
                self.watch.start(&probe);
            }
        }
        if limits.seconds.is_some() {
            self.measure_review()?;
        }
        loop {
            self.trainer.start_epoch(self.position.epoch)?;
            while self.position.offset < self.trainer.rows() {
                if stop.load(Ordering::Relaxed) {
                    return Ok(Reason::Interrupted);
                }
                if let Some(reason) = self.used_up(&limits) {
                    self.review(self.final_rows, observer)?;
                    return Ok(self.reached(&limits).unwrap_or(reason));
                }
                self.steps(observer, &limits)?;
                // At the end of the run, or of the epoch, the review comes first: a run that is killed between
                // the two would review again.
                let mid_epoch = self.position.offset < self.trainer.rows();
                if mid_epoch && self.used_up(&limits).is_none() {
                    if limits.review_steps.is_some_and(|steps| self.position.loss_count >= steps) {
                        self.review_within_share(observer)?;
                        if let Some(reason) = self.reached(&limits) {
                            return self.ended_by_review(reason, observer, &limits);
                        }
                    }
                    if self.rehearsal_is_due() {
                        self.rehearse_end()?;
                    } else if self.checkpoint_is_due() {
                        self.checkpoint()?;
                    }
                }
            }
            self.position.epoch += 1;
            self.position.offset = 0;
            let last = limits.epochs.is_some_and(|epochs| self.position.epoch >= epochs);
            if last {
                self.review(self.final_rows, observer)?;
                return Ok(self.reached(&limits).unwrap_or(Reason::Epochs));
            }
            let due = limits.review_steps.is_none_or(|steps| self.position.loss_count >= steps);
            if due && self.used_up(&limits).is_none() {
                self.review_within_share(observer)?;
                if let Some(reason) = self.reached(&limits) {
                    return self.ended_by_review(reason, observer, &limits);
                }
            }
            if self.checkpoint_is_due() {
                self.checkpoint()?;
            }
        }
    }

    /// Every how many steps one is kept in the journal; by the speed so far, where time bounds the run.
    fn trace_every(&self) -> u64 {
        let seconds = self.config.train.seconds;
        let in_time = seconds.zip(self.times.step).map(|(all, step)| (all / step) as u64);
        let steps = self.total_steps.into_iter().chain(in_time).min();
        steps.map_or(1, |all| all.div_ceil(TRACE_POINTS)).max(1)
    }

    fn steps(&mut self, observer: &mut dyn Observer, limits: &LoopConfig) -> Result<()> {
        let (began, trace_every) = (Instant::now(), self.trace_every());
        let Planned { places, batch, next, last } = self.plan(limits);
        self.trainer.set_batch(batch);
        let factor = limits.rate_factor(batch);
        let rates: Vec<Rates> = places
            .iter()
            .map(|&place| {
                let rates = self.config.rates(place);
                Rates { rate: rates.rate * factor, ..rates }
            })
            .collect();
        let (step, offset, count) = (self.position.step + 1, self.position.offset, rates.len());
        let losses = self.trainer.steps(step, offset, &rates)?.to_vec();
        let seconds = began.elapsed().as_secs_f64() / losses.len() as f64;
        // The short last batch of an epoch says nothing of the others.
        let all_full = offset + count * self.trainer.update_rows(0) <= self.trainer.rows();
        if self.trained.0 > 0 && all_full {
            self.times.stepped(seconds, count);
        }
        if limits.seconds.is_some() {
            self.position.set_progress(next);
            self.position.out_of_time = last;
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

    /// A review of all test rows, of a sample, or none, as the share of the time allows.
    fn review_within_share(&mut self, observer: &mut dyn Observer) -> Result<()> {
        match self.affordable_rows()? {
            Some(rows) => self.review(rows, observer),
            None => Ok(()),
        }
    }

    /// Loss, accuracy and margin of all test rows, or of the sample of so many.
    pub(super) fn score(&mut self, rows: usize) -> Result<Review> {
        let began = Instant::now();
        let found = match rows == self.test_rows {
            true => self.trainer.review()?,
            false => self.trainer.review_sample(rows)?,
        };
        if self.times.test_row.is_some() {
            self.times.test_row = Some(began.elapsed().as_secs_f64() / rows as f64);
        }
        Ok(found)
    }

    /// Scores a sample, and all rows where the sample has the target.
    fn score_and_confirm(&mut self, rows: usize) -> Result<(usize, Review)> {
        let found = self.score(rows)?;
        let target = self.config.train.target_acc.unwrap_or(f64::INFINITY);
        if rows == self.test_rows || found.accuracy - self.sample_bias < target {
            return Ok((rows, found));
        }
        let of_all = self.score(self.test_rows)?;
        self.sample_bias = found.accuracy - of_all.accuracy;
        Ok((self.test_rows, of_all))
    }

    /// Looks at the probe batch and the weights, and takes the time of that; without effective ranks.
    fn quick_probe(&mut self) -> Result<ProbeFigures> {
        let began = Instant::now();
        let probe = self.trainer.quick_probe()?;
        self.times.probe = began.elapsed().as_secs_f64();
        Ok(probe)
    }

    /// Probes as far as a review of which `seconds` are spent allows: not at all, without effective ranks, or with them.
    fn probe(&mut self, seconds: f64, reached: bool) -> Result<Option<ProbeFigures>> {
        if !self.probe_is_due(seconds, reached, self.times.probe) {
            return Ok(None);
        }
        let mut probe = self.quick_probe()?;
        if self.probe_is_due(seconds, reached, self.times.whole_probe()) {
            let began = Instant::now();
            self.trainer.add_effective_ranks(&mut probe)?;
            self.times.effective = Some(began.elapsed().as_secs_f64());
        }
        Ok(Some(probe))
    }

    /// Reviews all test rows, or a sample of so many, unless nothing was learned since the last review.
    fn review(&mut self, rows: usize, observer: &mut dyn Observer) -> Result<()> {
        if self.last_review == (self.position.step, rows) {
            return Ok(());
        }
        let began = Instant::now();
        let (rows, Review { loss, accuracy, margin }) = self.score_and_confirm(rows)?;
        let of_rows = began.elapsed().as_secs_f64();
        let sampled = rows < self.test_rows;
        let seconds = self.position.seconds_training();
        let reached = self.config.train.target_acc.is_some_and(|target| accuracy >= target);
        if !sampled {
            self.position.accuracy = Some(accuracy.to_bits());
        }
        if reached && !sampled && self.position.seconds_to_target.is_none() {
            self.position.seconds_to_target = Some(seconds.to_bits());
        }
        let mut row = Epoch {
            epoch: self.position.epoch,
            step: self.position.step,
            seconds,
            train_loss: self.position.train_loss(),
            test_loss: loss,
            test_acc: accuracy,
            train_acc: None,
            margin,
            lr: self.position.rate(),
            samples_per_s: self.since_review.0 as f64 / self.since_review.1,
            review_seconds: of_rows,
            extra: sampled.then(|| ("test_rows".to_owned(), rows.into())).into_iter().collect(),
        };
        let figures = self.trainer.take_figures()?;
        row.train_acc = figures.as_ref().map(|figures| figures.accuracy);
        let before_probe = began.elapsed().as_secs_f64();
        let probe = self.probe(before_probe, reached)?;
        let of_probe = began.elapsed().as_secs_f64() - before_probe;
        let outlook = self.outlook();
        self.watch.review(&mut row, figures.as_ref(), probe.as_ref(), outlook);
        // All that a review finds is part of what it takes.
        row.review_seconds = began.elapsed().as_secs_f64();
        self.times.review_rest = row.review_seconds - of_rows - of_probe;
        self.position.set_seconds_probe(self.position.seconds_probe() + of_probe);
        self.position.set_seconds_review(self.position.seconds_review() + row.review_seconds);
        self.journal.append(row.clone())?;
        self.position.reviewed(accuracy, sampled, self.config.train.plateau);
        self.since_review = (0, 0.0);
        self.last_review = (self.position.step, rows);
        observer.review(&row);
        self.last_row = Some(row);
        Ok(())
    }

    /// Ends a run that its last review ends: where that was of a sample, all test rows are scored beside it, as at every end. The
    /// clocks have seen this step.
    fn ended_by_review(
        &mut self,
        reason: Reason,
        observer: &mut dyn Observer,
        limits: &LoopConfig,
    ) -> Result<Reason> {
        let Some(mut row) = self.last_row.take().filter(|_| self.last_review.1 < self.test_rows)
        else {
            return Ok(reason);
        };
        let began = Instant::now();
        let Review { loss, accuracy, margin } = self.score(self.test_rows)?;
        (row.test_loss, row.test_acc, row.margin) = (loss, accuracy, margin);
        row.extra.remove("test_rows");
        row.review_seconds = began.elapsed().as_secs_f64();
        self.position.set_seconds_review(self.position.seconds_review() + row.review_seconds);
        self.position.accuracy = Some(accuracy.to_bits());
        if limits.target_acc.is_some_and(|target| accuracy >= target) {
            self.position.seconds_to_target.get_or_insert(row.seconds.to_bits());
        }
        self.journal.append(row.clone())?;
        self.last_review.1 = self.test_rows;
        observer.review(&row);
        Ok(self.reached(limits).unwrap_or(reason))
    }

    /// What the last review ends the run by.
    fn reached(&self, limits: &LoopConfig) -> Option<Reason> {
        let accuracy = self.position.accuracy.map(f64::from_bits);
        if limits.target_acc.zip(accuracy).is_some_and(|(target, found)| found >= target) {
            return Some(Reason::Target);
        }
        if self.position.on_plateau(limits.plateau) {
            return Some(Reason::Plateau);
        }
        (limits.stop_on_advice && self.watch.advised_to_stop()).then_some(Reason::Advice)
    }

    /// Makes and times what comes at the end, a checkpoint and the report, so that a time can be kept for it.
    fn rehearse_end(&mut self) -> Result<()> {
        self.checkpoint()?;
        self.render()
    }

    /// Writes the report.
    fn render(&mut self) -> Result<()> {
        let began = Instant::now();
        render(&self.folder)?;
        self.times.report = Some(began.elapsed().as_secs_f64());
        Ok(())
    }

    fn checkpoint_is_due(&self) -> bool {
        self.last_checkpoint.elapsed().as_secs_f64() >= self.config.train.checkpoint_seconds
    }

    /// A step may leave the loss finite and the weights not: such weights are not saved.
    fn check_weights(&self) -> Result<()> {
        match self.trainer.first_bad_weight()? {
            Some(found) => Err(self.diverged_at(self.position.step, Some(found), f64::NAN)),
            None => Ok(()),
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.journal.flush()?;
        self.save()
    }

    /// A checkpoint, whatever is on disk of the journal.
    fn save(&mut self) -> Result<()> {
        let began = Instant::now();
        self.check_weights()?;
        self.position.set_seconds_total(self.elapsed());
        self.position.watch = self.watch.memory();
        if !self.is_forced {
            self.folder.force()?;
            self.is_forced = true;
        }
        state::save(&self.trainer, &self.folder, &self.position)?;
        self.has_checkpoint = true;
        self.last_checkpoint = Instant::now();
        self.times.checkpoint = Some(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Writes down what its share of the time allows to find out about the net that was trained.
    fn close(&mut self) -> Result<()> {
        let allowance = self.closing_allowance();
        let (step, seconds) = (self.position.step, self.times.step);
        closing::close(&mut self.trainer, step, seconds, allowance)?.write(&self.folder)
    }

    fn finish(&mut self, reason: &str, observer: &mut dyn Observer) -> Result<Done> {
        let done = Done {
            reason: reason.to_owned(),
            seconds_training: self.position.seconds_training(),
            seconds_total: self.elapsed(),
            seconds_to_target: self.position.seconds_to_target.map(f64::from_bits),
            test_acc: self.position.accuracy.map_or(f64::NAN, f64::from_bits),
            run: self.folder.path().display().to_string(),
            epochs: self.position.epoch,
            step: self.position.step,
            extra: [(clocks::KEY.to_owned(), self.watch.now().to_value())].into(),
        };
        self.journal.append(done.clone())?;
        self.journal.flush()?;
        if self.has_checkpoint && !observer.wants_weights() && reason != Reason::Interrupted.name()
        {
            state::remove(&self.folder)?;
        }
        if observer.wants_report() {
            self.render()?;
        }
        observer.done(&done);
        Ok(done)
    }
}
