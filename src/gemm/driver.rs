//! The loops around the microkernels, once for every instruction set.
//!
//! Within a tile of C, from the outside in: blocks of `DEPTH` along K, panels of rows, panels of
//! columns, the microkernel. The panel of A (`rows` x `DEPTH`) stays in L1 while the panels of B
//! pass by from L2. Where tiles pack B for themselves, panels of columns come before panels of
//! rows, so that each is packed once for all rows of the tile. Each element of C is one chain of
//! fused multiply-adds per block of `DEPTH`, and the blocks are added to C in order: neither tiles
//! nor packing change the bits.

use super::blocking::{Range, Unit};
use super::layout::Weave;
use super::{Address, Ahead, Epilogue, Operands, PackedLayout, Plan, Spec, Transpose};
use crate::device::cpu::Caches;
use std::mem::MaybeUninit;

/// One call of a microkernel: C\[rows, cols\] (+)= A\[rows, depth\] · B\[depth, cols\].
///
/// For kernels of f32, element (i, p) of A lies at `a[i * a_row + p * a_depth]`, element (p, j) of
/// B at `b[p * b_depth + j]`; only these are read. For kernels that weave their panels, the panels
/// lie `a_panel` and `b_panel` elements apart. Of C only `rows` x `cols` elements are touched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micro<E = f32> {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub a: *const E,
    pub a_row: usize,
    pub a_depth: usize,
    pub a_panel: usize,
    pub b: *const E,
    pub b_depth: usize,
    pub b_panel: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// Whether to add to C, or to overwrite it unread.
    pub accumulate: bool,
}

/// One panel to pack, as [`PackedLayout`] says, or a part of its depth: `depth` inner indices of
/// `width` elements, the first `count` of each from the source, the rest zero, and then zeros up to
/// a depth of `filled`.
///
/// Element (i, p) is read at `source[i * stride + p]` when `along_depth`, else at
/// `source[p * stride + i]`. The part starts at a multiple of the layout's `multiple`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing<E = f32> {
    pub source: Address,
    pub stride: usize,
    pub along_depth: bool,
    pub count: usize,
    pub width: usize,
    /// Consecutive inner indices of one row that lie next to each other.
    pub group: usize,
    /// Parts of which an element is the sum.
    pub parts: usize,
    pub depth: usize,
    pub filled: usize,
    pub panel: *mut E,
}

impl<E> Packing<E> {
    /// The source of a kernel that multiplies f32 as they are.
    pub fn f32_source(&self) -> *const f32 {
        match self.source {
            Address::F32(source) => source,
            Address::Bf16(_) => unreachable!("f32 products have f32 operands"),
        }
    }
}

/// What an instruction set supplies: its register tile, the microkernel and the packing of a panel.
pub(super) trait Kernel {
    /// What it multiplies.
    type Element: Copy;
    /// What a thread holds while it calls [`Kernel::multiply`].
    type Session;
    /// Name of the engine: instruction set and largest register tile.
    const NAME: &'static str;
    /// How many times as fast as f32 it multiplies: chunks are cut by time.
    const SPEED: u64;
    /// Most rows of the register tile.
    const ROWS: usize;
    /// Columns in one vector; the register tile has up to two.
    const LANES: usize;
    /// Up to this many rows the register tile has up to four vectors, for longer runs along the
    /// rows of B.
    const WIDE_ROWS: usize = 0;
    /// Block of K: a panel of A of this length and a few rows of B fit in L1.
    const DEPTH: usize;
    /// Panels of rows from which on a row-major B that exceeds L2 is packed by each tile.
    const LOCAL_ROW_PANELS: usize = usize::MAX;

    /// Before a thread's calls of [`Kernel::multiply`], once for a tile of C.
    fn session() -> Self::Session;

    /// How a product is laid out. `single`: it will be one tile.
    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, single: bool) -> Panels;

    /// How a B of `n` columns is packed.
    fn weave_b(n: usize) -> Weave;

    /// Runs the microkernel for `1..=ROWS` rows and `1..=2 * LANES` columns, or `1..=WIDE_ROWS`
    /// rows and `1..=4 * LANES` columns.
    ///
    /// # Safety
    /// This machine has the instruction set; the addresses are as [`Micro`] says, and nobody else
    /// uses that part of C.
    unsafe fn multiply(micro: &Micro<Self::Element>);

    /// Packs one panel.
    ///
    /// # Safety
    /// This machine has the instruction set; the addresses are as [`Packing`] says, and nobody else
    /// uses the panel.
    unsafe fn pack(packing: &Packing<Self::Element>);
}

