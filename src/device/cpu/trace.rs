//! When and on which thread each unit of a replay ran: for finding out where the time goes.

use super::program::Task;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// One unit of a replay: a chunk, or a sequence of small nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitTime {
    /// Stage of the program.
    pub stage: usize,
    /// What ran: one task, or those of a sequence.
    pub tasks: Vec<Task>,
    /// Index of the chunk; 0 for a sequence.
    pub chunk: usize,
    /// Thread at which the unit is at home.
    pub home: usize,
    /// Thread that ran it.
    pub thread: usize,
    /// Nanoseconds from the start of the replay to its start.
    pub start: u64,
    /// Nanoseconds from the start of the replay to its end.
    pub end: u64,
}

/// Room for the times of all units of a program; each unit runs once a replay.
pub(super) struct Trace {
    began: Instant,
    times: Vec<Times>,
}

struct Times {
    thread: AtomicUsize,
    start: AtomicU64,
    end: AtomicU64,
}

impl Trace {
    pub fn new(units: usize) -> Trace {
        let none = || Times {
            thread: AtomicUsize::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
        };
        Trace { began: Instant::now(), times: (0..units).map(|_| none()).collect() }
    }

    /// Nanoseconds since the trace was made.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Runs a unit and notes when.
    pub fn around(&self, unit: usize, thread: usize, run: impl FnOnce()) {
        let times = &self.times[unit];
        times.thread.store(thread, Ordering::Relaxed);
        times.start.store(self.now(), Ordering::Relaxed);
        run();
        times.end.store(self.now(), Ordering::Relaxed);
    }

    /// Thread, start and end of a unit. Complete once the replay is over.
    pub fn of(&self, unit: usize) -> (usize, u64, u64) {
        let Times { thread, start, end } = &self.times[unit];
        (thread.load(Ordering::Relaxed), start.load(Ordering::Relaxed), end.load(Ordering::Relaxed))
    }
}
