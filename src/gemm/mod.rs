//! The CPU matrix engine: C\[m, n\] (+)= op(A)\[m, k\] · op(B)\[k, n\], row-major with explicit row
//! strides; C is f32, A and B are f32 or bf16.
//!
//! [`Precision`] says how it multiplies. Under `F32` all is IEEE f32. Under `Bf16` operands are
//! rounded to bf16 where they are packed, products are exact and sums are f32: `tdpbf16ps` or
//! `vdpbf16ps` where the processor has them, fused multiply-adds of widened values elsewhere.
//!
//! A [`Plan`] does not start threads. It says into how many independent chunks each of three phases
//! falls, and runs one chunk when it is told to; whoever owns the threads puts a barrier between
//! the phases:
//! 1. `pack`: operands are brought into panels in shared scratch memory, once for all tiles (no
//!    chunks when nothing is packed);
//! 2. `tile`: each chunk computes one block of C, or, when K is split, one block of a partial sum
//!    in scratch;
//! 3. `reduce`: sums the partial products in order (no chunks unless K is split).
//!
//! The number of chunks depends on the shapes, the instruction set and the size of L2 alone, the
//! order of every sum on shapes and instruction set: never on threads or timing. So a plan gives the
//! same bits however its chunks are distributed, and cuts between rows and columns change none. The
//! [`Epilogue`] sees every element of C exactly once, when it is final and still in cache.
//!
//! Method: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
//! 34(3), 2008; the loops are in `driver.rs`.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod blocking;
mod choice;
mod driver;
mod engine;
mod gram;
mod layout;
mod plan;
mod portable;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod probe;
mod rounded;
mod stored;
#[cfg(test)]
mod tests;

pub use choice::{Choice, ceiling, choose};
pub use gram::gram;
pub use layout::{PackedLayout, PackedWeight, PackedWeights, WEIGHT_BAND};
pub use plan::Plan;
pub use stored::launch;

use crate::device::cpu::Isa;
use crate::tensor::DType;
use engine::{Engine, with_kernel};
use half::bf16;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How products are computed. Sums, and C, are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE f32.
    #[default]
    F32,
    /// f32 operands as sums of three bf16 parts, where the processor multiplies tiles of bf16 (AMX).
    /// In sums of eight or more products of like size its error is no larger than that of `F32`;
    /// where single products make a sum, it is up to a quarter larger. What is not finite gives NaN.
    /// Elsewhere the same as `F32`.
    #[serde(rename = "f32_split")]
    F32Split,
    /// Operands are rounded to bf16, to nearest even; subnormal numbers count as zero where the
    /// processor's bf16 instructions treat them so.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::F32Split => "f32_split",
            Precision::Bf16 => "bf16",
        })
    }
}

/// How an operand is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transpose {
    /// Stored as it is used: A as \[m, k\], B as \[k, n\].
    No,
    /// Stored transposed: A as \[k, m\], B as \[n, k\].
    Yes,
}

/// The product to compute: C\[m, n\] (+)= op(A)\[m, k\] · op(B)\[k, n\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Rows of op(A) and C.
    pub m: usize,
    /// Columns of op(B) and C.
    pub n: usize,
    /// Columns of op(A) and rows of op(B). With `k == 0` the product is zero.
    pub k: usize,
    /// Storage of A.
    pub a: Transpose,
    /// Storage of B.
    pub b: Transpose,
    /// Whether the product is added to what C holds; otherwise C is written without being read.
    pub accumulate: bool,
    /// How it is computed.
    pub precision: Precision,
}

impl Spec {
    /// A product of untransposed operands that overwrites C.
    pub fn new(m: usize, n: usize, k: usize) -> Spec {
        let (a, b, precision) = (Transpose::No, Transpose::No, Precision::F32);
        Spec { m, n, k, a, b, accumulate: false, precision }
    }

    /// The same with A stored as \[k, m\].
    pub fn a_transposed(self) -> Spec {
        Spec { a: Transpose::Yes, ..self }
    }

    /// The same with B stored as \[n, k\].
    pub fn b_transposed(self) -> Spec {
        Spec { b: Transpose::Yes, ..self }
    }

    /// The same, added to what C holds.
    pub fn accumulating(self) -> Spec {
        Spec { accumulate: true, ..self }
    }

    /// The same in another precision.
    pub fn in_precision(self, precision: Precision) -> Spec {
        Spec { precision, ..self }
    }

    /// Floating-point operations: 2·m·n·k.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }

    /// Rows and columns of A as stored.
    pub fn a_shape(&self) -> (usize, usize) {
        match self.a {
            Transpose::No => (self.m, self.k),
            Transpose::Yes => (self.k, self.m),
        }
    }

    /// Rows and columns of B as stored.
    pub fn b_shape(&self) -> (usize, usize) {
        match self.b {
            Transpose::No => (self.k, self.n),
            Transpose::Yes => (self.n, self.k),
        }
    }
}

/// A block of C that is final but for the epilogue, with the rights to read and write it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// First row in C.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column in C.
    pub col: usize,
    /// Number of columns.
    pub cols: usize,
    /// Address of the element at (`row`, `col`).
    pub c: *mut f32,
    /// Distance between rows in elements.
    pub ldc: usize,
}

