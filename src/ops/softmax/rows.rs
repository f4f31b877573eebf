//! What softmax and its kin do with a row: its largest value, the sum of its exponentials, and the
//! exponentials scaled, with one read of the row from memory.
//!
//! A row is read in blocks that stay in the L1 cache between the look for the largest value and the
//! exponentials. These are taken relative to the largest value so far (the *base* of the block), and
//! where a later block has a larger one, the sum is rescaled: the online softmax of Milakov and
//! Gimelshein (arXiv:1805.02867), once a block instead of once an element. The exponentials are kept,
//! so that each is computed once; [`scale`] brings them to the final maximum.

use crate::device::cpu::simd::{Simd, dot, fold1, math, max};

/// Elements of a block: 8 KB, and as much for its exponentials, in an L1 cache of 32 KB.
const BLOCK: usize = 2048;
/// Sums of exponentials under way at once.
const CHAINS: usize = 4;
/// Bases that are kept; longer rows have longer blocks.
const BLOCKS: usize = 64;
/// Elements of the stack memory that keeps the exponentials of short rows.
pub(crate) const BUFFER: usize = BLOCK;

/// What the exponentials of each block of a row are relative to.
pub(crate) type Bases = [f32; BLOCKS];

/// Bases before a row is read.
pub(crate) const NO_BASES: Bases = [0.0; BLOCKS];

/// A row to [`read`], and where its exponentials go.
pub(crate) enum Row<'a> {
    /// They are not kept.
    Read(&'a [f32]),
    /// To memory that has at least the row's length. What it has past the row's end, up to a whole
    /// vector, is overwritten.
    Keep(&'a [f32], &'a mut [f32]),
    /// Over the row's elements.
    Replace(&'a mut [f32]),
}

impl<'a> Row<'a> {
    /// The row, until it is read.
    #[inline(always)]
    pub(crate) fn values(&self) -> &[f32] {
        match self {
            Row::Read(x) | Row::Keep(x, _) => x,
            Row::Replace(x) => x,
        }
    }

    /// The row as it still is when it was read, if it is.
    #[inline(always)]
    pub(crate) fn lasting(&self) -> Option<&'a [f32]> {
        match self {
            Row::Read(x) | Row::Keep(x, _) => Some(x),
            Row::Replace(_) => None,
        }
    }

    /// Elements `from..to`.
    #[inline(always)]
    fn block(&mut self, from: usize, to: usize) -> Row<'_> {
        match self {
            Row::Read(x) => Row::Read(&x[from..to]),
            Row::Keep(x, kept) => Row::Keep(&x[from..to], &mut kept[from..]),
            Row::Replace(x) => Row::Replace(&mut x[from..to]),
        }
    }
}

/// What [`read`] finds in a row.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    /// The largest value and `start`, negative infinity if all are that; NaN values do not count.
    pub(crate) max: f32,
    /// Sum over all elements but `skip` of `exp(x - max)`; NaN if any of them is NaN or infinity.
    pub(crate) sum: f32,
    /// The largest value of the elements but `skip`.
    pub(crate) other: f32,
    /// The largest value of the elements before `skip`.
    pub(crate) before: f32,
    /// Sum of the squares of all elements, if asked for.
    pub(crate) squares: f64,
}

/// Elements of each block of a row: whole vectors, so that no vector is of two blocks.
#[inline(always)]
fn block_elements<S: Simd>(columns: usize) -> usize {
    BLOCK.max(columns.div_ceil(BLOCKS).next_multiple_of(S::LANES))
}

/// Columns rounded up to whole vectors: what a row of exponentials takes in a buffer.
#[inline(always)]
pub(crate) fn padded<S: Simd>(columns: usize) -> usize {
    columns.next_multiple_of(S::LANES)
}

