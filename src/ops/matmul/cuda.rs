//! Products on a GPU: `kernels/gemm_fma.cu` for f32, `kernels/gemm.cu` for bf16 on tensor cores, which
//! rounds f32 operands where it reads them, and Hopper's own where they pay. Tiles and splits follow from the
//! shapes alone, and so do the bits. `f32_split` is what it is on a CPU without AMX: f32.

use super::{Products, hopper};
use crate::device::Target;
use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::gemm::{Precision, Spec, Transpose};
use crate::ops::Activation;

/// What is done with the sums; `Place::Null` where there is none.
pub(in crate::ops) struct Epilogue {
    /// `[n]`, added to each row.
    pub(in crate::ops) bias: Place,
    /// Applied to the sums.
    pub(in crate::ops) activation: Activation,
    /// Of the activation, written.
    pub(in crate::ops) argument: Place,
    /// What the derivative of `mask` is taken of, which multiplies the sums.
    pub(in crate::ops) saved: Place,
    pub(in crate::ops) mask: Activation,
    /// The result.
    pub(in crate::ops) y: Place,
}

impl Epilogue {
    /// The sums as they are.
    pub(in crate::ops) fn to(y: Place) -> Epilogue {
        let (activation, mask) = (Activation::None, Activation::None);
        let none = Place::Null;
        Epilogue { bias: none, activation, argument: none, saved: none, mask, y }
    }

    /// Whether the sums are the result.
    pub(super) fn is_plain(&self) -> bool {
        let Epilogue { bias, activation, argument, saved, .. } = self;
        let nothing = [bias, argument, saved].iter().all(|&&place| place == Place::Null);
        nothing && *activation == Activation::None
    }

    /// As `Epilogue` of `kernels/common/epilogue.cuh`; `accumulate` adds to what is there.
    pub(super) fn argument(&self, accumulate: bool) -> Argument {
        let activation = |activation| match activation {
            Activation::None => 0u32,
            Activation::Relu => 1,
            Activation::Gelu => 2,
            Activation::Tanh => 3,
            Activation::Silu => 4,
        };
        Argument::Struct(vec![
            self.bias.into(),
            self.saved.into(),
            self.argument.into(),
            self.y.into(),
            Place::Null.into(),
            activation(self.activation).into(),
            activation(self.mask).into(),
            u32::from(accumulate).into(),
            // Unused.
            0u32.into(),
        ])
    }
}

/// How a product is cut: into tiles, and its sum into parts. A function of shapes and precision alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Rows and columns of a tile.
    tile: usize,
    parts: usize,
    /// Terms of each part but the last.
    per_part: usize,
    /// Tiles of all products.
    tiles: usize,
}

impl Cut {
    /// The one that takes the fewest clocks by counting, on a large GPU (H100): what one multiprocessor
    /// fetches from L2, what all fetch, and what is multiplied. A sum of parts costs a launch, so it
    /// must save more than that.
    fn new(Products { batches, spec }: Products) -> Cut {
        const MULTIPROCESSORS: f64 = 132.0;
        // Bytes a clock from L2: to one multiprocessor, and to all.
        const ONE: f64 = 64.0;
        const ALL: f64 = 3500.0;
        const LAUNCH: f64 = 3000.0;
        let Spec { m, n, k, .. } = spec;
        let mut best: Option<(f64, Cut)> = None;
        // Multiply-adds a clock of one multiprocessor.
        let engines = match spec.precision {
            Precision::Bf16 => [(128, 1024.0), (64, 1024.0), (32, 512.0)],
            Precision::F32 | Precision::F32Split => [(128, 110.0), (64, 110.0), (32, 70.0)],
        };
        for (tile, rate) in engines {
            let tiles = batches.saturating_mul(m.div_ceil(tile)).saturating_mul(n.div_ceil(tile));
            for wanted in [1, 2, 4, 8, 16, 32, 64] {
                // As much as is in shared memory at once.
                let per_part = k.div_ceil(wanted).next_multiple_of(64).max(64);
                let parts = k.div_ceil(per_part).max(1);
                let (blocks, terms) = (tiles as f64 * parts as f64, per_part.min(k) as f64);
                let side = tile as f64;
                let bytes = 2.0 * side * terms * 4.0;
                let own = (blocks / MULTIPROCESSORS).ceil() * (bytes / ONE).max(side * side * terms / rate);
                let mut clocks = own.max(blocks * bytes / ALL);
                if parts > 1 {
                    let result = batches as f64 * m as f64 * n as f64 * 4.0;
                    clocks += LAUNCH + 2.0 * parts as f64 * result / ALL;
                }
                if best.is_none_or(|(least, _)| clocks < least) {
                    best = Some((clocks, Cut { tile, parts, per_part, tiles }));
                }
            }
        }
        best.map_or(Cut { tile: 64, parts: 1, per_part: 64, tiles: 0 }, |(_, cut)| cut)
    }

