//! The drivers over slices.

use super::vector_sets;
use super::{Isa, Kernel, LENGTHS, Random, Simd, dispatch, same};
use crate::device::cpu::simd::{
    all_finite, dot, fold1, from_bf16, map_many, map_u8, map1, map2, map3, max, min, sum, to_bf16,
    update_many, update1, update2, update3,
};

/// Values with 4 fractional bits and sums that f32 holds exactly, whatever the order.
fn exact(random: &mut Random, n: usize) -> Vec<f32> {
    random.values(n).into_iter().map(|x| (x * 16.0).round() / 16.0).collect()
}

/// Every driver on slices of one length. Outputs lie between guards and are NaN before.
struct Drivers<'a> {
    x: &'a [f32],
    y: &'a [f32],
    z: &'a [f32],
}

const GUARD: f32 = 12_345.0;

impl Kernel for Drivers<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Drivers { x, y, z } = self;
        let n = x.len();
        let check = |name: &str,
                     run: &dyn Fn(&mut [f32]),
                     prefill: &[f32],
                     f: &dyn Fn(usize) -> f32| {
            let mut out = vec![GUARD; n + 40];
            out[20..n + 20].copy_from_slice(prefill);
            run(&mut out[20..n + 20]);
            assert!(out[..20].iter().chain(&out[n + 20..]).all(|&g| g == GUARD), "{name}: guard");
            for i in 0..n {
                assert!(same(out[20 + i], f(i)), "{name} of {n} on {}, element {i}", S::ISA);
            }
        };
        let nan = vec![f32::NAN; n];
        check("map1", &|out| map1(s, x, out, |s, x| s.add(x, s.splat(1.0))), &nan, &|i| x[i] + 1.0);
        check("map2", &|out| map2(s, x, y, out, |s, x, y| s.sub(x, y)), &nan, &|i| x[i] - y[i]);
        check(
            "map3",
            &|out| map3(s, x, y, z, out, |s, x, y, z| s.sub(s.mul(x, y), z)),
            &nan,
            &|i| x[i] * y[i] - z[i],
        );
        check("update1", &|out| update1(s, out, |s, x| s.neg(x)), x, &|i| -x[i]);
        check("update2", &|out| update2(s, out, y, |s, x, y| s.sub(x, y)), x, &|i| x[i] - y[i]);
        check(
            "update3",
            &|out| update3(s, out, y, z, |s, x, y, z| s.sub(s.mul(x, y), z)),
            x,
            &|i| x[i] * y[i] - z[i],
        );
        for second in [false, true] {
            let pair = |out: &mut [f32]| {
                let mut other = nan.clone();
                let (a, b) = if second { (&mut other[..], out) } else { (out, &mut other[..]) };
                map_many(s, [x, y], [a, b], |s, [x, y]| [s.add(x, y), s.sub(x, y)]);
            };
            let expected = |i: usize| if second { x[i] - y[i] } else { x[i] + y[i] };
            check("map_many", &pair, &nan, &expected);
            let pair = |out: &mut [f32]| {
                let mut other = if second { x.to_vec() } else { y.to_vec() };
                let (a, b) = if second { (&mut other[..], out) } else { (out, &mut other[..]) };
                update_many(s, [a, b], [z], |s, [a, b], [z]| [s.add(a, z), s.sub(b, a)]);
            };
            let expected = |i: usize| if second { y[i] - x[i] } else { x[i] + z[i] };
            check("update_many", &pair, if second { y } else { x }, &expected);
        }

        assert_eq!(sum(s, x), x.iter().sum::<f32>(), "sum of {n} on {}", S::ISA);
        assert_eq!(dot(s, x, y), x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>(), "dot of {n}");
        assert_eq!(max(s, x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max), "max of {n}");
        assert_eq!(min(s, x), x.iter().copied().fold(f32::INFINITY, f32::min), "min of {n}");
        // Zeros past the end would count as ones here.
        let ones = fold1(s, x, s.zero(), |s, acc, _| s.add(acc, s.splat(1.0)), S::add);
        assert_eq!(s.reduce_add(ones), n as f32, "fold1 counts its elements on {}", S::ISA);
        assert!(all_finite(s, x));
        for i in 0..n {
            let mut x = x.to_vec();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[i] = bad;
                assert!(!all_finite(s, &x), "{bad} at {i} of {n} on {}", S::ISA);
            }
            x[i] = f32::NAN;
            assert!(max(s, &x).is_nan() && min(s, &x).is_nan(), "NaN at {i} of {n} on {}", S::ISA);
        }

        let bytes: Vec<u8> = x.iter().map(|x| (x * 16.0 + 64.0) as u8).collect();
        check("map_u8", &|out| map_u8(s, &bytes, out, |s, x| s.add(x, x)), &nan, &|i| {
            2.0 * f32::from(bytes[i])
        });
        let mut halves = vec![7u16; n + 1];
        to_bf16(s, x, &mut halves[..n]);
        assert_eq!(halves[n], 7, "to_bf16: guard");
        check("bf16", &|out| from_bf16(s, &halves[..n], out), &nan, &|i| {
            half::bf16::from_f32(x[i]).to_f32()
        });
    }
}

#[test]
fn every_driver_at_every_length() {
    let mut random = Random::new(4);
    for isa in vector_sets() {
        for n in LENGTHS {
            let [x, y, z] = [0; 3].map(|_| exact(&mut random, n));
            dispatch(isa, Drivers { x: &x, y: &y, z: &z });
        }
    }
}

/// A sum of values of very different size, twice: equal bits, and near the sum in f64.
#[test]
fn a_sum_is_the_same_bits_again() {
    struct Sum<'a>(&'a [f32]);
    impl Kernel for Sum<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            sum(s, self.0)
        }
    }
    let mut random = Random::new(5);
    let x: Vec<f32> = (0..10_007).map(|_| random.value().exp()).collect();
    let expected: f64 = x.iter().map(|&x| f64::from(x)).sum();
    for isa in vector_sets() {
        let y = dispatch(isa, Sum(&x));
        let again = dispatch(isa, Sum(&x.clone()));
        assert_eq!(y.to_bits(), again.to_bits());
        // 10007 / (4 8) additions in a row and a few more, half an ulp each, of positive terms.
        let error = (f64::from(y) / expected - 1.0).abs();
        assert!(error <= 320.0 * 2f64.powi(-24), "{isa}: {error:e}");
    }
}

#[test]
#[should_panic(expected = "differ in length")]
fn lengths_must_be_equal() {
    struct Short;
    impl Kernel for Short {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            map2(s, &[1.0; 20], &[1.0; 19], &mut [0.0; 20], |s, x, y| s.add(x, y));
        }
    }
    dispatch(Isa::Portable, Short);
}
