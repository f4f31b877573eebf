//! A program: launches with their memory, ordered into stages that a team replays.
//!
//! A stage holds work that may run at the same time; between stages there is a barrier. A unit is
//! one chunk, or a sequence of small single-chunk phases that depend on each other and are not
//! worth a barrier. Every unit is at home on one thread, by its place alone, so that the same rows
//! stay in the same core's cache from stage to stage and from replay to replay; a thread that is
//! done with its own units claims those of others. Who runs a unit does not change its result.

use super::help::{Help, Trial};
use super::launch::{Chunk, Launch};
use super::memory::Memory;
use super::team::{Team, Work, oversubscribed, spin};
use super::tiles::Region;
use super::trace::{Trace, UnitTime};
use crate::device::control::Control;
use crate::tensor::DType;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Where a tensor lies: a region of memory, a place in it, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the region, in the order in which [`Program::replay`] is given them.
    pub region: usize,
    /// First byte within the region.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Type of the elements.
    pub dtype: DType,
    /// Whether the node that has this as an input writes it through an output.
    pub in_place: bool,
}

impl Span {
    /// Bytes that the tensor takes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// Whether two tensors share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.region == other.region
            && self.bytes() > 0
            && other.bytes() > 0
            && self.offset < other.offset + other.bytes()
            && other.offset < self.offset + self.bytes()
    }
}

/// A launch with the memory that it works on.
pub struct Bound {
    /// The kernel.
    pub launch: Launch,
    /// Where the inputs lie.
    pub inputs: Vec<Span>,
    /// Where the outputs lie; `len` 0 for outputs that nobody reads.
    pub outputs: Vec<Span>,
    /// The node's scratch memory.
    pub scratch: Span,
}

/// Phase `phase` of node `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Index of the node in the program.
    pub node: usize,
    /// Index of the phase in the node's launch.
    pub phase: usize,
}

/// Work that one thread does in order: a phase with all its chunks apart, or several single-chunk
/// phases in sequence.
pub type Item = Vec<Task>;

#[derive(Clone, Copy)]
enum Unit {
    Chunk(Task, usize),
    Sequence(usize, usize),
}

/// A replayable program for the CPU.
pub struct Program {
    inner: Arc<Inner>,
    /// Bytes that each region must have at least.
    needed: Vec<usize>,
    ticket: u32,
    help: Help,
}

/// What the threads of a replay share. A thread may be late and look at it while another replay
/// runs, or after the last one; it touches memory only while it holds a unit that it claimed with
/// the ticket of the replay, and a replay does not end before every unit is done.
struct Inner {
    nodes: Vec<Bound>,
    /// The nodes by the stages in which they begin. One after another they must run in this order:
    /// tensors share memory by their lifetimes in stages.
    order: Vec<usize>,
    sequences: Vec<Task>,
    units: Vec<Unit>,
    threads: usize,
    /// How long a thread that waits for others spins before it lets others run.
    spin: Duration,
    /// For each stage one queue a thread.
    queues: Vec<Queue>,
    stages: Vec<Stage>,
    /// For each thread the ticket of the replay that it helps with, or helped with last.
    present: Vec<Present>,
    /// Number of the replay that runs, or ran last.
    ticket: AtomicU32,
    /// Start of each region, during a replay.
    bases: Vec<AtomicPtr<u8>>,
    /// The control block, during a replay.
    control: AtomicPtr<Control>,
    /// Made by the first traced replay, used while `tracing`.
    trace: OnceLock<Trace>,
    tracing: AtomicBool,
    failed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// How long a thread leaves units to the thread at which they are at home: about as long as that one
/// is behind when both are running.
const PATIENCE: Duration = Duration::from_nanos(500);

/// Longer than most units run.
const SPIN: Duration = Duration::from_micros(50);

/// How far a stage is. On two cache lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Stage {
    units: u32,
    /// Units done in all replays so far, wrapping. So no replay has to reset it.
    done: AtomicU32,
}

/// The units of one stage that are at home on one thread; on cache lines of its own, since its
/// thread claims from it most of the time.
#[repr(align(128))]
struct Queue {
    /// In the upper half the ticket of the last replay that claimed from it, in the lower half its
    /// next unit. The first claim of a replay opens the queue for it.
    next: AtomicU64,
    start: u32,
    end: u32,
}

