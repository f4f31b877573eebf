//! `softmax_backward` on a GPU: `kernels/softmax_backward.cu`, a row in the registers of some lanes of
//! a warp or of a block.

use crate::device::cuda::Launches;
use crate::ops::Site;
use crate::ops::softmax::cuda::{Form, form, rows};

const FORMS: [Form; 4] = [
    form(32, "32", 256, 32),
    form(512, "512", 128, 4),
    form(4096, "4096", 256, 1),
    form(usize::MAX, "long", 1024, 1),
];

pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    rows(site, "softmax_backward", &FORMS)
}
