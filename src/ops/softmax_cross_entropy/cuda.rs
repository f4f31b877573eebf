//! Softmax and cross-entropy on a GPU: `kernels/softmax_cross_entropy.cu`, with half a warp, a warp or
//! a block for each row, and one block that adds the rows' results.

use super::Targets;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>, targets: Targets) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let (rows, classes) = (shape.rows(), shape.columns());
    let (kind, smoothing) = match targets {
        Targets::Labels { smoothing } => ("labels", smoothing),
        Targets::Distributions => ("distributions", 0.0),
    };
    let (size, block, blocks) = match classes {
        0..=16 => ("16", 128, rows.div_ceil(8)),
        17..=256 => ("256", 128, rows.div_ceil(4)),
        _ => ("block", 256, rows),
    };
    let number = |count: usize| u32::try_from(count).ok();
    let mut launches = Launches::new();
    // Four numbers a row.
    let results = launches.scratch(4 * rows);
    launches.kernel(
        Kernel::new("softmax_cross_entropy", format!("softmax_cross_entropy_f32_{kind}_{size}"))
            .grid([blocks, 1, 1])
            .block(block)
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(smoothing)
            .with(Place::Output(1))
            .with(Place::Output(3))
            .with(results)
            .with(number(rows)?)
            .with(number(classes)?),
    );
    if site.used[0] || site.used[2] {
        // The kernel writes both.
        let mut place = |i: usize, count: usize| match site.used[i] {
            true => Place::Output(i),
            false => launches.scratch(count),
        };
        let (loss, statistics) = (place(0, 1), place(2, 4));
        launches.kernel(
            Kernel::new("softmax_cross_entropy", "softmax_cross_entropy_finish")
                .block(1024)
                .with(results)
                .with(loss)
                .with(statistics)
                .with(number(rows)?)
                .with(number(classes)?),
        );
    }
    Some(launches)
}
