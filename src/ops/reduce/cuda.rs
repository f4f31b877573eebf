//! Sum, mean and maximum on a GPU: `kernels/reduce.cu`, one run of axes after another, the last one
//! first. Long axes are reduced by parts, and the parts in order.

use super::Kind;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// Rows that one warp reduces; longer ones have a block.
const SHORT: usize = 512;
/// Elements of a row that one block takes at least.
const ROW_PART: usize = 8192;
/// Rows of a column that one thread takes at least: fewer are not worth a second launch.
const COLUMN_PART: usize = 8;
/// Blocks that a reduction is cut into where its results alone give fewer: four on each multiprocessor of a
/// large GPU.
const BLOCKS: usize = 528;

/// `reduced` says of each axis of the input whether it is.
pub(super) fn launch(site: &Site<'_>, kind: Kind, reduced: &[bool]) -> Option<Launches> {
    let name = if kind == Kind::Max { "max" } else { "sum" };
    // Runs of axes that are all reduced, or all kept.
    let mut runs: Vec<(usize, bool)> = Vec::new();
    let mut count = 1usize;
    for (&extent, &reduced) in site.inputs[0].shape.extents().iter().zip(reduced) {
        count *= if reduced { extent } else { 1 };
        match runs.last_mut() {
            _ if extent == 1 => {}
            Some(last) if last.1 == reduced => last.0 *= extent,
            _ => runs.push((extent, reduced)),
        }
    }
    let scale = if kind == Kind::Mean { 1.0 / count as f32 } else { 1.0 };
    let mut launches = Launches::new();
    let mut x = Place::Input(0);
    let mut inner = 1;
    let mut left = runs.iter().filter(|run| run.1).count();
    if left == 0 {
        launches.copy(x, Place::Output(0), site.inputs[0].bytes());
        return Some(launches);
    }
    while let Some((extent, is_reduced)) = runs.pop() {
        if !is_reduced {
            inner *= extent;
            continue;
        }
        left -= 1;
        let outer: usize = runs.iter().map(|run| run.0).product();
        let (y, scale) = match left {
            0 => (Place::Output(0), scale),
            _ => (launches.scratch(outer * inner), 1.0),
        };
        run(&mut launches, name, x, y, [outer, extent, inner], scale)?;
        x = y;
    }
    Some(launches)
}

/// Reduces the middle axis of `[outer, extent, inner]`.
pub(in crate::ops) fn run(
    launches: &mut Launches,
    name: &str,
    x: Place,
    y: Place,
    [outer, extent, inner]: [usize; 3],
    scale: f32,
) -> Option<()> {
    // Nothing to write, and no lanes to share it.
    if outer == 0 || inner == 0 {
        return Some(());
    }
    let number = |count: usize| u32::try_from(count).ok();
    if inner == 1 && extent <= SHORT {
        launches.kernel(
            Kernel::new("reduce", format!("reduce_{name}_short_f32"))
                .grid([outer.div_ceil(8), 1, 1])
                .with(x)
                .with(y)
                .with(number(outer)?)
                .with(number(extent)?)
                .with(scale),
        );
        return Some(());
    }
    // Of columns: how many threads stand side by side, and what they take at once. Many columns
    // fill the device by themselves, and few rows are better left to one thread.
    let wide = inner.is_multiple_of(4) && inner >= 1024;
    let lanes = match inner {
        _ if wide && extent <= 64 => 256,
        _ => inner.min(32),
    };
    let (blocks, least) = match inner {
        1 => (outer, ROW_PART),
        _ if wide => (inner.div_ceil(4 * lanes) * outer, 256 / lanes * COLUMN_PART),
        _ => (inner.div_ceil(lanes) * outer, 256 / lanes * COLUMN_PART),
    };
    let parts = (BLOCKS / blocks.max(1)).clamp(1, extent.div_ceil(least).max(1));
    // Whole groups of four elements.
    let per_part = extent.div_ceil(parts).next_multiple_of(4).max(4);
    let parts = extent.div_ceil(per_part).max(1);
    let (to, own_scale) = match parts {
        1 => (y, scale),
        _ => (launches.scratch(parts * outer * inner), 1.0),
    };
    let kernel = match inner {
        1 => Kernel::new("reduce", format!("reduce_{name}_rows_f32"))
            .grid([outer, parts, 1])
            .with(x)
            .with(to)
            .with(number(extent)?)
            .with(number(per_part)?),
        _ => {
            let (kind, columns) = if wide { ("wide", 4 * lanes) } else { ("columns", lanes) };
            Kernel::new("reduce", format!("reduce_{name}_{kind}_f32"))
                .grid([inner.div_ceil(columns) * outer, parts, 1])
                .with(x)
                .with(to)
                .with(number(extent)?)
                .with(number(inner)?)
                .with(number(per_part)?)
                .with(number(lanes)?)
        }
    };
    launches.kernel(kernel.with(own_scale));
    if parts > 1 {
        run(launches, name, to, y, [1, parts, outer * inner], scale)?;
    }
    Some(())
}
