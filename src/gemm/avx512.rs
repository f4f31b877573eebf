//! AVX-512: register tiles of up to 14 x 32. Of the 32 registers 28 hold sums, 2 a row of B, 1 the
//! broadcast element of A.

use super::Spec;
use super::driver::{Kernel, Micro, Packing, Panels, f32_columns};
use super::layout::Weave;
use core::arch::x86_64::*;

/// The engine `avx512_14x32`.
pub(super) struct Avx512;

const LANES: usize = 16;
const ROWS: usize = 14;
const WIDE_ROWS: usize = 4;

type Multiply = unsafe fn(&Micro);

/// Microkernels by rows - 1, vectors - 1 and whether rows of A are apart.
static MULTIPLY: [[[Multiply; 2]; 2]; ROWS] = {
    macro_rules! table {
        ($($rows:literal)*) => { [$([
            [multiply::<$rows, 1, false>, multiply::<$rows, 1, true>],
            [multiply::<$rows, 2, false>, multiply::<$rows, 2, true>],
        ]),*] };
    }
    table!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
};

/// The same for few rows and 3 or 4 vectors.
static WIDE: [[[Multiply; 2]; 2]; WIDE_ROWS] = {
    macro_rules! table {
        ($($rows:literal)*) => { [$([
            [multiply::<$rows, 3, false>, multiply::<$rows, 3, true>],
            [multiply::<$rows, 4, false>, multiply::<$rows, 4, true>],
        ]),*] };
    }
    table!(1 2 3 4)
};

impl Kernel for Avx512 {
    type Element = f32;
    type Session = ();
    const NAME: &'static str = "avx512_14x32";
    const SPEED: u64 = 1;
    const ROWS: usize = ROWS;
    const LANES: usize = LANES;
    const WIDE_ROWS: usize = WIDE_ROWS;
    const DEPTH: usize = 256;
    /// With 14 rows to a panel, reading B as stored was never slower.
    const LOCAL_ROW_PANELS: usize = usize::MAX;

    fn session() {}

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, single: bool) -> Panels {
        Panels::f32::<Self>(spec, packed_a, packed_b, single)
    }

    fn weave_b(n: usize) -> Weave {
        Weave::f32(f32_columns::<Self>(n))
    }

    unsafe fn multiply(micro: &Micro) {
        let vectors = micro.cols.div_ceil(LANES);
        let apart = usize::from(micro.a_row != 1);
        let multiply = match vectors {
            1 | 2 => MULTIPLY[micro.rows - 1][vectors - 1][apart],
            _ => WIDE[micro.rows - 1][vectors - 3][apart],
        };
        // SAFETY: the caller's contract; the entry is that of these rows and vectors.
        unsafe { multiply(micro) }
    }

    unsafe fn pack(packing: &Packing) {
        // SAFETY: the caller's contract.
        unsafe { if packing.along_depth { transpose(packing) } else { copy(packing) } }
    }
}

/// Mask of the first `count` lanes (all when there are more).
pub(super) fn lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// The microkernel for `M` rows and `V` vectors; `APART`: rows of A lie `a_row` apart, else next to
/// each other.
///
/// # Safety
/// As [`Kernel::multiply`].
#[allow(clippy::needless_range_loop, reason = "one index for registers and addresses")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const M: usize, const V: usize, const APART: bool>(micro: &Micro) {
    let Micro { cols, depth, mut a, a_depth, mut b, b_depth, c, ldc, accumulate, .. } = *micro;
    let a_row = if APART { micro.a_row } else { 1 };
    let last = lanes(cols - (V - 1) * LANES);
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    for _ in 0..depth {
        let mut row = [_mm512_setzero_ps(); V];
        // SAFETY: `depth` rows of `cols` elements of B and `M` of A are readable (contract); the
        // mask holds back lanes beyond `cols`.
        unsafe {
            for v in 0..V - 1 {
                row[v] = _mm512_loadu_ps(b.add(v * LANES));
            }
            row[V - 1] = _mm512_maskz_loadu_ps(last, b.add((V - 1) * LANES));
            for i in 0..M {
                let element = _mm512_set1_ps(*a.add(i * a_row));
                for v in 0..V {
                    sums[i][v] = _mm512_fmadd_ps(element, row[v], sums[i][v]);
                }
            }
        }
        a = a.wrapping_add(a_depth);
        b = b.wrapping_add(b_depth);
    }
    for i in 0..M {
        for v in 0..V {
            let mask = if v == V - 1 { last } else { !0 };
            // SAFETY: C has `M` rows of `cols` elements (contract); the mask holds back lanes
            // beyond `cols`.
            unsafe {
                let place = c.add(i * ldc + v * LANES);
                let mut sum = sums[i][v];
                if accumulate {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), sum);
                }
                _mm512_mask_storeu_ps(place, mask, sum);
            }
        }
    }
}

