//! Rows of few classes: one row a lane.
//!
//! A group of rows is transposed into a stack buffer, one vector a class, so that no lane is idle
//! and maxima and sums need no reduction across lanes. At 10 classes that halves the exponentials
//! of AVX-512 and saves three reductions a row; from [`MOST`] classes on, the elements moved one by
//! one cost more than that.

use super::{Ends, Group, LANES, Rows, Sums, Target};
use crate::device::cpu::simd::{Simd, dot, math};

/// Most classes of a narrow row.
pub(super) const MOST: usize = 32;

/// One vector a class; of the instruction sets with 8 lanes, the first half is in use.
type Columns = [[f32; LANES]; MOST];

/// Reads rows of `classes` elements into columns; lanes past the last row keep what they hold.
///
/// Not inlined, and so compiled without the instruction set on purpose: with it, the compiler makes
/// scatters of these moves, and the whole kernel takes 1.5 times as long (AMD Zen 4).
#[inline(never)]
fn transpose(rows: &[f32], classes: usize, columns: &mut Columns) {
    for (r, row) in rows.chunks_exact(classes).enumerate() {
        for (column, &x) in columns.iter_mut().zip(row) {
            column[r % LANES] = x;
        }
    }
}

/// Writes columns as rows of `classes` elements. Not inlined, as [`transpose`].
#[inline(never)]
fn transpose_back(columns: &Columns, classes: usize, rows: &mut [f32]) {
    for (r, row) in rows.chunks_exact_mut(classes).enumerate() {
        for (column, x) in columns.iter().zip(row) {
            *x = column[r % LANES];
        }
    }
}

impl Rows<'_> {
    /// As [`Rows::run`](super::Rows), for at most [`MOST`] classes.
    #[inline(always)]
    pub(super) fn run_narrow<S: Simd>(&mut self, s: S) -> Sums {
        let classes = self.problem.classes;
        let count = self.logits().len() / classes;
        let mut columns = [[0.0; LANES]; MOST];
        let mut weights = [[0.0; LANES]; MOST];
        let mut group = Group::new();
        let mut total = Sums::NONE;
        let mut first = 0;
        while first < count {
            let rows = S::LANES.min(count - first);
            let elements = first * classes..(first + rows) * classes;
            let z = &self.logits()[elements.clone()];
            transpose(z, classes, &mut columns);
            let label = match self.targets {
                Target::Labels { labels, .. } => {
                    // Classes are exact in f32, and what is out of range equals no class: read as
                    // signed it is negative, or stays large.
                    let bits: &[f32] = bytemuck::cast_slice(&labels[first..first + rows]);
                    let label = s.load_slice(bits);
                    s.store_slice(bytemuck::cast_slice_mut(&mut group.label), label);
                    s.to_f32(s.bitcast_i32(label))
                }
                Target::Distributions(t) => {
                    transpose(&t[elements.clone()], classes, &mut weights);
                    let label = largest_column(s, &weights[..classes]);
                    let mut numbers = [0.0; LANES];
                    s.store_slice(&mut numbers, label);
                    group.label = numbers.map(|label| label as u32);
                    label
                }
            };
            group.read_columns(s, label, &mut columns[..classes], &weights, self.targets);
            let ends = group.finish(s, &self.problem, self.targets);
            // Before the gradient, which may be written over the logits.
            let mut sums = group.sums(s, &self.problem, &ends, rows, |r| {
                let before = &z[r * classes..][..group.label[r] as usize];
                before.contains(&group.own[r])
            });
            if self.problem.statistics {
                sums.squares = f64::from(dot(s, z, z));
            }
            total = total.and(&sums);
            if self.problem.dlogits {
                let mean = s.splat(1.0 / self.problem.rows as f32);
                gradient(s, label, &mut columns[..classes], &weights, self.targets, mean, &ends);
                transpose_back(&columns, classes, &mut self.dlogits[elements]);
            }
            if !self.losses.is_empty() {
                self.losses[first..first + rows].copy_from_slice(&ends.loss[..rows]);
            }
            first += rows;
        }
        total
    }
}

