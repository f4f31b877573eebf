//! Into which blocks the logits are cut, and what lies where in scratch.

use super::{FIELDS, chunk_rows};
use crate::device::cpu::Isa;
use crate::gemm::{ALIGNMENT, Plan, Spec};
use crate::ops::softmax_cross_entropy::cpu::PARTIALS;

// How blocks are chosen: measured at 1024 and 2048 x 256 x 50257 (Zen 4, AVX-512, time of one
// thread). Unfused, 1024 rows take 0.88 s. With all classes at once a block of r rows takes about
// 18 + 0.84 r ms: 64 rows, which need 13 MiB, make 1.14 s in all, 128 rows 1.01 s. Computing the
// logits a second time in blocks of 1024 x 1008 (4 MiB), 1.01 s.

/// Most rows and classes of a block of some of the classes. Not a multiple of 1024 elements: rows
/// that far apart share one set of L1.
const ROWS: usize = 1024;
const CLASSES: usize = 1008;
/// Rows and classes below which blocks are not cut.
const LEAST: usize = 16;
/// A block of rows reads W twice and dW once, and writes dW. That costs as much as the logits of so
/// many rows.
const SWEEP: usize = 128;

/// Sizes of a problem, and which of its products are wanted.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub isa: Isa,
    pub rows: usize,
    pub inner: usize,
    pub classes: usize,
    pub dx: bool,
    pub dw: bool,
    pub db: bool,
}

/// The products of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// x W
    Logits,
    /// g W^T
    Dx,
    /// x^T g
    Dw,
}

/// A block of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub row: usize,
    pub rows: usize,
    pub class: usize,
    pub classes: usize,
}

/// Scratch that a plan asks for, up to where the next thing can begin.
pub(super) fn scratch(plan: &Plan) -> usize {
    plan.scratch_len().next_multiple_of(ALIGNMENT)
}

impl Shape {
    pub fn backward(&self) -> bool {
        self.dx || self.dw || self.db
    }

    pub fn plan(&self, which: Which, rows: usize, classes: usize, accumulate: bool) -> Plan {
        let spec = match which {
            Which::Logits => Spec::new(rows, classes, self.inner),
            Which::Dx => Spec::new(rows, self.inner, classes).b_transposed(),
            Which::Dw => Spec::new(self.inner, classes, rows).a_transposed(),
        };
        let spec = Spec { accumulate, ..spec };
        Plan::new(self.isa, spec, false, false)
    }

    /// Elements of scratch of the products of a part.
    fn products(&self, rows: usize, classes: usize) -> usize {
        let of = |which| scratch(&self.plan(which, rows, classes, false));
        let dx = if self.dx { of(Which::Dx) } else { 0 };
        let dw = if self.dw { of(Which::Dw) } else { 0 };
        of(Which::Logits).max(dx + dw)
    }
}

/// Blocks of `rows` x `classes` (the last ones smaller), and places in scratch, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub rows: usize,
    pub classes: usize,
    /// Rows of a chunk of the row phases.
    pub chunk_rows: usize,
    /// Distance between two fields, which begin at 0.
    pub stride_rows: usize,
    /// Sums of the chunks of the row phases, and how many.
    pub slots_at: usize,
    pub slots: usize,
    /// Logits, and the distance between their rows.
    pub logits_at: usize,
    pub stride: usize,
    /// Scratch of the products.
    pub products_at: usize,
    /// All of it.
    pub elements: usize,
}

impl Layout {
    /// The blocks with the least work of those whose scratch has at most `budget` elements; the
    /// smallest blocks where none has.
    pub fn new(shape: &Shape, budget: usize) -> Layout {
        let fits = |layout: &Layout| layout.elements <= budget;
        let part = Layout::cut(shape, fits);
        match Layout::whole(shape, budget, fits) {
            Some(whole) if whole.overhead(shape) <= part.overhead(shape) => whole,
            _ => part,
        }
    }

    /// All classes at once, and as many rows as fit.
    fn whole(shape: &Shape, budget: usize, fits: impl Fn(&Layout) -> bool) -> Option<Layout> {
        let mut rows = (budget / shape.classes).min(shape.rows);
        while rows > 0 {
            let layout = Layout::of(shape, rows, shape.classes);
            if fits(&layout) {
                return Some(layout);
            }
            rows -= rows.div_ceil(16);
        }
        None
    }

    /// Many rows, and as many classes as fit.
    fn cut(shape: &Shape, fits: impl Fn(&Layout) -> bool) -> Layout {
        let (mut rows, mut classes) = (shape.rows.min(ROWS), shape.classes.min(CLASSES));
        loop {
            let layout = Layout::of(shape, rows, classes);
            if fits(&layout) || (rows <= LEAST && classes <= LEAST) {
                return layout;
            }
            if classes > LEAST && classes >= rows / 4 {
                classes = classes.div_ceil(2);
            } else {
                rows = rows.div_ceil(2);
            }
        }
    }

