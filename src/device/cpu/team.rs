//! A team of threads, for two ways of working together.
//!
//! [`Team::share`] offers work that the caller does anyway and that others may help with: nobody
//! waits for a thread that the system does not run just now. Replays work like that.
//! [`Team::run`] runs a job once on every thread and waits for all of them: for measurements.
//!
//! The calling thread is member 0. The others wait for work: first spinning (a training loop offers
//! the next within microseconds), then parked.

use super::processor;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a waiting thread looks before it goes to sleep: a training loop offers the next step
/// sooner. Not at all when it shares its processor with another thread of the team, or there are
/// more threads than processors: then whoever spins keeps the awaited thread from running.
const SPIN: Duration = Duration::from_micros(80);

/// Whether there are more threads than processors.
pub(super) fn oversubscribed(threads: usize) -> bool {
    threads > std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Looks at `done` for up to `limit`; gives whether it came true.
pub(super) fn spin(limit: Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    // A `pause` takes 10 ns on some processors and 40 on others: short limits look at the clock often.
    let looks = if limit < Duration::from_micros(5) { 8 } else { 64 };
    let began = Instant::now();
    loop {
        for _ in 0..looks {
            std::hint::spin_loop();
            if done() {
                return true;
            }
        }
        if began.elapsed() >= limit {
            return false;
        }
    }
}

/// A word that threads wait for: spin first, then park.
struct Gate {
    generation: AtomicU32,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    fn new() -> Self {
        Gate {
            generation: AtomicU32::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until the generation is no longer `seen`: looks for up to `limit`, and then sleeps.
    fn wait(&self, seen: u32, limit: Duration) {
        if !self.look(seen, limit) {
            self.sleep(seen);
        }
    }

    /// Looks for up to `limit` whether the generation is no longer `seen`.
    fn look(&self, seen: u32, limit: Duration) -> bool {
        spin(limit, || self.generation.load(Ordering::Acquire) != seen)
    }

    /// Sleeps until the generation is no longer `seen`.
    fn sleep(&self, seen: u32) {
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
    fn new(threads: usize) -> Self {
        Barrier { gate: Gate::new(), arrived: AtomicUsize::new(0), threads }
    }

    fn wait(&self, limit: Duration) {
        let seen = self.gate.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.gate.open();
        } else {
            self.gate.wait(seen, limit);
        }
    }
}

type Job<'a> = dyn Fn(&Member) + Sync + 'a;

/// Work that any number of threads may help with, at any moment or not at all.
pub trait Work: Send + Sync {
    /// Does what is left to do of the round `ticket`, as member `member` of the team. Called by
    /// threads that may be late: of a round that is over there is nothing left to do.
    fn help(&self, member: usize, ticket: u32);
}

/// What the workers find when the gate opens.
#[derive(Clone)]
enum Offer {
    Nothing,
    /// A job that every worker runs once; the leader waits for all of them.
    Everyone(Pointer),
    /// Work that a worker may help with.
    Anyone(Arc<dyn Work>, u32),
}

#[derive(Clone, Copy)]
struct Pointer(*const Job<'static>);
// SAFETY: the pointer is only followed while `Team::run` keeps its target alive, and the target is
// `Sync`.
unsafe impl Send for Pointer {}

/// The processor of a member that is awake; on cache lines of its own, with the next one, which
/// processors fetch along.
#[repr(align(128))]
struct Place(AtomicU32);

struct Shared {
    start: Gate,
    barrier: Barrier,
    /// Of each member.
    places: Vec<Place>,
    /// How long those wait that have a processor for themselves.
    spin: Duration,
    /// The newest offer, with the generation of `start` at which it was made.
    offer: Mutex<(u32, Offer)>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn publish(&self, offer: Offer) {
        let mut slot = self.offer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Generations are only made here, under the lock.
        *slot = (self.start.generation.load(Ordering::Relaxed).wrapping_add(1), offer);
        let here = processor::current();
        let place = &self.places[0].0;
        if place.load(Ordering::Relaxed) != here {
            place.store(here, Ordering::Relaxed);
        }
        self.start.open();
    }

    /// Notes where member `index` runs. If another one is there, it moves to a processor where none
    /// is. Gives how long it may spin: not at all if there is none.
    fn settle(&self, index: usize) -> Duration {
        let here = processor::current();
        self.places[index].0.store(here, Ordering::Relaxed);
        let others = || {
            let places = self.places.iter().enumerate().filter(|&(member, _)| member != index);
            places.map(|(_, place)| place.0.load(Ordering::Relaxed))
        };
        if here == processor::NOWHERE || others().all(|other| other != here) {
            return self.spin;
        }
        if !processor::leave(others()) {
            return Duration::ZERO;
        }
        self.places[index].0.store(processor::current(), Ordering::Relaxed);
        self.spin
    }
}

/// One thread's view of a job that all run.
pub struct Member {
    index: usize,
}

impl Member {
    /// Number of this thread in the team; 0 is the calling thread.
    pub fn index(&self) -> usize {
        self.index
    }
}

/// Threads that run parallel regions together.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job for everyone runs: a team runs one at a time.
    busy: Mutex<()>,
}

impl Team {
    /// A team of that many threads, the calling one included; at least one.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let threads = threads.max(1);
        let nowhere = || Place(AtomicU32::new(processor::NOWHERE));
        let shared = Arc::new(Shared {
            start: Gate::new(),
            barrier: Barrier::new(threads),
            places: (0..threads).map(|_| nowhere()).collect(),
            spin: if oversubscribed(threads) { Duration::ZERO } else { SPIN },
            offer: Mutex::new((0, Offer::Nothing)),
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

    /// Offers the round `ticket` of `work` to the other threads; the caller then does the work
    /// itself, and has help from whoever is running. Allocates nothing.
    pub fn share<W: Work + 'static>(&self, work: &Arc<W>, ticket: u32) {
        if self.workers.is_empty() {
            return;
        }
        // A job for everyone is not to be overwritten before everyone has seen it.
        let Ok(_free) = self.busy.try_lock() else { return };
        let work: Arc<dyn Work> = Arc::<W>::clone(work);
        self.shared.publish(Offer::Anyone(work, ticket));
    }

    /// Runs `job` once on every thread of the team and returns when all are done; passes on a
    /// panic.
    pub fn run(&self, job: &Job<'_>) {
        if self.workers.is_empty() {
            return job(&Member { index: 0 });
        }
        let _region = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shared = &*self.shared;
        // SAFETY: only the lifetime of the reference is changed. The workers use it only before
        // they arrive at the barrier below, which this function waits for (also when `job` panics
        // here), so the target outlives every use.
        let erased = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        shared.publish(Offer::Everyone(Pointer(erased)));
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&Member { index: 0 })));
        shared.barrier.wait(shared.spin);
        let worker_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!worker_panicked, "a thread of the team panicked");
    }
}

