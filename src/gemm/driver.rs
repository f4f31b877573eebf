//! The loops around the microkernels, once for every instruction set.
//!
//! Within a tile of C, from the outside in: blocks of `DEPTH` along K, panels of rows, panels of columns, the microkernel. The panel of A
//! (`mr` x `DEPTH`) stays in L1 while the panels of B pass by from L2. Each element of C is one chain of fused multiply-adds per block of
//! `DEPTH`, and the blocks are added to C in order: neither tiles nor packing change the bits.

use super::blocking::{Range, Unit};
use super::{Epilogue, Operands, PackedLayout, Plan, Spec, Transpose};

/// One call of a microkernel: C\[rows, cols\] (+)= A\[rows, depth\] · B\[depth, cols\].
///
/// Element (i, p) of A lies at `a[i * a_row + p * a_depth]`, element (p, j) of B at `b[p * b_depth + j]`. Only these are read, and of C
/// only `rows` x `cols` elements are touched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micro {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_depth: usize,
    pub b: *const f32,
    pub b_depth: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// Whether to add to C, or to overwrite it unread.
    pub accumulate: bool,
}

/// One panel to pack: `depth` groups of `width` elements, the first `count` of each from the source, the rest zero.
///
/// Element (i, p) is read at `source[i * stride + p]` when `along_depth`, else at `source[p * stride + i]`, and written at
/// `panel[p * width + i]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    pub source: *const f32,
    pub stride: usize,
    pub along_depth: bool,
    pub count: usize,
    pub width: usize,
    pub depth: usize,
    pub panel: *mut f32,
}

/// What an instruction set supplies: its register tile, the microkernel and the packing of a panel.
pub(super) trait Kernel {
    /// Name of the engine: instruction set and largest register tile.
    const NAME: &'static str;
    /// Most rows of the register tile.
    const ROWS: usize;
    /// Columns in one vector; the register tile has up to two.
    const LANES: usize;
    /// Block of K: a panel of A of this length and a few rows of B fit in L1.
    const DEPTH: usize;

    /// Runs the microkernel for `1..=ROWS` rows and `1..=2 * LANES` columns.
    ///
    /// # Safety
    /// This machine has the instruction set; the addresses are as [`Micro`] says, and nobody else uses that part of C.
    unsafe fn multiply(micro: &Micro);

    /// Packs one panel.
    ///
    /// # Safety
    /// This machine has the instruction set; the addresses are as [`Packing`] says, and nobody else uses the panel.
    unsafe fn pack(packing: &Packing);
}

/// Largest tile: with a block of K, its part of B (256 KiB) and of A stay in an L2 of 512 KiB.
const MOST_ROWS: usize = 128;
const MOST_COLS: usize = 256;

/// How a product is laid out for a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels {
    /// Rows in a panel of A: `m` in equal panels of at most `ROWS`.
    pub rows: usize,
    /// Columns in a panel of B.
    pub cols: usize,
    /// Whether A is packed into scratch.
    pub pack_a: bool,
    /// Whether B is packed into scratch.
    pub pack_b: bool,
}

impl Panels {
    pub fn new<K: Kernel>(spec: &Spec, packed_a: bool, packed_b: bool) -> Panels {
        let Spec { m, n, .. } = *spec;
        let rows = m.max(1).div_ceil(m.max(1).div_ceil(K::ROWS));
        let cols = if n <= K::LANES { K::LANES } else { 2 * K::LANES };
        let (row_panels, col_panels) = (m.div_ceil(rows), n.div_ceil(cols));
        let pack_a = !packed_a && col_panels >= PACK_A_PANELS;
        let must = spec.b == Transpose::Yes;
        let pack_b = !packed_b && (must || row_panels >= PACK_B_PANELS);
        Panels { rows, cols, pack_a, pack_b }
    }

