//! AVX2 and FMA: register tiles of up to 6 x 16. Of the 16 registers 12 hold sums, 2 a row of B, 1
//! the broadcast element of A.

use super::Spec;
use super::driver::{Kernel, Micro, Packing, Panels, f32_columns};
use super::layout::Weave;
use core::arch::x86_64::*;

/// The engine `avx2_6x16`.
pub(super) struct Avx2;

const LANES: usize = 8;
const ROWS: usize = 6;
const WIDE_ROWS: usize = 2;

type Multiply = unsafe fn(&Micro);

/// Microkernels by rows - 1, vectors - 1, whether rows of A are apart and whether the last vector
/// is partial.
static MULTIPLY: [[[[Multiply; 2]; 2]; 2]; ROWS] = {
    macro_rules! table {
        ($($rows:literal)*) => { [$([
            [
                [multiply::<$rows, 1, false, false>, multiply::<$rows, 1, false, true>],
                [multiply::<$rows, 1, true, false>, multiply::<$rows, 1, true, true>],
            ],
            [
                [multiply::<$rows, 2, false, false>, multiply::<$rows, 2, false, true>],
                [multiply::<$rows, 2, true, false>, multiply::<$rows, 2, true, true>],
            ],
        ]),*] };
    }
    table!(1 2 3 4 5 6)
};

/// The same for few rows and 3 or 4 vectors.
static WIDE: [[[[Multiply; 2]; 2]; 2]; WIDE_ROWS] = {
    macro_rules! table {
        ($($rows:literal)*) => { [$([
            [
                [multiply::<$rows, 3, false, false>, multiply::<$rows, 3, false, true>],
                [multiply::<$rows, 3, true, false>, multiply::<$rows, 3, true, true>],
            ],
            [
                [multiply::<$rows, 4, false, false>, multiply::<$rows, 4, false, true>],
                [multiply::<$rows, 4, true, false>, multiply::<$rows, 4, true, true>],
            ],
        ]),*] };
    }
    table!(1 2)
};

impl Kernel for Avx2 {
    type Element = f32;
    type Session = ();
    const NAME: &'static str = "avx2_6x16";
    const SPEED: u64 = 1;
    const ROWS: usize = ROWS;
    const LANES: usize = LANES;
    const WIDE_ROWS: usize = WIDE_ROWS;
    const DEPTH: usize = 256;
    /// Six rows reread B 22 times for 128 rows of C, and L2 with rows far apart does not keep up:
    /// 128 x 1024 x 512 runs at 88 GFLOP/s as stored and at 101 from a panel.
    const LOCAL_ROW_PANELS: usize = 16;

