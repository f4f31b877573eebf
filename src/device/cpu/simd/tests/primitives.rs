//! The operations of [`Simd`], lane by lane.

use super::vector_sets;
use super::{Isa, Kernel, LENGTHS, Random, SPECIAL, Simd, dispatch, same};

fn lanes<S: Simd>(s: S, v: S::F32) -> Vec<f32> {
    let mut out = vec![0.0; S::LANES];
    s.store_slice(&mut out, v);
    out
}

fn integers<S: Simd>(s: S, v: S::I32) -> Vec<i32> {
    let mut out = vec![0; S::LANES];
    // SAFETY: the buffer has LANES integers.
    unsafe { s.store_i32(out.as_mut_ptr(), v) };
    out
}

fn vector<S: Simd>(s: S, x: &[i32]) -> S::I32 {
    assert_eq!(x.len(), S::LANES);
    // SAFETY: there are LANES integers.
    unsafe { s.load_i32(x.as_ptr()) }
}

fn truths<S: Simd>(s: S, m: S::Mask) -> Vec<bool> {
    assert_eq!(s.count(m), s.bits(m).count_ones());
    assert_eq!(s.any(m), s.count(m) > 0);
    assert_eq!(s.all(m), s.count(m) as usize == S::LANES);
    (0..S::LANES).map(|i| s.bits(m) >> i & 1 == 1).collect()
}

/// Asserts that `f` of the lanes is what the vector holds.
#[track_caller]
fn expect<const N: usize>(
    name: &str,
    isa: Isa,
    got: &[f32],
    args: [&[f32]; N],
    f: impl Fn([f32; N]) -> f32,
) {
    for (i, &y) in got.iter().enumerate() {
        let args = args.map(|x| x[i]);
        let expected = f(args);
        assert!(same(y, expected), "{name}{args:?} on {isa}: {y:e}, not {expected:e}");
    }
}

/// The operations of f32, on the first LANES values of three slices.
struct Floats<'a>([&'a [f32]; 3]);

