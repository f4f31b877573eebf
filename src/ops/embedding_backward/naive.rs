//! The oracle of `embedding_backward`.

use crate::ops::Values;

pub(super) fn embedding_backward(dy: &Values, indices: &Values, dtable: &mut Values) {
    let rows = dtable.tensor_type.shape.extents()[0];
    for (r, &index) in indices.data.iter().enumerate().filter(|(_, i)| (**i as usize) < rows) {
        for (sum, &x) in dtable.row_mut(index as usize).iter_mut().zip(dy.row(r)) {
            *sum += x;
        }
    }
}
