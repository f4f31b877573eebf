//! `orthogonal_gradient` on a GPU: `kernels/orthogonal_gradient.cu`, with the pieces of the update.

use super::OrthogonalGradient;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::update::cuda::{number, pieces};

pub(super) fn launch(op: &OrthogonalGradient) -> Option<Launches> {
    let (pieces, first_piece) = pieces(&op.segments)?;
    let segments = op.segments.len();
    let mut launches = Launches::new();
    let (table, first) = (launches.table(&pieces), launches.table(&first_piece));
    let sums = launches.scratch(3 * pieces.len());
    let projections = launches.scratch(2 * segments);
    launches.kernel(
        Kernel::new("orthogonal_gradient", "orthogonal_gradient_sums")
            .grid([pieces.len(), 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(table)
            .with(sums),
    );
    launches.kernel(
        Kernel::new("orthogonal_gradient", "orthogonal_gradient_finish")
            .grid([segments.div_ceil(8), 1, 1])
            .with(sums)
            .with(first)
            .with(projections)
            .with(number(segments)?),
    );
    launches.kernel(
        Kernel::new("orthogonal_gradient", "orthogonal_gradient_project")
            .grid([pieces.len(), 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(table)
            .with(projections),
    );
    Some(launches)
}
