//! Products on a GPU: `kernels/gemm_fma.cu` for f32, `kernels/gemm.cu` for bf16 on tensor cores, which
//! rounds f32 operands on their way into shared memory. Tiles and splits follow from the shapes
//! alone, and so do the bits.

use super::{Products, hopper};
use crate::device::Target;
use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::gemm::{Precision, Spec, Transpose};
use crate::ops::Activation;

/// Blocks below which larger tiles leave multiprocessors idle, or K is worth splitting: those of
/// a large GPU.
const ENOUGH: usize = 128;
/// Terms of a part of a split K at least.
const PART: usize = 256;

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

/// Appends a product of one pair of matrices. Nothing for several, for both transposed, and for
/// f32 split in three.
pub(in crate::ops) fn product(
    launches: &mut Launches,
    target: Target,
    products: Products,
    operands: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    product_of("f32", launches, target, products, operands, epilogue)
}

/// A product of matrices that lie in memory as bf16, with an f32 result: inputs 0 and 1, output 0. Not
/// recorded by any operation; for `bench gemm --operands bf16`.
pub fn of_bf16(target: Target, spec: Spec) -> Option<Launches> {
    let mut launches = Launches::new();
    let (products, operands) = (Products { batches: 1, spec }, [Place::Input(0), Place::Input(1)]);
    let epilogue = Epilogue::to(Place::Output(0));
    product_of("bf16", &mut launches, target, products, operands, &epilogue)?;
    Some(launches)
}

/// As [`product`], of operands of that type.
fn product_of(
    element: &str,
    launches: &mut Launches,
    target: Target,
    products: Products,
    [a, b]: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    if target.capability < (8, 0) && products.spec.precision != Precision::F32 {
        // Tensor cores for bf16 came with 8.0.
        return None;
    }
    if hopper::product(launches, target, products, [a, b], epilogue).is_some() {
        return Some(());
    }
    let Products { batches, spec } = products;
    let Spec { m, n, k, .. } = spec;
    let layout = match (spec.a, spec.b) {
        (Transpose::No, Transpose::No) => "nn",
        (Transpose::No, Transpose::Yes) => "nt",
        (Transpose::Yes, Transpose::No) => "tn",
        (Transpose::Yes, Transpose::Yes) => return None,
    };
    if batches != 1 {
        return None;
    }
    let blocks = |tile: usize| m.div_ceil(tile) * n.div_ceil(tile);
    let tile = if blocks(128) >= ENOUGH { 128 } else { 64 };
    let (module, name, block, shared) = match spec.precision {
        Precision::F32 => ("gemm_fma", format!("gemm_fma_f32_{layout}_{tile}"), 256, 0),
        Precision::Bf16 => {
            ("gemm", format!("gemm_mma_{element}_{layout}_{tile}"), tile as u32 * 2, tile as u32 * 480)
        }
        Precision::F32Split => return None,
    };
    let parts = (ENOUGH / blocks(tile).max(1)).min(k / PART).max(1);
    // The kernel takes 32 of k at a time.
    let per_part = k.div_ceil(parts).next_multiple_of(32).max(32);
    let parts = k.div_ceil(per_part).max(1);
    let partials = if parts > 1 { launches.scratch(parts * m * n) } else { Place::Null };
    let number = |count: usize| u32::try_from(count).ok();
    let lda = if spec.a == Transpose::Yes { m } else { k };
    let ldb = if spec.b == Transpose::Yes { k } else { n };
    let mut members: Vec<Argument> = vec![a.into(), b.into(), partials.into()];
    for extent in [m, n, k, lda, ldb, per_part] {
        members.push(number(extent)?.into());
    }
    members.push(epilogue.argument(spec.accumulate));
    launches.kernel(
        Kernel::new(module, name)
            .grid([n.div_ceil(tile), m.div_ceil(tile), parts])
            .block(block)
            .shared(shared)
            .with(Argument::Struct(members)),
    );
    add_parts(launches, partials, [parts, m, n], epilogue, spec.accumulate)
}

/// Appends the sum of the parts of a split K, if there are several.
pub(super) fn add_parts(
    launches: &mut Launches,
    partials: Place,
    [parts, m, n]: [usize; 3],
    epilogue: &Epilogue,
    accumulate: bool,
) -> Option<()> {
    let number = |count: usize| u32::try_from(count).ok();
    if parts > 1 {
        launches.kernel(
            Kernel::new("gemm_fma", "gemm_sum")
                .grid([(m * n).div_ceil(256), 1, 1])
                .with(partials)
                .with(number(parts)?)
                .with(number(m)?)
                .with(number(n)?)
                .with(epilogue.argument(accumulate)),
        );
    }
    Some(())
}
