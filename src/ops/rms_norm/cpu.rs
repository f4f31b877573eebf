//! `rms_norm` on the CPU: a row comes from memory once, and is read once more from the cache.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, dot, map2};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// The reduction and the root of one row.
const ROW_NANOSECONDS: f64 = 15.0;
/// 8 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 0.8;

pub(super) fn launch(site: &Site<'_>, eps: f32) -> Launch {
    let (isa, x) = (site.isa, &site.inputs[0].shape);
    let columns = x.columns();
    let per_chunk = rows_per_chunk(ROW_NANOSECONDS + NANOSECONDS * columns as f64);
    Launch::new(isa.name()).rows(x.rows(), per_chunk, move |chunk| {
        let normalise = Normalise {
            x: chunk.input_rows(0),
            gamma: chunk.input(1),
            y: chunk.output(0),
            rstds: chunk.output(1),
            eps,
        };
        dispatch(isa, normalise);
    })
}

struct Normalise<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    /// Empty where nobody reads them.
    y: &'a mut [f32],
    rstds: &'a mut [f32],
    eps: f32,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.gamma.len();
        for (r, x) in self.x.chunks_exact(columns).enumerate() {
            let rstd = 1.0 / (dot(s, x, x) / columns as f32 + self.eps).sqrt();
            if !self.y.is_empty() {
                let y = &mut self.y[r * columns..][..columns];
                let rstd = s.splat(rstd);
                map2(
                    s,
                    x,
                    self.gamma,
                    y,
                    #[inline(always)]
                    |s, x, gamma| s.mul(s.mul(x, rstd), gamma),
                );
            }
            if let Some(out) = self.rstds.get_mut(r) {
                *out = rstd;
            }
        }
    }
}
