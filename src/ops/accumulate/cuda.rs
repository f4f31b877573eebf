//! `sum += x` on a GPU: the sum of `kernels/binary.cu` over its own operand.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Launches {
    let elements = site.outputs[0].elements();
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("binary", "binary_add_f32")
            .grid([elements.div_ceil(1024), 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(Place::Output(0))
            .with(elements as u64),
    );
    launches
}
