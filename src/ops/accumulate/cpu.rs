//! `accumulate` on the CPU: one pass over both tensors.

use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// 12 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 1.2;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    Launch::new(isa.name()).rows(elements, rows_per_chunk(NANOSECONDS), move |chunk| {
        let (sum, x) = (chunk.output(0), chunk.input_rows(1));
        dispatch(isa, AddTo { sum, x });
    })
}

struct AddTo<'a> {
    sum: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.sum.len(), self.x.len());
        for (sum, x) in self.sum.chunks_mut(S::LANES).zip(self.x.chunks(S::LANES)) {
            let total = s.add(s.load_slice(sum), s.load_slice(x));
            s.store_slice(sum, total);
        }
    }
}
