//! Gram matrices in f64, for what is measured of weights: by `matrixmultiply`, on one thread.
#![allow(unsafe_code)]

/// `W^T W` [columns, columns] of `values` W \[rows, columns\], or `W W^T` [rows, rows] if `of_rows`.
///
/// # Panics
/// If there are not `rows * columns` values.
pub fn gram(rows: usize, columns: usize, values: &[f32], of_rows: bool) -> Vec<f64> {
    assert_eq!(values.len(), rows * columns, "values of a {rows} x {columns} matrix");
    let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
    let (side, depth) = if of_rows { (rows, columns) } else { (columns, rows) };
    // Strides of the operand along its side and along what is summed over.
    let (along, across) = if of_rows { (columns as isize, 1) } else { (1, columns as isize) };
    let mut product = vec![0f64; side * side];
    // SAFETY: both operands are `wide`, [side, depth] by its strides, which reach each of its rows x columns
    // values and no more; the product has side x side values.
    unsafe {
        matrixmultiply::dgemm(
            side,
            depth,
            side,
            1.0,
            wide.as_ptr(),
            along,
            across,
            wide.as_ptr(),
            across,
            along,
            0.0,
            product.as_mut_ptr(),
            side as isize,
            1,
        );
    }
    product
}

#[cfg(test)]
mod tests {
    use super::gram;

    #[test]
    fn products_of_small_integers_are_exact() {
        let (rows, columns) = (5, 3);
        let values: Vec<f32> = (0..15u8).map(|i| f32::from(i % 7) - 3.0).collect();
        for of_rows in [false, true] {
            let found = gram(rows, columns, &values, of_rows);
            let side = if of_rows { rows } else { columns };
            assert_eq!(found.len(), side * side);
            for (i, &found) in found.iter().enumerate() {
                let (a, b) = (i / side, i % side);
                let terms = (0..rows + columns - side).map(|k| match of_rows {
                    true => values[a * columns + k] * values[b * columns + k],
                    false => values[k * columns + a] * values[k * columns + b],
                });
                assert_eq!(found, f64::from(terms.sum::<f32>()), "{a}, {b}");
            }
        }
        assert!(gram(0, 0, &[], true).is_empty());
    }
}
