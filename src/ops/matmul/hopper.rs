//! Products on Hopper's tensor cores: `kernels/gemm_sm90.cu`, for compute capability 9.0 and no other.
//!
//! Its operands are bf16 in memory. Those of today's tapes are f32, so they are converted into scratch memory first:
//! 6 bytes an element of both operands, read and written, which a large product makes up for.

use super::Products;
use super::cuda::{Epilogue, add_parts};
use crate::device::Target;
use crate::device::cuda::{Argument, Kernel, Launches, Place, Tiles};
use crate::gemm::{Precision, Spec, Transpose};
use crate::tensor::DType;

/// Dynamic shared memory of a block: the ring of 192 KiB, what stores go by, barriers, and the way to a multiple of 1024.
const SHARED: u32 = 230_656;
/// Rows of a tile, and of all boxes.
const ROWS: usize = 128;
const BOX: u32 = 64;
/// Tiles below which K is worth splitting. Not the device's number of multiprocessors: bits follow from it.
const ENOUGH: usize = 128;
/// Terms of a part of a split K at least.
const PART: usize = 1024;

/// How a product is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Columns of a tile.
    columns: usize,
    /// Blocks of a cluster: tiles one below the other, which share what is read of B.
    cluster: usize,
    /// All blocks.
    blocks: usize,
    /// Parts of K, and terms of each.
    parts: usize,
    per_part: usize,
}

/// Whether conversion and product take less time than the product that rounds on its way (`kernels/gemm.cu`). Nobody has
/// measured it yet: with 650 TFLOP/s here, 250 there, 2.5 TB/s of conversion and 3 us for its launch,
/// `2 m n k (1/250 - 1/650) / 1e12 > 6 k (m + n) / 2.5e12 + 3e-6`, that is `m n k > 490 k (m + n) + 6e8`.
fn pays(m: usize, n: usize, k: usize) -> bool {
    let [m, n, k] = [m, n, k].map(|extent| extent as f64);
    m * n * k > 490.0 * k * (m + n) + 6e8
}

impl Plan {
    fn new(m: usize, n: usize, k: usize, multiprocessors: usize) -> Plan {
        let rows = m.div_ceil(ROWS);
        let tiles = |columns: usize| rows * n.div_ceil(columns);
        let parts = (ENOUGH / tiles(128).max(1)).min(k / PART).max(1);
        let per_part = k.div_ceil(parts).next_multiple_of(64);
        let parts = k.div_ceil(per_part);
        // What follows changes no bits.
        let columns = if tiles(256) * parts >= multiprocessors { 256 } else { 128 };
        // A cluster of two computes an even number of rows of tiles.
        let cluster = if rows.is_multiple_of(2) || rows > 8 { 2 } else { 1 };
        let clusters = rows.div_ceil(cluster) * n.div_ceil(columns) * parts;
        let blocks = cluster * clusters.min((multiprocessors / cluster).max(1));
        Plan { columns, cluster, blocks, parts, per_part }
    }
}