    /// Threads of a block, and bytes of its shared memory: a ring of stages of both operands, which the sums
    /// of all groups of threads take over. As `kernels/common/product.cuh` has it.
    fn block(&self, engine: &Engine, element: &str) -> (u32, u32) {
        let tile = self.tile;
        let (threads, groups) = match (engine.name, tile) {
            ("mma", 32) => (128, 4),
            ("mma", 64) => (256, 2),
            (_, 32 | 64) => (256, 4),
            _ => (256, 1),
        };
        let part = match element {
            "bf16" => 2 * [64 * (32 + 8), 64 * (32 + 8), 128 * (32 + 8)][tile / 64],
            _ => 4 * tile * ([64, 32, 16][tile / 64] + 8),
        };
        let rows = if engine.stages == 2 && tile > 32 { tile / 2 } else { tile };
        let sums = 4 * groups * rows * (tile + 8);
        (threads, (engine.stages * 2 * part).max(sums) as u32)
    }
}

/// A set of kernels.
struct Engine {
    module: &'static str,
    name: &'static str,
    /// Of the ring in shared memory.
    stages: usize,
}

impl Engine {
    /// Nothing where the device has none: tensor cores for bf16 came with Ampere, as asynchronous
    /// copies did.
    fn of(target: Target, precision: Precision) -> Option<Engine> {
        let turing = target.capability < (8, 0);
        Some(match precision {
            Precision::Bf16 if turing => return None,
            Precision::Bf16 => Engine { module: "gemm", name: "mma", stages: 3 },
            _ if turing => Engine { module: "gemm_fma_turing", name: "fma_turing", stages: 2 },
            _ => Engine { module: "gemm_fma", name: "fma", stages: 3 },
        })
    }
}

/// Appends products, which end in `epilogue`. Nothing where an extent is 2^31 or more, or the device does not
/// have that precision.
pub(in crate::ops) fn product(
    launches: &mut Launches,
    target: Target,
    products: Products,
    operands: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    if hopper::product(launches, target, products, operands, epilogue).is_some() {
        return Some(());
    }
    let Products { batches, spec } = products;
    let cut = Cut::new(products);
    let argument = epilogue.argument(spec.accumulate);
    let partials = tiles(launches, target, "f32", products, cut, operands, argument, None)?;
    add_parts(launches, partials, [cut.parts, batches * spec.m, spec.n], epilogue, spec.accumulate)
}

/// A product of matrices that lie in memory as bf16, with an f32 result: inputs 0 and 1, output 0. Not
/// recorded by any operation; for `bench gemm --operands bf16`. Not by Hopper's own kernel, which here
/// converts f32.
pub fn of_bf16(target: Target, spec: Spec) -> Option<Launches> {
    if spec.precision != Precision::Bf16 {
        return None;
    }
    let mut launches = Launches::new();
    let (products, operands) = (Products { batches: 1, spec }, [Place::Input(0), Place::Input(1)]);
    let (cut, epilogue) = (Cut::new(products), Epilogue::to(Place::Output(0)));
    if hopper::product_of_bf16(&mut launches, target, spec, operands, &epilogue).is_some() {
        return Some(launches);
    }
    let argument = epilogue.argument(spec.accumulate);
    let partials = tiles(&mut launches, target, "bf16", products, cut, operands, argument, None)?;
    add_parts(&mut launches, partials, [cut.parts, spec.m, spec.n], &epilogue, spec.accumulate)?;
    Some(launches)
}

