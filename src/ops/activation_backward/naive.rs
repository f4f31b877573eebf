//! The oracle of `activation_backward`.

use crate::ops::linear::derivative;
use crate::ops::{Activation, Values};

pub(super) fn activation_backward(
    activation: Activation,
    inputs: &[Values],
    outputs: &mut [Values],
) {
    let n = inputs[0].columns();
    for (i, (dy, saved)) in inputs[0].data.iter().zip(&inputs[1].data).enumerate() {
        let dz = dy * derivative(activation, *saved);
        outputs[0].data[i] = dz;
        outputs[1].data[i % n] += dz;
    }
}
