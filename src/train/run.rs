//! A configured run in its folder: from the start, or from where it was interrupted.

use super::closing;
use super::config::{Config, LoopConfig};
use super::make::{chosen, trainer};
use super::state::{self, Position};
use super::trainer::{Review, Trainer};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::optim::{self, Rates};
use crate::runs::{Done, Environment, Epoch, Journal, RunFolder, Step, render};
use crate::tape::NotFinite;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Points of the loss trace that a run keeps, at most about twice this many.
const TRACE_POINTS: u64 = 1000;

/// How long the steps may take that a device is given at once: so long after it ends a run that is to stop.
const AT_ONCE_SECONDS: f64 = 0.004;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The target accuracy was reached.
    Target,
    /// All epochs are done.
    Epochs,
    /// All updates are done.
    Steps,
    /// The time is used up.
    Time,
    /// The user asked to stop; the run can be resumed.
    Interrupted,
}

impl Reason {
    /// As the journal writes it.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Target => "target",
            Reason::Epochs => "epochs",
            Reason::Steps => "steps",
            Reason::Time => "time",
            Reason::Interrupted => "interrupted",
        }
    }
}

/// What a run is, before its first step.
#[derive(Clone, Debug)]
pub struct Started {
    /// The run folder.
    pub folder: std::path::PathBuf,
    /// Trainable values.
    pub parameters: usize,
    /// FLOPs of one step.
    pub step_flops: f64,
    /// Bytes of a step's arena, known before it first runs.
    pub arena_bytes: usize,
    /// Device, instruction set, threads and precision.
    pub device: String,
    /// Why this device, where `auto` chose it.
    pub device_why: Option<String>,
    /// Training and test rows.
    pub rows: (usize, usize),
    /// Updates of one epoch.
    pub steps_per_epoch: u64,
    /// All updates, when epochs or updates bound the run.
    pub total_steps: Option<u64>,
    /// The step after which the run goes on; 0 for a new one.
    pub resumed_at: u64,
}

/// Where a run stands, after each step.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// The epoch that is under way, from 1.
    pub epoch: u64,
    /// Share of the budget that is used, 0 to 1.
    pub progress: f64,
    /// Loss of the step's rows, before its update.
    pub loss: f64,
    /// Learning rate of the step.
    pub rate: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Rows trained on by this process, and the seconds that they took.
    pub rows: (u64, f64),
}

/// Who watches a run.
pub trait Observer {
    /// Before the first step.
    fn started(&mut self, _started: &Started) {}
    /// After each step; must be fast.
    fn step(&mut self, _progress: &Progress) {}
    /// After each review.
    fn review(&mut self, _epoch: &Epoch) {}
    /// After the end.
    fn done(&mut self, _done: &Done) {}
}

/// An observer that says nothing.
pub struct Silent;
impl Observer for Silent {}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// The journal's last line.
    pub done: Done,
    /// Whether a target accuracy was asked for and not reached.
    pub missed_target: bool,
}

/// Starts a run in a new folder under `root` and trains to its end, or until `stop` is set.
///
/// # Errors
/// The configuration, data or folder cannot be used (nothing is left behind then); or the run
/// diverges, which names step, layer and last good checkpoint.
pub fn run(
    config: &Config,
    root: &Path,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let started = Instant::now();
    config.validate()?;
    let config = &config.with_absolute_paths();
    let data = config.data.source()?.load()?;
    let (trainer, why) = trainer(config, &data)?;
    let folder = RunFolder::create(root, &config.recipe)?;
    // What `auto` chose: a resumed run must not choose again.
    folder.write_config(&chosen(config, &trainer).to_toml())?;
    let runner = Runner::new(config, folder, trainer, why, &data, Position::default(), started)?;
    runner.train(observer, stop)
}

/// Goes on with an interrupted run, in its own folder, to the end that it was configured for.
///
/// # Errors
/// As [`run`]; and the folder is not a run, is in use, or its checkpoint is damaged or of another
/// model. The folder is left as it was then.
pub fn resume(path: &Path, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    let started = Instant::now();
    let mut folder = RunFolder::open(path)?;
    folder.lock()?;
    let place = folder.file("config.toml").display().to_string();
    let mut config = Config::parse(&folder.config()?, &place)?;
    let undecided = config.precision == super::Precision::Auto || config.device == "auto";
    if config.device == "auto" {
        // A run of an earlier version, where that was the CPU.
        config.device = "cpu".to_owned();
    }
    let data = config.data.source()?.load()?;
    let (mut trainer, why) = trainer(&config, &data)?;
    let position = match state::path(&folder).exists() {
        true => state::load(&mut trainer, &folder)?,
        // Killed before its first checkpoint: the configuration says all that there is to know.
        false => Position::default(),
    };
    if undecided {
        // A run of an earlier version, or killed as it began: it must not choose again.
        folder.write_config(&chosen(&config, &trainer).to_toml())?;
    }
    let runner = Runner::new(&config, folder, trainer, why, &data, position, started)?;
    runner.train(observer, stop)
}

