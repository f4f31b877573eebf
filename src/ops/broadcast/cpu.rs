//! `broadcast` on the CPU: rows are copied, or filled with one value.

use crate::device::cpu::Launch;
use crate::ops::Site;
use crate::ops::layout::{Walk, broadcast_strides, elements_per_chunk};
use crate::tensor::Shape;

/// 8 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 0.8;

pub(super) fn launch(site: &Site<'_>, aligned: &Shape) -> Launch {
    let output = &site.outputs[0].shape;
    let walk = Walk::new(output.extents(), [broadcast_strides(aligned, output)]);
    let [along] = walk.along();
    let per_chunk = elements_per_chunk(NANOSECONDS);
    Launch::new("memmove").rows(output.elements(), per_chunk, move |chunk| {
        let (x, y) = (chunk.input::<f32>(0), chunk.output::<f32>(0));
        walk.rows(chunk.row_range(), |[start], row| {
            let y = &mut y[row];
            if along {
                y.copy_from_slice(&x[start..][..y.len()]);
            } else {
                y.fill(x[start]);
            }
        });
    })
}
