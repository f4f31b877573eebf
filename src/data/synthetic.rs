//! Made-up data of any size, for benchmarks and tests.

use rayon::prelude::*;

use super::dataset::Dataset;
use super::random::{Purpose, Random};

/// Rows drawn from one stream; fixed, so that the values do not depend on the number of threads.
const BLOCK_ROWS: usize = 64;

/// Gaussian clusters: each class has a centre, and a row is its class's centre plus standard normal
/// noise.
///
/// Centres are normal with standard deviation `4 / sqrt(features)`, so that two of them lie about
/// 5.7 apart whatever the number of features: with ten classes, about 2% of the rows are nearer to
/// another centre than to their own. Classes take turns (`label = row % classes`). The same
/// arguments give the same values.
///
/// # Panics
/// If an argument but the seed is 0, or rows or classes do not fit in 32 bits.
pub fn synthetic(rows: usize, features: usize, classes: usize, seed: u64) -> Dataset {
    assert!(rows > 0 && features > 0 && classes > 0, "{rows} rows, {features}, {classes}");
    let mut centres = vec![0.0; classes * features];
    normal(Random::new(Purpose::SyntheticCentres, seed, 0), &mut centres);
    let spread = 4.0 / (features as f32).sqrt();
    let mut values = vec![0.0; rows * features];
    values.par_chunks_mut(BLOCK_ROWS * features).enumerate().for_each(|(block, out)| {
        normal(Random::new(Purpose::SyntheticRows, seed, block as u64), out);
        for (i, row) in out.chunks_exact_mut(features).enumerate() {
            let class = (block * BLOCK_ROWS + i) % classes;
            for (x, centre) in row.iter_mut().zip(&centres[class * features..]) {
                *x += spread * centre;
            }
        }
    });
    let labels = (0..rows).map(|row| (row % classes) as u32).collect();
    match Dataset::from_arrays(values, features, labels, classes) {
        Ok(set) => set.with_name("synthetic"),
        Err(e) => panic!("synthetic data is valid by construction: {e}"),
    }
}

fn normal(mut random: Random, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        pair.copy_from_slice(&random.normal_pair()[..pair.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Values;

    #[test]
    fn clusters_are_nearly_separable() {
        let (rows, features, classes) = (5000, 33, 10);
        let set = synthetic(rows, features, classes, 5);
        let Values::F32(x) = set.values() else { unreachable!() };
        let mut centres = vec![0.0f32; classes * features];
        for (row, &label) in x.chunks_exact(features).zip(set.labels()) {
            for (j, v) in row.iter().enumerate() {
                centres[label as usize * features + j] += v * classes as f32 / rows as f32;
            }
        }
        let right = x.chunks_exact(features).zip(set.labels()).filter(|(row, label)| {
            let distance = |c: usize| -> f32 {
                row.iter().zip(&centres[c * features..]).map(|(a, b)| (a - b).powi(2)).sum()
            };
            let nearest = (0..classes).min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            nearest == Some(**label as usize)
        });
        let accuracy = right.count() as f64 / rows as f64;
        assert!(accuracy > 0.93 && accuracy < 1.0, "{accuracy}");
        assert_eq!(set, synthetic(rows, features, classes, 5));
        assert_ne!(set, synthetic(rows, features, classes, 6));
    }
}