/// On cache lines of its own.
#[repr(align(128))]
struct Present(AtomicU32);

impl Queue {
    /// Whether there is nothing left to claim in the round `ticket`.
    fn is_empty(&self, ticket: u32) -> bool {
        let seen = self.next.load(Ordering::Relaxed);
        let next = if (seen >> 32) as u32 == ticket { seen as u32 } else { self.start };
        next >= self.end
    }

    fn claim(&self, ticket: u32) -> Option<usize> {
        let mut seen = self.next.load(Ordering::Relaxed);
        loop {
            let (of, next) = ((seen >> 32) as u32, seen as u32);
            let unit = if of == ticket { next } else { self.start };
            // A thread that is late meets a ticket that is newer than its own.
            if unit >= self.end || (of.wrapping_sub(ticket) as i32) > 0 {
                return None;
            }
            let claimed = u64::from(ticket) << 32 | u64::from(unit + 1);
            match self.next.compare_exchange_weak(
                seen,
                claimed,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(unit as usize),
                Err(now) => seen = now,
            }
        }
    }
}

impl Stage {
    /// Waits, for up to `limit` by spinning, until all units are done or the replay is no longer the one of `ticket`. Whoever has
    /// the missing unit is running, or was interrupted and needs a processor.
    fn wait(&self, current: &AtomicU32, ticket: u32, limit: Duration) {
        const YIELDS: u32 = 200;
        const SLEEP: Duration = Duration::from_micros(50);
        let goal = self.units.wrapping_mul(ticket);
        let over = || {
            self.done.load(Ordering::Acquire) == goal || current.load(Ordering::Relaxed) != ticket
        };
        if spin(limit, over) {
            return;
        }
        let mut looks = 0;
        while !over() {
            looks += 1;
            if looks < YIELDS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(SLEEP);
            }
        }
    }
}

impl Work for Inner {
    fn help(&self, member: usize, ticket: u32) {
        let _tiles = Region::enter();
        self.present[member].0.store(ticket, Ordering::Relaxed);
        let trace = self.tracing.load(Ordering::Relaxed).then(|| self.trace.get()).flatten();
        for (stage, queues) in self.stages.iter().zip(self.queues.chunks(self.threads)) {
            let mut finished = 0;
            let mut run = |queue: &Queue| {
                while let Some(unit) = queue.claim(ticket) {
                    match trace {
                        Some(trace) => {
                            trace.around(unit, member, || self.run_unit(self.units[unit]));
                        }
                        None => self.run_unit(self.units[unit]),
                    }
                    finished += 1;
                }
            };
            run(&queues[member]);
            for other in (member + 1..self.threads).chain(0..member) {
                let queue = &queues[other];
                if !queue.is_empty(ticket)
                    && self.present[other].0.load(Ordering::Relaxed) == ticket
                {
                    // Its thread will be here in a moment, and has in its cache what the units touch.
                    spin(PATIENCE, || queue.is_empty(ticket));
                }
                run(queue);
            }
            if finished > 0 {
                stage.done.fetch_add(finished, Ordering::AcqRel);
            }
            stage.wait(&self.ticket, ticket, self.spin);
            if self.ticket.load(Ordering::Relaxed) != ticket {
                return;
            }
        }
    }
}

impl Inner {
    fn run_chunk(&self, task: Task, index: usize) {
        let node = &self.nodes[task.node];
        let phase = &node.launch.phases[task.phase];
        // SAFETY: set by `replay` to a borrow that lives until all units are done; this thread
        // holds one.
        let control = unsafe { &*self.control.load(Ordering::Relaxed) };
        (phase.body)(&Chunk {
            index,
            phase,
            inputs: &node.inputs,
            outputs: &node.outputs,
            scratch: node.scratch,
            bases: &self.bases,
            control,
            taken: Cell::new(0),
        });
    }

    /// Runs a unit. After a kernel panicked, units are only counted: the others must not wait for
    /// ever.
    fn run_unit(&self, unit: Unit) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| match unit {
            Unit::Chunk(task, chunk) => self.run_chunk(task, chunk),
            Unit::Sequence(start, end) => {
                for &task in &self.sequences[start..end] {
                    if self.nodes[task.node].launch.phases[task.phase].chunks == 1 {
                        self.run_chunk(task, 0);
                    }
                }
            }
        }));
        if let Err(payload) = outcome {
            self.failed.store(true, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(payload);
        }
    }
}

