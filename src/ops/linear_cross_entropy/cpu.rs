//! `linear_cross_entropy` on the CPU: block after block of the logits, in one piece of scratch.
//!
//! The logits are cut into blocks of rows and classes. For the rows of a block:
//! 1. *Read*, classes from first to last: logits = x W + b into scratch, then each row's largest
//!    value and sum of exponentials go on from those of the classes before (`softmax/rows.rs`).
//!    After the last class the ends of the rows follow: loss, and what turns a logit into its
//!    gradient (shared with `softmax_cross_entropy`).
//! 2. *Backward*, classes from last to first: the last block's logits are still there, those of the
//!    others are computed again, and become the gradient in the epilogue of that product, in cache.
//!    Then dx += g W^T, dW += x^T g and db += sum g, in one phase, since none waits for another.
//!
//! Where all classes fit at once, with enough rows, nothing is computed again; `Layout` says when.
//! Blocks follow from shapes alone and sums over blocks go in order: so do the bits.
#![allow(unsafe_code)]

mod layout;

use super::{DB, DW, DX, LOSS, PER_ROW, STATISTICS};
use crate::device::cpu::simd::{Kernel, Simd, dispatch, dot, math, update1};
use crate::device::cpu::{Chunk, Launch, rows_per_chunk};
use crate::gemm::{Address, Block, Epilogue, Operands, Plan};
use crate::ops::Site;
use crate::ops::linear::cpu::add_bias;
use crate::ops::reduce::cpu::columns;
use crate::ops::softmax::rows::{NO_BASES, Row, exp, read};
use crate::ops::softmax_cross_entropy::cpu::{
    Group, PARTIALS, Problem, Sums, Target, nanoseconds, sum_below,
};
use layout::{Layout, Part, Shape, Which};
use std::ops::Range;
use std::sync::Arc;

/// Columns of which one chunk sums the gradient for db.
const SUM_COLUMNS: usize = 256;

/// What is kept of each row of a block, each an array in scratch.
#[derive(Clone, Copy)]
enum Field {
    /// The largest logit so far.
    Max,
    /// Sum so far of `exp(z - max)` without the label.
    Rest,
    /// The largest logit so far without the label.
    Other,
    /// The label's logit, NaN as long as there is none.
    Own,
    /// Sum so far of `max - z`, for label smoothing.
    Below,
    /// 1 where a class before the label has the label's logit.
    Tied,
    /// What turns `exp(z - max)` into the gradient, but for the target.
    Factor,
    /// Gradient of the label's logit.
    Gradient,
}

/// Number of fields.
const FIELDS: usize = 8;

/// One node: what is computed, and where in scratch.
#[derive(Clone, Copy)]
struct Job {
    problem: Problem,
    shape: Shape,
    layout: Layout,
    smoothing: f32,
    bias: bool,
    losses: bool,
}

/// The launch of a node whose scratch has at most `budget` elements, where that is possible.
pub(super) fn launch(site: &Site<'_>, smoothing: f32, budget: usize) -> Launch {
    let bias = site.inputs.len() > 3;
    let shape = Shape {
        isa: site.isa,
        rows: site.inputs[0].shape.rows(),
        inner: site.inputs[1].shape.rows(),
        classes: site.inputs[1].shape.columns(),
        dx: site.used[DX],
        dw: site.used[DW],
        db: bias && site.used[DB],
    };
    let problem = Problem {
        isa: site.isa,
        rows: shape.rows,
        classes: shape.classes,
        dlogits: shape.backward(),
        statistics: site.used[STATISTICS],
    };
    let layout = Layout::new(&shape, budget);
    let job = Job { problem, shape, layout, smoothing, bias, losses: site.used[PER_ROW] };
    job.launch()
}

impl Job {
    fn launch(self) -> Launch {
        let Layout { rows, classes, elements, .. } = self.layout;
        let plan = self.shape.plan(Which::Logits, rows, classes, false);
        let mut launch = Launch::new(plan.engine()).scratch(elements);
        for parts in self.layout.parts(&self.shape) {
            for &part in &parts {
                launch = self.products(launch, part, vec![self.logits(part, false)], false);
                launch = self.read(launch, part);
            }
            if !self.shape.backward() {
                continue;
            }
            for (i, &part) in parts.iter().rev().enumerate() {
                if i == 0 {
                    launch = self.differentiate(launch, part);
                } else {
                    launch = self.products(launch, part, vec![self.logits(part, true)], false);
                }
                launch = self.backward(launch, part, i == 0);
            }
        }
        let Layout { slots_at, slots, .. } = self.layout;
        launch.serial(move |chunk| {
            let slots = &chunk.all_partials()[slots_at..][..slots * PARTIALS];
            let total = slots
                .chunks_exact(PARTIALS)
                .fold(Sums::NONE, |total, part| total.and(&Sums::load(part)));
            total.finish(&self.problem, chunk.output(LOSS), chunk.output(STATISTICS));
        })
    }

