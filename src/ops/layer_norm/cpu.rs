//! `layer_norm` on the CPU: a row comes from memory once, and is read twice more from the cache.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, map3, sum};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// Reductions and the root of one row.
const ROW_NANOSECONDS: f64 = 20.0;
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
            beta: chunk.input(2),
            y: chunk.output(0),
            means: chunk.output(1),
            rstds: chunk.output(2),
            eps,
        };
        dispatch(isa, normalise);
    })
}

struct Normalise<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    /// Empty where nobody reads them.
    y: &'a mut [f32],
    means: &'a mut [f32],
    rstds: &'a mut [f32],
    eps: f32,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.gamma.len();
        for (r, x) in self.x.chunks_exact(columns).enumerate() {
            let (mean, variance) = moments(s, x);
            let rstd = 1.0 / (variance + self.eps).sqrt();
            if !self.y.is_empty() {
                let y = &mut self.y[r * columns..][..columns];
                let (mean, rstd) = (s.splat(mean), s.splat(rstd));
                map3(
                    s,
                    x,
                    self.gamma,
                    self.beta,
                    y,
                    #[inline(always)]
                    |s, x, gamma, beta| s.mul_add(s.mul(s.sub(x, mean), rstd), gamma, beta),
                );
            }
            if let Some(out) = self.means.get_mut(r) {
                *out = mean;
            }
            if let Some(out) = self.rstds.get_mut(r) {
                *out = rstd;
            }
        }
    }
}

/// Mean and variance (divided by n) by two passes. The second one also sums the differences
/// themselves, which corrects what rounding did to the mean of the first.
/// Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let scale = 1.0 / x.len() as f32;
    let first = sum(s, x) * scale;
    let splat = s.splat(first);
    let [differences, squares] = fold_pair(
        s,
        [x],
        #[inline(always)]
        |s, [difference, square], [x]| {
            let d = s.sub(x, splat);
            [s.add(difference, d), s.mul_add(d, d, square)]
        },
    );
    let correction = differences * scale;
    // Rounding may take the difference below zero by an ulp.
    let variance = squares * scale - correction * correction;
    (first + correction, if variance < 0.0 { 0.0 } else { variance })
}

/// Two sums over the elements of all inputs, in one pass: `f` adds a vector of each to both. Two
/// vectors are under way at once; the order depends on the length alone.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub(in crate::ops) fn fold_pair<S: Simd, const N: usize>(
    s: S,
    ins: [&[f32]; N],
    f: impl Fn(S, [S::F32; 2], [S::F32; N]) -> [S::F32; 2],
) -> [f32; 2] {
    let len = ins.first().map_or(0, |x| x.len());
    for x in &ins {
        assert_eq!(x.len(), len, "the slices differ in length");
    }
    let (mut even, mut odd) = ([s.zero(); 2], [s.zero(); 2]);
    let mut values = [s.zero(); N];
    let mut i = 0;
    while i + 2 * S::LANES <= len {
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i..i + S::LANES]);
        }
        even = f(s, even, values);
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i + S::LANES..i + 2 * S::LANES]);
        }
        odd = f(s, odd, values);
        i += 2 * S::LANES;
    }
    while i < len {
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i..]);
        }
        let next = f(s, even, values);
        let inside = s.first(len - i);
        even = [s.select(inside, next[0], even[0]), s.select(inside, next[1], even[1])];
        i += S::LANES;
    }
    [s.reduce_add(s.add(even[0], odd[0])), s.reduce_add(s.add(even[1], odd[1]))]
}
