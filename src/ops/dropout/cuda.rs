//! `dropout` on a GPU: `kernels/dropout.cu`, with the mask of the CPU, bit for bit.

use super::Dropout;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>, op: &Dropout) -> Option<Launches> {
    let elements = site.inputs[0].elements();
    let [low, high] = op.key();
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("dropout", "dropout_f32")
            .grid([elements.div_ceil(1024), 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(elements as u64)
            .with(low)
            .with(high)
            .with(op.p)
            // In f64: in f32, 1 - p would be rounded before the division.
            .with((1.0 / (1.0 - f64::from(op.p))) as f32)
            .with(Place::Control)
            .with(u32::try_from(op.counter.index()).ok()?),
    );
    Some(launches)
}
