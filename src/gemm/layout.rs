//! Packed operands: where each element lies, and packing weights once for many products.

use super::blocking::Range;
use super::driver::{self, Kernel};
use super::{Address, Engine, Precision, Transpose, with_kernel};
use crate::device::cpu::Isa;
use crate::tensor::DType;
use rayon::prelude::*;

/// How the panels of an operand are cut and woven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Weave {
    /// Rows of op(A), or columns of op(B), in a panel; at least 1.
    pub width: usize,
    /// Consecutive inner indices of one row (column) that lie next to each other; at least 1.
    pub group: usize,
    /// The inner dimension is filled up with zeros to a multiple of this, itself one of `group`.
    pub multiple: usize,
    /// Parts of which an element is the sum.
    pub parts: usize,
    /// Type of the packed elements.
    pub element: DType,
}

impl Weave {
    /// Panels of f32 without groups.
    pub fn f32(width: usize) -> Weave {
        Weave { width, group: 1, multiple: 1, parts: 1, element: DType::F32 }
    }

    pub fn layout(self, count: usize, depth: usize) -> PackedLayout {
        let Weave { width, group, multiple, parts, element } = self;
        PackedLayout { width, group, multiple, parts, element, count, depth }
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
    /// Parts of which an element is the sum: the first is the element rounded, each further one
    /// what is left, rounded.
    pub parts: usize,
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
        self.panels() * self.panel_len()
    }

    /// Elements of a panel.
    pub(super) fn panel_len(&self) -> usize {
        self.width * self.filled_depth() * self.parts
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
        let Self { width, group, multiple, parts, .. } = *self;
        let (slice, p) = (p / multiple, p % multiple);
        (i / width) * self.panel_len()
            + slice * width * multiple * parts
            + (p / group) * width * group
            + (i % width) * group
            + p % group
    }
}

/// The smallest page of memory, in bytes.
const PAGE: usize = 4096;
/// Bytes of new memory that one thread touches at a time: a huge page.
const TOUCHED: usize = 2 << 20;

/// Rows, or columns, of a weight that are packed at a time: a multiple of every engine's panels and
/// slices.
pub const WEIGHT_BAND: usize = 32;

/// A weight W \[inputs, outputs\] and its packed copies.
#[derive(Clone, Copy, Debug)]
pub struct PackedWeight {
    /// First element in the flat weights.
    pub offset: usize,
    /// Rows.
    pub inputs: usize,
    /// Columns.
    pub outputs: usize,
    /// As B of `x W`, and as B of `dy W^T`.
    pub layouts: [PackedLayout; 2],
    /// First element of each in the region of the copies.
    pub places: [usize; 2],
}

/// The packed copies of a model's weights, in which products read them step after step; all in one
/// region, each at a cache line.
#[derive(Clone, Debug)]
pub struct PackedWeights {
    engine: Engine,
    element: DType,
    len: usize,
    weights: Vec<PackedWeight>,
}

impl PackedWeights {
    /// Lays out the copies of weights \[inputs, outputs\] that start at `offset` of flat weights.
    /// `None` where the engine of this precision reads weights as they are: in plain f32.
    ///
    /// # Panics
    /// When this machine lacks the instruction set, or the copies exceed the address space.
    pub fn new(
        isa: Isa,
        precision: Precision,
        weights: impl IntoIterator<Item = (usize, [usize; 2])>,
    ) -> Option<PackedWeights> {
        assert!(isa.is_available(), "this machine lacks {isa}");
        let engine = Engine::new(isa, precision);
        if engine == Engine::new(isa, Precision::F32) {
            return None;
        }
        let layout = |count, depth| -> PackedLayout {
            with_kernel!(engine, K => K::weave_b(count).layout(count, depth),
                else unreachable!("matrixmultiply packs for itself"))
        };
        let element = layout(1, 1).element;
        let (mut len, mut packed) = (0, Vec::new());
        for (offset, [inputs, outputs]) in weights {
            // Filling up makes a copy at most so many times as large, in each extent.
            let most = (inputs.max(1) as u128 + 64) * (outputs.max(1) as u128 + 64) * 16;
            assert!(most < isize::MAX as u128 / 64, "a weight [{inputs}, {outputs}] is too large");
            let layouts = [layout(outputs, inputs), layout(inputs, outputs)];
            let places = layouts.map(|layout| {
                let place = len;
                len = (len + layout.len()).next_multiple_of(64 / element.size());
                place
            });
            packed.push(PackedWeight { offset, inputs, outputs, layouts, places });
        }
        Some(PackedWeights { engine, element, len, weights: packed })
    }

    /// Type of the copies' elements.
    pub fn element(&self) -> DType {
        self.element
    }

    /// Elements of all copies.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The weights, in the order in which they were given.
    pub fn weights(&self) -> &[PackedWeight] {
        &self.weights
    }

    /// What lies between the copies, to be zeros.
    pub fn gaps(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let copies =
            self.weights.iter().flat_map(|weight| weight.places.into_iter().zip(weight.layouts));
        let next = copies.clone().skip(1).map(|(place, _)| place).chain([self.len]);
        copies.zip(next).map(|((place, layout), next)| place + layout.len()..next)
    }