impl Config {
    /// The trainer of this configuration, with its data loaded, at the start of the run.
    ///
    /// # Errors
    /// The configuration or the data cannot be used.
    pub fn trainer(&self) -> Result<Trainer> {
        self.validate()?;
        let data = self.data.source()?.load()?;
        Ok(trainer(self, &data)?.0)
    }

    /// The trainer of a saved run, with its weights; `data` is another place to read data from,
    /// `device` another one than it trained on (`auto` is the CPU here), `threads` another number of threads.
    ///
    /// # Errors
    /// The folder is not a run, its checkpoint cannot be read, or the data cannot be used.
    pub fn saved_trainer(
        path: &Path,
        data: Option<&Path>,
        device: Option<String>,
        threads: Option<usize>,
    ) -> Result<(Config, Trainer)> {
        let folder = RunFolder::open(path)?;
        let place = folder.file("config.toml").display().to_string();
        let mut config = Config::parse(&folder.config()?, &place)?;
        if let Some(data) = data {
            config.data.path = Some(data.to_owned());
        }
        config.device = device.unwrap_or(config.device);
        if config.device == "auto" {
            // The rule of `auto` weighs whole runs of training.
            "cpu".clone_into(&mut config.device);
        }
        config.threads = threads.unwrap_or(config.threads);
        let mut trainer = config.trainer()?;
        state::load_weights(&mut trainer, &folder)?;
        Ok((config, trainer))
    }
}

struct Runner<'a> {
    config: &'a Config,
    folder: RunFolder,
    trainer: Trainer,
    journal: Journal,
    position: Position,
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
    step_seconds: Option<f64>,
    /// How many were given at once then.
    last_count: usize,
}

impl<'a> Runner<'a> {
    fn new(
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

    /// All updates of the run, when it is not time alone that bounds it.
    fn total_steps(&self) -> Option<u64> {
        let LoopConfig { epochs, steps, .. } = self.config.train;
        let by_epochs = epochs.map(|epochs| epochs.saturating_mul(self.trainer.steps_per_epoch()));
        by_epochs.into_iter().chain(steps).min()
    }

    /// Share of the budget that is used, 0 to 1: by steps, by time, or the larger of the two.
    fn progress(&self) -> f64 {
        self.progress_after(0, 0.0)
    }

    /// The same after so many more steps, and seconds.
    fn progress_after(&self, steps: u64, seconds: f64) -> f64 {
        let step = (self.position.step + steps) as f64;
        let by_steps = self.total_steps().map_or(0.0, |total| step / total as f64);
        let time = self.position.seconds_training() + seconds;
        let by_time = self.config.train.seconds.map_or(0.0, |all| time / all);
        by_steps.max(by_time).clamp(0.0, 1.0)
    }

    fn train(mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
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
        if reason != Reason::Interrupted {
            self.close()?;
        }
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
        let total_steps = self.total_steps();
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

    /// Which of the budgets that may end within an epoch is used up.
    fn used_up(&self, limits: &LoopConfig) -> Option<Reason> {
        if limits.seconds.is_some_and(|s| self.position.seconds_training() >= s) {
            return Some(Reason::Time);
        }
        limits.steps.is_some_and(|steps| self.position.step >= steps).then_some(Reason::Steps)
    }

    /// Whether a resumed run was at its end already.
    fn ended_before(&self, limits: &LoopConfig) -> Option<Reason> {
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
    fn at_once(&self, limits: &LoopConfig) -> usize {
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
        for (loss, Rates { rate, .. }) in losses.into_iter().zip(rates) {
            self.position.set_rate(rate);
            self.step_done(loss, seconds, observer, trace_every)?;
        }
        Ok(())
    }

    /// Takes account of a step that is over.
    fn step_done(
        &mut self,
        loss: f64,
        seconds: f64,
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
        let row = Epoch {
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
        self.journal.flush()?;
        state::save(&self.trainer, &self.folder, &self.position)?;
        self.has_checkpoint = true;
        self.last_checkpoint = Instant::now();
        Ok(())
    }

    /// Writes down what its share of the time allows to find out about the net that was trained.
    fn close(&mut self) -> Result<()> {
        let share = self.config.train.review_share;
        let allowance = closing::allowance(share, self.position.seconds_training());
        let (step, seconds) = (self.position.step, self.step_seconds);
        closing::close(&mut self.trainer, step, seconds, allowance)?.write(&self.folder)
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
            extra: Default::default(),
        };
        self.journal.append(done.clone())?;
        self.journal.flush()?;
        render(&self.folder)?;
        observer.done(&done);
        Ok(done)
    }
}