impl Kernel for Floats<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [x, y, z] = self.0;
        let [a, b, c] = self.0.map(|x| s.load_slice(x));
        let fused = S::ISA != Isa::Portable;
        let two = |name: &str, v: S::F32, f: fn(f32, f32) -> f32| {
            expect(name, S::ISA, &lanes(s, v), [x, y], |[x, y]| f(x, y));
        };
        two("add", s.add(a, b), |x, y| x + y);
        two("sub", s.sub(a, b), |x, y| x - y);
        two("mul", s.mul(a, b), |x, y| x * y);
        two("div", s.div(a, b), |x, y| x / y);
        two("min", s.min(a, b), |x, y| if x < y { x } else { y });
        two("max", s.max(a, b), |x, y| if x > y { x } else { y });
        two("copysign", s.copysign(a, b), f32::copysign);
        let nan_or = |x: f32, y: f32, z: f32| if x.is_nan() || y.is_nan() { f32::NAN } else { z };
        expect("max_nan", S::ISA, &lanes(s, s.max_nan(a, b)), [x, y], |[x, y]| {
            nan_or(x, y, if x > y { x } else { y })
        });
        expect("min_nan", S::ISA, &lanes(s, s.min_nan(a, b)), [x, y], |[x, y]| {
            nan_or(x, y, if x < y { x } else { y })
        });
        expect("mul_add", S::ISA, &lanes(s, s.mul_add(a, b, c)), [x, y, z], |[x, y, z]| {
            if fused { x.mul_add(y, z) } else { x * y + z }
        });
        expect("neg_mul_add", S::ISA, &lanes(s, s.neg_mul_add(a, b, c)), [x, y, z], |[x, y, z]| {
            if fused { (-x).mul_add(y, z) } else { z - x * y }
        });

        let one = |name: &str, v: S::F32, f: fn(f32) -> f32| {
            expect(name, S::ISA, &lanes(s, v), [x], |[x]| f(x));
        };
        one("neg", s.neg(a), |x| -x);
        one("abs", s.abs(a), f32::abs);
        one("sqrt", s.sqrt(a), f32::sqrt);
        one("floor", s.floor(a), f32::floor);
        one("round_even", s.round_even(a), f32::round_ties_even);

        let compare = |name: &str, m: S::Mask, f: fn(f32, f32) -> bool| {
            let chosen: Vec<f32> = lanes(s, s.select(m, s.splat(1.0), s.splat(-1.0)));
            for (i, truth) in truths(s, m).into_iter().enumerate() {
                assert_eq!(truth, f(x[i], y[i]), "{name}({}, {}) on {}", x[i], y[i], S::ISA);
                assert_eq!(truth, chosen[i] == 1.0, "select on {}", S::ISA);
            }
        };
        compare("lt", s.lt(a, b), |x, y| x < y);
        compare("le", s.le(a, b), |x, y| x <= y);
        compare("gt", s.gt(a, b), |x, y| x > y);
        compare("ge", s.ge(a, b), |x, y| x >= y);
        compare("eq", s.eq(a, b), |x, y| x == y);
        compare("is_nan", s.is_nan(a), |x, _| x.is_nan());
        let (p, q) = (s.lt(a, b), s.lt(a, s.zero()));
        compare("mask_and", s.mask_and(p, q), |x, y| x < y && x < 0.0);
        compare("mask_or", s.mask_or(p, q), |x, y| x < y || x < 0.0);
        compare("mask_not", s.mask_not(p), |x, y| x.is_nan() || y.is_nan() || x >= y);

        for (i, n) in integers(s, s.to_i32(a)).into_iter().enumerate() {
            let r = x[i].round_ties_even();
            let fits = (-2_147_483_648.0..2_147_483_648.0).contains(&r);
            assert_eq!(n, if fits { r as i32 } else { i32::MIN }, "to_i32({}) on {}", x[i], S::ISA);
        }
        let bits: Vec<i32> = x[..S::LANES].iter().map(|x| x.to_bits() as i32).collect();
        assert_eq!(integers(s, s.bitcast_i32(a)), bits);
        one("bitcast", s.bitcast_f32(vector(s, &bits)), |x| x);

        let mut rounded = [0u16; 16];
        let mut widened = [0f32; 16];
        // SAFETY: the buffers have 16 values, and no vector has more lanes.
        unsafe {
            s.store_bf16(rounded.as_mut_ptr(), a);
            s.store(widened.as_mut_ptr(), s.load_bf16(rounded.as_ptr()));
        }
        for i in 0..S::LANES {
            let expected = half::bf16::from_f32(x[i]);
            assert_eq!(rounded[i], expected.to_bits(), "bf16 of {} on {}", x[i], S::ISA);
            assert!(same(widened[i], expected.to_f32()));
        }
    }
}

#[test]
fn f32_operations() {
    let mut random = Random::new(1);
    let mut values = |n: usize| -> Vec<f32> {
        // Special ones in every pairing, then plain ones, then any bits at all.
        let mut x: Vec<f32> = (0..900).map(|i| SPECIAL[i / [1, 30, 7][n] % 30]).collect();
        x.extend(random.values(4000));
        x.extend((0..4000).map(|_| f32::from_bits(random.bits())));
        x.truncate(x.len() / 16 * 16);
        x
    };
    let [x, y, z] = [0, 1, 2].map(&mut values);
    for isa in vector_sets() {
        let step = if isa == Isa::Avx512 { 16 } else { 8 };
        for i in (0..x.len()).step_by(step) {
            dispatch(isa, Floats([&x[i..], &y[i..], &z[i..]]));
        }
    }
}

/// The operations of integers, on the first LANES values of two slices.
struct Integers<'a>(&'a [i32], &'a [i32]);

