//! The oracle of `slice`.

use crate::ops::AxisShape;
use std::ops::Range;

pub(super) fn slice(shape: AxisShape, range: Range<usize>, x: &[f64], y: &mut [f64]) {
    let AxisShape { outer, extent, inner } = shape;
    for o in 0..outer {
        for (to, from) in range.clone().enumerate() {
            for i in 0..inner {
                y[(o * range.len() + to) * inner + i] = x[(o * extent + from) * inner + i];
            }
        }
    }
}
