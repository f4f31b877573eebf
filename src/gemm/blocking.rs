//! Into which chunks a product falls. Pure arithmetic on the shape, and on the size of L2 for the
//! largest tile: no thread counts. Sums are the same on every machine of an instruction set.

use super::{PackedLayout, Spec};

/// Half-open range of rows, columns or inner indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub start: usize,
    pub end: usize,
}

impl Range {
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The `i`-th piece of `step` in `0..total`.
    fn piece(i: usize, step: usize, total: usize) -> Range {
        Range { start: (i * step).min(total), end: ((i + 1) * step).min(total) }
    }
}

/// What an engine asks of its tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    /// Tiles are multiples of this many rows.
    pub rows: usize,
    /// Tiles are multiples of this many columns.
    pub cols: usize,
    /// Parts of a split K are multiples of this.
    pub depth: usize,
    /// Largest tile that keeps its operands in L2 for one `depth`.
    pub most_rows: usize,
    /// The same for columns.
    pub most_cols: usize,
    /// Whether to cut all columns before rows, because each row of tiles packs B for itself.
    pub cols_first: bool,
    /// How many times as fast as f32 it multiplies.
    pub speed: u64,
    /// Whether K may be split.
    pub splits: bool,
}

impl Unit {
    /// Tiles at multiples of so many rows and columns too, of at most `most` elements where that is
    /// possible, for a C of `n` columns; whole rows before square tiles. K stays whole.
    pub fn in_blocks(self, [rows, cols]: [usize; 2], most: usize, n: usize) -> Unit {
        let (rows, cols) = (common_multiple(self.rows, rows), common_multiple(self.cols, cols));
        let fit = |elements: usize, step: usize| (elements / step).max(1) * step;
        let most_cols = fit(most / rows, cols).min(n.max(1).next_multiple_of(cols));
        let most_rows = fit(most / most_cols, rows);
        Unit { rows, cols, most_rows, most_cols, splits: false, ..self }
    }
}

fn common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Work below which a chunk is not worth claiming: about 2 microseconds of one thread, in
/// floating-point operations. Claiming costs 0.05, a barrier 0.2; 4 times as much made a step of
/// 64-64-64-10 at batch 128 on two threads 69 us instead of 60.
const LEAST_WORK: u64 = 1 << 18;
/// Chunks of a product that is large enough.
const CHUNKS: u64 = 32;
/// K is split only into parts at least this long, so that the sums of phase 3 stay below a percent
/// of the work.
const LEAST_PART: usize = 512;
/// Partial sums hold at most this many elements (16 MiB).
const MOST_PARTIAL: usize = 4 << 20;
/// A reduce chunk reads about this many partial sums.
const REDUCE_READS: usize = 1 << 16;

/// Whether a product over `k` may be split along K, if C is small enough.
pub(super) fn may_split(k: usize) -> bool {
    k >= 2 * LEAST_PART
}

/// The tiles of C and the parts of K.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
    part_depth: usize,
    m: usize,
    n: usize,
    /// Whether tiles of the same rows are neighbours, else those of the same columns.
    along_rows: bool,
    pub parts: usize,
    pub reduce_chunks: usize,
}

/// One chunk of phase 2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub part: usize,
    pub rows: Range,
    pub cols: Range,
    pub depth: Range,
}

