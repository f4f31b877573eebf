//! Packed operands: where each element lies, and packing weights once for many products.

use super::{Address, Precision, Transpose, driver, with_kernel};
use crate::device::cpu::Isa;
use crate::tensor::DType;
use std::ops::Range;

/// How the panels of an operand are cut and woven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Weave {
    /// Rows of op(A), or columns of op(B), in a panel; at least 1.
    pub width: usize,
    /// Consecutive inner indices of one row (column) that lie next to each other; at least 1.
    pub group: usize,
    /// The inner dimension is filled up with zeros to a multiple of this, itself one of `group`.
    pub multiple: usize,
    /// Type of the packed elements.
    pub element: DType,
}

impl Weave {
    /// Panels of f32 without groups.
    pub fn f32(width: usize) -> Weave {
        Weave { width, group: 1, multiple: 1, element: DType::F32 }
    }

    pub fn layout(self, count: usize, depth: usize) -> PackedLayout {
        let Weave { width, group, multiple, element } = self;
        PackedLayout { width, group, multiple, element, count, depth }
    }
}

/// How a packed operand lies in memory: panels of `width` rows of op(A) (columns of op(B)), panel
/// after panel; each panel is a sequence of slices of `group` inner indices, each slice holds the
/// `group` elements of its first row, then those of the next.
///
/// Element (i, p) of op(A), or (p, i) of op(B), with i in `0..count` and p in `0..depth`, lies at
/// [`PackedLayout::index`]. Places of the last panel beyond `count` and of the inner dimension
/// beyond `depth` are zero. The layout depends on `count`, `depth`, side, instruction set and
/// precision only, so that a weight packed once serves every batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedLayout {
    /// Rows of op(A), or columns of op(B), in a panel; at least 1.
    pub width: usize,
    /// Consecutive inner indices of one row (column) that lie next to each other.
    pub group: usize,
    /// The inner dimension is filled up with zeros to a multiple of this.
    pub multiple: usize,
    /// Type of the packed elements.
    pub element: DType,
    /// Rows of op(A) (m), or columns of op(B) (n).
    pub count: usize,
    /// Length of the inner dimension, k.
    pub depth: usize,
}

impl PackedLayout {
    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.count.div_ceil(self.width)
    }

    /// Length of the inner dimension with the zeros that fill it up.
    pub fn filled_depth(&self) -> usize {
        self.depth.next_multiple_of(self.multiple)
    }

    /// Elements in memory, those that fill up included.
    pub fn len(&self) -> usize {
        self.panels() * self.width * self.filled_depth()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.len() * self.element.size()
    }

    /// Place of row (column) `i` at inner index `p`.
    pub fn index(&self, i: usize, p: usize) -> usize {
        let Self { width, group, .. } = *self;
        (i / width) * width * self.filled_depth()
            + (p / group) * width * group
            + (i % width) * group
            + p % group
    }
}

/// The layouts in which products of `isa` and `precision` read a weight W \[inputs, outputs\]: as B
/// of `x W`, and as B of `dy W^T`. `None` where an engine gains nothing from packed weights.
pub fn weight_layouts(
    isa: Isa,
    precision: Precision,
    inputs: usize,
    outputs: usize,
) -> Option<[PackedLayout; 2]> {
    if precision == Precision::F32 {
        return None;
    }
    let engine = super::Engine::new(isa, precision);
    let layout = |count, depth| -> PackedLayout {
        with_kernel!(engine, K => {
            <K as driver::Kernel>::weave_b(count).layout(count, depth)
        }, else unreachable!("no engine of its own in f32"))
    };
    Some([layout(outputs, inputs), layout(inputs, outputs)])
}

/// Rows of a weight that [`pack_weights`] takes at a time, or a multiple of it: a multiple of every
/// layout's `width` and `multiple`.
pub const WEIGHT_BAND: usize = 64;

/// Packs some rows of a weight W \[inputs, outputs\] into both layouts of [`weight_layouts`].
///
/// # Safety
/// - `source` is readable as `rows.len()` x `outputs` elements, `stride` apart from row to row;
/// - `packed` are the layouts' memories, aligned for their elements, which nobody else uses in the
///   places of these rows meanwhile. Other rows are other places.
///
/// # Panics
/// When `rows` does not start at a multiple of [`WEIGHT_BAND`], or ends neither at one nor with the
/// weight.
pub unsafe fn pack_weights(
    (isa, precision): (Isa, Precision),
    [forward, backward]: [PackedLayout; 2],
    rows: Range<usize>,
    (source, stride): (Address, usize),
    packed: [*mut u8; 2],
) {
    let (inputs, outputs) = (forward.depth, forward.count);
    assert!(rows.start.is_multiple_of(WEIGHT_BAND) && rows.end <= inputs, "{rows:?} of {inputs}");
    assert!(rows.end == inputs || rows.end.is_multiple_of(WEIGHT_BAND), "{rows:?} of {inputs}");
    if rows.is_empty() || outputs == 0 {
        return;
    }
    let engine = super::Engine::new(isa, precision);
    let all = |end| super::Range { start: 0, end };
    let band = super::Range { start: rows.start, end: rows.end };
    let panels =
        super::Range { start: rows.start / backward.width, end: rows.end.div_ceil(backward.width) };
    // `driver::pack` counts from the first row of the whole weight.
    let source = source.before(rows.start * stride);
    // SAFETY: the rows are inside the layouts (assertions); memory as the caller says.
    with_kernel!(engine, K => unsafe {
        let stored = (source, stride, Transpose::No);
        driver::pack::<K>(forward, all(forward.panels()), band, stored, packed[0].cast());
        let stored = (source, stride, Transpose::Yes);
        driver::pack::<K>(backward, panels, all(outputs), stored, packed[1].cast());
    }, else unreachable!("no engine of its own in f32"));
}