/// Rows beyond which a transposed B is packed once for all tiles.
const MANY_ROWS: usize = 256;

/// How B is brought to the microkernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceB {
    /// Read where it is: packed by the caller, or row-major with its own stride.
    InPlace,
    /// Packed into scratch in phase 1.
    Scratch,
    /// Packed by each tile, panel after panel, into a buffer on the stack. Costs each row of tiles
    /// its own packing, but no phase, no scratch and no way through memory.
    Local,
}

/// How a product is laid out for a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels {
    /// Rows of a register tile: `m` in equal panels of at most `ROWS`, a multiple of those of A.
    pub rows: usize,
    /// Columns of a register tile, a multiple of those of a panel of B.
    pub cols: usize,
    /// How A is packed.
    pub weave_a: Weave,
    /// How B is packed.
    pub weave_b: Weave,
    /// Whether A is packed into scratch.
    pub pack_a: bool,
    /// How B is brought to the microkernel.
    pub b: SourceB,
}

/// Columns of a panel of f32.
pub(super) fn f32_columns<K: Kernel>(n: usize) -> usize {
    if n <= K::LANES { K::LANES } else { 2 * K::LANES }
}

/// So many panels that tiles of several can be alike: two threads with 3, 3, 3 and 1 of 10 panels
/// wait for each other.
fn even_panels(panels: usize) -> usize {
    if panels <= 2 { panels } else { panels.next_multiple_of(4) }
}

impl Panels {
    /// For kernels that read f32 as stored where that is as fast. `single`: the product will be one
    /// tile.
    pub fn f32<K: Kernel>(spec: &Spec, packed_a: bool, packed_b: bool, single: bool) -> Panels {
        let Spec { m, n, k, .. } = *spec;
        let rows = m.max(1).div_ceil(even_panels(m.max(1).div_ceil(K::ROWS)));
        let cols = f32_columns::<K>(n);
        let (row_panels, col_panels) = (m.div_ceil(rows), n.div_ceil(cols));
        let large = row_panels >= LARGE_ROW_PANELS && col_panels >= LARGE_COL_PANELS;

        let a_transposed = spec.a == Transpose::Yes;
        let stride = if a_transposed { m } else { k };
        let conflicts = stride.is_multiple_of(CONFLICT) && col_panels >= CONFLICT_COL_PANELS;
        let distant = a_transposed && col_panels >= DISTANT_COL_PANELS;
        let pack_a = !packed_a && k > 0 && (conflicts || distant);

        let b = match spec.b {
            _ if packed_b || k == 0 => SourceB::InPlace,
            Transpose::Yes if m > MANY_ROWS && !single => SourceB::Scratch,
            Transpose::Yes => SourceB::Local,
            Transpose::No if large && !single => SourceB::Scratch,
            Transpose::No if row_panels >= K::LOCAL_ROW_PANELS && k * n >= LOCAL_ELEMENTS => {
                SourceB::Local
            }
            Transpose::No => SourceB::InPlace,
        };
        Panels { rows, cols, weave_a: Weave::f32(rows), weave_b: Weave::f32(cols), pack_a, b }
    }

    /// For kernels whose operands always are packed.
    pub fn packed(
        (rows, cols): (usize, usize),
        (weave_a, weave_b): (Weave, Weave),
        spec: &Spec,
        packed_a: bool,
        packed_b: bool,
    ) -> Panels {
        let pack_a = !packed_a && spec.k > 0;
        let b = if packed_b || spec.k == 0 { SourceB::InPlace } else { SourceB::Scratch };
        Panels { rows, cols, weave_a, weave_b, pack_a, b }
    }

    /// What the tiles are made of. The largest keeps, for a block of K, its part of B in half of L2
    /// and its part of A in a quarter. Cuts between rows and columns change no bits.
    pub fn unit<K: Kernel>(&self) -> Unit {
        let l2 = Caches::get().l2;
        let most = |weave: Weave, share: usize, step: usize| {
            let bytes = K::DEPTH * weave.element.size() * weave.parts;
            (l2 / share / bytes).max(1).next_multiple_of(step)
        };
        Unit {
            rows: self.rows,
            cols: self.cols,
            depth: K::DEPTH,
            most_rows: most(self.weave_a, 4, self.rows),
            most_cols: most(self.weave_b, 2, self.cols),
            cols_first: self.b == SourceB::Local,
            speed: K::SPEED,
            splits: true,
        }
    }
}