/// Writes group `p` of a panel from lane `first` on: with a plain store, which is faster, where
/// that stays in the panel and what it writes too much is written again by the next group, else
/// with a masked one.
///
/// # Safety
/// `p` and `first` lie inside the panel of `packing`, which is written in ascending order of `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(packing: &Packing, p: usize, first: usize, value: __m512) {
    let Packing { width, depth, panel, .. } = *packing;
    let place = p * width + first;
    // SAFETY: the conditions keep the plain store inside `width * depth`, the mask the other one
    // inside `width` (contract).
    unsafe {
        if first + LANES <= width || (width < LANES && place + LANES <= width * depth) {
            _mm512_storeu_ps(panel.add(place), value);
        } else {
            _mm512_mask_storeu_ps(panel.add(place), lanes(width - first), value);
        }
    }
}

/// Packs rows that are contiguous across the panel.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx512f")]
unsafe fn copy(packing: &Packing) {
    let Packing { stride, count, width, depth, .. } = *packing;
    let source = packing.f32_source();
    for p in 0..depth {
        for first in (0..width).step_by(LANES) {
            let place = source.wrapping_add(p * stride + first);
            // SAFETY: the condition or the mask holds back what lies beyond `count` in the source
            // (contract).
            unsafe {
                let row = if first + LANES <= count {
                    _mm512_loadu_ps(place)
                } else {
                    _mm512_maskz_loadu_ps(lanes(count.saturating_sub(first)), place)
                };
                put(packing, p, first, row);
            }
        }
    }
}

/// Packs rows that are contiguous along the depth, in blocks of 16 x 16.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx512f")]
unsafe fn transpose(packing: &Packing) {
    let Packing { stride, count, width, depth, .. } = *packing;
    let source = packing.f32_source();
    for first in (0..width).step_by(LANES) {
        let rows = count.saturating_sub(first).min(LANES);
        for p in (0..depth).step_by(LANES) {
            let mut block = [_mm512_setzero_ps(); LANES];
            for (i, row) in block.iter_mut().enumerate() {
                if i < rows {
                    let place = source.wrapping_add((first + i) * stride + p);
                    // SAFETY: row `first + i` is below `count`; the condition or the mask holds
                    // back what lies beyond `depth` (contract).
                    *row = unsafe {
                        if p + LANES <= depth {
                            _mm512_loadu_ps(place)
                        } else {
                            _mm512_maskz_loadu_ps(lanes(depth - p), place)
                        }
                    };
                }
            }
            for (q, row) in transposed(block).into_iter().enumerate() {
                if q < depth - p {
                    // SAFETY: group `p + q` is below `depth`.
                    unsafe { put(packing, p + q, first, row) };
                }
            }
        }
    }
}

/// A block of 16 x 16, transposed: pairs, then fours inside 128-bit lanes, then the lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(rows: [__m512; 16]) -> [__m512; 16] {
    let mut fours = rows;
    for i in (0..16).step_by(4) {
        let (low_a, high_a) =
            (_mm512_unpacklo_ps(rows[i], rows[i + 1]), _mm512_unpackhi_ps(rows[i], rows[i + 1]));
        let (low_b, high_b) = (
            _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]),
            _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]),
        );
        let pairs = [(low_a, low_b), (high_a, high_b)];
        for (c, (a, b)) in pairs.into_iter().enumerate() {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            fours[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // Lane l of fours[4 r + c] holds rows 4 r .. 4 r + 4 of column 4 l + c.
    let mut columns = rows;
    for c in 0..4 {
        let even_a = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
        let odd_a = _mm512_shuffle_f32x4::<0xDD>(fours[c], fours[4 + c]);
        let even_b = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let odd_b = _mm512_shuffle_f32x4::<0xDD>(fours[8 + c], fours[12 + c]);
        columns[c] = _mm512_shuffle_f32x4::<0x88>(even_a, even_b);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_a, odd_b);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xDD>(even_a, even_b);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xDD>(odd_a, odd_b);
    }
    columns
}