fn work(shared: &Shared, index: usize) {
    let (mut seen, mut spin) = (0, Duration::ZERO);
    loop {
        if !shared.start.look(seen, spin) {
            shared.places[index].0.store(processor::NOWHERE, Ordering::Relaxed);
            shared.start.sleep(seen);
        }
        spin = shared.settle(index);
        // Whoever comes late finds the newest offer; those before it are over.
        let offer = {
            let slot = shared.offer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            seen = slot.0;
            slot.1.clone()
        };
        // After the offer is taken: a thread that comes late may have taken the one that ends the
        // team, and no other follows.
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        match offer {
            Offer::Nothing => {}
            Offer::Anyone(work, ticket) => work.help(index, ticket),
            Offer::Everyone(job) => {
                // SAFETY: `Team::run` keeps the job alive until every worker is at the barrier, and
                // nothing else is published before that: `busy` is held.
                let job = unsafe { &*job.0 };
                if catch_unwind(AssertUnwindSafe(|| job(&Member { index }))).is_err() {
                    shared.panicked.store(true, Ordering::Relaxed);
                }
                shared.barrier.wait(spin);
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.publish(Offer::Nothing);
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
    fn every_member_runs_a_job_once() {
        for threads in [1, 2, 3, 5] {
            let team = Team::new(threads).expect("threads");
            for _ in 0..200 {
                let seen = AtomicU64::new(0);
                team.run(&|member| {
                    seen.fetch_add(1 << (8 * member.index()), Ordering::Relaxed);
                });
                let all = (0..threads).map(|index| 1 << (8 * index)).sum::<u64>();
                assert_eq!(seen.into_inner(), all);
            }
        }
    }

    /// Rounds of items that are claimed with the round's ticket, as a replay does.
    struct Counting {
        next: AtomicU64,
        done: AtomicU64,
    }

    impl Work for Counting {
        fn help(&self, _member: usize, ticket: u32) {
            loop {
                let seen = self.next.load(Ordering::Acquire);
                if (seen >> 32) as u32 != ticket || seen as u32 >= 20 {
                    return;
                }
                let next = seen + 1;
                let exchange =
                    self.next.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed);
                if exchange.is_ok() {
                    self.done.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    }

    #[test]
    fn shared_work_is_done_once_whoever_helps_and_jobs_for_everyone_go_between() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).expect("threads");
            let work = Arc::new(Counting { next: AtomicU64::new(0), done: AtomicU64::new(0) });
            for ticket in 1..=500u32 {
                work.done.store(0, Ordering::Relaxed);
                work.next.store(u64::from(ticket) << 32, Ordering::Release);
                team.share(&work, ticket);
                work.help(0, ticket);
                while work.done.load(Ordering::Acquire) < 20 {
                    std::thread::yield_now();
                }
                if ticket % 50 == 0 {
                    let ran = AtomicU64::new(0);
                    team.run(&|_| {
                        ran.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(ran.into_inner(), threads as u64);
                }
                assert_eq!(work.done.load(Ordering::Acquire), 20);
            }
        }
    }

    #[test]
    fn a_team_ends_also_when_its_threads_are_late() {
        for _ in 0..3000 {
            let team = Team::new(3).expect("threads");
            let work = Arc::new(Counting { next: AtomicU64::new(0), done: AtomicU64::new(0) });
            team.share(&work, 1);
            drop(team);
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
