//! `indices` on a GPU: `kernels/indices.cu`.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Launches {
    let elements = site.inputs[0].elements();
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("indices", "indices_u32")
            .grid([elements.div_ceil(256), 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(elements as u64),
    );
    launches
}
