//! `layer_norm` and `rms_norm` on a GPU: `kernels/layer_norm.cu` and `kernels/rms_norm.cu`, a row in the
//! registers of a warp or of a block.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;
use crate::ops::softmax::cuda::{Form, form, pick};

/// Those of `kernels/common/norm.cuh`.
const FORMS: [Form; 4] = [
    form(1024, "1024", 128, 4),
    form(4096, "4096", 256, 1),
    form(8192, "8192", 512, 1),
    form(usize::MAX, "long", 1024, 1),
];

/// The kernels of `op` take all inputs and all outputs in order.
pub(in crate::ops) fn launch(site: &Site<'_>, op: &'static str, eps: f32) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let (rows, columns) = (shape.rows(), shape.columns());
    let form = pick(&FORMS, columns);
    let mut kernel = Kernel::new(op, format!("{op}_{}_f32", form.name))
        .grid([rows.div_ceil(form.rows), 1, 1])
        .block(form.block);
    for i in 0..site.inputs.len() {
        kernel = kernel.with(Place::Input(i));
    }
    for i in 0..site.outputs.len() {
        kernel = kernel.with(Place::Output(i));
    }
    let number = |count: usize| u32::try_from(count).ok();
    let mut launches = Launches::new();
    launches.kernel(kernel.with(eps).with(number(rows)?).with(number(columns)?));
    Some(launches)
}