    pub fn unit<K: Kernel>(&self) -> Unit {
        Unit {
            rows: self.rows,
            cols: self.cols,
            depth: K::DEPTH,
            most_rows: MOST_ROWS.next_multiple_of(self.rows),
            most_cols: MOST_COLS,
        }
    }
}

/// Panels of columns from which on reading A as stored costs more than packing it.
const PACK_A_PANELS: usize = 4;
/// Panels of rows from which on reading B as stored costs more than packing it.
const PACK_B_PANELS: usize = 4;

/// Packs a block of panels of one operand.
///
/// # Safety
/// This machine has the instruction set; `stored` holds the operand with row stride `stride`, `packed` has room for the layout.
pub(super) unsafe fn pack<K: Kernel>(
    layout: PackedLayout,
    panels: Range,
    depth: Range,
    (stored, stride, along_depth): (*const f32, usize, bool),
    packed: *mut f32,
) {
    for panel in panels.start..panels.end {
        let first = panel * layout.width;
        let place =
            if along_depth { first * stride + depth.start } else { depth.start * stride + first };
        // SAFETY: `first` and `depth.start` lie inside the operand and the layout (contract).
        unsafe {
            K::pack(&Packing {
                source: stored.add(place),
                stride,
                along_depth,
                count: layout.width.min(layout.count - first),
                width: layout.width,
                depth: depth.len(),
                panel: packed.add(layout.index(first, depth.start)),
            });
        }
    }
}

/// C[rows, cols] (+)= op(A)[rows, depth] · op(B)[depth, cols], then the epilogue for each panel of rows.
///
/// # Safety
/// The contract of [`Plan::tile`]; the ranges lie inside the shape and start at panels; what the plan packs is packed.
pub(super) unsafe fn tile<K: Kernel>(
    plan: &Plan,
    operands: &Operands,
    (rows, cols, depth): (Range, Range, Range),
    accumulate: bool,
    epilogue: Epilogue<'_>,
) {
    let panels = plan.panels;
    let k = plan.spec.k;
    // A panel that starts at row i and depth p lies at i * row + p * depth of this; the same for B.
    let (a, a_start, a_row, a_depth) = if plan.packed_a {
        (operands.a, k, 1, panels.rows)
    } else if panels.pack_a {
        (operands.scratch.cast_const(), k, 1, panels.rows)
    } else if plan.spec.a == Transpose::No {
        (operands.a, operands.lda, operands.lda, 1)
    } else {
        (operands.a, 1, 1, operands.lda)
    };
    let (b, b_start, b_depth) = if plan.packed_b {
        (operands.b, k, panels.cols)
    } else if panels.pack_b {
        (operands.scratch.wrapping_add(plan.packed_b_at()).cast_const(), k, panels.cols)
    } else {
        (operands.b, 1, operands.ldb)
    };
    let c = operands.c;
    let mut start = depth.start;
    loop {
        let block = K::DEPTH.min(depth.end - start);
        let last = start + block == depth.end;
        for i in (rows.start..rows.end).step_by(panels.rows) {
            let count = panels.rows.min(rows.end - i);
            for j in (cols.start..cols.end).step_by(panels.cols) {
                // SAFETY: (i, j, start) lie inside the shape, and the strides are those of the operand that was chosen (contract).
                unsafe {
                    K::multiply(&Micro {
                        rows: count,
                        cols: panels.cols.min(cols.end - j),
                        depth: block,
                        a: a.add(i * a_start + start * a_depth),
                        a_row,
                        a_depth,
                        b: b.add(j * b_start + start * b_depth),
                        b_depth,
                        c: c.add(i * operands.ldc + j),
                        ldc: operands.ldc,
                        accumulate: accumulate || start > depth.start,
                    });
                }
            }
            if last {
                let rows = Range { start: i, end: i + count };
                // SAFETY: the block lies inside C (contract).
                unsafe { plan.finish(operands, &rows, &cols, epilogue) };
            }
        }
        if last {
            break;
        }
        start += block;
    }
}
