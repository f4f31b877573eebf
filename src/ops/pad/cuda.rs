//! `pad` on a GPU: rows of zeros, the input and zeros, by `kernels/copy.cu`.

use crate::device::cuda::Launches;
use crate::ops::segments::Segment;
use crate::ops::{AxisShape, Site, places};

pub(super) fn launch(site: &Site<'_>, shape: AxisShape, before: usize, after: usize) -> Launches {
    let AxisShape { outer, extent, inner } = shape;
    let run = extent * inner;
    let parts = [
        (before * inner, Segment::Zeros),
        (run, Segment::Input { input: 0, stride: run, start: 0 }),
        (after * inner, Segment::Zeros),
    ];
    places::gather(site, outer, &parts)
}
