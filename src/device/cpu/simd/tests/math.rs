//! Elementary functions against f64.

use super::vector_sets;
use super::{Isa, Kernel, Simd, dispatch};
use crate::device::cpu::simd::{map1, math};

/// `out[i] = f(x[i])` with a function of [`math`] by name.
macro_rules! function {
    ($name:ident) => {
        |isa: Isa, x: &[f32], out: &mut [f32]| {
            struct Call<'a>(&'a [f32], &'a mut [f32]);
            impl Kernel for Call<'_> {
                type Output = ();
                #[inline(always)]
                fn run<S: Simd>(self, s: S) {
                    map1(
                        s,
                        self.0,
                        self.1,
                        #[inline(always)]
                        |s, v| math::$name(s, v),
                    );
                }
            }
            dispatch(isa, Call(x, out))
        }
    };
}

type Function = fn(Isa, &[f32], &mut [f32]);

/// One f32 of every 4096 neighbouring bit patterns, not always the same of them: 2^20 values.
fn sweep() -> Vec<f32> {
    let mut values: Vec<f32> = (0..1u32 << 20)
        .map(|i| f32::from_bits((i << 12) | (i.wrapping_mul(2_654_435_761) >> 20)))
        .filter(|x| x.is_finite())
        .collect();
    // Most patterns are far from where anything happens: as many again in -128..128 and near 1.
    values.extend((0..1 << 19).map(|i| (i as f32 - 262_144.0) / 2048.0));
    values.extend((0..1 << 18).map(|i| f32::from_bits(0x3f80_0000 - (1 << 17) + i)));
    values.extend(super::SPECIAL.iter().filter(|x| x.is_finite()));
    values
}

/// The distance of `x` and its neighbour in f32; subnormals are equally spaced.
fn ulp(x: f64) -> f64 {
    let magnitude = (x.abs() as f32).max(f32::MIN_POSITIVE);
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    2f64.powi(exponent - 23)
}

/// What an error is measured in.
#[derive(Clone, Copy)]
enum Unit {
    Ulp,
    Absolute,
}

/// The largest error over the finite values of the sweep in `domain` must be within `bound`.
#[track_caller]
fn check(
    name: &str,
    f: Function,
    reference: fn(f64) -> f64,
    domain: (f32, f32),
    unit: Unit,
    bound: f64,
) {
    let x: Vec<f32> = sweep().into_iter().filter(|x| (domain.0..=domain.1).contains(x)).collect();
    assert!(x.len() > 100_000, "{name}: the sweep is empty");
    let references: Vec<f64> = x.iter().map(|&x| reference(f64::from(x))).collect();
    for isa in vector_sets() {
        let mut out = vec![f32::NAN; x.len()];
        f(isa, &x, &mut out);
        let (mut worst, mut at) = (0.0, 0.0);
        for ((&x, &y), &expected) in x.iter().zip(&out).zip(&references) {
            assert!(!expected.is_nan(), "{name}({x}): the reference is NaN");
            if expected.abs() as f32 == f32::INFINITY {
                assert_eq!(y, expected as f32, "{name} {isa} at {x:e}");
                continue;
            }
            assert!(!y.is_nan(), "{name} {isa}: NaN at {x:e}");
            // One step above the largest f32 counts as one ulp, as if the exponents went on.
            let y =
                if y.is_infinite() { 2f64.powi(128).copysign(f64::from(y)) } else { f64::from(y) };
            let error = match unit {
                Unit::Ulp => (y - expected).abs() / ulp(expected),
                Unit::Absolute => (y - expected).abs(),
            };
            if error > worst {
                (worst, at) = (error, x);
            }
        }
        println!("{name:12} {isa:8} largest error {worst:.3e} at {at:e}");
        assert!(worst <= bound, "{name} {isa}: error {worst} at {at:e}, allowed {bound}");
    }
}

/// `f(x)` must be exactly `expected` on every instruction set, NaN for NaN.
#[track_caller]
fn exactly(name: &str, f: Function, cases: &[(f32, f32)]) {
    for isa in vector_sets() {
        for &(x, expected) in cases {
            // In a whole vector, and in a partial one.
            for n in [1, 16] {
                let mut out = vec![7.0; n];
                f(isa, &vec![x; n], &mut out);
                for y in out {
                    assert!(
                        y == expected || (y.is_nan() && expected.is_nan()),
                        "{name}({x}) on {isa}: {y}, not {expected}"
                    );
                }
            }
        }
    }
}

