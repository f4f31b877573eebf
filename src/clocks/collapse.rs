//! Neural collapse: how the features before the last layer gather around the means of their classes.
//!
//! Source: Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training", 2020.

use super::spectrum::Matrix;

/// The four measures; each falls towards 0 as features collapse. A net may generalise well without that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collapse {
    /// NC1: `tr(S_W S_B^+) / K`, variation within classes beside that between them.
    pub within: f64,
    /// NC2, norms: standard deviation of the centred means' norms over their mean.
    pub norms: f64,
    /// NC2, angles: mean of `|cos + 1 / (K - 1)|` over pairs of centred means.
    pub angles: f64,
    /// NC3: `| W / |W| - M / |M| |`, the last layer beside the centred means.
    pub duality: f64,
    /// NC4: share of samples that the net and the nearest class mean put into different classes.
    pub nearest: f64,
}

/// Eigenvalues of S_B below this share of the largest one count as zero in its inverse.
const NULL: f64 = 1e-9;

/// The measures of a set of samples: features `[samples, width]`, the class of each, the class that the net gives each, and the last
/// layer's weight `[width, classes]`. `None` if a class has no sample, or there are fewer than two.
///
/// # Panics
/// If lengths do not fit, or a label is not a class.
pub fn collapse(
    features: Matrix<'_>,
    labels: &[u32],
    predicted: &[u32],
    last: Matrix<'_>,
) -> Option<Collapse> {
    let (samples, width, classes) = (features.rows, features.columns, last.columns);
    assert_eq!((labels.len(), predicted.len(), last.rows), (samples, samples, width), "shapes");
    let row = |i: usize| &features.values[i * width..(i + 1) * width];
    let mut counts = vec![0usize; classes];
    let mut means = vec![0f64; classes * width];
    for (i, &label) in labels.iter().enumerate() {
        let class = label as usize;
        counts[class] += 1;
        let mean = &mut means[class * width..(class + 1) * width];
        mean.iter_mut().zip(row(i)).for_each(|(mean, &x)| *mean += f64::from(x));
    }
    if classes < 2 || counts.contains(&0) {
        return None;
    }
    for (class, &count) in counts.iter().enumerate() {
        means[class * width..(class + 1) * width].iter_mut().for_each(|x| *x /= count as f64);
    }
    let mean = |class: usize| &means[class * width..(class + 1) * width];
    let center: Vec<f64> = (0..width)
        .map(|j| (0..classes).map(|c| mean(c)[j]).sum::<f64>() / classes as f64)
        .collect();
    let centred: Vec<Vec<f64>> =
        (0..classes).map(|c| mean(c).iter().zip(&center).map(|(x, y)| x - y).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();

    // S_B = M^T M / K with the centred means as rows of M [K, width]. With M M^T = Q D Q^T, S_B^+ = K M^T Q D^-2 Q^T M: so
    // tr(S_W S_B^+) is a sum over the few directions that the means span.
    let gram: Vec<f64> =
        (0..classes * classes).map(|i| dot(&centred[i / classes], &centred[i % classes])).collect();
    let (values, vectors) = jacobi(gram.clone(), classes);
    let largest = values.iter().copied().fold(0.0, f64::max);
    // All that is asked of a sample are its products with the means. Of its own class' mean the same are known.
    let products = products(features, &means, classes);
    let of_means: Vec<f64> =
        (0..classes * classes).map(|i| dot(mean(i / classes), mean(i % classes))).collect();
    let mut within = 0.0;
    for (value, vector) in values.iter().zip(&vectors).filter(|(value, _)| **value > NULL * largest)
    {
        // The direction is a sum of centred means, so that what all means have in common drops out.
        let average = vector.iter().sum::<f64>() / classes as f64;
        let weights: Vec<f64> = vector.iter().map(|v| v - average).collect();
        let mut spread = 0.0;
        for (of_sample, &label) in products.chunks(classes).zip(labels) {
            let of_mean = &of_means[label as usize * classes..];
            let terms = weights.iter().zip(of_sample).zip(of_mean);
            let along: f64 = terms.map(|((weight, x), mean)| weight * (x - mean)).sum();
            spread += along * along;
        }
        within += classes as f64 * spread / samples as f64 / (value * value);
    }

    let norms: Vec<f64> = (0..classes).map(|c| gram[c * classes + c].sqrt()).collect();
    let average = norms.iter().sum::<f64>() / classes as f64;
    let variance = norms.iter().map(|n| (n - average).powi(2)).sum::<f64>() / classes as f64;
    let mut angles = 0.0;
    for a in 0..classes {
        for b in 0..a {
            let cosine = gram[a * classes + b] / (norms[a] * norms[b]);
            angles += (cosine + 1.0 / (classes - 1) as f64).abs();
        }
    }
    let all = gram.iter().step_by(classes + 1).sum::<f64>().sqrt();
    let weight = last.norm2().sqrt();
    let mut duality = 0.0;
    for (class, centred) in centred.iter().enumerate() {
        for (j, mean) in centred.iter().enumerate() {
            duality += (f64::from(last.values[j * classes + class]) / weight - mean / all).powi(2);
        }
    }
    let nearest = |i: usize| {
        // Without the sample's own square.
        let distance = |c: usize| of_means[c * (classes + 1)] - 2.0 * products[i * classes + c];
        (0..classes)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)))
            .map_or(0, |class| class as u32)
    };
    let other = (0..samples).filter(|&i| nearest(i) != predicted[i]).count();
    Some(Collapse {
        within: within / classes as f64,
        norms: variance.sqrt() / average,
        angles: angles / (classes * (classes - 1) / 2) as f64,
        duality: duality.sqrt(),
        nearest: other as f64 / samples as f64,
    })
}

