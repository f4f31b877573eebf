//! The microkernel against a naive product, on the processor's tiles or on the stand-in.

use super::*;
use crate::device::cpu::{Isa, Memory};

/// Whether the microkernel can run here.
fn ready() -> bool {
    let ready = Isa::Avx512.is_available() && tiles::stand_in::install();
    if !ready {
        println!("SKIPPED: no AVX-512");
    }
    ready
}

/// Elements of a packed operand of 32 rows or columns, in a region aligned as panels are.
struct Packed {
    memory: Memory,
    panel: usize,
}

impl Packed {
    /// `count` rows (columns) of `depth`; place (i, p) of a panel at `index`. NaN in the panel that
    /// must not be read, zeros in the padding.
    fn new(
        count: usize,
        depth: usize,
        index: fn(usize, usize) -> usize,
        element: impl Fn(usize, usize) -> f32,
    ) -> Packed {
        // Apart from each other, by one tile more than they need.
        let panel = TILE * depth + 512;
        let mut memory = Memory::zeroed(2 * panel * size_of::<u16>());
        let elements = memory.elements_mut::<bf16>(0, 2 * panel);
        if count <= TILE {
            elements[panel..].fill(bf16::NAN);
        }
        for i in 0..count {
            for p in 0..depth {
                let place = i / TILE * panel + index(i % TILE, p);
                assert_eq!(elements[place].to_bits(), 0, "two elements at one place");
                elements[place] = bf16::from_f32(element(i, p));
            }
        }
        Packed { memory, panel }
    }

    fn start(&self) -> *const bf16 {
        self.memory.elements::<bf16>(0, 2 * self.panel).as_ptr()
    }
}

fn a_index(i: usize, p: usize) -> usize {
    p / 32 * 512 + i * 32 + p % 32
}

fn b_index(j: usize, p: usize) -> usize {
    p / 2 * 32 + j * 2 + p % 2
}

/// Runs the microkernel on a C of `ldc` columns that starts as `start` and lies between guards of
/// NaN, which must stay; answers C's rows.
#[allow(clippy::too_many_arguments, reason = "the microkernel has more")]
fn run(
    rows: usize,
    cols: usize,
    ldc: usize,
    depths: &[usize],
    a: &Packed,
    b: &Packed,
    start: Option<&dyn Fn(usize, usize) -> f32>,
) -> Vec<Vec<f32>> {
    const GUARD: usize = 40;
    let mut c = vec![f32::NAN; 2 * GUARD + 33 * ldc];
    for i in 0..rows {
        for j in 0..cols {
            c[GUARD + i * ldc + j] = start.map_or(f32::NAN, |start| start(i, j));
        }
    }
    let (mut accumulate, mut before) = (start.is_some(), 0);
    for &depth in depths {
        let _tiles = tiles::configure();
        // SAFETY: `ready` found the processor fit, the guard is held, and `Packed` holds what the
        // shapes say, from element `16 * before` on as much as `depth` needs.
        unsafe {
            multiply(
                rows,
                cols,
                depth,
                1,
                a.start().add(TILE * before),
                a.panel,
                b.start().add(TILE * before),
                b.panel,
                c.as_mut_ptr().add(GUARD),
                ldc,
                accumulate,
            );
        }
        (accumulate, before) = (true, before + depth);
    }
    let inside = |place: usize| {
        let place = place.wrapping_sub(GUARD);
        place / ldc < rows && place % ldc < cols
    };
    for (place, value) in c.iter().enumerate() {
        assert_ne!(inside(place), value.is_nan(), "{rows} x {cols}, place {place}: {value}");
    }
    (0..rows).map(|i| c[GUARD + i * ldc..][..cols].to_vec()).collect()
}

const SIDES: [usize; 6] = [1, 15, 16, 17, 31, 32];

#[test]
fn small_integers_are_exact_at_every_shape() {
    if !ready() {
        return;
    }
    let left = |i: usize, p: usize| ((i * 7 + p * 3) % 11) as f32 - 5.0;
    let right = |j: usize, p: usize| ((j * 5 + p * 13) % 9) as f32 - 4.0;
    let start = |i: usize, j: usize| ((i * 32 + j) % 17) as f32 - 8.0;
    for depth in [32, 64, 96, 320] {
        for rows in SIDES {
            let a = Packed::new(rows, depth, a_index, left);
            for cols in SIDES {
                let b = Packed::new(cols, depth, b_index, right);
                for accumulate in [false, true] {
                    let start: &dyn Fn(usize, usize) -> f32 = &start;
                    let got =
                        run(rows, cols, cols + 3, &[depth], &a, &b, accumulate.then_some(start));
                    for (i, row) in got.iter().enumerate() {
                        for (j, &value) in row.iter().enumerate() {
                            let sum: f32 = (0..depth).map(|p| left(i, p) * right(j, p)).sum();
                            let expected = sum + if accumulate { start(i, j) } else { 0.0 };
                            let case = (rows, cols, depth, accumulate);
                            assert_eq!(value, expected, "{case:?}, element ({i}, {j})");
                        }
                    }
                }
            }
        }
    }
}

