//! AVX2 and FMA: 8 lanes, a mask is a vector whose lanes are all ones or all zeros.

use super::{Simd, intrinsics, sealed};
use crate::device::cpu::Isa;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this CPU has the instruction set.
    #[inline]
    pub fn new() -> Option<Self> {
        Isa::Avx2.is_available().then_some(Avx2(()))
    }
}

impl sealed::Sealed for Avx2 {}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn enter<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Reduces 8 lanes: 4 + 4, then 2 + 2, then 1 + 1.
macro_rules! reduction {
    ($name:ident, $vector:ident, $scalar:ident) => {
        #[target_feature(enable = "avx2,fma")]
        #[inline]
        pub(super) fn $name(a: __m256) -> f32 {
            let a = $vector(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = $vector(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32($scalar(a, _mm_movehdup_ps(a)))
        }
    };
}
reduction!(add_all, _mm_add_ps, _mm_add_ss);
reduction!(max_all, _mm_max_ps, _mm_max_ss);
reduction!(min_all, _mm_min_ps, _mm_min_ss);

#[target_feature(enable = "avx2,fma")]
#[inline]
fn has_nan(a: __m256) -> bool {
    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)) != 0
}

/// All ones in the first `n` lanes.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn first_lanes(n: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), lanes)
}

/// Low and high halves of the 64-bit products: even lanes as they lie, odd lanes shifted down.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn mul_wide(a: __m256i, b: __m256i) -> (__m256i, __m256i) {
    let even = _mm256_mul_epu32(a, b);
    let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
    (
        _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd)),
        _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd),
    )
}

/// The low 16 bits of each lane; the high ones are zero.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn pack_u16(a: __m256i) -> __m128i {
    // The pack works within each half of the register, so its two useful quarters are 0 and 2.
    let packed = _mm256_packus_epi32(a, a);
    _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(packed))
}

/// Transposes each 4 x 4 block that the four vectors have in a half.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose_halves(a: [__m256; 4]) -> [__m256; 4] {
    let low = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1]));
    let high = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
    let low_after = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3]));
    let high_after = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
    [
        _mm256_castpd_ps(_mm256_unpacklo_pd(low, low_after)),
        _mm256_castpd_ps(_mm256_unpackhi_pd(low, low_after)),
        _mm256_castpd_ps(_mm256_unpacklo_pd(high, high_after)),
        _mm256_castpd_ps(_mm256_unpackhi_pd(high, high_after)),
    ]
}

/// The four values at `p` and those 4 rows below, a half each.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_halves(p: *const f32, stride: usize) -> __m256 {
    // SAFETY: the caller promises it.
    unsafe { _mm256_set_m128(_mm_loadu_ps(p.add(4 * stride)), _mm_loadu_ps(p)) }
}

/// Writes halves to where [`load_halves`] reads them.
///
/// # Safety
/// They are writable.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store_halves(p: *mut f32, stride: usize, v: __m256) {
    // SAFETY: the caller promises it.
    unsafe {
        _mm_storeu_ps(p, _mm256_castps256_ps128(v));
        _mm_storeu_ps(p.add(4 * stride), _mm256_extractf128_ps::<1>(v));
    }
}

