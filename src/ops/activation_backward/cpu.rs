//! `activation_backward` on the CPU: blocks of some rows and columns; the sums of a block's columns
//! stay in registers.
#![allow(unsafe_code)]

use crate::device::cpu::simd::{Kernel, Simd, dispatch, math, update2};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::{Activation, Site};

/// Columns of a block: 8 registers of sums in AVX-512. 64 took twice as long where rows of 2048 come
/// from the third-level cache; 256 was no faster, and leaves fewer blocks.
const COLUMNS: usize = 128;
/// Most rows of a block, for some microseconds of work. Up to half of the rows: what half of the
/// threads have in their caches of dy.
const ROWS: usize = 256;
/// Fewest rows of a block; up to so many, sums are final at once.
const FEWEST_ROWS: usize = 64;
/// Registers of sums where a vector has fewest lanes.
const MOST_SUMS: usize = COLUMNS / 8;
/// Adding one partial sum.
const NANOSECONDS: f64 = 0.1;

pub(super) fn launch(site: &Site<'_>, activation: Activation) -> Launch {
    let isa = site.isa;
    let (m, n) = (site.inputs[0].shape.rows(), site.inputs[0].shape.columns());
    let (wants_dz, wants_db) = (site.used[0], site.used[1]);
    // Without rows there still are sums: of nothing.
    let block_rows = m.div_ceil(2).clamp(FEWEST_ROWS, ROWS);
    let (down, across) = (m.div_ceil(block_rows).max(1), n.div_ceil(COLUMNS));
    let partial = wants_db && down > 1;
    let launch = Launch::new(isa.name()).scratch(if partial { down * n } else { 0 });
    let launch = launch.tiles(down * across, move |chunk| {
        let (row_block, column_block) = (chunk.index() / across, chunk.index() % across);
        let (row, column) = (row_block * block_rows, column_block * COLUMNS);
        let columns = (n - column).min(COLUMNS);
        let sums = wants_db.then(|| {
            let start = if partial {
                // SAFETY: the scratch has `down` rows of n partial sums.
                unsafe { chunk.scratch_ptr().add(row_block * n) }
            } else {
                assert_eq!(chunk.output_len(1), n);
                chunk.output_ptr(1)
            };
            // SAFETY: both have n elements from `start` on, and column + columns <= n. No other
            // chunk has this block of columns in this row of sums.
            unsafe { std::slice::from_raw_parts_mut(start.add(column), columns) }
        });
        assert!(!wants_dz || chunk.output_len(0) == m * n);
        let dz = wants_dz.then(|| chunk.output_ptr(0));
        let (dy, saved) = (chunk.input(0), chunk.input(1));
        let rows = row..(row + block_rows).min(m);
        dispatch(isa, Part { dy, saved, dz, sums, n, rows, column, columns, activation });
    });
    if !partial {
        return launch;
    }
    launch.rows(n, rows_per_chunk(NANOSECONDS * down as f64), move |chunk| {
        let columns = chunk.row_range();
        let db = chunk.output(1);
        dispatch(isa, Combine { partials: &chunk.all_partials()[..down * n], n, columns, db });
    })
}

/// `rows` x `columns` from `column` on, of tensors whose rows have `n` elements.
struct Part<'a> {
    dy: &'a [f32],
    saved: &'a [f32],
    /// Start of the whole of dz.
    dz: Option<*mut f32>,
    sums: Option<&'a mut [f32]>,
    n: usize,
    rows: std::ops::Range<usize>,
    column: usize,
    columns: usize,
    activation: Activation,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::None => part(s, self, #[inline(always)] |_, dy, _| dy),
            Activation::Relu => part(s, self, #[inline(always)] |s, dy, y| relu(s, dy, y)),
            Activation::Gelu => part(s, self, #[inline(always)] |s, dy, z| gelu(s, dy, z)),
            Activation::Tanh => part(s, self, #[inline(always)] |s, dy, y| tanh(s, dy, y)),
            Activation::Silu => part(s, self, #[inline(always)] |s, dy, z| silu(s, dy, z)),
        }
    }
}

#[inline(always)]
fn part<S: Simd>(s: S, this: Part<'_>, f: impl Fn(S, S::F32, S::F32) -> S::F32) {
    let Part { dy, saved, dz, sums, n, rows, column, columns, .. } = this;
    let mut totals = [s.zero(); MOST_SUMS];
    for row in rows {
        let start = row * n + column;
        let (dy, saved) = (&dy[start..][..columns], &saved[start..][..columns]);
        let mut dz = dz.map(|dz| {
            // SAFETY: dz is as long as dy (asserted by `launch`), whose slice above has these
            // elements; blocks do not overlap, so no other chunk has them.
            unsafe { std::slice::from_raw_parts_mut(dz.add(start), columns) }
        });
        let starts = (0..columns).step_by(S::LANES);
        for (total, i) in totals[..COLUMNS / S::LANES].iter_mut().zip(starts) {
            let value = f(s, s.load_slice(&dy[i..]), s.load_slice(&saved[i..]));
            if let Some(dz) = &mut dz {
                s.store_slice(&mut dz[i..], value);
            }
            *total = s.add(*total, value);
        }
    }
    if let Some(sums) = sums {
        for (sums, total) in sums.chunks_mut(S::LANES).zip(totals) {
            s.store_slice(sums, total);
        }
    }
}

#[inline(always)]
pub(in crate::ops) fn relu<S: Simd>(s: S, dy: S::F32, y: S::F32) -> S::F32 {
    s.select(s.gt(y, s.zero()), dy, s.zero())
}

#[inline(always)]
pub(in crate::ops) fn gelu<S: Simd>(s: S, dy: S::F32, z: S::F32) -> S::F32 {
    s.mul(dy, math::gelu_grad(s, z))
}

/// `1 - y^2` as a product does not cancel near 1.
#[inline(always)]
pub(in crate::ops) fn tanh<S: Simd>(s: S, dy: S::F32, y: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.mul(dy, s.mul(s.sub(one, y), s.add(one, y)))
}

#[inline(always)]
pub(in crate::ops) fn silu<S: Simd>(s: S, dy: S::F32, z: S::F32) -> S::F32 {
    s.mul(dy, math::silu_grad(s, z))
}

/// Adds up the partial sums of some columns, block after block.
struct Combine<'a> {
    partials: &'a [f32],
    n: usize,
    columns: std::ops::Range<usize>,
    db: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.db.fill(0.0);
        for partials in self.partials.chunks(self.n) {
            let partials = &partials[self.columns.clone()];
            update2(s, self.db, partials, #[inline(always)] |s, sum, x| s.add(sum, x));
        }
    }
}
