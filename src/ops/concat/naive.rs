//! The oracle of `concat`.

use crate::ops::{AxisShape, Values};

pub(super) fn concat(axis: usize, inputs: &[Values], output: &mut Values) {
    let total = AxisShape::known(&output.tensor_type.shape, axis).extent;
    let mut start = 0;
    for input in inputs {
        let AxisShape { outer, extent, inner } = AxisShape::known(&input.tensor_type.shape, axis);
        for o in 0..outer {
            for e in 0..extent {
                for i in 0..inner {
                    let to = (o * total + start + e) * inner + i;
                    output.data[to] = input.data[(o * extent + e) * inner + i];
                }
            }
        }
        start += extent;
    }
}
