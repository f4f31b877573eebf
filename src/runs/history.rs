//! Runs that were: what lies under a root, and what each of them came to.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runs::environment::Environment;
use crate::runs::folder::{METRICS, RunFolder, parse_name};
use crate::runs::metrics::{self, Done, Epoch, Row, Step};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It came to its end, good or bad.
    Finished,
    /// A process is training in its folder.
    Running,
    /// It was stopped or killed, and can be resumed.
    Interrupted,
    /// Its journal cannot be read.
    Damaged,
}

impl State {
    /// The state in one word.
    pub fn name(self) -> &'static str {
        match self {
            State::Finished => "finished",
            State::Running => "running",
            State::Interrupted => "interrupted",
            State::Damaged => "damaged",
        }
    }
}

/// What a run came to, in one line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The folder.
    #[serde(serialize_with = "super::folder::as_text")]
    pub path: PathBuf,
    /// Name of the folder.
    pub name: String,
    /// What was trained.
    pub recipe: String,
    /// Start, UTC, RFC 3339.
    pub started: Option<String>,
    /// How far it is.
    pub state: State,
    /// Why it ended, or what is damaged.
    pub reason: Option<String>,
    /// Epochs done.
    pub epochs: u64,
    /// Training steps done, as far as the journal says.
    pub step: u64,
    /// Share of the test set classified right at the last review, 0 to 1.
    pub test_acc: Option<f64>,
    /// Training clock, seconds without reviews.
    pub seconds: f64,
    /// Training clock when the target was first reached.
    pub seconds_to_target: Option<f64>,
}

/// All that a run folder says, for `runs show` and the report.
#[derive(Clone, Debug)]
pub struct Record {
    /// The run in one line.
    pub summary: Summary,
    /// Text of `config.toml`, where there is one.
    pub config: Option<String>,
    /// `environment.json`, where there is one.
    pub environment: Option<Environment>,
    /// The trace of training steps.
    pub steps: Vec<Step>,
    /// The reviews.
    pub epochs: Vec<Epoch>,
    /// The end, if the run came to it.
    pub done: Option<Done>,
}

impl Record {
    /// Reads a run folder. A run without a configuration or an environment is read without.
    ///
    /// # Errors
    /// [`Error::Data`] where a file of it is damaged, [`Error::Io`] where it cannot be read.
    pub fn load(folder: &RunFolder) -> Result<Self> {
        // Asked first: a run that ends in between then has its last row.
        let running = folder.is_running();
        let rows = metrics::read(&folder.file(METRICS))?;
        let environment = optional(Environment::read(folder))?;
        let config = optional(folder.config())?;
        let mut record = Record {
            summary: blank(folder),
            config,
            environment,
            steps: Vec::new(),
            epochs: Vec::new(),
            done: None,
        };
        for row in rows {
            match row {
                Row::Step(row) => record.steps.push(row),
                Row::Epoch(row) => record.epochs.push(row),
                Row::Done(row) => record.done = Some(row),
            }
        }
        record.summarise(running);
        Ok(record)
    }

    fn summarise(&mut self, running: bool) {
        let summary = &mut self.summary;
        if summary.started.is_none() {
            summary.started = self.environment.as_ref().map(|e| e.date.clone());
        }
        if let Some(last) = self.steps.last() {
            (summary.step, summary.seconds) = (last.step, last.seconds);
        }
        if let Some(last) = self.epochs.last() {
            summary.epochs = last.epoch;
            summary.step = summary.step.max(last.step);
            summary.seconds = summary.seconds.max(last.seconds);
            summary.test_acc = Some(last.test_acc).filter(|a| a.is_finite());
        }
        summary.state = if running { State::Running } else { State::Interrupted };
        if let Some(done) = &self.done {
            // Also while its process still holds the lock, to write the report.
            let interrupted = done.reason == "interrupted";
            summary.state = if interrupted { State::Interrupted } else { State::Finished };
            summary.reason = Some(done.reason.clone());
            (summary.epochs, summary.step) = (done.epochs, done.step);
            summary.seconds = done.seconds_training;
            summary.seconds_to_target = done.seconds_to_target;
            summary.test_acc = Some(done.test_acc).filter(|a| a.is_finite());
        }
    }
}

/// The runs under `root`, oldest first. A root that is not there has none; what is not a run folder
/// is passed over, and a run whose journal is damaged is listed as such.
///
/// # Errors
/// [`Error::Io`] where the root cannot be read.
pub fn list(root: &Path) -> Result<Vec<Summary>> {
    let mut runs: Vec<Summary> = folders(root)?.iter().map(summary).collect();
    // A folder that was renamed has its start from its environment, known only now.
    runs.sort_by_cached_key(age);
    Ok(runs)
}