    /// The logits of a part, or, after all classes were read, their gradient.
    fn logits(self, part: Part, gradient: bool) -> Product {
        let plan = self.shape.plan(Which::Logits, part.rows, part.classes, false);
        let at = self.layout.products_at;
        Product { job: self, part, which: Which::Logits, plan, scratch_at: at, gradient }
    }

    /// Adds the products of the gradient of a part, `first` of its rows.
    fn backward(self, launch: Launch, part: Part, first: bool) -> Launch {
        let mut products = Vec::new();
        let mut scratch_at = self.layout.products_at;
        for (which, wanted, accumulate) in
            [(Which::Dx, self.shape.dx, !first), (Which::Dw, self.shape.dw, part.row > 0)]
        {
            if wanted {
                let plan = self.shape.plan(which, part.rows, part.classes, accumulate);
                let elements = layout::scratch(&plan);
                products.push(Product { job: self, part, which, plan, scratch_at, gradient: false });
                scratch_at += elements;
            }
        }
        self.products(launch, part, products, self.shape.db)
    }

    /// Adds the phases of products that do not wait for each other, and the sums of the gradient's
    /// columns if `sums`.
    fn products(self, launch: Launch, part: Part, products: Vec<Product>, sums: bool) -> Launch {
        let products: Arc<[Product]> = products.into();
        let total = |of: fn(&Plan) -> usize| products.iter().map(|p| of(&p.plan)).sum::<usize>();
        let packs = total(Plan::pack_chunks);
        let tiles = total(Plan::tiles);
        let reduces = total(Plan::reduce_chunks);
        let sums = if sums { part.classes.div_ceil(SUM_COLUMNS) } else { 0 };
        let mut launch = launch;
        if packs > 0 {
            let products = Arc::clone(&products);
            launch = launch.tiles(packs, move |chunk| {
                let (product, index) = pick(&products, chunk.index(), Plan::pack_chunks);
                // SAFETY: `operands` says why the addresses hold. Products of one phase write
                // different outputs and parts of scratch, and read what none of them writes. A
                // launch runs its phases in order with a barrier between them, and each chunk of
                // a phase once.
                unsafe { product.plan.pack(index, &product.operands(chunk)) };
            });
        }
        if tiles + sums > 0 {
            let products = Arc::clone(&products);
            launch = launch.tiles(tiles + sums, move |chunk| {
                if chunk.index() >= tiles {
                    return self.sum_columns(chunk, part, chunk.index() - tiles);
                }
                let (product, index) = pick(&products, chunk.index(), Plan::tiles);
                let operands = product.operands(chunk);
                // SAFETY: as for the packing.
                product.finishing(chunk, |hook| unsafe {
                    product.plan.tile(index, &operands, hook);
                });
            });
        }
        if reduces > 0 {
            launch = launch.tiles(reduces, move |chunk| {
                let (product, index) = pick(&products, chunk.index(), Plan::reduce_chunks);
                let operands = product.operands(chunk);
                // SAFETY: as for the packing.
                product.finishing(chunk, |hook| unsafe {
                    product.plan.reduce(index, &operands, hook);
                });
            });
        }
        launch
    }

    /// db of some columns of a part, from its gradient in scratch.
    fn sum_columns(&self, chunk: &Chunk<'_>, part: Part, index: usize) {
        let first = index * SUM_COLUMNS;
        let width = SUM_COLUMNS.min(part.classes - first);
        let Layout { logits_at, stride, .. } = self.layout;
        assert_eq!(chunk.output_len(DB), self.shape.classes, "db has a value a class");
        // SAFETY: `Layout` has room for `rows` x `stride` logits, and the last column that is read
        // is below `part.classes`. No chunk of this phase writes them. db is as long as asserted,
        // and no other chunk has these columns.
        let (gradient, db) = unsafe {
            let at = chunk.scratch_ptr().add(logits_at + first);
            let db = chunk.output_ptr::<f32>(DB).add(part.class + first);
            (
                std::slice::from_raw_parts(at, (part.rows - 1) * stride + width),
                std::slice::from_raw_parts_mut(db, width),
            )
        };
        if part.row == 0 {
            db.fill(0.0);
        }
        dispatch(self.shape.isa, Columns { gradient, stride, rows: part.rows, db });
    }

