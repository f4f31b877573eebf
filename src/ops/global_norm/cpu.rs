//! `global_norm` on the CPU: squares summed by chunk, then the chunks in order.

use super::GlobalNorm;
use crate::device::cpu::Launch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, dot};
use crate::ops::Site;

/// Elements of a chunk: some microseconds at memory speed, and whole cache lines.
const CHUNK: usize = 16 * 1024;

/// Elements that are summed in f32.
const BLOCK: usize = 1024;

pub(super) fn launch(op: GlobalNorm, site: &Site<'_>) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    Launch::new(isa.name())
        .rows_with_partials(elements, CHUNK, 2, move |chunk| {
            let gradients = &chunk.input::<f32>(0)[chunk.row_range()];
            // The two f32 of a chunk are the halves of one f64.
            let partial: &mut [f64] = bytemuck::cast_slice_mut(chunk.partials());
            partial[0] = dispatch(isa, Squares { gradients });
        })
        .serial(move |chunk| {
            let chunks = elements.div_ceil(CHUNK);
            let partials: &[f64] = bytemuck::cast_slice(&chunk.all_partials()[..2 * chunks]);
            let (norm, factor) = op.finish(partials.iter().sum(), chunk.control());
            for (output, value) in [(0, norm), (1, factor)] {
                // Empty if nobody reads it.
                chunk.output::<f32>(output).fill(value as f32);
            }
        })
}

struct Squares<'a> {
    gradients: &'a [f32],
}

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut sum = 0.0;
        for block in self.gradients.chunks(BLOCK) {
            sum += f64::from(dot(s, block, block));
        }
        sum
    }
}