impl Program {
    /// Puts bound launches in the order of `stages`, for a team of `threads`. `regions` is the
    /// number of memory regions.
    ///
    /// # Panics
    /// If items of one stage would write what another one of the same stage touches, if an item
    /// of several tasks has one with more than one chunk, if a node's phases are out of order, or
    /// if a span is not aligned, reaches past the address space, or is too small for the scratch
    /// memory of its launch.
    pub fn new(nodes: Vec<Bound>, stages: &[Vec<Item>], regions: usize, threads: usize) -> Program {
        assert!(threads > 0, "a team has at least one thread");
        let mut needed = vec![0; regions];
        for node in &nodes {
            for span in node.inputs.iter().chain(&node.outputs).chain([&node.scratch]) {
                assert_eq!(span.offset % span.dtype.size(), 0, "a tensor is not aligned");
                // Checked: with a sum that wraps, `bind` would accept a region that is too small.
                let bytes = span.len.checked_mul(span.dtype.size());
                let end = bytes.and_then(|bytes| span.offset.checked_add(bytes));
                let end = end.expect("a tensor lies within the address space");
                needed[span.region] = needed[span.region].max(end);
            }
            let scratch = &node.scratch;
            let enough = scratch.len >= node.launch.scratch_elements();
            assert!(enough && scratch.dtype == DType::F32, "a node has too little scratch memory");
        }
        check(&nodes, stages);
        let begins = |task: &&Task| task.phase == 0;
        let order =
            stages.iter().flatten().flatten().filter(begins).map(|task| task.node).collect();
        let (mut units, mut queues, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for stage in stages {
            let mut homes: Vec<Vec<Unit>> = vec![Vec::new(); threads];
            let mut singles = 0;
            for item in stage {
                let chunks = match item[..] {
                    [task] => nodes[task.node].launch.phases[task.phase].chunks,
                    _ => 1,
                };
                if chunks == 1 {
                    // Items of one unit take turns.
                    let home = singles % threads;
                    singles += 1;
                    homes[home].push(match item[..] {
                        [task] => Unit::Chunk(task, 0),
                        _ => {
                            let start = sequences.len();
                            sequences.extend_from_slice(item);
                            Unit::Sequence(start, sequences.len())
                        }
                    });
                    continue;
                }
                for chunk in 0..chunks {
                    homes[chunk * threads / chunks].push(Unit::Chunk(item[0], chunk));
                }
            }
            let first = units.len();
            for home in homes {
                let start = units.len();
                units.extend(home);
                let (start, end) = (start as u32, units.len() as u32);
                queues.push(Queue { next: AtomicU64::new(0), start, end });
            }
            counts.push(Stage { units: (units.len() - first) as u32, done: AtomicU32::new(0) });
        }
        let inner = Inner {
            nodes,
            order,
            sequences,
            units,
            threads,
            spin: if oversubscribed(threads) { Duration::ZERO } else { SPIN },
            queues,
            stages: counts,
            present: (0..threads).map(|_| Present(AtomicU32::new(0))).collect(),
            ticket: AtomicU32::new(0),
            bases: (0..regions).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
            control: AtomicPtr::new(std::ptr::null_mut()),
            trace: OnceLock::new(),
            tracing: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            panic: Mutex::new(None),
        };
        Program { inner: Arc::new(inner), needed, ticket: 0, help: Help::new() }
    }

    /// Number of stages: one more than the times that a replay waits for all its threads.
    pub fn stages(&self) -> usize {
        self.inner.stages.len()
    }

    /// Has every replay helped by other threads, also where it is slower: for measurements and tests.
    pub fn always_help(&mut self) {
        self.help = Help::always();
    }

    /// How long replays took with the help of other threads and without, when that was last tried;
    /// `None` where it was not: on one thread, before some hundred replays, and for long programs.
    pub fn trial(&self) -> Option<Trial> {
        self.help.trial()
    }

    /// The nodes, in recorded order.
    pub fn nodes(&self) -> &[Bound] {
        &self.inner.nodes
    }

    fn bind<'m>(&mut self, regions: impl Iterator<Item = &'m mut Memory>, control: &Control) {
        let mut given = 0;
        for (region, memory) in regions.enumerate().take(self.needed.len()) {
            assert!(
                memory.len() >= self.needed[region],
                "region {region} has {} bytes, the program needs {}",
                memory.len(),
                self.needed[region]
            );
            self.inner.bases[region].store(memory.start(), Ordering::Relaxed);
            given += 1;
        }
        assert_eq!(given, self.needed.len(), "a region of the program is missing");
        self.inner.control.store(std::ptr::from_ref(control).cast_mut(), Ordering::Relaxed);
    }

