//! The oracle of `matmul`.

use super::Products;
use crate::gemm::{Precision, Spec, Transpose};
use half::bf16;
use std::borrow::Cow;

pub(in crate::ops) fn matmul(products: &Products, a: &[f64], b: &[f64], c: &mut [f64]) {
    let Spec { m, n, k, a: stored_a, b: stored_b, precision, .. } = products.spec;
    let (a, b) = (rounded(a, precision), rounded(b, precision));
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

/// Operands as the product takes them.
fn rounded(values: &[f64], precision: Precision) -> Cow<'_, [f64]> {
    match precision {
        Precision::F32 | Precision::F32Split => Cow::Borrowed(values),
        Precision::Bf16 => {
            values.iter().map(|&x| f64::from(bf16::from_f32(x as f32).to_f32())).collect()
        }
    }
}
