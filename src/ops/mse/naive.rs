//! The oracle of `mse`.

pub(super) fn mse(prediction: &[f64], target: &[f64]) -> f64 {
    let squares = prediction.iter().zip(target).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f64>() / prediction.len() as f64
}