    /// Runs all nodes once, as one parallel region. Allocates nothing.
    ///
    /// # Panics
    /// If a region is too small or the program was made for another number of threads; passes on a
    /// kernel's panic.
    pub fn replay<'m>(
        &mut self,
        team: &Team,
        regions: impl Iterator<Item = &'m mut Memory>,
        control: &Control,
    ) {
        assert_eq!(team.threads(), self.inner.threads, "the program was made for another team");
        self.bind(regions, control);
        self.ticket = self.ticket.wrapping_add(1);
        let inner = &*self.inner;
        inner.failed.store(false, Ordering::Relaxed);
        inner.ticket.store(self.ticket, Ordering::Relaxed);
        if inner.threads == 1 {
            inner.help(0, self.ticket);
        } else {
            let began = Instant::now();
            if self.help.wanted() {
                team.share(&self.inner, self.ticket);
            }
            inner.help(0, self.ticket);
            let came = |present: &Present| present.0.load(Ordering::Relaxed) == self.ticket;
            let helped = inner.present[1..].iter().any(came);
            self.help.took(began.elapsed(), helped);
        }
        self.pass_on_panic();
    }

    /// As [`Program::replay`], and gives the times of all units, and the nanoseconds of the whole.
    pub fn replay_traced<'m>(
        &mut self,
        team: &Team,
        regions: impl Iterator<Item = &'m mut Memory>,
        control: &Control,
    ) -> (Vec<UnitTime>, u64) {
        let inner = Arc::clone(&self.inner);
        let trace = inner.trace.get_or_init(|| Trace::new(inner.units.len()));
        inner.tracing.store(true, Ordering::Relaxed);
        let began = trace.now();
        self.replay(team, regions, control);
        let whole = trace.now() - began;
        inner.tracing.store(false, Ordering::Relaxed);
        let mut times = Vec::with_capacity(inner.units.len());
        for (number, queue) in inner.queues.iter().enumerate() {
            for unit in queue.start as usize..queue.end as usize {
                let (tasks, chunk) = match inner.units[unit] {
                    Unit::Chunk(task, chunk) => (vec![task], chunk),
                    Unit::Sequence(start, end) => (inner.sequences[start..end].to_vec(), 0),
                };
                let (thread, start, end) = trace.of(unit);
                times.push(UnitTime {
                    stage: number / inner.threads,
                    tasks,
                    chunk,
                    home: number % inner.threads,
                    thread,
                    start: start.saturating_sub(began),
                    end: end.saturating_sub(began),
                });
            }
        }
        (times, whole)
    }

    fn pass_on_panic(&self) {
        let mut panic = self.inner.panic.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(payload) = panic.take() {
            drop(panic);
            resume_unwind(payload);
        }
    }

    /// Runs node after node, each by the whole team, and calls `after` with the node's index, its
    /// time in nanoseconds and its outputs. For profiles and for finding where values go bad; the
    /// results are those of [`Program::replay`].
    pub fn replay_by_node<'m>(
        &mut self,
        team: &Team,
        regions: impl Iterator<Item = &'m mut Memory>,
        control: &Control,
        mut after: impl FnMut(usize, u64, &[Span], &dyn Fn(&Span) -> Vec<f32>),
    ) {
        self.bind(regions, control);
        let inner = &*self.inner;
        inner.failed.store(false, Ordering::Relaxed);
        let read = |span: &Span| -> Vec<f32> {
            // SAFETY: `bind` checked the region, and no kernel runs between the nodes.
            unsafe {
                let start = inner.bases[span.region].load(Ordering::Relaxed).add(span.offset);
                match span.dtype {
                    DType::F32 => std::slice::from_raw_parts(start.cast(), span.len).to_vec(),
                    DType::Bf16 => std::slice::from_raw_parts(start.cast::<u16>(), span.len)
                        .iter()
                        .map(|&bits| half::bf16::from_bits(bits).to_f32())
                        .collect(),
                    DType::U32 | DType::U8 => Vec::new(),
                }
            }
        };
        for &index in &inner.order {
            let node = &inner.nodes[index];
            let started = Instant::now();
            for (number, phase) in node.launch.phases.iter().enumerate() {
                let task = Task { node: index, phase: number };
                let threads = team.threads();
                let next: Vec<AtomicUsize> = (0..threads)
                    .map(|thread| AtomicUsize::new(thread * phase.chunks / threads))
                    .collect();
                team.run(&|member| {
                    let _tiles = Region::enter();
                    for thread in (0..threads).map(|i| (i + member.index()) % threads) {
                        let end = (thread + 1) * phase.chunks / threads;
                        loop {
                            let chunk = next[thread].fetch_add(1, Ordering::Relaxed);
                            if chunk >= end {
                                break;
                            }
                            inner.run_unit(Unit::Chunk(task, chunk));
                        }
                    }
                });
            }
            after(index, started.elapsed().as_nanos() as u64, &node.outputs, &read);
        }
        self.pass_on_panic();
    }
}