/// Appends the sum of partial products `[parts] [m] [n]` in order, with the epilogue, if there are several.
pub(super) fn add_parts(
    launches: &mut Launches,
    partials: Place,
    [parts, m, n]: [usize; 3],
    epilogue: &Epilogue,
    accumulate: bool,
) -> Option<()> {
    if parts > 1 {
        let size = m * n;
        launches.kernel(
            Kernel::new("gemm_sum", "gemm_sum")
                .grid([size.div_ceil(SUMMED), 1, 1])
                .with(partials)
                .with(number(parts)?)
                .with(number(n)?)
                .with(size as u64)
                .with(epilogue.argument(accumulate)),
        );
    }
    Some(())
}

/// Elements that a block of `gemm_sum` adds.
const SUMMED: usize = 1024;

/// Blocks that leave sums for the statistics where `spec` goes into an update. Nothing where another kernel
/// multiplies, which has no such end.
pub(in crate::ops) fn blocks_of_update(target: Target, spec: Spec) -> Option<usize> {
    let products = Products { batches: 1, spec };
    if hopper::takes(target, products) {
        return None;
    }
    let cut = Cut::new(products);
    Some(if cut.parts > 1 { (spec.m * spec.n).div_ceil(SUMMED) } else { cut.tiles })
}

/// Appends `a^T b` and, with the result as gradient, the step that `update` says (`Update` of
/// `kernels/common/update.cuh`): elements as those of [`product`], bit for bit.
pub(in crate::ops) fn product_with_update(
    launches: &mut Launches,
    target: Target,
    spec: Spec,
    operands: [Place; 2],
    update: Argument,
) -> Option<()> {
    let products = Products { batches: 1, spec };
    let cut = Cut::new(products);
    let epilogue = Epilogue::to(Place::Null).argument(false);
    // Parts of a sum are those of a plain product.
    let of_tiles = (cut.parts == 1).then(|| update.clone());
    let partials = tiles(launches, target, "f32", products, cut, operands, epilogue, of_tiles)?;
    if cut.parts > 1 {
        let size = spec.m * spec.n;
        launches.kernel(
            Kernel::new("gemm_sum", "gemm_sum_update")
                .grid([size.div_ceil(SUMMED), 1, 1])
                .with(partials)
                .with(number(cut.parts)?)
                .with(size as u64)
                .with(update),
        );
    }
    Some(())
}

fn layout(spec: Spec) -> &'static str {
    match (spec.a, spec.b) {
        (Transpose::No, Transpose::No) => "nn",
        (Transpose::No, Transpose::Yes) => "nt",
        (Transpose::Yes, Transpose::No) => "tn",
        (Transpose::Yes, Transpose::Yes) => "tt",
    }
}

/// Appends the kernel that multiplies; gives the partial products of a sum in parts, else null. `element` is the type
/// of the operands in memory.
#[expect(clippy::too_many_arguments)]
fn tiles(
    launches: &mut Launches,
    target: Target,
    element: &str,
    Products { batches, spec }: Products,
    cut: Cut,
    [a, b]: [Place; 2],
    epilogue: Argument,
    update: Option<Argument>,
) -> Option<Place> {
    let Spec { m, n, k, .. } = spec;
    let engine = Engine::of(target, spec.precision)?;
    let Cut { tile, parts, per_part, tiles } = cut;
    let partials =
        if parts > 1 { launches.scratch(parts * batches * m * n) } else { Place::Null };
    let mut members: Vec<Argument> = vec![a.into(), b.into(), partials.into()];
    for extent in [m, n, k, spec.a_shape().1, spec.b_shape().1, per_part, parts, batches] {
        members.push(number(extent)?.into());
    }
    members.push(epilogue);
    let end = if update.is_some() { "_update" } else { "" };
    let (threads, shared) = cut.block(&engine, element);
    let module = if element == "bf16" { "gemm_bf16" } else { engine.module };
    let name = format!("gemm_{}_{element}_{}_{tile}{end}", engine.name, layout(spec));
    let kernel = Kernel::new(module, name)
        .grid([tiles * parts, 1, 1])
        .block(threads)
        .shared(shared)
        .with(Argument::Struct(members));
    launches.kernel(match update {
        Some(update) => kernel.with(update),
        None => kernel,
    });
    Some(partials)
}