impl Simd for Avx2 {
    const ISA: Isa = Isa::Avx2;
    const LANES: usize = 8;
    type F32 = __m256;
    type I32 = __m256i;
    type Mask = __m256;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists only where `new` found every feature that `enter` enables.
        unsafe { enter(f) }
    }

    intrinsics! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        prefetch(p: *const f32) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        sqrt(a: __m256) -> __m256 = _mm256_sqrt_ps(a);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fnmadd_ps(a, b, c);
        round_even(a: __m256) -> __m256 = _mm256_round_ps::<0x08>(a);
        floor(a: __m256) -> __m256 = _mm256_round_ps::<0x09>(a);
        reduce_add(a: __m256) -> f32 = add_all(a);
        reduce_max(a: __m256) -> f32 = if has_nan(a) { f32::NAN } else { max_all(a) };
        reduce_min(a: __m256) -> f32 = if has_nan(a) { f32::NAN } else { min_all(a) };

        lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        le(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LE_OQ>(a, b);
        eq(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        is_nan(a: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
        first(n: usize) -> __m256 = _mm256_castsi256_ps(first_lanes(n));
        mask_and(a: __m256, b: __m256) -> __m256 = _mm256_and_ps(a, b);
        mask_or(a: __m256, b: __m256) -> __m256 = _mm256_or_ps(a, b);
        mask_not(a: __m256) -> __m256 =
            _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1)));
        select(m: __m256, a: __m256, b: __m256) -> __m256 = _mm256_blendv_ps(b, a, m);
        select_i32(m: __m256, a: __m256i, b: __m256i) -> __m256i =
            _mm256_blendv_epi8(b, a, _mm256_castps_si256(m));
        bits(m: __m256) -> u32 = _mm256_movemask_ps(m) as u32;

        splat_i32(x: i32) -> __m256i = _mm256_set1_epi32(x);
        iota_i32() -> __m256i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        add_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        sub_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        mul_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
        mul_wide_u32(a: __m256i, b: __m256i) -> (__m256i, __m256i) = mul_wide(a, b);
        and_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        or_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
        xor_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
        shl_i32(a: __m256i, n: u32) -> __m256i = _mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32));
        shr_i32(a: __m256i, n: u32) -> __m256i = _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32));
        sar_i32(a: __m256i, n: u32) -> __m256i = _mm256_sra_epi32(a, _mm_cvtsi32_si128(n as i32));
        eq_i32(a: __m256i, b: __m256i) -> __m256 = _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b));
        gt_i32(a: __m256i, b: __m256i) -> __m256 = _mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b));

        to_i32(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
        to_f32(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        bitcast_i32(a: __m256) -> __m256i = _mm256_castps_si256(a);
        bitcast_f32(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
    }

    #[inline(always)]
    fn load_four_columns(self, x: &[f32], stride: usize) -> [__m256; 4] {
        assert!(stride < 1 << 32 && x.len() >= 7 * stride + 4, "8 rows of four columns");
        // SAFETY: `self` proves the features, the assertion that four values are readable at the
        // start of each of the rows 0 to 7.
        unsafe {
            let p = x.as_ptr();
            transpose_halves([
                load_halves(p, stride),
                load_halves(p.add(stride), stride),
                load_halves(p.add(2 * stride), stride),
                load_halves(p.add(3 * stride), stride),
            ])
        }
    }

    #[inline(always)]
    fn store_four_columns(self, x: &mut [f32], stride: usize, columns: [__m256; 4]) {
        assert!(stride < 1 << 32 && x.len() >= 7 * stride + 4, "8 rows of four columns");
        // SAFETY: as in `load_four_columns`, and the slice may be written.
        unsafe {
            let (rows, p) = (transpose_halves(columns), x.as_mut_ptr());
            store_halves(p, stride, rows[0]);
            store_halves(p.add(stride), stride, rows[1]);
            store_halves(p.add(2 * stride), stride, rows[2]);
            store_halves(p.add(3 * stride), stride, rows[3]);
        }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: `self` proves the features, the caller that 8 values are readable.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: `self` proves the features, the caller that 8 values are writable.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize, fill: f32) -> __m256 {
        debug_assert!(n <= 8);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe {
            let mask = first_lanes(n);
            let read = _mm256_maskload_ps(p, mask);
            _mm256_blendv_ps(_mm256_set1_ps(fill), read, _mm256_castsi256_ps(mask))
        }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: __m256) {
        debug_assert!(n <= 8);
        // SAFETY: `self` proves the features; masked lanes do not touch memory, and the caller
        // promises the n others.
        unsafe { _mm256_maskstore_ps(p, first_lanes(n), v) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m256 {
        // SAFETY: `self` proves the features, the caller that 8 bytes are readable.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_u8_partial(self, p: *const u8, n: usize) -> __m256 {
        debug_assert!(n <= 8);
        let mut bytes = [0u8; 8];
        // SAFETY: n <= 8 bytes fit the buffer, and the caller promises that they are readable.
        unsafe { p.copy_to_nonoverlapping(bytes.as_mut_ptr(), n) };
        // SAFETY: the buffer has 8 bytes.
        unsafe { self.load_u8(bytes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: `self` proves the features, the caller that 8 values are readable.
        let low = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) };
        self.bitcast_f32(self.shl_i32(low, 16))
    }

    #[inline(always)]
    unsafe fn load_bf16_partial(self, p: *const u16, n: usize) -> __m256 {
        debug_assert!(n <= 8);
        let mut values = [0u16; 8];
        // SAFETY: n <= 8 values fit the buffer, and the caller promises that they are readable.
        unsafe { p.copy_to_nonoverlapping(values.as_mut_ptr(), n) };
        // SAFETY: the buffer has 8 values.
        unsafe { self.load_bf16(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256) {
        let bits = self.to_bf16_bits(v);
        // SAFETY: `self` proves the features, the caller that 8 values are writable.
        unsafe { _mm_storeu_si128(p.cast(), pack_u16(bits)) }
    }

    #[inline(always)]
    unsafe fn store_bf16_partial(self, p: *mut u16, n: usize, v: __m256) {
        debug_assert!(n <= 8);
        let mut values = [0u16; 8];
        // SAFETY: the buffer has 8 values.
        unsafe { self.store_bf16(values.as_mut_ptr(), v) };
        // SAFETY: n <= 8 values are in the buffer, and the caller promises that they are writable.
        unsafe { p.copy_from_nonoverlapping(values.as_ptr(), n) };
    }
}
