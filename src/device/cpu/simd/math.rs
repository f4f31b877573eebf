//! Elementary functions over [`Simd`].
//!
//! Errors are the largest seen against f64 references over a sweep of all f32 on every instruction
//! set (the tests next to this file assert them); 1 ulp is the distance of neighbouring f32 values
//! at the result. NaN in gives NaN out.
//!
//! Polynomials are minimax fits to f32 coefficients. The portable instruction set has no fused
//! multiply-add, so nothing here relies on one: products that must be exact are made so by short
//! constants or by splitting a factor.

use super::{Isa, Simd};

/// ln 2 in two parts: the first has 15 bits, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;

/// `c[0] + c[1] x + c[2] x^2 + ...` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd>(s: S, x: S::F32, c: &[f32]) -> S::F32 {
    let (last, rest) = c.split_last().unwrap_or((&0.0, &[]));
    let mut y = s.splat(*last);
    for c in rest.iter().rev() {
        y = s.mul_add(y, x, s.splat(*c));
    }
    y
}

/// `(p, n)` with `exp(high + low) = p 2^n` and `p` in 0.7..1.42; `high` is -104..89 and `low` is
/// small beside 1.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, high: S::F32, low: S::F32) -> (S::F32, S::F32) {
    let n = s.round_even(s.mul(s.add(high, low), s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(LN2_HIGH), high);
    let r = s.add(s.neg_mul_add(n, s.splat(LN2_LOW), r), low);
    (exp_reduced(s, r), n)
}

/// `e^r` for `r` within half of ln 2 around 0: `1 + r + r^2 P(r)`.
#[inline(always)]
fn exp_reduced<S: Simd>(s: S, r: S::F32) -> S::F32 {
    let p = polynomial(s, r, &[0.5, 0.166_665_18, 0.041_666_433, 0.008_368_968, 0.001_393_784_7]);
    s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0))
}

/// `x` within `low..=high`; NaN stays NaN.
#[inline(always)]
fn clamp<S: Simd>(s: S, x: S::F32, low: f32, high: f32) -> S::F32 {
    // Both give their second argument where it is NaN.
    s.max(s.splat(low), s.min(s.splat(high), x))
}

/// `e^x`. Error: 1.1 ulp. Infinity above 88.7228; subnormal from -87.34 on, 0 below -103.98.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // 89 overflows and -104 vanishes by itself, so beyond them nothing changes.
    let x = clamp(s, x, -104.0, 89.0);
    // As `exp_parts`, without the additions of a low part.
    let n = s.round_even(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(LN2_HIGH), x);
    let r = s.neg_mul_add(n, s.splat(LN2_LOW), r);
    s.scale_pow2(exp_reduced(s, r), n)
}

/// `e^x` for `x <= 0`, in two thirds of the time of [`exp`]. Error: 2.2 ulp down to -8, 3.2 down to
/// -32, 5 below; 1 at 0. Subnormal and 0 as [`exp`]. Above 0 it means nothing.
#[inline(always)]
pub fn exp_nonpositive<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // One part of ln 2 serves where its product is not rounded.
    if S::ISA == Isa::Portable {
        return exp(s, x);
    }
    // NaN stays: `max` gives its second argument.
    let x = s.max(s.splat(-104.0), x);
    let n = s.round_even(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(std::f32::consts::LN_2), x);
    let p = [1.0, 0.999_999_7, 0.499_991_48, 0.166_676_39, 0.041_898_16, 0.008_290_272];
    s.scale_pow2(polynomial(s, r, &p), n)
}

/// `e^x - 1`, without cancellation near 0. Error: 1.6 ulp.
#[inline(always)]
pub fn exp_m1<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let x = clamp(s, x, -18.0, 89.0);
    let n = s.round_even(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(LN2_HIGH), x);
    let r = s.neg_mul_add(n, s.splat(LN2_LOW), r);
    let p = polynomial(
        s,
        r,
        &[0.499_999_97, 0.166_665_43, 0.041_667_506, 0.008_366_551, 0.001_386_426_5],
    );
    let p = s.mul_add(s.mul(r, r), p, r);
    // 2^n (p + 1 - 2^-n); from 2^-25 on the last term is below the rounding of 1.
    let inverse = s.pow2_i32(s.to_i32(s.neg(s.min(s.splat(64.0), n))));
    s.scale_pow2(s.add(p, s.sub(s.splat(1.0), inverse)), n)
}

