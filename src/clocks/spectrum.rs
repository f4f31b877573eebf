//! Singular values of weights, and what they say of how simple a layer is.
//!
//! A weight is `[inputs, outputs]`, row-major f32, and multiplies from the right: `y = x W`. So the maps of two layers in a row are
//! `x W V`, and their balance compares `W^T W` with `V V^T`.

use crate::gemm::gram;

/// A weight.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Inputs.
    pub rows: usize,
    /// Outputs.
    pub columns: usize,
    /// `[rows, columns]`.
    pub values: &'a [f32],
}

impl<'a> Matrix<'a> {
    /// Of these values.
    ///
    /// # Panics
    /// If they are not `rows * columns`.
    pub fn new(rows: usize, columns: usize, values: &'a [f32]) -> Matrix<'a> {
        assert_eq!(values.len(), rows * columns, "values of a {rows} x {columns} matrix");
        Matrix { rows, columns, values }
    }

    /// Sum of squares.
    pub fn norm2(&self) -> f64 {
        self.values.iter().map(|&x| f64::from(x).powi(2)).sum()
    }
}

/// The singular values, largest first: the roots of the eigenvalues of the smaller Gram matrix, in f64. What is below 1e-7 of
/// the largest one is noise of that square; f32 weights have no more digits than that.
pub fn singular_values(w: Matrix<'_>) -> Vec<f64> {
    let side = w.rows.min(w.columns);
    let mut squares = eigenvalues(gram(w.rows, w.columns, w.values, w.rows < w.columns), side);
    squares.sort_by(|a, b| b.total_cmp(a));
    squares.into_iter().map(|square| square.max(0.0).sqrt()).collect()
}

/// `sum s^2 / max s^2`: 1 for rank one, the side for equal singular values. NaN if all are zero.
pub fn stable_rank(singular: &[f64]) -> f64 {
    let largest = singular.iter().copied().fold(0.0, f64::max);
    singular.iter().map(|s| (s / largest).powi(2)).sum()
}

/// `exp` of the entropy of `s / sum s`. NaN if all are zero.
/// Source: Roy, Vetterli, "The effective rank", 2007.
pub fn effective_rank(singular: &[f64]) -> f64 {
    let total: f64 = singular.iter().sum();
    let shares = singular.iter().map(|s| s / total);
    shares.map(|p| if p > 0.0 { -p * p.ln() } else { p * 0.0 }).sum::<f64>().exp()
}

/// The Schatten quasi-norm of order 2/depth to its power, `sum s^(2/depth)`: the least `sum |W_l|^2 / depth` of `depth` factors
/// whose product has these singular values. Source: Shang et al., "Unified scalable equivalent formulations for Schatten
/// quasi-norms", 2020.
pub fn schatten(singular: &[f64], depth: usize) -> f64 {
    let power = 2.0 / depth as f64;
    singular.iter().map(|s| s.powf(power)).sum()
}

/// How far two layers in a row, `x W V`, are from balance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Imbalance {
    /// `|W^T W - V V^T|`, Frobenius. Conserved by gradient flow without decay; coupled decay shrinks it as `exp(-2 rate decay t)`.
    pub absolute: f64,
    /// Of `|W^T W| + |V V^T|`: 0 in balance, at most 1.
    pub relative: f64,
}

/// The imbalance of the layers `x W V`.
///
/// # Panics
/// If V has not as many inputs as W has outputs.
pub fn imbalance(w: Matrix<'_>, v: Matrix<'_>) -> Imbalance {
    assert_eq!(w.columns, v.rows, "outputs of a layer and inputs of the next");
    let first = gram(w.rows, w.columns, w.values, false);
    let second = gram(v.rows, v.columns, v.values, true);
    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a - b).collect();
    let absolute = norm(&difference);
    Imbalance { absolute, relative: absolute / (norm(&first) + norm(&second)) }
}