/// A matrix of bf16 whose rows begin at multiples of 16 bytes.
struct Operand {
    place: Place,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl Operand {
    /// In scratch memory, to be converted.
    fn converted(launches: &mut Launches, rows: usize, columns: usize) -> Operand {
        let stride = columns.next_multiple_of(8);
        Operand { place: launches.scratch(rows * stride / 2), rows, columns, stride }
    }

    /// As it lies in memory, if its rows begin where they must.
    fn stored(place: Place, rows: usize, columns: usize) -> Option<Operand> {
        columns.is_multiple_of(8).then_some(Operand { place, rows, columns, stride: columns })
    }

    fn blocks(&self) -> usize {
        (self.rows * self.stride / 8).div_ceil(256)
    }

    /// As `Convert` of the kernel.
    fn argument(&self, from: Place) -> Option<Argument> {
        let mut members: Vec<Argument> = vec![from.into(), self.place.into()];
        for extent in [self.rows, self.columns, self.stride, self.blocks()] {
            members.push(u32::try_from(extent).ok()?.into());
        }
        Some(Argument::Struct(members))
    }

    fn tiles(&self) -> Argument {
        Argument::Tiles(Tiles {
            tensor: self.place,
            dtype: DType::Bf16,
            extents: vec![self.columns, self.rows],
            strides: vec![self.stride],
            rows: BOX,
        })
    }
}

/// Whether the device has these kernels, and they take these products and pay.
pub(super) fn takes(target: Target, Products { batches, spec }: Products) -> bool {
    let Spec { m, n, k, .. } = spec;
    let bf16 = spec.precision == Precision::Bf16 && !spec.accumulate && batches == 1;
    let both_transposed = (spec.a, spec.b) == (Transpose::Yes, Transpose::Yes);
    target.capability == (9, 0) && bf16 && !both_transposed && pays(m, n, k) && fits(spec)
}

/// Appends a product of one pair of f32 matrices, rounded to bf16, if the device has these kernels and they pay.
pub(super) fn product(
    launches: &mut Launches,
    target: Target,
    products: Products,
    operands: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    let spec = products.spec;
    if !takes(target, products) {
        return None;
    }
    let [a, b] = stored_extents(spec).map(|[rows, columns]| Operand::converted(launches, rows, columns));
    launches.kernel(
        Kernel::new("gemm_sm90", "gemm_sm90_convert")
            .grid([a.blocks() + b.blocks(), 1, 1])
            .with(a.argument(operands[0])?)
            .with(b.argument(operands[1])?),
    );
    multiply(launches, target, spec, &a, &b, epilogue)
}

/// The same of matrices that lie in memory as bf16, with rows of multiples of 8; from one full tile on.
pub(super) fn product_of_bf16(
    launches: &mut Launches,
    target: Target,
    spec: Spec,
    operands: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    let Spec { m, n, k, .. } = spec;
    let both = (spec.a, spec.b) == (Transpose::Yes, Transpose::Yes);
    if target.capability != (9, 0) || both || spec.accumulate || m.min(n) < ROWS || k < 64 || !fits(spec) {
        return None;
    }
    let [a, b] = stored_extents(spec);
    let a = Operand::stored(operands[0], a[0], a[1])?;
    let b = Operand::stored(operands[1], b[0], b[1])?;
    multiply(launches, target, spec, &a, &b, epilogue)
}

/// Whether all numbers that the kernels take fit.
fn fits(Spec { m, n, k, .. }: Spec) -> bool {
    [m, n, k, m * k / 8, k * n / 8].iter().all(|&extent| u32::try_from(extent + 2048).is_ok())
}

/// Rows and columns of both operands as they lie in memory.
fn stored_extents(spec: Spec) -> [[usize; 2]; 2] {
    let Spec { m, n, k, .. } = spec;
    let a = if spec.a == Transpose::Yes { [k, m] } else { [m, k] };
    let b = if spec.b == Transpose::Yes { [n, k] } else { [k, n] };
    [a, b]
}

fn multiply(
    launches: &mut Launches,
    target: Target,
    spec: Spec,
    a: &Operand,
    b: &Operand,
    epilogue: &Epilogue,
) -> Option<()> {
    let Spec { m, n, k, .. } = spec;
    let layout = match (spec.a, spec.b) {
        (Transpose::No, Transpose::No) => "nn",
        (Transpose::No, Transpose::Yes) => "nt",
        (Transpose::Yes, _) => "tn",
    };
    let number = |count: usize| u32::try_from(count).ok();
    let plan = Plan::new(m, n, k, target.multiprocessors);
    let split = plan.parts > 1;
    let partials = if split { launches.scratch(plan.parts * m * n) } else { Place::Null };
    let plain = epilogue.is_plain() && !spec.accumulate;
    let store_tiles = (split || plain) && n.is_multiple_of(4);
    let mut members: Vec<Argument> = vec![partials.into()];
    for extent in [m, n, k, plan.per_part, plan.parts, usize::from(store_tiles)] {
        members.push(number(extent)?.into());
    }
    members.push(epilogue.argument(spec.accumulate));
    let result = Tiles {
        tensor: match (store_tiles, split) {
            (false, _) => Place::Null,
            (true, true) => partials,
            (true, false) => epilogue.y,
        },
        dtype: DType::F32,
        extents: vec![n, m, plan.parts],
        strides: vec![n, m * n],
        rows: BOX,
    };
    launches.kernel(
        Kernel::new("gemm_sm90", format!("gemm_sm90_{layout}_{}", plan.columns))
            .grid([plan.blocks, 1, 1])
            .cluster([plan.cluster, 1, 1])
            .block(384)
            .shared(SHARED)
            .with(Argument::Struct(members))
            .with(a.tiles())
            .with(b.tiles())
            .with(Argument::Tiles(result)),
    );
    add_parts(launches, partials, [plan.parts, m, n], epilogue, spec.accumulate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_products_pay_and_small_ones_do_not() {
        assert!(pays(4096, 4096, 4096) && pays(2048, 2048, 2048) && pays(1536, 1536, 8192));
        // The nets of `bench step`, and a product that reads as much as it computes.
        assert!(!pays(128, 2048, 2048) && !pays(128, 512, 784) && !pays(1024, 1024, 1024));
        assert!(!pays(65_536, 256, 4096));
    }

    #[test]
    fn parts_of_k_follow_from_shapes_and_blocks_from_the_device() {
        for (m, n, k) in [(4096, 4096, 4096), (1100, 1100, 65_536), (2048, 1536, 8192), (300, 70, 9000)] {
            let plans = [132, 114, 16, 1].map(|multiprocessors| Plan::new(m, n, k, multiprocessors));
            for (plan, multiprocessors) in plans.iter().zip([132, 114, 16, 1]) {
                assert_eq!((plan.parts, plan.per_part), (plans[0].parts, plans[0].per_part));
                assert!(plan.blocks.is_multiple_of(plan.cluster) && plan.blocks > 0, "{plan:?}");
                assert!(plan.blocks <= multiprocessors.max(2), "{plan:?}");
                assert!(plan.per_part.is_multiple_of(64) && plan.parts * plan.per_part >= k);
                assert!((plan.parts - 1) * plan.per_part < k, "no part is empty: {plan:?}");
            }
        }
        let large = Plan::new(4096, 4096, 4096, 132);
        assert_eq!(large, Plan { columns: 256, cluster: 2, blocks: 132, parts: 1, per_part: 4096 });
        assert_eq!(Plan::new(1100, 1100, 65_536, 132).parts, 1, "81 tiles");
        assert_eq!(Plan::new(1024, 1024, 65_536, 132).parts, 2, "64 tiles");
        assert_eq!(Plan::new(300, 70, 9000, 132).cluster, 1, "three rows of tiles");
    }
}
