//! The oracle of `reshape`.

pub(super) fn reshape(x: &[f64], y: &mut [f64]) {
    y.copy_from_slice(x);
}
