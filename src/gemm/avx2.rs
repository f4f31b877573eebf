//! AVX2 and FMA: register tiles of up to 6 x 16. Of the 16 registers 12 hold sums, 2 a row of B, 1 the broadcast element of A.

use super::driver::{Kernel, Micro, Packing};
use core::arch::x86_64::*;

/// The engine `avx2_6x16`.
pub(super) struct Avx2;

const LANES: usize = 8;
const ROWS: usize = 6;

type Multiply = unsafe fn(&Micro);

/// Microkernels by rows - 1, vectors - 1, whether rows of A are apart and whether the last vector is partial.
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

impl Kernel for Avx2 {
    const NAME: &'static str = "avx2_6x16";
    const ROWS: usize = ROWS;
    const LANES: usize = LANES;
    const DEPTH: usize = 256;

    unsafe fn multiply(micro: &Micro) {
        debug_assert!((1..=ROWS).contains(&micro.rows) && (1..=2 * LANES).contains(&micro.cols));
        let (vectors, partial) = (micro.cols.div_ceil(LANES), !micro.cols.is_multiple_of(LANES));
        let apart = usize::from(micro.a_row != 1);
        let multiply = MULTIPLY[micro.rows - 1][vectors - 1][apart][usize::from(partial)];
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

/// The microkernel for `M` rows and `V` vectors, the last of which is `PARTIAL` or whole; `APART`: rows of A lie `a_row` apart, else next
/// to each other.
///
/// # Safety
/// As [`Kernel::multiply`].
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
        // SAFETY: `depth` rows of `cols` elements of B and `M` of A are readable (contract); the mask holds back lanes beyond `cols`.
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
            // SAFETY: C has `M` rows of `cols` elements (contract); the mask holds back lanes beyond `cols`.
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

/// Packs rows that are contiguous across the panel.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx2")]
unsafe fn copy(packing: &Packing) {
    let Packing { source, stride, count, width, depth, panel, .. } = *packing;
    for first in (0..width).step_by(LANES) {
        let (read, write) = (lanes(count.saturating_sub(first)), lanes(width - first));
        for p in 0..depth {
            // SAFETY: the masks hold back what lies beyond `count` in the source and `width` in the panel (contract).
            unsafe {
                let row = _mm256_maskload_ps(source.wrapping_add(p * stride + first), read);
                _mm256_maskstore_ps(panel.add(p * width + first), write, row);
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
    let Packing { source, stride, count, width, depth, panel, .. } = *packing;
    for first in (0..width).step_by(LANES) {
        let rows = count.saturating_sub(first).min(LANES);
        let write = lanes(width - first);
        for p in (0..depth).step_by(LANES) {
            let read = lanes(depth - p);
            let mut block = [_mm256_setzero_ps(); LANES];
            for (i, row) in block.iter_mut().enumerate() {
                if i < rows {
                    // SAFETY: row `first + i` is below `count`, and the mask holds back what lies beyond `depth` (contract).
                    *row =
                        unsafe { _mm256_maskload_ps(source.add((first + i) * stride + p), read) };
                }
            }
            let block = transposed(block);
            for (q, row) in block.iter().enumerate() {
                if q < depth - p {
                    // SAFETY: group `p + q` is below `depth`, and the mask holds back what lies beyond `width` (contract).
                    unsafe { _mm256_maskstore_ps(panel.add((p + q) * width + first), write, *row) };
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
