//! A run that goes on from another one's checkpoint with a falling learning rate: warm-up, stable, decay, where the
//! decay is decided on later.
//!
//! A net is scored best after its rate has fallen, and a run of a constant rate can be made to end well at any time:
//! Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024. The trunk stays as it
//! is, so several ends can branch from it.

use super::config::{BranchConfig, Config};
use super::loop_config::LoopConfig;
use super::make::{chosen, trainer};
use super::observer::{Observer, Outcome};
use super::runner::Runner;
use super::state::{self, Position};
use crate::error::{Error, Result};
use crate::optim::{self, Schedule, Stable};
use crate::runs::{Journal, Row, RunFolder, metrics};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Starts a run in a new folder under `root` from the checkpoint of the run `parent`: weights, optimizer and
/// place in the data. Its learning rate falls in a straight line to the floor of the parent's schedule (0 where that has none)
/// over `share` (0 to 1] of the steps done so far, at least one; then it ends. The parent is left as it is.
///
/// The branch is the run that a `warmup_stable_decay` of as many steps would have been, and its `config.toml` says that one; its
/// journal begins with the parent's rows up to there.
///
/// # Errors
/// The share is out of range; the parent is not a run, has no checkpoint or no step done, its rate is not at its stable
/// value, or its decay follows a schedule over the whole run; and as [`super::run`].
pub fn cool(
    parent: &Path,
    share: f64,
    root: &Path,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let started = Instant::now();
    if !(share > 0.0 && share <= 1.0) {
        let problem =
            format!("{} % is not above 0 and at most 100 % of the steps done", share * 100.0);
        return Err(Error::config("cool", problem));
    }
    let trunk = RunFolder::open(parent)?;
    let place = trunk.file("config.toml").display().to_string();
    let planned = Config::parse(&trunk.config()?, &place)?;
    if !state::path(&trunk).exists() {
        let problem = "has no checkpoint yet to branch from";
        return Err(Error::checkpoint(state::path(&trunk), problem));
    }
    let data = planned.data.source()?.load()?;
    let (mut trainer, why) = trainer(&planned, (&data).into())?;
    let position = state::load(&mut trainer, &trunk)?;
    let name = std::path::absolute(trunk.path()).unwrap_or_else(|_| trunk.path().to_owned());
    let branch = BranchConfig { run: name.display().to_string(), step: position.step };
    let config = cooled(&planned, &position, data.train.rows(), share, branch)?;
    let position = position.branched();
    let rows = metrics::read(&trunk.file(crate::runs::folder::METRICS))?;

    let folder = RunFolder::create(root, &config.recipe)?;
    // Without a configuration the folder is none that could be resumed: so that comes last.
    state::save(&trainer, &folder, &position)?;
    let mut journal = Journal::open(&folder)?;
    for row in rows {
        match &row {
            Row::Step(step) if step.step <= position.step => journal.append(row)?,
            Row::Epoch(epoch) if epoch.step <= position.step => journal.append(row)?,
            _ => {}
        }
    }
    journal.flush()?;
    folder.write_config(&chosen(&config, &trainer).to_toml())?;
    drop(journal);
    let runner = Runner::new(&config, folder, trainer, why, &data, position, started)?;
    runner.train(observer, stop)
}

/// The configuration of the branch.
fn cooled(
    planned: &Config,
    position: &Position,
    rows: usize,
    share: f64,
    branch: BranchConfig,
) -> Result<Config> {
    let refuse = |problem: String| Err(Error::config("cool", problem));
    let done = position.step;
    if done == 0 {
        return refuse(format!("{} has no step done to branch from", branch.run));
    }
    // The branch is of another length: the decay of the steps that are done would not be that of its schedule.
    if planned.optimizer.decay_schedule.is_some_and(|schedule| schedule.has_horizon()) {
        return refuse(format!(
            "the weight decay of {} follows a schedule over the whole run (optimizer.decay_schedule): only one that goes by \
             steps can branch",
            branch.run
        ));
    }
    let total_steps = planned.train.total_steps(rows).filter(|_| planned.train.seconds.is_none());
    // The place of the last step; by time only that of the next one is known.
    let last = optim::Position { step: done - 1, total_steps, progress: position.progress() };
    // Where time bounded the parent, its steps are what they would have been at this speed.
    let so_far = match total_steps {
        Some(all) => (all - 1) as f64,
        None => done as f64 / last.progress.clamp(f64::MIN_POSITIVE, 1.0),
    };
    let Some(Stable { share: held, floor, warmup }) = planned.schedule.stable(last, so_far) else {
        return refuse(format!(
            "the learning rate of {} is not at its stable value after {done} steps: only a run whose schedule is constant, \
             linear over some steps, or warmup_stable_decay can branch, where its rate neither rises nor falls",
            branch.run
        ));
    };
    let falling = ((share * done as f64).round() as u64).max(1);
    let total = done + falling;
    let horizon = (total - 1) as f64;
    let decay = falling as f64 / horizon;
    let warmup = (warmup / horizon).min(1.0 - decay);
    let limits = &planned.train;
    let batch = limits.batch_at(
        limits.share_at(rows, done, position.epoch, position.offset).max(position.progress()),
    );
    let mut config = planned.clone();
    config.schedule = Schedule::WarmupStableDecay { warmup, decay, floor };
    config.optimizer.rate *= held * limits.rate_factor(batch);
    config.train = LoopConfig {
        batch,
        batch_schedule: Vec::new(),
        scale_rate: None,
        epochs: None,
        steps: Some(total),
        seconds: None,
        target_acc: None,
        stop_on_advice: false,
        plateau: None,
        ..limits.clone()
    };
    config.branch = Some(branch);
    Ok(config)
}
