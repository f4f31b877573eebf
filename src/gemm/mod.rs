//! The CPU matrix engine: C\[m, n\] (+)= op(A)\[m, k\] · op(B)\[k, n\], row-major with explicit row
//! strides; C is f32, A and B are f32 or bf16.
//!
//! [`Precision`] says how it multiplies. Under `F32` all is IEEE f32. Under `Bf16` operands are
//! rounded to bf16 where they are packed, products are exact and sums are f32: `tdpbf16ps` or
//! `vdpbf16ps` where the processor has them, fused multiply-adds of widened values elsewhere.
//!
//! A [`Plan`] does not start threads. It says into how many independent chunks each of three phases
//! falls, and runs one chunk when it is told to; whoever owns the threads puts a barrier between
//! the phases:
//! 1. `pack`: operands are brought into panels in shared scratch memory, once for all tiles (no
//!    chunks when nothing is packed);
//! 2. `tile`: each chunk computes one block of C, or, when K is split, one block of a partial sum
//!    in scratch;
//! 3. `reduce`: sums the partial products in order (no chunks unless K is split).
//!
//! The number of chunks depends on the shapes, the instruction set and the size of L2 alone, the
//! order of every sum on shapes and instruction set: never on threads or timing. So a plan gives the
//! same bits however its chunks are distributed, and cuts between rows and columns change none. The
//! [`Epilogue`] sees every element of C exactly once, when it is final and still in cache.
//!
//! Method: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
//! 34(3), 2008; the loops are in `driver.rs`.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod blocking;
mod choice;
mod driver;
mod engine;
mod layout;
mod portable;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod probe;
mod rounded;
mod stored;
#[cfg(test)]
mod tests;

pub use choice::{Choice, ceiling, choose};
pub use layout::{PackedLayout, PackedWeight, PackedWeights, WEIGHT_BAND};
pub use stored::launch;

use crate::device::cpu::Isa;
use crate::tensor::DType;
use blocking::{Grid, Range, Tile};
use driver::{Kernel, Panels, SourceB};
use engine::{Engine, with_kernel};
use half::bf16;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How products are computed. Sums, and C, are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE f32.
    #[default]
    F32,
    /// f32 operands as sums of three bf16 parts, where the processor multiplies tiles of bf16 (AMX).
    /// In sums of eight or more products of like size its error is no larger than that of `F32`;
    /// where single products make a sum, it is up to a quarter larger. What is not finite gives NaN.
    /// Elsewhere the same as `F32`.
    #[serde(rename = "f32_split")]
    F32Split,
    /// Operands are rounded to bf16, to nearest even; subnormal numbers count as zero where the
    /// processor's bf16 instructions treat them so.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::F32Split => "f32_split",
            Precision::Bf16 => "bf16",
        })
    }
}

/// How an operand is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transpose {
    /// Stored as it is used: A as \[m, k\], B as \[k, n\].
    No,
    /// Stored transposed: A as \[k, m\], B as \[n, k\].
    Yes,
}

/// The product to compute: C\[m, n\] (+)= op(A)\[m, k\] · op(B)\[k, n\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Rows of op(A) and C.
    pub m: usize,
    /// Columns of op(B) and C.
    pub n: usize,
    /// Columns of op(A) and rows of op(B). With `k == 0` the product is zero.
    pub k: usize,
    /// Storage of A.
    pub a: Transpose,
    /// Storage of B.
    pub b: Transpose,
    /// Whether the product is added to what C holds; otherwise C is written without being read.
    pub accumulate: bool,
    /// How it is computed.
    pub precision: Precision,
}

impl Spec {
    /// A product of untransposed operands that overwrites C.
    pub fn new(m: usize, n: usize, k: usize) -> Spec {
        let (a, b, precision) = (Transpose::No, Transpose::No, Precision::F32);
        Spec { m, n, k, a, b, accumulate: false, precision }
    }

    /// The same with A stored as \[k, m\].
    pub fn a_transposed(self) -> Spec {
        Spec { a: Transpose::Yes, ..self }
    }

    /// The same with B stored as \[n, k\].
    pub fn b_transposed(self) -> Spec {
        Spec { b: Transpose::Yes, ..self }
    }

    /// The same, added to what C holds.
    pub fn accumulating(self) -> Spec {
        Spec { accumulate: true, ..self }
    }

