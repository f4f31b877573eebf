//! Reductions on the CPU.
//!
//! Neighbouring axes that are all reduced, or all kept, are one. Then each group of reduced axes,
//! the last one first, is a stage: `[outer, reduced, inner]` to `[outer, blocks, inner]`, where a
//! long reduction is cut into blocks, which a further stage reduces again until one is left. So
//! the order of additions depends on shapes alone, and the chains of additions stay short: the
//! error of a long sum grows with the depth of the tree.
//!
//! Rows (`inner` of 1) are folded in vectors. Columns are added up eight rows at a time into the
//! stage's result, of which a tile stays in the first-level cache.
#![allow(unsafe_code)]

use super::Kind;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, max, sum, update_many, update1, update2};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use std::ops::Range;

/// 4 bytes an element at some 12 GB/s.
const NANOSECONDS: f64 = 0.35;
/// Elements of a row that one unit folds: some microseconds, and in AVX-512 128 additions deep.
const ROW_BLOCK: usize = 8192;
/// Elements of a tile of columns, roughly.
const TILE: usize = 16_384;
/// A tile is at most this wide: 4 KiB of results stay in the first-level cache beside the rows.
const TILE_COLUMNS: usize = 1024;
/// Up to so many rows are added without cutting them into blocks.
const UNCUT_ROWS: usize = 512;

/// One pass: `[outer, reduced, inner]` to `[outer, blocks, inner]`.
#[derive(Debug)]
struct Stage {
    outer: usize,
    reduced: usize,
    inner: usize,
    /// Elements along the reduced axis in a block; the last block may have fewer.
    block: usize,
    blocks: usize,
    /// Width of a tile of columns; the last one may be narrower.
    columns: usize,
    column_tiles: usize,
    /// Where in the scratch memory the source is; `None` is the input.
    source: Option<usize>,
    /// Where in the scratch memory the result goes; `None` is the output.
    target: Option<usize>,
    kind: Kind,
    /// What the results are divided by.
    divisor: Option<f32>,
}

impl Stage {
    fn new(kind: Kind, [outer, reduced, inner]: [usize; 3], source: Option<usize>) -> Stage {
        let (block, columns) = if inner == 1 {
            // A block and a half is not worth a second stage.
            (if reduced <= 2 * ROW_BLOCK { reduced } else { ROW_BLOCK }, 1)
        } else if reduced <= UNCUT_ROWS {
            let columns = (TILE / reduced.max(1)).next_multiple_of(64);
            (reduced, columns.min(TILE_COLUMNS).min(inner))
        } else {
            let columns = inner.min(TILE_COLUMNS);
            ((TILE / columns.max(1)).clamp(128, UNCUT_ROWS), columns)
        };
        let (block, columns) = (block.max(1), columns.max(1));
        Stage {
            outer,
            reduced,
            inner,
            block,
            blocks: reduced.div_ceil(block).max(1),
            columns,
            column_tiles: inner.div_ceil(columns),
            source,
            target: None,
            kind,
            divisor: None,
        }
    }

    fn elements(&self) -> usize {
        self.outer * self.reduced * self.inner
    }

    fn results(&self) -> usize {
        self.outer * self.blocks * self.inner
    }

    /// Tiles of the result, each reduced by itself.
    fn units(&self) -> usize {
        self.outer * self.blocks * self.column_tiles
    }

    fn units_per_chunk(&self) -> usize {
        rows_per_chunk(8.0 + NANOSECONDS * (self.block * self.columns) as f64)
    }

    /// Of a unit: the part of the source from its first element on, its number of rows, and its
    /// results.
    fn unit(&self, unit: usize) -> (usize, usize, Range<usize>) {
        let (row, tile) = (unit / self.column_tiles, unit % self.column_tiles);
        let (outer, block) = (row / self.blocks, row % self.blocks);
        let (first, column) = (block * self.block, tile * self.columns);
        let start = (outer * self.reduced + first) * self.inner + column;
        let width = self.columns.min(self.inner - column);
        let result = row * self.inner + column;
        (start, self.block.min(self.reduced - first), result..result + width)
    }
}

