//! Shifting and scaling values to mean 0 and standard deviation 1.

use rayon::prelude::*;

use super::dataset::{Dataset, Values};

/// Over what the mean and standard deviation are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormalisationKind {
    /// Values stay as they are.
    None,
    /// Each feature by itself: for tables, whose columns have units of their own.
    PerFeature,
    /// One mean and one standard deviation over all values: for images, where a pixel's scale has a meaning
    /// relative to its neighbours.
    Global,
}

/// `x * scale + shift` for each feature. Taken from the training rows and used for training and testing alike.
///
/// Kept as floats of 32 bits, which is how devices apply it. A feature that varies by less than about 1e-7 of its mean
/// loses that variation to rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    /// Factor of each feature, `[features]`.
    pub scale: Vec<f32>,
    /// Added to each feature after scaling, `[features]`.
    pub shift: Vec<f32>,
}

/// Rows summed as one block. Block sums are added in the order of the blocks, so that the result does not depend on
/// how many threads worked on them.
const BLOCK_ROWS: usize = 1024;

impl Normalisation {
    /// The normalisation of `kind` by the rows of `train`.
    ///
    /// Mean and (population) standard deviation are accumulated in 64 bits in two passes. A constant feature gets
    /// scale 0 and shift 0, so it becomes 0 everywhere, test rows included; so does one whose standard
    /// deviation is below 3e-39, whose inverse is no 32-bit float. The bits do not depend on the number of threads.
    pub fn new(kind: NormalisationKind, train: &Dataset) -> Self {
        let features = train.features();
        match (kind, train.values()) {
            (NormalisationKind::None, _) => {
                Normalisation { scale: vec![1.0; features], shift: vec![0.0; features] }
            }
            (_, Values::U8(v)) => of_values(kind, v, features),
            (_, Values::F32(v)) => of_values(kind, v, features),
        }
    }

    /// Normalises `values` in place, `[rows, features]`: the plain form of what devices do.
    ///
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn apply(&self, values: &mut [f32]) {
        assert!(values.len().is_multiple_of(self.scale.len()), "{} values", values.len());
        for row in values.chunks_exact_mut(self.scale.len()) {
            for ((x, scale), shift) in row.iter_mut().zip(&self.scale).zip(&self.shift) {
                *x = x.mul_add(*scale, *shift);
            }
        }
    }
}

fn of_values<T: Copy + Into<f64> + Sync>(
    kind: NormalisationKind,
    values: &[T],
    features: usize,
) -> Normalisation {
    let rows = (values.len() / features) as f64;
    let mut mean = sums(values, features, |x, _| x);
    match kind {
        NormalisationKind::Global => {
            let all = mean.iter().sum::<f64>() / (rows * features as f64);
            mean.fill(all);
        }
        _ => mean.iter_mut().for_each(|m| *m /= rows),
    }
    let mut variance = sums(values, features, |x, j| (x - mean[j]) * (x - mean[j]));
    match kind {
        NormalisationKind::Global => {
            let all = variance.iter().sum::<f64>() / (rows * features as f64);
            variance.fill(all);
        }
        _ => variance.iter_mut().for_each(|v| *v /= rows),
    }
    // A constant 0.1 has a mean that is off by rounding, and a variance that is not quite zero: ask the values.
    let first = &values[..features];
    let varies: Vec<bool> = match kind {
        NormalisationKind::Global => {
            let first: f64 = first[0].into();
            vec![values.par_iter().any(|&x| x.into() != first); features]
        }
        _ => sums(values, features, |x, j| f64::from(u8::from(x != first[j].into())))
            .into_iter()
            .map(|differing| differing > 0.0)
            .collect(),
    };
    let (scale, shift) = mean
        .iter()
        .zip(&variance)
        .zip(varies)
        .map(|((mean, variance), varies)| {
            let inverse = 1.0 / variance.sqrt();
            let (scale, shift) = (inverse as f32, (-mean * inverse) as f32);
            match varies && scale.is_finite() && shift.is_finite() {
                true => (scale, shift),
                false => (0.0, 0.0),
            }
        })
        .unzip();
    Normalisation { scale, shift }
}

