//! `batch` on a GPU: `kernels/batch.cu`, a thread for four features of a row.

use crate::device::U64Slot;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;
use crate::tensor::DType;

/// Nothing for 2^32 rows or features or more.
pub(super) fn launch(site: &Site<'_>, offset: U64Slot) -> Option<Launches> {
    let &[rows, features] = site.inputs[0].shape.extents() else { return None };
    let name = match site.inputs[0].dtype {
        DType::U8 => "batch_u8_f32",
        DType::F32 => "batch_f32_f32",
        DType::Bf16 | DType::U32 => return None,
    };
    let size = site.outputs[1].elements();
    let number = |count: usize| u32::try_from(count).ok();
    let inputs = (0..5).map(Place::Input);
    let kernel = inputs.fold(Kernel::new("batch", name), Kernel::with);
    let mut launches = Launches::new();
    launches.kernel(
        kernel
            .grid([(size * features.div_ceil(4).max(1)).div_ceil(256), 1, 1])
            .with(Place::Output(0))
            .with(Place::Output(1))
            .with(number(size)?)
            .with(number(rows)?)
            .with(number(features)?)
            .with(number(site.inputs[2].elements())?)
            .with(Place::Control)
            .with(offset),
    );
    Some(launches)
}
