//! Operations that pick rows: what they do with places that do not exist.

use std::sync::Arc;
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::{Device, Store, Tape, ops};

/// A store on every instruction set of this machine.
fn stores() -> impl Iterator<Item = Store> {
    Isa::available().into_iter().map(|isa| {
        let cpu = Cpu::with_isa(2, isa).expect("this machine has it");
        Store::new(&Device::Cpu(Arc::new(cpu)))
    })
}

#[test]
fn batch_rows_outside_the_data_set_are_nan() {
    const SIZE: usize = 4;
    for mut store in stores() {
        let values = store.upload("values", &[1u8, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let labels = store.upload("labels", &[10u32, 11, 12, 13, 14]);
        // The last entry but one names a row that is not there.
        let order = store.upload("order", &[4u32, 0, 3, 1, 2, 5, 0]);
        let ones = store.upload("scale", &[2.0f32, 2.0]);
        let shift = store.upload("shift", &[0.5f32, -0.5]);
        let row_labels = store.allocate("row labels", twoclocks::DType::U32, SIZE);
        let offset = store.control_mut().u64_slot("offset", 0);

        let mut tape = Tape::new(&store);
        let values = tape.persistent("values", values, 0, [5, 2]).expect("values");
        let labels = tape.persistent("labels", labels, 0, [5]).expect("labels");
        let order = tape.persistent("order", order, 0, [7]).expect("order");
        let scale = tape.persistent("scale", ones, 0, [2]).expect("scale");
        let shift = tape.persistent("shift", shift, 0, [2]).expect("shift");
        let batch = ops::batch(&mut tape, values, labels, order, scale, shift, SIZE, offset)
            .expect("recorded");
        tape.output(batch.inputs).expect("output");
        tape.place(batch.labels, row_labels, 0).expect("place");
        let mut step = tape.compile(&store).expect("compile");

        let row = |n: f32| [2.0 * (2.0 * n + 1.0) + 0.5, 2.0 * (2.0 * n + 2.0) - 0.5];
        let bad = u32::MAX;
        let wants: [(u64, [u32; SIZE]); 5] = [
            (0, [14, 10, 13, 11]),
            (3, [11, 12, bad, 10]),
            (5, [bad, 10, bad, bad]),
            (7, [bad; SIZE]),
            (u64::MAX - 1, [bad; SIZE]),
        ];
        for (at, want) in wants {
            store.control_mut().set_u64(offset, at);
            step.replay(&mut store).expect("replay");
            let mut found = [0u32; SIZE];
            store.read(row_labels, 0, &mut found).expect("read");
            assert_eq!(found, want, "offset {at}");
            let rows = step.read(batch.inputs).expect("read");
            for (label, row_found) in want.iter().zip(rows.chunks(2)) {
                if *label == bad {
                    assert!(row_found.iter().all(|x| x.is_nan()), "offset {at}: {row_found:?}");
                } else {
                    assert_eq!(row_found, row((label - 10) as f32), "offset {at}");
                }
            }
        }
    }
}
