//! `dy f'` on a GPU, for functions that layers have: `kernels/activation_backward.cu` without its sums.
//! Not for gelu, whose derivative loses more digits there, far below zero, than this operation allows.

use super::Kind;
use crate::device::cuda::Launches;
use crate::ops::activation_backward::cuda::{Operands, backward};
use crate::device::cuda::Place;
use crate::ops::{Activation, Site};

pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Option<Launches> {
    let activation = match kind {
        Kind::Sqrt | Kind::Sigmoid | Kind::Gelu => return None,
        Kind::Tanh => Activation::Tanh,
        Kind::Relu => Activation::Relu,
        Kind::Silu => Activation::Silu,
    };
    let shape = &site.inputs[0].shape;
    let (rows, columns) = if shape.rank() == 0 { (1, 1) } else { (shape.rows(), shape.columns()) };
    let operands = Operands {
        dy: Place::Input(1),
        saved: Place::Input(0),
        dz: Place::Output(0),
        sum: None,
    };
    backward(activation, rows, columns, operands)
}
