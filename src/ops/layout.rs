//! How elementwise operations are cut into chunks, and how broadcasting ones walk their operands:
//! row-major output, each operand read with a stride of its own along every axis, 0 where it
//! repeats.

use crate::device::cpu::rows_per_chunk;
use crate::tensor::Shape;
use std::ops::Range;

/// Elements of a chunk of elementwise work, each of so many nanoseconds: whole cache lines of 64
/// bytes, so that no vector of a dense tensor lies across two of them and no two threads write one.
pub(super) fn elements_per_chunk(nanoseconds: f64) -> usize {
    rows_per_chunk(nanoseconds).next_multiple_of(16)
}

/// Strides with which a dense tensor of shape `from` is read along the axes of `to`, where
/// `from` broadcasts to `to` by NumPy's rule.
pub(super) fn broadcast_strides(from: &Shape, to: &Shape) -> Vec<usize> {
    let missing = to.rank() - from.rank();
    let own = from.strides();
    (0..to.rank())
        .map(|axis| match axis.checked_sub(missing) {
            Some(axis) if from.extents()[axis] != 1 => own[axis],
            _ => 0,
        })
        .collect()
}

/// Position in a dense tensor of shape `from` of the element that is at `index` once it is
/// broadcast to `to`. For oracles: plain, and independent of [`Walk`].
pub(super) fn broadcast_index(index: usize, from: &Shape, to: &Shape) -> usize {
    let (mut rest, mut stride, mut position) = (index, 1, 0);
    for (distance, extent) in to.extents().iter().rev().enumerate() {
        let coordinate = rest % extent;
        rest /= extent;
        if let Some(axis) = from.rank().checked_sub(distance + 1) {
            let own = from.extents()[axis];
            position += if own == 1 { 0 } else { coordinate * stride };
            stride *= own;
        }
    }
    position
}

/// A walk over the rows of an output and the matching parts of `N` operands.
///
/// Axes of extent 1 are dropped, and neighbours are merged where every operand allows it, so that
/// rows are as long as they can be.
#[derive(Debug)]
pub(super) struct Walk<const N: usize> {
    /// Length of a row.
    inner: usize,
    /// Whether each operand advances along a row; otherwise one value is for the whole row.
    along: [bool; N],
    /// Extent and strides of the other axes, innermost first.
    outer: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Walk<N> {
    /// The walk over an output of these extents; `strides` has each operand's, 0 where it repeats.
    pub(super) fn new(extents: &[usize], strides: [Vec<usize>; N]) -> Walk<N> {
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for (axis, &extent) in extents.iter().enumerate().rev() {
            if extent == 1 {
                continue;
            }
            let own: [usize; N] = std::array::from_fn(|i| strides[i][axis]);
            match axes.last_mut() {
                Some((merged, inner)) if (0..N).all(|i| own[i] == inner[i] * *merged) => {
                    *merged *= extent;
                }
                _ => axes.push((extent, own)),
            }
        }
        if axes.is_empty() {
            axes.push((1, [1; N]));
        }
        let (inner, strides) = axes.remove(0);
        assert!(strides.iter().all(|&stride| stride <= 1), "operands are dense");
        Walk { inner, along: strides.map(|stride| stride == 1), outer: axes }
    }

    /// Whether each operand advances along a row.
    pub(super) fn along(&self) -> [bool; N] {
        self.along
    }

    /// Calls `f` for each row, or part of a row, within the output's elements `range`: with each
    /// operand's first element, and the elements of the output counted from `range.start`.
    #[inline(always)]
    pub(super) fn rows(&self, range: Range<usize>, mut f: impl FnMut([usize; N], Range<usize>)) {
        if range.is_empty() {
            return;
        }
        let mut row = range.start / self.inner;
        let mut column = range.start % self.inner;
        let mut done = 0;
        while done < range.len() {
            let end = (done + self.inner - column).min(range.len());
            let mut starts = self.starts(row);
            for (start, along) in starts.iter_mut().zip(self.along) {
                *start += if along { column } else { 0 };
            }
            f(starts, done..end);
            (done, column) = (end, 0);
            row += 1;
        }
    }

    #[inline(always)]
    fn starts(&self, row: usize) -> [usize; N] {
        let mut starts = [0; N];
        let Some(((_, outermost), others)) = self.outer.split_last() else { return starts };
        let mut rest = row;
        for (extent, strides) in others {
            let coordinate = rest % extent;
            rest /= extent;
            for (start, stride) in starts.iter_mut().zip(strides) {
                *start += coordinate * stride;
            }
        }
        for (start, stride) in starts.iter_mut().zip(outermost) {
            *start += rest * stride;
        }
        starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_reads_what_the_plain_index_names() {
        let pairs: [(&[usize], &[usize]); 8] = [
            (&[], &[]),
            (&[], &[2, 3]),
            (&[3], &[2, 3]),
            (&[2, 1], &[2, 3]),
            (&[3, 1, 5, 1], &[3, 4, 5, 7]),
            (&[4, 1, 7], &[3, 4, 5, 7]),
            (&[1, 3, 4, 1], &[2, 3, 4, 9]),
            (&[2, 3, 4, 9], &[2, 3, 4, 9]),
        ];
        for (from, to) in pairs {
            let (from, to) = (Shape::from(from), Shape::from(to));
            let walk = Walk::new(to.extents(), [broadcast_strides(&from, &to)]);
            let [along] = walk.along();
            let n = to.elements();
            for range in [0..n, n / 3..n, n / 3..n - n / 5] {
                let mut seen = Vec::new();
                walk.rows(range.clone(), |[start], out| {
                    assert_eq!(out.start, seen.len());
                    seen.extend(out.clone().map(|i| start + if along { i - out.start } else { 0 }));
                });
                let want: Vec<usize> = range.map(|i| broadcast_index(i, &from, &to)).collect();
                assert_eq!(seen, want, "{from} to {to}");
            }
        }
    }
}
