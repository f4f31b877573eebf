//! What a sweep says, line by line: to whoever watches, and to its journal, from which a killed one goes on.

use super::halving::Rung;
use crate::error::{Error, Result};
use crate::runs::folder::as_text;
use serde::{Deserialize, Deserializer, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the journal in the folder of a sweep.
pub(super) const JOURNAL: &str = "sweep.jsonl";

/// One line of the journal. The same lines go to standard output under `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// What will be done.
    Sweep(Plan),
    /// A rung begins.
    Rung(Begun),
    /// A run begins.
    Began(Task),
    /// A run is over.
    Trained(Trained),
    /// A setting in the final order.
    Result(Ranked),
    /// The end.
    Done(Ended),
}

/// What a sweep will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The folder of the sweep.
    #[serde(serialize_with = "as_text")]
    pub sweep: PathBuf,
    /// Settings of the grid.
    pub settings: usize,
    /// Runs of each that is trained in full.
    pub seeds: usize,
    /// Runs side by side.
    pub workers: usize,
    /// Threads of each.
    pub threads: usize,
    /// Training steps a second of the run that is varied, all workers together, for each number of threads that was tried.
    pub tried: Vec<Tried>,
    /// The rungs.
    pub rungs: Vec<Rung>,
    /// Seconds that they are expected to take.
    pub expected: f64,
    /// Seconds that the sweep may take.
    pub budget: f64,
    /// Seconds since it began.
    pub seconds: f64,
}

/// How fast runs side by side were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Runs side by side.
    pub workers: usize,
    /// Threads of each.
    pub threads: usize,
    /// Training steps a second, all together.
    pub steps_per_s: f64,
}

/// The beginning of a rung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Number of the rung, from 0.
    pub rung: usize,
    /// Share of the run that each setting is trained for.
    pub share: f64,
    /// Runs of each.
    pub seeds: usize,
    /// The settings, by their place in the grid.
    pub points: Vec<usize>,
    /// Seconds since the sweep began.
    pub seconds: f64,
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Number of the rung, from 0.
    pub rung: usize,
    /// The setting, by its place in the grid.
    pub point: usize,
    /// The seed.
    pub seed: u64,
    /// Name of its folder; empty before it has one.
    pub run: String,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Which run.
    #[serde(flatten)]
    pub task: Task,
    /// The setting, for people.
    pub setting: String,
    /// Why it ended; `diverged` among others.
    pub reason: String,
    /// Test accuracy at the end, 0 to 1.
    #[serde(deserialize_with = "number")]
    pub test_acc: f64,
    /// Test loss at the last review.
    #[serde(deserialize_with = "number")]
    pub test_loss: f64,
    /// Training clock, in seconds, as it ran beside others.
    pub seconds_training: f64,
    /// Training clock when the target accuracy was first reached.
    pub seconds_to_target: Option<f64>,
    /// Training steps.
    pub steps: u64,
    /// Seconds of its worker, everything included.
    pub seconds_worker: f64,
    /// Seconds since the sweep began.
    pub seconds: f64,
}

/// A setting in the final order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// 1 is the best.
    pub rank: usize,
    /// The setting, by its place in the grid.
    pub point: usize,
    /// The setting, for people.
    pub setting: String,
    /// The last rung in which it was trained, from 0.
    pub rung: usize,
    /// The share of the run there.
    pub share: f64,
    /// Mean test accuracy there.
    #[serde(deserialize_with = "number")]
    pub test_acc: f64,
    /// Its standard deviation over the seeds, where there are several.
    pub deviation: Option<f64>,
    /// Mean test loss there.
    #[serde(deserialize_with = "number")]
    pub test_loss: f64,
    /// Mean seconds of training there.
    pub seconds_training: f64,
    /// Folders of its runs there.
    pub runs: Vec<String>,
}

/// How a sweep ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// `complete`, `time` or `interrupted`; all but the first can be resumed.
    pub reason: String,
    /// Runs that were trained to their end.
    pub runs: usize,
    /// Seconds since the sweep began.
    pub seconds: f64,
    /// The folder of the sweep.
    #[serde(serialize_with = "as_text")]
    pub sweep: PathBuf,
}

/// Reads `null` as NaN.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Event {
    /// The event as one line of JSON, without the line feed.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an event has only string keys and plain values")
    }

    /// Seconds since the sweep began, where the event says them.
    fn seconds(&self) -> Option<f64> {
        match self {
            Event::Sweep(plan) => Some(plan.seconds),
            Event::Rung(rung) => Some(rung.seconds),
            Event::Trained(run) => Some(run.seconds),
            Event::Done(end) => Some(end.seconds),
            Event::Began(_) | Event::Result(_) => None,
        }
    }
}

/// The journal of a sweep, open and locked for this process.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal in a folder, or begins it, and gives what it says so far. A last line that a killed process did not finish is
    /// cut off.
    ///
    /// # Errors
    /// [`Error::Data`] where another process sweeps there, or with the line that is damaged; [`Error::Io`] naming the file.
    pub fn open(folder: &Path) -> Result<(Journal, Vec<Event>)> {
        let path = folder.join(JOURNAL);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", path, source)),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::data(folder, "lock", "another process sweeps in this folder"));
            }
        }
        let text = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(|e| Error::io("write", &path, e))?;
        }
        let mut events = Vec::new();
        for (index, line) in text[..whole].split(|&b| b == b'\n').enumerate() {
            if !line.is_empty() {
                let event = serde_json::from_slice(line).map_err(|e| {
                    Error::data(&path, format!("line {}", index + 1), e.to_string())
                })?;
                events.push(event);
            }
        }
        Ok((Journal { file, path }, events))
    }

    /// Appends an event with one write.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        let line = event.to_json() + "\n";
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Seconds that a sweep has taken, by its journal.
pub(super) fn used(events: &[Event]) -> f64 {
    events.iter().filter_map(Event::seconds).fold(0.0, f64::max)
}
