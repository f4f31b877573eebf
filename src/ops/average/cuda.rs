//! `average` on a GPU: `kernels/average.cu`. Nothing where copies are to be packed: those are for the CPU.

use super::{Average, Kind};
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(op: &Average, site: &Site<'_>) -> Option<Launches> {
    if op.packed.is_some() {
        return None;
    }
    let elements = site.inputs[0].elements();
    let mut launches = Launches::new();
    let kernel = match op.kind {
        Kind::Ema => Kernel::new("average", "average_ema").with(Place::Output(0)).with(Place::Input(1)),
        Kind::Lookahead => {
            Kernel::new("average", "average_lookahead").with(Place::Output(0)).with(Place::Output(1))
        }
    };
    launches.kernel(
        kernel
            .grid([elements.div_ceil(1024), 1, 1])
            .with(elements as u64)
            .with(Place::Control)
            .with(op.share),
    );
    Some(launches)
}
