//! AMX: blocks of up to 32 x 32, as up to 2 x 2 tiles of 16 x 16 sums; of the eight tiles four hold
//! sums, two A and two B, so that four products take four loads.
//!
//! Operands are bf16, packed so that every tile is 1024 consecutive bytes and the tiles of a panel
//! follow each other along the depth:
//! - A in panels of 16 rows: element (i, p) at `(p / 32) * 512 + i * 32 + p % 32`;
//! - B in panels of 16 columns: element (p, j) at `(p / 2) * 32 + j * 2 + p % 2`.
//!
//! Sums are f32 and run through the depth in steps of 32, each step added to what the earlier ones
//! left (see the stand-in of `device::cpu::tiles` for the order within a step). A ragged tile has
//! the sums of a full one, and C that is added to is where the sums start: bits depend neither on
//! the place of an element in its block nor on where the depth is cut, as long as that is at a
//! multiple of 32.

use super::Spec;
use super::avx512_bf16::{WEAVE_A, WEAVE_B, pack};
use super::driver::{Kernel, Micro, Packing, Panels};
use super::layout::Weave;
use crate::device::cpu::tiles;
use core::arch::asm;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use half::bf16;

#[cfg(all(test, target_os = "linux"))]
mod tests;

/// Rows and columns of a tile of sums.
const TILE: usize = 16;

/// Elements of bf16 in a row of a tile: what one product takes of the depth.
const STEP: usize = 32;

/// Elements of bf16 in a tile.
const SLICE: usize = TILE * STEP;

/// The engine `amx_bf16_32x32`.
pub(super) struct Amx;

impl Kernel for Amx {
    type Element = bf16;
    type Session = tiles::Configured;
    const NAME: &'static str = "amx_bf16_32x32";
    /// Half of what the registers give, beside AVX-512 in f32.
    const SPEED: u64 = 8;
    const ROWS: usize = 2 * TILE;
    const LANES: usize = TILE;
    const DEPTH: usize = 512;

    fn session() -> tiles::Configured {
        tiles::configure()
    }

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, _single: bool) -> Panels {
        let tile = (Self::ROWS, 2 * Self::LANES);
        Panels::packed(tile, (WEAVE_A, WEAVE_B), spec, packed_a, packed_b)
    }

    fn weave_b(_n: usize) -> Weave {
        WEAVE_B
    }

    unsafe fn multiply(micro: &Micro<bf16>) {
        let Micro { rows, cols, depth, a, a_panel, b, b_panel, c, ldc, accumulate, .. } = *micro;
        // SAFETY: the caller's contract; the session of its tile is open.
        unsafe { multiply(rows, cols, depth, 1, a, a_panel, b, b_panel, c, ldc, accumulate) }
    }

    unsafe fn pack(packing: &Packing<bf16>) {
        // SAFETY: the caller's contract; machines with AMX have AVX512-BF16.
        unsafe { pack(packing) }
    }
}

/// The engine `amx_f32_split_32x32`: f32 operands as sums of three bf16 each, which hold all 24
/// bits. Of the nine products of parts the six that matter to f32 are summed, small ones first, so
/// that sums are rounded at their full size once a product as those of plain f32 are; the three that
/// are left out are below 2^-24 of the product (compare G. Henry, P. T. P. Tang, A. Heinecke,
/// "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
/// ARITH 2019).
///
/// Subnormal parts count as zero, so that operands below 2^-110 lose digits; those above 3.389e38
/// count as infinite, and infinite ones give NaN.
pub(super) struct AmxSplit;

/// Parts of A and of B that are multiplied, from small to large.
const PRODUCTS: [(usize, usize); 6] = [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)];

impl Kernel for AmxSplit {
    type Element = bf16;
    type Session = tiles::Configured;
    const NAME: &'static str = "amx_f32_split_32x32";
    const SPEED: u64 = 1;
    const ROWS: usize = 2 * TILE;
    const LANES: usize = TILE;
    /// A block is summed apart before it is added to C.
    const DEPTH: usize = 256;

