//! `average` on the CPU: chunks as those of the update, so that what is packed is in cache.
#![allow(unsafe_code)]

use super::{Average, Kind};
use crate::device::cpu::simd::{self, Simd, dispatch};
use crate::device::cpu::Launch;
use crate::gemm::PackedWeights;
use crate::ops::Site;
use crate::ops::update::cpu::{Cut, pack_pieces};

pub(super) fn launch(op: &Average, site: &Site<'_>) -> Launch {
    let (op, isa) = (op.clone(), site.isa);
    let weights = op.packed.as_deref().map_or(&[][..], PackedWeights::weights);
    let elements = site.inputs[0].elements();
    let cut = Cut::new(&op.segments(elements), weights);
    Launch::new(isa.name()).tiles(cut.chunks.len(), move |chunk| {
        let pieces = &cut.pieces[cut.chunks[chunk.index()].clone()];
        let share = chunk.control().f32(op.share);
        if share != 0.0 {
            for piece in pieces {
                let (start, len) = (piece.elements.start, piece.elements.len());
                assert!(piece.elements.end <= elements);
                let part = |output: usize| -> &mut [f32] {
                    // SAFETY: the outputs in use have `elements` elements by `Average::infer`, and the
                    // piece is within (asserted above); pieces are disjoint, each in one chunk, and each
                    // output is taken once for it.
                    unsafe {
                        let first = chunk.output_ptr::<f32>(output).add(start);
                        std::slice::from_raw_parts_mut(first, len)
                    }
                };
                match op.kind {
                    Kind::Ema => {
                        let fast = &chunk.input::<f32>(1)[start..start + len];
                        dispatch(isa, Toward { slow: part(0), fast, share });
                    }
                    Kind::Lookahead => {
                        dispatch(isa, Meet { slow: part(0), fast: part(1), share });
                    }
                }
            }
        }
        if let Some(packed) = &op.packed {
            pack_pieces(packed, pieces, chunk, 1, 2);
        }
    })
}

struct Toward<'a> {
    slow: &'a mut [f32],
    fast: &'a [f32],
    share: f32,
}

impl simd::Kernel for Toward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let share = s.splat(self.share);
        simd::update_many(s, [self.slow], [self.fast], #[inline(always)] |s, [slow], [fast]| {
            [s.mul_add(share, s.sub(fast, slow), slow)]
        });
    }
}

struct Meet<'a> {
    slow: &'a mut [f32],
    fast: &'a mut [f32],
    share: f32,
}

impl simd::Kernel for Meet<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let share = s.splat(self.share);
        simd::update_many(s, [self.slow, self.fast], [], #[inline(always)] |s, [slow, fast], []| {
            let new = s.mul_add(share, s.sub(fast, slow), slow);
            [new, new]
        });
    }
}
