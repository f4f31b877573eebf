//! The oracle of elementwise functions.

use super::Kind;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(super) fn unary(kind: Kind, x: &[f64], y: &mut [f64]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = match kind {
            Kind::Neg => -x,
            Kind::Exp => x.exp(),
            Kind::Log => x.ln(),
            Kind::Sqrt => x.sqrt(),
            Kind::Tanh => x.tanh(),
            Kind::Sigmoid => sigmoid(x),
            Kind::Relu if x <= 0.0 => 0.0,
            Kind::Relu => x,
            Kind::Gelu => x * normal_cdf(x),
            Kind::Silu => x * sigmoid(x),
        };
    }
}

/// `1 / (1 + e^-x)`
pub(in crate::ops) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The distribution function of the normal distribution, `(1 + erf(x / sqrt 2)) / 2`.
pub(in crate::ops) fn normal_cdf(x: f64) -> f64 {
    let tail = erfc(x.abs() * FRAC_1_SQRT_2) / 2.0;
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// `1 - erf(x)` for `x >= 0`, to some 1e-12 of itself: near 0 by the series of `erf` that has only
/// positive terms, elsewhere by the continued fraction (Abramowitz and Stegun, 7.1.6 and 7.1.14).
fn erfc(x: f64) -> f64 {
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum
    } else {
        let fraction = (1..=120).rev().fold(x, |rest, k| x + f64::from(k) / 2.0 / rest);
        (-x * x).exp() / PI.sqrt() / fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_meets_its_table() {
        // `math.erfc(x)` of Python 3.
        let table = [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (1.999, 4.698_443_348_629_488e-3),
            (2.0, 4.677_734_981_047_266e-3),
            (4.0, 1.541_725_790_028_002e-8),
            (10.0, 2.088_487_583_762_545e-45),
        ];
        for (x, want) in table {
            let error = (erfc(x) / want - 1.0).abs();
            assert!(error <= 1e-12, "erfc({x}) = {}, want {want}", erfc(x));
        }
        assert!(normal_cdf(f64::NAN).is_nan());
    }
}
