//! `accuracy` on the CPU: the largest value of each row, then a look whether it is the label's.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, max};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, shape) = (site.isa, &site.inputs[0].shape);
    let (rows, classes) = (shape.rows(), shape.columns());
    // One reduction a row, 4 bytes an element at some 10 GB/s.
    let per_chunk = rows_per_chunk(4.0 + 0.4 * classes as f64);
    let launch = Launch::new(isa.name());
    if rows <= per_chunk {
        return launch.serial(move |chunk| {
            let (logits, labels) = (chunk.input(0), chunk.input(1));
            chunk.output(0).fill(dispatch(isa, Right { classes, logits, labels }));
        });
    }
    let chunks = rows.div_ceil(per_chunk);
    let launch = launch.rows_with_partials(rows, per_chunk, 1, move |chunk| {
        let (logits, labels) = (chunk.input_rows(0), chunk.input_rows(1));
        chunk.partials()[0] = dispatch(isa, Right { classes, logits, labels });
    });
    launch.serial(move |chunk| {
        let counts = chunk.all_partials()[..chunks].iter().map(|&x| f64::from(x));
        chunk.output(0).fill(counts.sum::<f64>() as f32);
    })
}

/// Number of right rows, NaN if a label is not a class.
struct Right<'a> {
    classes: usize,
    logits: &'a [f32],
    labels: &'a [u32],
}

impl Kernel for Right<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut right = 0u32;
        for (z, &label) in self.logits.chunks_exact(self.classes).zip(self.labels) {
            let label = label as usize;
            let Some(&own) = z.get(label) else { return f32::NAN };
            // The maximum of a row that holds NaN is NaN, which equals nothing.
            right += u32::from(max(s, z) == own && !z[..label].contains(&own));
        }
        right as f32
    }
}
