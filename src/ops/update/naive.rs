//! The oracle of `update`.

use super::{Rule, Step, Update};
use crate::device::Control;
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
    for weight in op.packed.iter().flat_map(|packed| packed.weights()) {
        let [forward, backward] = weight.layouts;
        for at in 0..weight.inputs * weight.outputs {
            let (row, column) = (at / weight.outputs, at % weight.outputs);
            let value = bf16::from_f64(outputs[0].data[weight.offset + at]).to_f64();
            let data = &mut outputs[op.packed_output()].data;
            data[weight.places[0] + forward.index(column, row)] = value;
            data[weight.places[1] + backward.index(row, column)] = value;
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
        Rule::Sgd { momentum, nesterov } => {
            let b = &mut outputs[1].data[i];
            *b = momentum * *b + g;
            if nesterov { g + momentum * *b } else { *b }
        }
        Rule::AdamW { beta1, beta2, epsilon } => {
            let m = &mut outputs[1].data[i];
            *m = beta1 * *m + (1.0 - beta1) * g;
            let m = *m;
            let v = &mut outputs[2].data[i];
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            step.first_correction * m / (v.sqrt() * step.second_correction + epsilon)
        }
        Rule::Lion { beta1, beta2 } => {
            let m = &mut outputs[1].data[i];
            let c = beta1 * *m + (1.0 - beta1) * g;
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
    outputs[0].data[i] = w - of.shrink * w - of.rate * direction;
}
