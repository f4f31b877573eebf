//! The oracle of `indices`.

pub(super) fn indices(x: &[f64], y: &mut [f64]) {
    for (y, &x) in y.iter_mut().zip(x) {
        let whole = (0.0..4_294_967_296.0).contains(&x) && x.fract() == 0.0;
        *y = if whole { x } else { f64::from(u32::MAX) };
    }
}
