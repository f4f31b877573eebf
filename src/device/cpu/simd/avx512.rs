//! AVX-512 F, BW, DQ and VL: 16 lanes, masks in registers of their own.

use super::avx2::{add_all, max_all, min_all};
use super::{Simd, intrinsics, sealed};
use crate::device::cpu::Isa;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if this CPU has the instruction set.
    #[inline]
    pub fn new() -> Option<Self> {
        Isa::Avx512.is_available().then_some(Avx512(()))
    }
}

impl sealed::Sealed for Avx512 {}

/// The mask of the first `n <= 16` lanes.
#[inline(always)]
fn first_lanes(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn enter<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn halves(a: __m512) -> (__m256, __m256) {
    (_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn reduce_add(a: __m512) -> f32 {
    let (low, high) = halves(a);
    add_all(_mm256_add_ps(low, high))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn reduce_max(a: __m512) -> f32 {
    let (low, high) = halves(a);
    if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) != 0 {
        return f32::NAN;
    }
    max_all(_mm256_max_ps(low, high))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn reduce_min(a: __m512) -> f32 {
    let (low, high) = halves(a);
    if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) != 0 {
        return f32::NAN;
    }
    min_all(_mm256_min_ps(low, high))
}

/// Low and high halves of the 64-bit products: even lanes as they lie, odd lanes shifted down.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn mul_wide(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    const ODD: __mmask16 = 0xaaaa;
    let even = _mm512_mul_epu32(a, b);
    let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
    (
        _mm512_mask_blend_epi32(ODD, even, _mm512_slli_epi64::<32>(odd)),
        _mm512_mask_blend_epi32(ODD, _mm512_srli_epi64::<32>(even), odd),
    )
}

/// Transposes each 4 x 4 block that the four vectors have in a quarter.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
fn transpose_quarters(a: [__m512; 4]) -> [__m512; 4] {
    let low = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1]));
    let high = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
    let low_after = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
    let high_after = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(low, low_after)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(low, low_after)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(high, high_after)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(high, high_after)),
    ]
}

/// The four values at `p` and those 4, 8 and 12 rows below, a quarter each.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
unsafe fn load_quarters(p: *const f32, stride: usize) -> __m512 {
    // SAFETY: the caller promises it.
    unsafe {
        let v = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
        let v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p.add(4 * stride)));
        let v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p.add(8 * stride)));
        _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p.add(12 * stride)))
    }
}

/// Writes quarters to where [`load_quarters`] reads them.
///
/// # Safety
/// They are writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
unsafe fn store_quarters(p: *mut f32, stride: usize, v: __m512) {
    // SAFETY: the caller promises it.
    unsafe {
        _mm_storeu_ps(p, _mm512_castps512_ps128(v));
        _mm_storeu_ps(p.add(4 * stride), _mm512_extractf32x4_ps::<1>(v));
        _mm_storeu_ps(p.add(8 * stride), _mm512_extractf32x4_ps::<2>(v));
        _mm_storeu_ps(p.add(12 * stride), _mm512_extractf32x4_ps::<3>(v));
    }
}

impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    type F32 = __m512;
    type I32 = __m512i;
    type Mask = __mmask16;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists only where `new` found every feature that `enter` enables.
        unsafe { enter(f) }
    }

    intrinsics! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        prefetch(p: *const f32) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        sqrt(a: __m512) -> __m512 = _mm512_sqrt_ps(a);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fnmadd_ps(a, b, c);
        round_even(a: __m512) -> __m512 = _mm512_roundscale_ps::<0x08>(a);
        floor(a: __m512) -> __m512 = _mm512_roundscale_ps::<0x09>(a);
        scale_pow2(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        reduce_add(a: __m512) -> f32 = reduce_add(a);
        reduce_max(a: __m512) -> f32 = reduce_max(a);
        reduce_min(a: __m512) -> f32 = reduce_min(a);

        lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        le(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b);
        eq(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        is_nan(a: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        select(m: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(m, b, a);
        select_i32(m: __mmask16, a: __m512i, b: __m512i) -> __m512i =
            _mm512_mask_blend_epi32(m, b, a);

        splat_i32(x: i32) -> __m512i = _mm512_set1_epi32(x);
        iota_i32() -> __m512i =
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        add_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        sub_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        mul_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        mul_wide_u32(a: __m512i, b: __m512i) -> (__m512i, __m512i) = mul_wide(a, b);
        and_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        shl_i32(a: __m512i, n: u32) -> __m512i = _mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32));
        shr_i32(a: __m512i, n: u32) -> __m512i = _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32));
        sar_i32(a: __m512i, n: u32) -> __m512i = _mm512_sra_epi32(a, _mm_cvtsi32_si128(n as i32));
        eq_i32(a: __m512i, b: __m512i) -> __mmask16 = _mm512_cmpeq_epi32_mask(a, b);
        gt_i32(a: __m512i, b: __m512i) -> __mmask16 = _mm512_cmpgt_epi32_mask(a, b);

        to_i32(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        to_f32(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        bitcast_i32(a: __m512) -> __m512i = _mm512_castps_si512(a);
        bitcast_f32(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
    }

    #[inline(always)]
    fn load_four_columns(self, x: &[f32], stride: usize) -> [__m512; 4] {
        assert!(stride < 1 << 32 && x.len() >= 15 * stride + 4, "16 rows of four columns");
        // SAFETY: `self` proves the features, the assertion that four values are readable at the
        // start of each of the rows 0 to 15.
        unsafe {
            let p = x.as_ptr();
            transpose_quarters([
                load_quarters(p, stride),
                load_quarters(p.add(stride), stride),
                load_quarters(p.add(2 * stride), stride),
                load_quarters(p.add(3 * stride), stride),
            ])
        }
    }

    #[inline(always)]
    fn store_four_columns(self, x: &mut [f32], stride: usize, columns: [__m512; 4]) {
        assert!(stride < 1 << 32 && x.len() >= 15 * stride + 4, "16 rows of four columns");
        // SAFETY: as in `load_four_columns`, and the slice may be written.
        unsafe {
            let (rows, p) = (transpose_quarters(columns), x.as_mut_ptr());
            store_quarters(p, stride, rows[0]);
            store_quarters(p.add(stride), stride, rows[1]);
            store_quarters(p.add(2 * stride), stride, rows[2]);
            store_quarters(p.add(3 * stride), stride, rows[3]);
        }
    }

    #[inline(always)]
    fn first(self, n: usize) -> __mmask16 {
        first_lanes(n.min(16))
    }

    #[inline(always)]
    fn mask_and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn mask_or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }

    #[inline(always)]
    fn mask_not(self, a: __mmask16) -> __mmask16 {
        !a
    }

    #[inline(always)]
    fn bits(self, m: __mmask16) -> u32 {
        u32::from(m)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: `self` proves the features, the caller that 16 values are readable.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: `self` proves the features, the caller that 16 values are writable.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize, fill: f32) -> __m512 {
        debug_assert!(n <= 16);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: __m512) {
        debug_assert!(n <= 16);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe { _mm512_mask_storeu_ps(p, first_lanes(n), v) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        // SAFETY: `self` proves the features, the caller that 16 bytes are readable.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_u8_partial(self, p: *const u8, n: usize) -> __m512 {
        debug_assert!(n <= 16);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe {
            let bytes = _mm_maskz_loadu_epi8(first_lanes(n), p.cast());
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: `self` proves the features, the caller that 16 values are readable.
        let low = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) };
        self.bitcast_f32(self.shl_i32(low, 16))
    }

    #[inline(always)]
    unsafe fn load_bf16_partial(self, p: *const u16, n: usize) -> __m512 {
        debug_assert!(n <= 16);
        let lanes = first_lanes(n);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        let low = unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p.cast())) };
        self.bitcast_f32(self.shl_i32(low, 16))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
        let bits = self.to_bf16_bits(v);
        // SAFETY: `self` proves the features, the caller that 16 values are writable.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits)) }
    }

    #[inline(always)]
    unsafe fn store_bf16_partial(self, p: *mut u16, n: usize, v: __m512) {
        debug_assert!(n <= 16);
        let bits = self.to_bf16_bits(v);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe {
            _mm256_mask_storeu_epi16(p.cast(), first_lanes(n), _mm512_cvtepi32_epi16(bits));
        }
    }
}
