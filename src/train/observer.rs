//! Who watches a run, what it is told, and how a run ended.

use crate::runs::{Done, Epoch, Nearest};
use serde::{Deserialize, Serialize};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The target accuracy was reached.
    Target,
    /// All epochs are done.
    Epochs,
    /// All updates are done.
    Steps,
    /// The time is used up.
    Time,
    /// Reviews found no gain any more.
    Plateau,
    /// The advice of its clocks was to stop.
    Advice,
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
            Reason::Plateau => "plateau",
            Reason::Advice => "advice",
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
    /// C, the sum of rate times decay, at the end as planned; `None` where the number of steps is not known.
    pub planned_contraction: Option<f64>,
    /// The step after which the run goes on; 0 for a new one.
    pub resumed_at: u64,
    /// Earlier runs that a new one is nearest to, as many as the observer shows.
    pub nearest: Vec<Nearest>,
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
    /// How many earlier runs it shows when a new one starts.
    fn shows_nearest(&self) -> usize {
        0
    }
    /// Whether the run ends with its report.
    fn wants_report(&self) -> bool {
        true
    }
    /// Whether the weights at the end are kept. A run that is stopped on its way keeps them all the same, to go on with.
    fn wants_weights(&self) -> bool {
        true
    }
    /// Test rows of the review at the end: a sample of so many, which is always the same; all of them without a number.
    fn final_rows(&self) -> Option<usize> {
        None
    }
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
