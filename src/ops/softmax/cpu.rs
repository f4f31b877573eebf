//! `softmax` on the CPU: each row is read once.

use super::rows::{BUFFER, NO_BASES, Row, padded, read, scale};
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, shape) = (site.isa, &site.inputs[0].shape);
    let columns = shape.columns();
    let rows = if columns == 0 { 0 } else { shape.rows() };
    // Two reductions a row, an exponential an element.
    let nanoseconds = 8.0 + 0.5 * columns as f64;
    Launch::new(isa.name()).rows(rows, rows_per_chunk(nanoseconds), move |chunk| {
        dispatch(isa, Softmax { columns, x: chunk.input_rows(0), y: chunk.output(0) });
    })
}

struct Softmax<'a> {
    columns: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Softmax { columns, x, y } = self;
        let buffered = padded::<S>(columns) <= BUFFER;
        let mut buffer = [0.0; BUFFER];
        let mut bases = NO_BASES;
        for (r, x) in x.chunks_exact(columns).enumerate() {
            // The row and what follows, which later rows overwrite.
            let y = &mut y[r * columns..];
            let kept = if buffered { &mut buffer[..] } else { &mut y[..columns] };
            let x = Row::Keep(x, kept);
            let row = read(s, x, usize::MAX, f32::NEG_INFINITY, false, &mut bases);
            let kept = buffered.then_some(&buffer[..]);
            let bases = (!buffered).then_some((&bases, row.max));
            scale(
                s,
                columns,
                kept,
                y,
                bases,
                1.0 / row.sum,
                #[inline(always)]
                |_, _, p| p,
            );
        }
    }
}
