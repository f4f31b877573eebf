//! The runs of one rung, side by side.

use super::super::config::Config;
use super::super::observer::{Observer, Reason, Started};
use super::super::run::{resume, run_on};
use super::super::shared::Input;
use super::journal::{Task, Trained};
use crate::error::{Error, Result};
use crate::runs::{Done, Epoch, Record, RunFolder, without_sync};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often the one who waits looks whether it is time to stop.
const LOOK: Duration = Duration::from_millis(10);

/// A run that is to be made.
#[derive(Clone, Debug)]
pub(super) struct Work<'a> {
    pub task: Task,
    /// The setting, for people.
    pub setting: String,
    pub config: Config,
    pub data: Input<'a>,
    /// The folder of it, where it was begun before.
    pub folder: Option<PathBuf>,
    pub wanted: Wanted,
}

/// What is wanted of a run beside its figures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub weights: bool,
    /// Test rows by which it is judged, where not all.
    pub rows: Option<usize>,
}

/// What a worker says.
pub(super) enum Over {
    /// A run has its folder.
    Began(Task),
    /// It is over.
    Trained(Trained),
    /// It was stopped on its way, and can be resumed.
    Stopped,
    /// It cannot be made.
    Failed(Error),
}

/// Makes runs on so many threads, each of which takes the next one when it is done; `hear` is told of all, in this thread, and
/// `is_over` is asked now and again whether to stop what runs. The first failure stops the others.
///
/// # Errors
/// The first failure, of a run or of `hear`.
pub(super) fn side_by_side(
    works: Vec<Work<'_>>,
    workers: usize,
    root: &Path,
    hear: &mut dyn FnMut(Over) -> Result<()>,
    is_over: &dyn Fn() -> bool,
) -> Result<()> {
    let queue: Mutex<VecDeque<Work<'_>>> = Mutex::new(works.into());
    let halt = AtomicBool::new(false);
    let mut failed = None;
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..workers {
            let (sender, queue, halt) = (sender.clone(), &queue, &halt);
            scope.spawn(move || {
                while !halt.load(Ordering::Relaxed) {
                    // A worker that panicked left the queue as it was.
                    let next = queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
                    let Some(work) = next else { break };
                    let over = without_sync(|| make(work, root, &sender, halt));
                    let over = over.unwrap_or_else(Over::Failed);
                    let _ = sender.send(over);
                }
            });
        }
        drop(sender);
        loop {
            if is_over() {
                halt.store(true, Ordering::Relaxed);
            }
            let heard = match receiver.recv_timeout(LOOK) {
                Ok(Over::Failed(error)) => Err(error),
                Ok(over) => hear(over),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = heard {
                halt.store(true, Ordering::Relaxed);
                failed.get_or_insert(error);
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

/// Watches a run for its sweep.
struct Watch<'a> {
    task: Task,
    wanted: Wanted,
    sender: &'a Sender<Over>,
    /// Test accuracy and loss of the last review.
    last: (f64, f64),
    done: Option<Done>,
}

impl Observer for Watch<'_> {
    // The sweep has a page of its own.
    fn wants_report(&self) -> bool {
        false
    }

    fn wants_weights(&self) -> bool {
        self.wanted.weights
    }

    fn final_rows(&self) -> Option<usize> {
        self.wanted.rows
    }

    fn started(&mut self, started: &Started) {
        self.task.run = folder_name(&started.folder);
        let _ = self.sender.send(Over::Began(self.task.clone()));
    }

    fn review(&mut self, epoch: &Epoch) {
        self.last = (epoch.test_acc, epoch.test_loss);
    }

    fn done(&mut self, done: &Done) {
        self.done = Some(done.clone());
    }
}

fn folder_name(run: &Path) -> String {
    run.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn make(work: Work<'_>, root: &Path, sender: &Sender<Over>, halt: &AtomicBool) -> Result<Over> {
    let began = Instant::now();
    let Work { task, setting, config, data, folder, wanted } = work;
    let mut watch = Watch { task, wanted, sender, last: (f64::NAN, f64::NAN), done: None };
    let outcome = match &folder {
        Some(path) => {
            let record = Record::load(&RunFolder::open(path)?)?;
            if let Some(epoch) = record.epochs.last() {
                watch.review(epoch);
            }
            match record.done.filter(|done| done.reason != Reason::Interrupted.name()) {
                // It came to its end, and only the sweep did not hear of it.
                Some(done) => {
                    watch.task.run = folder_name(path);
                    watch.done = Some(done);
                    Ok(())
                }
                None => resume(path, &mut watch, halt).map(|_| ()),
            }
        }
        None => run_on(data, &config, root, &mut watch, halt, began).map(|_| ()),
    };
    match outcome {
        Ok(()) | Err(Error::Diverged { .. }) => {}
        Err(error) => return Err(named(error, &setting)),
    }
    let Some(done) = watch.done else {
        return Err(Error::data(root, watch.task.run, "the run ended without its last line"));
    };
    if done.reason == Reason::Interrupted.name() {
        return Ok(Over::Stopped);
    }
    let diverged = done.reason == "diverged";
    let unless_diverged = |value: f64| if diverged { f64::NAN } else { value };
    Ok(Over::Trained(Trained {
        task: watch.task,
        setting,
        test_acc: unless_diverged(watch.last.0),
        test_loss: unless_diverged(watch.last.1),
        seconds_training: done.seconds_training,
        seconds_to_target: done.seconds_to_target.filter(|_| !diverged),
        steps: done.step,
        seconds_worker: began.elapsed().as_secs_f64(),
        seconds: 0.0,
        reason: done.reason,
    }))
}

/// Says of which setting a configuration is wrong.
fn named(error: Error, setting: &str) -> Error {
    match error {
        Error::Config { place, problem } => Error::config(format!("{setting}: {place}"), problem),
        other => other,
    }
}
