//! `transpose` on a GPU: planes turned in tiles, or elements read with strides, by `kernels/copy.cu`.

use super::Axis;
use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::ops::{Site, places};

/// Side of a tile.
const SIDE: usize = 32;
/// Planes that are narrower leave most of a tile empty; their rows share lines of the cache anyway.
const NARROW: usize = 8;

/// Nothing for shapes of more axes than kernels walk, or an axis of 2^31 elements or more.
pub(super) fn launch(site: &Site<'_>, mut axes: Vec<Axis>) -> Option<Launches> {
    let all = |axes: &[Axis], of: fn(&Axis) -> usize| axes.iter().map(of).collect::<Vec<_>>();
    let rows = axes.iter().position(|axis| axis.input_stride == 1);
    let turned = match (rows, axes.last()) {
        (Some(rows), Some(columns)) => {
            rows + 1 < axes.len() && axes[rows].extent.min(columns.extent) >= NARROW
        }
        _ => false,
    };
    let (Some(rows), true) = (rows, turned) else {
        return places::strided(site, &all(&axes, |a| a.extent), all(&axes, |a| a.input_stride));
    };
    let (columns, rows) = (axes.pop()?, axes.remove(rows));
    let extents = all(&axes, |axis| axis.extent);
    let strides = [all(&axes, |axis| axis.input_stride), all(&axes, |axis| axis.output_stride)];
    let extent = |axis: Axis| i32::try_from(axis.extent).ok().map(|extent| extent as u32);
    let planes = Argument::Struct(vec![
        places::axes(&extents, &strides, 1)?,
        Argument::U64(columns.input_stride as u64),
        Argument::U64(rows.output_stride as u64),
        extent(rows)?.into(),
        extent(columns)?.into(),
    ]);
    let tiles = rows.extent.div_ceil(SIDE) * columns.extent.div_ceil(SIDE);
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("copy", places::of_bits("planes", site.outputs[0].dtype))
            .grid([extents.iter().product::<usize>() * tiles, 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(planes),
    );
    Some(launches)
}
