//! `embedding` on a GPU: `kernels/embedding.cu`, four elements a thread.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// Nothing for a table of 2^32 rows or columns or more.
pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    let &[rows, columns] = site.inputs[0].shape.extents() else { return None };
    let elements = site.outputs[0].elements();
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("embedding", "embedding_f32")
            .grid([elements.div_ceil(1024), 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(Place::Output(0))
            .with(elements as u64)
            .with(u32::try_from(rows).ok()?)
            .with(u32::try_from(columns).ok()?),
    );
    Some(launches)
}
