//! `softmax_cross_entropy` on the CPU.
//!
//! Rows go in groups of up to one vector's lanes: the exponentials of each row are computed along
//! the classes, then the ends of the rows (logarithm, quotients) of all rows of the group at once,
//! one row a lane, then the gradient is written. A group's exponentials stay in a stack buffer; those
//! of rows too long for it are kept where the gradient goes, be that over the logits or not. Rows of
//! few classes are transposed instead: see `narrow.rs`.

mod narrow;

use super::{SATURATED, Targets};
use crate::device::cpu::simd::{Kernel, Simd, dispatch, dot, fold_many, math, max, sum};
use crate::device::cpu::{Chunk, Isa, Launch, rows_per_chunk};
use crate::ops::Site;
use crate::ops::softmax::rows::{
    BUFFER, Bases, NO_BASES, Row, first_largest, padded, read, scale,
};

/// Most lanes of any instruction set.
pub(in crate::ops) const LANES: usize = 16;
/// Numbers that a chunk leaves for the means: see [`Sums`].
pub(in crate::ops) const PARTIALS: usize = 6;

/// Nanoseconds of a row: two reductions, and an exponential an element.
pub(in crate::ops) fn nanoseconds(classes: usize) -> f64 {
    8.0 + 0.5 * classes as f64
}

#[derive(Clone, Copy)]
pub(in crate::ops) struct Problem {
    pub(in crate::ops) isa: Isa,
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) classes: usize,
    /// Whether anybody reads the gradient.
    pub(in crate::ops) dlogits: bool,
    pub(in crate::ops) statistics: bool,
}

pub(super) fn launch(site: &Site<'_>, targets: Targets) -> Launch {
    let logits = &site.inputs[0].shape;
    let (rows, classes) = (logits.rows(), logits.columns());
    let (dlogits, statistics) = (site.used[1], site.used[2]);
    let problem = Problem { isa: site.isa, rows, classes, dlogits, statistics };
    let (launch, per_chunk) = (Launch::new(site.isa.name()), rows_per_chunk(nanoseconds(classes)));
    let run = move |chunk: &Chunk<'_>| {
        let targets = match targets {
            Targets::Labels { smoothing } => {
                Target::Labels { labels: chunk.input_rows(1), smoothing }
            }
            Targets::Distributions => Target::Distributions(chunk.input_rows(1)),
        };
        let (dlogits, losses) = (chunk.output(1), chunk.output(3));
        // In place, `dlogits` holds the logits.
        let logits = (!chunk.in_place(0)).then(|| chunk.input_rows(0));
        dispatch(problem.isa, Rows { problem, logits, targets, dlogits, losses })
    };
    let finish = move |chunk: &Chunk<'_>, total: Sums| {
        total.finish(&problem, chunk.output(0), chunk.output(2));
    };
    if rows <= per_chunk {
        return launch.serial(move |chunk| finish(chunk, run(chunk)));
    }
    let chunks = rows.div_ceil(per_chunk);
    let launch = launch.rows_with_partials(rows, per_chunk, PARTIALS, move |chunk| {
        run(chunk).store(chunk.partials());
    });
    launch.serial(move |chunk| {
        let partials = chunk.all_partials()[..chunks * PARTIALS].chunks_exact(PARTIALS);
        finish(chunk, partials.fold(Sums::NONE, |total, part| total.and(&Sums::load(part))));
    })
}

/// Sums over rows, combined in the order of the rows.
pub(in crate::ops) struct Sums {
    pub(in crate::ops) loss: f64,
    pub(in crate::ops) margin: f64,
    pub(in crate::ops) smallest: f32,
    pub(in crate::ops) right: f64,
    pub(in crate::ops) squares: f64,
    pub(in crate::ops) saturated: f64,
}

impl Sums {
    pub(in crate::ops) const NONE: Sums = Sums {
        loss: 0.0,
        margin: 0.0,
        smallest: f32::INFINITY,
        right: 0.0,
        squares: 0.0,
        saturated: 0.0,
    };

    pub(in crate::ops) fn load(part: &[f32]) -> Sums {
        let [loss, margin, _, right, squares, saturated] =
            std::array::from_fn(|i| f64::from(part[i]));
        Sums { loss, margin, smallest: part[2], right, squares, saturated }
    }

