//! Drivers over slices: the loads, stores and tails of elementwise kernels and reductions, so that
//! these need no `unsafe`.
//!
//! Lengths must be equal, which every driver asserts. In a last, partial vector the lanes past the
//! end hold zeros; what `f` makes of them is neither stored nor folded. Write `#[inline(always)]`
//! before every closure: see [the module](super).

use super::Simd;

/// Vectors that a fold keeps under way at once, so that the latency of one addition does not bound
/// it: 4 cover the 3 or 4 cycles of an addition at one load per cycle.
const CHAINS: usize = 4;

/// `outs[j][i] = f(ins[0][i], ins[1][i], ...)[j]`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn map_many<S: Simd, const N: usize, const M: usize>(
    s: S,
    ins: [&[f32]; N],
    mut outs: [&mut [f32]; M],
    f: impl Fn(S, [S::F32; N]) -> [S::F32; M],
) {
    let len = common_length(&ins, &outs);
    let mut values = [s.zero(); N];
    let mut i = 0;
    while i + S::LANES <= len {
        for (value, x) in values.iter_mut().zip(&ins) {
            // SAFETY: i + LANES <= len, which common_length asserts to be the length of x.
            *value = unsafe { s.load(x.as_ptr().add(i)) };
        }
        for (result, out) in f(s, values).into_iter().zip(&mut outs) {
            // SAFETY: i + LANES <= len, which common_length asserts to be the length of out.
            unsafe { s.store(out.as_mut_ptr().add(i), result) };
        }
        i += S::LANES;
    }
    if i < len {
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i..]);
        }
        for (result, out) in f(s, values).into_iter().zip(&mut outs) {
            s.store_slice(&mut out[i..], result);
        }
    }
}

/// In place: `vars[j][i] = f([vars[0][i], ...], [ins[0][i], ...])[j]`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn update_many<S: Simd, const M: usize, const N: usize>(
    s: S,
    mut vars: [&mut [f32]; M],
    ins: [&[f32]; N],
    f: impl Fn(S, [S::F32; M], [S::F32; N]) -> [S::F32; M],
) {
    let len = common_length(&ins, &vars);
    let mut olds = [s.zero(); M];
    let mut values = [s.zero(); N];
    let mut i = 0;
    while i + S::LANES <= len {
        for (old, var) in olds.iter_mut().zip(&vars) {
            // SAFETY: i + LANES <= len, which common_length asserts to be the length of var.
            *old = unsafe { s.load(var.as_ptr().add(i)) };
        }
        for (value, x) in values.iter_mut().zip(&ins) {
            // SAFETY: i + LANES <= len, which common_length asserts to be the length of x.
            *value = unsafe { s.load(x.as_ptr().add(i)) };
        }
        for (new, var) in f(s, olds, values).into_iter().zip(&mut vars) {
            // SAFETY: i + LANES <= len, which common_length asserts to be the length of var.
            unsafe { s.store(var.as_mut_ptr().add(i), new) };
        }
        i += S::LANES;
    }
    if i < len {
        for (old, var) in olds.iter_mut().zip(&vars) {
            *old = s.load_slice(&var[i..]);
        }
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i..]);
        }
        for (new, var) in f(s, olds, values).into_iter().zip(&mut vars) {
            s.store_slice(&mut var[i..], new);
        }
    }
}

/// `out[i] = f(x[i])`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn map1<S: Simd>(s: S, x: &[f32], out: &mut [f32], f: impl Fn(S, S::F32) -> S::F32) {
    map_many(
        s,
        [x],
        [out],
        #[inline(always)]
        |s, [x]| [f(s, x)],
    );
}

/// `out[i] = f(x[i], y[i])`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn map2<S: Simd>(
    s: S,
    x: &[f32],
    y: &[f32],
    out: &mut [f32],
    f: impl Fn(S, S::F32, S::F32) -> S::F32,
) {
    map_many(
        s,
        [x, y],
        [out],
        #[inline(always)]
        |s, [x, y]| [f(s, x, y)],
    );
}

