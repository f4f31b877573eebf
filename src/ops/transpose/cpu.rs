//! `transpose` on the CPU: copies of runs, or planes turned block by block.
#![allow(unsafe_code)]

use super::Axis;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;
use crate::tensor::{DType, Element};

/// Rows and columns of a block: 16 rows of f32 are one cache line each, and the block is 1 KiB.
const BLOCK: usize = 16;
/// Blocks along each side of what is claimed at once, so that lines are used while in L1.
const SIDE: usize = 4 * BLOCK;
/// One element there and back.
const NANOSECONDS: f64 = 0.8;
/// Finding the place of a run or plane: a few divisions.
const PLACE_NANOSECONDS: f64 = 10.0;

pub(super) fn launch(site: &Site<'_>, axes: Vec<Axis>) -> Launch {
    match site.outputs[0].dtype {
        DType::F32 => launch_of::<f32>(site, axes),
        DType::Bf16 => launch_of::<half::bf16>(site, axes),
        DType::U32 => launch_of::<u32>(site, axes),
        DType::U8 => launch_of::<u8>(site, axes),
    }
}

fn launch_of<T: Element>(site: &Site<'_>, mut axes: Vec<Axis>) -> Launch {
    let elements = site.outputs[0].elements();
    let columns = match axes.pop() {
        Some(columns) if elements > 0 => columns,
        _ => return Launch::new("memmove").rows(0, 1, |_| {}),
    };
    if columns.input_stride == 1 {
        return runs::<T>(elements, axes, columns);
    }
    let rows = axes.iter().position(|axis| axis.input_stride == 1);
    let Some(rows) = rows else { panic!("one axis of a dense input has stride 1") };
    let rows = axes.remove(rows);
    let isa = site.isa;
    let (down, across) = (rows.extent.div_ceil(SIDE), columns.extent.div_ceil(SIDE));
    let planes: usize = axes.iter().map(|axis| axis.extent).product();
    let parts = planes * down * across;
    let per_part = (elements / parts) as f64 * NANOSECONDS + PLACE_NANOSECONDS;
    let per_chunk = rows_per_chunk(per_part);
    Launch::new(isa.name()).tiles(parts.div_ceil(per_chunk), move |chunk| {
        let start = chunk.index() * per_chunk;
        let (x, y) = (chunk.input::<T>(0), chunk.output_ptr::<T>(0));
        for part in start..(start + per_chunk).min(parts) {
            let (plane, row, column) =
                (part / (down * across), part / across % down * SIDE, part % across * SIDE);
            let (from, to) = place(&axes, plane);
            let x = &x[from + row + column * columns.input_stride..];
            // SAFETY: `place`, row and column are below the extents of the output's axes, so the
            // sum of their strides lies in the output.
            let y = unsafe { y.add(to + row * rows.output_stride + column) };
            let (rows_here, columns_here) =
                ((rows.extent - row).min(SIDE), (columns.extent - column).min(SIDE));
            dispatch(
                isa,
                Turn {
                    x,
                    x_stride: columns.input_stride,
                    y,
                    y_stride: rows.output_stride,
                    rows: rows_here,
                    columns: columns_here,
                },
            );
        }
    })
}

/// The last axis stays: copies runs of it.
fn runs<T: Element>(elements: usize, axes: Vec<Axis>, columns: Axis) -> Launch {
    let len = columns.extent;
    let per_row = len as f64 * NANOSECONDS + PLACE_NANOSECONDS;
    Launch::new("memmove").rows(elements / len, rows_per_chunk(per_row), move |chunk| {
        let x = chunk.input::<T>(0);
        for (row, y) in chunk.row_range().zip(chunk.output::<T>(0).chunks_mut(len)) {
            let (from, _) = place(&axes, row);
            y.copy_from_slice(&x[from..from + len]);
        }
    })
}

/// Where the element with that row-major number over `axes` lies in the input and the output.
fn place(axes: &[Axis], number: usize) -> (usize, usize) {
    let (mut rest, mut from, mut to) = (number, 0, 0);
    for axis in axes.iter().rev() {
        let index = rest % axis.extent;
        rest /= axis.extent;
        from += index * axis.input_stride;
        to += index * axis.output_stride;
    }
    (from, to)
}

/// `y[r * y_stride + c] = x[c * x_stride + r]` for `rows` x `columns`.
struct Turn<'a, T> {
    x: &'a [T],
    x_stride: usize,
    y: *mut T,
    y_stride: usize,
    rows: usize,
    columns: usize,
}

impl<T: Element> Kernel for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let Turn { x, x_stride, y, y_stride, rows, columns } = self;
        let mut block = [[T::zeroed(); BLOCK]; BLOCK];
        for row in (0..rows).step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                let (height, width) = ((rows - row).min(BLOCK), (columns - column).min(BLOCK));
                for (c, line) in block[..width].iter_mut().enumerate() {
                    let from = (column + c) * x_stride + row;
                    if height == BLOCK {
                        line.copy_from_slice(&x[from..from + BLOCK]);
                    } else {
                        line[..height].copy_from_slice(&x[from..from + height]);
                    }
                }
                for r in 0..height {
                    // SAFETY: row + r < rows and column + width <= columns: this part of a row of
                    // the output belongs to this part of the plane, which one chunk handles (the
                    // parts in `launch_of` divide the output into boxes).
                    let line = unsafe {
                        let start = y.add((row + r) * y_stride + column);
                        std::slice::from_raw_parts_mut(start, width)
                    };
                    if width == BLOCK {
                        for c in 0..BLOCK {
                            line[c] = block[c][r];
                        }
                    } else {
                        for (y, column) in line.iter_mut().zip(&block) {
                            *y = column[r];
                        }
                    }
                }
            }
        }
    }
}
