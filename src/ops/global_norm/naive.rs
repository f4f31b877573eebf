//! The oracle of `global_norm`.

pub(super) fn squares(gradients: &[f64]) -> f64 {
    gradients.iter().map(|g| g * g).sum()
}