/// `out[i] = f(x[i], y[i], z[i])`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn map3<S: Simd>(
    s: S,
    x: &[f32],
    y: &[f32],
    z: &[f32],
    out: &mut [f32],
    f: impl Fn(S, S::F32, S::F32, S::F32) -> S::F32,
) {
    map_many(
        s,
        [x, y, z],
        [out],
        #[inline(always)]
        |s, [x, y, z]| [f(s, x, y, z)],
    );
}

/// In place: `x[i] = f(x[i])`
#[inline(always)]
pub fn update1<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S, S::F32) -> S::F32) {
    update_many(
        s,
        [x],
        [],
        #[inline(always)]
        |s, [x], []| [f(s, x)],
    );
}

/// In place: `y[i] = f(y[i], x[i])`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn update2<S: Simd>(s: S, y: &mut [f32], x: &[f32], f: impl Fn(S, S::F32, S::F32) -> S::F32) {
    update_many(
        s,
        [y],
        [x],
        #[inline(always)]
        |s, [y], [x]| [f(s, y, x)],
    );
}

/// In place: `z[i] = f(z[i], x[i], y[i])`
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn update3<S: Simd>(
    s: S,
    z: &mut [f32],
    x: &[f32],
    y: &[f32],
    f: impl Fn(S, S::F32, S::F32, S::F32) -> S::F32,
) {
    update_many(
        s,
        [z],
        [x, y],
        #[inline(always)]
        |s, [z], [x, y]| [f(s, z, x, y)],
    );
}

/// Folds vectors of all inputs into 4 accumulators, `acc = f(acc, [ins[0][i], ...])`, each from
/// `init`, and these into one vector: `combine(combine(a0, a1), combine(a2, a3))`. The order
/// depends on the lengths only. `init` must be neutral to `combine`. Lanes past the end keep their
/// accumulator. Reduce the result with [`Simd::reduce_add`] or its like.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn fold_many<S: Simd, const N: usize>(
    s: S,
    ins: [&[f32]; N],
    init: S::F32,
    f: impl Fn(S, S::F32, [S::F32; N]) -> S::F32,
    combine: impl Fn(S, S::F32, S::F32) -> S::F32,
) -> S::F32 {
    let len = common_length(&ins, &[]);
    let mut accs = [init; CHAINS];
    let mut values = [s.zero(); N];
    let mut i = 0;
    while i + CHAINS * S::LANES <= len {
        for (chain, acc) in accs.iter_mut().enumerate() {
            for (value, x) in values.iter_mut().zip(&ins) {
                // SAFETY: chain < CHAINS and i + CHAINS LANES <= len, which common_length asserts
                // to be the length of x.
                *value = unsafe { s.load(x.as_ptr().add(i + chain * S::LANES)) };
            }
            *acc = f(s, *acc, values);
        }
        i += CHAINS * S::LANES;
    }
    let [mut a0, a1, a2, a3] = accs;
    while i < len {
        for (value, x) in values.iter_mut().zip(&ins) {
            *value = s.load_slice(&x[i..]);
        }
        a0 = s.select(s.first(len - i), f(s, a0, values), a0);
        i += S::LANES;
    }
    combine(s, combine(s, a0, a1), combine(s, a2, a3))
}

/// [`fold_many`] of one input.
#[inline(always)]
pub fn fold1<S: Simd>(
    s: S,
    x: &[f32],
    init: S::F32,
    f: impl Fn(S, S::F32, S::F32) -> S::F32,
    combine: impl Fn(S, S::F32, S::F32) -> S::F32,
) -> S::F32 {
    fold_many(
        s,
        [x],
        init,
        #[inline(always)]
        |s, acc, [x]| f(s, acc, x),
        combine,
    )
}

/// [`fold_many`] of two inputs.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn fold2<S: Simd>(
    s: S,
    x: &[f32],
    y: &[f32],
    init: S::F32,
    f: impl Fn(S, S::F32, S::F32, S::F32) -> S::F32,
    combine: impl Fn(S, S::F32, S::F32) -> S::F32,
) -> S::F32 {
    fold_many(
        s,
        [x, y],
        init,
        #[inline(always)]
        |s, acc, [x, y]| f(s, acc, x, y),
        combine,
    )
}

/// The sum of `x`, and 0 if it is empty. Rounds about `len / (4 LANES)` times in a row, so the
/// error of long sums is that many times smaller than that of a plain loop.
#[inline(always)]
pub fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    s.reduce_add(fold1(s, x, s.zero(), S::add, S::add))
}

