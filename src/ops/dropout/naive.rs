//! The oracle of `dropout`.

use crate::device::cpu::simd::philox::philox4x32;

/// The multiplier of element `e`: word `e % 64 / 16` of counter `e / 64 * 16 + e % 16`, as the
/// module says, decides it.
pub(super) fn multiplier(key: [u32; 2], stream: u64, e: u64, p: f32) -> f64 {
    let counter = e / 64 * 16 + e % 16;
    let words = philox4x32(
        key,
        [counter as u32, (counter >> 32) as u32, stream as u32, (stream >> 32) as u32],
    );
    let uniform = f64::from(words[(e % 64 / 16) as usize] >> 8) / f64::from(1u32 << 24);
    if uniform >= f64::from(p) { 1.0 / (1.0 - f64::from(p)) } else { 0.0 }
}

pub(super) fn dropout(x: &[f64], y: &mut [f64], key: [u32; 2], stream: u64, p: f32) {
    for (e, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        *y = x * multiplier(key, stream, e as u64, p);
    }
}
