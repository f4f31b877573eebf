//! Elementwise arithmetic on a GPU: `kernels/binary.cu`.

use super::Kind;
use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::ops::Site;
use crate::ops::layout::broadcast_strides;

/// Axes that the kernel walks.
const AXES: usize = 4;

/// Nothing for shapes of more axes than the kernel has once they are merged.
pub(super) fn launch(site: &Site<'_>, kind: Kind) -> Option<Launches> {
    let name = match kind {
        Kind::Add => "add",
        Kind::Sub => "sub",
        Kind::Mul => "mul",
        Kind::Div => "div",
        Kind::Equal => "equal",
    };
    let output = &site.outputs[0].shape;
    let elements = site.outputs[0].elements();
    let mut launches = Launches::new();
    if site.inputs.iter().all(|input| input.elements() == elements) {
        launches.kernel(
            Kernel::new("binary", format!("binary_{name}_f32"))
                .grid([elements.div_ceil(1024), 1, 1])
                .with(Place::Input(0))
                .with(Place::Input(1))
                .with(Place::Output(0))
                .with(elements as u64),
        );
        return Some(launches);
    }
    let strides = [0, 1].map(|i| broadcast_strides(&site.inputs[i].shape, output));
    let axes = merged(output.extents(), &strides);
    let mut members = [[1u32; AXES], [0; AXES], [0; AXES]];
    let first = AXES.checked_sub(axes.len())?;
    for (place, axis) in axes.iter().enumerate() {
        for (member, &value) in members.iter_mut().zip(axis) {
            member[first + place] = u32::try_from(value).ok()?;
        }
    }
    let shape = members.iter().flatten().map(|&value| Argument::U32(value)).collect();
    launches.kernel(
        Kernel::new("binary", format!("binary_{name}_broadcast_f32"))
            .grid([elements.div_ceil(256), 1, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(Place::Output(0))
            .with(u32::try_from(elements).ok()?)
            .with(Argument::Struct(shape)),
    );
    Some(launches)
}

/// Extent and both strides of each axis, first axis first, without axes of extent 1 and with
/// neighbours as one where both operands allow it.
fn merged(extents: &[usize], strides: &[Vec<usize>; 2]) -> Vec<[usize; 3]> {
    let mut axes: Vec<[usize; 3]> = Vec::new();
    for (axis, &extent) in extents.iter().enumerate() {
        let [a, b] = [strides[0][axis], strides[1][axis]];
        if extent == 1 {
            continue;
        }
        match axes.last_mut() {
            Some(outer) if outer[1] == a * extent && outer[2] == b * extent => {
                *outer = [outer[0] * extent, a, b];
            }
            _ => axes.push([extent, a, b]),
        }
    }
    axes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_merged_where_both_operands_are_dense() {
        // [4, 3, 5] with itself and with [5]; then with [4, 1, 1].
        let dense = vec![15, 5, 1];
        assert_eq!(merged(&[4, 3, 5], &[dense.clone(), vec![0, 0, 1]]), [[12, 5, 0], [5, 1, 1]]);
        assert_eq!(merged(&[4, 3, 5], &[dense, vec![1, 0, 0]]), [[4, 15, 1], [15, 1, 0]]);
    }
}
