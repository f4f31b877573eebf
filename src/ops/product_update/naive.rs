//! The oracle: the product in f64, then the oracle of `update`.

use super::{ProductUpdate, update};
use crate::device::Control;
use crate::ops::Values;
use crate::tensor::TensorType;

/// `outputs`: weights and moments as they were, to be updated; then statistics and packed copies.
pub(super) fn product_update(
    op: &ProductUpdate,
    inputs: &[Values],
    outputs: &mut [Values],
    control: &Control,
) {
    let (x, dz, weight) = (&inputs[0], &inputs[1], &inputs[2]);
    let mut gradient = Values::zeros(TensorType::f32(weight.tensor_type.shape.clone()));
    for row in 0..x.rows() {
        for (i, x) in x.row(row).iter().enumerate() {
            for (j, dz) in dz.row(row).iter().enumerate() {
                gradient.row_mut(i)[j] += x * dz;
            }
        }
    }
    let mut of_update = vec![weight.clone(), gradient];
    of_update.extend_from_slice(&inputs[3..]);
    update::naive::update(&op.update, &of_update, outputs, control);
}
