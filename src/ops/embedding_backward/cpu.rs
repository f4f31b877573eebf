//! `embedding_backward` on the CPU: tiles of the table, each zeroed and then summed by one thread.
//!
//! Every tile looks at all indices in their order and adds the rows that fall into it. So no two
//! threads write one element, and each element is summed in the order of the indices whatever the
//! tiles are.
#![allow(unsafe_code)]

use crate::device::cpu::Launch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, update2};
use crate::ops::Site;

/// Zeroing one element of the table, adding one of `dy`, and looking at one index.
const ZERO_NANOSECONDS: f64 = 0.4;
const ADD_NANOSECONDS: f64 = 0.6;
const LOOK_NANOSECONDS: f64 = 0.1;
/// A tile that is to be worth looking at all the indices.
const TILE_NANOSECONDS: f64 = 20_000.0;
/// Columns of a tile where sums outweigh zeroing: four cache lines.
const TILE_COLUMNS: usize = 64;

/// How the table is cut. A function of shapes alone.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    tile_rows: usize,
    tile_columns: usize,
}

impl Tiles {
    fn new(rows: usize, columns: usize, indices: usize) -> Tiles {
        // Few rows are hit unevenly (a space is the most frequent letter), but all columns equally.
        // Many rows are mostly zeroed, which is fastest over whole rows.
        let tile_columns = if rows > indices { columns } else { columns.min(TILE_COLUMNS) }.max(1);
        let stripes = columns.div_ceil(tile_columns).max(1) as f64;
        let nanoseconds = columns as f64
            * (rows as f64 * ZERO_NANOSECONDS + indices as f64 * ADD_NANOSECONDS);
        // Looking costs at most an eighth of the rest.
        let look = indices as f64 * LOOK_NANOSECONDS * 8.0;
        let tiles = nanoseconds / TILE_NANOSECONDS.max(look);
        let bands = (tiles / stripes).clamp(1.0, rows.max(1) as f64) as usize;
        Tiles { rows, columns, tile_rows: rows.div_ceil(bands).max(1), tile_columns }
    }

    fn stripes(&self) -> usize {
        self.columns.div_ceil(self.tile_columns)
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows) * self.stripes()
    }
}

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let (isa, table) = (site.isa, &site.outputs[0].shape);
    let tiles = Tiles::new(table.extents()[0], table.columns(), site.inputs[1].elements());
    Launch::new(isa.name()).tiles(tiles.count(), move |chunk| {
        let (band, stripe) = (chunk.index() / tiles.stripes(), chunk.index() % tiles.stripes());
        let (row, column) = (band * tiles.tile_rows, stripe * tiles.tile_columns);
        let (dy, indices) = (chunk.input::<f32>(0), chunk.input(1));
        assert_eq!(chunk.output_len(0), tiles.rows * tiles.columns);
        assert_eq!(dy.len(), indices.len() * tiles.columns);
        let scatter = Scatter {
            dy,
            indices,
            dtable: chunk.output_ptr(0),
            columns: tiles.columns,
            rows: tiles.tile_rows.min(tiles.rows - row),
            row,
            column,
            width: tiles.tile_columns.min(tiles.columns - column),
        };
        dispatch(isa, scatter);
    })
}

struct Scatter<'a> {
    dy: &'a [f32],
    indices: &'a [u32],
    /// The whole table; only the tile is touched.
    dtable: *mut f32,
    columns: usize,
    /// The tile: `rows` from `row` on, `width` columns from `column` on.
    row: usize,
    rows: usize,
    column: usize,
    width: usize,
}

impl Scatter<'_> {
    /// The tile's part of its row `r`.
    #[inline(always)]
    fn row_mut(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows);
        // SAFETY: `launch` asserts the table's length and cuts tiles within it; the assert above
        // holds the row within the tile. Tiles are disjoint, one chunk each, and `&mut self` allows
        // one row at a time.
        unsafe {
            let start = self.dtable.add((self.row + r) * self.columns + self.column);
            std::slice::from_raw_parts_mut(start, self.width)
        }
    }
}

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.rows {
            self.row_mut(r).fill(0.0);
        }
        let (first, rows) = (s.splat_i32(self.row as i32), s.splat_i32(self.rows as i32));
        let (dy, indices) = (self.dy, self.indices);
        for (block, indices) in indices.chunks(S::LANES).enumerate() {
            let found = if indices.len() == S::LANES {
                // SAFETY: the branch holds only if the chunk has LANES indices.
                unsafe { s.load_i32(indices.as_ptr().cast()) }
            } else {
                // SAFETY: a chunk has at most LANES indices, and n is its length.
                unsafe { s.load_i32_partial(indices.as_ptr().cast(), indices.len()) }
            };
            // Differences wrap; tables have fewer than 2^31 rows (`infer` checks), so a difference lies
            // within the tile exactly if it does as a signed number.
            let within = s.sub_i32(found, first);
            let inside = s.mask_and(
                s.gt_i32(rows, within),
                s.gt_i32(within, s.splat_i32(-1)),
            );
            let mut hits = s.bits(s.mask_and(inside, s.first(indices.len())));
            while hits != 0 {
                let lane = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                let r = indices[lane] as usize - self.row;
                let start = (block * S::LANES + lane) * self.columns + self.column;
                let dy = &dy[start..][..self.width];
                update2(s, self.row_mut(r), dy, #[inline(always)] |s, sum, x| s.add(sum, x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tiles;

    /// The sizes of the test cases are cut as their comment says, and tiles cover the table.
    #[test]
    fn tiles_are_stripes_bands_or_both() {
        for (rows, columns, indices, stripes, bands) in
            [(7, 203, 509, 4, 1), (3001, 67, 37, 1, 4), (1009, 130, 1013, 3, 2), (0, 3, 5, 1, 0)]
        {
            let tiles = Tiles::new(rows, columns, indices);
            assert_eq!((tiles.stripes(), tiles.count()), (stripes, stripes * bands));
            assert!(tiles.tile_rows * bands >= rows && tiles.tile_columns * stripes >= columns);
        }
    }
}
