//! `embedding` on the CPU: one memory move a row.

use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// Finding a row that is in no cache.
const ROW_NANOSECONDS: f64 = 50.0;
/// 8 bytes an element at some 10 GB/s.
const NANOSECONDS: f64 = 0.8;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let [table, indices] = site.inputs else { panic!("embedding: `infer` asks for two inputs") };
    let (rows, columns) = (table.shape.extents()[0], table.shape.columns());
    let per_chunk = rows_per_chunk(ROW_NANOSECONDS + NANOSECONDS * columns as f64);
    Launch::new("memmove").rows(indices.elements(), per_chunk, move |chunk| {
        let (table, indices) = (chunk.input::<f32>(0), chunk.input_rows::<u32>(1));
        let y = chunk.output::<f32>(0);
        if columns == 0 {
            return;
        }
        for (&index, y) in indices.iter().zip(y.chunks_exact_mut(columns)) {
            let index = index as usize;
            if index < rows {
                y.copy_from_slice(&table[index * columns..][..columns]);
            } else {
                y.fill(f32::NAN);
            }
        }
    })
}
