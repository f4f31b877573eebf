//! A team of threads that enters a parallel region together.
//!
//! The calling thread is member 0. The others wait for the next region: first spinning (a training
//! loop enters the next one within microseconds), then parked. Barriers inside a region do the same.
//! Measured on a 2-core virtual machine: a spin barrier of two threads costs 0.1 us at the median.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How often a waiting thread looks before it goes to sleep (some 50 us). Short when there are more
/// threads than processors, since then whoever spins keeps the awaited thread from running.
const SPINS: u32 = 20_000;
const SPINS_OVERSUBSCRIBED: u32 = 50;

/// A word that threads wait for: spin first, then park.
struct Gate {
    generation: AtomicU32,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    spins: u32,
}

impl Gate {
    fn new(spins: u32) -> Self {
        Gate {
            generation: AtomicU32::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            spins,
        }
    }

    /// Waits until the generation is no longer `seen`.
    fn wait(&self, seen: u32) {
        for _ in 0..self.spins {
            if self.generation.load(Ordering::Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Sequentially consistent with `open`: either it sees this sleeper, or this sees its step.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.generation.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets all that wait go on.
    fn open(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            self.wake.notify_all();
        }
    }
}

/// A barrier of a fixed number of threads, usable again and again.
struct Barrier {
    gate: Gate,
    arrived: AtomicUsize,
    threads: usize,
}

impl Barrier {
    fn new(threads: usize, spins: u32) -> Self {
        Barrier { gate: Gate::new(spins), arrived: AtomicUsize::new(0), threads }
    }

    fn wait(&self) {
        let seen = self.gate.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.gate.open();
        } else {
            self.gate.wait(seen);
        }
    }
}

type Job<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

struct Shared {
    start: Gate,
    barrier: Barrier,
    /// The job of the region that is open. Written by the leader before `start` opens, read by the
    /// workers after it opened and before they arrive at `barrier` for the last time.
    job: UnsafeCell<Option<*const Job<'static>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is the only field that is not `Sync` by itself; its comment gives the protocol that
// orders its accesses by the gates' acquire and release.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `Team::run` keeps its target alive.
unsafe impl Send for Shared {}

/// One thread's view of a parallel region.
pub struct Member<'a> {
    shared: Option<&'a Shared>,
    index: usize,
}

impl Member<'_> {
    /// Number of this thread in the team; 0 is the thread that entered the region.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits until every thread of the team is here.
    pub fn barrier(&self) {
        if let Some(shared) = self.shared {
            shared.barrier.wait();
        }
    }
}

/// Threads that run parallel regions together.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a region: a team runs one at a time.
    busy: Mutex<()>,
}

impl Team {
    /// A team of that many threads, the calling one included; at least one.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let threads = threads.max(1);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let spins = if threads > cores { SPINS_OVERSUBSCRIBED } else { SPINS };
        let shared = Arc::new(Shared {
            start: Gate::new(spins),
            barrier: Barrier::new(threads, spins),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut team = Team { shared, workers: Vec::new(), busy: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let worker = std::thread::Builder::new()
                .name(format!("twoclocks-{index}"))
                .spawn(move || work(&shared, index))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` once on every thread of the team and returns when all are done.
    ///
    /// A job must not panic between barriers that other threads wait at (see [`super::Program`],
    /// which catches panics of kernels); a panic after the last barrier is passed on.
    pub fn run(&self, job: &Job<'_>) {
        if self.workers.is_empty() {
            return job(&Member { shared: None, index: 0 });
        }
        let _region = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shared = &*self.shared;
        // SAFETY: only the lifetime of the reference is changed. The workers use it only before
        // they arrive at the last barrier below, which this function waits for (also when `job`
        // panics here), so the target outlives every use.
        let erased = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: `busy` is held and every worker waits at `start`: nobody else reads `job` now.
        unsafe { *shared.job.get() = Some(erased) };
        shared.start.open();
        let member = Member { shared: Some(shared), index: 0 };
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&member)));
        shared.barrier.wait();
        let worker_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!worker_panicked, "a thread of the team panicked");
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        shared.start.wait(seen);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: `start` opened, so the leader wrote `job` and will not touch it again before
        // this thread arrives at the last barrier.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            let member = Member { shared: Some(shared), index };
            // SAFETY: `Team::run` keeps the job alive until the last barrier.
            let job = unsafe { &*job };
            if catch_unwind(AssertUnwindSafe(|| job(&member))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.barrier.wait();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.open();
        for worker in self.workers.drain(..) {
            // A worker's panic was already reported by `run`.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_member_runs_and_barriers_order_the_phases() {
        for threads in [1, 2, 3, 5] {
            let team = Team::new(threads).expect("threads");
            for _ in 0..200 {
                let first = AtomicU64::new(0);
                let seen = AtomicU64::new(0);
                team.run(&|member| {
                    first.fetch_add(1 << member.index(), Ordering::Relaxed);
                    member.barrier();
                    seen.fetch_add(first.load(Ordering::Relaxed), Ordering::Relaxed);
                });
                let all = (1 << threads) - 1;
                assert_eq!(seen.into_inner(), all * threads as u64);
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).expect("threads");
        for index in 0..2 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|member| assert_ne!(member.index(), index));
            }));
            assert!(outcome.is_err());
        }
        team.run(&|_| {});
    }
}
