//! Philox against the published vectors, and vectors against scalars.

use super::vector_sets;
use super::{Isa, Kernel, Simd, dispatch};
use crate::device::cpu::simd::philox::{fill_uniform, philox4x32, philox4x32_lanes};

/// Known answers of the Random123 library (kat_vectors, philox 4x32 10): key, counter, result.
const KNOWN: [([u32; 2], [u32; 4], [u32; 4]); 3] = [
    ([0, 0], [0, 0, 0, 0], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
    ([!0, !0], [!0, !0, !0, !0], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
    (
        [0xa409_3822, 0x299f_31d0],
        [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ),
];

#[test]
fn known_answers() {
    for (key, counter, expected) in KNOWN {
        assert_eq!(philox4x32(key, counter), expected);
    }
}

#[test]
fn vectors_are_scalars_side_by_side() {
    /// Counters whose words differ from lane to lane.
    struct Lanes([u32; 2], [u32; 4]);
    impl Kernel for Lanes {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Lanes(key, counter) = self;
            let steps = [1, 0x0100_0193, 77_777, 0x8000_0001u32];
            let lanes = [0, 1, 2, 3].map(|j| {
                let step = s.mul_i32(s.iota_i32(), s.splat_i32(steps[j] as i32));
                s.add_i32(s.splat_i32(counter[j] as i32), step)
            });
            let words = philox4x32_lanes(s, key, lanes);
            for (j, word) in words.into_iter().enumerate() {
                let mut out = [0i32; 16];
                // SAFETY: the buffer has 16 integers, and no vector has more lanes.
                unsafe { s.store_i32(out.as_mut_ptr(), word) };
                for (i, &got) in out[..S::LANES].iter().enumerate() {
                    let mut counter = counter;
                    for (c, step) in counter.iter_mut().zip(steps) {
                        *c = c.wrapping_add(step.wrapping_mul(i as u32));
                    }
                    assert_eq!(got as u32, philox4x32(key, counter)[j], "{} {i}", S::ISA);
                }
            }
        }
    }
    for isa in vector_sets() {
        for (key, counter, _) in KNOWN {
            dispatch(isa, Lanes(key, counter));
        }
    }
}

struct Fill<'a>(u64, u64, &'a mut [f32]);

impl Kernel for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        fill_uniform(s, [5, 6], self.0, self.1, self.2);
    }
}

/// The value that the contract of [`fill_uniform`] gives to one element.
fn element(stream: u64, e: u64) -> f32 {
    let counter = e / 64 * 16 + e % 16;
    let words = [counter as u32, (counter >> 32) as u32, stream as u32, (stream >> 32) as u32];
    (philox4x32([5, 6], words)[(e % 64 / 16) as usize] >> 8) as f32 / 16_777_216.0
}

#[test]
fn uniform_values_belong_to_elements() {
    for isa in vector_sets() {
        for n in super::LENGTHS {
            // The second start is where the low word of the counter is about to carry.
            for (stream, first) in [(0, 0), (0x1_2345_6789, (1u64 << 34) - 64), (u64::MAX, 6400)] {
                let mut out = vec![f32::NAN; n + 1];
                dispatch(isa, Fill(stream, first, &mut out[..n]));
                for (i, &x) in out[..n].iter().enumerate() {
                    assert_eq!(x, element(stream, first + i as u64), "{isa} {n} {i}");
                }
                assert!(out[n].is_nan(), "guard");
            }
        }
    }
}

/// Mean and variance of a uniform distribution, each within 5 standard errors.
#[test]
fn uniform_values_look_uniform() {
    let mut x = vec![f32::NAN; 1 << 18];
    dispatch(Isa::Portable, Fill(9, 0, &mut x));
    assert!(x.iter().all(|x| (0.0..1.0).contains(x)));
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = x.iter().map(|&x| (f64::from(x) - 0.5).powi(2)).sum::<f64>() / n;
    assert!((mean - 0.5).abs() <= 5.0 * (1.0 / 12.0 / n).sqrt(), "{mean}");
    assert!((variance - 1.0 / 12.0).abs() <= 5.0 * (1.0 / 180.0 / n).sqrt(), "{variance}");
}