/// Eigenvalues of a symmetric matrix `[n, n]`, in no order: Householder's reduction to a tridiagonal matrix, then QL with implicit
/// shifts. Source: Golub, Van Loan, "Matrix computations", 8.3.
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let (mut diagonal, mut beside) = (vec![0.0; n], vec![0.0; n]);
    // Rows from the last one up; what is above is a symmetric matrix of its own.
    for last in (1..n).rev() {
        let row: Vec<f64> = a[last * n..last * n + last].to_vec();
        diagonal[last] = a[last * n + last];
        let scale = row[..last - 1].iter().fold(0.0, |all: f64, x| all.max(x.abs()));
        if scale == 0.0 {
            beside[last] = row[last - 1];
            continue;
        }
        // v with (I - v v^T / h) row = (0, ..., 0, beside).
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = if row[last - 1] > 0.0 { -norm } else { norm };
        beside[last] = alpha;
        let mut v = row;
        v[last - 1] -= alpha;
        let h = v.iter().map(|x| x * x).sum::<f64>() / 2.0;
        let mut p: Vec<f64> = (0..last).map(|i| dot(&a[i * n..i * n + last], &v) / h).collect();
        let k = dot(&p, &v) / (2.0 * h);
        p.iter_mut().zip(&v).for_each(|(p, v)| *p -= k * v);
        for i in 0..last {
            let (vi, pi) = (v[i], p[i]);
            let row = &mut a[i * n..i * n + last];
            for ((x, v), p) in row.iter_mut().zip(&v).zip(&p) {
                *x -= vi * p + pi * v;
            }
        }
    }
    if n > 0 {
        diagonal[0] = a[0];
    }
    beside.rotate_left(usize::from(n > 0));
    tridiagonal(&mut diagonal, &mut beside, &mut []);
    diagonal
}

/// The sum of products, in eight sums side by side: one alone waits for each addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Sweeps for one eigenvalue, at most; two or three are usual.
const SWEEPS: usize = 60;

