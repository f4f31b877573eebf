//! The order in which an epoch visits the rows.

use super::random::{Purpose, Random};

/// The shuffled row order of one epoch: a permutation of `0..rows`.
///
/// A pure function of its arguments: a resumed run sees the order that it would have seen, without
/// replaying earlier epochs, and the order depends on no thread count and no platform. Fisher-Yates
/// over an unbiased bounded draw from xoshiro256++; the stream is keyed by `(seed, epoch)`.
///
/// # Panics
/// If `rows` does not fit in 32 bits (a [`super::Dataset`] never has so many).
pub fn order(seed: u64, epoch: u64, rows: usize) -> Vec<u32> {
    let mut out = vec![0; rows];
    order_into(seed, epoch, &mut out);
    out
}

/// [`order`] of `out.len()` rows, written over `out` without allocating.
///
/// # Panics
/// If `out.len()` does not fit in 32 bits.
pub fn order_into(seed: u64, epoch: u64, out: &mut [u32]) {
    for (i, row) in out.iter_mut().enumerate() {
        *row = i as u32;
    }
    Random::new(Purpose::Order, seed, epoch).shuffle(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_permutation(seed: u64, epoch: u64, rows in 0usize..3000) {
            let got = order(seed, epoch, rows);
            let mut sorted = got.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.iter().copied().eq(0..rows as u32));
            let mut again = vec![u32::MAX; rows];
            order_into(seed, epoch, &mut again);
            prop_assert_eq!(got, again);
        }
    }

    #[test]
    fn every_permutation_is_equally_likely() {
        let mut counts = [0u32; 27];
        for epoch in 0..60_000 {
            let p = order(11, epoch, 3);
            counts[(p[0] * 9 + p[1] * 3 + p[2]) as usize] += 1;
        }
        let seen: Vec<u32> = counts.into_iter().filter(|&c| c > 0).collect();
        assert_eq!(seen.len(), 6);
        // 10000 expected, standard deviation 91: six of them.
        assert!(seen.iter().all(|c| c.abs_diff(10_000) < 550), "{seen:?}");
    }

    /// Runs that were recorded earlier can be continued only while these stay. Computed by a second
    /// implementation, written in Python from the description above.
    #[test]
    fn frozen() {
        assert_eq!(order(1, 0, 10), [7, 5, 4, 6, 8, 0, 9, 3, 2, 1]);
        assert_eq!(order(1, 1, 10), [1, 5, 7, 2, 8, 9, 3, 4, 0, 6]);
    }
}
