//! `pad` on the CPU: runs of zeros and of the input, one after another.

use crate::device::cpu::Launch;
use crate::ops::segments::{Segment, gather};
use crate::ops::{AxisShape, Site};

pub(super) fn launch(site: &Site<'_>, shape: AxisShape, before: usize, after: usize) -> Launch {
    let AxisShape { outer, extent, inner } = shape;
    let run = extent * inner;
    let parts = vec![
        (before * inner, Segment::Zeros),
        (run, Segment::Input { input: 0, stride: run, start: 0 }),
        (after * inner, Segment::Zeros),
    ];
    gather(site, outer, parts)
}
