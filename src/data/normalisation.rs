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
    /// One mean and one standard deviation over all values: for images, where a pixel's scale has a
    /// meaning relative to its neighbours.
    Global,
    /// Each feature's own mean, and one standard deviation for all: for images whose pixels differ
    /// in brightness, as those of centred figures do. Inputs without a common part train faster
    /// (LeCun et al., "Efficient BackProp", 1998), and pixels that hardly vary are not blown up.
    Centred,
}

/// `x * scale + shift` for each feature. Taken from the training rows and used for training and
/// testing alike.
///
/// Kept as floats of 32 bits, which is how devices apply it. A feature that varies by less than
/// about 1e-7 of its mean loses that variation to rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    /// Factor of each feature, `[features]`.
    pub scale: Vec<f32>,
    /// Added to each feature after scaling, `[features]`.
    pub shift: Vec<f32>,
}

/// Rows summed as one block. Block sums are added in the order of the blocks, so that the result
/// does not depend on how many threads worked on them.
const BLOCK_ROWS: usize = 1024;

impl Normalisation {
    /// The normalisation of `kind` by the rows of `train`.
    ///
    /// Mean and (population) standard deviation are accumulated in 64 bits. A constant feature gets
    /// scale 0 and shift 0, so it becomes 0 everywhere, test rows included; so does one whose
    /// standard deviation is below 3e-39, whose inverse is no 32-bit float. The bits do not depend
    /// on the number of threads.
    pub fn new(kind: NormalisationKind, train: &Dataset) -> Self {
        let features = train.features();
        let mut moments = match (kind, train.values()) {
            (NormalisationKind::None, _) => {
                return Normalisation { scale: vec![1.0; features], shift: vec![0.0; features] };
            }
            (_, Values::U8(v)) => Moments::of_bytes(kind, v, features),
            (_, Values::F32(v)) => Moments::of_floats(kind, v, features),
        };
        if kind == NormalisationKind::Centred {
            moments.pool();
        }
        let (scale, shift) = moments.0.into_iter().map(scale_and_shift).unzip();
        Normalisation { scale, shift }
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

/// Mean and variance of each feature (of all values, once for each feature); no variance where all
/// are equal.
struct Moments(Vec<(f64, Option<f64>)>);

impl Moments {
    /// Bytes are summed as integers, without rounding.
    fn of_bytes(kind: NormalisationKind, values: &[u8], features: usize) -> Self {
        let blocks = values.par_chunks(BLOCK_ROWS * features).map(|block| {
            let (mut sum, mut square) = (vec![0u32; features], vec![0u32; features]);
            // 1024 rows of 255 squared fit 32 bits.
            for row in block.chunks_exact(features) {
                for ((sum, square), &x) in sum.iter_mut().zip(&mut square).zip(row) {
                    let x = u32::from(x);
                    *sum += x;
                    *square += x * x;
                }
            }
            (sum, square)
        });
        let mut total = vec![(0u64, 0u64); features];
        for (sum, square) in blocks.collect::<Vec<_>>() {
            for ((total, sum), square) in total.iter_mut().zip(sum).zip(square) {
                *total = (total.0 + u64::from(sum), total.1 + u64::from(square));
            }
        }
        let moments = |(sum, square): (u64, u64), count: usize| {
            let (sum, square, count) = (u128::from(sum), u128::from(square), count as u128);
            // Never negative: Cauchy and Schwarz, and no rounding.
            let spread = count * square - sum * sum;
            let n = count as f64;
            (sum as f64 / n, (spread > 0).then_some(spread as f64 / n / n))
        };
        Moments(match kind {
            NormalisationKind::Global => {
                let all = total.iter().fold((0, 0), |a, t| (a.0 + t.0, a.1 + t.1));
                vec![moments(all, values.len()); features]
            }
            _ => total.into_iter().map(|t| moments(t, values.len() / features)).collect(),
        })
    }

    /// Floats are summed in 64 bits, first for the mean and then for the squared distances from it.
    fn of_floats(kind: NormalisationKind, values: &[f32], features: usize) -> Self {
        let global = kind == NormalisationKind::Global;
        // The mean of `features` sums over rows, or of their sum.
        let averaged = |mut sums: Vec<f64>| {
            if global {
                let all = sums.iter().sum::<f64>() / values.len() as f64;
                sums.fill(all);
            } else {
                sums.iter_mut().for_each(|s| *s /= (values.len() / features) as f64);
            }
            sums
        };
        // A constant 0.1 has a mean that is off by rounding and a variance that is not quite zero:
        // its values tell.
        let first: Vec<f32> =
            if global { vec![values[0]; features] } else { values[..features].to_vec() };
        let differing = sums(values, &first, |x, first| f64::from(u8::from(x != first)));
        let any = differing.iter().any(|&d| d > 0.0);
        let mean = averaged(sums(values, &first, |x, _| f64::from(x)));
        let variance = averaged(sums(values, &mean, |x, mean| (f64::from(x) - mean).powi(2)));
        let varies = |d: f64| if global { any } else { d > 0.0 };
        Moments(
            mean.into_iter()
                .zip(variance)
                .zip(differing)
                .map(|((mean, variance), d)| (mean, varies(d).then_some(variance)))
                .collect(),
        )
    }
}

impl Moments {
    /// One variance for all features that vary: the mean over all features, so that all values
    /// together have deviation 1.
    fn pool(&mut self) {
        let sum: f64 = self.0.iter().filter_map(|&(_, variance)| variance).sum();
        let pooled = sum / self.0.len() as f64;
        for (_, variance) in &mut self.0 {
            *variance = variance.map(|_| pooled);
        }
    }
}

/// The factor and the summand that give mean 0 and deviation 1; 0 and 0 where there is no such
/// factor.
fn scale_and_shift((mean, variance): (f64, Option<f64>)) -> (f32, f32) {
    let inverse = variance.map_or(f64::INFINITY, |v| 1.0 / v.sqrt());
    let (scale, shift) = (inverse as f32, (-mean * inverse) as f32);
    match scale.is_finite() && shift.is_finite() {
        true => (scale, shift),
        false => (0.0, 0.0),
    }
}

/// For each feature, the sum over all rows of `term(x, with)`, where `with` holds one value for
/// each feature.
fn sums<W: Copy + Sync>(
    values: &[f32],
    with: &[W],
    term: impl Fn(f32, W) -> f64 + Sync,
) -> Vec<f64> {
    let features = with.len();
    let blocks = values.par_chunks(BLOCK_ROWS * features).map(|block| {
        let mut sum = vec![0.0; features];
        for row in block.chunks_exact(features) {
            for ((s, &x), &w) in sum.iter_mut().zip(row).zip(with) {
                *s += term(x, w);
            }
        }
        sum
    });
    let mut total = vec![0.0; features];
    for block in blocks.collect::<Vec<_>>() {
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
    use NormalisationKind::{Centred, Global, None, PerFeature};

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
    fn centred_by_hand() {
        // Means 2, 16 and 7, variances 1, 49 and 0; their mean is 50/3.
        let columns: [&[f32]; 3] = [&[1.0, 3.0, 1.0, 3.0], &[9.0, 23.0, 23.0, 9.0], &[7.0; 4]];
        let scale = (3f64 / 50.0).sqrt();
        let bytes = (0..4).flat_map(|r| columns.map(|c| c[r] as u8)).collect();
        let bytes = Dataset::from_bytes(bytes, 3, vec![0; 4], 1).unwrap();
        for set in [table(&columns), bytes] {
            let n = Normalisation::new(Centred, &set);
            assert_eq!(n.scale, [scale as f32, scale as f32, 0.0]);
            assert_eq!(n.shift, [(-2.0 * scale) as f32, (-16.0 * scale) as f32, 0.0]);
            let mut rows = vec![f32::NAN; 12];
            set.rows_f32(0..4, &mut rows);
            n.apply(&mut rows);
            let square = rows.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 12.0;
            assert!((square - 1.0).abs() <= 1e-6, "{square}");
        }
        let n = Normalisation::new(Centred, &table(&[&[0.1; 7], &[3.0; 7]]));
        assert_eq!((n.scale, n.shift), (vec![0.0; 2], vec![0.0; 2]));
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
    fn bytes_and_floats_agree() {
        let bytes: Vec<u8> = (0..5000u32 * 3).map(|i| (i * i % 251) as u8).collect();
        let floats = bytes.iter().map(|&b| f32::from(b)).collect();
        let labels = vec![0; 5000];
        let bytes = Dataset::from_bytes(bytes, 3, labels.clone(), 1).unwrap();
        let floats = Dataset::from_arrays(floats, 3, labels, 1).unwrap();
        for kind in [PerFeature, Global, Centred] {
            let (a, b) = (Normalisation::new(kind, &bytes), Normalisation::new(kind, &floats));
            for (a, b) in a.scale.iter().chain(&a.shift).zip(b.scale.iter().chain(&b.shift)) {
                // Both round a 64-bit result to 32 bits once.
                assert!((a - b).abs() <= a.abs() * f32::EPSILON, "{kind:?}: {a} {b}");
            }
        }
        let constant = Dataset::from_bytes(vec![255; 2100], 1, vec![0; 2100], 1).unwrap();
        let n = Normalisation::new(PerFeature, &constant);
        assert_eq!((n.scale[0], n.shift[0]), (0.0, 0.0));
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let set = synthetic(10_000, 7, 4, 2);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                [PerFeature, Global, Centred].map(|kind| Normalisation::new(kind, &set))
            })
        };
        let one = with(1);
        assert!([2, 3, 8].into_iter().all(|threads| with(threads) == one));
    }
}