pub(super) fn launch(site: &Site<'_>, kind: Kind, reduced: &[bool]) -> Launch {
    let extents = site.inputs[0].shape.extents();
    let mut launch = Launch::new(site.isa.name());
    let mut scratch = 0;
    for mut stage in stages(kind, extents, reduced) {
        let isa = site.isa;
        if stage.target.is_none() && kind == Kind::Mean {
            let count = site.inputs[0].elements() / site.outputs[0].elements().max(1);
            stage.divisor = Some(count as f32);
        }
        if let Some(target) = stage.target {
            scratch = scratch.max(target + stage.results());
        }
        launch = launch.rows(stage.units(), stage.units_per_chunk(), move |chunk| {
            let source = match stage.source {
                None => chunk.input(0),
                // SAFETY: the stage before wrote `elements` values from there on, which the
                // `scratch` below covers, and no chunk of this phase writes them: `stages` gives
                // every result memory of its own.
                Some(start) => unsafe {
                    std::slice::from_raw_parts(chunk.scratch_ptr().add(start), stage.elements())
                },
            };
            assert_eq!(source.len(), stage.elements());
            let target = match stage.target {
                None => {
                    assert_eq!(chunk.output_len(0), stage.results());
                    chunk.output_ptr(0)
                }
                // SAFETY: `results` values from there on lie within the scratch memory, see below.
                Some(start) => unsafe { chunk.scratch_ptr().add(start) },
            };
            dispatch(isa, Reduce { stage: &stage, units: chunk.row_range(), source, target });
        });
    }
    launch.scratch(scratch)
}

/// The stages, each with its source and target.
fn stages(kind: Kind, extents: &[usize], reduced: &[bool]) -> Vec<Stage> {
    // Groups of neighbouring axes that are treated alike.
    let mut groups: Vec<(usize, bool)> = Vec::new();
    for (&extent, &reduced) in extents.iter().zip(reduced).filter(|(extent, _)| **extent != 1) {
        match groups.last_mut() {
            Some((merged, alike)) if *alike == reduced => *merged *= extent,
            _ => groups.push((extent, reduced)),
        }
    }
    let product = |groups: &[(usize, bool)]| groups.iter().map(|group| group.0).product::<usize>();
    let mut stages: Vec<Stage> = Vec::new();
    let (mut source, mut used) = (None, 0);
    while let Some(last) = groups.iter().rposition(|group| group.1) {
        let sizes = [product(&groups[..last]), groups[last].0, product(&groups[last + 1..])];
        let mut stage = Stage::new(kind, sizes, source);
        match stage.blocks {
            1 => drop(groups.remove(last)),
            blocks => groups[last].0 = blocks,
        }
        if groups.iter().any(|group| group.1) {
            stage.target = Some(used);
            used += stage.results().next_multiple_of(16);
        }
        source = stage.target;
        stages.push(stage);
    }
    if stages.is_empty() {
        // Nothing but axes of extent 1 is reduced: one row of columns.
        stages.push(Stage::new(kind, [1, 1, product(&groups)], None));
    }
    stages
}

struct Reduce<'a> {
    stage: &'a Stage,
    units: Range<usize>,
    source: &'a [f32],
    target: *mut f32,
}

impl Kernel for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Reduce { stage, units, source, target } = self;
        for unit in units {
            let (start, rows, results) = stage.unit(unit);
            assert!(results.end <= stage.results());
            // SAFETY: within the target by the assertion, as `launch` checks that the target has
            // `results` values; the units of a stage have disjoint results and each runs once, in
            // one chunk.
            let y = unsafe {
                std::slice::from_raw_parts_mut(target.add(results.start), results.len())
            };
            if stage.inner == 1 {
                let x = &source[start..start + rows];
                y[0] = if stage.kind == Kind::Max { max(s, x) } else { sum(s, x) };
            } else if stage.kind == Kind::Max {
                y.fill(f32::NEG_INFINITY);
                columns(s, &source[start..], stage.inner, rows, y, S::max_nan);
            } else {
                y.fill(0.0);
                columns(s, &source[start..], stage.inner, rows, y, S::add);
            }
            if let Some(divisor) = stage.divisor {
                let divisor = s.splat(divisor);
                update1(
                    s,
                    y,
                    #[inline(always)]
                    |s, y| s.div(y, divisor),
                );
            }
        }
    }
}

/// Folds `rows` rows, which begin `stride` elements after each other in `x`, into `y`.
#[inline(always)]
pub(in crate::ops) fn columns<S: Simd>(
    s: S,
    x: &[f32],
    stride: usize,
    rows: usize,
    y: &mut [f32],
    f: impl Fn(S, S::F32, S::F32) -> S::F32,
) {
    let width = y.len();
    let whole = rows / 8 * 8;
    for first in (0..whole).step_by(8) {
        update_many(
            s,
            [&mut *y],
            std::array::from_fn::<_, 8, _>(|i| &x[(first + i) * stride..][..width]),
            #[inline(always)]
            |s, [y], [a, b, c, d, e, g, h, i]| {
                let low = f(s, f(s, a, b), f(s, c, d));
                [f(s, y, f(s, low, f(s, f(s, e, g), f(s, h, i))))]
            },
        );
    }
    for row in whole..rows {
        update2(s, y, &x[row * stride..][..width], &f);
    }
}