    fn session() -> tiles::Configured {
        tiles::configure()
    }

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, _single: bool) -> Panels {
        let tile = (Self::ROWS, 2 * Self::LANES);
        let weave_a = Weave { parts: 3, ..WEAVE_A };
        Panels::packed(tile, (weave_a, Self::weave_b(spec.n)), spec, packed_a, packed_b)
    }

    fn weave_b(_n: usize) -> Weave {
        Weave { parts: 3, ..WEAVE_B }
    }

    unsafe fn multiply(micro: &Micro<bf16>) {
        const SIDE: usize = 2 * TILE;
        let Micro { rows, cols, depth, a, a_panel, b, b_panel, c, ldc, accumulate, .. } = *micro;
        let mut sums = Ragged(MaybeUninit::<[f32; SIDE * SIDE]>::uninit());
        let sums = sums.0.as_mut_ptr().cast::<f32>();
        for (number, (part_a, part_b)) in PRODUCTS.into_iter().enumerate() {
            let (a, b) = (a.wrapping_add(part_a * SLICE), b.wrapping_add(part_b * SLICE));
            // SAFETY: the caller's contract; the session of its tile is open; the sums are a block
            // of 32 x 32, which the first product writes.
            unsafe {
                let further = number > 0;
                multiply(rows, cols, depth, 3, a, a_panel, b, b_panel, sums, SIDE, further);
            }
        }
        for i in 0..rows {
            for j in 0..cols {
                // SAFETY: the products wrote these rows and columns of the sums; C has them
                // (contract).
                unsafe {
                    let (from, to) = (*sums.add(i * SIDE + j), c.add(i * ldc + j));
                    *to = if accumulate { *to + from } else { from };
                }
            }
        }
    }

    unsafe fn pack(packing: &Packing<bf16>) {
        // SAFETY: the caller's contract; machines with AMX have AVX512-BF16.
        unsafe { pack(packing) }
    }
}

/// Where a tile of sums is loaded and stored.
#[derive(Clone, Copy)]
#[repr(C)]
struct Place {
    start: *mut f32,
    /// Bytes between rows.
    stride: usize,
}

/// Stands for a tile of C that is not whole.
#[repr(align(64))]
struct Ragged<T>(MaybeUninit<T>);

/// The operands of a block: tile (i, j) of the sums is at `places[2 * i + j]` and takes its factors
/// from `a[i]` and `b[j]`.
struct Block {
    places: [Place; 4],
    a: [*const bf16; 2],
    b: [*const bf16; 2],
    /// Bytes from one tile of a panel to the next along the depth.
    stride: usize,
    steps: usize,
    accumulate: bool,
}

