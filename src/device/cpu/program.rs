//! A program: launches with their memory, ordered into stages that a team replays.
//!
//! A stage holds work that may run at the same time; between stages there is a barrier. Threads
//! claim the units of a stage one after another. A unit is one chunk, or a sequence of small
//! single-chunk phases that depend on each other and are not worth a barrier.

use super::launch::{Chunk, Launch};
use super::memory::Memory;
use super::team::Team;
use crate::device::control::Control;
use crate::tensor::DType;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

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
    nodes: Vec<Bound>,
    sequences: Vec<Task>,
    units: Vec<Unit>,
    /// For each stage the end of its units.
    stages: Vec<usize>,
    /// For each stage the next unit to claim.
    next: Vec<AtomicUsize>,
    /// Bytes that each region must have at least.
    needed: Vec<usize>,
    bases: Bases,
}

struct Bases(Vec<*mut u8>);
// SAFETY: the pointers are only followed during `replay`, which holds exclusive borrows of what
// they point to; between replays they are never read.
unsafe impl Send for Bases {}
// SAFETY: as above; threads of a replay only copy the pointers.
unsafe impl Sync for Bases {}

impl Program {
    /// Puts bound launches in the order of `stages`. `regions` is the number of memory regions.
    ///
    /// # Panics
    /// If items of one stage would write what another one of the same stage touches, if an item
    /// of several tasks has one with more than one chunk, if a node's phases are out of order, or
    /// if a span is not aligned, reaches past the address space, or is too small for the scratch
    /// memory of its launch.
    pub fn new(nodes: Vec<Bound>, stages: &[Vec<Item>], regions: usize) -> Program {
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
        let (mut units, mut ends, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for stage in stages {
            for item in stage {
                match item[..] {
                    [task] => {
                        let chunks = nodes[task.node].launch.phases[task.phase].chunks;
                        units.extend((0..chunks).map(|chunk| Unit::Chunk(task, chunk)));
                    }
                    _ => {
                        let start = sequences.len();
                        sequences.extend_from_slice(item);
                        units.push(Unit::Sequence(start, sequences.len()));
                    }
                }
            }
            ends.push(units.len());
        }
        let next = ends.iter().map(|_| AtomicUsize::new(0)).collect();
        let bases = Bases(Vec::with_capacity(regions));
        Program { nodes, sequences, units, stages: ends, next, needed, bases }
    }

    /// Number of stages: one more than the number of barriers of a replay.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The nodes, in recorded order.
    pub fn nodes(&self) -> &[Bound] {
        &self.nodes
    }

    fn bind<'m>(&mut self, regions: impl Iterator<Item = &'m mut Memory>) {
        self.bases.0.clear();
        for (region, memory) in regions.enumerate() {
            assert!(
                self.needed.get(region).is_none_or(|&needed| memory.len() >= needed),
                "region {region} has {} bytes, the program needs {}",
                memory.len(),
                self.needed[region]
            );
            self.bases.0.push(memory.start());
        }
        assert!(self.bases.0.len() >= self.needed.len(), "a region of the program is missing");
    }

    fn run_chunk(&self, task: Task, index: usize, control: &Control) {
        let node = &self.nodes[task.node];
        let phase = &node.launch.phases[task.phase];
        (phase.body)(&Chunk {
            index,
            phase,
            inputs: &node.inputs,
            outputs: &node.outputs,
            scratch: node.scratch,
            bases: &self.bases.0,
            control,
            taken: Cell::new(0),
        });
    }

    fn run_unit(&self, unit: Unit, control: &Control) {
        match unit {
            Unit::Chunk(task, chunk) => self.run_chunk(task, chunk, control),
            Unit::Sequence(start, end) => {
                for &task in &self.sequences[start..end] {
                    if self.nodes[task.node].launch.phases[task.phase].chunks == 1 {
                        self.run_chunk(task, 0, control);
                    }
                }
            }
        }
    }

    /// Runs all nodes once, as one parallel region. Allocates nothing after the first call.
    ///
    /// # Panics
    /// If a region is too small; passes on a kernel's panic.
    pub fn replay<'m>(
        &mut self,
        team: &Team,
        regions: impl Iterator<Item = &'m mut Memory>,
        control: &Control,
    ) {
        self.bind(regions);
        let start = |stage: usize| if stage == 0 { 0 } else { self.stages[stage - 1] };
        for (stage, next) in self.next.iter().enumerate() {
            next.store(start(stage), Ordering::Relaxed);
        }
        let failed = AtomicBool::new(false);
        let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let this = &*self;
        team.run(&|member| {
            for (stage, &end) in this.stages.iter().enumerate() {
                if stage > 0 {
                    member.barrier();
                }
                // One `catch_unwind` a stage: a kernel that panics must not leave the other
                // threads waiting at a barrier.
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    loop {
                        let unit = this.next[stage].fetch_add(1, Ordering::Relaxed);
                        if unit >= end || failed.load(Ordering::Relaxed) {
                            break;
                        }
                        this.run_unit(this.units[unit], control);
                    }
                }));
                if let Err(payload) = outcome {
                    failed.store(true, Ordering::Relaxed);
                    panic.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(payload);
                }
            }
        });
        if let Some(payload) = panic.into_inner().unwrap_or_else(|p| p.into_inner()) {
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
        self.bind(regions);
        let this = &*self;
        let read = |span: &Span| -> Vec<f32> {
            // SAFETY: `bind` checked the region, and no kernel runs between the nodes.
            unsafe {
                let start = this.bases.0[span.region].add(span.offset);
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
        for (index, node) in self.nodes.iter().enumerate() {
            let started = Instant::now();
            for (number, phase) in node.launch.phases.iter().enumerate() {
                let next = AtomicUsize::new(0);
                team.run(&|_| {
                    loop {
                        let chunk = next.fetch_add(1, Ordering::Relaxed);
                        if chunk >= phase.chunks {
                            break;
                        }
                        this.run_chunk(Task { node: index, phase: number }, chunk, control);
                    }
                });
            }
            after(index, started.elapsed().as_nanos() as u64, &node.outputs, &read);
        }
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

    fn program(launch: Launch, output: Span, scratch: Span) -> Program {
        let phases = launch.chunks().count();
        let stages: Vec<Vec<Item>> =
            (0..phases).map(|phase| vec![vec![Task { node: 0, phase }]]).collect();
        Program::new(
            vec![Bound { launch, inputs: vec![], outputs: vec![output], scratch }],
            &stages,
            1,
        )
    }

    fn refused(launch: impl FnOnce() -> Launch, output: Span, scratch: Span) {
        let made = catch_unwind(AssertUnwindSafe(|| program(launch(), output, scratch)));
        assert!(made.is_err());
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
        program(partials(), span(0, 4), span(64, 32));
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
        let mut program = program(launch, span(0, 1), span(0, 0));
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
        let mut program = program(launch, span(0, 64), span(0, 0));
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
