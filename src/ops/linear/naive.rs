//! The oracle of `linear`, and of its activations.

use super::Activation;
use crate::ops::Values;
use crate::ops::matmul::{self, Products};
use crate::ops::unary::naive::{normal_cdf, sigmoid};

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
        Activation::Gelu => {
            let density = (-0.5 * saved * saved).exp() / std::f64::consts::TAU.sqrt();
            normal_cdf(saved) + saved * density
        }
        Activation::Tanh => 1.0 - saved * saved,
        Activation::Silu => {
            let y = sigmoid(saved);
            y + saved * y * (1.0 - y)
        }
    }
}
