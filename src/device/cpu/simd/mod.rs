//! Vectors of f32: an algorithm is written once over [`Simd`], and compiled for every instruction set.
//!
//! A kernel is a value that implements [`Kernel`]; [`dispatch`] runs it with the token of an
//! instruction set. Everything between `dispatch` and the intrinsics must be inlined, because a
//! function that is not inlined is compiled without the instruction set: correct, but 50 times
//! slower, each intrinsic being a call. So write `#[inline(always)]` before `fn run`, before every helper that takes a token,
//! and before every closure that is handed to [`map1`] and its kin:
//!
//! ```
//! use twoclocks::device::cpu::Isa;
//! use twoclocks::device::cpu::simd::{Kernel, Simd, dispatch, map1};
//!
//! /// `out[i] = 2 x[i]`
//! struct Double<'a> {
//!     x: &'a [f32],
//!     out: &'a mut [f32],
//! }
//!
//! impl Kernel for Double<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) {
//!         map1(s, self.x, self.out, #[inline(always)] |s, v| s.add(v, v));
//!     }
//! }
//!
//! let mut out = [0.0; 3];
//! dispatch(Isa::Portable, Double { x: &[1.0, 2.0, 3.0], out: &mut out });
//! assert_eq!(out, [2.0, 4.0, 6.0]);
//! ```
//!
//! Results have the same bits at every run on one instruction set. Between instruction sets they
//! differ by rounding: the portable one has no fused multiply-add, and sums are combined in an order
//! that depends on the number of lanes.
#![allow(unsafe_code)]

use super::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
pub mod philox;
mod portable;
mod slices;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;
pub use slices::{
    all_finite, dot, fold_many, fold1, fold2, from_bf16, map_many, map_u8, map1, map2, map3, max,
    min, sum, to_bf16, update_many, update1, update2, update3,
};

/// The drivers read and write [`Simd::LANES`] lanes through raw pointers, so no other crate may
/// claim to be an instruction set.
mod sealed {
    pub trait Sealed {}
}

