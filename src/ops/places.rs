//! Elements brought to other places on a GPU, by `kernels/copy.cu`: rows made of parts, and axes with
//! strides. On the CPU: `segments` and `layout`.

use super::Site;
use super::segments::Segment;
use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::tensor::DType;

/// Axes that a kernel walks at most once neighbours are merged, and parts of a row in one launch.
const AXES: usize = 8;
const PARTS: usize = 8;
/// Bytes of the result that a block takes, and a thread in one access.
const BLOCK: usize = 4096;
const ACCESS: usize = 16;

/// The name of a kernel for elements of that type: by their bits.
pub(super) fn of_bits(kind: &str, dtype: DType) -> String {
    format!("copy_{kind}_{}", 8 * dtype.size())
}

/// The struct `Axes` of `kernels/common/index.cuh` for a dense result of these extents and operands with
/// these strides in it: without axes of extent 1, neighbours merged where every operand allows it, the last
/// one first. An access is for `count` elements. Nothing where more axes are left than kernels walk, or one
/// of 2^32 elements or more.
pub(super) fn axes<const N: usize>(
    extents: &[usize],
    strides: &[Vec<usize>; N],
    count: usize,
) -> Option<Argument> {
    let mut merged: Vec<(usize, [usize; N])> = Vec::new();
    for (axis, &extent) in extents.iter().enumerate().rev() {
        let own: [usize; N] = std::array::from_fn(|n| strides[n][axis]);
        match merged.last_mut() {
            _ if extent == 1 => {}
            Some((inner, by))
                if (0..N).all(|n| own[n] == by[n] * *inner)
                    && *inner * extent <= u32::MAX as usize =>
            {
                *inner *= extent;
            }
            _ => merged.push((extent, own)),
        }
    }
    if merged.len() > AXES {
        return None;
    }
    let one_access = |n: usize| {
        let (inner, outer) = merged.split_first()?;
        let lies_well = outer.iter().all(|(_, by)| by[n].is_multiple_of(count));
        Some(inner.1[n] == 0 || inner.1[n] == 1 && lies_well)
    };
    let wide = merged.first().is_some_and(|(inner, _)| inner.is_multiple_of(count))
        && (0..N).all(|n| one_access(n) == Some(true));
    let mut members = Vec::new();
    for axis in 0..AXES {
        let extent = merged.get(axis).map_or(1, |axis| axis.0);
        members.push(u32::try_from(extent).ok()?.into());
    }
    for n in 0..N {
        let stride = |axis: usize| merged.get(axis).map_or(0, |axis| axis.1[n]);
        members.extend((0..AXES).map(|axis| Argument::U64(stride(axis) as u64)));
    }
    members.extend([(merged.len() as u32).into(), u32::from(wide).into()]);
    Some(Argument::Struct(members))
}

/// Output 0 is input 0, read with these strides in the output's extents. Nothing where [`axes`] gives nothing.
pub(super) fn strided(site: &Site<'_>, extents: &[usize], strides: Vec<usize>) -> Option<Launches> {
    let output = &site.outputs[0];
    let size = output.dtype.size();
    let axes = axes(extents, &[strides], ACCESS / size)?;
    let mut launches = Launches::new();
    launches.kernel(
        Kernel::new("copy", of_bits("axes", output.dtype))
            .grid([output.elements().div_ceil(BLOCK / size), 1, 1])
            .with(Place::Input(0))
            .with(Place::Output(0))
            .with(output.elements() as u64)
            .with(axes),
    );
    Some(launches)
}

