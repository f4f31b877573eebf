//! `log_softmax` on a GPU: `kernels/log_softmax.cu`, with the forms of `softmax`.

use crate::device::cuda::Launches;
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    crate::ops::softmax::cuda::launch(site, "log_softmax")
}
