//! Rows of few classes: one row a lane.
//!
//! A group of rows is transposed into a stack buffer, one vector a class, so that no lane is idle
//! and maxima and sums need no reduction across lanes. At 10 classes that halves the exponentials
//! of AVX-512 and saves three reductions a row. Four columns of all rows are transposed at once, in
//! registers.

use super::{Ends, Group, LANES, Rows, Sums, Target};
use crate::device::cpu::simd::{Simd, math};

/// Most classes of a narrow row.
pub(super) const MOST: usize = 32;

/// Most groups of a batch. Each step of a batch goes over its groups, so that the processor has work
/// of one group while it waits for results of another.
const GROUPS: usize = 4;

/// Columns of a batch: it has fewer groups where they have many classes.
const BATCH: usize = 64;

/// One vector a class; of the instruction sets with 8 lanes, the first half is in use.
type Column = [f32; LANES];

/// Reads rows of `classes` elements into columns; lanes past the last row keep what they hold.
#[inline(always)]
fn transpose<S: Simd>(s: S, rows: &[f32], classes: usize, columns: &mut [Column]) {
    if classes < 4 || rows.len() != S::LANES * classes {
        return transpose_some(rows, classes, columns);
    }
    for first in (0..classes).step_by(4) {
        // The last four may have some that are there already.
        let first = first.min(classes - 4);
        let four = s.load_four_columns(&rows[first..], classes);
        for i in 0..4 {
            s.store_slice(&mut columns[first + i], four[i]);
        }
    }
}

/// Writes columns as rows of `classes` elements.
#[inline(always)]
fn transpose_back<S: Simd>(s: S, columns: &[Column], classes: usize, rows: &mut [f32]) {
    if classes < 4 || rows.len() != S::LANES * classes {
        return transpose_some_back(columns, classes, rows);
    }
    for first in (0..classes).step_by(4) {
        let first = first.min(classes - 4);
        let mut four = [s.zero(); 4];
        for i in 0..4 {
            four[i] = s.load_slice(&columns[first + i]);
        }
        s.store_four_columns(&mut rows[first..], classes, four);
    }
}

/// [`transpose`] of fewer rows than a vector has lanes, or of very narrow ones.
///
/// Not inlined, and so compiled without the instruction set on purpose: with it, the compiler makes
/// scatters of these moves, and the whole kernel takes 1.5 times as long (AMD Zen 4).
#[inline(never)]
fn transpose_some(rows: &[f32], classes: usize, columns: &mut [Column]) {
    for (r, row) in rows.chunks_exact(classes).enumerate() {
        for (column, &x) in columns.iter_mut().zip(row) {
            column[r % LANES] = x;
        }
    }
}

/// [`transpose_back`], as [`transpose_some`].
#[inline(never)]
fn transpose_some_back(columns: &[Column], classes: usize, rows: &mut [f32]) {
    for (r, row) in rows.chunks_exact_mut(classes).enumerate() {
        for (column, x) in columns.iter().zip(row) {
            *x = column[r % LANES];
        }
    }
}

/// Sums over rows, a lane each of every group.
struct Lanes<S: Simd> {
    loss: S::F32,
    margin: S::F32,
    smallest: S::F32,
    squares: S::F32,
    right: u32,
    saturated: u32,
}