    /// The same in another precision.
    pub fn in_precision(self, precision: Precision) -> Spec {
        Spec { precision, ..self }
    }

    /// Floating-point operations: 2·m·n·k.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }

    /// Rows and columns of A as stored.
    pub fn a_shape(&self) -> (usize, usize) {
        match self.a {
            Transpose::No => (self.m, self.k),
            Transpose::Yes => (self.k, self.m),
        }
    }

    /// Rows and columns of B as stored.
    pub fn b_shape(&self) -> (usize, usize) {
        match self.b {
            Transpose::No => (self.k, self.n),
            Transpose::Yes => (self.n, self.k),
        }
    }
}

/// A block of C that is final but for the epilogue, with the rights to read and write it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// First row in C.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column in C.
    pub col: usize,
    /// Number of columns.
    pub cols: usize,
    /// Address of the element at (`row`, `col`).
    pub c: *mut f32,
    /// Distance between rows in elements.
    pub ldc: usize,
}

impl Block {
    /// Row `i` of the block (row `self.row + i` of C), its `cols` elements.
    ///
    /// # Safety
    /// The block came from a plan that is calling an epilogue right now, and no other reference to
    /// this row is alive.
    ///
    /// # Panics
    /// When `i` is not below `rows`.
    pub unsafe fn row_mut<'a>(&self, i: usize) -> &'a mut [f32] {
        assert!(i < self.rows, "row {i} of a block of {}", self.rows);
        // SAFETY: the assert above keeps the row inside the block, whose elements this call may
        // write (contract of the plan's caller).
        unsafe { std::slice::from_raw_parts_mut(self.c.add(i * self.ldc), self.cols) }
    }
}

/// Called once per finished block of C while it is in cache: bias, activation, mask, residual.
/// Blocks do not overlap and cover C. Called from whichever thread runs the chunk; which blocks
/// there are depends on the plan alone.
pub type Epilogue<'a> = Option<&'a (dyn Fn(Block) + Sync)>;

/// Called with the rows and columns of C that the microkernel is about to finish, so that what the
/// caller will use with them is under way from memory meanwhile. Some engines call it once a tile.
pub type Ahead<'a> = Option<&'a dyn Fn(std::ops::Range<usize>, std::ops::Range<usize>)>;

/// Where an operand lies, and what its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// f32, stored or packed.
    F32(*const f32),
    /// bf16, stored or packed; for [`Precision::Bf16`] only.
    Bf16(*const bf16),
}

impl Address {
    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Address::F32(_) => DType::F32,
            Address::Bf16(_) => DType::Bf16,
        }
    }

    /// The address of the element `count` places on.
    fn after(self, count: usize) -> Address {
        match self {
            Address::F32(at) => Address::F32(at.wrapping_add(count)),
            Address::Bf16(at) => Address::Bf16(at.wrapping_add(count)),
        }
    }

    /// The address of the element `count` places back.
    fn before(self, count: usize) -> Address {
        match self {
            Address::F32(at) => Address::F32(at.wrapping_sub(count)),
            Address::Bf16(at) => Address::Bf16(at.wrapping_sub(count)),
        }
    }

    /// As the elements that a kernel multiplies.
    fn cast<E>(self) -> *const E {
        match self {
            Address::F32(at) => at.cast(),
            Address::Bf16(at) => at.cast(),
        }
    }
}

/// Addresses of one product. For an operand that arrives packed, the row stride is not used.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// A as stored, or packed as [`Plan::packed_a`] says.
    pub a: Address,
    /// Distance between stored rows of A in elements.
    pub lda: usize,
    /// B as stored, or packed as [`Plan::packed_b`] says.
    pub b: Address,
    /// Distance between stored rows of B in elements.
    pub ldb: usize,
    /// C, row-major.
    pub c: *mut f32,
    /// Distance between rows of C in elements.
    pub ldc: usize,
    /// [`Plan::scratch_len`] elements, shared by all chunks; may dangle when that is 0. Aligned to
    /// 64 bytes for speed, not for soundness.
    pub scratch: *mut f32,
}

// SAFETY: addresses only; every access through them is an unsafe method whose contract covers
// threads.
unsafe impl Send for Operands {}
// SAFETY: as above.
unsafe impl Sync for Operands {}

