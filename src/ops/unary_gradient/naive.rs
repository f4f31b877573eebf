//! The oracle of the gradients of elementwise functions.

use super::Kind;
use crate::ops::unary::naive::{normal_cdf, sigmoid};
use std::f64::consts::PI;

pub(super) fn unary_gradient(kind: Kind, v: &[f64], dy: &[f64], dx: &mut [f64]) {
    for ((dx, &v), &dy) in dx.iter_mut().zip(v).zip(dy) {
        *dx = match kind {
            Kind::Sqrt => dy / (2.0 * v),
            Kind::Tanh => dy * (1.0 - v * v),
            Kind::Sigmoid => dy * v * (1.0 - v),
            Kind::Relu if v <= 0.0 => 0.0,
            Kind::Relu => dy,
            Kind::Gelu => dy * (normal_cdf(v) + v * (-v * v / 2.0).exp() / (2.0 * PI).sqrt()),
            Kind::Silu => {
                let y = sigmoid(v);
                dy * (y + v * y * (1.0 - y))
            }
        };
    }
}
