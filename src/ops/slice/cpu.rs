//! `slice` on the CPU: runs of the input, one after another.

use crate::device::cpu::Launch;
use crate::ops::segments::{Segment, gather};
use crate::ops::{AxisShape, Site};

pub(super) fn launch(site: &Site<'_>, shape: AxisShape, start: usize) -> Launch {
    let AxisShape { outer, extent, inner } = shape;
    let elements = site.outputs[0].elements();
    let part =
        Segment::Input { input: 0, stride: extent * inner, start: start * inner };
    gather(site, outer, vec![(elements / outer.max(1), part)])
}
