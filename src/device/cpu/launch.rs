//! What an operation runs on the CPU: phases of fixed chunks.
//!
//! A phase is cut into chunks by shapes alone, never by the number of threads, so that the result
//! does not depend on who runs them. Threads claim chunks one after another; between the phases of
//! one node there is a barrier. Sums over chunks are written as one partial result a chunk and
//! combined in order by a later phase.

use super::program::Span;
use crate::device::control::Control;
use crate::tensor::Element;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The kernel body of a phase, called once for each chunk.
type Body = Box<dyn Fn(&Chunk<'_>) + Send + Sync>;

/// One phase of a launch: `chunks` calls of a body, in any order and on any threads.
pub struct Phase {
    pub(super) chunks: usize,
    rows: usize,
    rows_per_chunk: usize,
    pub(super) partials: usize,
    pub(super) body: Body,
}

/// All phases of one node, and the scratch memory that they share.
pub struct Launch {
    pub(super) phases: Vec<Phase>,
    scratch: usize,
    kernel: &'static str,
}

impl Launch {
    /// A launch without phases. `kernel` is the name that a profile shows: `avx512`, `naive` ...
    pub fn new(kernel: &'static str) -> Self {
        Launch { phases: Vec::new(), scratch: 0, kernel }
    }

    /// Name of the kernel, as a profile shows it.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Elements (f32) of scratch memory that all phases of the node share, 64-byte aligned.
    #[must_use]
    pub fn scratch(mut self, elements: usize) -> Self {
        self.scratch = self.scratch.max(elements);
        self
    }

    /// Adds a phase over `rows` rows in chunks of `rows_per_chunk`.
    ///
    /// Every output is cut along with the rows: an output of `len` elements has `len / rows`
    /// elements a row, and a chunk owns its rows of each ([`Chunk::output`]).
    #[must_use]
    pub fn rows(
        mut self,
        rows: usize,
        rows_per_chunk: usize,
        body: impl Fn(&Chunk<'_>) + Send + Sync + 'static,
    ) -> Self {
        let rows_per_chunk = rows_per_chunk.max(1);
        self.phases.push(Phase {
            chunks: rows.div_ceil(rows_per_chunk),
            rows,
            rows_per_chunk,
            partials: 0,
            body: Box::new(body),
        });
        self
    }

    /// As [`Launch::rows`], and each chunk also owns `partials` f32 of the scratch memory
    /// ([`Chunk::partials`]), for sums that a later phase combines in order.
    #[must_use]
    pub fn rows_with_partials(
        self,
        rows: usize,
        rows_per_chunk: usize,
        partials: usize,
        body: impl Fn(&Chunk<'_>) + Send + Sync + 'static,
    ) -> Self {
        let mut launch = self.rows(rows, rows_per_chunk, body);
        if let Some(phase) = launch.phases.last_mut() {
            phase.partials = partials;
            let elements = phase.chunks.checked_mul(partials);
            let elements = elements.expect("partial results fit into the address space");
            launch.scratch = launch.scratch.max(elements);
        }
        launch
    }

    /// Adds a phase of one chunk that owns all outputs.
    #[must_use]
    pub fn serial(self, body: impl Fn(&Chunk<'_>) + Send + Sync + 'static) -> Self {
        self.rows(1, 1, body)
    }

    /// Adds a phase of `chunks` calls that divide the outputs among themselves by their index,
    /// in another way than by rows, through [`Chunk::output_ptr`].
    #[must_use]
    pub fn tiles(self, chunks: usize, body: impl Fn(&Chunk<'_>) + Send + Sync + 'static) -> Self {
        self.rows(chunks, 1, body)
    }

    /// Elements of scratch memory in all.
    pub fn scratch_elements(&self) -> usize {
        self.scratch
    }

    /// Number of chunks of each phase.
    pub fn chunks(&self) -> impl Iterator<Item = usize> + '_ {
        self.phases.iter().map(|phase| phase.chunks)
    }
}

/// What a kernel body sees while it runs one chunk.
pub struct Chunk<'a> {
    pub(super) index: usize,
    pub(super) phase: &'a Phase,
    pub(super) inputs: &'a [Span],
    pub(super) outputs: &'a [Span],
    pub(super) scratch: Span,
    pub(super) bases: &'a [AtomicPtr<u8>],
    pub(super) control: &'a Control,
    /// Bit i: output i was handed out; bit 31: the partials were.
    pub(super) taken: Cell<u32>,
}

impl<'a> Chunk<'a> {
    /// Number of this chunk within its phase.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The rows of this chunk.
    pub fn row_range(&self) -> Range<usize> {
        let start = self.index * self.phase.rows_per_chunk;
        start..(start + self.phase.rows_per_chunk).min(self.phase.rows)
    }

    /// The values that change from step to step.
    pub fn control(&self) -> &'a Control {
        self.control
    }

    fn start<T: Element>(&self, span: &Span) -> *mut T {
        assert_eq!(span.dtype, T::DTYPE, "a kernel reads a tensor as another type than it has");
        // `Element` is a safe trait: what it says of a foreign type need not be true.
        assert_eq!(size_of::<T>(), T::DTYPE.size(), "an element has another size than its type");
        // SAFETY: `Program` checks before a replay that every span lies within its region.
        unsafe { self.bases[span.region].load(Ordering::Relaxed).add(span.offset).cast::<T>() }
    }

    /// All of input `i`.
    ///
    /// # Panics
    /// If the input is not of type `T`, or is updated in place: then only the output is offered.
    pub fn input<T: Element>(&self, i: usize) -> &'a [T] {
        let span = &self.inputs[i];
        assert!(!span.in_place, "input {i} is updated in place: use the output");
        // SAFETY: the span is in bounds and aligned (see `start`), initialised (memory starts
        // zeroed), and no node of this stage writes it: `Program::new` checks that.
        unsafe { std::slice::from_raw_parts(self.start(span), span.len) }
    }

    /// Whether input `i` lies in an output's memory: then only that output is offered, and it holds
    /// the input's values until they are overwritten.
    pub fn in_place(&self, i: usize) -> bool {
        self.inputs[i].in_place
    }

    /// This chunk's rows of input `i`, cut like an output: `len / rows` elements a row.
    pub fn input_rows<T: Element>(&self, i: usize) -> &'a [T] {
        let all = self.input(i);
        &all[self.block(all.len())]
    }

    fn block(&self, len: usize) -> Range<usize> {
        let per_row = len / self.phase.rows.max(1);
        debug_assert_eq!(per_row * self.phase.rows, len, "rows do not divide the tensor");
        let rows = self.row_range();
        rows.start * per_row..rows.end * per_row
    }

    fn take(&self, bit: u32) {
        let mask = 1 << bit;
        assert_eq!(self.taken.get() & mask, 0, "a kernel takes the same output twice");
        self.taken.set(self.taken.get() | mask);
    }

    /// This chunk's rows of output `i`; empty when nobody reads that output.
    ///
    /// # Panics
    /// If the output is not of type `T`, or was taken before in this chunk.
    pub fn output<T: Element>(&self, i: usize) -> &'a mut [T] {
        self.take(i as u32);
        let span = &self.outputs[i];
        let block = self.block(span.len);
        // SAFETY: in bounds, aligned and initialised as for inputs. Chunks of a phase own disjoint
        // blocks, a chunk runs once, and hands each output out once. No other node of this stage
        // touches the span: `Program::new` checks that.
        unsafe {
            std::slice::from_raw_parts_mut(self.start::<T>(span).add(block.start), block.len())
        }
    }

    /// Number of elements of output `i`; 0 when nobody reads that output.
    pub fn output_len(&self, i: usize) -> usize {
        self.outputs[i].len
    }

    /// Start of the whole output `i`, for phases that divide it in another way than by rows.
    ///
    /// The caller promises (where it follows the pointer) that no two chunks of the phase touch
    /// the same element, unless both only read it.
    pub fn output_ptr<T: Element>(&self, i: usize) -> *mut T {
        self.start(&self.outputs[i])
    }

    /// Start of the scratch memory, under the same promise as [`Chunk::output_ptr`].
    pub fn scratch_ptr(&self) -> *mut f32 {
        self.start(&self.scratch)
    }

    /// This chunk's own partial results.
    pub fn partials(&self) -> &'a mut [f32] {
        self.take(31);
        let count = self.phase.partials;
        // SAFETY: `Launch::rows_with_partials` made the scratch large enough for `chunks * count`;
        // chunks own disjoint blocks, and each hands its block out once.
        unsafe {
            let start = self.scratch_ptr().add(self.index * count);
            std::slice::from_raw_parts_mut(start, count)
        }
    }

    /// All scratch memory as earlier phases left it.
    ///
    /// # Panics
    /// If chunks of this phase own partial results themselves.
    pub fn all_partials(&self) -> &'a [f32] {
        assert_eq!(self.phase.partials, 0, "this phase writes partial results");
        // SAFETY: in bounds; no chunk of this phase writes through `partials`, see above.
        unsafe { std::slice::from_raw_parts(self.scratch_ptr(), self.scratch.len) }
    }
}

/// Rows that one chunk should take so that it lasts some microseconds: long against the cost of
/// claiming it (about 50 ns), short against a step. `nanoseconds` is a rough cost of one row.
/// A function of shapes alone.
pub fn rows_per_chunk(nanoseconds: f64) -> usize {
    const CHUNK_NANOSECONDS: f64 = 2000.0;
    (CHUNK_NANOSECONDS / nanoseconds.max(0.01)).clamp(1.0, 1e9) as usize
}