    pub(in crate::ops) fn store(&self, part: &mut [f32]) {
        let smallest = f64::from(self.smallest);
        let all = [self.loss, self.margin, smallest, self.right, self.squares, self.saturated];
        part.copy_from_slice(&all.map(|x| x as f32));
    }

    /// NaN of either stays.
    #[inline(always)]
    pub(in crate::ops) fn and(&self, other: &Sums) -> Sums {
        let first = self.smallest.is_nan() || self.smallest < other.smallest;
        Sums {
            loss: self.loss + other.loss,
            margin: self.margin + other.margin,
            smallest: if first { self.smallest } else { other.smallest },
            right: self.right + other.right,
            squares: self.squares + other.squares,
            saturated: self.saturated + other.saturated,
        }
    }

    /// Writes the mean loss and the statistics of all rows, each where there is room for it.
    pub(in crate::ops) fn finish(self, problem: &Problem, loss: &mut [f32], statistics: &mut [f32]) {
        let rows = problem.rows as f64;
        if let [loss] = loss {
            *loss = (self.loss / rows) as f32;
        }
        if let [mean, smallest, right, rms, saturated] = statistics {
            *mean = (self.margin / rows) as f32;
            *smallest = self.smallest;
            *right = self.right as f32;
            *rms = (self.squares / (rows * problem.classes as f64)).sqrt() as f32;
            *saturated = self.saturated as f32;
        }
    }
}

/// The right-hand sides of a chunk's rows.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Target<'a> {
    Labels { labels: &'a [u32], smoothing: f32 },
    Distributions(&'a [f32]),
}

impl Target<'_> {
    /// Whether other classes than the right one have weight.
    #[inline(always)]
    fn spread(&self) -> bool {
        !matches!(self, Target::Labels { smoothing: 0.0, .. })
    }
}

/// The rows of a chunk; outputs that nobody reads are empty.
struct Rows<'a> {
    problem: Problem,
    /// `None` where they lie in `dlogits`, each row until its gradient is written.
    logits: Option<&'a [f32]>,
    targets: Target<'a>,
    dlogits: &'a mut [f32],
    losses: &'a mut [f32],
}

/// What the rows of a group have in common lanes: one lane a row.
///
/// With weights `t` of the classes, `T` their sum, and `m` the row's largest logit.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Group {
    /// The right class; past the end where there is none.
    label: [u32; LANES],
    /// Its logit; NaN where there is none, which spreads to all results of the row.
    pub(in crate::ops) own: [f32; LANES],
    /// `m`.
    pub(in crate::ops) max: [f32; LANES],
    /// The largest logit of the other classes.
    pub(in crate::ops) other: [f32; LANES],
    /// Sum over the other classes of `exp(z - m)`.
    pub(in crate::ops) rest: [f32; LANES],
    /// Sum over all classes of `t (m - z)`, without that of the label's own weight for [`Target::Labels`].
    pub(in crate::ops) below: [f32; LANES],
    /// `t` of the right class.
    pub(in crate::ops) target: [f32; LANES],
    /// Sum of `t` over the other classes.
    pub(in crate::ops) others: [f32; LANES],
    /// Whether a class before the right one has its logit.
    tied: [bool; LANES],
    /// Sum of the squares of the logits, where the group is one long row and statistics are wanted.
    squares: f64,
}

/// The ends of the rows of a group.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Ends {
    pub(in crate::ops) loss: [f32; LANES],
    /// What turns `exp(z - m)` into the gradient, but for the target.
    pub(in crate::ops) factor: [f32; LANES],
    /// Gradient of the right class.
    pub(in crate::ops) own: [f32; LANES],
}

impl Ends {
    const NONE: Ends = Ends { loss: [0.0; LANES], factor: [0.0; LANES], own: [0.0; LANES] };
}

