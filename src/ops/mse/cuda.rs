//! `mse` on a GPU: `kernels/mse.cu`, sums by parts that one block then adds.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// Elements of a part.
const PART: usize = 4096;

pub(super) fn launch(site: &Site<'_>) -> Launches {
    let elements = site.inputs[0].elements();
    let parts = elements.div_ceil(PART);
    let mut launches = Launches::new();
    let partials = launches.scratch(parts);
    launches.kernel(
        Kernel::new("mse", "mse_squares")
            .grid([parts, 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(partials)
            .with(elements as u64)
            .with(PART as u32),
    );
    launches.kernel(
        Kernel::new("mse", "mse_mean")
            .with(partials)
            .with(Place::Output(0))
            .with(parts as u64)
            .with(elements as u64),
    );
    launches
}
