//! The order in which an epoch visits the rows.

use crate::random::Permutation;

/// The shuffled row order of one epoch: a permutation of `0..rows`.
///
/// A pure function of its arguments: a resumed run sees the order that it would have seen, without
/// replaying earlier epochs, and the order depends on no thread count, no platform and no device: it is
/// that of [`crate::ops::permutation()`], by which training makes it where the data are.
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
    let len = u32::try_from(out.len()).unwrap_or_else(|_| panic!("{} rows", out.len()));
    Permutation::new(seed, epoch, len).fill(0, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_that_of_the_permutation() {
        let got = order(7, 3, 1000);
        let permutation = Permutation::new(7, 3, 1000);
        assert!((0..1000).all(|i| got[i as usize] == permutation.at(i)));
        assert_ne!(got, order(7, 4, 1000));
        assert_ne!(got, order(8, 3, 1000));
        assert!(order(7, 3, 0).is_empty());
    }
}
