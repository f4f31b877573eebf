//! `permutation` on a GPU: `kernels/permutation.cu`, a thread a row.

use super::RowOrder;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::random::Permutation;

pub(super) fn launch(op: RowOrder) -> Option<Launches> {
    let rows = u32::try_from(op.rows).ok()?;
    let [lines, columns] = Permutation::sides(rows);
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("permutation", "permutation")
            .grid([op.rows.div_ceil(256), 1, 1])
            .with(Place::Output(0))
            .with(rows)
            .with(lines)
            .with(columns)
            .with(Place::Control)
            .with(op.seed)
            .with(op.epoch),
    );
    Some(launches)
}