// When packing pays. The microkernels read A^T, A and row-major B as stored at full speed while the
// lines they need stay in L1 and L2, so most products pack nothing but a transposed B. The bounds
// below are where packing measured faster (Zen 4, one thread, both engines, 20 shapes from 64^3 to
// 1024^3 and 128 x 2048 x 2048).

/// Stored rows that lie a multiple of this many elements (4 KiB) apart share one set of L1: 1024^3
/// runs at 83 GFLOP/s, with A packed 102.
const CONFLICT: usize = 1024;
/// Panels of columns from which on such an A is packed.
const CONFLICT_COL_PANELS: usize = 8;
/// Panels of columns from which on an A^T is packed, whose rows lie on pages of their own.
const DISTANT_COL_PANELS: usize = 48;
/// Panels of rows and of columns from which on a row-major B is packed once for all tiles.
const LARGE_ROW_PANELS: usize = 64;
const LARGE_COL_PANELS: usize = 24;
/// Elements of B (1 MiB) from which on [`Kernel::LOCAL_ROW_PANELS`] matters.
const LOCAL_ELEMENTS: usize = 1 << 18;

/// Packs a block of panels of one operand: `stored` as it lies in memory, with its row stride;
/// transposed, if its stored rows are the panels' rows (columns), else its inner indices.
///
/// # Safety
/// This machine has the instruction set; `stored` holds the operand, `packed` has room for the
/// layout.
pub(super) unsafe fn pack<K: Kernel>(
    layout: PackedLayout,
    panels: Range,
    depth: Range,
    (stored, stride, transposed): (Address, usize, Transpose),
    packed: *mut K::Element,
) {
    if depth.len() == 0 {
        return;
    }
    let along_depth = transposed == Transpose::Yes;
    let end = if depth.end == layout.depth { layout.filled_depth() } else { depth.end };
    for panel in panels.start..panels.end {
        let first = panel * layout.width;
        let place =
            if along_depth { first * stride + depth.start } else { depth.start * stride + first };
        // SAFETY: `first` and `depth.start` lie inside the operand and the layout (contract).
        unsafe {
            K::pack(&Packing {
                source: stored.after(place),
                stride,
                along_depth,
                count: layout.width.min(layout.count - first),
                width: layout.width,
                group: layout.group,
                parts: layout.parts,
                depth: depth.len(),
                filled: end - depth.start,
                panel: packed.add(layout.index(first, depth.start)),
            });
        }
    }
}