/// The number of the column that holds each lane's largest value, the first of equal ones; -1 where
/// there is none.
#[inline(always)]
fn largest_column<S: Simd>(s: S, columns: &[[f32; LANES]]) -> S::F32 {
    let (mut top, mut number) = (s.splat(f32::NEG_INFINITY), s.splat(-1.0));
    for (j, column) in columns.iter().enumerate() {
        let x = s.load_slice(column);
        let larger = s.gt(x, top);
        top = s.select(larger, x, top);
        number = s.select(larger, s.splat(j as f32), number);
    }
    number
}

impl Group {
    /// Fills all lanes; turns the columns of logits into `exp(z - m)`.
    #[inline(always)]
    fn read_columns<S: Simd>(
        &mut self,
        s: S,
        label: S::F32,
        columns: &mut [[f32; LANES]],
        weights: &[[f32; LANES]; MOST],
        targets: Target<'_>,
    ) {
        let lowest = s.splat(f32::NEG_INFINITY);
        let (mut own, mut other) = (s.splat(f32::NAN), lowest);
        for (j, column) in columns.iter().enumerate() {
            let z = s.load_slice(column);
            let is_label = s.eq(label, s.splat(j as f32));
            own = s.select(is_label, z, own);
            other = s.max(s.select(is_label, lowest, z), other);
        }
        // NaN of the label's logit does not count; it spreads by `own`.
        let max = s.max(own, other);
        let smooth = match targets {
            Target::Labels { smoothing, .. } => smoothing > 0.0,
            Target::Distributions(_) => false,
        };
        let soft = matches!(targets, Target::Distributions(_));
        let (mut rest, mut below) = (s.zero(), s.zero());
        let (mut target, mut others) = (s.splat(f32::NAN), s.zero());
        for (j, column) in columns.iter_mut().enumerate() {
            let is_label = s.eq(label, s.splat(j as f32));
            let difference = s.sub(s.load_slice(column), max);
            let e = math::exp(s, difference);
            rest = s.add(rest, s.select(is_label, s.zero(), e));
            s.store_slice(column, e);
            if smooth {
                below = s.sub(below, difference);
            }
            if soft {
                let t = s.load_slice(&weights[j]);
                // A class of weight zero counts nothing, at a logit of negative infinity too.
                let term = s.neg_mul_add(t, difference, below);
                below = s.select(s.eq(t, s.zero()), below, term);
                target = s.select(is_label, t, target);
                others = s.add(others, s.select(is_label, s.zero(), t));
            }
        }
        s.store_slice(&mut self.own, own);
        s.store_slice(&mut self.max, max);
        s.store_slice(&mut self.other, other);
        s.store_slice(&mut self.rest, rest);
        match targets {
            Target::Labels { smoothing, .. } => {
                let share = smoothing / columns.len() as f32;
                s.store_slice(&mut self.below, s.mul(below, s.splat(share)));
                self.target = [(1.0 - smoothing) + share; LANES];
                self.others = [share * (columns.len() - 1) as f32; LANES];
            }
            Target::Distributions(_) => {
                s.store_slice(&mut self.below, below);
                s.store_slice(&mut self.target, target);
                s.store_slice(&mut self.others, others);
            }
        }
    }
}

/// Turns the columns of `exp(z - m)` into the gradient.
#[inline(always)]
fn gradient<S: Simd>(
    s: S,
    label: S::F32,
    columns: &mut [[f32; LANES]],
    weights: &[[f32; LANES]; MOST],
    targets: Target<'_>,
    mean: S::F32,
    ends: &Ends,
) {
    let (factor, own) = (s.load_slice(&ends.factor), s.load_slice(&ends.own));
    let share = match targets {
        Target::Labels { smoothing, .. } => {
            s.mul(s.splat(smoothing / columns.len() as f32), mean)
        }
        Target::Distributions(_) => s.zero(),
    };
    for (j, column) in columns.iter_mut().enumerate() {
        let p = s.mul(s.load_slice(column), factor);
        let g = match targets {
            Target::Labels { .. } => s.sub(p, share),
            Target::Distributions(_) => s.neg_mul_add(s.load_slice(&weights[j]), mean, p),
        };
        let is_label = s.eq(label, s.splat(j as f32));
        s.store_slice(column, s.select(is_label, own, g));
    }
}
