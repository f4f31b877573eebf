//! `batch` on the CPU: one pass over the rows that are gathered.
#![allow(unsafe_code)]

use crate::device::U64Slot;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use crate::tensor::{DType, Element};

/// Finding a row that is in no cache.
const ROW_NANOSECONDS: f64 = 100.0;
/// Reading, scaling and writing one feature.
const FEATURE_NANOSECONDS: f64 = 0.4;

pub(super) fn launch(site: &Site<'_>, offset: U64Slot) -> Launch {
    match site.inputs[0].dtype {
        DType::U8 => launch_of::<u8>(site, offset),
        _ => launch_of::<f32>(site, offset),
    }
}

fn launch_of<T: Source>(site: &Site<'_>, offset: U64Slot) -> Launch {
    let isa = site.isa;
    let (size, features) = (site.outputs[1].elements(), site.inputs[0].shape.columns());
    let nanoseconds = ROW_NANOSECONDS + FEATURE_NANOSECONDS * features as f64;
    // A power of two: then threads have the rows that they have in the first layer's product.
    let per_chunk = rows_per_chunk(nanoseconds).next_power_of_two();
    Launch::new(isa.name()).rows(size, per_chunk, move |chunk| {
        let gather = Gather::<T> {
            values: chunk.input(0),
            labels: chunk.input(1),
            order: chunk.input(2),
            scale: chunk.input(3),
            shift: chunk.input(4),
            offset: chunk.control().u64(offset),
            first: chunk.row_range().start,
            count: chunk.row_range().len(),
            rows: chunk.output(0),
            row_labels: chunk.output(1),
        };
        dispatch(isa, gather);
    })
}

/// Elements that a data set can have.
trait Source: Element {
    /// The first `min(LANES, len)` values of `x` as f32, and zero in the other lanes.
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F32;
}

impl Source for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32]) -> S::F32 {
        s.load_slice(x)
    }
}

impl Source for u8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u8]) -> S::F32 {
        if x.len() >= S::LANES {
            // SAFETY: the branch holds only if the slice has LANES bytes.
            unsafe { s.load_u8(x.as_ptr()) }
        } else {
            // SAFETY: n is the length of the slice, and less than LANES.
            unsafe { s.load_u8_partial(x.as_ptr(), x.len()) }
        }
    }
}

struct Gather<'a, T> {
    values: &'a [T],
    labels: &'a [u32],
    order: &'a [u32],
    scale: &'a [f32],
    shift: &'a [f32],
    offset: u64,
    /// Rows of the batch: the first, and how many.
    first: usize,
    count: usize,
    /// Empty where nobody reads them.
    rows: &'a mut [f32],
    row_labels: &'a mut [u32],
}

impl<T> Gather<'_, T> {
    /// The row of the data set that is row `r` of the batch; `None` where the offset or the order
    /// leads out of it.
    #[inline(always)]
    fn source(&self, r: usize) -> Option<usize> {
        let at = self.offset.checked_add(r as u64)?;
        let n = *self.order.get(usize::try_from(at).ok()?)? as usize;
        (n < self.labels.len()).then_some(n)
    }
}

impl<T: Source> Kernel for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let features = self.scale.len();
        for i in 0..self.count {
            let source = self.source(self.first + i);
            if !self.rows.is_empty() {
                let out = &mut self.rows[i * features..][..features];
                match source {
                    Some(n) => {
                        let values = &self.values[n * features..][..features];
                        normalise(s, values, self.scale, self.shift, out);
                    }
                    None => out.fill(f32::NAN),
                }
            }
            if let Some(label) = self.row_labels.get_mut(i) {
                *label = source.map_or(u32::MAX, |n| self.labels[n]);
            }
        }
    }
}

/// `out = values * scale + shift`
#[inline(always)]
fn normalise<S: Simd, T: Source>(
    s: S,
    values: &[T],
    scale: &[f32],
    shift: &[f32],
    out: &mut [f32],
) {
    // Whole vectors by `chunks_exact`, so that the length checks of the loads fall away.
    let (mut values, mut scale) = (values.chunks_exact(S::LANES), scale.chunks_exact(S::LANES));
    let (mut shift, mut out) = (shift.chunks_exact(S::LANES), out.chunks_exact_mut(S::LANES));
    for (((v, a), b), o) in (&mut values).zip(&mut scale).zip(&mut shift).zip(&mut out) {
        let x = s.mul_add(T::load(s, v), s.load_slice(a), s.load_slice(b));
        s.store_slice(o, x);
    }
    let (v, a, b) = (values.remainder(), scale.remainder(), shift.remainder());
    let x = s.mul_add(T::load(s, v), s.load_slice(a), s.load_slice(b));
    s.store_slice(out.into_remainder(), x);
}
