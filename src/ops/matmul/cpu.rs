//! `matmul` on the CPU: the chunks of the matrix engine's plan.
#![allow(unsafe_code)]

use super::Products;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Chunk, Launch, rows_per_chunk};
use crate::gemm::{ALIGNMENT, Address, Block, Epilogue, Operands, Plan, Spec};
use crate::ops::activation_backward::cpu::{gelu, relu, silu, tanh};
use crate::ops::{Activation, Site};
use crate::tensor::DType;
use half::bf16;
use std::sync::Arc;

/// From so many products on, each is done by one thread: enough chunks to divide, and scratch for
/// those in work only.
const MANY: usize = 16;
/// FLOPs a nanosecond of one thread, for the size of chunks.
const FLOPS: f64 = 40.0;

/// What is done to each finished block of C, with what else the node has.
pub(in crate::ops) type Finish = Arc<dyn Fn(&Around<'_>, Block) + Send + Sync>;

/// The tensors of a node beside A, B and C.
pub(in crate::ops) struct Around<'a> {
    /// One value for each column of C.
    pub bias: Option<&'a [f32]>,
    /// As long as C: what the derivative of an activation is taken of.
    pub saved: Option<&'a [f32]>,
    /// Output 1, as long as C; null if nobody reads it or if it is C.
    pub second: *mut f32,
}

// SAFETY: the pointer is followed only where blocks of C are finished, and blocks do not overlap.
unsafe impl Sync for Around<'_> {}

/// Which inputs there are beside A and B.
#[derive(Clone, Copy, Default)]
pub(in crate::ops) struct Others {
    /// One value for each column of C.
    pub bias: Option<usize>,
    /// B, packed for this product, to be read instead of B.
    pub packed: Option<usize>,
    /// As long as C: what the derivative of an activation is taken of.
    pub saved: Option<usize>,
}

/// The launch of `products`; C is output `c`.
pub(in crate::ops) fn launch(
    site: &Site<'_>,
    Products { batches, spec }: Products,
    c: usize,
    others: Others,
    finish: Option<Finish>,
) -> Launch {
    let isa = site.isa;
    let plan = match batches {
        MANY.. => Plan::single(isa, spec, false, others.packed.is_some()),
        _ => Plan::new(isa, spec, false, others.packed.is_some()),
    };
    if let Some(packed) = others.packed {
        let (found, layout) = (&site.inputs[packed], plan.packed_b());
        let fits = found.dtype == layout.element && found.elements() == layout.len();
        assert!(fits && batches == 1, "a packed B of {found} for {layout:?}");
    }
    let launch = Launch::new(plan.engine());
    if batches * plan.tiles() == 0 {
        return launch.rows(0, 1, |_| {});
    }
    let job = Job {
        others,
        has_second: c == 0 && site.used.get(1) == Some(&true),
        scratch: plan.scratch_len().next_multiple_of(ALIGNMENT),
        plan,
        c,
        finish,
    };
    let (packs, tiles) = (job.plan.pack_chunks(), job.plan.tiles());
    let (reduces, scratch) = (job.plan.reduce_chunks(), job.scratch);
    if tiles == 1 {
        let per_chunk = rows_per_chunk(spec.flops() as f64 / FLOPS + 100.0);
        return launch.rows_with_partials(batches, per_chunk, scratch, move |chunk| {
            let partials = chunk.partials().as_mut_ptr();
            for batch in chunk.row_range() {
                let operands = job.operands(chunk, batch, partials);
                job.finishing(chunk, batch, |hook| {
                    // SAFETY: `operands` says why the addresses hold. C of each batch and the
                    // partial results belong to this chunk alone; all phases run here, in order.
                    unsafe { job.plan.run(&operands, hook) }
                });
            }
        });
    }
    let job = Arc::new(job);
    let (pack, tile, reduce) = (Arc::clone(&job), Arc::clone(&job), job);
    let mut launch = launch.scratch(batches * scratch);
    if packs > 0 {
        launch = launch.tiles(batches * packs, move |chunk| {
            let (part, operands) = pack.part(chunk, packs);
            // SAFETY: `operands` says why the addresses hold; C and this batch's part of the
            // scratch are touched by this product only, a launch runs its phases in order with a
            // barrier between them, and each chunk of a phase once.
            unsafe { pack.plan.pack(part, &operands) };
        });
    }
    launch = launch.tiles(batches * tiles, move |chunk| {
        let (part, operands) = tile.part(chunk, tiles);
        // SAFETY: as for the first phase.
        tile.finishing(chunk, chunk.index() / tiles, |hook| unsafe { tile.plan.tile(part, &operands, hook) });
    });
    if reduces > 0 {
        launch = launch.tiles(batches * reduces, move |chunk| {
            let (part, operands) = reduce.part(chunk, reduces);
            // SAFETY: as for the first phase.
            reduce.finishing(chunk, chunk.index() / reduces, |hook| unsafe { reduce.plan.reduce(part, &operands, hook) });
        });
    }
    launch
}