/// The natural logarithm. Error: 0.8 ulp, subnormals included. Negative infinity at 0, NaN below.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // x = m 2^e with m in sqrt(1/2)..sqrt(2); subnormals are lifted by 2^25 first.
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let lifted = s.select(tiny, s.mul(x, s.splat(33_554_432.0)), x);
    let bits = s.bitcast_i32(lifted);
    let e = s.sar_i32(s.sub_i32(bits, s.splat_i32(0x3f35_04f3)), 23);
    let f = s.sub(s.bitcast_f32(s.sub_i32(bits, s.shl_i32(e, 23))), s.splat(1.0));
    let e = s.sub(s.to_f32(e), s.select(tiny, s.splat(25.0), s.zero()));
    // log(1 + f) = f - f^2 / 2 + f^3 P(f), the small terms first
    let p = polynomial(
        s,
        f,
        &[
            0.333_333_13,
            -0.250_000_12,
            0.200_020_75,
            -0.166_678_58,
            0.142_201_98,
            -0.124_081_07,
            0.118_863_866,
            -0.116_612_99,
            0.067_333_83,
        ],
    );
    let f2 = s.mul(f, f);
    let y = s.mul_add(e, s.splat(LN2_LOW), s.mul(s.mul(f, f2), p));
    let y = s.add(f, s.neg_mul_add(f2, s.splat(0.5), y));
    let y = s.mul_add(e, s.splat(LN2_HIGH), y);
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let y = s.select(s.eq(x, s.zero()), s.splat(f32::NEG_INFINITY), y);
    s.select(s.lt(x, s.zero()), s.splat(f32::NAN), y)
}

/// `log(1 + x)`, without cancellation near 0. Error: 1.5 ulp. Negative infinity at -1, NaN below.
#[inline(always)]
pub fn log_1p<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // u is 1 + x rounded, and log(1 + x) = log(u) + (1 + x - u) / u to first order.
    let u = s.add(x, s.splat(1.0));
    let lost = s.div(s.sub(x, s.sub(u, s.splat(1.0))), u);
    let y = log(s, u);
    let inside = s.mask_and(s.lt(s.zero(), u), s.lt(u, s.splat(f32::INFINITY)));
    s.select(inside, s.add(y, lost), y)
}

/// The hyperbolic tangent. Error: 1.3 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.abs(x);
    // Near 0: x + x^3 P(x^2).
    let u = s.mul(x, x);
    let p = polynomial(
        s,
        u,
        &[-0.333_332_8, 0.133_314_16, -0.053_737_94, 0.020_634_119, -0.005_700_092],
    );
    let near = s.mul_add(s.mul(p, u), x, x);
    // Elsewhere: 1 - 2 / (e^2x + 1).
    let e = exp(s, s.add(magnitude, magnitude));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    s.select(s.lt(magnitude, s.splat(0.625)), near, s.copysign(far, x))
}

/// `1 / (1 + e^-x)` and `1 / (1 + e^x)`, both without cancellation.
#[inline(always)]
fn sigmoid_pair<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let e = exp(s, s.neg(s.abs(x)));
    let high = s.div(s.splat(1.0), s.add(e, s.splat(1.0)));
    let low = s.div(e, s.add(e, s.splat(1.0)));
    let positive = s.ge(x, s.zero());
    (s.select(positive, high, low), s.select(positive, low, high))
}

/// `1 / (1 + e^-x)`. Error: 2.2 ulp, in the lower tail too.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let e = exp(s, s.neg(s.abs(x)));
    let numerator = s.select(s.ge(x, s.zero()), s.splat(1.0), e);
    s.div(numerator, s.add(e, s.splat(1.0)))
}

