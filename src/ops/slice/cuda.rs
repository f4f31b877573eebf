//! `slice` on a GPU: rows of one part, by `kernels/copy.cu`.

use crate::device::cuda::Launches;
use crate::ops::segments::Segment;
use crate::ops::{AxisShape, Site, places};

pub(super) fn launch(site: &Site<'_>, shape: AxisShape, start: usize) -> Launches {
    let AxisShape { outer, extent, inner } = shape;
    let part = Segment::Input { input: 0, stride: extent * inner, start: start * inner };
    places::gather(site, outer, &[(site.outputs[0].elements() / outer.max(1), part)])
}