/// C[rows, cols] (+)= op(A)[rows, depth] · op(B)[depth, cols], then the epilogue for each panel of
/// rows.
///
/// # Safety
/// The contract of [`Plan::tile`]; the ranges lie inside the shape and start at panels; what the
/// plan packs is packed.
pub(super) unsafe fn tile<K: Kernel>(
    plan: &Plan,
    operands: &Operands,
    (rows, cols, depth): (Range, Range, Range),
    accumulate: bool,
    (epilogue, ahead): (Epilogue<'_>, Ahead<'_>),
) {
    let _session = K::session();
    let panels = plan.panels;
    let (layout_a, layout_b) = (plan.packed_a(), plan.packed_b());
    // Only a stored B can be cut into other panels than those of the layout.
    let wide = panels.b == SourceB::InPlace && !plan.packed_b && panels.rows <= K::WIDE_ROWS;
    let panel_cols = if wide { 4 * K::LANES } else { panels.cols };
    // A panel that starts at row i and depth p lies at i * start + p * depth of this.
    let packed = |at: *const K::Element, layout: PackedLayout| Operand {
        at,
        start: layout.filled_depth() * layout.parts,
        row: 1,
        depth: layout.width * layout.parts,
    };
    let a = if plan.packed_a {
        packed(operands.a.cast(), layout_a)
    } else if panels.pack_a {
        packed(operands.scratch.cast_const().cast(), layout_a)
    } else if plan.spec.a == Transpose::No {
        Operand { at: operands.a.cast(), start: operands.lda, row: operands.lda, depth: 1 }
    } else {
        Operand { at: operands.a.cast(), start: 1, row: 1, depth: operands.lda }
    };
    let b = match panels.b {
        SourceB::InPlace if plan.packed_b => packed(operands.b.cast(), layout_b),
        SourceB::Scratch => {
            let at = operands.scratch.wrapping_add(plan.packed_b_at()).cast_const();
            packed(at.cast(), layout_b)
        }
        SourceB::InPlace | SourceB::Local => {
            Operand { at: operands.b.cast(), start: 1, row: 1, depth: operands.ldb }
        }
    };
    let mut local = Local([const { MaybeUninit::uninit() }; LOCAL]);
    let local = local.0.as_mut_ptr().cast::<K::Element>();

    let mut start = depth.start;
    loop {
        let block = K::DEPTH.min(depth.end - start);
        let last = start + block == depth.end;
        let accumulate = accumulate || start > depth.start;
        // One panel of rows against one of columns, the latter at `b`.
        let multiply = |i: usize, j: usize, (b, b_depth): (*const K::Element, usize)| {
            if let (true, Some(ahead)) = (last, ahead) {
                let (bottom, right) = (rows.end.min(i + panels.rows), cols.end.min(j + panel_cols));
                ahead(i..bottom, j..right);
            }
            // SAFETY: (i, j, start) lie inside the shape, and the strides are those of the operand
            // that was chosen (contract). What fills up the depth is zero in both operands.
            unsafe {
                K::multiply(&Micro {
                    rows: panels.rows.min(rows.end - i),
                    cols: panel_cols.min(cols.end - j),
                    depth: block.next_multiple_of(layout_a.multiple),
                    a: a.at.wrapping_add(i * a.start + start * a.depth),
                    a_row: a.row,
                    a_depth: a.depth,
                    a_panel: layout_a.panel_len(),
                    b,
                    b_depth,
                    b_panel: layout_b.panel_len(),
                    c: operands.c.wrapping_add(i * operands.ldc + j),
                    ldc: operands.ldc,
                    accumulate,
                });
            }
        };
        let finish = |rows: Range, cols: Range| {
            if last {
                // SAFETY: the block lies inside C and has met all of K (contract).
                unsafe { plan.finish(operands, &rows, &cols, epilogue) };
            }
        };
        if panels.b == SourceB::Local {
            for j in (cols.start..cols.end).step_by(panels.cols) {
                let end = cols.end.min(j + panels.cols);
                let layout = panels.weave_b.layout(end - j, block);
                assert!(layout.bytes() <= LOCAL * size_of::<f32>(), "a panel exceeds its buffer");
                let (col_stride, depth_stride) = if plan.spec.b == Transpose::Yes {
                    (operands.ldb, 1)
                } else {
                    (1, operands.ldb)
                };
                // SAFETY: the panel starts inside B (contract); the assertion above makes room for
                // it.
                unsafe {
                    let stored = operands.b.after(j * col_stride + start * depth_stride);
                    let one = Range { start: 0, end: layout.panels() };
                    let all = Range { start: 0, end: block };
                    pack::<K>(layout, one, all, (stored, operands.ldb, plan.spec.b), local);
                }
                for i in (rows.start..rows.end).step_by(panels.rows) {
                    multiply(i, j, (local, panels.cols));
                }
                finish(rows, Range { start: j, end });
            }
        } else {
            for i in (rows.start..rows.end).step_by(panels.rows) {
                for j in (cols.start..cols.end).step_by(panel_cols) {
                    // Without inner terms there is no B to lie in.
                    let panel = b.at.wrapping_add(j * b.start + start * b.depth);
                    multiply(i, j, (panel, b.depth));
                }
                finish(Range { start: i, end: rows.end.min(i + panels.rows) }, cols);
            }
        }
        if last {
            break;
        }
        start += block;
    }
}

/// Where panels of an operand lie: the one of row (column) i and depth p at `at[i * start + p *
/// depth]`.
#[derive(Clone, Copy)]
struct Operand<E> {
    at: *const E,
    start: usize,
    /// Distance between rows inside a panel of A.
    row: usize,
    depth: usize,
}

/// Elements of the buffer for one block of one panel of B: 32 KiB.
const LOCAL: usize = 1 << 13;

#[repr(align(64))]
struct Local([MaybeUninit<f32>; LOCAL]);