    /// What is done beside the products that cannot be avoided, in rows of the product x W.
    fn overhead(&self, shape: &Shape) -> usize {
        let again = shape.backward() && self.classes < shape.classes;
        shape.rows.div_ceil(self.rows) * SWEEP + if again { shape.rows } else { 0 }
    }

    fn of(shape: &Shape, rows: usize, classes: usize) -> Layout {
        // Equal blocks.
        let even = |total: usize, most: usize| {
            total.div_ceil(total.div_ceil(most)).next_multiple_of(ALIGNMENT).min(total)
        };
        let (rows, classes) = (even(shape.rows, rows), even(shape.classes, classes));
        let chunk_rows = chunk_rows(classes);
        let stride_rows = rows.next_multiple_of(ALIGNMENT);
        let slots_at = FIELDS * stride_rows;
        let slots = rows.div_ceil(chunk_rows);
        let logits_at = slots_at + (slots * PARTIALS).next_multiple_of(ALIGNMENT);
        let stride = classes.next_multiple_of(ALIGNMENT);
        let products_at = logits_at + rows * stride;
        let last = |total: usize, block: usize| (total - 1) % block + 1;
        let products = [rows, last(shape.rows, rows)]
            .into_iter()
            .flat_map(|r| [classes, last(shape.classes, classes)].map(|c| shape.products(r, c)))
            .max();
        let elements = products_at + products.unwrap_or(0);
        Layout {
            rows,
            classes,
            chunk_rows,
            stride_rows,
            slots_at,
            slots,
            logits_at,
            stride,
            products_at,
            elements,
        }
    }

    /// The blocks: for each block of rows those of its classes, in order.
    pub fn parts(&self, shape: &Shape) -> Vec<Vec<Part>> {
        let Shape { rows: all_rows, classes: all_classes, .. } = *shape;
        let starts = |total: usize, block: usize| (0..total).step_by(block);
        starts(all_rows, self.rows)
            .map(|row| {
                let rows = self.rows.min(all_rows - row);
                starts(all_classes, self.classes)
                    .map(|class| {
                        let classes = self.classes.min(all_classes - class);
                        Part { row, rows, class, classes }
                    })
                    .collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize, inner: usize, classes: usize, backward: bool) -> Shape {
        let isa = Isa::detect().expect("isa");
        Shape { isa, rows, inner, classes, dx: backward, dw: backward, db: backward }
    }

    #[test]
    fn blocks_cover_the_logits_once_and_stay_within_the_budget() {
        let budget = crate::ops::linear_cross_entropy::BUDGET;
        for (rows, inner, classes) in [
            (1, 1, 1),
            (1, 256, 50_257),
            (64, 1024, 50_257),
            (4096, 256, 50_257),
            (4096, 1024, 50_257),
            (4097, 4096, 32_000),
            (100_000, 64, 257),
            (513, 0, 300_001),
        ] {
            for backward in [false, true] {
                let shape = shape(rows, inner, classes, backward);
                let layout = Layout::new(&shape, budget);
                assert!(layout.elements <= budget, "{rows} x {inner} x {classes}: {layout:?}");
                let mut row = 0;
                for parts in layout.parts(&shape) {
                    let (rows, mut class) = (parts[0].rows, 0);
                    for part in parts {
                        assert_eq!((part.row, part.rows, part.class), (row, rows, class));
                        assert!(part.rows > 0 && part.rows <= layout.rows);
                        assert!(part.classes > 0 && part.classes <= layout.classes);
                        class += part.classes;
                    }
                    assert_eq!(class, classes);
                    row += rows;
                }
                assert_eq!(row, rows);
            }
        }
    }

    /// Logits are computed again only where that saves sweeps over W.
    #[test]
    fn few_rows_keep_all_classes_and_many_do_not() {
        let budget = crate::ops::linear_cross_entropy::BUDGET;
        let of = |rows, backward| Layout::new(&shape(rows, 256, 50_257, backward), budget);
        assert_eq!(of(32, true).classes, 50_257);
        assert!(of(1024, true).classes < 50_257 && of(1024, true).rows == 1024);
        assert!(of(512, false).rows == 512);
        let several = Layout::new(&shape(200, 3, 42_500, true), budget);
        assert!(several.classes < 42_500, "{several:?}");
        // The two ways of the test cases.
        let of = |rows, inner, classes, budget| Layout::new(&shape(rows, inner, classes, true), budget);
        let whole = of(300, 6, 37, 9000);
        assert!(whole.classes == 37 && whole.rows < 300, "{whole:?}");
        let cut = of(200, 9, 131, 1500);
        assert!(cut.classes < 131 && cut.rows < 200, "{cut:?}");
    }
}
