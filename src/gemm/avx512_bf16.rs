//! AVX512-BF16 (`vdpbf16ps`): register tiles of up to 8 x 32; and the packing to bf16 that the tile
//! instructions of AMX share.
//!
//! Both engines read the same panels. A: 16 rows, in slices of 32 inner indices, so that a slice is
//! 16 rows of a cache line. B: 16 columns, pairs of inner indices next to each other, so that a
//! pair of all columns is a cache line, and 16 lines are a slice of A's depth. Seen as 32-bit
//! pairs, a slice of B is the transpose of one of A: [`pack`] does both.
//!
//! `vdpbf16ps` and `tdpbf16ps` round sums to nearest even and take subnormal numbers as zero,
//! whatever MXCSR says (Intel, Architecture Instruction Set Extensions Programming Reference).

use super::avx512::lanes;
use super::driver::{Kernel, Micro, Packing, Panels};
use super::layout::Weave;
use super::{Address, Spec};
use crate::tensor::DType;
use core::arch::x86_64::*;
use half::bf16;
use std::mem::transmute;

/// The engine `avx512_bf16_8x32`.
pub(super) struct Avx512Bf16;

const LANES: usize = 16;
/// Rows whose sums fit into registers beside two vectors of B; 16 chains of sums hide the latency.
const REGISTER_ROWS: usize = 8;
/// Inner indices of a slice.
const SLICE: usize = 32;
/// Elements of a slice of 16 rows or columns.
const SLICE_LEN: usize = LANES * SLICE;

pub(super) const WEAVE_A: Weave =
    Weave { width: LANES, group: SLICE, multiple: SLICE, parts: 1, element: DType::Bf16 };
pub(super) const WEAVE_B: Weave =
    Weave { width: LANES, group: 2, multiple: SLICE, parts: 1, element: DType::Bf16 };

type Multiply = unsafe fn(&Micro<bf16>);

/// Microkernels by rows - 1 and vectors - 1.
static MULTIPLY: [[Multiply; 2]; REGISTER_ROWS] = {
    macro_rules! table {
        ($($rows:literal)*) => { [$([multiply::<$rows, 1>, multiply::<$rows, 2>]),*] };
    }
    table!(1 2 3 4 5 6 7 8)
};

impl Kernel for Avx512Bf16 {
    type Element = bf16;
    type Session = ();
    const NAME: &'static str = "avx512_bf16_8x32";
    const SPEED: u64 = 2;
    const ROWS: usize = 2 * REGISTER_ROWS;
    const LANES: usize = LANES;
    const DEPTH: usize = 512;

    fn session() {}

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, _single: bool) -> Panels {
        Panels::packed((Self::ROWS, 2 * LANES), (WEAVE_A, WEAVE_B), spec, packed_a, packed_b)
    }

    fn weave_b(_n: usize) -> Weave {
        WEAVE_B
    }

    unsafe fn multiply(micro: &Micro<bf16>) {
        let vectors = micro.cols.div_ceil(LANES);
        for first in (0..micro.rows).step_by(REGISTER_ROWS) {
            let rows = REGISTER_ROWS.min(micro.rows - first);
            // SAFETY: the caller's contract; the entry is that of these rows and vectors, which lie
            // in the same panel of A.
            unsafe {
                let a = micro.a.add(first * SLICE);
                let c = micro.c.add(first * micro.ldc);
                MULTIPLY[rows - 1][vectors - 1](&Micro { rows, a, c, ..*micro });
            }
        }
    }

    unsafe fn pack(packing: &Packing<bf16>) {
        // SAFETY: the caller's contract. This engine packs A along the slice and B across it.
        unsafe { pack(packing) }
    }
}