/// The sum of `x[i] y[i]`, and 0 if they are empty.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let acc = fold2(
        s,
        x,
        y,
        s.zero(),
        #[inline(always)]
        |s, acc, x, y| s.mul_add(x, y, acc),
        S::add,
    );
    s.reduce_add(acc)
}

/// The largest of `x`: NaN if any is NaN, negative infinity if it is empty.
#[inline(always)]
pub fn max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let acc = fold1(
        s,
        x,
        s.splat(f32::NEG_INFINITY),
        #[inline(always)]
        |s, acc, v| s.max_nan(v, acc),
        S::max_nan,
    );
    s.reduce_max(acc)
}

/// The smallest of `x`: NaN if any is NaN, infinity if it is empty.
#[inline(always)]
pub fn min<S: Simd>(s: S, x: &[f32]) -> f32 {
    let acc = fold1(
        s,
        x,
        s.splat(f32::INFINITY),
        #[inline(always)]
        |s, acc, v| s.min_nan(v, acc),
        S::min_nan,
    );
    s.reduce_min(acc)
}

/// Whether no value of `x` is infinite or NaN.
#[inline(always)]
pub fn all_finite<S: Simd>(s: S, x: &[f32]) -> bool {
    // 0 x is 0 for finite x and NaN for the others, and a sum with NaN in it stays NaN.
    let acc = fold1(
        s,
        x,
        s.zero(),
        #[inline(always)]
        |s, acc, v| s.mul_add(v, s.zero(), acc),
        S::add,
    );
    !s.any(s.is_nan(acc))
}

/// `out[i] = f(x[i])`, with bytes read as 0.0 to 255.0.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn map_u8<S: Simd>(s: S, x: &[u8], out: &mut [f32], f: impl Fn(S, S::F32) -> S::F32) {
    assert_eq!(x.len(), out.len(), "map: the input differs in length from the output");
    for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        let value = if x.len() == S::LANES {
            // SAFETY: the branch holds only if the chunk has LANES bytes.
            unsafe { s.load_u8(x.as_ptr()) }
        } else {
            // SAFETY: a chunk has at most LANES bytes, and n is its length.
            unsafe { s.load_u8_partial(x.as_ptr(), x.len()) }
        };
        s.store_slice(out, f(s, value));
    }
}

/// `out[i] = x[i]`, exactly; `x` holds the bits of bf16 values.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn from_bf16<S: Simd>(s: S, x: &[u16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "from_bf16: the input differs in length from the output");
    for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        let value = if x.len() == S::LANES {
            // SAFETY: the branch holds only if the chunk has LANES values.
            unsafe { s.load_bf16(x.as_ptr()) }
        } else {
            // SAFETY: a chunk has at most LANES values, and n is its length.
            unsafe { s.load_bf16_partial(x.as_ptr(), x.len()) }
        };
        s.store_slice(out, value);
    }
}

/// `out[i] = x[i]` as the bits of the nearest bf16, even one of two; NaN stays NaN.
///
/// # Panics
/// The slices differ in length.
#[inline(always)]
pub fn to_bf16<S: Simd>(s: S, x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "to_bf16: the input differs in length from the output");
    for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        let value = s.load_slice(x);
        if out.len() == S::LANES {
            // SAFETY: the branch holds only if the chunk has LANES values.
            unsafe { s.store_bf16(out.as_mut_ptr(), value) };
        } else {
            // SAFETY: a chunk has at most LANES values, and n is its length.
            unsafe { s.store_bf16_partial(out.as_mut_ptr(), out.len(), value) };
        }
    }
}

/// The length that all slices have; 0 if there is none.
#[inline(always)]
fn common_length<const N: usize, const M: usize>(
    ins: &[&[f32]; N],
    outs: &[&mut [f32]; M],
) -> usize {
    let len = match (outs.first(), ins.first()) {
        (Some(out), _) => out.len(),
        (None, Some(x)) => x.len(),
        (None, None) => 0,
    };
    for x in ins {
        assert_eq!(x.len(), len, "simd: the slices differ in length");
    }
    for out in outs {
        assert_eq!(out.len(), len, "simd: the slices differ in length");
    }
    len
}
