//! `log_softmax` on the CPU: each row is read from memory once, and again from the cache.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, map1, math};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use crate::ops::softmax::rows::{NO_BASES, Row, first_largest, read};

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, shape) = (site.isa, &site.inputs[0].shape);
    let columns = shape.columns();
    let rows = if columns == 0 { 0 } else { shape.rows() };
    // Three reductions and a logarithm a row, an exponential an element.
    let nanoseconds = 15.0 + 0.5 * columns as f64;
    Launch::new(isa.name()).rows(rows, rows_per_chunk(nanoseconds), move |chunk| {
        dispatch(isa, LogSoftmax { columns, x: chunk.input_rows(0), y: chunk.output(0) });
    })
}

struct LogSoftmax<'a> {
    columns: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for LogSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut bases = NO_BASES;
        let rows = self.x.chunks_exact(self.columns);
        for (x, y) in rows.zip(self.y.chunks_exact_mut(self.columns)) {
            // The largest element is left out of the sum, where it would be 1, so that log1p sees
            // what is small beside it. A row that holds NaN has none, and its sum is NaN.
            let top = first_largest(s, x).unwrap_or(usize::MAX);
            let start = x.get(top).copied().unwrap_or(f32::NAN);
            let row = read(s, Row::Read(x), top, start, false, &mut bases);
            let max = s.splat(start);
            let log = math::log_1p(s, s.splat(row.sum));
            map1(
                s,
                x,
                y,
                #[inline(always)]
                |s, x| s.sub(s.sub(x, max), log),
            );
        }
    }
}
