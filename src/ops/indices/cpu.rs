//! `indices` on the CPU. A batch of row numbers is small; the compiler's code is good enough.

use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

pub(super) fn launch(site: &Site<'_>) -> Launch {
    let elements = site.inputs[0].elements();
    Launch::new("scalar").rows(elements, rows_per_chunk(1.0), |chunk| {
        for (y, &x) in chunk.output::<u32>(0).iter_mut().zip(chunk.input_rows::<f32>(0)) {
            // A cast saturates, and makes 0 of NaN: only a whole number survives the way back.
            let number = x as u32;
            let whole = number as f32 == x && x < 4_294_967_296.0;
            *y = if whole { number } else { u32::MAX };
        }
    })
}
