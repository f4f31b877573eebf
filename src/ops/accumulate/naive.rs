//! The oracle of `accumulate`.

pub(super) fn accumulate(sum: &mut [f64], x: &[f64]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}
