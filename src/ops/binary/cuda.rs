//! Elementwise arithmetic on a GPU: `kernels/binary.cu`.

use super::Kind;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::layout::broadcast_strides;
use crate::ops::{Site, places};

/// Nothing for shapes of more axes than kernels walk, or an axis of 2^32 elements or more.
pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Option<Launches> {
    let name = match kind {
        Kind::Add => "add",
        Kind::Sub => "sub",
        Kind::Mul => "mul",
        Kind::Div => "div",
        Kind::Equal => "equal",
    };
    let output = &site.outputs[0].shape;
    let elements = site.outputs[0].elements();
    let same = site.inputs.iter().all(|input| input.elements() == elements);
    let kind = if same { "f32" } else { "broadcast_f32" };
    let kernel = Kernel::new("binary", format!("binary_{name}_{kind}"))
        .grid([elements.div_ceil(1024), 1, 1])
        .with(Place::Input(0))
        .with(Place::Input(1))
        .with(Place::Output(0))
        .with(elements as u64);
    let mut launches = Launches::new();
    launches.kernel(match same {
        true => kernel,
        false => {
            let strides = [0, 1].map(|i| broadcast_strides(&site.inputs[i].shape, output));
            kernel.with(places::axes(output.extents(), &strides, 4)?)
        }
    });
    Some(launches)
}