impl Rows<'_> {
    /// As [`Rows::run`](super::Rows), for at most [`MOST`] classes.
    #[inline(always)]
    pub(super) fn run_narrow<S: Simd>(&mut self, s: S) -> Sums {
        match self.targets {
            Target::Labels { .. } => self.run_batches(s, &mut []),
            Target::Distributions(_) => self.run_batches(s, &mut [[0.0; LANES]; BATCH]),
        }
    }

    /// `weights` is for those of the classes: [`BATCH`] columns for distributions.
    #[inline(always)]
    fn run_batches<S: Simd>(&mut self, s: S, weights: &mut [Column]) -> Sums {
        let classes = self.problem.classes;
        let count = self.logits().len() / classes;
        let per_batch = (BATCH / classes).min(GROUPS);
        let mut columns = [[0.0; LANES]; BATCH];
        let mut labels = [[0.0; LANES]; GROUPS];
        let mut groups = [Group::new(); GROUPS];
        let mut all_ends = [Ends::NONE; GROUPS];
        let (zero, highest) = (s.zero(), s.splat(f32::INFINITY));
        let mut sums = Lanes::<S> {
            loss: zero,
            margin: zero,
            smallest: highest,
            squares: zero,
            right: 0,
            saturated: 0,
        };
        let mean = s.splat(1.0 / self.problem.rows as f32);
        let mut first = 0;
        while first < count {
            let last = count.min(first + per_batch * S::LANES);
            // Rows of group g of the batch.
            let rows = |g: usize| {
                let start = first + g * S::LANES;
                start..last.min(start + S::LANES)
            };
            let batch = (last - first).div_ceil(S::LANES);
            for g in 0..batch {
                let (group, rows) = (&mut groups[g], rows(g));
                let elements = rows.start * classes..rows.end * classes;
                let columns = &mut columns[g * classes..(g + 1) * classes];
                transpose(s, &self.logits()[elements.clone()], classes, columns);
                let (label, weights) = match self.targets {
                    Target::Labels { labels, .. } => {
                        // Classes are exact in f32, and what is out of range equals no class: read
                        // as signed it is negative, or stays large.
                        let label = s.load_slice(bytemuck::cast_slice(&labels[rows.clone()]));
                        s.store_slice(bytemuck::cast_slice_mut(&mut group.label), label);
                        (s.to_f32(s.bitcast_i32(label)), &[][..])
                    }
                    Target::Distributions(t) => {
                        let weights = &mut weights[g * classes..(g + 1) * classes];
                        transpose(s, &t[elements], classes, weights);
                        let label = largest_column(s, weights);
                        let mut numbers = [0.0; LANES];
                        s.store_slice(&mut numbers, label);
                        group.label = numbers.map(|label| label as u32);
                        (label, &weights[..])
                    }
                };
                s.store_slice(&mut labels[g], label);
                let squares = group.read_columns(s, label, columns, weights, self.targets);
                let present = s.first(rows.len());
                sums.squares = s.add(sums.squares, s.select(present, squares, zero));
            }
            for g in 0..batch {
                all_ends[g] = groups[g].finish(s, &self.problem, self.targets);
                self.add(s, &groups[g], &all_ends[g], rows(g), &mut sums);
            }
            for g in 0..batch {
                let (ends, rows) = (&all_ends[g], rows(g));
                if !self.losses.is_empty() {
                    self.losses[rows.clone()].copy_from_slice(&ends.loss[..rows.len()]);
                }
                if self.problem.dlogits {
                    let own = g * classes..(g + 1) * classes;
                    let weights = if weights.is_empty() { &[] } else { &weights[own.clone()] };
                    let columns = &mut columns[own];
                    let label = s.load_slice(&labels[g]);
                    gradient(s, label, columns, weights, self.targets, mean, ends);
                    let elements = rows.start * classes..rows.end * classes;
                    transpose_back(s, columns, classes, &mut self.dlogits[elements]);
                }
            }
            first = last;
        }
        let mut total = Sums { loss: f64::from(s.reduce_add(sums.loss)), ..Sums::NONE };
        if self.problem.statistics {
            total.margin = f64::from(s.reduce_add(sums.margin));
            total.smallest = s.reduce_min(sums.smallest);
            total.right = f64::from(sums.right);
            total.saturated = f64::from(sums.saturated);
            total.squares = f64::from(s.reduce_add(sums.squares));
        }
        total
    }

    /// Adds what the rows of a group give, before their gradient is written.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        s: S,
        group: &Group,
        ends: &Ends,
        rows: std::ops::Range<usize>,
        sums: &mut Lanes<S>,
    ) {
        let present = s.first(rows.len());
        let loss = s.load_slice(&ends.loss);
        sums.loss = s.add(sums.loss, s.select(present, loss, s.zero()));
        if !self.problem.statistics {
            return;
        }
        let margin = group.margin(s, &self.problem, loss);
        sums.margin = s.add(sums.margin, s.select(present, margin, s.zero()));
        let margin_or = s.select(present, margin, s.splat(f32::INFINITY));
        sums.smallest = s.min_nan(margin_or, sums.smallest);
        sums.saturated += group.saturated(s, loss, rows.len());
        sums.right += group.right(s, margin, rows.len(), |r| {
            let start = (rows.start + r) * self.problem.classes;
            let before = &self.logits()[start..start + group.label[r] as usize];
            before.contains(&group.own[r])
        });
    }
}

/// The number of the column that holds each lane's largest value, the first of equal ones; -1 where
/// there is none.
#[inline(always)]
fn largest_column<S: Simd>(s: S, columns: &[Column]) -> S::F32 {
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
    /// Fills all lanes; turns the columns of logits into `exp(z - m)`. Gives the sums of the squares
    /// of the logits.
    #[inline(always)]
    fn read_columns<S: Simd>(
        &mut self,
        s: S,
        label: S::F32,
        columns: &mut [Column],
        weights: &[Column],
        targets: Target<'_>,
    ) -> S::F32 {
        let lowest = s.splat(f32::NEG_INFINITY);
        let (mut own, mut other, mut squares) = (s.splat(f32::NAN), lowest, s.zero());
        let (mut number, one) = (s.zero(), s.splat(1.0));
        for column in columns.iter() {
            let z = s.load_slice(column);
            squares = s.mul_add(z, z, squares);
            let is_label = s.eq(label, number);
            number = s.add(number, one);
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
        number = s.zero();
        for (j, column) in columns.iter_mut().enumerate() {
            let is_label = s.eq(label, number);
            number = s.add(number, one);
            let difference = s.sub(s.load_slice(column), max);
            let e = math::exp_nonpositive(s, difference);
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
        squares
    }
}

/// Turns the columns of `exp(z - m)` into the gradient.
#[inline(always)]
fn gradient<S: Simd>(
    s: S,
    label: S::F32,
    columns: &mut [Column],
    weights: &[Column],
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
    let (mut number, one) = (s.zero(), s.splat(1.0));
    for (j, column) in columns.iter_mut().enumerate() {
        let p = s.mul(s.load_slice(column), factor);
        let g = match targets {
            Target::Labels { .. } => s.sub(p, share),
            Target::Distributions(_) => s.neg_mul_add(s.load_slice(&weights[j]), mean, p),
        };
        let is_label = s.eq(label, number);
        number = s.add(number, one);
        s.store_slice(column, s.select(is_label, own, g));
    }
}
