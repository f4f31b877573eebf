//! `softmax` and `log_softmax` on a GPU: `kernels/softmax.cu` and its kin, a row in the registers of
//! some lanes of a warp or of a block.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// A kernel for rows of at most `length` elements.
pub(in crate::ops) struct Form {
    pub(in crate::ops) length: usize,
    /// Part of the kernel's name.
    pub(in crate::ops) name: &'static str,
    /// Threads of a block.
    pub(in crate::ops) block: u32,
    /// Rows of a block.
    pub(in crate::ops) rows: usize,
}

/// A form of a kernel.
pub(in crate::ops) const fn form(
    length: usize,
    name: &'static str,
    block: u32,
    rows: usize,
) -> Form {
    Form { length, name, block, rows }
}

/// The first form whose rows are long enough; the last one takes any.
pub(in crate::ops) fn pick(forms: &[Form], length: usize) -> &Form {
    let fits = forms.iter().find(|form| length <= form.length);
    fits.unwrap_or(&forms[forms.len() - 1])
}

/// Those of `kernels/common/softmax.cuh`.
const FORMS: [Form; 5] = [
    form(32, "32", 256, 32),
    form(1024, "1024", 128, 4),
    form(4096, "4096", 256, 1),
    form(8192, "8192", 512, 1),
    form(usize::MAX, "long", 1024, 1),
];

pub(in crate::ops) fn launch(site: &Site<'_>, op: &'static str) -> Option<Launches> {
    rows(site, op, &FORMS)
}

/// A kernel of rows that takes the inputs and the output of the node.
pub(in crate::ops) fn rows(site: &Site<'_>, op: &'static str, forms: &[Form]) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let mut launches = Launches::new();
    if shape.elements() == 0 {
        return Some(launches);
    }
    let (rows, columns) = (shape.rows(), shape.columns());
    let form = pick(forms, columns);
    let mut kernel = Kernel::new(op, format!("{op}_{}_f32", form.name))
        .grid([rows.div_ceil(form.rows), 1, 1])
        .block(form.block);
    for i in 0..site.inputs.len() {
        kernel = kernel.with(Place::Input(i));
    }
    let number = |count: usize| u32::try_from(count).ok();
    kernel = kernel.with(Place::Output(0)).with(number(rows)?).with(number(columns)?);
    launches.kernel(kernel);
    Some(launches)
}
