//! Gradients of elementwise functions on the CPU: one pass.

use super::Kind;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, map2, math};
use crate::device::cpu::Launch;
use crate::ops::Site;
use crate::ops::layout::elements_per_chunk;

/// 12 bytes an element at some 10 GB/s, and some 50 operations a nanosecond.
fn nanoseconds(kind: Kind) -> f64 {
    1.2 + 0.02 * kind.flops()
}

pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    Launch::new(isa.name()).rows(elements, elements_per_chunk(nanoseconds(kind)), move |chunk| {
        let (v, dy, dx) = (chunk.input_rows(0), chunk.input_rows(1), chunk.output(0));
        dispatch(isa, UnaryGradient { kind, v, dy, dx });
    })
}

struct UnaryGradient<'a> {
    kind: Kind,
    v: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for UnaryGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kind {
            Kind::Sqrt => self.each(
                s,
                #[inline(always)]
                |s, y, dy| s.div(s.mul(dy, s.splat(0.5)), y),
            ),
            // (1 - y)(1 + y), not 1 - y^2: 1 - y is exact where y is near 1.
            Kind::Tanh => self.each(
                s,
                #[inline(always)]
                |s, y, dy| {
                    let one = s.splat(1.0);
                    s.mul(dy, s.mul(s.sub(one, y), s.add(one, y)))
                },
            ),
            Kind::Sigmoid => self.each(
                s,
                #[inline(always)]
                |s, y, dy| s.mul(dy, s.mul(y, s.sub(s.splat(1.0), y))),
            ),
            // y <= 0 is false for NaN, so that it lets dy pass, as PyTorch's does.
            Kind::Relu => self.each(
                s,
                #[inline(always)]
                |s, y, dy| s.select(s.le(y, s.zero()), s.zero(), dy),
            ),
            Kind::Gelu => self.each(
                s,
                #[inline(always)]
                |s, x, dy| s.mul(dy, math::gelu_grad(s, x)),
            ),
            Kind::Silu => self.each(
                s,
                #[inline(always)]
                |s, x, dy| s.mul(dy, math::silu_grad(s, x)),
            ),
        }
    }
}

impl UnaryGradient<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S, S::F32, S::F32) -> S::F32) {
        map2(s, self.v, self.dy, self.dx, f);
    }
}
