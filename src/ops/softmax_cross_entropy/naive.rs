//! The oracle of `softmax_cross_entropy`, by the same stable forms as the kernel.

use super::{SATURATED, Targets};
use crate::ops::Values;

/// What one row gives.
struct Row {
    loss: f64,
    margin: f64,
    right: bool,
    saturated: bool,
    gradient: Vec<f64>,
}

pub(in crate::ops) fn softmax_cross_entropy(
    targets: Targets,
    inputs: &[Values],
    outputs: &mut [Values],
) {
    let (logits, count) = (&inputs[0], inputs[0].rows() as f64);
    let rows: Vec<Row> = (0..logits.rows())
        .map(|r| {
            let z = logits.row(r);
            let Some((label, t)) = target(targets, &inputs[1], r, z.len()) else {
                let gradient = vec![f64::NAN; z.len()];
                let (loss, margin) = (f64::NAN, f64::NAN);
                return Row { loss, margin, right: false, saturated: false, gradient };
            };
            row(z, label, &t)
        })
        .collect();
    let squares: f64 = logits.data.iter().map(|z| z * z).sum();
    outputs[0].data[0] = rows.iter().map(|row| row.loss).sum::<f64>() / count;
    for (r, row) in rows.iter().enumerate() {
        for (dz, g) in outputs[1].row_mut(r).iter_mut().zip(&row.gradient) {
            *dz = g / count;
        }
    }
    let smaller = |a: f64, b: f64| if a.is_nan() || a < b { a } else { b };
    outputs[2].data = vec![
        rows.iter().map(|row| row.margin).sum::<f64>() / count,
        rows.iter().map(|row| row.margin).fold(f64::INFINITY, smaller),
        rows.iter().filter(|row| row.right).count() as f64,
        (squares / logits.data.len() as f64).sqrt(),
        rows.iter().filter(|row| row.saturated).count() as f64,
    ];
    outputs[3].data = rows.iter().map(|row| row.loss).collect();
}

/// The label of row `r` and its distribution; `None` for a label out of range.
fn target(targets: Targets, given: &Values, r: usize, classes: usize) -> Option<(usize, Vec<f64>)> {
    match targets {
        Targets::Labels { smoothing } => {
            let (label, smoothing) = (given.data[r] as usize, f64::from(smoothing));
            let mut t = vec![smoothing / classes as f64; classes];
            *t.get_mut(label)? += 1.0 - smoothing;
            Some((label, t))
        }
        Targets::Distributions => {
            let t = given.row(r).to_vec();
            let mut label = 0;
            for (j, &v) in t.iter().enumerate() {
                if v > t[label] {
                    label = j;
                }
            }
            Some((label, t))
        }
    }
}

fn row(z: &[f64], label: usize, t: &[f64]) -> Row {
    let others = || (0..z.len()).filter(|&j| j != label);
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z.iter().map(|z| (z - max).exp()).collect();
    let rest: f64 = others().map(|j| e[j]).sum();
    let total = e[label] + rest;
    let log = if z[label] == max { rest.ln_1p() } else { total.ln() };
    let below = |j: usize| if t[j] == 0.0 { 0.0 } else { t[j] * (max - z[j]) };
    let weight: f64 = t.iter().sum();
    let weight_of_others: f64 = others().map(|j| t[j]).sum();
    let loss = weight * log + (0..z.len()).map(below).sum::<f64>();
    let mut gradient: Vec<f64> = (0..z.len()).map(|j| weight * e[j] / total - t[j]).collect();
    gradient[label] = weight_of_others - weight * rest / total;
    let other = others().map(|j| z[j]).fold(f64::NEG_INFINITY, f64::max);
    let margin = match () {
        () if loss.is_nan() => f64::NAN,
        () if z.len() == 1 => 0.0,
        () => z[label] - other,
    };
    let right = !loss.is_nan()
        && z[..label].iter().all(|&v| v < z[label])
        && z[label + 1..].iter().all(|&v| v <= z[label]);
    let saturated = !loss.is_nan() && z[label] == max && rest <= f64::from(SATURATED);
    Row { loss, margin, right, saturated, gradient }
}
