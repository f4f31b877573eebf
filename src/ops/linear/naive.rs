//! The oracle of `linear`, and of its activations.

use super::Activation;
use crate::ops::Values;
use crate::ops::matmul::{self, Products};

pub(super) fn linear(
    activation: Activation,
    products: &Products,
    inputs: &[Values],
    outputs: &mut [Values],
) {
    let z = &mut outputs[0].data;
    matmul::naive::matmul(products, &inputs[0].data, &inputs[1].data, z);
    if let Some(bias) = inputs.get(2) {
        let n = bias.data.len();
        z.iter_mut().enumerate().for_each(|(i, z)| *z += bias.data[i % n]);
    }
    if let [y, argument] = outputs {
        argument.data.clone_from(&y.data);
    }
    outputs[0].data.iter_mut().for_each(|z| *z = value(activation, *z));
}

fn value(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::None => z,
        Activation::Relu => z.max(0.0),
        Activation::Gelu => z * normal_cdf(z),
        Activation::Tanh => z.tanh(),
        Activation::Silu => z * sigmoid(z),
    }
}

/// The derivative, given the value where that is enough and the argument otherwise
/// ([`Activation::needs_argument`]).
pub(in crate::ops) fn derivative(activation: Activation, saved: f64) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu => f64::from(u8::from(saved > 0.0)),
        Activation::Gelu => normal_cdf(saved) + saved * normal_density(saved),
        Activation::Tanh => 1.0 - saved * saved,
        Activation::Silu => {
            let y = sigmoid(saved);
            y + saved * y * (1.0 - y)
        }
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn normal_density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt()
}

/// `1/2 + phi(z) (z + z^3/3 + z^5/(3*5) + ...)`, to about 1e-16 absolute. Source: G. Marsaglia,
/// "Evaluating the normal distribution", Journal of Statistical Software 11(4), 2004.
fn normal_cdf(z: f64) -> f64 {
    if z.abs() > 9.0 {
        return f64::from(u8::from(z > 0.0));
    }
    let (mut sum, mut term, mut odd) = (z, z, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= z * z / odd;
        sum += term;
    }
    0.5 + sum * normal_density(z)
}