/// For each feature, the sum of `term(x, feature)` over all rows.
fn sums<T: Copy + Into<f64> + Sync>(
    values: &[T],
    features: usize,
    term: impl Fn(f64, usize) -> f64 + Sync,
) -> Vec<f64> {
    let blocks: Vec<Vec<f64>> = values
        .par_chunks(BLOCK_ROWS * features)
        .map(|block| {
            let mut sum = vec![0.0; features];
            for row in block.chunks_exact(features) {
                for (j, (s, &x)) in sum.iter_mut().zip(row).enumerate() {
                    *s += term(x.into(), j);
                }
            }
            sum
        })
        .collect();
    let mut total = vec![0.0; features];
    for block in blocks {
        for (t, s) in total.iter_mut().zip(block) {
            *t += s;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use NormalisationKind::{Global, None, PerFeature};

    fn table(columns: &[&[f32]]) -> Dataset {
        let rows = columns[0].len();
        let values = (0..rows).flat_map(|r| columns.iter().map(move |c| c[r])).collect();
        Dataset::from_arrays(values, columns.len(), vec![0; rows], 1).unwrap()
    }

    #[test]
    fn per_feature_by_hand() {
        // Means 2 and 15, standard deviations 1 and 5.
        let set = table(&[&[1.0, 3.0, 1.0, 3.0], &[10.0, 20.0, 20.0, 10.0]]);
        let n = Normalisation::new(PerFeature, &set);
        assert_eq!(n.scale, [1.0, 0.2]);
        assert_eq!(n.shift, [-2.0, -3.0]);
        let mut row = [4.0, 25.0];
        n.apply(&mut row);
        assert_eq!(row, [2.0, 2.0]);
    }

    #[test]
    fn global_by_hand() {
        let set = Dataset::from_bytes(vec![0, 4, 4, 0, 0, 4], 2, vec![0; 3], 1).unwrap();
        let n = Normalisation::new(Global, &set);
        assert_eq!((n.scale, n.shift), (vec![0.5; 2], vec![-1.0; 2]));
        let n = Normalisation::new(None, &set);
        assert_eq!((n.scale, n.shift), (vec![1.0; 2], vec![0.0; 2]));
    }

    #[test]
    fn constant_features_become_zero() {
        let tiny = f32::from_bits(1);
        let set = table(&[
            &[0.1; 7],
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            &[0.0, 0.0, tiny, tiny, 0.0, 0.0, 0.0],
        ]);
        let n = Normalisation::new(PerFeature, &set);
        assert_eq!((n.scale[0], n.shift[0]), (0.0, 0.0));
        assert_eq!((n.scale[1], n.shift[1]), (0.5, -2.0));
        assert_eq!((n.scale[2], n.shift[2]), (0.0, 0.0));
        let n = Normalisation::new(Global, &table(&[&[0.1; 7], &[0.1; 7]]));
        assert_eq!((n.scale, n.shift), (vec![0.0; 2], vec![0.0; 2]));
    }

    #[test]
    fn normalised_rows_have_mean_zero_and_deviation_one() {
        let set = synthetic(3000, 5, 3, 1);
        let n = Normalisation::new(PerFeature, &set);
        let mut x = vec![f32::NAN; 3000 * 5];
        set.rows_f32(0..3000, &mut x);
        n.apply(&mut x);
        for j in 0..5 {
            let column: Vec<f64> = x.iter().skip(j).step_by(5).map(|&x| f64::from(x)).collect();
            let mean = column.iter().sum::<f64>() / 3000.0;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 3000.0;
            assert!(mean.abs() <= 1e-6 && (variance - 1.0).abs() <= 1e-6, "{mean} {variance}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let set = synthetic(10_000, 7, 4, 2);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| [PerFeature, Global].map(|kind| Normalisation::new(kind, &set)))
        };
        let one = with(1);
        assert!([2, 3, 8].into_iter().all(|threads| with(threads) == one));
    }
}