/// Reads a row once. `start` is a value that the maximum is not below (negative infinity if none is
/// known); element `skip` (past the end for none) counts neither for `sum` nor for `other`.
///
/// Kept is `exp(x - base of the block)` of every element, `skip` too.
#[inline(always)]
pub(crate) fn read<S: Simd>(
    s: S,
    mut x: Row<'_>,
    skip: usize,
    start: f32,
    squares: bool,
    bases: &mut Bases,
) -> Reading {
    let columns = x.values().len();
    let size = block_elements::<S>(columns);
    let lowest = f32::NEG_INFINITY;
    let mut row = Reading { max: start, sum: 0.0, other: lowest, before: lowest, squares: 0.0 };
    for (number, base) in bases.iter_mut().enumerate() {
        let at = number * size;
        if at >= columns {
            break;
        }
        let part = x.block(at, (at + size).min(columns));
        let block = part.values();
        let past = skip < at;
        let skip = skip.wrapping_sub(at);
        let skips = skip < block.len();
        let top = if skips {
            let (before, after) = (max_all(s, &block[..skip]), max_all(s, &block[skip + 1..]));
            row.before = if before > row.before { before } else { row.before };
            if after > before { after } else { before }
        } else {
            let top = max_all(s, block);
            row.before = if !past && top > row.before { top } else { row.before };
            top
        };
        row.other = if top > row.other { top } else { row.other };
        if squares {
            row.squares += f64::from(dot(s, block, block));
        }
        if top > row.max || row.max.is_nan() {
            if row.sum > 0.0 {
                row.sum *= exp(s, row.max - top);
            }
            row.max = top;
        }
        // Of a row that begins with negative infinities, these are zeros relative to any number.
        *base = if row.max == f32::NEG_INFINITY { 0.0 } else { row.max };
        row.sum += if skips {
            exponentials_of::<S, true>(s, part, *base, skip)
        } else {
            exponentials_of::<S, false>(s, part, *base, skip)
        };
    }
    row
}

/// Writes `out[i] = f(i, exponentials[i] exp(base - max) factor)` for the vectors that begin at the
/// elements `i` of a row of `columns`, after [`read`]. Without `exponentials`, these lie in `out`.
/// Without `bases`, all of the row is one block, as it is up to [`BUFFER`] columns.
///
/// `out` may go on past the row's end: then up to one vector of it is overwritten, which saves a
/// masked store where the next row is written later.
#[inline(always)]
pub(crate) fn scale<S: Simd>(
    s: S,
    columns: usize,
    exponentials: Option<&[f32]>,
    out: &mut [f32],
    bases: Option<(&Bases, f32)>,
    factor: f32,
    f: impl Fn(S, usize, S::F32) -> S::F32,
) {
    let size = if bases.is_some() { block_elements::<S>(columns) } else { columns };
    let (mut number, mut i) = (0, 0);
    while i < columns {
        let factor = match bases {
            // The base is larger only where all of the block is negative infinity.
            Some((bases, max)) if bases[number] < max => factor * exp(s, bases[number] - max),
            _ => factor,
        };
        let (factor, end) = (s.splat(factor), columns.min(i + size));
        let whole = i + (end - i) / S::LANES * S::LANES;
        match exponentials {
            Some(exponentials) => {
                let pairs = exponentials[i..whole].chunks_exact(S::LANES);
                for (e, out) in pairs.zip(out[i..whole].chunks_exact_mut(S::LANES)) {
                    s.store_slice(out, f(s, i, s.mul(s.load_slice(e), factor)));
                    i += S::LANES;
                }
            }
            None => {
                for out in out[i..whole].chunks_exact_mut(S::LANES) {
                    s.store_slice(out, f(s, i, s.mul(s.load_slice(out), factor)));
                    i += S::LANES;
                }
            }
        }
        while i < end {
            let e = match exponentials {
                Some(exponentials) => s.load_slice(&exponentials[i..]),
                None => s.load_slice(&out[i..columns]),
            };
            s.store_slice(&mut out[i..], f(s, i, s.mul(e, factor)));
            i += S::LANES;
        }
        number += 1;
    }
}