/// Replaces the diagonal of a symmetric tridiagonal matrix by its eigenvalues. `e[i]` stands between i and i + 1. `first`,
/// if not empty, is a row that is multiplied by the eigenvectors: of `(1, 0, ...)` their first elements are left.
pub(super) fn tridiagonal(d: &mut [f64], e: &mut [f64], first: &mut [f64]) {
    let n = d.len();
    for low in 0..n {
        for sweep in 0.. {
            let small = |i: usize, d: &[f64], e: &[f64]| {
                e[i].abs() <= f64::EPSILON * (d[i].abs() + d[i + 1].abs())
            };
            let end = (low..n - 1).find(|&i| small(i, d, e)).unwrap_or(n - 1);
            if end == low {
                break;
            }
            assert!(sweep < SWEEPS, "eigenvalue {low} of {n} does not converge");
            // Wilkinson's shift, and a chase of the bulge from the end up.
            let g = (d[low + 1] - d[low]) / (2.0 * e[low]);
            let root = g.hypot(1.0);
            let mut g = d[end] - d[low] + e[low] / (g + root.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut whole = true;
            for i in (low..end).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[end] = 0.0;
                    whole = false;
                    break;
                }
                (s, c) = (f / r, g / r);
                let h = d[i + 1] - p;
                let r = (d[i] - h) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = h + p;
                g = c * r - b;
                if let Some([left, right]) = first.get_mut(i..i + 2) {
                    (*left, *right) = (c * *left - s * *right, s * *left + c * *right);
                }
            }
            if whole {
                d[low] -= p;
                e[low] = g;
                e[end] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Rotations of a diagonal matrix: a matrix of known singular values.
    fn with_singular_values(rows: usize, columns: usize, wanted: &[f64]) -> Vec<f32> {
        let mut values = vec![0f64; rows * columns];
        wanted.iter().enumerate().for_each(|(i, &s)| values[i * columns + i] = s);
        let mut random = Random::new(7, 0);
        for _ in 0..4 {
            for i in 0..rows - 1 {
                let (sin, cos) = (random.uniform(0.0, 6.3)).sin_cos();
                for j in 0..columns {
                    let (a, b) = (values[i * columns + j], values[(i + 1) * columns + j]);
                    values[i * columns + j] = cos * a - sin * b;
                    values[(i + 1) * columns + j] = sin * a + cos * b;
                }
            }
            for j in 0..columns - 1 {
                let (sin, cos) = (random.uniform(0.0, 6.3)).sin_cos();
                for i in 0..rows {
                    let (a, b) = (values[i * columns + j], values[i * columns + j + 1]);
                    values[i * columns + j] = cos * a - sin * b;
                    values[i * columns + j + 1] = sin * a + cos * b;
                }
            }
        }
        values.into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn singular_values_come_back() {
        for (rows, columns) in [(1, 1), (1, 9), (7, 7), (33, 20), (20, 33), (64, 64)] {
            let wanted: Vec<f64> =
                (0..rows.min(columns)).map(|i| 10.0 / (1.0 + i as f64).powi(2)).collect();
            let values = with_singular_values(rows, columns, &wanted);
            let found = singular_values(Matrix::new(rows, columns, &values));
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!(
                    (found - wanted).abs() < 1e-5 * 10.0,
                    "{rows} x {columns}: {found} for {wanted}"
                );
            }
        }
        assert!(singular_values(Matrix::new(0, 5, &[])).is_empty());
        assert_eq!(singular_values(Matrix::new(3, 2, &[0.0; 6])), [0.0, 0.0]);
    }

    #[test]
    fn equal_singular_values_and_rank_one_are_the_ends() {
        let mut identity = vec![0f32; 36];
        (0..6).for_each(|i| identity[i * 7] = 3.0);
        let equal = singular_values(Matrix::new(6, 6, &identity));
        assert!(
            (stable_rank(&equal) - 6.0).abs() < 1e-12
                && (effective_rank(&equal) - 6.0).abs() < 1e-12
        );
        let outer: Vec<f32> = (0..35).map(|i| (i / 7 + 1) as f32 * (i % 7) as f32).collect();
        let one = singular_values(Matrix::new(5, 7, &outer));
        assert!((stable_rank(&one) - 1.0).abs() < 1e-9);
        assert!((effective_rank(&one) - 1.0).abs() < 1e-4, "{}", effective_rank(&one));
        assert!(stable_rank(&[0.0, 0.0]).is_nan());
    }

    #[test]
    fn balanced_factors_attain_the_quasi_norm() {
        // Three factors with singular values s^(1/3): sum |W|^2 / 3 = sum s^(2/3).
        let s = [8.0f64, 1.0, 0.125];
        let norm2: f64 = 3.0 * s.iter().map(|s| s.cbrt().powi(2)).sum::<f64>() / 3.0;
        assert!((schatten(&s, 3) - norm2).abs() < 1e-12);
        assert!((schatten(&s, 1) - s.iter().map(|s| s * s).sum::<f64>()).abs() < 1e-12);
    }

    #[test]
    fn layers_in_balance_have_none_left() {
        let mut random = Random::new(9, 0);
        let w: Vec<f32> = (0..40).map(|_| random.normal_pair()[0]).collect();
        let mut transposed = vec![0f32; 40];
        (0..40).for_each(|i| transposed[i % 5 * 8 + i / 5] = w[i]);
        let (w, v) = (Matrix::new(8, 5, &w), Matrix::new(5, 8, &transposed));
        assert!(imbalance(w, v).absolute < 1e-10);
        let doubled: Vec<f32> = transposed.iter().map(|x| 2.0 * x).collect();
        let found = imbalance(w, Matrix::new(5, 8, &doubled));
        assert!((found.relative - 0.6).abs() < 1e-9, "|G - 4 G| / 5 |G|: {found:?}");
    }
}
