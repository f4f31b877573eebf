//! The oracle of `permutation`: row by row.

use crate::random::Permutation;

pub(super) fn permutation(seed: u64, epoch: u64, order: &mut [f64]) {
    let permutation = Permutation::new(seed, epoch, order.len() as u32);
    for (i, row) in (0..).zip(order) {
        *row = f64::from(permutation.at(i));
    }
}