impl Kernel for Integers<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, y) = (&self.0[..S::LANES], &self.1[..S::LANES]);
        let (a, b) = (vector(s, x), vector(s, y));
        let two = |name: &str, v: S::I32, f: fn(i32, i32) -> i32| {
            let expected: Vec<i32> = x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect();
            assert_eq!(integers(s, v), expected, "{name} on {}", S::ISA);
        };
        two("add", s.add_i32(a, b), i32::wrapping_add);
        two("sub", s.sub_i32(a, b), i32::wrapping_sub);
        two("mul", s.mul_i32(a, b), i32::wrapping_mul);
        two("and", s.and_i32(a, b), |x, y| x & y);
        two("or", s.or_i32(a, b), |x, y| x | y);
        two("xor", s.xor_i32(a, b), |x, y| x ^ y);
        let (low, high) = s.mul_wide_u32(a, b);
        two("mul_wide low", low, i32::wrapping_mul);
        two("mul_wide high", high, |x, y| {
            ((u64::from(x as u32) * u64::from(y as u32)) >> 32) as i32
        });
        two("select", s.select_i32(s.gt_i32(a, b), a, b), i32::max);
        two("select eq", s.select_i32(s.eq_i32(a, b), a, s.splat_i32(7)), |x, y| {
            if x == y { x } else { 7 }
        });
        for n in 0..32 {
            let shift = |v: S::I32, f: &dyn Fn(i32) -> i32| {
                let expected: Vec<i32> = x.iter().map(|&x| f(x)).collect();
                assert_eq!(integers(s, v), expected, "shift by {n} on {}", S::ISA);
            };
            shift(s.shl_i32(a, n), &|x| x << n);
            shift(s.shr_i32(a, n), &|x| ((x as u32) >> n) as i32);
            shift(s.sar_i32(a, n), &|x| x >> n);
        }
        let floats: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        assert_eq!(lanes(s, s.to_f32(a)), floats, "to_f32 on {}", S::ISA);
        let numbers: Vec<i32> = (0..S::LANES as i32).collect();
        assert_eq!(integers(s, s.iota_i32()), numbers);
    }
}

#[test]
fn integer_operations() {
    let mut random = Random::new(2);
    let special = [0, 1, -1, i32::MIN, i32::MAX, 0x00ff_00ff, 65_537, -65_536];
    for isa in vector_sets() {
        for round in 0..200 {
            let mut values = |mut stride: usize| -> Vec<i32> {
                stride += round;
                let any = |i: usize| match round {
                    0..8 => special[(i * stride + stride) % 8],
                    _ => random.bits() as i32,
                };
                (0..16).map(any).collect()
            };
            let (x, mut y) = (values(1), values(3));
            y[round % 8] = x[round % 8];
            dispatch(isa, Integers(&x, &y));
        }
    }
}

/// Exponents from the deepest subnormal to overflow; every product against f64.
#[test]
fn scaling_by_powers_of_two_rounds_once() {
    struct Scale(f32, f32);
    impl Kernel for Scale {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            lanes(s, s.scale_pow2(s.splat(self.0), s.splat(self.1)))[S::LANES - 1]
        }
    }
    for isa in vector_sets() {
        for n in -200..=200 {
            for x in [1.0, -1.337_512_5, 0.75, 1.999_999_9, 0.0] {
                let expected = (f64::from(x) * 2f64.powi(n)) as f32;
                let y = dispatch(isa, Scale(x, n as f32));
                assert!(same(y, expected), "{x} 2^{n} on {isa}: {y:e}, not {expected:e}");
            }
        }
    }
}

struct Reduce<'a>(&'a [f32]);

impl Kernel for Reduce<'_> {
    type Output = [f32; 3];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 3] {
        let v = s.load_slice(self.0);
        [s.reduce_add(v), s.reduce_max(v), s.reduce_min(v)]
    }
}

/// The sum in the order that [`Simd::reduce_add`] states.
fn tree(x: &[f32]) -> f32 {
    let (low, high) = x.split_at(x.len() / 2);
    if low.is_empty() {
        return x[0];
    }
    tree(&low.iter().zip(high).map(|(a, b)| a + b).collect::<Vec<_>>())
}