/// The complementary error function: the Taylor series of erf below 2, from there on the continued
/// fraction of Laplace, bottom up. Both converge to about 1e-15 relative (of erf below 2, so about
/// 2e-13 of erfc at 2).
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 {
        return 1.0 - erf_series(x);
    }
    // sqrt(pi) exp(x^2) erfc(x) = 1 / (x + (1/2) / (x + (2/2) / (x + ...)))
    let fraction = (1..=100).rev().fold(x, |below, k| x + f64::from(k) / 2.0 / below);
    (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
}

/// `2 / sqrt(pi) (x - x^3 / 3 + x^5 / (2! 5) - ...)`, with the terms all positive:
/// `2 / sqrt(pi) exp(-x^2) (x + 2 x^3 / 3 + 4 x^5 / 15 + ...)`.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum, mut k) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-18 {
        k += 1.0;
        term *= 2.0 * x * x / (2.0 * k + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn erf(x: f64) -> f64 {
    if x.abs() < 2.0 { erf_series(x) } else { (1.0 - erfc(x.abs())).copysign(x) }
}

fn cdf(x: f64) -> f64 {
    0.5 * erfc(-x / std::f64::consts::SQRT_2)
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;
const ALL: (f32, f32) = (f32::MIN, f32::MAX);

/// Values of the reference itself, from tables (NIST DLMF 7.23).
#[test]
fn the_reference_of_erf_is_right() {
    for (x, expected) in [
        (0.5, 0.520_499_877_813_046_5),
        (1.0, 0.842_700_792_949_714_9),
        (2.0, 0.995_322_265_018_952_7),
        (3.0, 0.999_977_909_503_001_4),
    ] {
        assert!((erf(x) - expected).abs() < 1e-15, "erf({x}) = {}", erf(x));
    }
    assert!((erfc(5.0) / 1.537_459_794_428_034_8e-12 - 1.0).abs() < 1e-13);
    // Both formulas agree where they meet.
    assert!((erfc(2.0) / (1.0 - erf_series(2.0)) - 1.0).abs() < 1e-12);
}

#[test]
fn exp() {
    check("exp", function!(exp), f64::exp, ALL, Unit::Ulp, 1.1);
    exactly(
        "exp",
        function!(exp),
        &[(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (NAN, NAN), (89.0, INF), (-104.0, 0.0)],
    );
}

#[test]
fn exp_nonpositive() {
    let bounds = [(-8.0, 2.2), (-32.0, 3.2), (-f32::MAX, 5.0)];
    for (from, bound) in bounds {
        let name = "exp_nonpositive";
        check(name, function!(exp_nonpositive), f64::exp, (from, 0.0), Unit::Ulp, bound);
    }
    let exact = [(0.0, 1.0), (-0.0, 1.0), (-INF, 0.0), (NAN, NAN), (-104.0, 0.0)];
    exactly("exp_nonpositive", function!(exp_nonpositive), &exact);
}

/// Every f32 from where the result leaves 1 to where it is 0 or infinite: 0.6 billion values.
#[test]
#[ignore = "takes a minute"]
fn exp_of_every_number() {
    const BLOCK: u32 = 1 << 20;
    let (small, large) = (2f32.powi(-26).to_bits(), 104f32.to_bits());
    for isa in vector_sets() {
        let mut worst = 0.0f64;
        for sign in [0, 1 << 31] {
            for first in (small..large).step_by(BLOCK as usize) {
                let x: Vec<f32> =
                    (first..first + BLOCK).map(|bits| f32::from_bits(bits | sign)).collect();
                let mut y = vec![f32::NAN; x.len()];
                function!(exp)(isa, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let expected = f64::from(x).exp();
                    if expected.abs() as f32 == f32::INFINITY {
                        assert_eq!(y, f32::INFINITY, "exp({x:e}) on {isa}");
                        continue;
                    }
                    let y = if y == f32::INFINITY { 2f64.powi(128) } else { f64::from(y) };
                    let error = (y - expected).abs() / ulp(expected);
                    assert!(error <= 1.1, "exp({x:e}) on {isa}: {y:e}, {error} ulp");
                    worst = worst.max(error);
                }
            }
        }
        println!("exp {isa:8} largest error {worst:.4} ulp");
    }
}

#[test]
fn exp_m1() {
    check("exp_m1", function!(exp_m1), f64::exp_m1, ALL, Unit::Ulp, 1.6);
    exactly("exp_m1", function!(exp_m1), &[(0.0, 0.0), (INF, INF), (-INF, -1.0), (NAN, NAN)]);
}

#[test]
fn log() {
    check("log", function!(log), f64::ln, (f32::from_bits(1), f32::MAX), Unit::Ulp, 0.8);
    exactly(
        "log",
        function!(log),
        &[
            (0.0, -INF),
            (-0.0, -INF),
            (1.0, 0.0),
            (INF, INF),
            (-1.0, NAN),
            (-INF, NAN),
            (-1e-45, NAN),
            (NAN, NAN),
        ],
    );
}

#[test]
fn log_1p() {
    check("log_1p", function!(log_1p), f64::ln_1p, (-0.999_999_94, f32::MAX), Unit::Ulp, 1.5);
    exactly(
        "log_1p",
        function!(log_1p),
        &[(0.0, 0.0), (-1.0, -INF), (INF, INF), (-1.1, NAN), (-INF, NAN), (NAN, NAN)],
    );
}

#[test]
fn tanh() {
    check("tanh", function!(tanh), f64::tanh, ALL, Unit::Ulp, 1.3);
    exactly("tanh", function!(tanh), &[(0.0, 0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)]);
}

#[test]
fn sigmoid_and_silu() {
    check("sigmoid", function!(sigmoid), sigmoid, ALL, Unit::Ulp, 2.2);
    exactly("sigmoid", function!(sigmoid), &[(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (NAN, NAN)]);
    check("silu", function!(silu), |x| x * sigmoid(x), (-87.0, f32::MAX), Unit::Ulp, 3.0);
    exactly(
        "silu",
        function!(silu),
        &[(0.0, 0.0), (INF, INF), (-INF, NAN), (NAN, NAN), (f32::MIN, 0.0)],
    );
    let slope = |x: f64| sigmoid(x) + x * sigmoid(x) * sigmoid(-x);
    check("silu_grad", function!(silu_grad), slope, ALL, Unit::Absolute, 2e-7);
    exactly(
        "silu_grad",
        function!(silu_grad),
        &[(0.0, 0.5), (NAN, NAN), (f32::MIN, 0.0), (f32::MAX, 1.0)],
    );
}

#[test]
fn erf_and_gelu() {
    check("erf", function!(erf), erf, ALL, Unit::Ulp, 1.6);
    exactly("erf", function!(erf), &[(0.0, 0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)]);
    check("normal_cdf", function!(normal_cdf), cdf, ALL, Unit::Ulp, 4.0);
    exactly(
        "normal_cdf",
        function!(normal_cdf),
        &[(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (NAN, NAN)],
    );
    check("gelu", function!(gelu), |x| x * cdf(x), (-13.0, f32::MAX), Unit::Ulp, 4.5);
    exactly(
        "gelu",
        function!(gelu),
        &[(0.0, 0.0), (INF, INF), (-INF, NAN), (NAN, NAN), (f32::MIN, 0.0)],
    );
    let slope = |x: f64| cdf(x) + x * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    check("gelu_grad", function!(gelu_grad), slope, ALL, Unit::Absolute, 1.6e-7);
    exactly(
        "gelu_grad",
        function!(gelu_grad),
        &[(0.0, 0.5), (NAN, NAN), (f32::MIN, 0.0), (f32::MAX, 1.0)],
    );
}

#[test]
fn relu_and_softplus() {
    exactly(
        "relu",
        function!(relu),
        &[(-1.5, 0.0), (0.0, 0.0), (2.5, 2.5), (INF, INF), (-INF, 0.0), (NAN, NAN)],
    );
    check(
        "softplus",
        function!(softplus),
        |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
        ALL,
        Unit::Ulp,
        2.0,
    );
    exactly("softplus", function!(softplus), &[(INF, INF), (-INF, 0.0), (NAN, NAN)]);
}