impl Kernel for Rows<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Sums {
        let classes = self.problem.classes;
        if classes <= narrow::MOST {
            return self.run_narrow(s);
        }
        let count = self.logits().len() / classes;
        let padded = padded::<S>(classes);
        let buffered = padded <= BUFFER;
        let size = if buffered { (BUFFER / padded).min(S::LANES) } else { 1 };
        let mut buffer = [0.0; BUFFER];
        let mut bases = NO_BASES;
        let mut group = Group::new();
        let mut total = Sums::NONE;
        let mut first = 0;
        while first < count {
            let rows = size.min(count - first);
            for r in 0..rows {
                let own = (first + r) * classes..(first + r + 1) * classes;
                let kept = &mut buffer[r * padded..][..if buffered { padded } else { 0 }];
                let z = match self.logits {
                    Some(z) if !self.problem.dlogits => Row::Read(&z[own]),
                    Some(z) if buffered => Row::Keep(&z[own], kept),
                    Some(z) => Row::Keep(&z[own.clone()], &mut self.dlogits[own]),
                    None if buffered => Row::Keep(&self.dlogits[own], kept),
                    None => Row::Replace(&mut self.dlogits[own]),
                };
                let squares = self.problem.statistics && !buffered;
                group.read(s, r, first + r, z, self.targets, squares, &mut bases);
            }
            let ends = group.finish(s, &self.problem, self.targets);
            let mut sums = group.sums(s, &self.problem, &ends, rows, |r| group.tied[r]);
            if self.problem.statistics {
                let z = first * classes..(first + rows) * classes;
                sums.squares = match buffered {
                    true => f64::from(dot(s, &self.logits()[z.clone()], &self.logits()[z])),
                    false => group.squares,
                };
            }
            total = total.and(&sums);
            if self.problem.dlogits {
                let end = (first + rows) * classes;
                for r in 0..rows {
                    let kept = buffered.then(|| &buffer[r * padded..][..padded]);
                    let bases = (!buffered).then_some((&bases, group.max[r]));
                    self.gradient(s, first + r, end, kept, bases, &ends, r);
                    if let Some(own) = self.dlogits[(first + r) * classes..][..classes]
                        .get_mut(group.label[r] as usize)
                    {
                        *own = ends.own[r];
                    }
                }
            }
            if !self.losses.is_empty() {
                self.losses[first..first + rows].copy_from_slice(&ends.loss[..rows]);
            }
            first += rows;
        }
        total
    }
}

impl Rows<'_> {
    /// The logits of all rows, or what is written over them.
    #[inline(always)]
    fn logits(&self) -> &[f32] {
        self.logits.unwrap_or(self.dlogits)
    }

    /// Writes the gradient of a row, all but its right class. Elements up to `end` may be
    /// overwritten: the gradients of later rows of the group.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn gradient<S: Simd>(
        &mut self,
        s: S,
        row: usize,
        end: usize,
        kept: Option<&[f32]>,
        bases: Option<(&Bases, f32)>,
        ends: &Ends,
        r: usize,
    ) {
        let classes = self.problem.classes;
        let mean = 1.0 / self.problem.rows as f32;
        let out = &mut self.dlogits[row * classes..end];
        let factor = ends.factor[r];
        match self.targets {
            Target::Labels { smoothing: 0.0, .. } => {
                scale(s, classes, kept, out, bases, factor, #[inline(always)] |_, _, p| p);
            }
            Target::Labels { smoothing, .. } => {
                let t = s.splat(smoothing / classes as f32 * mean);
                scale(s, classes, kept, out, bases, factor, #[inline(always)] |s, _, p| s.sub(p, t));
            }
            Target::Distributions(targets) => {
                let t = &targets[row * classes..][..classes];
                let mean = s.splat(mean);
                scale(s, classes, kept, out, bases, factor, #[inline(always)] |s, i, p| {
                    s.neg_mul_add(s.load_slice(&t[i..]), mean, p)
                });
            }
        }
    }
}

impl Group {
    #[inline(always)]
    pub(in crate::ops) fn new() -> Group {
        let zeros = [0.0; LANES];
        Group {
            label: [u32::MAX; LANES],
            own: zeros,
            max: zeros,
            other: zeros,
            rest: zeros,
            below: zeros,
            target: [1.0; LANES],
            others: zeros,
            tied: [false; LANES],
            squares: 0.0,
        }
    }

