//! The oracle of `update`.

use super::{Decay, Rule, Step, Update};
use crate::device::Control;
use crate::gemm::PackedWeights;
use crate::ops::Values;
use half::bf16;

/// `outputs`: weights and moments as they were, to be updated; then statistics and
/// packed copies.
pub(in crate::ops) fn update(op: &Update, inputs: &[Values], outputs: &mut [Values], control: &Control) {
    let step = op.step(control, |input| inputs[input].data[0]);
    let gradient_scale = f64::from(control.f32(op.slots.gradient_scale));
    let (weights, gradients) = (&inputs[0].data, &inputs[1].data);
    for (number, segment) in op.segments.iter().enumerate() {
        let mut sums = [0.0; 3];
        for i in segment.offset..segment.offset + segment.len {
            let (w, g) = (weights[i], gradients[i] * gradient_scale);
            sums[0] += g * g;
            sums[1] += w * w;
            sums[2] += g * w;
            if let Some(step) = &step {
                element(op, step, number, i, gradients[i], outputs);
            }
        }
        outputs[op.statistics_output()].row_mut(number).copy_from_slice(&sums);
    }
    if let Some(packed) = &op.packed {
        let (updated, copies) = outputs.split_at_mut(op.packed_output());
        pack(packed, &updated[0].data, &mut copies[0].data);
    }
}

/// The packed copies of flat weights.
pub(in crate::ops) fn pack(packed: &PackedWeights, weights: &[f64], copies: &mut [f64]) {
    for weight in packed.weights() {
        let [forward, backward] = weight.layouts;
        for at in 0..weight.inputs * weight.outputs {
            let (row, column) = (at / weight.outputs, at % weight.outputs);
            let value = bf16::from_f64(weights[weight.offset + at]).to_f64();
            copies[weight.places[0] + forward.index(column, row)] = value;
            copies[weight.places[1] + backward.index(row, column)] = value;
        }
    }
}

fn element(
    op: &Update,
    step: &Step,
    segment: usize,
    i: usize,
    gradient: f64,
    outputs: &mut [Values],
) {
    let of = op.coefficients(step, &op.segments[segment]);
    let w = outputs[0].data[i];
    let g = of.scale * gradient + of.coupled * w;
    let direction = match op.rule {
        Rule::Sgd { momentum: 0.0, .. } => g,
        Rule::Sgd { nesterov, .. } => {
            let b = &mut outputs[1].data[i];
            *b = step.momentum * *b + g;
            if nesterov { g + step.momentum * *b } else { *b }
        }
        Rule::AdamW { beta2, epsilon, .. } => {
            let m = &mut outputs[1].data[i];
            *m += step.momentum * (g - *m);
            let m = *m;
            let v = &mut outputs[2].data[i];
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            step.first_correction * m / (v.sqrt() * step.second_correction + epsilon)
        }
        Rule::Lion { beta2, .. } => {
            let m = &mut outputs[1].data[i];
            let c = *m + step.momentum * (g - *m);
            *m = beta2 * *m + (1.0 - beta2) * g;
            if c > 0.0 {
                1.0
            } else if c < 0.0 {
                -1.0
            } else {
                0.0
            }
        }
    };
    let against = op.decay == Decay::Cautious && direction * w < 0.0;
    let shrink = if against { 0.0 } else { of.shrink };
    outputs[0].data[i] = w - shrink * w - of.rate * direction;
}
