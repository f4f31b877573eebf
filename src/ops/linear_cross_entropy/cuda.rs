//! `linear_cross_entropy` on a GPU: rows in blocks with all their classes, whose logits lie in scratch.
//!
//! For each block: logits = x W + b; the kernel of `softmax_cross_entropy` turns them into their gradient
//! where they lie; then dx = g W^T, dW += x^T g, and a row of column sums for db, which are added once all
//! blocks are done. Nothing is computed twice: 3 products, where the CPU may need 4.
//!
//! Blocks follow from shapes and the budget alone, and so do the bits. Each block reads W twice, and
//! reads and writes dW once.

use super::{DB, DW, DX, LOSS, PER_ROW, STATISTICS};
use crate::device::cuda::{Launches, Place};
use crate::gemm::Spec;
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cuda::{Epilogue, product};
use crate::ops::reduce::cuda::run as reduce;
use crate::ops::softmax_cross_entropy::Targets;
use crate::ops::softmax_cross_entropy::cuda::{Rows, finish, rows};

/// Rows of a block are a multiple of this where there are so many: tiles of products.
const TILE: usize = 128;

/// The launches of a node whose logits have at most `budget` elements at a time, or one row.
pub(super) fn launch(site: &Site<'_>, smoothing: f32, budget: usize) -> Option<Launches> {
    let count = site.inputs[0].shape.rows();
    let (inner, classes) = (site.inputs[1].shape.rows(), site.inputs[1].shape.columns());
    let used = |output: usize| site.used.get(output) == Some(&true);
    let backward = used(DX) || used(DW) || used(DB);
    let most = (budget / classes).clamp(1, count);
    let block = if most >= TILE && most < count { most / TILE * TILE } else { most };
    let mut launches = Launches::new();
    let logits = launches.scratch(block * classes);
    let Place::Scratch(first_result) = launches.scratch(4 * count) else {
        unreachable!("scratch memory is a place in it");
    };
    let blocks = count.div_ceil(block);
    let sums = match used(DB) && blocks > 1 {
        true => launches.scratch(blocks * classes),
        false => Place::Output(DB),
    };
    let kept = launches.scratch_in_use();
    let (w, bias) = match site.inputs.len() {
        4.. => (Place::Input(1), Place::Input(3)),
        _ => (Place::Input(1), Place::Null),
    };
    for (number, first) in (0..count).step_by(block).enumerate() {
        let part = block.min(count - first);
        let x = from(Place::Input(0), first * inner);
        let spec = Spec::new(part, classes, inner);
        let epilogue = Epilogue { bias, ..Epilogue::to(logits) };
        multiply(&mut launches, site, kept, spec, [x, w], &epilogue)?;
        let of = Rows {
            logits,
            given: from(Place::Input(2), first),
            dlogits: if backward { logits } else { Place::Null },
            per_row: from(Place::Output(PER_ROW), first),
            results: Place::Scratch(first_result + 16 * first),
            rows: part,
            total_rows: count,
            classes,
        };
        rows(&mut launches, site.target, Targets::Labels { smoothing }, &of)?;
        if used(DX) {
            let spec = Spec::new(part, inner, classes).b_transposed();
            let dx = Epilogue::to(from(Place::Output(DX), first * inner));
            multiply(&mut launches, site, kept, spec, [logits, w], &dx)?;
        }
        if used(DW) {
            let spec = Spec::new(inner, classes, part).a_transposed();
            let spec = Spec { accumulate: number > 0, ..spec };
            multiply(
                &mut launches,
                site,
                kept,
                spec,
                [x, logits],
                &Epilogue::to(Place::Output(DW)),
            )?;
        }
        if used(DB) {
            launches.release_scratch(kept);
            let to = from(sums, number * classes);
            reduce(&mut launches, "sum", logits, to, [1, part, classes], 1.0)?;
        }
    }
    if used(DB) && blocks > 1 {
        reduce(&mut launches, "sum", sums, Place::Output(DB), [1, blocks, classes], 1.0)?;
    }
    let results = Place::Scratch(first_result);
    finish(&mut launches, results, [count, classes], [LOSS, STATISTICS], site.used)?;
    Some(launches)
}

/// The place so many elements of four bytes later.
fn from(place: Place, elements: usize) -> Place {
    match place {
        Place::Input(i) => Place::InputFrom(i, 4 * elements),
        Place::Output(i) => Place::OutputFrom(i, 4 * elements),
        Place::Scratch(byte) => Place::Scratch(byte + 4 * elements),
        other => other,
    }
}

/// Appends a product. Its own scratch memory lies after the bytes that are `kept`, where that of the
/// launches before it was.
fn multiply(
    launches: &mut Launches,
    site: &Site<'_>,
    kept: usize,
    spec: Spec,
    operands: [Place; 2],
    epilogue: &Epilogue,
) -> Option<()> {
    launches.release_scratch(kept);
    product(launches, site.target, Products { batches: 1, spec }, operands, epilogue)
}