/// Checks what the safety of [`Chunk`] rests on: items of a stage do not write what others touch.
fn check(nodes: &[Bound], stages: &[Vec<Item>]) {
    let mut done = vec![0; nodes.len()];
    for stage in stages {
        let before = done.clone();
        for (number, item) in stage.iter().enumerate() {
            for task in item {
                let phases = &nodes[task.node].launch.phases;
                assert_eq!(done[task.node], task.phase, "a node's phases are out of order");
                done[task.node] += 1;
                assert!(item.len() == 1 || phases[task.phase].chunks <= 1, "a sequence has chunks");
                assert!(
                    item.len() > 1 || before[task.node] == task.phase,
                    "phases of one node share a stage"
                );
            }
            for other in &stage[..number] {
                for (a, b) in item.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                    assert!(a.node != b.node, "phases of one node share a stage");
                    let conflict = conflicts(&nodes[a.node], &nodes[b.node]);
                    assert!(!conflict, "nodes {} and {} of one stage conflict", a.node, b.node);
                }
            }
        }
    }
    for (node, &done) in nodes.iter().zip(&done) {
        assert_eq!(done, node.launch.phases.len(), "a phase is in no stage");
        for (number, output) in node.outputs.iter().enumerate() {
            let clash = |other: &Span| other.overlaps(output);
            assert!(!node.outputs[..number].iter().any(clash), "two outputs overlap");
            assert!(!clash(&node.scratch), "scratch overlaps an output");
            let inputs = node.inputs.iter().filter(|input| !input.in_place);
            assert!(inputs.into_iter().all(|i| !clash(i)), "an output overlaps an input");
            let updated = node.inputs.iter().filter(|input| input.in_place && clash(input));
            let same = |i: &Span| Span { in_place: false, ..*i } == *output;
            assert!(updated.into_iter().all(same), "an output lies across an input");
        }
        assert!(
            !node.inputs.iter().any(|i| i.overlaps(&node.scratch)),
            "scratch overlaps an input"
        );
    }
}