#[test]
fn reductions() {
    let mut random = Random::new(3);
    for isa in vector_sets() {
        let width = if isa == Isa::Avx512 { 16 } else { 8 };
        for _ in 0..500 {
            let mut x = random.values(width);
            let [sum, max, min] = dispatch(isa, Reduce(&x));
            assert!(same(sum, tree(&x)), "reduce_add on {isa}: {sum}");
            assert_eq!(max, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(min, x.iter().copied().fold(f32::INFINITY, f32::min));
            x[random.bits() as usize % width] = f32::NAN;
            for y in dispatch(isa, Reduce(&x)) {
                assert!(y.is_nan(), "{isa}: {y} of {x:?}");
            }
        }
    }
}

#[test]
fn the_first_lanes() {
    struct First(usize);
    impl Kernel for First {
        type Output = u32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> u32 {
            assert_eq!(s.count(s.first(self.0)) as usize, self.0.min(S::LANES));
            s.bits(s.first(self.0))
        }
    }
    for isa in vector_sets() {
        for n in LENGTHS {
            let lanes = n.min(if isa == Isa::Avx512 { 16 } else { 8 });
            assert_eq!(dispatch(isa, First(n)), (1u32 << lanes) - 1);
        }
    }
}

/// Memory whose end is the end of what the process may touch.
#[cfg(target_os = "linux")]
mod edge {
    use std::ffi::{c_int, c_long, c_void};

    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            len: usize,
            prot: c_int,
            flags: c_int,
            fd: c_int,
            offset: c_long,
        ) -> *mut c_void;
        fn mprotect(at: *mut c_void, len: usize, prot: c_int) -> c_int;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
    }

    const READ_WRITE: c_int = 3;
    const PRIVATE_ANONYMOUS: c_int = 0x22;
    /// A multiple of every page size in use.
    const HALF: usize = 1 << 16;

    pub struct Edge(*mut u8);

    impl Edge {
        pub fn new() -> Self {
            // SAFETY: fresh memory at an address of the system's choice; the second half of it is
            // made untouchable before anyone has the pointer.
            let p = unsafe {
                let p = mmap(std::ptr::null_mut(), 2 * HALF, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0);
                assert_ne!(p as isize, -1, "mmap");
                assert_eq!(mprotect(p.cast::<u8>().add(HALF).cast(), HALF, 0), 0, "mprotect");
                p
            };
            Edge(p.cast())
        }

        /// The last `n` values before the edge.
        pub fn last<T>(&mut self, n: usize) -> &mut [T] {
            assert!(n * size_of::<T>() <= HALF);
            // SAFETY: zeroed or written before, within the first half, aligned as HALF is, and
            // borrowed from self. The tests use integers and floats only: any bits are valid.
            unsafe {
                let end = self.0.add(HALF).cast::<T>();
                std::slice::from_raw_parts_mut(end.sub(n), n)
            }
        }
    }

    impl Drop for Edge {
        fn drop(&mut self) {
            // SAFETY: the mapping that `new` made; all borrows of it have ended.
            unsafe { munmap(self.0.cast(), 2 * HALF) };
        }
    }
}

