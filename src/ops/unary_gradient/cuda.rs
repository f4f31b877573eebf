//! Gradients of functions of each element on a GPU: `kernels/unary_gradient.cu`, four elements a thread.

use super::Kind;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Launches {
    let name = match kind {
        Kind::Sqrt => "sqrt",
        Kind::Tanh => "tanh",
        Kind::Sigmoid => "sigmoid",
        Kind::Relu => "relu",
        Kind::Gelu => "gelu",
        Kind::Silu => "silu",
    };
    let elements = site.outputs[0].elements();
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("unary_gradient", format!("unary_gradient_{name}_f32"))
            .grid([elements.div_ceil(1024), 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(Place::Output(0))
            .with(elements as u64),
    );
    launches
}
