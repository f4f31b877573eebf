//! What `slice`, `pad` and `concat` share: a tensor cut at one axis, and rows that are made of runs.

use super::Site;
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Shape};

/// A row-major tensor seen as \[outer, extent, inner\] around one of its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisShape {
    /// Product of the extents before the axis.
    pub outer: usize,
    /// Extent of the axis.
    pub extent: usize,
    /// Product of the extents after the axis.
    pub inner: usize,
}

impl AxisShape {
    /// `shape` around `axis`, for the operation `op`.
    ///
    /// # Errors
    /// There is no such axis.
    pub fn of(op: &str, shape: &Shape, axis: usize) -> Result<AxisShape> {
        if axis >= shape.rank() {
            return Err(Error::operation(op, format!("{shape} has no axis {axis}")));
        }
        Ok(AxisShape::known(shape, axis))
    }

    /// `shape` around `axis`, which a check has found to be there.
    ///
    /// # Panics
    /// There is no such axis.
    pub fn known(shape: &Shape, axis: usize) -> AxisShape {
        let extents = shape.extents();
        AxisShape {
            outer: extents[..axis].iter().product(),
            extent: extents[axis],
            inner: extents[axis + 1..].iter().product(),
        }
    }

    /// `shape` with another extent in `axis`.
    ///
    /// # Panics
    /// There is no such axis.
    pub fn replace(shape: &Shape, axis: usize, extent: usize) -> Shape {
        let mut extents = shape.extents().to_vec();
        extents[axis] = extent;
        Shape::new(extents)
    }
}

/// Where a run of elements of an output row comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Segment {
    /// From element `row * stride + start` of an input on.
    Input { input: usize, stride: usize, start: usize },
    /// Zeros.
    Zeros,
}

/// Bytes a nanosecond that a core copies, there and back.
const BYTES: f64 = 10.0;

/// Writes output 0 as `rows` rows, each made of the parts (length, origin) one after another.
pub(super) fn gather(site: &Site<'_>, rows: usize, parts: Vec<(usize, Segment)>) -> Launch {
    match site.outputs[0].dtype {
        DType::F32 => gather_of::<f32>(site, rows, parts),
        DType::Bf16 => gather_of::<half::bf16>(site, rows, parts),
        DType::U32 => gather_of::<u32>(site, rows, parts),
        DType::U8 => gather_of::<u8>(site, rows, parts),
    }
}

fn gather_of<T: Element>(site: &Site<'_>, rows: usize, parts: Vec<(usize, Segment)>) -> Launch {
    let columns: usize = parts.iter().map(|(len, _)| len).sum();
    let elements = site.outputs[0].elements();
    assert_eq!(columns * rows, elements, "the parts make up the output");
    // Chunks are cut by elements, not by rows: there may be few long rows, or many short ones.
    let per_chunk = rows_per_chunk(2.0 * size_of::<T>() as f64 / BYTES);
    Launch::new("memmove").rows(elements, per_chunk, move |chunk| {
        let range = chunk.row_range();
        let mut out = chunk.output::<T>(0);
        let (mut row, mut column) = (range.start / columns, range.start % columns);
        while !out.is_empty() {
            let mut first = 0;
            for &(len, segment) in &parts {
                // What this chunk takes of the part: from `skip` on, as far as the chunk goes.
                let skip = column.saturating_sub(first).min(len);
                let take = (len - skip).min(out.len());
                let (run, rest) = std::mem::take(&mut out).split_at_mut(take);
                match segment {
                    Segment::Input { input, stride, start } => {
                        let from = row * stride + start + skip;
                        run.copy_from_slice(&chunk.input(input)[from..from + run.len()]);
                    }
                    Segment::Zeros => run.fill(T::zeroed()),
                }
                out = rest;
                first += len;
            }
            (row, column) = (row + 1, 0);
        }
    })
}
