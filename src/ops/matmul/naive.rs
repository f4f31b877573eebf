//! The oracle of `matmul`.

use super::Products;
use crate::gemm::{Spec, Transpose};

pub(in crate::ops) fn matmul(products: &Products, a: &[f64], b: &[f64], c: &mut [f64]) {
    let Spec { m, n, k, a: stored_a, b: stored_b, .. } = products.spec;
    for batch in 0..products.batches {
        let (a, b) = (&a[batch * m * k..][..m * k], &b[batch * k * n..][..k * n]);
        let c = &mut c[batch * m * n..][..m * n];
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0;
                for p in 0..k {
                    let a = if stored_a == Transpose::No { a[i * k + p] } else { a[p * m + i] };
                    let b = if stored_b == Transpose::No { b[p * n + j] } else { b[j * k + p] };
                    sum += a * b;
                }
                c[i * n + j] = sum;
            }
        }
    }
}