/// Whether one of the nodes writes what the other one touches.
pub fn conflicts(a: &Bound, b: &Bound) -> bool {
    let writes = |node: &Bound| -> Vec<Span> {
        node.outputs.iter().copied().chain([node.scratch]).collect()
    };
    let hits = |writer: &Bound, other: &Bound| {
        writes(writer).iter().any(|written| {
            writes(other).iter().chain(&other.inputs).any(|span| span.overlaps(written))
        })
    };
    hits(a, b) || hits(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: usize, len: usize) -> Span {
        Span { region: 0, offset, len, dtype: DType::F32, in_place: false }
    }

    fn program(launch: Launch, output: Span, scratch: Span, threads: usize) -> Program {
        let phases = launch.chunks().count();
        let stages: Vec<Vec<Item>> =
            (0..phases).map(|phase| vec![vec![Task { node: 0, phase }]]).collect();
        Program::new(
            vec![Bound { launch, inputs: vec![], outputs: vec![output], scratch }],
            &stages,
            1,
            threads,
        )
    }

    fn refused(launch: impl FnOnce() -> Launch, output: Span, scratch: Span) {
        let made = catch_unwind(AssertUnwindSafe(|| program(launch(), output, scratch, 1)));
        assert!(made.is_err());
    }

    #[test]
    fn a_queue_gives_each_unit_once_a_round_and_nothing_to_those_who_are_late() {
        // Tickets wrap around.
        let last = u64::from(u32::MAX - 2) << 32;
        let queue = Queue { next: AtomicU64::new(last), start: 3, end: 5 };
        for ticket in [u32::MAX - 1, u32::MAX, 0, 1, 2] {
            assert_eq!(queue.claim(ticket), Some(3));
            assert_eq!(queue.claim(ticket.wrapping_sub(1)), None);
            assert_eq!(queue.claim(ticket), Some(4));
            assert_eq!([queue.claim(ticket), queue.claim(ticket.wrapping_sub(1))], [None, None]);
        }
    }

    #[test]
    fn a_traced_replay_times_each_unit_once() {
        for threads in [1, 2, 3] {
            let phases = || Launch::new("test").rows(8, 1, |_| {}).serial(|_| {});
            let mut program = program(phases(), span(0, 8), span(0, 0), threads);
            program.always_help();
            let team = Team::new(threads).expect("threads");
            let mut memory = Memory::zeroed(64);
            for _ in 0..20 {
                let regions = [&mut memory].into_iter();
                let (times, whole) = program.replay_traced(&team, regions, &Control::new());
                let chunks: Vec<usize> = times.iter().map(|time| time.chunk).collect();
                assert_eq!(chunks, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
                let stages = times.iter().map(|time| (time.stage, time.tasks[0].phase));
                assert!(stages.zip([0, 0, 0, 0, 0, 0, 0, 0, 1]).all(|(s, want)| s == (want, want)));
                let sound = |t: &UnitTime| t.start <= t.end && t.end <= whole && t.thread < threads;
                assert!(times.iter().all(sound), "{times:?} of {whole}");
                let first_stage_ends = times[..8].iter().map(|time| time.end).max();
                assert!(first_stage_ends <= Some(times[8].start));
            }
        }
    }

    #[test]
    fn spans_past_the_address_space_are_refused() {
        let none = span(0, 0);
        refused(|| Launch::new("test").serial(|_| {}), span(64, usize::MAX / 4), none);
        refused(|| Launch::new("test").serial(|_| {}), span(usize::MAX - 3, 1), none);
        refused(|| Launch::new("test").serial(|_| {}), span(0, 1 << 62), none);
    }

    #[test]
    fn scratch_memory_is_as_large_as_the_launch_says() {
        let partials = || Launch::new("test").rows_with_partials(4, 1, 8, |_| {});
        refused(partials, span(0, 4), span(64, 31));
        program(partials(), span(0, 4), span(64, 32), 1);
        let wraps = || Launch::new("test").rows_with_partials(4, 1, 1 << 62, |_| {});
        refused(wraps, span(0, 4), span(64, 0));
    }

    #[test]
    fn an_element_is_as_large_as_its_type() {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Wide([f32; 64]);
        // SAFETY: an array of f32 has no padding, and every bit pattern is one.
        unsafe impl bytemuck::Zeroable for Wide {}
        // SAFETY: as above.
        unsafe impl bytemuck::Pod for Wide {}
        impl crate::tensor::Element for Wide {
            const DTYPE: DType = DType::F32;
        }
        let launch = Launch::new("test").serial(|chunk| {
            chunk.output::<Wide>(0)[0] = Wide([1.0; 64]);
        });
        let mut program = program(launch, span(0, 1), span(0, 0), 1);
        let team = Team::new(1).expect("a thread");
        let mut memory = Memory::zeroed(64);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            program.replay(&team, [&mut memory].into_iter(), &Control::new());
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn a_kernel_that_panics_in_the_middle_leaves_nobody_waiting() {
        let launch = Launch::new("test")
            .rows(64, 1, |_| {})
            .rows(64, 1, |chunk| assert_ne!(chunk.index(), 33, "as asked"))
            .rows(64, 1, |chunk| chunk.output::<f32>(0).fill(1.0));
        let mut program = program(launch, span(0, 64), span(0, 0), 3);
        let team = Team::new(3).expect("threads");
        let mut memory = Memory::zeroed(256);
        for _ in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                program.replay(&team, [&mut memory].into_iter(), &Control::new());
            }));
            assert!(outcome.is_err());
        }
        assert!(memory.bytes().iter().all(|&byte| byte == 0), "a phase ran after the panic");
    }
}