/// The microkernel for `M` rows and `V` vectors.
///
/// # Safety
/// As [`Kernel::multiply`].
#[allow(clippy::needless_range_loop, reason = "one index for registers and addresses")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply<const M: usize, const V: usize>(micro: &Micro<bf16>) {
    let Micro { cols, depth, a, b, b_panel, c, ldc, accumulate, .. } = *micro;
    let last = lanes(cols - (V - 1) * LANES);
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    for slice in 0..depth / SLICE {
        let (a, b) = (a.wrapping_add(slice * SLICE_LEN), b.wrapping_add(slice * SLICE_LEN));
        for pair in 0..SLICE / 2 {
            let mut row = [_mm512_setzero_si512(); V];
            // SAFETY: the slice has `M` rows of A and, in each of `V` panels, `SLICE / 2` vectors
            // of B (contract).
            unsafe {
                for v in 0..V {
                    row[v] = _mm512_loadu_si512(b.add(v * b_panel + pair * 2 * LANES).cast());
                }
                for i in 0..M {
                    let element = a.add(i * SLICE + 2 * pair).cast::<i32>().read_unaligned();
                    let element = _mm512_set1_epi32(element);
                    for v in 0..V {
                        let (x, y) = (
                            transmute::<__m512i, __m512bh>(row[v]),
                            transmute::<__m512i, __m512bh>(element),
                        );
                        sums[i][v] = _mm512_dpbf16_ps(sums[i][v], x, y);
                    }
                }
            }
        }
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

/// Packs one panel of A or B, whichever its slices are: see the module.
///
/// # Safety
/// As [`Kernel::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack(packing: &Packing<bf16>) {
    let rows_apart = packing.group == SLICE;
    // SAFETY: the caller's contract; the entry is that of the source's type.
    unsafe {
        match (packing.source, packing.along_depth, rows_apart) {
            (Address::F32(_), false, false) => slices::<false, false, false>(packing),
            (Address::F32(_), false, true) => slices::<false, true, false>(packing),
            (Address::F32(_), true, false) => slices::<true, false, false>(packing),
            (Address::F32(_), true, true) => slices::<true, true, false>(packing),
            (Address::Bf16(_), false, false) => slices::<false, false, true>(packing),
            (Address::Bf16(_), false, true) => slices::<false, true, true>(packing),
            (Address::Bf16(_), true, false) => slices::<true, false, true>(packing),
            (Address::Bf16(_), true, true) => slices::<true, true, true>(packing),
        }
    }
}

/// `ALONG`: rows are contiguous along the depth; `APART`: a slice has rows apart, as A has; `BF16`:
/// the source is bf16, else f32.
///
/// # Safety
/// As [`Kernel::pack`].
#[allow(clippy::needless_range_loop, reason = "one index for registers and addresses")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn slices<const ALONG: bool, const APART: bool, const BF16: bool>(packing: &Packing<bf16>) {
    let Packing { stride, count, depth, filled, panel, parts, .. } = *packing;
    let size = if BF16 { size_of::<bf16>() } else { size_of::<f32>() };
    let source = packing.source.cast::<u8>();
    // Almost all slices are whole: code of their own, without masks, keeps their lines in registers.
    let plain = if !BF16 && parts == 1 && count == LANES { depth / SLICE } else { 0 };
    for slice in 0..plain {
        let across = if ALONG { 1 } else { stride };
        // SAFETY: the slice is whole (contract).
        unsafe {
            let from = source.cast::<f32>().add(slice * SLICE * across);
            whole_slice::<ALONG, APART>(from, stride, panel.add(slice * SLICE_LEN));
        }
    }
    for first in (plain * SLICE..filled).step_by(SLICE) {
        let left = depth.saturating_sub(first).min(SLICE);
        let whole = left == SLICE && count == LANES;
        for part in 0..parts {
            // 16 lines of 16 pairs: a row's pairs where rows are contiguous along the depth, else a
            // pair's rows.
            let mut lines = [_mm512_setzero_si512(); LANES];
            // SAFETY: only rows below `count` and inner indices below `depth` are read (contract).
            unsafe {
                for i in 0..LANES {
                    if ALONG {
                        let at = source.wrapping_add((i * stride + first) * size);
                        if whole {
                            lines[i] = line_along::<BF16>(at, SLICE, part);
                        } else if i < count {
                            lines[i] = line_along::<BF16>(at, left, part);
                        }
                    } else {
                        let at = source.wrapping_add((first + 2 * i) * stride * size);
                        let next = at.wrapping_add(stride * size);
                        if whole {
                            lines[i] = line_across::<BF16>([at, next], [LANES; 2], part);
                        } else if 2 * i < left {
                            let counts = [count, if 2 * i + 1 < left { count } else { 0 }];
                            lines[i] = line_across::<BF16>([at, next], counts, part);
                        }
                    }
                }
            }
            if ALONG != APART {
                lines = transposed(lines);
            }
            let start = first * LANES * parts + part * SLICE_LEN;
            for i in 0..LANES {
                // SAFETY: parts of a panel are whole slices (contract).
                unsafe { _mm512_storeu_si512(panel.add(start + i * SLICE).cast(), lines[i]) };
            }
        }
    }
}

