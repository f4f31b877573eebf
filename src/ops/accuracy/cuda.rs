//! `accuracy` on a GPU: `kernels/accuracy.cu`, a warp or a block for each row, and one block that counts.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// Classes from which on a row has a block of its own.
const LONG: usize = 1024;

/// Nothing for 2^32 rows or classes or more.
pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let (rows, classes) = (shape.rows(), shape.columns());
    let number = |count: usize| u32::try_from(count).ok();
    let (kind, blocks) = match classes {
        LONG.. => ("block", rows),
        _ => ("warp", rows.div_ceil(8)),
    };
    let mut launches = Launches::new();
    let found = launches.scratch(rows);
    launches.kernel(
        Kernel::new("accuracy", format!("accuracy_rows_{kind}"))
            .grid([blocks, 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(found)
            .with(number(rows)?)
            .with(number(classes)?),
    );
    launches.kernel(
        Kernel::new("accuracy", "accuracy_count")
            .block(1024)
            .with(found)
            .with(Place::Output(0))
            .with(number(rows)?),
    );
    Some(launches)
}
