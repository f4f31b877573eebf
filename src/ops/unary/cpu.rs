//! Elementwise functions on the CPU: one pass.

use super::Kind;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, map1, math};
use crate::device::cpu::Launch;
use crate::ops::Site;
use crate::ops::layout::elements_per_chunk;

/// 8 bytes an element at some 10 GB/s, and some 50 operations a nanosecond.
fn nanoseconds(kind: Kind) -> f64 {
    0.8 + 0.02 * kind.flops()
}

pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    Launch::new(isa.name()).rows(elements, elements_per_chunk(nanoseconds(kind)), move |chunk| {
        let (x, y) = (chunk.input_rows(0), chunk.output(0));
        dispatch(isa, Unary { kind, x, y });
    })
}

struct Unary<'a> {
    kind: Kind,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Unary<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Unary { kind, x, y } = self;
        match kind {
            Kind::Neg => map1(s, x, y, S::neg),
            Kind::Exp => map1(s, x, y, math::exp),
            Kind::Log => map1(s, x, y, math::log),
            Kind::Sqrt => map1(s, x, y, S::sqrt),
            Kind::Tanh => map1(s, x, y, math::tanh),
            Kind::Sigmoid => map1(s, x, y, math::sigmoid),
            Kind::Relu => map1(s, x, y, math::relu),
            Kind::Gelu => map1(s, x, y, math::gelu),
            Kind::Silu => map1(s, x, y, math::silu),
        }
    }
}