    /// Packs all weights, on all threads. `flat` holds them; `packed` has [`PackedWeights::len`]
    /// elements.
    ///
    /// # Panics
    /// When a slice is too short or not aligned for the elements.
    pub fn pack_all(&self, flat: &[f32], packed: &mut [u8]) {
        assert!(packed.len() >= self.len * self.element.size(), "{} bytes", packed.len());
        assert!(packed.as_ptr().addr().is_multiple_of(self.element.size()), "not aligned");
        /// Where all threads write, each its rows.
        struct Shared(*mut u8);
        // SAFETY: `pack_band` writes the places of its rows alone.
        unsafe impl Sync for Shared {}
        // A band's rows lie all over the copies. On new memory two threads would clear the same pages:
        // so each touches its part first.
        packed.par_chunks_mut(TOUCHED).for_each(|part| {
            part.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0);
        });
        let shared = Shared(packed.as_mut_ptr());
        for (number, weight) in self.weights.iter().enumerate() {
            let PackedWeight { offset, inputs, outputs, .. } = *weight;
            let source = &flat[offset..][..inputs * outputs];
            (0..inputs.div_ceil(WEIGHT_BAND)).into_par_iter().for_each(|band| {
                let shared = &shared;
                let rows = band * WEIGHT_BAND..inputs.min((band + 1) * WEIGHT_BAND);
                let source = source[rows.start * outputs..].as_ptr();
                // SAFETY: the slice above has all rows, the assertions make room for the copies,
                // which are borrowed exclusively, and no other call has these rows; `new` found the
                // instruction set.
                unsafe { self.pack_band(number, rows, source, shared.0) };
            });
        }
        for gap in self.gaps() {
            let size = self.element.size();
            packed[gap.start * size..gap.end * size].fill(0);
        }
    }

    /// The copies of weight `number` alone: it starts at element 0, and they at the first of its
    /// places.
    pub fn only(&self, number: usize) -> PackedWeights {
        let weight = self.weights[number];
        let places = weight.places.map(|place| place - weight.places[0]);
        let len = places[1] + weight.layouts[1].len();
        let weights = vec![PackedWeight { offset: 0, places, ..weight }];
        PackedWeights { engine: self.engine, element: self.element, len, weights }
    }

    /// Packs some rows of weight `number`. `source` is the first of these rows, `packed` the region
    /// of the copies.
    ///
    /// # Safety
    /// As for [`PackedWeights::pack_block`].
    ///
    /// # Panics
    /// As for [`PackedWeights::pack_block`].
    pub unsafe fn pack_band(
        &self,
        number: usize,
        rows: std::ops::Range<usize>,
        source: *const f32,
        packed: *mut u8,
    ) {
        let cols = 0..self.weights[number].outputs;
        // SAFETY: the caller's contract.
        unsafe { self.pack_block(number, [rows, cols], source, packed) }
    }

    /// Packs a block of weight `number`, rows and columns. `source` is its first element, `packed`
    /// the region of the copies.
    ///
    /// # Safety
    /// The block is readable, its rows as far apart as those of the weight; the region has
    /// [`PackedWeights::len`] elements, aligned, and nobody else uses the places of the block
    /// meanwhile. Other blocks have other places.
    ///
    /// # Panics
    /// When rows or columns do not start at a multiple of [`WEIGHT_BAND`], or end neither at one nor
    /// with the weight.
    pub unsafe fn pack_block(
        &self,
        number: usize,
        [rows, cols]: [std::ops::Range<usize>; 2],
        source: *const f32,
        packed: *mut u8,
    ) {
        let PackedWeight { inputs, outputs, layouts: [forward, backward], places, .. } =
            self.weights[number];
        for (part, all) in [(&rows, inputs), (&cols, outputs)] {
            assert!(part.start.is_multiple_of(WEIGHT_BAND) && part.end <= all, "{part:?} of {all}");
            assert!(part.end == all || part.end.is_multiple_of(WEIGHT_BAND), "{part:?} of {all}");
        }
        if rows.is_empty() || cols.is_empty() {
            return;
        }
        let range = |part: &std::ops::Range<usize>| Range { start: part.start, end: part.end };
        let panels = |part: &std::ops::Range<usize>, width: usize| Range {
            start: part.start / width,
            end: part.end.div_ceil(width),
        };
        // `driver::pack` counts from the first element of the whole weight.
        let source = Address::F32(source).before(rows.start * outputs + cols.start);
        // SAFETY: the block is inside the layouts (assertions); memory as the caller says.
        with_kernel!(self.engine, K => unsafe {
            let [forward_at, backward_at] =
                places.map(|place| packed.cast::<<K as Kernel>::Element>().add(place));
            let stored = (source, outputs, Transpose::No);
            let across = panels(&cols, forward.width);
            driver::pack::<K>(forward, across, range(&rows), stored, forward_at);
            let stored = (source, outputs, Transpose::Yes);
            let down = panels(&rows, backward.width);
            driver::pack::<K>(backward, down, range(&cols), stored, backward_at);
        }, else unreachable!("matrixmultiply packs for itself"));
    }
}
