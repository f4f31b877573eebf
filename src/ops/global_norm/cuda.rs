//! The norm of all gradients on a GPU: `kernels/global_norm.cu`, by parts that one block then adds.

use super::GlobalNorm;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// Elements of a part at least, and how many parts there are at most: one block adds them.
const PART: usize = 4096;
const PARTS: usize = 2048;

pub(super) fn launch(op: &GlobalNorm, site: &Site<'_>) -> Option<Launches> {
    let elements = site.inputs[0].elements();
    let part = elements.div_ceil(PARTS).next_multiple_of(1024).max(PART);
    let parts = elements.div_ceil(part);
    let number = |count: usize| u32::try_from(count).ok();
    let mut launches = Launches::new();
    let partials = launches.scratch(parts);
    launches.kernel(
        Kernel::new("global_norm", "global_norm_squares")
            .grid([parts, 1, 1])
            .with(Place::Input(0))
            .with(partials)
            .with(elements as u64)
            .with(number(part)?),
    );
    // The kernel writes both.
    let results = [0, 1].map(|i| match site.used[i] {
        true => Place::Output(i),
        false => launches.scratch(1),
    });
    launches.kernel(
        Kernel::new("global_norm", "global_norm_finish")
            .with(partials)
            .with(results[0])
            .with(results[1])
            .with(number(parts)?)
            .with(Place::Control)
            .with(op.max_norm)
            .with(op.gradient_scale),
    );
    Some(launches)
}