/// C\[rows, cols\] (+)= A\[rows, depth\] · B\[depth, cols\], with `rows` and `cols` in `1..=32`, A
/// and B packed as the module says, C with `ldc` elements between rows. Without `accumulate` C is
/// written and not read; nothing of C is touched beyond `rows` and `cols`. Rows of A beyond `rows`
/// and columns of B beyond `cols` change nothing that is stored. Only every `parts`-th tile of the
/// panels is taken.
///
/// # Safety
/// - This thread holds a [`tiles::Configured`], and the processor has AVX-512 F.
/// - `depth` is a multiple of 32.
/// - `16 * depth * parts` elements are readable at `a` and, for more than 16 rows, at `a + a_panel`; at `b`
///   and, for more than 16 columns, at `b + b_panel`.
/// - C is writable in `rows` rows of `cols` elements, and readable if it is added to.
#[allow(clippy::too_many_arguments, reason = "three matrices with their strides")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(
    rows: usize,
    cols: usize,
    depth: usize,
    parts: usize,
    a: *const bf16,
    a_panel: usize,
    b: *const bf16,
    b_panel: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    debug_assert!(tiles::is_configured());
    debug_assert!((1..=2 * TILE).contains(&rows) && (1..=2 * TILE).contains(&cols));
    debug_assert_eq!(depth % STEP, 0);
    let place = |i: usize, j: usize| Place {
        start: c.wrapping_add(i * TILE * ldc + j * TILE),
        stride: ldc * size_of::<f32>(),
    };
    let mut block = Block {
        places: [place(0, 0), place(0, 1), place(1, 0), place(1, 1)],
        a: [a, a.wrapping_add(a_panel)],
        b: [b, b.wrapping_add(b_panel)],
        stride: parts * SLICE * size_of::<bf16>(),
        steps: depth / STEP,
        accumulate,
    };
    let (down, across) = (rows.div_ceil(TILE), cols.div_ceil(TILE));
    if rows.is_multiple_of(TILE) && cols.is_multiple_of(TILE) {
        // SAFETY: tiles are configured, the panels hold `steps` tiles each (contract), and every
        // place of these rows and columns is a whole tile of C.
        return unsafe { run(&block, down, across) };
    }
    let mut ragged = [const { Ragged::<[[f32; TILE]; TILE]>(MaybeUninit::uninit()) }; 4];
    let mut parts = [None; 4];
    for i in 0..down {
        for j in 0..across {
            let (rows, cols) = ((rows - i * TILE).min(TILE), (cols - j * TILE).min(TILE));
            if rows == TILE && cols == TILE {
                continue;
            }
            let number = 2 * i + j;
            let own = ragged[number].0.as_mut_ptr().cast::<f32>();
            let corner = std::mem::replace(
                &mut block.places[number],
                Place { start: own, stride: TILE * size_of::<f32>() },
            );
            parts[number] = Some((corner.start, rows, cols));
            if accumulate {
                // SAFETY: `rows` and `cols` are those of C from the corner on (contract); the
                // buffer is a whole tile.
                unsafe { gather(corner.start, ldc, rows, cols, own) };
            }
        }
    }
    // SAFETY: as above, with buffers for the tiles of C that are not whole.
    unsafe { run(&block, down, across) };
    for (place, part) in block.places.iter().zip(parts) {
        if let Some((corner, rows, cols)) = part {
            // SAFETY: as for `gather`; the product has written the whole buffer.
            unsafe { scatter(place.start, rows, cols, corner, ldc) };
        }
    }
}

/// The microkernel for so many tiles down and across.
///
/// # Safety
/// As that microkernel's.
#[inline]
unsafe fn run(block: &Block, down: usize, across: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        match (down, across) {
            (1, 1) => multiply_1x1(block),
            (1, _) => multiply_1x2(block),
            (_, 1) => multiply_2x1(block),
            _ => multiply_2x2(block),
        }
    }
}

/// Mask of the first `count` of 16 lanes.
fn lanes(count: usize) -> __mmask16 {
    (0xFFFFu32 >> (TILE - count)) as __mmask16
}

/// Copies `rows` x `cols` of C into a tile, zeros around it.
///
/// # Safety
/// C is readable in that many rows and columns, at most 16; the tile is writable and aligned to 64
/// bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn gather(c: *const f32, ldc: usize, rows: usize, cols: usize, tile: *mut f32) {
    for i in 0..TILE {
        let mask = if i < rows { lanes(cols) } else { 0 };
        // SAFETY: the mask holds back what is not C's (contract).
        unsafe {
            let row = _mm512_maskz_loadu_ps(mask, c.wrapping_add(i * ldc));
            _mm512_store_ps(tile.add(i * TILE), row);
        }
    }
}

/// Copies the first `rows` x `cols` of a tile to C.
///
/// # Safety
/// As [`gather`], with C writable and the tile readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scatter(tile: *const f32, rows: usize, cols: usize, c: *mut f32, ldc: usize) {
    for i in 0..rows {
        // SAFETY: the mask holds back what is not C's (contract).
        unsafe {
            let row = _mm512_load_ps(tile.add(i * TILE));
            _mm512_mask_storeu_ps(c.add(i * ldc), lanes(cols), row);
        }
    }
}