/// How one product is computed on one instruction set: what is packed, which chunks there are.
#[derive(Clone, Debug)]
pub struct Plan {
    spec: Spec,
    engine: Engine,
    packed_a: bool,
    packed_b: bool,
    panels: Panels,
    grid: Grid,
    /// Chunks that pack A, and B; none when the one tile packs for itself.
    pack_chunks: [usize; 2],
}

impl Plan {
    /// Plans a product. `packed_a`, `packed_b`: that operand arrives in the layout of
    /// [`Plan::packed_a`], [`Plan::packed_b`]; its `Transpose` is then of no consequence.
    ///
    /// # Panics
    /// When this machine lacks the instruction set.
    pub fn new(isa: Isa, spec: Spec, packed_a: bool, packed_b: bool) -> Plan {
        Plan::cut(isa, spec, [packed_a, packed_b], usize::MAX, None)
    }

    /// Plans a product of stored operands whose tiles are used up one by one ([`Plan::tile_to`]):
    /// they start at multiples of `multiples` rows and columns, have at most `most` elements unless
    /// these alone are more, and K is not split.
    ///
    /// # Panics
    /// When this machine lacks the instruction set.
    pub fn in_blocks(isa: Isa, spec: Spec, multiples: [usize; 2], most: usize) -> Plan {
        Plan::cut(isa, spec, [false, false], usize::MAX, Some((multiples, most)))
    }

    /// Plans a product as a single chunk whatever its size (no pack or reduce phase), for callers
    /// that have many products to distribute, such as the heads of attention. Needs scratch of its
    /// own for each product that runs at the same time.
    ///
    /// # Panics
    /// When this machine lacks the instruction set.
    pub fn single(isa: Isa, spec: Spec, packed_a: bool, packed_b: bool) -> Plan {
        Plan::cut(isa, spec, [packed_a, packed_b], 1, None)
    }

    fn cut(
        isa: Isa,
        spec: Spec,
        [packed_a, packed_b]: [bool; 2],
        most: usize,
        blocks: Option<([usize; 2], usize)>,
    ) -> Plan {
        assert!(isa.is_available(), "this machine lacks {isa}");
        let engine = Engine::new(isa, spec.precision);
        let speed = with_kernel!(engine, K => K::SPEED, else 1);
        let single = most == 1 || blocking::wanted_chunks(&spec, speed) == 1;
        let (panels, unit) = with_kernel!(engine, K => {
            let panels = K::panels(&spec, packed_a, packed_b, single);
            (panels, panels.unit::<K>())
        }, else (portable::panels(&spec), portable::UNIT));
        let unit = match blocks {
            Some((multiples, elements)) => unit.in_blocks(multiples, elements, spec.n),
            None => unit,
        };
        let grid = Grid::new(&spec, unit, most);
        let mut plan = Plan { spec, engine, packed_a, packed_b, panels, grid, pack_chunks: [0, 0] };
        if plan.tiles() > 1 {
            let chunks = |packs, layout: PackedLayout| match packs {
                true => blocking::pack_chunks(&layout),
                false => 0,
            };
            // Tiles whose rows are theirs alone pack them themselves: one phase less.
            plan.pack_chunks = [
                chunks(panels.pack_a && !plan.grid.rows_apart(), plan.packed_a()),
                chunks(panels.b == SourceB::Scratch, plan.packed_b()),
            ];
        }
        plan
    }

