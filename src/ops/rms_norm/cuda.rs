//! `rms_norm` on a GPU: `kernels/rms_norm.cu`, with the forms of `layer_norm`.

use crate::device::cuda::Launches;
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>, eps: f32) -> Option<Launches> {
    crate::ops::layer_norm::cuda::launch(site, "rms_norm", eps)
}
