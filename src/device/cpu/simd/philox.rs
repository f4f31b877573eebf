//! Random bits from a counter: Philox4x32 with 10 rounds.
//!
//! The bits are a function of key and counter alone, so any element can be made by any thread, in
//! any order, on any instruction set, and made again in the backward pass.
//! Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.

use super::Simd;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What is added to the key between rounds: the golden ratio and sqrt(3) - 1.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Elements to which one counter block of [`fill_uniform`] belongs: 16 counters of 4 words.
pub const BLOCK: usize = 64;

/// The 4 words of one counter.
#[inline]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) =
            ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// [`philox4x32`] of one counter a lane: lane `i` of `counter[j]` is word `j` of counter `i`.
#[inline(always)]
pub fn philox4x32_lanes<S: Simd>(s: S, key: [u32; 2], counter: [S::I32; 4]) -> [S::I32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let (m0, m1) = (s.splat_i32(MULTIPLIERS[0] as i32), s.splat_i32(MULTIPLIERS[1] as i32));
    for _ in 0..ROUNDS {
        let (a_low, a_high) = s.mul_wide_u32(c0, m0);
        let (b_low, b_high) = s.mul_wide_u32(c2, m1);
        c0 = s.xor_i32(s.xor_i32(b_high, c1), s.splat_i32(k0 as i32));
        c1 = b_low;
        c2 = s.xor_i32(s.xor_i32(a_high, c3), s.splat_i32(k1 as i32));
        c3 = a_low;
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// Random words as f32 in 0..1: the upper 24 bits of each, times 2^-24.
#[inline(always)]
pub fn uniform<S: Simd>(s: S, bits: S::I32) -> S::F32 {
    s.mul(s.to_f32(s.shr_i32(bits, 8)), s.splat(1.0 / 16_777_216.0))
}

/// Fills `out` with uniform values in 0..1: elements `first..first + len` of the sequence that
/// `key` and `stream` name. The same element is the same value on every instruction set and in
/// every split into calls: element `e` has word `e % 64 / 16` of counter `e / 64 * 16 + e % 16`.
///
/// # Panics
/// `first` is not a multiple of [`BLOCK`].
#[inline(always)]
pub fn fill_uniform<S: Simd>(s: S, key: [u32; 2], stream: u64, first: u64, out: &mut [f32]) {
    assert!(first.is_multiple_of(BLOCK as u64), "fill_uniform: {first} is not a multiple of 64");
    let (stream_low, stream_high) = (stream as u32 as i32, (stream >> 32) as i32);
    let quarter = BLOCK / 4;
    for (block, out) in (first / BLOCK as u64..).zip(out.chunks_mut(BLOCK)) {
        let mut lane = 0;
        while lane < quarter {
            // A block holds 16 counters from a multiple of 16, so the low word does not carry.
            let counter = block * quarter as u64 + lane as u64;
            let low = s.add_i32(s.splat_i32(counter as u32 as i32), s.iota_i32());
            let words = philox4x32_lanes(
                s,
                key,
                [
                    low,
                    s.splat_i32((counter >> 32) as i32),
                    s.splat_i32(stream_low),
                    s.splat_i32(stream_high),
                ],
            );
            for (word, bits) in words.into_iter().enumerate() {
                if let Some(out) = out.get_mut(word * quarter + lane..) {
                    s.store_slice(out, uniform(s, bits));
                }
            }
            lane += S::LANES;
        }
    }
}
