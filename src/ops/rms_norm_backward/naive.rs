//! The oracle of `rms_norm_backward`.

use crate::ops::Values;

pub(super) fn rms_norm_backward(inputs: &[Values], outputs: &mut [Values]) {
    let [dy, x, gamma, rstds] = inputs else {
        panic!("rms_norm_backward: `infer` asks for four inputs")
    };
    let [dx, dgamma] = outputs else { panic!("rms_norm_backward: `infer` gives two outputs") };
    let columns = x.columns();
    for r in 0..x.rows() {
        let (dy, x, rstd) = (dy.row(r), x.row(r), rstds.data[r]);
        let product: f64 = (0..columns).map(|c| dy[c] * gamma.data[c] * x[c] * rstd).sum();
        for c in 0..columns {
            let normal = x[c] * rstd;
            dx.row_mut(r)[c] = rstd * (dy[c] * gamma.data[c] - normal * product / columns as f64);
            dgamma.data[c] += dy[c] * normal;
        }
    }
}
