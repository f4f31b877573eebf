//! `permutation` on the CPU: some tens of rows go through the rounds together, in the lanes of vectors.

use super::RowOrder;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use crate::random::Permutation;

/// Twenty rounds of some 14 instructions on 16 lanes.
const NANOSECONDS: f64 = 8.0;

pub(super) fn launch(site: &Site<'_>, op: RowOrder) -> Launch {
    let (isa, rows) = (site.isa, op.rows);
    Launch::new(isa.name()).rows(rows, rows_per_chunk(NANOSECONDS), move |chunk| {
        let control = chunk.control();
        let fill = Fill {
            permutation: Permutation::new(
                control.u64(op.seed),
                control.u64(op.epoch),
                rows as u32,
            ),
            first: chunk.row_range().start,
            order: chunk.output(0),
        };
        dispatch(isa, fill);
    })
}

struct Fill<'a> {
    permutation: Permutation,
    first: usize,
    order: &'a mut [u32],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.permutation.fill(self.first, self.order);
    }
}