/// For `t >= 0`: `(p, q, n)` with `exp(-t^2 / 2) = p 2^n` and `Phi(-t) = p q 2^n`, where `Phi` is
/// the distribution function of the normal distribution.
#[inline(always)]
fn normal_tail<S: Simd>(s: S, t: S::F32) -> (S::F32, S::F32, S::F32) {
    // From 14.5 on both are zero in f32.
    let t = s.min(s.splat(14.5), t);
    // An error in t^2 / 2 is a relative one of the result, so the square is split in two: `short`
    // has 12 bits, and its square is exact.
    let short = s.bitcast_f32(s.and_i32(s.bitcast_i32(t), s.splat_i32(!0xfff)));
    let high = s.mul(s.mul(short, short), s.splat(-0.5));
    let low = s.mul(s.mul(s.sub(t, short), s.add(t, short)), s.splat(-0.5));
    let (p, n) = exp_parts(s, high, low);
    // Phi(-t) exp(t^2 / 2) = P(t / (t + 2)) / (t + 2), with P(0) = 1 so that Phi(0) is exact.
    let inverse = s.div(s.splat(1.0), s.add(t, s.splat(2.0)));
    let q = polynomial(
        s,
        s.mul(t, inverse),
        &[
            1.0,
            -0.595_765_23,
            -0.191_728_6,
            0.088_249_18,
            0.078_760_01,
            0.173_426_7,
            -0.389_200_87,
            0.655_202_57,
            -0.737_940_55,
            0.393_313_8,
            -0.075_355_6,
        ],
    );
    (p, s.mul(q, inverse), n)
}

/// The distribution function of the normal distribution. Error: 4.0 ulp, in the lower tail too.
#[inline(always)]
pub fn normal_cdf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (p, q, n) = normal_tail(s, s.abs(x));
    let tail = s.scale_pow2(s.mul(p, q), n);
    s.select(s.gt(x, s.zero()), s.sub(s.splat(1.0), tail), tail)
}

/// The error function. Error: 1.6 ulp.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.abs(x);
    // Near 0: x + x P(x^2).
    let p = polynomial(
        s,
        s.mul(x, x),
        &[
            0.128_379_17,
            -0.376_126_32,
            0.112_836_71,
            -0.026_858_073,
            0.005_197_755_5,
            -0.000_810_568,
            8.214_717e-5,
        ],
    );
    let near = s.mul_add(p, x, x);
    // Elsewhere: 1 - 2 Phi(-sqrt(2) x).
    let (p, q, n) = normal_tail(s, s.mul(magnitude, s.splat(std::f32::consts::SQRT_2)));
    let tail = s.scale_pow2(s.mul(p, q), n);
    let far = s.sub(s.splat(1.0), s.add(tail, tail));
    s.select(s.lt(magnitude, s.splat(0.94)), near, s.copysign(far, x))
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub fn relu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.max(s.zero(), x)
}

/// `x Phi(x) = x / 2 (1 + erf(x / sqrt(2)))`. Error: 4.5 ulp above -13, in the lower tail too. NaN at negative infinity, as 0 times infinity is.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.mul(x, normal_cdf(s, x))
}

/// The derivative of [`gelu`]: `Phi(x) + x phi(x)`, with the density `phi`. Error: 1.6e-7
/// absolute (it crosses zero at -0.75). NaN at both infinities.
#[inline(always)]
pub fn gelu_grad<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    let (p, q, n) = normal_tail(s, s.abs(x));
    let tail = s.scale_pow2(s.mul(p, q), n);
    let cdf = s.select(s.gt(x, s.zero()), s.sub(s.splat(1.0), tail), tail);
    let density = s.mul(s.scale_pow2(p, n), s.splat(INVERSE_SQRT_2PI));
    s.mul_add(x, density, cdf)
}

/// `x sigmoid(x)`. Error: 3 ulp above -87, in the lower tail too. NaN at
/// negative infinity, as 0 times infinity is.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.mul(x, sigmoid(s, x))
}

/// The derivative of [`silu`]: `y + x y (1 - y)` with `y = sigmoid(x)`. Error: 2e-7
/// absolute (it crosses zero at -1.28). NaN at both infinities.
#[inline(always)]
pub fn silu_grad<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (y, rest) = sigmoid_pair(s, x);
    s.mul_add(s.mul(x, y), rest, y)
}

/// `log(1 + e^x)`. Error: 2.0 ulp.
#[inline(always)]
pub fn softplus<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.add(relu(s, x), log_1p(s, exp(s, s.neg(s.abs(x)))))
}