    /// Reads the logits of row `row` of the chunk into lane `r`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn read<S: Simd>(
        &mut self,
        s: S,
        r: usize,
        row: usize,
        row_of_logits: Row<'_>,
        targets: Target<'_>,
        squares: bool,
        bases: &mut Bases,
    ) {
        let z = row_of_logits.values();
        let classes = z.len();
        let label = match targets {
            Target::Labels { labels, .. } => labels[row] as usize,
            Target::Distributions(t) => {
                first_largest(s, &t[row * classes..][..classes]).unwrap_or(usize::MAX)
            }
        };
        let own = z.get(label).copied().unwrap_or(f32::NAN);
        // Of a row that is overwritten, first. Where the largest logit is NaN, all ends so.
        let early = match &row_of_logits {
            Row::Replace(z) if targets.spread() => Some(below(s, z, targets, row, max(s, z))),
            _ => None,
        };
        let lasting = row_of_logits.lasting();
        let reading = read(s, row_of_logits, label, own, squares, bases);
        self.squares = reading.squares;
        // Past the end is past the end: no row has that many classes.
        (self.label[r], self.own[r]) = (u32::try_from(label).unwrap_or(u32::MAX), own);
        (self.max[r], self.other[r], self.rest[r]) = (reading.max, reading.other, reading.sum);
        self.tied[r] = reading.before == own;
        if !targets.spread() {
            return;
        }
        let below = match (early, lasting) {
            (Some(below), _) => below,
            (None, z) => below(s, z.unwrap_or(&[]), targets, row, reading.max),
        };
        match targets {
            Target::Labels { smoothing, .. } => self.smooth(r, smoothing, classes, below),
            Target::Distributions(t) => {
                let t = &t[row * classes..][..classes];
                self.below[r] = below;
                let (before, after) = t.split_at(label.min(t.len()));
                let (own, after) = after.split_first().unwrap_or((&f32::NAN, &[]));
                self.others[r] = sum(s, before) + sum(s, after);
                self.target[r] = *own;
            }
        }
    }

    /// Sets what label smoothing needs of a row of `classes`: `sum` is that of `m - z`.
    #[inline(always)]
    pub(in crate::ops) fn smooth(&mut self, r: usize, smoothing: f32, classes: usize, sum: f32) {
        let share = smoothing / classes as f32;
        self.below[r] = share * sum;
        self.target[r] = (1.0 - smoothing) + share;
        self.others[r] = share * (classes - 1) as f32;
    }

    /// Loss, factor and gradient of the right class; lanes past the group's rows hold leftovers.
    #[inline(always)]
    pub(in crate::ops) fn finish<S: Simd>(&self, s: S, problem: &Problem, targets: Target<'_>) -> Ends {
        let (own, max) = (s.load_slice(&self.own), s.load_slice(&self.max));
        let rest = s.load_slice(&self.rest);
        let (target, others) = (s.load_slice(&self.target), s.load_slice(&self.others));
        let weight = s.add(target, others);
        let own_exponential = math::exp(s, s.sub(own, max));
        let total = s.add(own_exponential, rest);
        // log(total). Where the right class has the largest logit, total is 1 + rest, and rest may
        // vanish beside 1. Otherwise rest is at least 1 and total - 1 loses nothing.
        let right = s.eq(own, max);
        let log = math::log_1p(s, s.select(right, rest, s.sub(total, s.splat(1.0))));
        let below = match targets {
            Target::Labels { smoothing: 0.0, .. } => s.sub(max, own),
            Target::Labels { smoothing, .. } => {
                s.mul_add(s.splat(1.0 - smoothing), s.sub(max, own), s.load_slice(&self.below))
            }
            Target::Distributions(_) => s.load_slice(&self.below),
        };
        let loss = s.mul_add(weight, log, below);
        let mean = s.splat(1.0 / problem.rows as f32);
        let inverse = s.div(weight, total);
        let mut ends = Ends::NONE;
        s.store_slice(&mut ends.loss, loss);
        s.store_slice(&mut ends.factor, s.mul(inverse, mean));
        // T p - t, or minus the sum of the others' gradients, whichever has the smaller terms: for a
        // confident target the latter, since p - 1 rounds to zero at margin 17.
        let direct = s.sub(s.mul(own_exponential, inverse), target);
        let from_others = s.neg_mul_add(rest, inverse, others);
        let own = s.select(s.lt(target, others), direct, from_others);
        s.store_slice(&mut ends.own, s.mul(own, mean));
        ends
    }

    /// Sums over the group's rows but for the squares. `ties`: whether a class before the label of
    /// row `r` has the label's logit.
    #[inline(always)]
    pub(in crate::ops) fn sums<S: Simd>(
        &self,
        s: S,
        problem: &Problem,
        ends: &Ends,
        rows: usize,
        ties: impl Fn(usize) -> bool,
    ) -> Sums {
        let present = s.first(rows);
        let loss = s.load_slice(&ends.loss);
        let mut sums = Sums::NONE;
        sums.loss = f64::from(s.reduce_add(s.select(present, loss, s.zero())));
        if !problem.statistics {
            return sums;
        }
        let margin = self.margin(s, problem, loss);
        sums.margin = f64::from(s.reduce_add(s.select(present, margin, s.zero())));
        sums.smallest = s.reduce_min(s.select(present, margin, s.splat(f32::INFINITY)));
        sums.right = f64::from(self.right(s, margin, rows, ties));
        sums.saturated = f64::from(self.saturated(s, loss, rows));
        sums
    }

    /// How far the right class is above the others; NaN where the loss is.
    #[inline(always)]
    fn margin<S: Simd>(&self, s: S, problem: &Problem, loss: S::F32) -> S::F32 {
        let margin = if problem.classes == 1 {
            s.zero()
        } else {
            s.sub(s.load_slice(&self.own), s.load_slice(&self.other))
        };
        s.select(s.is_nan(loss), loss, margin)
    }

    /// Number of the rows with next to nothing beside the right class.
    #[inline(always)]
    fn saturated<S: Simd>(&self, s: S, loss: S::F32, rows: usize) -> u32 {
        let first = s.eq(s.load_slice(&self.own), s.load_slice(&self.max));
        // Of a row whose loss is NaN, `rest` may be 0.
        let rest = s.select(s.is_nan(loss), loss, s.load_slice(&self.rest));
        let alone = s.le(rest, s.splat(SATURATED));
        s.count(s.mask_and(s.first(rows), s.mask_and(first, alone)))
    }

    /// Number of the rows whose right class is the argmax.
    #[inline(always)]
    fn right<S: Simd>(
        &self,
        s: S,
        margin: S::F32,
        rows: usize,
        ties: impl Fn(usize) -> bool,
    ) -> u32 {
        let present = s.first(rows);
        let mut right = s.count(s.mask_and(present, s.gt(margin, s.zero())));
        // Of equal logits, the first is the argmax.
        let mut level = s.bits(s.mask_and(present, s.eq(margin, s.zero())));
        while level != 0 {
            right += u32::from(!ties(level.trailing_zeros() as usize));
            level &= level - 1;
        }
        right
    }
}

/// Sum over the classes of `max - z`, for distributions each times its weight.
#[inline(always)]
fn below<S: Simd>(s: S, z: &[f32], targets: Target<'_>, row: usize, max: f32) -> f32 {
    let Target::Distributions(t) = targets else { return sum_below(s, z, max) };
    let max = s.splat(max);
    let below = fold_many(
        s,
        [z, &t[row * z.len()..][..z.len()]],
        s.zero(),
        // A class of weight zero counts nothing, at a logit of negative infinity too.
        #[inline(always)]
        |s, acc, [z, t]| {
            let term = s.mul_add(t, s.sub(max, z), acc);
            s.select(s.eq(t, s.zero()), acc, term)
        },
        S::add,
    );
    s.reduce_add(below)
}

/// Sum of `max - z`.
#[inline(always)]
pub(in crate::ops) fn sum_below<S: Simd>(s: S, z: &[f32], max: f32) -> f32 {
    let max = s.splat(max);
    let below = fold_many(
        s,
        [z],
        s.zero(),
        #[inline(always)]
        |s, acc, [z]| s.add(acc, s.sub(max, z)),
        S::add,
    );
    s.reduce_add(below)
}