/// As kernels take extents.
fn number(extent: usize) -> Option<u32> {
    u32::try_from(extent).ok().filter(|&extent| extent < 1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of small nets: enough blocks, and no sum in parts where it would cost more than it saves.
    #[test]
    fn small_products_fill_a_large_gpu() {
        let cut = |[m, n, k]: [usize; 3], precision| {
            let spec = Spec::new(m, n, k).in_precision(precision);
            let Cut { tile, parts, tiles, .. } = Cut::new(Products { batches: 1, spec });
            (tile, parts, tiles * parts)
        };
        // mlp: 784-512-512-10 at batch 128. Forward, dX, dW.
        for (size, bf16, f32) in [
            ([128, 512, 784], (32, 1, 64), (64, 7, 112)),
            ([128, 512, 512], (32, 1, 64), (64, 8, 128)),
            ([128, 10, 512], (32, 1, 4), (32, 8, 32)),
            ([128, 512, 10], (32, 1, 64), (32, 1, 64)),
            ([784, 512, 128], (64, 1, 104), (64, 1, 104)),
            ([512, 512, 128], (64, 1, 64), (32, 1, 256)),
            ([512, 10, 128], (32, 1, 16), (32, 1, 16)),
            // mlp64.
            ([128, 64, 64], (32, 1, 8), (32, 1, 8)),
            // A long sum of a small result; large products.
            ([64, 64, 8192], (64, 64, 64), (32, 32, 128)),
            ([1024, 1024, 1024], (128, 1, 64), (64, 1, 256)),
            ([4096, 4096, 4096], (128, 1, 1024), (128, 1, 1024)),
        ] {
            assert_eq!(cut(size, Precision::Bf16), bf16, "{size:?} in bf16");
            assert_eq!(cut(size, Precision::F32), f32, "{size:?} in f32");
            assert_eq!(cut(size, Precision::F32Split), f32, "{size:?} in f32_split");
        }
        assert_eq!(cut([0, 5, 5], Precision::F32).2, 0);
        assert_eq!(cut([5, 5, 0], Precision::F32).1, 1);
    }

    #[test]
    fn kernels_follow_from_the_device() {
        let kernels = |capability, precision| {
            let target = Target { capability, multiprocessors: 40 };
            let products = Products { batches: 1, spec: Spec::new(8, 8, 8).in_precision(precision) };
            let operands = [Place::Input(0), Place::Input(1)];
            let mut launches = Launches::new();
            product(&mut launches, target, products, operands, &Epilogue::to(Place::Output(0)))?;
            Some(launches.name())
        };
        assert_eq!(kernels((7, 5), Precision::F32), Some("gemm_fma_turing"));
        assert_eq!(kernels((8, 6), Precision::F32), Some("gemm_fma"));
        assert_eq!(kernels((9, 0), Precision::Bf16), Some("gemm"));
        assert_eq!(kernels((7, 5), Precision::Bf16), None);
    }

    #[test]
    fn extents_that_kernels_do_not_count_are_refused() {
        let product = |m, n| {
            let products = Products { batches: 1, spec: Spec::new(m, n, 1) };
            let operands = [Place::Input(0), Place::Input(1)];
            let mut launches = Launches::new();
            let target = Target { capability: (8, 0), multiprocessors: 108 };
            product(&mut launches, target, products, operands, &Epilogue::to(Place::Output(0)))
        };
        assert_eq!(product(1 << 31, 1), None);
        assert_eq!(product(1, 1 << 31), None);
        // More elements than fit into 32 bits, and more rows of tiles than blocks along y.
        assert_eq!(product(1 << 17, 1 << 17), Some(()));
        assert_eq!(product((1 << 31) - 1, 1), Some(()));
    }
}
