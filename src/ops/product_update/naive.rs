//! The oracle: the product in f64, then the oracle of `update`.

use super::{ProductUpdate, update};
use crate::device::Control;
use crate::ops::Values;
use crate::ops::matmul::Products;
use crate::ops::matmul::naive::matmul;

/// `outputs`: weights and moments as they were, to be updated; then statistics and packed copies.
pub(super) fn product_update(
    op: &ProductUpdate,
    inputs: &[Values],
    outputs: &mut [Values],
    control: &Control,
) {
    let (x, dz, weight) = (&inputs[0], &inputs[1], &inputs[2]);
    let mut gradient = Values::zeros(weight.tensor_type.clone());
    let spec = op.spec(&[x.tensor_type.clone(), dz.tensor_type.clone()]);
    matmul(&Products { batches: 1, spec }, &x.data, &dz.data, &mut gradient.data);
    let mut of_update = vec![weight.clone(), gradient];
    of_update.extend_from_slice(&inputs[3..]);
    update::naive::update(&op.update, &of_update, outputs, control);
}
