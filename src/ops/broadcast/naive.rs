//! The oracle of `broadcast`.

use crate::ops::Values;
use crate::ops::layout::broadcast_index;
use crate::tensor::Shape;

/// `aligned` is the shape of `x` with an extent of 1 at every axis that it lacks.
pub(super) fn broadcast(x: &Values, aligned: &Shape, y: &mut Values) {
    let shape = &y.tensor_type.shape;
    for (i, y) in y.data.iter_mut().enumerate() {
        *y = x.data[broadcast_index(i, aligned, shape)];
    }
}