    /// Adds the phase that reads the logits of a part, row by row.
    fn read(self, launch: Launch, part: Part) -> Launch {
        launch.rows(part.rows, self.layout.chunk_rows, move |chunk| {
            let rows = chunk.row_range();
            let labels = &chunk.input::<u32>(2)[part.row..][..part.rows][rows.clone()];
            let Layout { slots_at, .. } = self.layout;
            let losses = self.losses.then(|| {
                assert_eq!(chunk.output_len(PER_ROW), self.shape.rows, "a loss a row");
                chunk.output_ptr::<f32>(PER_ROW)
            });
            // SAFETY: `Layout` has room for the fields of `stride_rows` rows, for the logits and
            // for a slot a chunk; per_row is as long as asserted. These rows and this slot are of
            // this chunk alone, and no chunk of this phase writes logits.
            let (fields, slot, losses) = unsafe {
                let scratch = chunk.scratch_ptr();
                let own = |field: usize| {
                    let at = scratch.add(field * self.layout.stride_rows + rows.start);
                    std::slice::from_raw_parts_mut(at, rows.len())
                };
                let slot = scratch.add(slots_at + chunk.index() * PARTIALS);
                (
                    std::array::from_fn(own),
                    std::slice::from_raw_parts_mut(slot, PARTIALS),
                    losses.map(|losses| {
                        let at = losses.add(part.row + rows.start);
                        std::slice::from_raw_parts_mut(at, rows.len())
                    }),
                )
            };
            let z = self.logits_of(chunk, part, &rows);
            let sums = dispatch(self.shape.isa, Read { job: self, part, z, labels, fields, losses });
            let first = part.row == 0 && part.class == 0;
            let before = if first { Sums::NONE } else { Sums::load(slot) };
            before.and(&sums).store(slot);
        })
    }

    /// The logits of some rows of a part, `stride` apart.
    fn logits_of<'a>(&self, chunk: &Chunk<'a>, part: Part, rows: &Range<usize>) -> &'a [f32] {
        let Layout { logits_at, stride, .. } = self.layout;
        let len = rows.len().saturating_sub(1) * stride + part.classes;
        // SAFETY: `Layout` has room for `rows` x `stride` logits, and the rows lie in the part. The
        // one caller is a phase that does not write them.
        unsafe {
            let at = chunk.scratch_ptr().add(logits_at + rows.start * stride);
            std::slice::from_raw_parts(at, len)
        }
    }

    /// Adds the phase that makes the logits of a part, still in scratch, their gradient.
    fn differentiate(self, launch: Launch, part: Part) -> Launch {
        launch.rows(part.rows, self.layout.chunk_rows, move |chunk| {
            let rows = chunk.row_range();
            let Layout { logits_at, stride, .. } = self.layout;
            let ends = self.ends(chunk, part);
            // SAFETY: the rows lie in the part, for which `Layout` has room.
            let c = unsafe { chunk.scratch_ptr().add(logits_at + rows.start * stride) };
            let block =
                Block { row: rows.start, rows: rows.len(), col: 0, cols: part.classes, c, ldc: stride };
            dispatch(self.shape.isa, Gradient { ends: &ends, block });
        })
    }

    /// What the gradient needs of the rows of a part.
    fn ends<'a>(&self, chunk: &Chunk<'a>, part: Part) -> RowEnds<'a> {
        let field = |field: Field| {
            // SAFETY: `Layout` has room for `stride_rows` of each field, and phases that call this
            // write none.
            unsafe {
                let at = chunk.scratch_ptr().add(field as usize * self.layout.stride_rows);
                std::slice::from_raw_parts(at, part.rows)
            }
        };
        RowEnds {
            max: field(Field::Max),
            factor: field(Field::Factor),
            own: field(Field::Gradient),
            labels: &chunk.input::<u32>(2)[part.row..][..part.rows],
            class: part.class,
            share: self.smoothing / self.shape.classes as f32 * (1.0 / self.shape.rows as f32),
        }
    }
}

/// One of the products of a part.
struct Product {
    job: Job,
    part: Part,
    which: Which,
    plan: Plan,
    scratch_at: usize,
    /// Whether logits become their gradient at once.
    gradient: bool,
}