/// What is done to each finished block of a product that ends with a mask.
pub(super) fn masking(site: &Site<'_>, mask: Activation) -> Option<Finish> {
    let isa = site.isa;
    (mask != Activation::None).then(|| -> Finish {
        Arc::new(move |around, block| dispatch(isa, Masking { around, block, mask }))
    })
}

/// `c = c act'(saved)` for one block of C.
struct Masking<'a> {
    around: &'a Around<'a>,
    block: Block,
    mask: Activation,
}

impl Kernel for Masking<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.mask {
            Activation::None => {}
            Activation::Relu => mask(s, self, #[inline(always)] |s, c, y| relu(s, c, y)),
            Activation::Gelu => mask(s, self, #[inline(always)] |s, c, z| gelu(s, c, z)),
            Activation::Tanh => mask(s, self, #[inline(always)] |s, c, y| tanh(s, c, y)),
            Activation::Silu => mask(s, self, #[inline(always)] |s, c, z| silu(s, c, z)),
        }
    }
}

#[inline(always)]
fn mask<S: Simd>(s: S, this: Masking<'_>, f: impl Fn(S, S::F32, S::F32) -> S::F32) {
    let Masking { around, block, .. } = this;
    // C is dense: `Job::operands` gives its columns as the distance of its rows.
    let saved = around.saved.expect("a product with a mask has what it is taken of");
    let first = block.row * block.ldc + block.col;
    let end = (block.rows - 1) * block.ldc + block.cols;
    let saved = saved[first..first + end].as_ptr();
    for i in 0..block.rows {
        for j in (0..block.cols).step_by(S::LANES) {
            let (at, width) = (i * block.ldc + j, S::LANES.min(block.cols - j));
            // SAFETY: the plan calls this as its epilogue: the block is ours to read and write,
            // i < rows and j + width <= cols; the slice above has as many elements.
            unsafe {
                let (c, saved) = (block.c.add(at), saved.add(at));
                if width == S::LANES {
                    s.store(c, f(s, s.load(c), s.load(saved)));
                } else {
                    let value = s.load_partial(c, width, 0.0);
                    s.store_partial(c, width, f(s, value, s.load_partial(saved, width, 0.0)));
                }
            }
        }
    }
}

/// A plan with what its chunks need to know.
struct Job {
    plan: Plan,
    /// Elements of scratch of one product.
    scratch: usize,
    c: usize,
    others: Others,
    has_second: bool,
    finish: Option<Finish>,
}

impl Job {
    /// Calls `run` with the epilogue of this node for product `batch`.
    fn finishing(&self, chunk: &Chunk<'_>, batch: usize, run: impl FnOnce(Epilogue<'_>)) {
        let Some(finish) = &self.finish else { return run(None) };
        let second = if self.has_second {
            assert_eq!(chunk.output_len(1), chunk.output_len(0), "outputs are alike");
            chunk.output_ptr(1)
        } else {
            std::ptr::null_mut()
        };
        let one = self.plan.spec().m * self.plan.spec().n;
        let saved = self.others.saved.map(|i| &chunk.input(i)[batch * one..][..one]);
        let around = Around { bias: self.others.bias.map(|i| chunk.input(i)), saved, second };
        run(Some(&|block| finish(&around, block)));
    }

    /// The part of a product that a chunk does, of `per_batch` parts, and the product's addresses.
    fn part(&self, chunk: &Chunk<'_>, per_batch: usize) -> (usize, Operands) {
        let (batch, part) = (chunk.index() / per_batch, chunk.index() % per_batch);
        // SAFETY: `launch` asked for `scratch` elements for every batch.
        let scratch = unsafe { chunk.scratch_ptr().add(batch * self.scratch) };
        (part, self.operands(chunk, batch, scratch))
    }

    /// The addresses of product `batch`: dense matrices that lie one after another. The slices and
    /// the assertion make sure that they are as long as the product's shape says.
    fn operands(&self, chunk: &Chunk<'_>, batch: usize, scratch: *mut f32) -> Operands {
        let spec = self.plan.spec();
        let Spec { m, n, k, .. } = *spec;
        let a = chunk.input::<f32>(0);
        let b = match self.others.packed {
            Some(packed) if self.plan.packed_b().element == DType::Bf16 => {
                Address::Bf16(chunk.input::<bf16>(packed).as_ptr())
            }
            Some(packed) => Address::F32(chunk.input::<f32>(packed).as_ptr()),
            None => Address::F32(chunk.input::<f32>(1)[batch * k * n..][..k * n].as_ptr()),
        };
        assert!((batch + 1) * m * n <= chunk.output_len(self.c), "C is too short");
        Operands {
            a: Address::F32(a[batch * m * k..][..m * k].as_ptr()),
            lda: spec.a_shape().1,
            b,
            ldb: spec.b_shape().1,
            // SAFETY: the assertion above keeps the matrix within the output.
            c: unsafe { chunk.output_ptr::<f32>(self.c).add(batch * m * n) },
            ldc: n,
            scratch,
        }
    }
}
