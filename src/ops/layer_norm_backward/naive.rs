//! The oracle of `layer_norm_backward`.

use crate::ops::Values;

pub(super) fn layer_norm_backward(inputs: &[Values], outputs: &mut [Values]) {
    let [dy, x, gamma, means, rstds] = inputs else {
        panic!("layer_norm_backward: `infer` asks for five inputs")
    };
    let [dx, dgamma, dbeta] = outputs else {
        panic!("layer_norm_backward: `infer` gives three outputs")
    };
    let columns = x.columns();
    for r in 0..x.rows() {
        let (mean, rstd) = (means.data[r], rstds.data[r]);
        let dy = dy.row(r);
        let normal: Vec<f64> = x.row(r).iter().map(|x| (x - mean) * rstd).collect();
        let dnormal: Vec<f64> = dy.iter().zip(&gamma.data).map(|(dy, gamma)| dy * gamma).collect();
        let first = dnormal.iter().sum::<f64>() / columns as f64;
        let second = dnormal.iter().zip(&normal).map(|(d, n)| d * n).sum::<f64>() / columns as f64;
        for c in 0..columns {
            dx.row_mut(r)[c] = rstd * (dnormal[c] - first - normal[c] * second);
            dgamma.data[c] += dy[c] * normal[c];
            dbeta.data[c] += dy[c];
        }
    }
}
