//! `layer_norm_backward` and `rms_norm_backward` on the CPU: one kernel, with and without a mean.
//!
//! Rows come from memory once, in blocks that stay in the first cache: there each row's two sums
//! are made, then its `dx`, then the block is added to the column sums of the chunk. A second phase
//! adds the chunks' column sums in their order.

use crate::device::cpu::simd::{Kernel, Simd, dispatch, map3, update_many, update2};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use crate::ops::layer_norm::cpu::fold_pair;

/// The reductions of one row.
const ROW_NANOSECONDS: f64 = 20.0;
/// 12 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 1.2;
/// Adding one column sum of one chunk.
const COMBINE_NANOSECONDS: f64 = 0.3;
/// Fewest rows of a chunk: 4 floats a column are written and read again for its sums, against 3 a
/// row and column.
const CHUNK_ROWS: usize = 32;
/// Rows that are added to the column sums at once, which read and write those once.
const BLOCK: usize = 4;

/// Inputs `dy, x, gamma, [mean,] rstd`, outputs `dx, dgamma[, dbeta]`; those in brackets where
/// `CENTRED`.
pub(in crate::ops) fn launch<const CENTRED: bool>(site: &Site<'_>) -> Launch {
    let (isa, x) = (site.isa, &site.inputs[1].shape);
    let (rows, columns) = (x.rows(), x.columns());
    let per_chunk =
        rows_per_chunk(ROW_NANOSECONDS + NANOSECONDS * columns as f64).max(CHUNK_ROWS);
    let wants_sums = site.used[1..].contains(&true);
    let sums = if !wants_sums {
        0
    } else if CENTRED {
        2 * columns
    } else {
        columns
    };
    let launch =
        Launch::new(isa.name()).rows_with_partials(rows, per_chunk, sums, move |chunk| {
            let rows = Rows::<CENTRED> {
                dy: chunk.input_rows(0),
                x: chunk.input_rows(1),
                gamma: chunk.input(2),
                means: if CENTRED { chunk.input_rows(3) } else { &[] },
                rstds: chunk.input_rows(if CENTRED { 4 } else { 3 }),
            };
            let backward = Backward { rows, dx: chunk.output(0), sums: chunk.partials() };
            dispatch(isa, backward);
        });
    if !wants_sums {
        return launch;
    }
    let chunks = rows.div_ceil(per_chunk);
    let outputs = if CENTRED { 2 } else { 1 };
    let per_chunk =
        rows_per_chunk(COMBINE_NANOSECONDS * (chunks * outputs) as f64).next_multiple_of(16);
    launch.rows(columns, per_chunk, move |chunk| {
        for number in 0..outputs {
            let combine = Combine {
                partials: &chunk.all_partials()[..chunks * sums],
                stride: sums,
                start: number * columns + chunk.row_range().start,
                out: chunk.output(1 + number),
            };
            dispatch(isa, combine);
        }
    })
}

struct Backward<'a, const CENTRED: bool> {
    rows: Rows<'a, CENTRED>,
    /// Empty where nobody reads it.
    dx: &'a mut [f32],
    /// Column sums: those of `dgamma`, then those of `dbeta`. Empty where nobody reads either.
    sums: &'a mut [f32],
}

impl<const CENTRED: bool> Kernel for Backward<'_, CENTRED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward { rows, dx, sums } = self;
        let (count, columns) = (rows.rstds.len(), rows.gamma.len());
        let (dgamma, dbeta) = sums.split_at_mut(columns.min(sums.len()));
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        let mut r = 0;
        while r < count {
            let block = if count - r >= BLOCK { BLOCK } else { 1 };
            if !dx.is_empty() {
                for r in r..r + block {
                    rows.write_dx(s, r, &mut dx[r * columns..][..columns]);
                }
            }
            if !dgamma.is_empty() {
                if block == BLOCK {
                    rows.add_columns::<S, { 2 * BLOCK }>(s, r, dgamma, dbeta);
                } else {
                    rows.add_columns::<S, 2>(s, r, dgamma, dbeta);
                }
            }
            r += block;
        }
    }
}

/// The inputs of a chunk. `means` is empty where not `CENTRED`.
struct Rows<'a, const CENTRED: bool> {
    dy: &'a [f32],
    x: &'a [f32],
    gamma: &'a [f32],
    means: &'a [f32],
    rstds: &'a [f32],
}