impl Grid {
    /// Cuts the product into at most `most` tiles.
    pub fn new(spec: &Spec, unit: Unit, most: usize) -> Grid {
        let Spec { m, n, k, .. } = *spec;
        let mut grid = Grid {
            rows: usize::from(m > 0 && n > 0),
            cols: 1,
            tile_rows: m,
            tile_cols: n,
            part_depth: k.max(1),
            m,
            n,
            // Chunks that are neighbours run on the same core. The smaller operand is the one to
            // have in all caches; where that is B, rows stay where the layer before left them.
            along_rows: k * n <= m * k,
            parts: 1,
            reduce_chunks: 0,
        };
        let wanted = wanted_chunks(spec, unit.speed);
        let small = wanted == 1 && m * n <= unit.most_rows * unit.most_cols;
        if grid.rows == 0 || most == 1 || small {
            return grid;
        }
        let (row_units, col_units) = (m.div_ceil(unit.rows), n.div_ceil(unit.cols));
        // Few tiles of a useful size but a long K: split K rather than C.
        let useful = m.div_ceil(4 * unit.rows) * n.div_ceil(2 * unit.cols);
        let parts = match unit.splits {
            true => (wanted / useful).min(k / LEAST_PART).min(MOST_PARTIAL / (m * n)).max(1),
            false => 1,
        };
        if parts > 1 {
            grid.part_depth = k.div_ceil(parts).next_multiple_of(unit.depth);
            grid.parts = k.div_ceil(grid.part_depth);
        }
        let wanted = wanted.div_ceil(grid.parts);
        // Halve the longer side until there are enough tiles, each small enough.
        let (mut rows, mut cols) = (m.div_ceil(unit.most_rows), n.div_ceil(unit.most_cols));
        loop {
            grid.tile_rows = row_units.div_ceil(rows) * unit.rows;
            grid.tile_cols = col_units.div_ceil(cols) * unit.cols;
            grid.rows = m.div_ceil(grid.tile_rows);
            grid.cols = n.div_ceil(grid.tile_cols);
            let (can_rows, can_cols) = (grid.tile_rows > unit.rows, grid.tile_cols > unit.cols);
            if grid.rows * grid.cols >= wanted || !(can_rows || can_cols) {
                break;
            }
            let cols_next = match unit.cols_first {
                true => true,
                false => !grid.along_rows && grid.tile_cols >= grid.tile_rows,
            };
            if can_cols && (cols_next || !can_rows) {
                cols = (2 * grid.cols).min(col_units);
            } else {
                rows = (2 * grid.rows).min(row_units);
            }
        }
        if grid.parts > 1 {
            grid.reduce_chunks =
                (m * n * grid.parts / REDUCE_READS).clamp(1, m.min(CHUNKS as usize));
        }
        grid
    }

    /// Chunks of phase 2.
    pub fn tiles(&self) -> usize {
        self.rows * self.cols * self.parts
    }

    /// Whether each row of C is in one tile only, and so each row of A.
    pub fn rows_apart(&self) -> bool {
        self.cols == 1 && self.parts == 1
    }

    /// The chunk with that number.
    pub fn tile(&self, chunk: usize, k: usize) -> Tile {
        assert!(chunk < self.tiles(), "tile {chunk} of {}", self.tiles());
        let (part, rest) = (chunk / (self.rows * self.cols), chunk % (self.rows * self.cols));
        let (row, col) = match self.along_rows {
            true => (rest / self.cols, rest % self.cols),
            false => (rest % self.rows, rest / self.rows),
        };
        Tile {
            part,
            rows: Range::piece(row, self.tile_rows, self.m),
            cols: Range::piece(col, self.tile_cols, self.n),
            depth: Range::piece(part, self.part_depth, k),
        }
    }

    /// Rows of a chunk of phase 3.
    pub fn reduce_rows(&self, chunk: usize, m: usize) -> Range {
        assert!(chunk < self.reduce_chunks, "reduce chunk {chunk} of {}", self.reduce_chunks);
        Range { start: chunk * m / self.reduce_chunks, end: (chunk + 1) * m / self.reduce_chunks }
    }
}

/// A chunk of phase 1 packs about this many elements, 10 microseconds of one thread.
const PACK_ELEMENTS: usize = 1 << 15;

/// Into how many chunks the packing of one operand falls.
pub(super) fn pack_chunks(layout: &PackedLayout) -> usize {
    let wanted = (layout.len() / PACK_ELEMENTS).clamp(1, CHUNKS as usize);
    if wanted <= layout.panels() {
        wanted
    } else {
        layout.panels() * wanted.div_ceil(layout.panels())
    }
}

/// The panels and the depth of chunk `chunk` of `chunks`: some whole panels, or a part of one.
pub(super) fn pack_part(layout: &PackedLayout, chunk: usize, chunks: usize) -> (Range, Range) {
    let panels = layout.panels();
    if chunks <= panels {
        let panels = Range { start: chunk * panels / chunks, end: (chunk + 1) * panels / chunks };
        (panels, Range { start: 0, end: layout.depth })
    } else {
        let parts = chunks / panels;
        let (panel, part) = (chunk / parts, chunk % parts);
        let step = layout.depth.div_ceil(parts).next_multiple_of(layout.multiple);
        (Range { start: panel, end: panel + 1 }, Range::piece(part, step, layout.depth))
    }
}

/// How many chunks a product deserves: one per [`LEAST_WORK`] up to 8, then one per four times
/// that, up to [`CHUNKS`]. An element of C counts 16 operations and one of an operand 4: what their
/// traffic costs when it passes L2.
pub(super) fn wanted_chunks(spec: &Spec, speed: u64) -> usize {
    let (m, n, k) = (spec.m as u64, spec.n as u64, spec.k as u64);
    let work = 2 * m * n * k / speed + 16 * m * n + 4 * k * (m + n);
    let units = work / LEAST_WORK;
    (if units <= 8 { units.max(1) } else { (units / 4).clamp(8, CHUNKS) }) as usize
}
