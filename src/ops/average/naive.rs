//! The oracle of `average`.

use super::{Average, Kind};
use crate::device::Control;
use crate::ops::{Values, update};

/// `outputs`: slow, and under Lookahead fast, as they were; then the copies.
pub(super) fn average(op: &Average, inputs: &[Values], outputs: &mut [Values], control: &Control) {
    let share = f64::from(control.f32(op.share));
    if share != 0.0 {
        for (i, fast) in inputs[1].data.iter().enumerate() {
            let slow = &mut outputs[0].data[i];
            *slow += share * (fast - *slow);
            if op.kind == Kind::Lookahead {
                outputs[1].data[i] = outputs[0].data[i];
            }
        }
    }
    if let Some(packed) = &op.packed {
        let (values, copies) = outputs.split_at_mut(2);
        update::naive::pack(packed, &values[1].data, &mut copies[0].data);
    }
}
