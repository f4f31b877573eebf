//! The engine of every machine: the crate `matrixmultiply`, single-threaded, once per tile. It
//! packs for itself.

use super::blocking::{Range, Unit};
use super::driver::{Kernel, Micro, Packing, Panels, SourceB};
use super::layout::Weave;
use super::{Operands, Plan, Spec, Transpose};

/// Tiles large enough that packing inside `matrixmultiply` stays small beside the product.
pub(super) const UNIT: Unit = Unit {
    rows: 16,
    cols: 32,
    depth: 256,
    most_rows: 128,
    most_cols: 512,
    cols_first: false,
    speed: 1,
    splits: true,
};

/// One panel for each operand that arrives packed; nothing is packed here.
pub(super) fn panels(spec: &Spec) -> Panels {
    let (rows, cols) = (spec.m.max(1), spec.n.max(1));
    let (weave_a, weave_b) = (Weave::f32(rows), Weave::f32(cols));
    Panels { rows, cols, weave_a, weave_b, pack_a: false, b: SourceB::InPlace }
}

/// C[rows, cols] (+)= op(A)[rows, depth] · op(B)[depth, cols].
///
/// # Safety
/// The contract of [`Plan::tile`]; the ranges lie inside the shape.
pub(super) unsafe fn tile(
    plan: &Plan,
    operands: &Operands,
    rows: &Range,
    cols: &Range,
    depth: &Range,
    accumulate: bool,
) {
    let Spec { m, n, .. } = plan.spec;
    // Packed, the single panel of A is [k, m] and that of B [k, n], without gaps.
    let (row_a, depth_a) = match (plan.packed_a, plan.spec.a) {
        (true, _) => (1, m),
        (false, Transpose::No) => (operands.lda, 1),
        (false, Transpose::Yes) => (1, operands.lda),
    };
    let (depth_b, col_b) = match (plan.packed_b, plan.spec.b) {
        (true, _) => (n, 1),
        (false, Transpose::No) => (operands.ldb, 1),
        (false, Transpose::Yes) => (1, operands.ldb),
    };
    // SAFETY: the strides walk the operands as stored or packed, inside their shapes (contract).
    unsafe {
        let c = operands.c.wrapping_add(rows.start * operands.ldc + cols.start);
        if depth.len() == 0 {
            if !accumulate {
                (0..rows.len()).for_each(|i| c.add(i * operands.ldc).write_bytes(0, cols.len()));
            }
            return;
        }
        matrixmultiply::sgemm(
            rows.len(),
            depth.len(),
            cols.len(),
            1.0,
            operands.a.cast::<f32>().add(rows.start * row_a + depth.start * depth_a),
            row_a as isize,
            depth_a as isize,
            operands.b.cast::<f32>().add(depth.start * depth_b + cols.start * col_b),
            depth_b as isize,
            col_b as isize,
            if accumulate { 1.0 } else { 0.0 },
            c,
            operands.ldc as isize,
            1,
        );
    }
}

/// The same crate under the driver's loops, for operands that must be packed.
pub(super) struct Panelled;

impl Kernel for Panelled {
    type Element = f32;
    type Session = ();
    const NAME: &'static str = "matrixmultiply";
    const SPEED: u64 = 1;
    const ROWS: usize = 16;
    const LANES: usize = 16;
    const DEPTH: usize = 256;

    fn session() {}

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, single: bool) -> Panels {
        Panels::f32::<Self>(spec, packed_a, packed_b, single)
    }

    fn weave_b(_n: usize) -> Weave {
        Weave::f32(2 * Self::LANES)
    }

    unsafe fn multiply(micro: &Micro) {
        let Micro { rows, cols, depth, a, a_row, a_depth, b, b_depth, c, ldc, accumulate, .. } =
            *micro;
        // SAFETY: the strides are those of the operands (contract of the trait).
        unsafe {
            if depth == 0 {
                if !accumulate {
                    (0..rows).for_each(|i| c.add(i * ldc).write_bytes(0, cols));
                }
                return;
            }
            matrixmultiply::sgemm(
                rows,
                depth,
                cols,
                1.0,
                a,
                a_row as isize,
                a_depth as isize,
                b,
                b_depth as isize,
                1,
                if accumulate { 1.0 } else { 0.0 },
                c,
                ldc as isize,
                1,
            );
        }
    }

    unsafe fn pack(packing: &Packing) {
        let Packing { stride, along_depth, count, width, depth, panel, .. } = *packing;
        let source = packing.f32_source();
        let (along, across) = if along_depth { (1, stride) } else { (stride, 1) };
        for p in 0..depth {
            for i in 0..width {
                // SAFETY: (i, p) lies inside the source where i < count, and inside the panel
                // (contract of the trait).
                unsafe {
                    let value = if i < count { *source.add(p * along + i * across) } else { 0.0 };
                    *panel.add(p * width + i) = value;
                }
            }
        }
    }
}