/// Sum of `exp(x - base)`, without element `skip` if `SKIP`. Meanwhile what lies a block further on
/// comes from memory: the exponentials take about as long as that.
#[inline(always)]
fn exponentials_of<S: Simd, const SKIP: bool>(
    s: S,
    x: Row<'_>,
    base: f32,
    skip: usize,
) -> f32 {
    let base = s.splat(base);
    // Several sums, because the error of one grows with its number of terms.
    let mut sums = [s.zero(); CHAINS];
    let group = CHAINS * S::LANES;
    let whole = x.values().len() / group * group;
    // Slices of one length, so that the loops need no checks.
    match x {
        Row::Read(x) => {
            for (number, x) in x[..whole].chunks_exact(group).enumerate() {
                for (chain, sum) in sums.iter_mut().enumerate() {
                    let i = chain * S::LANES;
                    let e = exponential(s, &x[i..i + S::LANES], base);
                    *sum = s.add(*sum, without::<S, SKIP>(s, e, skip, number * group + i));
                }
            }
            let mut i = whole;
            while i < x.len() {
                let e = exponential(s, &x[i..], base);
                sums[0] = s.add(sums[0], without::<S, SKIP>(s, e, skip, i));
                i += S::LANES;
            }
        }
        Row::Keep(x, kept) => {
            let pairs = x[..whole].chunks_exact(group).zip(kept[..whole].chunks_exact_mut(group));
            for (number, (x, kept)) in pairs.enumerate() {
                for (chain, sum) in sums.iter_mut().enumerate() {
                    let i = chain * S::LANES;
                    let (x, kept) = (&x[i..i + S::LANES], &mut kept[i..i + S::LANES]);
                    let e = exponential(s, x, base);
                    s.store_slice(kept, e);
                    *sum = s.add(*sum, without::<S, SKIP>(s, e, skip, number * group + i));
                }
            }
            let mut i = whole;
            while i < x.len() {
                let e = exponential(s, &x[i..], base);
                s.store_slice(&mut kept[i..], e);
                sums[0] = s.add(sums[0], without::<S, SKIP>(s, e, skip, i));
                i += S::LANES;
            }
        }
        Row::Replace(x) => {
            for (number, x) in x[..whole].chunks_exact_mut(group).enumerate() {
                for (chain, sum) in sums.iter_mut().enumerate() {
                    let i = chain * S::LANES;
                    let x = &mut x[i..i + S::LANES];
                    let e = exponential(s, x, base);
                    s.store_slice(x, e);
                    *sum = s.add(*sum, without::<S, SKIP>(s, e, skip, number * group + i));
                }
            }
            let mut i = whole;
            while i < x.len() {
                let e = exponential(s, &x[i..], base);
                s.store_slice(&mut x[i..], e);
                sums[0] = s.add(sums[0], without::<S, SKIP>(s, e, skip, i));
                i += S::LANES;
            }
        }
    }
    s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// The first vector's `exp(x - base)`, 0 past the end.
#[inline(always)]
fn exponential<S: Simd>(s: S, x: &[f32], base: S::F32) -> S::F32 {
    s.prefetch(x.as_ptr().wrapping_add(BLOCK));
    math::exp_nonpositive(s, s.sub(s.load_slice_or(x, f32::NEG_INFINITY), base))
}

/// `e` as the vector that begins at element `i`, without element `skip` if `SKIP`.
#[inline(always)]
fn without<S: Simd, const SKIP: bool>(s: S, e: S::F32, skip: usize, i: usize) -> S::F32 {
    if SKIP { s.select(lane(s, skip, i), s.zero(), e) } else { e }
}

/// The largest value that is not NaN; negative infinity if there is none.
#[inline(always)]
fn max_all<S: Simd>(s: S, x: &[f32]) -> f32 {
    let acc = fold1(
        s,
        x,
        s.splat(f32::NEG_INFINITY),
        #[inline(always)]
        |s, acc, v| s.max(v, acc),
        S::max,
    );
    s.reduce_max(acc)
}

/// The lane of element `skip` in the vector that begins at element `i`.
#[inline(always)]
fn lane<S: Simd>(s: S, skip: usize, i: usize) -> S::Mask {
    s.eq_i32(s.iota_i32(), s.splat_i32(skip.wrapping_sub(i) as i32))
}

/// `e^x` of one number, with the bits that it has in a vector.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: f32) -> f32 {
    s.reduce_max(math::exp(s, s.splat(x)))
}

/// Number of the row's largest element, the first of equal ones; `None` if a value is NaN or there
/// is no element.
#[inline(always)]
pub(crate) fn first_largest<S: Simd>(s: S, x: &[f32]) -> Option<usize> {
    let top = s.splat(max(s, x));
    let mut i = 0;
    while i < x.len() {
        let equal = s.eq(s.load_slice_or(&x[i..], f32::NAN), top);
        if s.any(equal) {
            return Some(i + s.bits(equal).trailing_zeros() as usize);
        }
        i += S::LANES;
    }
    None
}