/// The run that people mean: a folder, or the name of one under `root`, or the beginning of the name of only one.
///
/// # Errors
/// [`Error::Config`] where no run under `root` is called that, or several are; as [`RunFolder::open`] where
/// a folder of that name is no run.
pub fn find(root: &Path, name: &Path) -> Result<RunFolder> {
    for path in [name.to_owned(), root.join(name)] {
        if path.exists() {
            return RunFolder::open(path);
        }
    }
    let beginning = name.to_string_lossy();
    let mut found = folders(root)?;
    found.retain(|folder| folder.name().starts_with(&*beginning));
    let mut names: Vec<String> = found.iter().map(RunFolder::name).collect();
    names.sort();
    match (found.pop(), names.len()) {
        (Some(folder), 1) => Ok(folder),
        (None, _) => {
            let problem = format!("no run in {} is called that, or begins so", root.display());
            Err(Error::config(format!("run '{beginning}'"), problem))
        }
        (_, count) => {
            let shown = names[..count.min(4)].join(", ");
            let more = if count > 4 { ", ..." } else { "" };
            let problem = format!("{count} runs begin so: {shown}{more}");
            Err(Error::config(format!("run '{beginning}'"), problem))
        }
    }
}

/// All that the runs under `root` say, oldest first, and one line about those that cannot be read.
///
/// # Errors
/// [`Error::Io`] where the root cannot be read.
pub fn records(root: &Path) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = folders(root)?
        .iter()
        .map(|folder| {
            Record::load(folder).unwrap_or_else(|_| Record {
                summary: summary(folder),
                config: None,
                environment: None,
                steps: Vec::new(),
                epochs: Vec::new(),
                done: None,
            })
        })
        .collect();
    records.sort_by_cached_key(|record| age(&record.summary));
    Ok(records)
}

/// What runs are ordered by.
fn age(run: &Summary) -> (Option<String>, u32, String) {
    (run.started.clone(), parse_name(&run.name).2, run.name.clone())
}

/// The last `limit` runs under the root of `folder` that began before it, newest first.
pub(super) fn earlier(folder: &RunFolder, limit: usize) -> Result<Vec<RunFolder>> {
    let order = |folder: &RunFolder| {
        let name = folder.name();
        let (_, time, n) = parse_name(&name);
        (time, n, name)
    };
    let this = order(folder);
    let mut others = folders(folder.root())?;
    others.retain(|other| order(other) < this);
    others.sort_by_cached_key(|other| Reverse(order(other)));
    others.truncate(limit);
    Ok(others)
}

/// The same as paths, whether they are run folders or not, and none where the root cannot be read: that is quicker.
pub(super) fn earlier_paths(folder: &RunFolder, limit: usize) -> Vec<PathBuf> {
    let order = |name: String| {
        let (_, time, n) = parse_name(&name);
        (time, n, name)
    };
    let this = order(folder.name());
    let entries = fs::read_dir(folder.root()).into_iter().flatten().flatten();
    let mut others: Vec<_> = entries
        .map(|entry| order(entry.file_name().to_string_lossy().into_owned()))
        .filter(|other| *other < this)
        .collect();
    others.sort_by(|a, b| b.cmp(a));
    others.truncate(limit);
    others.into_iter().map(|(.., name)| folder.root().join(name)).collect()
}

/// One line about a run, readable or not.
pub(super) fn summary(folder: &RunFolder) -> Summary {
    Record::load(folder).map(|record| record.summary).unwrap_or_else(|error| Summary {
        state: State::Damaged,
        reason: Some(error.to_string()),
        ..blank(folder)
    })
}

fn blank(folder: &RunFolder) -> Summary {
    let name = folder.name();
    let (recipe, started, _) = parse_name(&name);
    Summary {
        path: folder.path().to_owned(),
        recipe: recipe.to_owned(),
        started: started.map(|time| time.to_string()),
        state: State::Interrupted,
        reason: None,
        epochs: 0,
        step: 0,
        test_acc: None,
        seconds: 0.0,
        seconds_to_target: None,
        name,
    }
}

/// The run folders under `root`, in no order.
fn folders(root: &Path) -> Result<Vec<RunFolder>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", root, e)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", root, e))?.path();
        folders.extend(RunFolder::open(path).ok());
    }
    Ok(folders)
}

