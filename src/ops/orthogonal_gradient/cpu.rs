//! `orthogonal_gradient` on the CPU: the sums of all pieces, then the projection piece by piece. Chunks are
//! those of the update.
#![allow(unsafe_code)]

use super::{OrthogonalGradient, Projection};
use crate::device::cpu::simd::{self, Simd, dispatch};
use crate::device::cpu::{Chunk, Launch};
use crate::ops::Site;
use crate::ops::update::cpu::{Cut, Piece, Sums};

/// Elements that are summed in f32.
const BLOCK: usize = 1024;

/// A [`Projection`] in scratch memory: its two numbers.
type Numbers = [f64; 2];

pub(super) fn launch(op: &OrthogonalGradient, site: &Site<'_>) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    let segments = op.segments.len();
    let cut = std::sync::Arc::new(Cut::new(&op.segments, &[]));
    // In f32: first the sums of all pieces, then the projections of all segments.
    let sums_len = cut.pieces.len() * (size_of::<Sums>() / size_of::<f32>());
    let scratch = sums_len + segments * (size_of::<Numbers>() / size_of::<f32>());
    let count = cut.chunks.len();
    let (first, second, last) = (cut.clone(), cut.clone(), cut);
    Launch::new(isa.name())
        .scratch(scratch)
        .tiles(count, move |chunk| {
            let range = first.chunks[chunk.index()].clone();
            // SAFETY: `launch` made the scratch large enough for the sums of all pieces, and it is 64-byte
            // aligned; chunks have disjoint ranges of pieces, and this is the only place that writes them.
            let sums: &mut [Sums] = unsafe {
                let start = chunk.scratch_ptr().cast::<Sums>().add(range.start);
                std::slice::from_raw_parts_mut(start, range.len())
            };
            for (piece, sums) in first.pieces[range].iter().zip(sums) {
                let gradients = gradients_of(chunk, piece, elements);
                let weights = &chunk.input::<f32>(0)[piece.elements.clone()];
                *sums = dispatch(isa, Products { gradients, weights });
            }
        })
        .serial(move |chunk| {
            let sums: &[Sums] = bytemuck::cast_slice(&chunk.all_partials()[..sums_len]);
            // SAFETY: `launch` made the scratch large enough for the projections of all segments after the
            // sums, whose number of bytes is a multiple of 8; a phase of one chunk is alone.
            let projections: &mut [Numbers] = unsafe {
                let start = chunk.scratch_ptr().add(sums_len).cast::<Numbers>();
                std::slice::from_raw_parts_mut(start, segments)
            };
            for (pieces, projection) in second.segments.iter().zip(projections) {
                let mut total = [0.0; 3];
                for piece in &sums[pieces.clone()] {
                    for (total, piece) in total.iter_mut().zip(piece) {
                        *total += piece;
                    }
                }
                let Projection { scale, along } = Projection::of(total);
                *projection = [scale, along];
            }
        })
        .tiles(count, move |chunk| {
            let projections: &[Numbers] =
                bytemuck::cast_slice(&chunk.all_partials()[sums_len..scratch]);
            for piece in &last.pieces[last.chunks[chunk.index()].clone()] {
                let gradients = gradients_of(chunk, piece, elements);
                let weights = &chunk.input::<f32>(0)[piece.elements.clone()];
                let [scale, along] = projections[piece.segment].map(|number| number as f32);
                dispatch(isa, Project { gradients, weights, scale, along });
            }
        })
}

/// The gradients of a piece of this chunk; to be taken once.
fn gradients_of<'a>(chunk: &Chunk<'a>, piece: &Piece, elements: usize) -> &'a mut [f32] {
    assert!(piece.elements.end <= elements);
    // SAFETY: the output has `elements` elements by `infer`, and the piece is within (asserted above);
    // pieces are disjoint, each in one chunk, and a phase takes each once.
    unsafe {
        let first = chunk.output_ptr::<f32>(0).add(piece.elements.start);
        std::slice::from_raw_parts_mut(first, piece.elements.len())
    }
}

struct Products<'a> {
    gradients: &'a [f32],
    weights: &'a [f32],
}

impl simd::Kernel for Products<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let mut sums = [0.0; 3];
        for (g, w) in self.gradients.chunks(BLOCK).zip(self.weights.chunks(BLOCK)) {
            sums[0] += f64::from(simd::dot(s, g, g));
            sums[1] += f64::from(simd::dot(s, w, w));
            sums[2] += f64::from(simd::dot(s, g, w));
        }
        sums
    }
}

struct Project<'a> {
    gradients: &'a mut [f32],
    weights: &'a [f32],
    scale: f32,
    along: f32,
}

impl simd::Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, along) = (s.splat(self.scale), s.splat(-self.along));
        simd::update_many(s, [self.gradients], [self.weights], #[inline(always)] |s, [g], [w]| {
            [s.mul(scale, s.mul_add(along, w, g))]
        });
    }
}
