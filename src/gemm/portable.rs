//! The engine of every machine: the crate `matrixmultiply`, single-threaded, once per tile. It
//! packs for itself.

use super::blocking::{Range, Unit};
use super::driver::{Panels, SourceB};
use super::{Operands, Plan, Spec, Transpose};

/// Tiles large enough that packing inside `matrixmultiply` stays small beside the product.
pub(super) const UNIT: Unit =
    Unit { rows: 16, cols: 32, depth: 256, most_rows: 128, most_cols: 512, cols_first: false };

/// One panel for each operand that arrives packed; nothing is packed here.
pub(super) fn panels(spec: &Spec) -> Panels {
    Panels { rows: spec.m.max(1), cols: spec.n.max(1), pack_a: false, b: SourceB::InPlace }
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
        let c = operands.c.add(rows.start * operands.ldc + cols.start);
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
            operands.a.add(rows.start * row_a + depth.start * depth_a),
            row_a as isize,
            depth_a as isize,
            operands.b.add(depth.start * depth_b + cols.start * col_b),
            depth_b as isize,
            col_b as isize,
            if accumulate { 1.0 } else { 0.0 },
            c,
            operands.ldc as isize,
            1,
        );
    }
}
