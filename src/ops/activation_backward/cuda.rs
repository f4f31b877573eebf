//! `activation_backward` on a GPU: `kernels/activation_backward.cu`. Sums of rows are formed by parts,
//! which a second kernel adds in order.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::{Activation, Site};

/// Rows of a part at least, four for each warp, and how many parts there are at most.
const PART: usize = 32;
const PARTS: usize = 64;

/// What it works on, `rows x columns` each.
pub(in crate::ops) struct Operands {
    pub(in crate::ops) dy: Place,
    pub(in crate::ops) saved: Place,
    pub(in crate::ops) dz: Place,
    /// The sum over the rows, where somebody reads it.
    pub(in crate::ops) sum: Option<Place>,
}

pub(super) fn launch(site: &Site<'_>, activation: Activation) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let operands = Operands {
        dy: Place::Input(0),
        saved: Place::Input(1),
        dz: Place::Output(0),
        sum: site.used[1].then_some(Place::Output(1)),
    };
    backward(activation, shape.rows(), shape.columns(), operands)
}

/// `dz = dy act'(saved)` and its sum. Nothing for 2^31 rows or columns or more.
pub(in crate::ops) fn backward(
    activation: Activation,
    rows: usize,
    columns: usize,
    operands: Operands,
) -> Option<Launches> {
    let number = |count: usize| i32::try_from(count).ok().map(|count| count as u32);
    let (rows, width) = (number(rows)?, number(columns)?);
    let parts = (rows as usize).div_ceil(PART).min(PARTS);
    let rows_per_part = rows.div_ceil(parts.max(1) as u32).max(1);
    let parts = rows.div_ceil(rows_per_part);
    let mut launches = Launches::new();
    let partials = match operands.sum {
        Some(_) => launches.scratch(parts as usize * columns),
        None => Place::Null,
    };
    launches.kernel(
        Kernel::new("activation_backward", format!("activation_backward_{activation}_f32"))
            .grid([columns.div_ceil(32), parts as usize, 1])
            .with(operands.dy)
            .with(operands.saved)
            .with(operands.dz)
            .with(partials)
            .with(rows)
            .with(width)
            .with(rows_per_part),
    );
    if let Some(sum) = operands.sum {
        launches.kernel(
            Kernel::new("activation_backward", "column_sum_f32")
                .grid([columns.div_ceil(256), 1, 1])
                .with(partials)
                .with(sum)
                .with(parts)
                .with(width)
                .with(1.0f32),
        );
    }
    Some(launches)
}
