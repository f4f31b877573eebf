//! A configured run in its folder: from the start, or from where it was interrupted.

use super::config::Config;
use super::make::{chosen, trainer};
use super::observer::{Observer, Outcome};
use super::runner::Runner;
use super::shared::Input;
use super::state::{self, Position};
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::runs::RunFolder;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

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
    let data = config.data.source()?.load()?;
    run_on((&data).into(), config, root, observer, stop, started)
}

/// The same with data that are loaded already; `started` is when it began.
pub(super) fn run_on(
    data: Input<'_>,
    config: &Config,
    root: &Path,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    started: Instant,
) -> Result<Outcome> {
    let config = &config.with_absolute_paths();
    // The folder that they are absolute by may have a name that no configuration can say.
    config.validate()?;
    let (trainer, why) = trainer(config, data)?;
    let folder = RunFolder::create(root, &config.recipe)?;
    // What `auto` chose: a resumed run must not choose again.
    folder.write_config(&chosen(config, &trainer).to_toml())?;
    let runner =
        Runner::new(config, folder, trainer, why, data.split, Position::default(), started)?;
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
    let (mut trainer, why) = trainer(&config, (&data).into())?;
    let position = match state::path(&folder).exists() {
        true => state::load(&mut trainer, &folder)?,
        false if config.branch.is_some() => {
            let problem =
                "is missing: the run branched from another one, and begins with its weights";
            return Err(Error::checkpoint(state::path(&folder), problem));
        }
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
        Ok(trainer(self, (&data).into())?.0)
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

#[cfg(test)]
mod tests {
    use super::super::recipes::recipe;
    use super::super::{Precision, Silent};
    use super::*;
    use crate::runs::{FORCED, without_sync};

    /// Each takes milliseconds of a run of a tenth of a second.
    #[test]
    fn a_short_run_forces_to_disk_what_it_cannot_be_continued_without() {
        let mut config = recipe("digits").unwrap();
        (config.device, config.precision) = ("cpu".into(), Precision::F32);
        (config.train.epochs, config.train.steps) = (None, Some(8));
        let root = std::env::temp_dir().join(format!("twoclocks-forced-{}", std::process::id()));
        let forced = |config: &Config| {
            let before = FORCED.get();
            run(config, &root, &mut Silent, &AtomicBool::new(false)).unwrap();
            FORCED.get() - before
        };
        // Configuration, name of the run, checkpoint and its name; the journal at the end.
        assert_eq!(forced(&config), 5);
        assert_eq!(without_sync(|| forced(&config)), 0);
        // After each of 7 steps, checkpoint, its name and the journal.
        config.train.checkpoint_seconds = 0.0;
        assert_eq!(forced(&config), 5 + 7 * 3);
        std::fs::remove_dir_all(root).unwrap();
    }
}