/// A slice of 16 rows and 32 inner indices, both whole, of f32 that are not split.
///
/// # Safety
/// The slice is readable at `from` with that stride, and there is room for it at `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn whole_slice<const ALONG: bool, const APART: bool>(
    from: *const f32,
    stride: usize,
    to: *mut bf16,
) {
    let line = |i: usize| {
        // SAFETY: the caller's contract.
        unsafe {
            if ALONG {
                let at = from.add(i * stride);
                joined(_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(LANES)))
            } else {
                let at = from.add(2 * i * stride);
                woven(joined(_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(stride))))
            }
        }
    };
    // SAFETY: the caller's contract.
    let store = |i: usize, line| unsafe { _mm512_storeu_si512(to.add(i * SLICE).cast(), line) };
    if ALONG == APART {
        for i in 0..LANES {
            store(i, line(i));
        }
    } else {
        let mut lines = [_mm512_setzero_si512(); LANES];
        for (i, to) in lines.iter_mut().enumerate() {
            *to = line(i);
        }
        for (i, line) in transposed(lines).into_iter().enumerate() {
            store(i, line);
        }
    }
}

/// What is left of `x` after the first `part` bf16 whose sum is to be `x`; rounded it is the next
/// one. Of what is not finite nothing is left.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn left_after(part: usize, x: __m512) -> __m512 {
    let mut left = x;
    for _ in 0..part {
        let taken = _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(left));
        let rest = _mm512_sub_ps(left, taken);
        // Not a number where `left` is not finite.
        let finite = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(rest, rest);
        left = _mm512_maskz_mov_ps(finite, rest);
    }
    left
}

/// The first `count` of 16 consecutive f32 from byte address `at` on, then zeros: what is left of
/// them after the first `part` parts.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_f32(at: *const u8, count: usize, part: usize) -> __m512 {
    // SAFETY: the mask holds back what lies beyond `count`.
    let x = unsafe {
        match count >= LANES {
            true => _mm512_loadu_ps(at.cast()),
            false => _mm512_maskz_loadu_ps(lanes(count), at.cast()),
        }
    };
    if part == 0 { x } else { left_after(part, x) }
}

/// 16 and 16 values as 32 bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn joined(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The first `count` of 32 consecutive elements as bf16, then zeros.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn line_along<const BF16: bool>(at: *const u8, count: usize, part: usize) -> __m512i {
    // SAFETY: the masks hold back what lies beyond `count`.
    unsafe {
        if !BF16 {
            let low = load_f32(at, count, part);
            let high = at.wrapping_add(LANES * size_of::<f32>());
            joined(low, load_f32(high, count.saturating_sub(LANES), part))
        } else if part > 0 {
            _mm512_setzero_si512()
        } else if count >= SLICE {
            _mm512_loadu_si512(at.cast())
        } else {
            _mm512_maskz_loadu_epi16((1u32 << count) - 1, at.cast())
        }
    }
}

/// Pairs of the first `counts[0]` of 16 elements at one address and the first `counts[1]` at the
/// other, as bf16; zeros beyond.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn line_across<const BF16: bool>(
    at: [*const u8; 2],
    counts: [usize; 2],
    part: usize,
) -> __m512i {
    // SAFETY: the masks hold back what lies beyond the counts.
    let halves = unsafe {
        if !BF16 {
            joined(load_f32(at[0], counts[0], part), load_f32(at[1], counts[1], part))
        } else if part > 0 {
            _mm512_setzero_si512()
        } else {
            let low = _mm256_maskz_loadu_epi16(lanes(counts[0]), at[0].cast());
            let high = _mm256_maskz_loadu_epi16(lanes(counts[1]), at[1].cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    };
    woven(halves)
}

/// Two halves of 16 bf16, element by element.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn woven(halves: __m512i) -> __m512i {
    const WOVEN: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            order[2 * i] = i as u16;
            order[2 * i + 1] = 16 + i as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 32 16-bit numbers are 512 bits.
    let order = unsafe { transmute::<[u16; 32], __m512i>(WOVEN) };
    _mm512_permutexvar_epi16(order, halves)
}

/// 16 lines of 16 pairs, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the same bits; a pair is as wide as an f32, and moving it does not look at them.
    unsafe {
        let lines = transmute::<[__m512i; 16], [__m512; 16]>(lines);
        transmute::<[__m512; 16], [__m512i; 16]>(super::avx512::transposed(lines))
    }
}