    fn session() {}

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, single: bool) -> Panels {
        Panels::f32::<Self>(spec, packed_a, packed_b, single)
    }

    fn weave_b(n: usize) -> Weave {
        Weave::f32(f32_columns::<Self>(n))
    }

    unsafe fn multiply(micro: &Micro) {
        let (vectors, partial) = (micro.cols.div_ceil(LANES), !micro.cols.is_multiple_of(LANES));
        let apart = usize::from(micro.a_row != 1);
        let multiply = match vectors {
            1 | 2 => MULTIPLY[micro.rows - 1][vectors - 1][apart][usize::from(partial)],
            _ => WIDE[micro.rows - 1][vectors - 3][apart][usize::from(partial)],
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
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(count: usize) -> __m256i {
    let count = count.min(LANES) as i32;
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// The microkernel for `M` rows and `V` vectors, the last of which is `PARTIAL` or whole; `APART`:
/// rows of A lie `a_row` apart, else next to each other.
///
/// # Safety
/// As [`Kernel::multiply`].
#[allow(clippy::needless_range_loop, reason = "one index for registers and addresses")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const M: usize, const V: usize, const APART: bool, const PARTIAL: bool>(
    micro: &Micro,
) {
    let Micro { cols, depth, mut a, a_depth, mut b, b_depth, c, ldc, accumulate, .. } = *micro;
    let a_row = if APART { micro.a_row } else { 1 };
    let last = lanes(cols - (V - 1) * LANES);
    let mut sums = [[_mm256_setzero_ps(); V]; M];
    for _ in 0..depth {
        let mut row = [_mm256_setzero_ps(); V];
        // SAFETY: `depth` rows of `cols` elements of B and `M` of A are readable (contract); the
        // mask holds back lanes beyond `cols`.
        unsafe {
            for v in 0..V {
                let place = b.add(v * LANES);
                let partial = PARTIAL && v == V - 1;
                row[v] =
                    if partial { _mm256_maskload_ps(place, last) } else { _mm256_loadu_ps(place) };
            }
            for i in 0..M {
                let element = _mm256_broadcast_ss(&*a.add(i * a_row));
                for v in 0..V {
                    sums[i][v] = _mm256_fmadd_ps(element, row[v], sums[i][v]);
                }
            }
        }
        a = a.wrapping_add(a_depth);
        b = b.wrapping_add(b_depth);
    }
    for i in 0..M {
        for v in 0..V {
            // SAFETY: C has `M` rows of `cols` elements (contract); the mask holds back lanes
            // beyond `cols`.
            unsafe {
                let place = c.add(i * ldc + v * LANES);
                let mut sum = sums[i][v];
                if PARTIAL && v == V - 1 {
                    if accumulate {
                        sum = _mm256_add_ps(_mm256_maskload_ps(place, last), sum);
                    }
                    _mm256_maskstore_ps(place, last, sum);
                } else {
                    if accumulate {
                        sum = _mm256_add_ps(_mm256_loadu_ps(place), sum);
                    }
                    _mm256_storeu_ps(place, sum);
                }
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
#[target_feature(enable = "avx2")]
unsafe fn put(packing: &Packing, p: usize, first: usize, value: __m256) {
    let Packing { width, depth, panel, .. } = *packing;
    let place = p * width + first;
    // SAFETY: the conditions keep the plain store inside `width * depth`, the mask the other one
    // inside `width` (contract).
    unsafe {
        if first + LANES <= width || (width < LANES && place + LANES <= width * depth) {
            _mm256_storeu_ps(panel.add(place), value);
        } else {
            _mm256_maskstore_ps(panel.add(place), lanes(width - first), value);
        }
    }
}

/// Packs rows that are contiguous across the panel.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx2")]
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
                    _mm256_loadu_ps(place)
                } else {
                    _mm256_maskload_ps(place, lanes(count.saturating_sub(first)))
                };
                put(packing, p, first, row);
            }
        }
    }
}

/// Packs rows that are contiguous along the depth, in blocks of 8 x 8.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx2")]
unsafe fn transpose(packing: &Packing) {
    let Packing { stride, count, width, depth, .. } = *packing;
    let source = packing.f32_source();
    for first in (0..width).step_by(LANES) {
        let rows = count.saturating_sub(first).min(LANES);
        for p in (0..depth).step_by(LANES) {
            let mut block = [_mm256_setzero_ps(); LANES];
            for (i, row) in block.iter_mut().enumerate() {
                if i < rows {
                    let place = source.wrapping_add((first + i) * stride + p);
                    // SAFETY: row `first + i` is below `count`; the condition or the mask holds
                    // back what lies beyond `depth` (contract).
                    *row = unsafe {
                        if p + LANES <= depth {
                            _mm256_loadu_ps(place)
                        } else {
                            _mm256_maskload_ps(place, lanes(depth - p))
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

/// A block of 8 x 8, transposed: pairs, then fours inside 128-bit lanes, then the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let mut fours = rows;
    for i in (0..8).step_by(4) {
        let (low_a, high_a) =
            (_mm256_unpacklo_ps(rows[i], rows[i + 1]), _mm256_unpackhi_ps(rows[i], rows[i + 1]));
        let (low_b, high_b) = (
            _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]),
            _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]),
        );
        let pairs = [(low_a, low_b), (high_a, high_b)];
        for (c, (a, b)) in pairs.into_iter().enumerate() {
            let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
            fours[i + 2 * c] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            fours[i + 2 * c + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    // Lane l of fours[4 r + c] holds rows 4 r .. 4 r + 4 of column 4 l + c.
    let mut columns = rows;
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
        columns[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
    }
    columns
}