impl Block {
    /// Row `i` of the block (row `self.row + i` of C), its `cols` elements.
    ///
    /// # Safety
    /// The block came from a plan that is calling an epilogue right now, and no other reference to
    /// this row is alive.
    ///
    /// # Panics
    /// When `i` is not below `rows`.
    pub unsafe fn row_mut<'a>(&self, i: usize) -> &'a mut [f32] {
        assert!(i < self.rows, "row {i} of a block of {}", self.rows);
        // SAFETY: the assert above keeps the row inside the block, whose elements this call may
        // write (contract of the plan's caller).
        unsafe { std::slice::from_raw_parts_mut(self.c.add(i * self.ldc), self.cols) }
    }
}

/// Called once per finished block of C while it is in cache: bias, activation, mask, residual.
/// Blocks do not overlap and cover C. Called from whichever thread runs the chunk; which blocks
/// there are depends on the plan alone.
pub type Epilogue<'a> = Option<&'a (dyn Fn(Block) + Sync)>;

/// Called with the rows and columns of C that the microkernel is about to finish, so that what the
/// caller will use with them is under way from memory meanwhile. Some engines call it once a tile.
pub type Ahead<'a> = Option<&'a dyn Fn(std::ops::Range<usize>, std::ops::Range<usize>)>;

/// Where an operand lies, and what its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// f32, stored or packed.
    F32(*const f32),
    /// bf16, stored or packed; for [`Precision::Bf16`] only.
    Bf16(*const bf16),
}

impl Address {
    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Address::F32(_) => DType::F32,
            Address::Bf16(_) => DType::Bf16,
        }
    }

    /// The address of the element `count` places on.
    fn after(self, count: usize) -> Address {
        match self {
            Address::F32(at) => Address::F32(at.wrapping_add(count)),
            Address::Bf16(at) => Address::Bf16(at.wrapping_add(count)),
        }
    }

    /// The address of the element `count` places back.
    fn before(self, count: usize) -> Address {
        match self {
            Address::F32(at) => Address::F32(at.wrapping_sub(count)),
            Address::Bf16(at) => Address::Bf16(at.wrapping_sub(count)),
        }
    }

    /// As the elements that a kernel multiplies.
    fn cast<E>(self) -> *const E {
        match self {
            Address::F32(at) => at.cast(),
            Address::Bf16(at) => at.cast(),
        }
    }
}

/// Addresses of one product. For an operand that arrives packed, the row stride is not used.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// A as stored, or packed as [`Plan::packed_a`] says.
    pub a: Address,
    /// Distance between stored rows of A in elements.
    pub lda: usize,
    /// B as stored, or packed as [`Plan::packed_b`] says.
    pub b: Address,
    /// Distance between stored rows of B in elements.
    pub ldb: usize,
    /// C, row-major.
    pub c: *mut f32,
    /// Distance between rows of C in elements.
    pub ldc: usize,
    /// [`Plan::scratch_len`] elements, shared by all chunks; may dangle when that is 0. Aligned to
    /// 64 bytes for speed, not for soundness.
    pub scratch: *mut f32,
}

// SAFETY: addresses only; every access through them is an unsafe method whose contract covers
// threads.
unsafe impl Send for Operands {}
// SAFETY: as above.
unsafe impl Sync for Operands {}

/// Whether a product over so many terms may be cut along its sum: [`Plan::in_blocks`] would give up
/// threads there.
pub fn may_split(k: usize) -> bool {
    blocking::may_split(k)
}

/// A stored operand: elements and the distance between rows.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between stored rows in elements.
    pub stride: usize,
}

/// A stored result: elements and the distance between rows.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Distance between stored rows in elements.
    pub stride: usize,
}

/// Computes a product on this thread; allocates scratch. For tests and measurements: training holds
/// a [`Plan`].
///
/// # Panics
/// When a slice is too short for its shape and stride, a stride is shorter than a row, or this
/// machine lacks the instruction set.
pub fn gemm(
    isa: Isa,
    spec: Spec,
    a: View<'_>,
    b: View<'_>,
    c: ViewMut<'_>,
    epilogue: Epilogue<'_>,
) {
    check("A", spec.a_shape(), a.data.len(), a.stride);
    check("B", spec.b_shape(), b.data.len(), b.stride);
    check("C", (spec.m, spec.n), c.data.len(), c.stride);
    let plan = Plan::new(isa, spec, false, false);
    let mut scratch = vec![0f32; plan.scratch_len() + ALIGNMENT];
    let skip = scratch.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT);
    let operands = Operands {
        a: Address::F32(a.data.as_ptr()),
        lda: a.stride,
        b: Address::F32(b.data.as_ptr()),
        ldb: b.stride,
        c: c.data.as_mut_ptr(),
        ldc: c.stride,
        scratch: scratch[skip..].as_mut_ptr(),
    };
    // SAFETY: the checks above hold the lengths; the borrows keep others away; scratch has
    // `scratch_len` elements after `skip`.
    unsafe { plan.run(&operands, epilogue) }
}

/// f32 elements in the 64 bytes to which scratch should be aligned.
pub const ALIGNMENT: usize = 16;

/// f32 elements of scratch that a packed operand takes, to the next cache line.
fn in_scratch(layout: PackedLayout) -> usize {
    layout.bytes().div_ceil(size_of::<f32>()).next_multiple_of(ALIGNMENT)
}

fn check(name: &str, (rows, cols): (usize, usize), len: usize, stride: usize) {
    assert!(rows <= 1 || stride >= cols, "{name}: row stride {stride} of rows of {cols}");
    let end = |rows: usize| (rows - 1).checked_mul(stride)?.checked_add(cols);
    let fits = rows == 0 || cols == 0 || end(rows).is_some_and(|needed| len >= needed);
    assert!(
        fits,
        "{name}: {len} elements are too few for {rows} x {cols} with row stride {stride}"
    );
}