/// An instruction set, as a token: holding the value proves that this CPU has it.
///
/// Lanes are f32 or 32-bit integers; integers have no sign of their own, the operation says how it
/// reads them. Comparisons with NaN are false. Operations round to nearest even.
pub trait Simd: Copy + Send + Sync + 'static + sealed::Sealed {
    /// The instruction set that the token stands for.
    const ISA: Isa;
    /// Lanes in a vector: 8 or 16.
    const LANES: usize;
    /// [`Simd::LANES`] values of f32.
    type F32: Copy;
    /// [`Simd::LANES`] 32-bit integers.
    type I32: Copy;
    /// [`Simd::LANES`] truth values.
    type Mask: Copy;

    /// Runs `f` so that everything `#[inline(always)]` in it is compiled for this instruction set.
    /// [`dispatch`] has done so already: only code that holds a token from elsewhere needs it.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    // ---- f32: memory ----

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;

    /// Zero in every lane.
    #[inline(always)]
    fn zero(self) -> Self::F32 {
        self.splat(0.0)
    }

    /// The [`Simd::LANES`] values at `p`, at any alignment.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(self, p: *const f32) -> Self::F32;

    /// Writes every lane to `p`, at any alignment.
    ///
    /// # Safety
    /// [`Simd::LANES`] values are writable there.
    unsafe fn store(self, p: *mut f32, v: Self::F32);

    /// The `n` values at `p` in the first lanes, `fill` in the others. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` values are readable.
    unsafe fn load_partial(self, p: *const f32, n: usize, fill: f32) -> Self::F32;

    /// Writes the first `n` lanes to `p`. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` values are writable there.
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::F32);

    /// The first `min(LANES, len)` values of `x`, and zero in the other lanes.
    #[inline(always)]
    fn load_slice(self, x: &[f32]) -> Self::F32 {
        self.load_slice_or(x, 0.0)
    }

    /// The first `min(LANES, len)` values of `x`, and `fill` in the other lanes.
    #[inline(always)]
    fn load_slice_or(self, x: &[f32], fill: f32) -> Self::F32 {
        if x.len() >= Self::LANES {
            // SAFETY: the branch holds only if the slice has LANES values.
            unsafe { self.load(x.as_ptr()) }
        } else {
            // SAFETY: n is the length of the slice, and less than LANES.
            unsafe { self.load_partial(x.as_ptr(), x.len(), fill) }
        }
    }

    /// Writes the first `min(LANES, len)` lanes to `x`.
    #[inline(always)]
    fn store_slice(self, x: &mut [f32], v: Self::F32) {
        if x.len() >= Self::LANES {
            // SAFETY: the branch holds only if the slice has LANES values.
            unsafe { self.store(x.as_mut_ptr(), v) }
        } else {
            // SAFETY: n is the length of the slice, and less than LANES.
            unsafe { self.store_partial(x.as_mut_ptr(), x.len(), v) }
        }
    }

    /// Columns 0 to 3 of [`Simd::LANES`] rows, `stride` elements apart: a vector a column, a lane a
    /// row.
    #[inline(always)]
    fn load_four_columns(self, x: &[f32], stride: usize) -> [Self::F32; 4] {
        let mut columns = [[0.0; 16]; 4];
        for lane in 0..Self::LANES {
            for (column, &x) in columns.iter_mut().zip(&x[lane * stride..][..4]) {
                column[lane] = x;
            }
        }
        columns.map(|column| self.load_slice(&column))
    }

    /// Writes vectors to where [`Simd::load_four_columns`] reads them.
    #[inline(always)]
    fn store_four_columns(self, x: &mut [f32], stride: usize, columns: [Self::F32; 4]) {
        let columns = columns.map(|v| {
            let mut column = [0.0; 16];
            self.store_slice(&mut column, v);
            column
        });
        for lane in 0..Self::LANES {
            for (column, x) in columns.iter().zip(&mut x[lane * stride..][..4]) {
                *x = column[lane];
            }
        }
    }

    /// Begins to bring the cache line at `p` from memory; a hint, and any address will do.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }

    // ---- f32: arithmetic ----

    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a` where `a < b`, else `b`: so `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a` where `a > b`, else `b`: so `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The square root; NaN for negative values.
    fn sqrt(self, a: Self::F32) -> Self::F32;
    /// `a b + c`, rounded once; on [`Portable`] the product is rounded too.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `c - a b`, rounded once; on [`Portable`] the product is rounded too.
    fn neg_mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The nearest integer, the even one of two; the sign of zero is kept.
    fn round_even(self, a: Self::F32) -> Self::F32;
    /// The largest integer that is not above `a`.
    fn floor(self, a: Self::F32) -> Self::F32;

    /// The larger of both, and NaN where either is NaN.
    #[inline(always)]
    fn max_nan(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.select(self.is_nan(a), a, self.max(a, b))
    }

    /// The smaller of both, and NaN where either is NaN.
    #[inline(always)]
    fn min_nan(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.select(self.is_nan(a), a, self.min(a, b))
    }

    /// `-a`: the sign bit is turned over, that of zero and NaN too.
    #[inline(always)]
    fn neg(self, a: Self::F32) -> Self::F32 {
        self.bitcast_f32(self.xor_i32(self.bitcast_i32(a), self.splat_i32(i32::MIN)))
    }

    /// `|a|`: the sign bit is cleared.
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        self.bitcast_f32(self.and_i32(self.bitcast_i32(a), self.splat_i32(i32::MAX)))
    }

    /// `|a|` with the sign bit of `sign`.
    #[inline(always)]
    fn copysign(self, a: Self::F32, sign: Self::F32) -> Self::F32 {
        let sign = self.and_i32(self.bitcast_i32(sign), self.splat_i32(i32::MIN));
        self.bitcast_f32(self.or_i32(self.bitcast_i32(self.abs(a)), sign))
    }

    /// `a 2^n` for integral `n` in -252..=254. Rounds once as long as `a 2^(n/2)` is normal,
    /// overflows to infinity, underflows gradually.
    #[inline(always)]
    fn scale_pow2(self, a: Self::F32, n: Self::F32) -> Self::F32 {
        // 2^n itself may be out of range, so its two halves are multiplied in turn.
        let n = self.to_i32(n);
        let half = self.sar_i32(n, 1);
        let (x, y) = (self.pow2_i32(half), self.pow2_i32(self.sub_i32(n, half)));
        self.mul(self.mul(a, x), y)
    }

    /// `2^n` for integers `n` in -126..=127.
    #[inline(always)]
    fn pow2_i32(self, n: Self::I32) -> Self::F32 {
        self.bitcast_f32(self.shl_i32(self.add_i32(n, self.splat_i32(127)), 23))
    }

    // ---- f32: reductions, in a fixed order ----

    /// The sum of all lanes: the upper half is added to the lower half until one lane is left.
    fn reduce_add(self, a: Self::F32) -> f32;
    /// The largest lane, or NaN if any lane is NaN.
    fn reduce_max(self, a: Self::F32) -> f32;
    /// The smallest lane, or NaN if any lane is NaN.
    fn reduce_min(self, a: Self::F32) -> f32;

    // ---- masks ----

    /// `a < b`
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a <= b`
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a == b`
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// Whether `a` is NaN.
    fn is_nan(self, a: Self::F32) -> Self::Mask;
    /// True in the first `n` lanes; `n` past [`Simd::LANES`] is all of them.
    fn first(self, n: usize) -> Self::Mask;
    /// `a && b`
    fn mask_and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// `a || b`
    fn mask_or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// `!a`
    fn mask_not(self, a: Self::Mask) -> Self::Mask;
    /// `a` where `m` is true, `b` where it is not.
    fn select(self, m: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a` where `m` is true, `b` where it is not.
    fn select_i32(self, m: Self::Mask, a: Self::I32, b: Self::I32) -> Self::I32;
    /// One bit a lane, lane 0 in the lowest.
    fn bits(self, m: Self::Mask) -> u32;

    /// `a > b`
    #[inline(always)]
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.lt(b, a)
    }

    /// `a >= b`
    #[inline(always)]
    fn ge(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.le(b, a)
    }

    /// Whether any lane is true.
    #[inline(always)]
    fn any(self, m: Self::Mask) -> bool {
        self.bits(m) != 0
    }

    /// Whether every lane is true.
    #[inline(always)]
    fn all(self, m: Self::Mask) -> bool {
        self.count(m) == Self::LANES as u32
    }

    /// How many lanes are true.
    #[inline(always)]
    fn count(self, m: Self::Mask) -> u32 {
        self.bits(m).count_ones()
    }

    // ---- integers: arithmetic wraps ----

    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// The number of the lane: 0, 1, 2, ...
    fn iota_i32(self) -> Self::I32;

    /// The [`Simd::LANES`] integers at `p`, at any alignment.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> Self::I32 {
        // SAFETY: the caller's promise; a load copies bits, so the type of the element is no matter.
        self.bitcast_i32(unsafe { self.load(p.cast()) })
    }

    /// Writes every lane to `p`, at any alignment.
    ///
    /// # Safety
    /// [`Simd::LANES`] integers are writable there.
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: Self::I32) {
        // SAFETY: the caller's promise; a store copies bits, so the type of the element is no matter.
        unsafe { self.store(p.cast(), self.bitcast_f32(v)) }
    }

    /// The `n` integers at `p` in the first lanes, zero in the others. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` integers are readable.
    #[inline(always)]
    unsafe fn load_i32_partial(self, p: *const i32, n: usize) -> Self::I32 {
        // SAFETY: the caller's promise; a load copies bits, so the type of the element is no matter.
        self.bitcast_i32(unsafe { self.load_partial(p.cast(), n, 0.0) })
    }

    /// Writes the first `n` lanes to `p`. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` integers are writable there.
    #[inline(always)]
    unsafe fn store_i32_partial(self, p: *mut i32, n: usize, v: Self::I32) {
        // SAFETY: the caller's promise; a store copies bits, so the type of the element is no matter.
        unsafe { self.store_partial(p.cast(), n, self.bitcast_f32(v)) }
    }

    /// `a + b`
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a - b`
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The low 32 bits of `a b`.
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The low and the high 32 bits of `a b`, both read as unsigned.
    fn mul_wide_u32(self, a: Self::I32, b: Self::I32) -> (Self::I32, Self::I32);
    /// `a & b`
    fn and_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a | b`
    fn or_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a ^ b`
    fn xor_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a << n` for `n` in 0..=31.
    fn shl_i32(self, a: Self::I32, n: u32) -> Self::I32;
    /// `a >> n` for `n` in 0..=31, with zeros from the left.
    fn shr_i32(self, a: Self::I32, n: u32) -> Self::I32;
    /// `a >> n` for `n` in 0..=31, with copies of the sign bit from the left.
    fn sar_i32(self, a: Self::I32, n: u32) -> Self::I32;
    /// `a == b`
    fn eq_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    /// `a > b`, both read as signed.
    fn gt_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;

    // ---- conversions ----

    /// The nearest integer, the even one of two; [`i32::MIN`] for NaN and what is out of range.
    fn to_i32(self, a: Self::F32) -> Self::I32;
    /// The nearest f32, of integers read as signed.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    /// The bits of the f32.
    fn bitcast_i32(self, a: Self::F32) -> Self::I32;
    /// The f32 of those bits.
    fn bitcast_f32(self, a: Self::I32) -> Self::F32;

    /// The [`Simd::LANES`] bytes at `p`, as 0.0 to 255.0.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_u8(self, p: *const u8) -> Self::F32;

    /// The `n` bytes at `p` in the first lanes, zero in the others. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` bytes are readable.
    unsafe fn load_u8_partial(self, p: *const u8, n: usize) -> Self::F32;

    /// The [`Simd::LANES`] bf16 values at `p`, at any alignment.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F32;

    /// The `n` bf16 values at `p` in the first lanes, zero in the others. Memory past `n` is not
    /// touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` values are readable.
    unsafe fn load_bf16_partial(self, p: *const u16, n: usize) -> Self::F32;

    /// Writes every lane to `p` as bf16, rounded to nearest even; NaN stays NaN. Any alignment.
    ///
    /// # Safety
    /// [`Simd::LANES`] values are writable there.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F32);

    /// Writes the first `n` lanes to `p` as [`Simd::store_bf16`] does. Memory past `n` is not touched.
    ///
    /// # Safety
    /// `n <= LANES`, and `n` values are writable there.
    unsafe fn store_bf16_partial(self, p: *mut u16, n: usize, v: Self::F32);

    /// The nearest bf16 of each lane, even one of two, in the low 16 bits; the high 16 are zero.
    /// NaN stays NaN: its quiet bit is set.
    #[inline(always)]
    fn to_bf16_bits(self, a: Self::F32) -> Self::I32 {
        // Adding 0x7fff, and one more if the kept part is odd, carries into the kept part exactly
        // where rounding to nearest even goes up; into infinity from the largest values too.
        let bits = self.bitcast_i32(a);
        let kept = self.shr_i32(bits, 16);
        let odd = self.and_i32(kept, self.splat_i32(1));
        let rounded = self.add_i32(self.add_i32(bits, self.splat_i32(0x7fff)), odd);
        let quiet = self.or_i32(kept, self.splat_i32(0x40));
        self.select_i32(self.is_nan(a), quiet, self.shr_i32(rounded, 16))
    }
}

/// An algorithm that is written once for every instruction set.
pub trait Kernel {
    /// What a run gives.
    type Output;

    /// Runs the kernel with the token `s`. Implementations are `#[inline(always)]`: only then are
    /// they compiled for the instruction set.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel`, compiled for `isa`.
///
/// # Panics
/// This machine lacks `isa`: the caller has it from [`Isa::detect`] or [`Isa::available`].
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Portable => enter(Some(Portable::new()), kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => enter(Avx2::new(), kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => enter(Avx512::new(), kernel),
        #[cfg(not(target_arch = "x86_64"))]
        _ => enter(None::<Portable>, kernel),
    }
}

/// Runs `kernel` with the token, which must be there.
#[inline(always)]
fn enter<S: Simd, K: Kernel>(s: Option<S>, kernel: K) -> K::Output {
    let Some(s) = s else { panic!("dispatch: this machine lacks the instruction set") };
    s.vectorize(
        #[inline(always)]
        || kernel.run(s),
    )
}

/// Writes methods of [`Simd`] whose body is intrinsics, from lines `name(arguments) -> type = body;`.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            // SAFETY: `self` exists only where `new` found every feature that these need.
            unsafe { $body }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
use intrinsics;