/// Output 0 as `rows` rows, each made of the parts (length, origin) one after another.
pub(super) fn gather(site: &Site<'_>, rows: usize, parts: &[(usize, Segment)]) -> Launches {
    let size = site.outputs[0].dtype.size();
    let y_stride: usize = parts.iter().map(|(len, _)| len).sum();
    assert_eq!(y_stride * rows, site.outputs[0].elements(), "the parts make up the output");
    let parts: Vec<_> = parts.iter().filter(|(len, _)| *len > 0).collect();
    let mut launches = Launches::new();
    let mut first = 0;
    for parts in parts.chunks(PARTS) {
        let (mut members, mut columns) = (Vec::<Argument>::new(), 0);
        let mut numbers = vec![y_stride, first];
        for &&(len, segment) in parts {
            let (x, start, stride) = match segment {
                Segment::Input { input, stride, start } => (Place::Input(input), start, stride),
                Segment::Zeros => (Place::Null, 0, 0),
            };
            let own = [start, stride, columns, columns + len];
            members.push(x.into());
            members.extend(own.map(|number| Argument::U64(number as u64)));
            numbers.extend(own);
            columns += len;
        }
        for _ in parts.len()..PARTS {
            members.push(Place::Null.into());
            members.extend((0..4).map(|_| Argument::U64(0)));
        }
        members.extend([columns, y_stride, first].map(|number| Argument::U64(number as u64)));
        let wide = numbers.iter().all(|number| (number * size).is_multiple_of(ACCESS));
        members.extend([(parts.len() as u32).into(), u32::from(wide).into()]);
        let elements = rows * columns;
        launches.kernel(
            Kernel::new("copy", of_bits("parts", site.outputs[0].dtype))
                .grid([elements.div_ceil(BLOCK / size), 1, 1])
                .with(Argument::Struct(members))
                .with(Place::Output(0))
                .with(elements as u64),
        );
        first += columns;
    }
    launches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Extents, the strides of two operands, and whether they can be read four at once.
    fn of(extents: &[usize], strides: [Vec<usize>; 2]) -> (Vec<u32>, [Vec<u64>; 2], bool) {
        let Some(Argument::Struct(members)) = axes(extents, &strides, 4) else {
            panic!("too many")
        };
        let u32_at = |i: usize| match members[i] {
            Argument::U32(value) => value,
            _ => panic!("no u32 at {i}"),
        };
        let count = u32_at(3 * AXES) as usize;
        let strides = [1, 2].map(|n| {
            let of_axis = |member: &Argument| match member {
                Argument::U64(value) => *value,
                _ => panic!("no u64"),
            };
            members[n * AXES..][..count].iter().map(of_axis).collect()
        });
        ((0..count).map(u32_at).collect(), strides, u32_at(3 * AXES + 1) == 1)
    }

    #[test]
    fn axes_are_merged_where_all_operands_allow_it() {
        // [4, 3, 8] with itself and with [8]; then with [4, 1, 1]; then with [1, 3, 1].
        let dense = vec![24, 8, 1];
        let found = of(&[4, 3, 8], [dense.clone(), vec![0, 0, 1]]);
        assert_eq!(found, (vec![8, 12], [vec![1, 8], vec![1, 0]], true));
        let found = of(&[4, 3, 8], [dense.clone(), vec![1, 0, 0]]);
        assert_eq!(found, (vec![24, 4], [vec![1, 24], vec![0, 1]], true));
        let found = of(&[4, 3, 8], [dense, vec![0, 1, 0]]);
        assert_eq!(found, (vec![8, 3, 4], [vec![1, 8, 24], vec![0, 1, 0]], true));
        // Rows that do not begin at multiples of four; a scalar; an axis that another one's stride leaves.
        let found = of(&[4, 6], [vec![6, 1], vec![0, 1]]);
        assert_eq!(found, (vec![6, 4], [vec![1, 6], vec![1, 0]], false));
        assert_eq!(of(&[1, 1], [vec![0, 0], vec![0, 0]]), (vec![], [vec![], vec![]], false));
        assert!(!of(&[8, 4], [vec![4, 1], vec![1, 8]]).2, "a stride of 8 along the last axis");
    }

    #[test]
    fn more_than_the_kernels_walk_is_refused() {
        let alternating: Vec<usize> = (0..9).map(|axis| axis % 2).collect();
        assert_eq!(axes(&[2; 9], &[alternating], 4), None);
        assert_eq!(axes(&[1 << 33], &[vec![0]], 4), None);
        assert!(axes(&[1 << 20, 1 << 20], &[vec![0, 0]], 4).is_some(), "two axes that stay apart");
    }
}
