//! `rms_norm_backward` on a GPU: `kernels/rms_norm_backward.cu`, which is that of `layer_norm_backward`
//! without the mean.

use crate::device::cuda::Launches;
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    crate::ops::layer_norm_backward::cuda::launch(site, "rms_norm_backward", false)
}
