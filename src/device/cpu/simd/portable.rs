//! Plain Rust: 8 lanes in an array, which the compiler turns into what the build target has.
//!
//! No fused multiply-add: where the target lacks one it is a call into the mathematics library.

use super::{Simd, sealed};
use crate::device::cpu::Isa;
use std::array::from_fn;

const LANES: usize = 8;

/// The instruction set that every machine has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Portable(());

impl Portable {
    /// The token.
    #[inline]
    pub fn new() -> Self {
        Portable(())
    }
}

impl sealed::Sealed for Portable {}

/// All ones for true, so that a selection is three operations on bits and needs no branch.
#[inline(always)]
fn truth(b: bool) -> u32 {
    u32::from(b).wrapping_neg()
}

/// From 2^23 on every f32 is an integer; below, adding 2^23 leaves no bit for a fraction.
#[inline(always)]
fn round_even(x: f32) -> f32 {
    const UNIT: f32 = 8_388_608.0;
    let magnitude = x.abs();
    let rounded = if magnitude < UNIT { (magnitude + UNIT) - UNIT } else { magnitude };
    rounded.copysign(x)
}

#[inline(always)]
fn floor(x: f32) -> f32 {
    let rounded = round_even(x);
    let below = if rounded > x { rounded - 1.0 } else { rounded };
    if below == 0.0 { below.copysign(x) } else { below }
}

#[inline(always)]
fn to_i32(x: f32) -> i32 {
    let rounded = round_even(x);
    let fits = (-2_147_483_648.0..2_147_483_648.0).contains(&rounded);
    if fits { rounded as i32 } else { i32::MIN }
}

/// Writes methods of [`Simd`] that work lane by lane: `i` is the lane.
macro_rules! lanes {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = |$i:ident| $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            from_fn(#[inline(always)] |$i| $body)
        }
    )*};
}

/// Reduces 8 lanes: 4 + 4, then 2 + 2, then 1 + 1.
#[inline(always)]
fn tree(a: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let a: [f32; 4] = from_fn(|i| f(a[i], a[i + 4]));
    f(f(a[0], a[2]), f(a[1], a[3]))
}

type F = [f32; LANES];
type I = [i32; LANES];
type M = [u32; LANES];

impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = LANES;
    type F32 = F;
    type I32 = I;
    type Mask = M;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    lanes! {
        splat(x: f32) -> F = |_i| x;
        add(a: F, b: F) -> F = |i| a[i] + b[i];
        sub(a: F, b: F) -> F = |i| a[i] - b[i];
        mul(a: F, b: F) -> F = |i| a[i] * b[i];
        div(a: F, b: F) -> F = |i| a[i] / b[i];
        min(a: F, b: F) -> F = |i| if a[i] < b[i] { a[i] } else { b[i] };
        max(a: F, b: F) -> F = |i| if a[i] > b[i] { a[i] } else { b[i] };
        sqrt(a: F) -> F = |i| a[i].sqrt();
        mul_add(a: F, b: F, c: F) -> F = |i| a[i] * b[i] + c[i];
        neg_mul_add(a: F, b: F, c: F) -> F = |i| c[i] - a[i] * b[i];
        round_even(a: F) -> F = |i| round_even(a[i]);
        floor(a: F) -> F = |i| floor(a[i]);

        lt(a: F, b: F) -> M = |i| truth(a[i] < b[i]);
        le(a: F, b: F) -> M = |i| truth(a[i] <= b[i]);
        eq(a: F, b: F) -> M = |i| truth(a[i] == b[i]);
        is_nan(a: F) -> M = |i| truth(a[i].is_nan());
        first(n: usize) -> M = |i| truth(i < n);
        mask_and(a: M, b: M) -> M = |i| a[i] & b[i];
        mask_or(a: M, b: M) -> M = |i| a[i] | b[i];
        mask_not(a: M) -> M = |i| !a[i];
        select(m: M, a: F, b: F) -> F =
            |i| f32::from_bits((m[i] & a[i].to_bits()) | (!m[i] & b[i].to_bits()));
        select_i32(m: M, a: I, b: I) -> I =
            |i| ((m[i] & a[i] as u32) | (!m[i] & b[i] as u32)) as i32;

        splat_i32(x: i32) -> I = |_i| x;
        iota_i32() -> I = |i| i as i32;
        add_i32(a: I, b: I) -> I = |i| a[i].wrapping_add(b[i]);
        sub_i32(a: I, b: I) -> I = |i| a[i].wrapping_sub(b[i]);
        mul_i32(a: I, b: I) -> I = |i| a[i].wrapping_mul(b[i]);
        and_i32(a: I, b: I) -> I = |i| a[i] & b[i];
        or_i32(a: I, b: I) -> I = |i| a[i] | b[i];
        xor_i32(a: I, b: I) -> I = |i| a[i] ^ b[i];
        shl_i32(a: I, n: u32) -> I = |i| a[i] << n;
        shr_i32(a: I, n: u32) -> I = |i| (a[i] as u32 >> n) as i32;
        sar_i32(a: I, n: u32) -> I = |i| a[i] >> n;
        eq_i32(a: I, b: I) -> M = |i| truth(a[i] == b[i]);
        gt_i32(a: I, b: I) -> M = |i| truth(a[i] > b[i]);

        to_i32(a: F) -> I = |i| to_i32(a[i]);
        to_f32(a: I) -> F = |i| a[i] as f32;
        bitcast_i32(a: F) -> I = |i| a[i].to_bits() as i32;
        bitcast_f32(a: I) -> F = |i| f32::from_bits(a[i] as u32);
    }

    #[inline(always)]
    fn mul_wide_u32(self, a: I, b: I) -> (I, I) {
        let wide: [u64; LANES] = from_fn(|i| u64::from(a[i] as u32) * u64::from(b[i] as u32));
        (from_fn(|i| wide[i] as i32), from_fn(|i| (wide[i] >> 32) as i32))
    }

    #[inline(always)]
    fn reduce_add(self, a: F) -> f32 {
        tree(a, |x, y| x + y)
    }

    #[inline(always)]
    fn reduce_max(self, a: F) -> f32 {
        if self.any(self.is_nan(a)) { f32::NAN } else { tree(a, f32::max) }
    }

    #[inline(always)]
    fn reduce_min(self, a: F) -> f32 {
        if self.any(self.is_nan(a)) { f32::NAN } else { tree(a, f32::min) }
    }

    #[inline(always)]
    fn bits(self, m: M) -> u32 {
        m.iter().enumerate().fold(0, |bits, (i, lane)| bits | ((lane & 1) << i))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller promises that 8 values are readable.
        unsafe { p.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: the caller promises that 8 values are writable.
        unsafe { p.cast::<F>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize, fill: f32) -> F {
        debug_assert!(n <= LANES);
        let mut v = [fill; LANES];
        // SAFETY: n <= 8 values fit the array, and the caller promises that they are readable.
        unsafe { p.copy_to_nonoverlapping(v.as_mut_ptr(), n) };
        v
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: F) {
        debug_assert!(n <= LANES);
        // SAFETY: n <= 8 values are in the array, and the caller promises that they are writable.
        unsafe { p.copy_from_nonoverlapping(v.as_ptr(), n) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> F {
        // SAFETY: the caller promises that 8 bytes are readable.
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        bytes.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_u8_partial(self, p: *const u8, n: usize) -> F {
        debug_assert!(n <= LANES);
        let mut bytes = [0u8; LANES];
        // SAFETY: n <= 8 bytes fit the array, and the caller promises that they are readable.
        unsafe { p.copy_to_nonoverlapping(bytes.as_mut_ptr(), n) };
        bytes.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller promises that 8 values are readable.
        let values = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        values.map(|x| f32::from_bits(u32::from(x) << 16))
    }

    #[inline(always)]
    unsafe fn load_bf16_partial(self, p: *const u16, n: usize) -> F {
        debug_assert!(n <= LANES);
        let mut values = [0u16; LANES];
        // SAFETY: n <= 8 values fit the array, and the caller promises that they are readable.
        unsafe { p.copy_to_nonoverlapping(values.as_mut_ptr(), n) };
        values.map(|x| f32::from_bits(u32::from(x) << 16))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: F) {
        let values = self.to_bf16_bits(v).map(|bits| bits as u16);
        // SAFETY: the caller promises that 8 values are writable.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(values) }
    }

    #[inline(always)]
    unsafe fn store_bf16_partial(self, p: *mut u16, n: usize, v: F) {
        debug_assert!(n <= LANES);
        let values = self.to_bf16_bits(v).map(|bits| bits as u16);
        // SAFETY: n <= 8 values are in the array, and the caller promises that they are writable.
        unsafe { p.copy_from_nonoverlapping(values.as_ptr(), n) }
    }
}
