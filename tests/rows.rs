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

/// The gradient has the mask of the forward pass; every instruction set makes the same one; the
/// counter picks another.
#[test]
fn dropout_masks_agree_between_passes_and_instruction_sets() {
    const N: usize = 100_003;
    const P: f32 = 0.25;
    let mut masks: Option<[Vec<f32>; 2]> = None;
    for mut store in stores() {
        let counter = store.control_mut().u64_slot("counter", 0);
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [N]).expect("input");
        let upstream = tape.input("dy", [N]).expect("input");
        let y = ops::dropout(&mut tape, x, P, 77, counter).expect("recorded");
        let dx = tape.vector_jacobian(&[(y, upstream)], &[x]).expect("recorded")[0];
        tape.output(y).expect("output");
        tape.output(dx).expect("output");
        let mut step = tape.compile(&store).expect("compile");
        step.write(x, &[3.0; N]).expect("write");
        step.write(upstream, &[1.0; N]).expect("write");
        let found = [0, 1].map(|count| {
            store.control_mut().set_u64(counter, count);
            step.replay(&mut store).expect("replay");
            let (y, dx) = (step.read(y).expect("read"), step.read(dx).expect("read"));
            assert!(dx.iter().all(|&d| d == 0.0 || d == 1.0 / (1.0 - P)));
            assert!(y.iter().zip(&dx).all(|(y, dx)| (y - 3.0 * dx).abs() < 1e-6));
            dx
        });
        let share = found[0].iter().filter(|&&d| d != 0.0).count() as f64 / N as f64;
        let keep = 1.0 - f64::from(P);
        assert!((share - keep).abs() < 5.0 * (keep * (1.0 - keep) / N as f64).sqrt(), "{share}");
        assert_ne!(found[0], found[1]);
        assert_eq!(*masks.get_or_insert_with(|| found.clone()), found);
    }
}

#[test]
fn dropout_of_nothing_copies_and_lost_nan_stays_seen() {
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    let counter = store.control_mut().u64_slot("counter", 0);
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [999]).expect("input");
    let copied = ops::dropout(&mut tape, x, 0.0, 1, counter).expect("recorded");
    let dropped = ops::dropout(&mut tape, x, 0.5, 1, counter).expect("recorded");
    ops::dropout(&mut tape, x, 1.0, 1, counter).expect_err("nothing would be kept");
    tape.output(copied).expect("output");
    tape.output(dropped).expect("output");
    let mut step = tape.compile(&store).expect("compile");
    let values: Vec<f32> = (0..999).map(|i| i as f32).collect();
    step.write(x, &values).expect("write");
    step.replay(&mut store).expect("replay");
    assert_eq!(step.read(copied).expect("read"), values);
    step.write(x, &[f32::NAN; 999]).expect("write");
    step.replay(&mut store).expect("replay");
    assert!(step.read(dropped).expect("read").iter().all(|x| x.is_nan()));
}

#[test]
fn embedding_rows_outside_the_table_are_nan_and_add_nothing() {
    const ROWS: usize = 40;
    let indices: Vec<u32> = (0..50u32)
        .map(|i| match i % 5 {
            0 => ROWS as u32 + i,
            1 => u32::MAX - i,
            2 => 1 << 31 | i,
            _ => i % ROWS as u32,
        })
        .collect();
    for mut store in stores() {
        let region = store.upload("indices", &indices);
        let mut tape = Tape::new(&store);
        let table = tape.input("table", [ROWS, 3]).expect("input");
        let at = tape.persistent("indices", region, 0, [50]).expect("indices");
        let y = ops::embedding(&mut tape, table, at).expect("recorded");
        let upstream = tape.input("dy", [50, 3]).expect("input");
        let dtable = tape.vector_jacobian(&[(y, upstream)], &[table]).expect("recorded")[0];
        // The gradient is linear in dy: its own gradient gathers.
        let again = tape.vector_jacobian(&[(dtable, table)], &[upstream]).expect("recorded")[0];
        for var in [y, dtable, again] {
            tape.output(var).expect("output");
        }
        let mut step = tape.compile(&store).expect("compile");
        let values: Vec<f32> = (0..ROWS * 3).map(|i| i as f32).collect();
        step.write(table, &values).expect("write");
        step.write(upstream, &[1.0; 150]).expect("write");
        step.replay(&mut store).expect("replay");
        let (y, again) = (step.read(y).expect("read"), step.read(again).expect("read"));
        let mut counts = [0.0f32; ROWS];
        for (r, &index) in indices.iter().enumerate() {
            let row = &y[3 * r..][..3];
            if (index as usize) < ROWS {
                assert_eq!(row, &values[3 * index as usize..][..3]);
                assert_eq!(row, &again[3 * r..][..3]);
                counts[index as usize] += 1.0;
            } else {
                assert!(row.iter().all(|x| x.is_nan()), "row {r}: {row:?}");
            }
        }
        let want: Vec<f32> = counts.iter().flat_map(|&count| [count; 3]).collect();
        assert_eq!(step.read(dtable).expect("read"), want);
    }
}