/// The product to which chunk `index` of a phase belongs, and its number within that product.
fn pick(products: &[Product], index: usize, chunks: fn(&Plan) -> usize) -> (&Product, usize) {
    let mut index = index;
    for product in products {
        match chunks(&product.plan) {
            count if index < count => return (product, index),
            count => index -= count,
        }
    }
    unreachable!("a phase has as many chunks as its products")
}

impl Product {
    /// The addresses: the assertions and slices make sure that tensors are as long as the shape
    /// says, the part lies within it, and `Layout` has room in scratch for the logits and for what
    /// the plan asks.
    fn operands(&self, chunk: &Chunk<'_>) -> Operands {
        let (Shape { rows, inner, classes, .. }, part) = (self.job.shape, self.part);
        let Layout { logits_at, stride, .. } = self.job.layout;
        let x = chunk.input::<f32>(0)[part.row * inner..][..part.rows * inner].as_ptr();
        let w = chunk.input::<f32>(1);
        assert_eq!(w.len(), inner * classes, "W is [in, classes]");
        // Without elements, W has no column to begin at.
        let w = w.as_ptr().wrapping_add(part.class);
        // SAFETY: both lie within the scratch that `Layout` counted.
        let (logits, scratch) = unsafe {
            let start = chunk.scratch_ptr();
            (start.add(logits_at), start.add(self.scratch_at))
        };
        match self.which {
            Which::Logits => Operands {
                a: Address::F32(x),
                lda: inner,
                b: Address::F32(w),
                ldb: classes,
                c: logits,
                ldc: stride,
                scratch,
            },
            Which::Dx => {
                assert_eq!(chunk.output_len(DX), rows * inner, "dx is as long as x");
                // SAFETY: the part's rows lie within dx.
                let c = unsafe { chunk.output_ptr::<f32>(DX).add(part.row * inner) };
                let (a, lda) = (logits.cast_const(), stride);
                Operands { a: Address::F32(a), lda, b: Address::F32(w), ldb: classes, c, ldc: inner, scratch }
            }
            Which::Dw => {
                assert_eq!(chunk.output_len(DW), inner * classes, "dW is as long as W");
                let c = chunk.output_ptr::<f32>(DW).wrapping_add(part.class);
                let (b, ldb) = (logits.cast_const(), stride);
                Operands { a: Address::F32(x), lda: inner, b: Address::F32(b), ldb, c, ldc: classes, scratch }
            }
        }
    }

    /// Calls `run` with the epilogue of this product.
    fn finishing(&self, chunk: &Chunk<'_>, run: impl FnOnce(Epilogue<'_>)) {
        let (isa, part) = (self.job.shape.isa, self.part);
        let wanted = self.which == Which::Logits;
        let bias = (wanted && self.job.bias)
            .then(|| &chunk.input::<f32>(3)[part.class..][..part.classes]);
        let ends = self.gradient.then(|| self.job.ends(chunk, part));
        if bias.is_none() && ends.is_none() {
            return run(None);
        }
        run(Some(&|block| {
            if let Some(bias) = bias {
                add_bias(isa, bias, block);
            }
            if let Some(ends) = &ends {
                dispatch(isa, Gradient { ends, block });
            }
        }));
    }
}

/// What the gradient of the rows of a part needs.
struct RowEnds<'a> {
    max: &'a [f32],
    factor: &'a [f32],
    own: &'a [f32],
    labels: &'a [u32],
    /// First class of the part.
    class: usize,
    /// Target of every class by label smoothing, divided by the rows.
    share: f32,
}

/// Makes a block of logits their gradient.
struct Gradient<'a> {
    ends: &'a RowEnds<'a>,
    block: Block,
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gradient { ends, block } = self;
        let share = s.splat(ends.share);
        for i in 0..block.rows {
            let row = block.row + i;
            // SAFETY: a block that is ours: of the plan that calls this as its epilogue, or the
            // rows of this chunk. It is the only reference to the row.
            let z = unsafe { block.row_mut(i) };
            let (max, factor) = (s.splat(ends.max[row]), s.splat(ends.factor[row]));
            update1(
                s,
                z,
                #[inline(always)]
                |s, z| s.sub(s.mul(math::exp(s, s.sub(z, max)), factor), share),
            );
            let label = (ends.labels[row] as usize).wrapping_sub(ends.class + block.col);
            if let Some(z) = z.get_mut(label) {
                *z = ends.own[row];
            }
        }
    }
}