/// A touch of one byte past `n` ends the process.
#[cfg(target_os = "linux")]
#[test]
fn partial_loads_and_stores_end_where_they_say() {
    struct Partial<'a>(&'a mut edge::Edge);
    impl Kernel for Partial<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for n in 0..=S::LANES {
                let x: Vec<f32> = (0..n).map(|i| i as f32 + 1.5).collect();
                let padded = |fill: f32, f: fn(f32) -> f32| -> Vec<f32> {
                    (0..S::LANES).map(|i| x.get(i).map_or(fill, |&x| f(x))).collect()
                };
                self.0.last(n).copy_from_slice(&x);
                // SAFETY: here and below, `last` gives n values, and n <= LANES.
                let v = unsafe { s.load_partial(self.0.last(n).as_ptr(), n, -7.0) };
                assert_eq!(lanes(s, v), padded(-7.0, |x| x));
                assert_eq!(lanes(s, s.load_slice(self.0.last(n))), padded(0.0, |x| x));
                assert_eq!(lanes(s, s.load_slice_or(self.0.last(n), 3.0)), padded(3.0, |x| x));

                self.0.last::<f32>(n + 3).fill(-1.0);
                // SAFETY: as above.
                unsafe { s.store_partial(self.0.last(n).as_mut_ptr(), n, v) };
                assert_eq!(self.0.last::<f32>(n), x);
                assert_eq!(self.0.last::<f32>(n + 3)[..3], [-1.0; 3]);

                let numbers: Vec<i32> = (0..n as i32).map(|i| i - 5).collect();
                self.0.last(n).copy_from_slice(&numbers);
                // SAFETY: as above.
                let v = unsafe { s.load_i32_partial(self.0.last(n).as_ptr(), n) };
                assert_eq!(integers(s, v)[..n], numbers);
                assert!(integers(s, v)[n..].iter().all(|&x| x == 0));
                self.0.last::<i32>(n).fill(9);
                // SAFETY: as above.
                unsafe { s.store_i32_partial(self.0.last(n).as_mut_ptr(), n, v) };
                assert_eq!(self.0.last::<i32>(n), numbers);

                let bytes: Vec<u8> = (0..n as u8).map(|i| 255 - 3 * i).collect();
                self.0.last(n).copy_from_slice(&bytes);
                // SAFETY: as above.
                let v = unsafe { s.load_u8_partial(self.0.last(n).as_ptr(), n) };
                let expected: Vec<f32> =
                    (0..S::LANES).map(|i| bytes.get(i).map_or(0.0, |&x| f32::from(x))).collect();
                assert_eq!(lanes(s, v), expected);
                if n == S::LANES {
                    // SAFETY: as above.
                    let whole = unsafe { s.load_u8(self.0.last(n).as_ptr()) };
                    assert_eq!(lanes(s, whole), expected);
                }

                self.0.last::<u16>(n + 3).fill(77);
                let v = s.load_slice(&x);
                // SAFETY: as above.
                unsafe { s.store_bf16_partial(self.0.last(n).as_mut_ptr(), n, v) };
                assert_eq!(self.0.last::<u16>(n + 3)[..3], [77; 3]);
                // SAFETY: as above.
                let v = unsafe { s.load_bf16_partial(self.0.last(n).as_ptr(), n) };
                // All of these have so few bits that bf16 holds them.
                assert_eq!(lanes(s, v), padded(0.0, |x| x));
            }
        }
    }
    let mut edge = edge::Edge::new();
    for isa in vector_sets() {
        dispatch(isa, Partial(&mut edge));
    }
}

/// Four columns of rows that are 4 to 19 elements apart, there and back.
#[test]
fn four_columns_are_those_of_the_rows() {
    struct Columns(usize);
    impl Kernel for Columns {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let stride = self.0;
            let len = (S::LANES - 1) * stride + 4;
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let columns = s.load_four_columns(&x, stride);
            for (k, column) in columns.into_iter().enumerate() {
                let want: Vec<f32> = (0..S::LANES).map(|row| x[row * stride + k]).collect();
                assert_eq!(lanes(s, column), want, "{}", S::ISA);
            }
            let mut out = vec![-1.0; len];
            s.store_four_columns(&mut out, stride, columns);
            for (i, (&got, &want)) in out.iter().zip(&x).enumerate() {
                let want = if i % stride < 4 { want } else { -1.0 };
                assert_eq!(got, want, "{} at {i}", S::ISA);
            }
        }
    }
    for isa in vector_sets() {
        (4..20).for_each(|stride| dispatch(isa, Columns(stride)));
    }
}
