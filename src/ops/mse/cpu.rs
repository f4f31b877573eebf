//! `mse` on the CPU: one pass, a partial sum a chunk, added in order.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, fold2};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// 8 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 0.8;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    let (launch, per_chunk) = (Launch::new(isa.name()), rows_per_chunk(NANOSECONDS));
    let mean = move |sum: f64| (sum / elements as f64) as f32;
    if elements <= per_chunk {
        return launch.serial(move |chunk| {
            let (prediction, target) = (chunk.input(0), chunk.input(1));
            let sum = dispatch(isa, SquaredDistance { prediction, target });
            chunk.output(0).fill(mean(f64::from(sum)));
        });
    }
    let chunks = elements.div_ceil(per_chunk);
    let launch = launch.rows_with_partials(elements, per_chunk, 1, move |chunk| {
        let (prediction, target) = (chunk.input_rows(0), chunk.input_rows(1));
        chunk.partials()[0] = dispatch(isa, SquaredDistance { prediction, target });
    });
    launch.serial(move |chunk| {
        let sum = chunk.all_partials()[..chunks].iter().map(|&x| f64::from(x)).sum();
        chunk.output(0).fill(mean(sum));
    })
}

struct SquaredDistance<'a> {
    prediction: &'a [f32],
    target: &'a [f32],
}

impl Kernel for SquaredDistance<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let acc = fold2(
            s,
            self.prediction,
            self.target,
            s.zero(),
            #[inline(always)]
            |s, acc, a, b| {
                let difference = s.sub(a, b);
                s.mul_add(difference, difference, acc)
            },
            S::add,
        );
        s.reduce_add(acc)
    }
}