    /// The product.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Name of the code that computes, as printed in benchmarks.
    pub fn engine(&self) -> &'static str {
        with_kernel!(self.engine, K => K::NAME, else "matrixmultiply")
    }

    /// Layout of an A that arrives packed.
    pub fn packed_a(&self) -> PackedLayout {
        self.panels.weave_a.layout(self.spec.m, self.spec.k)
    }

    /// Layout of a B that arrives packed.
    pub fn packed_b(&self) -> PackedLayout {
        self.panels.weave_b.layout(self.spec.n, self.spec.k)
    }

    /// f32 elements of scratch that the chunks share: packed operands and, when K is split, partial
    /// sums.
    pub fn scratch_len(&self) -> usize {
        self.partial_at() + self.partial_len()
    }

    /// Where B, packed by the plan, starts in scratch; A starts at 0.
    fn packed_b_at(&self) -> usize {
        if self.panels.pack_a { in_scratch(self.packed_a()) } else { 0 }
    }

    /// Where the partial sums start in scratch.
    fn partial_at(&self) -> usize {
        let b = if self.panels.b == SourceB::Scratch { in_scratch(self.packed_b()) } else { 0 };
        self.packed_b_at() + b
    }

    /// Elements of all partial sums: parts x m x n when K is split.
    fn partial_len(&self) -> usize {
        if self.grid.parts > 1 { self.grid.parts * self.spec.m * self.spec.n } else { 0 }
    }

    /// Chunks of phase 1; 0 when nothing is packed ahead.
    pub fn pack_chunks(&self) -> usize {
        self.pack_chunks.iter().sum()
    }

    /// Chunks of phase 2; 0 when C has no elements.
    pub fn tiles(&self) -> usize {
        self.grid.tiles()
    }

    /// Chunks of phase 3; 0 unless K is split.
    pub fn reduce_chunks(&self) -> usize {
        self.grid.reduce_chunks
    }

    /// Phase 1: packs the part `chunk` of the operands into scratch.
    ///
    /// # Safety
    /// - `operands.a` and `.b` are readable as [`Spec::a_shape`] and [`Spec::b_shape`] say with
    ///   their row strides (or as the packed layout says), `.c` is readable and writable as m x n
    ///   with `ldc >= n`, `.scratch` holds [`Plan::scratch_len`] elements; neither C nor scratch
    ///   overlaps anything else.
    /// - During a phase nobody else writes to any of them but other chunks of the same phase, each
    ///   chunk run at most once.
    /// - All chunks of a phase are complete, and visible to this thread, before a chunk of the next
    ///   phase starts; all phases are run in order.
    ///
    /// # Panics
    /// When `chunk` is not below [`Plan::pack_chunks`].
    pub unsafe fn pack(&self, chunk: usize, operands: &Operands) {
        let [of_a, of_b] = self.pack_chunks;
        assert!(chunk < of_a + of_b, "pack chunk {chunk} of {}", of_a + of_b);
        // SAFETY: the caller's contract.
        unsafe {
            if chunk < of_a {
                let (panels, depth) = blocking::pack_part(&self.packed_a(), chunk, of_a);
                self.pack_a(panels, depth, operands);
            } else {
                self.pack_b(chunk - of_a, of_b, operands);
            }
        }
    }

    /// Packs some panels of A, or a part of their depth.
    ///
    /// # Safety
    /// As for [`Plan::pack`].
    unsafe fn pack_a(&self, panels: Range, depth: Range, operands: &Operands) {
        let layout = self.packed_a();
        // Rows of a panel of A are stored rows unless A is transposed; those of B are columns.
        let swapped = match self.spec.a {
            Transpose::No => Transpose::Yes,
            Transpose::Yes => Transpose::No,
        };
        let stored = (operands.a, operands.lda, swapped);
        // SAFETY: the part lies inside the layout, whose place in scratch is the start
        // (`packed_b_at`).
        with_kernel!(self.engine, K => unsafe {
            driver::pack::<K>(layout, panels, depth, stored, operands.scratch.cast());
        }, else ());
    }

    /// Packs one of `chunks` parts of B.
    ///
    /// # Safety
    /// As for [`Plan::pack`].
    unsafe fn pack_b(&self, chunk: usize, chunks: usize, operands: &Operands) {
        let layout = self.packed_b();
        let (panels, depth) = blocking::pack_part(&layout, chunk, chunks);
        let stored = (operands.b, operands.ldb, self.spec.b);
        // SAFETY: the part lies inside the layout, whose place in scratch is `packed_b_at`.
        with_kernel!(self.engine, K => unsafe {
            let packed = operands.scratch.add(self.packed_b_at());
            driver::pack::<K>(layout, panels, depth, stored, packed.cast());
        }, else ());
    }

    /// Phase 2: computes block `chunk` of C and applies the epilogue to it; when K is split, one
    /// block of a partial sum without the epilogue.
    ///
    /// # Safety
    /// As for [`Plan::pack`]; the pack phase is complete.
    ///
    /// # Panics
    /// When `chunk` is not below [`Plan::tiles`].
    pub unsafe fn tile(&self, chunk: usize, operands: &Operands, epilogue: Epilogue<'_>) {
        let tile = self.grid.tile(chunk, self.spec.k);
        if self.grid.parts > 1 {
            let Spec { m, n, .. } = self.spec;
            // SAFETY: scratch holds the partial sums of all parts (`scratch_len`).
            let c = unsafe { operands.scratch.add(self.partial_at() + tile.part * m * n) };
            let target = Operands { c, ldc: n, ..*operands };
            // SAFETY: the caller's contract.
            unsafe { self.compute(&tile, &target, false, (None, None)) };
        } else {
            // SAFETY: the caller's contract.
            unsafe { self.compute(&tile, operands, self.spec.accumulate, (epilogue, None)) };
        }
    }

    /// Rows and columns of C that [`Plan::tile`] computes as block `chunk`.
    ///
    /// # Panics
    /// When `chunk` is not below [`Plan::tiles`].
    pub fn tile_ranges(&self, chunk: usize) -> [std::ops::Range<usize>; 2] {
        let tile = self.grid.tile(chunk, self.spec.k);
        [tile.rows, tile.cols].map(|range| range.start..range.end)
    }

    /// Phase 2 of a plan that [`Plan::in_blocks`] made: writes block `chunk` of the product to `to`,
    /// row after row without gaps, and nothing to C, which may dangle.
    ///
    /// # Safety
    /// As for [`Plan::tile`], but for C: `to` has room for the block.
    ///
    /// # Panics
    /// When `chunk` is not below [`Plan::tiles`], or K is split.
    pub unsafe fn tile_to(
        &self,
        chunk: usize,
        operands: &Operands,
        to: *mut f32,
        ahead: Ahead<'_>,
    ) {
        assert_eq!(self.grid.parts, 1, "a part of a sum is no block of the product");
        let tile = self.grid.tile(chunk, self.spec.k);
        let ldc = tile.cols.len();
        // Where C would start if the block lay in it.
        let c = to.wrapping_sub(tile.rows.start * ldc + tile.cols.start);
        // SAFETY: the caller's contract; only the block's places are touched.
        unsafe { self.compute(&tile, &Operands { c, ldc, ..*operands }, false, (None, ahead)) };
    }

    /// Computes a tile, or a part of its sum.
    ///
    /// # Safety
    /// As for [`Plan::tile`].
    unsafe fn compute(
        &self,
        tile: &Tile,
        operands: &Operands,
        accumulate: bool,
        (epilogue, ahead): (Epilogue<'_>, Ahead<'_>),
    ) {
        // SAFETY: the caller's contract; the tile lies inside the shape (`Grid::tile`). What is
        // packed and was not in phase 1 is packed here: the rows of A of this tile, which no other
        // tile has; B only where this is the only tile.
        with_kernel!(self.engine, K => unsafe {
            if self.panels.pack_a && self.pack_chunks[0] == 0 {
                let layout = self.packed_a();
                let end = tile.rows.end.div_ceil(layout.width);
                let panels = Range { start: tile.rows.start / layout.width, end };
                self.pack_a(panels, tile.depth, operands);
            }
            if self.panels.b == SourceB::Scratch && self.pack_chunks[1] == 0 {
                self.pack_b(0, 1, operands);
            }
            let ranges = (tile.rows, tile.cols, tile.depth);
            driver::tile::<K>(self, operands, ranges, accumulate, (epilogue, ahead));
        }, else
        // SAFETY: as above.
        unsafe {
            if let Some(ahead) = ahead {
                ahead(tile.rows.start..tile.rows.end, tile.cols.start..tile.cols.end);
            }
            portable::tile(self, operands, &tile.rows, &tile.cols, &tile.depth, accumulate);
            self.finish(operands, &tile.rows, &tile.cols, epilogue);
        });
    }

    /// Phase 3: sums the partial products of some rows of C in order, and applies the epilogue to
    /// them.
    ///
    /// # Safety
    /// As for [`Plan::pack`]; the tile phase is complete.
    ///
    /// # Panics
    /// When `chunk` is not below [`Plan::reduce_chunks`].
    pub unsafe fn reduce(&self, chunk: usize, operands: &Operands, epilogue: Epilogue<'_>) {
        let Spec { m, n, .. } = self.spec;
        let rows = self.grid.reduce_rows(chunk, m);
        // SAFETY: scratch ends with parts x m x n partial sums (`scratch_len`), C has m rows of n
        // elements (contract).
        unsafe {
            let partial = operands.scratch.add(self.partial_at());
            for i in rows.start..rows.end {
                let c = std::slice::from_raw_parts_mut(operands.c.add(i * operands.ldc), n);
                for part in 0..self.grid.parts {
                    let p = std::slice::from_raw_parts(partial.add(part * m * n + i * n), n);
                    if part == 0 && !self.spec.accumulate {
                        c.copy_from_slice(p);
                    } else {
                        c.iter_mut().zip(p).for_each(|(c, p)| *c += p);
                    }
                }
            }
            self.finish(operands, &rows, &Range { start: 0, end: n }, epilogue);
        }
    }

    /// Applies the epilogue to a block of C.
    ///
    /// # Safety
    /// The block lies inside C, which `operands` describes.
    unsafe fn finish(
        &self,
        operands: &Operands,
        rows: &Range,
        cols: &Range,
        epilogue: Epilogue<'_>,
    ) {
        if let Some(epilogue) = epilogue {
            let c = operands.c.wrapping_add(rows.start * operands.ldc + cols.start);
            let (row, col) = (rows.start, cols.start);
            epilogue(Block { row, rows: rows.len(), col, cols: cols.len(), c, ldc: operands.ldc });
        }
    }

    /// Runs all chunks of all phases on this thread.
    ///
    /// # Safety
    /// The first point of the contract of [`Plan::pack`]; nobody else uses C or scratch meanwhile.
    pub unsafe fn run(&self, operands: &Operands, epilogue: Epilogue<'_>) {
        // SAFETY: the caller's contract; phases run in order.
        unsafe {
            (0..self.pack_chunks()).for_each(|chunk| self.pack(chunk, operands));
            (0..self.tiles()).for_each(|chunk| self.tile(chunk, operands, epilogue));
            (0..self.reduce_chunks()).for_each(|chunk| self.reduce(chunk, operands, epilogue));
        }
    }
}

