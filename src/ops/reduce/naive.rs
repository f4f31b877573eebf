//! The oracle of reductions.

use super::Kind;
use crate::ops::Values;

/// Reduces the axes of `x` for which `reduced` is true.
pub(super) fn reduce(kind: Kind, reduced: &[bool], x: &Values, y: &mut Values) {
    let extents = x.tensor_type.shape.extents();
    let pairs = extents.iter().zip(reduced);
    let count: usize = pairs.filter(|(_, reduced)| **reduced).map(|(extent, _)| extent).product();
    if kind == Kind::Max {
        y.data.fill(f64::NEG_INFINITY);
    }
    for (i, &x) in x.data.iter().enumerate() {
        // Coordinates of the axes that stay make the position in y.
        let (mut rest, mut stride, mut position) = (i, 1, 0);
        for (&extent, &reduced) in extents.iter().zip(reduced).rev() {
            if !reduced {
                position += rest % extent * stride;
                stride *= extent;
            }
            rest /= extent;
        }
        let y = &mut y.data[position];
        match kind {
            Kind::Sum | Kind::Mean => *y += x,
            Kind::Max if x > *y || x.is_nan() => *y = x,
            Kind::Max => {}
        }
    }
    if kind == Kind::Mean {
        y.data.iter_mut().for_each(|y| *y /= count as f64);
    }
}
