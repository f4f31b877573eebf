//! One product on one instruction set: what is packed, into which chunks it falls, and running one.
#![allow(unsafe_code)]

use super::blocking::{self, Grid, Range, Tile};
use super::driver::{self, Kernel, Panels, SourceB};
use super::engine::{Engine, with_kernel};
use super::{
    Ahead, Block, Epilogue, Operands, PackedLayout, Spec, Transpose, in_scratch, portable,
};
use crate::device::cpu::Isa;

/// How one product is computed on one instruction set: what is packed, which chunks there are.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) spec: Spec,
    pub(super) engine: Engine,
    pub(super) packed_a: bool,
    pub(super) packed_b: bool,
    pub(super) panels: Panels,
    pub(super) grid: Grid,
    /// Chunks that pack A, and B; none when the one tile packs for itself.
    pub(super) pack_chunks: [usize; 2],
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
    /// When this machine lacks the instruction set, or the product is to be added to C.
    pub fn in_blocks(isa: Isa, spec: Spec, multiples: [usize; 2], most: usize) -> Plan {
        assert!(!spec.accumulate, "blocks are written, not added to");
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
            let mut panels = K::panels(&spec, packed_a, packed_b, single);
            // Blocks are low: packing B for each would cost as much as they do.
            if blocks.is_some() && spec.b == Transpose::No && panels.b == SourceB::Local {
                panels.b = SourceB::InPlace;
            }
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
    pub(super) fn packed_b_at(&self) -> usize {
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
    pub(super) unsafe fn finish(
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