/// Products of the samples with the class means: `[samples, classes]`. Sums for all classes at once, which do not wait for
/// each other.
fn products(features: Matrix<'_>, means: &[f64], classes: usize) -> Vec<f64> {
    let width = features.columns;
    let mut transposed = vec![0f64; width * classes];
    for (i, &mean) in means.iter().enumerate() {
        transposed[i % width * classes + i / width] = mean;
    }
    let mut products = vec![0f64; features.rows * classes];
    if width > 0 {
        for (sums, row) in products.chunks_mut(classes).zip(features.values.chunks(width)) {
            for (&x, means) in row.iter().zip(transposed.chunks(classes)) {
                let x = f64::from(x);
                sums.iter_mut().zip(means).for_each(|(sum, mean)| *sum += x * mean);
            }
        }
    }
    products
}

/// Eigenvalues and eigenvectors of a small symmetric matrix, by Jacobi's rotations.
fn jacobi(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..100 {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| a[i] * a[i]).sum();
        if off <= 1e-28 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] == 0.0 {
                    continue;
                }
                let tau = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
                let t = if tau == 0.0 { 1.0 } else { t };
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (vectors[p][k], vectors[q][k]);
                    (vectors[p][k], vectors[q][k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Features at the corners of a simplex, `spread` around them, and the last layer along it.
    fn simplex(classes: usize, spread: f32) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
        let mut random = Random::new(2, 0);
        let corner =
            |class: usize, j: usize| f32::from(u8::from(class == j)) - 1.0 / classes as f32;
        let labels: Vec<u32> = (0..classes as u32 * 200).map(|i| i % classes as u32).collect();
        let features = labels
            .iter()
            .flat_map(|&l| (0..classes).map(|j| corner(l as usize, j)).collect::<Vec<_>>())
            .map(|x| x + spread * random.normal_pair()[0])
            .collect();
        let last = (0..classes * classes).map(|i| corner(i % classes, i / classes)).collect();
        (features, labels, last)
    }

    #[test]
    fn a_collapsed_net_has_none_of_the_four_left() {
        let (features, labels, last) = simplex(5, 0.0);
        let features = Matrix::new(labels.len(), 5, &features);
        let found =
            collapse(features, &labels, &labels, Matrix::new(5, 5, &last)).expect("all classes");
        for value in [found.within, found.norms, found.angles, found.duality, found.nearest] {
            assert!(value.abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn spread_within_classes_is_measured_against_that_between_them() {
        let (features, labels, last) = simplex(4, 0.1);
        let matrix = Matrix::new(labels.len(), 4, &features);
        let found =
            collapse(matrix, &labels, &labels, Matrix::new(4, 4, &last)).expect("all classes");
        // S_W = 0.01 I; S_B has K - 1 eigenvalues 1 / K: tr / K = 0.01 K (K - 1) / K = 0.03.
        assert!((found.within - 0.03).abs() < 0.003, "{found:?}");
        let wrong: Vec<u32> = labels.iter().map(|l| (l + 1) % 4).collect();
        let found =
            collapse(matrix, &labels, &wrong, Matrix::new(4, 4, &last)).expect("all classes");
        assert!(found.nearest > 0.99, "{found:?}");
    }

    #[test]
    fn a_class_without_samples_has_no_mean() {
        let (features, _, last) = simplex(3, 0.1);
        let labels: Vec<u32> = (0..600).map(|i| i % 2).collect();
        let matrix = Matrix::new(600, 3, &features);
        assert_eq!(collapse(matrix, &labels, &labels, Matrix::new(3, 3, &last)), None);
    }
}