impl<const CENTRED: bool> Rows<'_, CENTRED> {
    /// Row `r` of a tensor.
    #[inline(always)]
    fn row<'t>(&self, tensor: &'t [f32], r: usize) -> &'t [f32] {
        let columns = self.gamma.len();
        &tensor[r * columns..][..columns]
    }

    /// Mean and rstd of row `r`.
    #[inline(always)]
    fn statistics<S: Simd>(&self, s: S, r: usize) -> [S::F32; 2] {
        [if CENTRED { s.splat(self.means[r]) } else { s.zero() }, s.splat(self.rstds[r])]
    }

    /// `(x - mean) * rstd`
    #[inline(always)]
    fn normal<S: Simd>(s: S, x: S::F32, [mean, rstd]: [S::F32; 2]) -> S::F32 {
        s.mul(if CENTRED { s.sub(x, mean) } else { x }, rstd)
    }

    /// `dx = rstd * (g - mean(g) - n * mean(g n))` with `g = dy * gamma` and `n` the normalised row;
    /// without `mean(g)` where not `CENTRED`.
    #[inline(always)]
    fn write_dx<S: Simd>(&self, s: S, r: usize, dx: &mut [f32]) {
        let (dy, x, statistics) =
            (self.row(self.dy, r), self.row(self.x, r), self.statistics(s, r));
        let [first, second] = fold_pair(
            s,
            [dy, x, self.gamma],
            #[inline(always)]
            |s, [first, second], [dy, x, gamma]| {
                let g = s.mul(dy, gamma);
                let n = Self::normal(s, x, statistics);
                [if CENTRED { s.add(first, g) } else { first }, s.mul_add(g, n, second)]
            },
        );
        let scale = 1.0 / dx.len() as f32;
        let (first, second) = (s.splat(first * scale), s.splat(second * scale));
        map3(
            s,
            dy,
            x,
            self.gamma,
            dx,
            #[inline(always)]
            |s, dy, x, gamma| {
                let g = s.mul(dy, gamma);
                let g = if CENTRED { s.sub(g, first) } else { g };
                s.mul(s.neg_mul_add(Self::normal(s, x, statistics), second, g), statistics[1])
            },
        );
    }

    /// `dgamma += dy * n` and, where `CENTRED`, `dbeta += dy`, for `INS / 2` rows from `r` on, in
    /// their order. `INS` counts the slices that are read: two a row.
    #[inline(always)]
    fn add_columns<S: Simd, const INS: usize>(
        &self,
        s: S,
        r: usize,
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) {
        let mut ins: [&[f32]; INS] = [&[]; INS];
        let mut statistics = [[s.zero(); 2]; INS];
        for i in 0..INS / 2 {
            ins[2 * i] = self.row(self.dy, r + i);
            ins[2 * i + 1] = self.row(self.x, r + i);
            statistics[i] = self.statistics(s, r + i);
        }
        if CENTRED {
            update_many(
                s,
                [dgamma, dbeta],
                ins,
                #[inline(always)]
                |s, [mut dgamma, mut dbeta], ins| {
                    for i in 0..INS / 2 {
                        let n = Self::normal(s, ins[2 * i + 1], statistics[i]);
                        dgamma = s.mul_add(ins[2 * i], n, dgamma);
                        dbeta = s.add(dbeta, ins[2 * i]);
                    }
                    [dgamma, dbeta]
                },
            );
        } else {
            update_many(
                s,
                [dgamma],
                ins,
                #[inline(always)]
                |s, [mut dgamma], ins| {
                    for i in 0..INS / 2 {
                        let n = Self::normal(s, ins[2 * i + 1], statistics[i]);
                        dgamma = s.mul_add(ins[2 * i], n, dgamma);
                    }
                    [dgamma]
                },
            );
        }
    }
}

/// The sum over chunks of the column sums from `start` on; they lie `stride` apart.
struct Combine<'a> {
    partials: &'a [f32],
    stride: usize,
    start: usize,
    /// Empty where nobody reads it.
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.out.len();
        self.out.fill(0.0);
        for sums in self.partials.chunks_exact(self.stride) {
            update2(
                s,
                self.out,
                &sums[self.start..][..len],
                #[inline(always)]
                |s, total, sum| s.add(total, sum),
            );
        }
    }
}
