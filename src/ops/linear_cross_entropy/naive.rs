//! The oracle of `linear_cross_entropy`: all logits, their gradient, and two products.

use super::{DB, DW, DX, LOSS, PER_ROW, STATISTICS};
use crate::ops::Values;
use crate::ops::softmax_cross_entropy::{Targets, naive};
use crate::tensor::TensorType;

pub(super) fn linear_cross_entropy(smoothing: f32, inputs: &[Values], outputs: &mut [Values]) {
    let (x, w, labels) = (&inputs[0], &inputs[1], &inputs[2]);
    let (rows, inner, classes) = (x.rows(), w.rows(), w.columns());
    let all = TensorType::f32([rows, classes]);
    let mut z = Values::zeros(all.clone());
    for r in 0..rows {
        for j in 0..classes {
            let products = (0..inner).map(|p| x.data[r * inner + p] * w.data[p * classes + j]);
            z.data[r * classes + j] =
                products.sum::<f64>() + inputs.get(3).map_or(0.0, |bias| bias.data[j]);
        }
    }
    let mut given = [
        outputs[LOSS].clone(),
        Values::zeros(all),
        outputs[STATISTICS].clone(),
        outputs[PER_ROW].clone(),
    ];
    naive::softmax_cross_entropy(
        Targets::Labels { smoothing },
        &[z, labels.clone()],
        &mut given,
    );
    let [loss, g, statistics, per_row] = given;
    (outputs[LOSS], outputs[STATISTICS], outputs[PER_ROW]) = (loss, statistics, per_row);
    for r in 0..rows {
        for (j, &g) in g.row(r).iter().enumerate() {
            for p in 0..inner {
                outputs[DX].data[r * inner + p] += g * w.data[p * classes + j];
                outputs[DW].data[p * classes + j] += g * x.data[r * inner + p];
            }
            if let Some(db) = outputs.get_mut(DB) {
                db.data[j] += g;
            }
        }
    }
}