/// A microkernel for the sums with the numbers given; tile 0 to 3 are the sums, 4 and 5 A, 6 and 7
/// B. All in one `asm!`: between two of them the compiler may lose what is in the tiles.
macro_rules! microkernel {
    ($name:ident, sums: [$($sum:literal)*], step: [$($step:literal)*]) => {
        /// # Safety
        /// Tiles are configured; the panels of these sums hold `steps` tiles, and their places are
        /// whole tiles, writable, and readable if added to.
        #[inline]
        unsafe fn $name(block: &Block) {
            let [a0, a1] = block.a;
            let [b0, b1] = block.b;
            // SAFETY: the caller's contract. Memory is touched at the places and at `steps`
            // consecutive tiles of the panels only; the pointers of absent panels are moved but not
            // followed.
            unsafe {
                asm!(
                    "test {accumulate:e}, {accumulate:e}",
                    "jnz 2f",
                    $(concat!("tilezero tmm", $sum),)*
                    "jmp 3f",
                    "2:",
                    $(
                        concat!("mov {place}, qword ptr [{places} + 16 * ", $sum, "]"),
                        concat!("mov {stride}, qword ptr [{places} + 16 * ", $sum, " + 8]"),
                        concat!("tileloadd tmm", $sum, ", [{place} + {stride} * 1]"),
                    )*
                    "3:",
                    "mov {stride:e}, 64",
                    "test {steps}, {steps}",
                    "jz 5f",
                    "4:",
                    $($step,)*
                    "add {a0}, {slice}",
                    "add {a1}, {slice}",
                    "add {b0}, {slice}",
                    "add {b1}, {slice}",
                    "dec {steps}",
                    "jnz 4b",
                    "5:",
                    $(
                        concat!("mov {place}, qword ptr [{places} + 16 * ", $sum, "]"),
                        concat!("mov {stride}, qword ptr [{places} + 16 * ", $sum, " + 8]"),
                        concat!("tilestored [{place} + {stride} * 1], tmm", $sum),
                    )*
                    slice = in(reg) block.stride,
                    accumulate = in(reg) u32::from(block.accumulate),
                    places = in(reg) block.places.as_ptr(),
                    a0 = inout(reg) a0 => _,
                    a1 = inout(reg) a1 => _,
                    b0 = inout(reg) b0 => _,
                    b1 = inout(reg) b1 => _,
                    steps = inout(reg) block.steps => _,
                    place = out(reg) _,
                    stride = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

microkernel!(multiply_2x2, sums: [0 1 2 3], step: [
    "tileloadd tmm4, [{a0} + {stride} * 1]"
    "tileloadd tmm6, [{b0} + {stride} * 1]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm7, [{b1} + {stride} * 1]"
    "tdpbf16ps tmm1, tmm4, tmm7"
    "tileloadd tmm5, [{a1} + {stride} * 1]"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm3, tmm5, tmm7"
]);

microkernel!(multiply_1x2, sums: [0 1], step: [
    "tileloadd tmm4, [{a0} + {stride} * 1]"
    "tileloadd tmm6, [{b0} + {stride} * 1]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm7, [{b1} + {stride} * 1]"
    "tdpbf16ps tmm1, tmm4, tmm7"
]);

microkernel!(multiply_2x1, sums: [0 2], step: [
    "tileloadd tmm6, [{b0} + {stride} * 1]"
    "tileloadd tmm4, [{a0} + {stride} * 1]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{a1} + {stride} * 1]"
    "tdpbf16ps tmm2, tmm5, tmm6"
]);

microkernel!(multiply_1x1, sums: [0], step: [
    "tileloadd tmm4, [{a0} + {stride} * 1]"
    "tileloadd tmm6, [{b0} + {stride} * 1]"
    "tdpbf16ps tmm0, tmm4, tmm6"
]);
