//! `product_update` on the CPU: each chunk computes a block of the gradient into a buffer that stays in
//! its core's cache, takes that part of weights and moments through the step, and packs it.
#![allow(unsafe_code)]

use super::{ProductUpdate, SHIFT};
use crate::device::cpu::{Chunk, Isa, Launch};
use crate::gemm::{Address, Operands, Plan, Spec, WEIGHT_BAND};
use crate::ops::Site;
use crate::ops::update::cpu::{Matrix, Sums, update_matrix};
use crate::tensor::DType;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Elements of the buffer, 64 KiB: with as much of weights and of each moment a part of L2. From 32 to
/// 256 KiB steps take as long within 3 %.
const BLOCK: usize = 1 << 14;

/// Elements of a cache line.
const LINE: usize = 16;

/// Brings a line into L2.
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed, and changes nothing that a program sees.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

#[repr(align(64))]
struct Buffer([MaybeUninit<f32>; BLOCK]);

pub(super) fn launch(op: &ProductUpdate, site: &Site<'_>) -> Launch {
    let (op, isa, spec) = (op.clone(), site.isa, op.spec(site.inputs));
    let multiple = if op.update.packed.is_some() { WEIGHT_BAND } else { 1 };
    let plan = Plan::in_blocks(isa, spec, [multiple; 2], BLOCK);
    // One place for the sums of each row of each block.
    let mut places = vec![0];
    for tile in 0..plan.tiles() {
        let [rows, cols] = plan.tile_ranges(tile);
        assert!(rows.len() * cols.len() <= BLOCK, "a block of {rows:?} x {cols:?}");
        places.push(places[tile] + rows.len());
    }
    let all = places[plan.tiles()];
    let statistics = site.used[op.update.statistics_output()];
    let sums_at = plan.scratch_len().next_multiple_of(16);
    let sums_len = if statistics { all * size_of::<Sums>() / size_of::<f32>() } else { 0 };
    let (output, scale) = (op.update.statistics_output(), op.update.slots.gradient_scale);

    let mut launch = Launch::new(plan.engine()).scratch(sums_at + sums_len);
    if plan.tiles() > 0 {
        let packs = plan.pack_chunks();
        if packs > 0 {
            let plan = plan.clone();
            launch = launch.tiles(packs, move |chunk| {
                let operands = operands(chunk, plan.spec());
                // SAFETY: `operands` has stored matrices of the spec, and `scratch` room for the
                // plan; a launch runs its phases in order, each chunk of a phase once.
                unsafe { plan.pack(chunk.index(), &operands) };
            });
        }
        let tiles = plan.tiles();
        let job = Job { op, isa, plan, places, sums_at };
        launch = launch.tiles(tiles, move |chunk| job.tile(chunk));
    }
    if !statistics {
        return launch;
    }
    launch.serial(move |chunk| {
        let scale = f64::from(chunk.control().f32(scale));
        let sums: &[Sums] = bytemuck::cast_slice(&chunk.all_partials()[sums_at..][..sums_len]);
        let mut total = [0.0; 3];
        for piece in sums {
            for (total, piece) in total.iter_mut().zip(piece) {
                *total += piece;
            }
        }
        let scales = [scale * scale, 1.0, scale];
        let statistics = chunk.output::<f32>(output);
        for ((out, total), scale) in statistics.iter_mut().zip(total).zip(scales) {
            *out = (total * scale) as f32;
        }
    })
}

/// The addresses of the product; C dangles.
fn operands(chunk: &Chunk<'_>, spec: &Spec) -> Operands {
    let (x, dz) = (chunk.input::<f32>(0), chunk.input::<f32>(1));
    assert!(x.len() == spec.k * spec.m && dz.len() == spec.k * spec.n);
    Operands {
        a: Address::F32(x.as_ptr()),
        lda: spec.m,
        b: Address::F32(dz.as_ptr()),
        ldb: spec.n,
        c: std::ptr::null_mut(),
        ldc: 0,
        scratch: chunk.scratch_ptr(),
    }
}

struct Job {
    op: ProductUpdate,
    isa: Isa,
    plan: Plan,
    /// First of the sums of each block.
    places: Vec<usize>,
    /// Where the sums start in scratch.
    sums_at: usize,
}

impl Job {
    fn tile(&self, chunk: &Chunk<'_>) {
        let (Job { isa, plan, .. }, update) = (self, &self.op.update);
        let [rows, cols] = plan.tile_ranges(chunk.index());
        let stride = plan.spec().n;
        let first = rows.start * stride + cols.start;
        let step = update.step(chunk.control(), |input| {
            f64::from(chunk.input::<f32>(input + SHIFT)[0])
        });
        let moment = |i: usize| match i < update.rule.moments() {
            true => chunk.output_ptr::<f32>(1 + i),
            false => std::ptr::null_mut(),
        };
        let (weights, moments) = (chunk.output_ptr::<f32>(0), [moment(0), moment(1)]);
        // While a part of the product is computed, what its update reads comes from memory.
        let ahead = |rows: Range<usize>, cols: Range<usize>| {
            for start in [weights, moments[0], moments[1]].into_iter().filter(|p| !p.is_null()) {
                for row in rows.clone() {
                    for col in cols.clone().step_by(LINE) {
                        prefetch(start.wrapping_add(row * stride + col));
                    }
                }
            }
        };
        let mut buffer = Buffer([const { MaybeUninit::uninit() }; BLOCK]);
        let gradients = buffer.0.as_mut_ptr().cast::<f32>();
        let count = rows.len() * cols.len();
        // SAFETY: for the product as in `launch`, which checked that blocks fit into the buffer;
        // `tile_to` writes all elements of the block.
        let gradients = unsafe {
            plan.tile_to(chunk.index(), &operands(chunk, plan.spec()), gradients, Some(&ahead));
            std::slice::from_raw_parts(gradients, count)
        };
        let places = self.places[chunk.index()]..self.places[chunk.index() + 1];
        let sums: &mut [Sums] = if chunk.output_len(update.statistics_output()) > 0 {
            // SAFETY: `launch` made the scratch large enough for the sums of all blocks, which
            // start at a cache line; blocks have disjoint places.
            unsafe {
                let start = chunk.scratch_ptr().add(self.sums_at).cast::<Sums>();
                std::slice::from_raw_parts_mut(start.add(places.start), places.len())
            }
        } else {
            &mut []
        };
        let weights = weights.wrapping_add(first);
        let matrix = Matrix {
            rows: rows.len(),
            cols: cols.len(),
            stride,
            weights,
            moments: moments.map(|p| if p.is_null() { p } else { p.wrapping_add(first) }),
            gradients,
            sums,
        };
        // SAFETY: the block lies inside W and the moments, [in, out] each by `infer`; blocks do not
        // overlap.
        unsafe { update_matrix(update, *isa, step, matrix) };
        let Some(packed) = &update.packed else { return };
        let output = update.packed_output();
        let copies = match packed.element() {
            DType::Bf16 => chunk.output_ptr::<half::bf16>(output).cast::<u8>(),
            _ => chunk.output_ptr::<f32>(output).cast::<u8>(),
        };
        if chunk.index() == 0 {
            for gap in packed.gaps() {
                let size = packed.element().size();
                // SAFETY: gaps lie within the copies, and only this chunk writes them.
                unsafe { copies.add(gap.start * size).write_bytes(0, gap.len() * size) };
            }
        }
        // SAFETY: the block is this part of the weight, which this chunk has updated and nobody
        // else touches; other blocks have other places in the copies, which are as long as `infer`
        // said.
        unsafe { packed.pack_block(0, [rows, cols], weights, copies) };

    }
}
