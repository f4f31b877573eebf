//! The oracle of `softmax_backward`.

use crate::ops::Values;

pub(super) fn softmax_backward(inputs: &[Values], dx: &mut Values) {
    let (y, dy) = (&inputs[0], &inputs[1]);
    if y.data.is_empty() {
        return;
    }
    for r in 0..y.rows() {
        let dot: f64 = y.row(r).iter().zip(dy.row(r)).map(|(y, dy)| y * dy).sum();
        for ((dx, y), dy) in dx.row_mut(r).iter_mut().zip(y.row(r)).zip(dy.row(r)) {
            *dx = y * (dy - dot);
        }
    }
}
