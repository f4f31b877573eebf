//! `concat` on the CPU: runs of the inputs, one after another.

use crate::device::cpu::Launch;
use crate::ops::segments::{Segment, gather};
use crate::ops::{AxisShape, Site};

pub(super) fn launch(site: &Site<'_>, axis: usize) -> Launch {
    let outer = AxisShape::known(&site.outputs[0].shape, axis).outer;
    let part = |(input, x): (usize, &crate::tensor::TensorType)| {
        let stride = x.elements() / outer.max(1);
        (stride, Segment::Input { input, stride, start: 0 })
    };
    gather(site, outer, site.inputs.iter().enumerate().map(part).collect())
}