/// A file that need not be there.
fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::folder::ENVIRONMENT;
    use crate::runs::metrics::tests::{done, epoch, step};
    use crate::runs::scratch::{Scratch, run};

    #[test]
    fn runs_are_listed_by_age_with_their_state() {
        let scratch = Scratch::new();
        let root = scratch.path();
        assert_eq!(list(&root.join("none")).unwrap(), []);
        let rows = || vec![step(5, 1.0).into(), epoch(1, 10, 0.9).into(), step(15, 0.5).into()];
        let running = run(root, "digits-20260102-000000-10", rows());
        run(root, "digits-20260102-000000-2", vec![]);
        let mut ended = rows();
        ended.push(done(20, 0.95).into());
        run(root, "mnist-20260101-000000", ended);
        let renamed = run(root, "the best one", rows());
        let mut environment = Environment::collect("cpu", "portable", 1);
        environment.date = "2025-01-01T00:00:00Z".into();
        environment.write(&renamed).unwrap();
        drop(renamed);
        let broken = run(root, "chars-20270101-000000", vec![]);
        broken.write_atomic(METRICS, b"{}\n{}\n").unwrap();
        fs::create_dir(root.join("foreign")).unwrap();
        fs::write(root.join("file"), "").unwrap();

        let runs = list(root).unwrap();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let expected = [
            "the best one",
            "mnist-20260101-000000",
            "digits-20260102-000000-2",
            "digits-20260102-000000-10",
            "chars-20270101-000000",
        ];
        assert_eq!(names, expected);
        let states: Vec<State> = runs.iter().map(|run| run.state).collect();
        use State::*;
        assert_eq!(states, [Interrupted, Finished, Interrupted, Running, Damaged]);
        let mnist = &runs[1];
        assert_eq!((mnist.recipe.as_str(), mnist.epochs, mnist.step), ("mnist", 2, 20));
        assert_eq!(mnist.started.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!((mnist.test_acc, mnist.seconds), (Some(0.95), 0.2));
        assert_eq!(mnist.reason.as_deref(), Some("target"));
        assert_eq!((runs[3].epochs, runs[3].step, runs[3].test_acc), (1, 15, Some(0.9)));
        assert!(runs[4].reason.as_deref().unwrap().contains("line 1"));
        let earlier: Vec<String> =
            earlier(&running, 2).unwrap().iter().map(RunFolder::name).collect();
        assert_eq!(earlier, ["digits-20260102-000000-2", "mnist-20260101-000000"]);
    }

    #[test]
    fn a_run_is_found_by_path_name_and_beginning() {
        let scratch = Scratch::new();
        let root = scratch.path();
        for name in ["digits-20260101-000000", "digits-20260102-000000", "mnist-20260101-000000"] {
            run(root, name, vec![]);
        }
        let found = |name: &str| find(root, Path::new(name)).map(|folder| folder.name());
        assert_eq!(found("mnist").unwrap(), "mnist-20260101-000000");
        assert_eq!(found("digits-20260102").unwrap(), "digits-20260102-000000");
        assert_eq!(found("digits-20260101-000000").unwrap(), "digits-20260101-000000");
        let path = root.join("mnist-20260101-000000");
        assert_eq!(find(Path::new("elsewhere"), &path).unwrap().path(), path);
        let text = found("digits").unwrap_err().to_string();
        assert!(text.contains("'digits'") && text.contains("2 runs"), "{text}");
        let text = found("chars").unwrap_err().to_string();
        assert!(text.contains("'chars'") && text.contains("no run"), "{text}");
        fs::create_dir(root.join("foreign")).unwrap();
        assert!(found("foreign").unwrap_err().to_string().contains("not the folder of a run"));
        let names: Vec<String> =
            records(root).unwrap().into_iter().map(|record| record.summary.name).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], "digits-20260101-000000");
    }

    #[test]
    fn an_interrupted_run_is_not_finished() {
        let scratch = Scratch::new();
        let mut end = done(20, f64::NAN);
        end.reason = "interrupted".into();
        run(scratch.path(), "digits", vec![end.into()]);
        let runs = list(scratch.path()).unwrap();
        assert_eq!((runs[0].state, runs[0].test_acc), (State::Interrupted, None));
    }

    #[test]
    fn a_record_has_all_of_a_run() {
        let scratch = Scratch::new();
        let rows = vec![step(5, 1.0).into(), epoch(1, 10, 0.9).into(), done(10, 0.9).into()];
        let folder = run(scratch.path(), "digits", rows);
        folder.write_config("lr = 1\n").unwrap();
        let record = Record::load(&folder).unwrap();
        assert_eq!((record.steps.len(), record.epochs.len()), (1, 1));
        assert_eq!(record.config.as_deref(), Some("lr = 1\n"));
        assert!(record.done.is_some() && record.environment.is_none());
        folder.write_atomic(ENVIRONMENT, b"?").unwrap();
        assert!(Record::load(&folder).is_err());
    }
}