/// Values that need every bit of a bf16 and rounding in the sums.
fn rough(seed: usize) -> impl Fn(usize, usize) -> f32 {
    move |i, p| {
        let bits = ((i * 1009 + p + 1) * seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        bf16::from_f32(bits as f32 / (1 << 23) as f32 - 1.0).to_f32()
    }
}

#[test]
fn sums_are_those_of_f32() {
    if !ready() {
        return;
    }
    let (left, right) = (rough(3), rough(5));
    for depth in [32, 320] {
        let (a, b) =
            (Packed::new(32, depth, a_index, &left), Packed::new(32, depth, b_index, &right));
        let got = run(32, 32, 32, &[depth], &a, &b, None);
        for (i, row) in got.iter().enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let product = |p: usize| f64::from(left(i, p)) * f64::from(right(j, p));
                let sum: f64 = (0..depth).map(product).sum();
                let size: f64 = (0..depth).map(|p| product(p).abs()).sum();
                // A term is in at most 16 sums of a step, then the pair's, then those of the steps.
                let roundings = 16 + 1 + depth / 32;
                let tol = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                let err = (f64::from(value) - sum).abs();
                assert!(value.is_finite());
                assert!(err <= tol, "depth {depth} ({i}, {j}): {value}, {sum}, {err} > {tol}");
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_the_place_in_a_block_nor_on_where_the_depth_is_cut() {
    if !ready() {
        return;
    }
    let (left, right) = (rough(7), rough(11));
    let start = rough(13);
    let start: &dyn Fn(usize, usize) -> f32 = &start;
    let packed = |rows: usize, cols: usize| {
        (Packed::new(rows, 320, a_index, &left), Packed::new(cols, 320, b_index, &right))
    };
    let (a, b) = packed(32, 32);
    for start in [None, Some(start)] {
        let whole = run(32, 32, 32, &[320], &a, &b, start);
        for depths in [&[32, 288][..], &[160, 160], &[32; 10]] {
            assert!(run(32, 32, 40, depths, &a, &b, start) == whole, "cut as {depths:?}");
        }
        for (rows, cols) in [(1, 1), (5, 32), (31, 17), (16, 15), (32, 3)] {
            let (a, b) = packed(rows, cols);
            let got = run(rows, cols, 33, &[96, 224], &a, &b, start);
            for (row, whole) in got.iter().zip(&whole) {
                assert_eq!(row[..], whole[..cols], "{rows} x {cols}");
            }
        }
    }
}

#[test]
fn without_depth_the_product_is_zero() {
    if !ready() {
        return;
    }
    let (a, b) = (Packed::new(20, 0, a_index, rough(1)), Packed::new(20, 0, b_index, rough(1)));
    let start: &dyn Fn(usize, usize) -> f32 = &|i, j| (i * 32 + j) as f32;
    for (i, row) in run(20, 20, 21, &[0], &a, &b, Some(start)).iter().enumerate() {
        assert!(row.iter().enumerate().all(|(j, &value)| value == start(i, j)));
    }
    assert!(run(20, 20, 21, &[0], &a, &b, None).iter().flatten().all(|&value| value == 0.0));
}

/// `cargo test --release --lib gemm::amx -- --ignored --nocapture`; on the stand-in the figures say
/// how long tests take.
#[test]
#[ignore = "measures"]
fn rates() {
    use std::time::Instant;
    if !ready() {
        return;
    }
    let least = |calls: u32, work: &mut dyn FnMut()| {
        let round = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..calls).for_each(|_| work());
            start.elapsed().as_secs_f64() / f64::from(calls)
        };
        (0..10).map(|_| round(work)).fold(f64::INFINITY, f64::min)
    };
    let nothing = least(1_000_000, &mut || drop(std::hint::black_box(tiles::Region::enter())));
    println!("entering and leaving a region without tiles: {:.2} ns", nothing * 1e9);
    let calls = if tiles::stand_in::is_installed() { 10 } else { 10_000 };
    let outside = least(calls, &mut || drop(tiles::configure()));
    println!("configuring and releasing: {:.0} ns", outside * 1e9);
    let region = tiles::Region::enter();
    let inside = least(calls, &mut || drop(tiles::configure()));
    println!("configuring again in a region: {:.2} ns", inside * 1e9);
    let _tiles = tiles::configure();
    for (rows, cols) in [(32, 32), (16, 32), (32, 16), (16, 16), (31, 31), (32, 10)] {
        for depth in [64, 256, 512] {
            let (a, b) = (
                Packed::new(rows, depth, a_index, rough(3)),
                Packed::new(cols, depth, b_index, rough(5)),
            );
            let mut c = vec![0f32; 32 * 512];
            for accumulate in [false, true] {
                let seconds = least(calls, &mut || {
                    // SAFETY: as in `run`; C has 32 rows of 512 elements.
                    unsafe {
                        let (a_start, b_start, c) = (a.start(), b.start(), c.as_mut_ptr());
                        multiply(
                            rows, cols, depth, 1, a_start, a.panel, b_start, b.panel, c, 512,
                            accumulate,
                        );
                    }
                });
                let rate = (2 * rows * cols * depth) as f64 / seconds / 1e9;
                println!(
                    "{rows} x {cols} x {depth}, accumulate {accumulate}: {:.0} ns, {rate:.3} GFLOP/s",
                    seconds * 1e9
                );
            }
        }
    }
    drop(region);
}