/// Whether a product over so many terms may be cut along its sum: [`Plan::in_blocks`] would give up
/// threads there.
pub fn may_split(k: usize) -> bool {
    blocking::may_split(k)
}

/// A stored operand: elements and the distance between rows.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between stored rows in elements.
    pub stride: usize,
}

/// A stored result: elements and the distance between rows.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Distance between stored rows in elements.
    pub stride: usize,
}

/// Computes a product on this thread; allocates scratch. For tests and measurements: training holds
/// a [`Plan`].
///
/// # Panics
/// When a slice is too short for its shape and stride, a stride is shorter than a row, or this
/// machine lacks the instruction set.
pub fn gemm(
    isa: Isa,
    spec: Spec,
    a: View<'_>,
    b: View<'_>,
    c: ViewMut<'_>,
    epilogue: Epilogue<'_>,
) {
    check("A", spec.a_shape(), a.data.len(), a.stride);
    check("B", spec.b_shape(), b.data.len(), b.stride);
    check("C", (spec.m, spec.n), c.data.len(), c.stride);
    let plan = Plan::new(isa, spec, false, false);
    let mut scratch = vec![0f32; plan.scratch_len() + ALIGNMENT];
    let skip = scratch.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT);
    let operands = Operands {
        a: Address::F32(a.data.as_ptr()),
        lda: a.stride,
        b: Address::F32(b.data.as_ptr()),
        ldb: b.stride,
        c: c.data.as_mut_ptr(),
        ldc: c.stride,
        scratch: scratch[skip..].as_mut_ptr(),
    };
    // SAFETY: the checks above hold the lengths; the borrows keep others away; scratch has
    // `scratch_len` elements after `skip`.
    unsafe { plan.run(&operands, epilogue) }
}

/// f32 elements in the 64 bytes to which scratch should be aligned.
pub const ALIGNMENT: usize = 16;

/// f32 elements of scratch that a packed operand takes, to the next cache line.
fn in_scratch(layout: PackedLayout) -> usize {
    layout.bytes().div_ceil(size_of::<f32>()).next_multiple_of(ALIGNMENT)
}

fn check(name: &str, (rows, cols): (usize, usize), len: usize, stride: usize) {
    assert!(rows <= 1 || stride >= cols, "{name}: row stride {stride} of rows of {cols}");
    let end = |rows: usize| (rows - 1).checked_mul(stride)?.checked_add(cols);
    let fits = rows == 0 || cols == 0 || end(rows).is_some_and(|needed| len >= needed);
    assert!(
        fits,
        "{name}: {len} elements are too few for {rows} x {cols} with row stride {stride}"
    );
}