/// Adds rows of the gradient to db.
struct Columns<'a> {
    gradient: &'a [f32],
    stride: usize,
    rows: usize,
    db: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        columns(s, self.gradient, self.stride, self.rows, self.db, #[inline(always)] |s, a, b| {
            s.add(a, b)
        });
    }
}

/// Reads the logits of some rows, and ends the rows after the last class.
struct Read<'a> {
    job: Job,
    part: Part,
    /// Logits of the rows, `stride` apart.
    z: &'a [f32],
    labels: &'a [u32],
    fields: [&'a mut [f32]; FIELDS],
    losses: Option<&'a mut [f32]>,
}

impl Kernel for Read<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Sums {
        let Job { problem, smoothing, shape, .. } = self.job;
        let last = self.part.class + self.part.classes == shape.classes;
        let mut total = Sums::NONE;
        for first in (0..self.labels.len()).step_by(S::LANES) {
            let rows = S::LANES.min(self.labels.len() - first);
            let mut group = Group::new();
            for r in 0..rows {
                total.squares += f64::from(self.row(s, first + r, r, &mut group));
            }
            if !last {
                continue;
            }
            let targets = Target::Labels { labels: self.labels, smoothing };
            let ends = group.finish(s, &problem, targets);
            let end = first + rows;
            self.fields[Field::Factor as usize][first..end].copy_from_slice(&ends.factor[..rows]);
            self.fields[Field::Gradient as usize][first..end].copy_from_slice(&ends.own[..rows]);
            if let Some(losses) = &mut self.losses {
                losses[first..end].copy_from_slice(&ends.loss[..rows]);
            }
            let tied = &self.fields[Field::Tied as usize][first..end];
            total = total.and(&group.sums(s, &problem, &ends, rows, |r| tied[r] != 0.0));
        }
        total
    }
}

impl Read<'_> {
    /// Takes a row of the part to what is known of it, which also goes to lane `r` of the group.
    /// Gives the sum of its squares, if that is wanted.
    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S, row: usize, r: usize, group: &mut Group) -> f32 {
        let Job { problem, smoothing, shape, layout, .. } = self.job;
        let z = &self.z[row * layout.stride..][..self.part.classes];
        let new = self.part.class == 0;
        let known = |field: Field, start: f32| {
            if new { start } else { self.fields[field as usize][row] }
        };
        let max = known(Field::Max, f32::NEG_INFINITY);
        let mut rest = known(Field::Rest, 0.0);
        let mut other = known(Field::Other, f32::NEG_INFINITY);
        let mut own = known(Field::Own, f32::NAN);
        let mut below = known(Field::Below, 0.0);
        let mut tied = known(Field::Tied, 0.0);

        // Of another part's label, the place is past the end.
        let label = (self.labels[row] as usize).wrapping_sub(self.part.class);
        let mut start = max;
        if let Some(&logit) = z.get(label) {
            own = logit;
            start = if own > start { own } else { start };
        }
        let mut bases = NO_BASES;
        let reading = read(s, Row::Read(z), label, start, false, &mut bases);
        if reading.max > max && rest > 0.0 {
            rest *= exp(s, max - reading.max);
        }
        rest += reading.sum;
        if problem.statistics && label < z.len() {
            let before = other == own || reading.other == own && z[..label].contains(&own);
            tied = f32::from(u8::from(before));
        }
        other = if reading.other > other { reading.other } else { other };
        if smoothing > 0.0 {
            if !new && reading.max > max {
                below += self.part.class as f32 * (reading.max - max);
            }
            below += match reading.max {
                f32::NEG_INFINITY => f32::INFINITY,
                max => sum_below(s, z, max),
            };
            group.smooth(r, smoothing, shape.classes, below);
        }

        (group.max[r], group.rest[r], group.other[r]) = (reading.max, rest, other);
        group.own[r] = own;
        for (field, value) in [
            (Field::Max, reading.max),
            (Field::Rest, rest),
            (Field::Other, other),
            (Field::Own, own),
            (Field::Below, below),
            (Field::Tied, tied),
        ] {
            self.fields[field as usize][row] = value;
        }
        if problem.statistics { dot(s, z, z) } else { 0.0 }
    }
}

/// Rows of a chunk of the row phases, for rows of so many classes.
fn chunk_rows(classes: usize) -> usize {
    rows_per_chunk(nanoseconds(classes))
}
