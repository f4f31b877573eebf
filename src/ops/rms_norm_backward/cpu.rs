//! `rms_norm_backward` on the CPU: the kernel of `layer_norm_backward`, without the mean.

use crate::device::cpu::Launch;
use crate::ops::{Site, layer_norm_backward};

pub(super) fn launch(site: &Site<'_>) -> Launch {
    layer_norm_backward::cpu::launch::<false>(site)
}
