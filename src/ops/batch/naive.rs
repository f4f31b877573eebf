//! The oracle of `batch`.

use crate::ops::Values;

pub(super) fn batch(inputs: &[Values], outputs: &mut [Values], offset: u64) {
    let [values, labels, order, scale, shift] = inputs else {
        panic!("batch: `infer` asks for five inputs")
    };
    let [rows, row_labels] = outputs else { panic!("batch: `infer` gives two outputs") };
    for r in 0..rows.rows() {
        let entry = offset.checked_add(r as u64).and_then(|at| order.data.get(at as usize));
        match entry.map(|&n| n as usize).filter(|&n| n < labels.data.len()) {
            Some(n) => {
                for (c, x) in rows.row_mut(r).iter_mut().enumerate() {
                    *x = values.row(n)[c] * scale.data[c] + shift.data[c];
                }
                row_labels.data[r] = labels.data[n];
            }
            None => {
                rows.row_mut(r).fill(f64::NAN);
                row_labels.data[r] = f64::from(u32::MAX);
            }
        }
    }
}
