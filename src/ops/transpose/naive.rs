//! The oracle of `transpose`.

use crate::ops::Values;

pub(super) fn transpose(perm: &[usize], x: &Values, y: &mut [f64]) {
    let (extents, strides) = (x.tensor_type.shape.extents(), x.tensor_type.shape.strides());
    for (to, y) in y.iter_mut().enumerate() {
        let (mut rest, mut from) = (to, 0);
        for &axis in perm.iter().rev() {
            from += rest % extents[axis] * strides[axis];
            rest /= extents[axis];
        }
        *y = x.data[from];
    }
}
