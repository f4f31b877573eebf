//! `embedding_backward` on a GPU: `kernels/embedding_backward.cu`, a block for each tile of the table; where
//! these are few, for each part of the indices too, and then a sum over the parts in order.

use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;

/// The tile of a block.
const ROWS: usize = 64;
const COLUMNS: usize = 128;
/// Blocks that keep a large GPU busy: four for each of some 132 multiprocessors.
const ENOUGH: usize = 528;
/// Indices of a part at least.
const PART: usize = 128;

/// Parts of the indices, and how many indices one has. All partial tables together are no larger than `dy`.
fn cut(rows: usize, columns: usize, count: usize) -> (usize, usize) {
    let blocks = rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS);
    let most = (count / PART).min(count / rows.max(1));
    let parts = match u32::try_from(rows * columns) {
        Ok(_) => (ENOUGH / blocks.max(1)).min(most).max(1),
        Err(_) => 1,
    };
    let per_part = count.div_ceil(parts).next_multiple_of(4).max(4);
    (count.div_ceil(per_part).max(1), per_part)
}

/// Nothing for a table of 2^32 columns or more, or so many indices.
pub(super) fn launch(site: &Site<'_>) -> Option<Launches> {
    let &[rows, columns] = site.outputs[0].shape.extents() else { return None };
    let count = site.inputs[1].elements();
    let (parts, per_part) = cut(rows, columns, count);
    let number = |count: usize| u32::try_from(count).ok();
    let mut launches = Launches::new();
    let to = match parts {
        1 => Place::Output(0),
        _ => launches.scratch(parts * rows * columns),
    };
    launches.kernel(
        Kernel::new("embedding_backward", "embedding_backward_f32")
            .grid([rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS), parts, 1])
            .with(Place::Input(0))
            .with(Place::Input(1))
            .with(to)
            .with(number(rows)?)
            .with(number(columns)?)
            .with(number(count)?)
            .with(number(per_part)?),
    );
    if parts > 1 {
        launches.kernel(
            Kernel::new("activation_backward", "column_sum_f32")
                .grid([(rows * columns).div_ceil(256), 1, 1])
                .with(to)
                .with(Place::Output(0))
                .with(number(parts)?)
                .with(number(rows * columns)?)
                .with(1.0f32),
        );
    }
    Some(launches)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn indices_are_cut_where_the_table_is_small() {
        // A vocabulary has blocks enough; letters have not: 3 blocks, of 128 indices each.
        assert_eq!(cut(50_257, 384, 4096), (1, 4096));
        assert_eq!(cut(65, 384, 8192), (64, 128));
        assert_eq!(cut(5, 3, 0), (1, 4));
        let (parts, per_part) = cut(7, 203, 509);
        assert!(parts == 3 && parts * per_part >= 509 && per_part % 4 == 0, "{parts} x {per_part}");
    }
}
