//! Indices, masks and copies on the stand-in where the cases of the table do not reach: hot rows of a table,
//! the bits of the CPU's masks, many parts.

use crate::common::Random;
use crate::gpu::digest;
use crate::on_stand_in;
use crate::tape::device;
use twoclocks::{Device, Store, Tape, TensorType, ops};

on_stand_in! {
    /// Masks are the CPU's bit for bit, and follow the counter from replay to replay.
    fn dropout_has_the_bits_of_the_cpu() {
        const N: usize = 4999;
        let mut random = Random(3);
        let mut x: Vec<f32> = (0..N).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
        x[17] = f32::NAN;
        // Part of a larger tensor, so that its addresses are not aligned.
        for first in [0, 1] {
            let mut found = [device(), Device::cpu(1).expect("cpu")].map(|device| {
                let mut store = Store::new(&device);
                let other = store.control_mut().u64_slot("other", 5);
                let counter = store.control_mut().u64_slot("counter", 0);
                let region = store.upload("x", &x);
                let mut tape = Tape::new(&store);
                let x = tape.persistent("x", region, first, [N - first]).expect("x");
                let y = ops::dropout(&mut tape, x, 0.3, 0x1234_5678_9abc_def0, counter).expect("y");
                tape.output(y).expect("output");
                let mut recording = tape.compile(&store).expect("compiles");
                let mut masks = Vec::new();
                for number in [0, 1, 7 << 32, u64::MAX] {
                    store.control_mut().set_u64(other, number ^ 1);
                    store.control_mut().set_u64(counter, number);
                    recording.replay(&mut store).expect("it runs");
                    let y = recording.read(y).expect("y");
                    masks.push(y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>());
                }
                masks
            });
            // The sign and payload of a NaN that comes of a product are the machine's own.
            for mask in found.iter_mut().flatten() {
                let nan = &mut mask[17 - first];
                assert!(f32::from_bits(*nan).is_nan(), "NaN stays seen");
                *nan = 0;
            }
            assert!(found[0] == found[1], "masks differ, from element {first} on");
            let kept = |mask: &[u32]| mask.iter().filter(|&&y| y << 1 != 0).count();
            for (i, mask) in found[0].iter().enumerate() {
                assert!((3300..3700).contains(&kept(mask)), "{} kept", kept(mask));
                assert!(found[0][..i].iter().all(|other| other != mask), "a mask came twice");
                digest("mask", mask);
            }
        }
    }
}

on_stand_in! {
    /// Most indices name one row, some none; with many parts of the indices, and with one of many looks.
    fn embedding_backward_of_hot_rows() {
        let device = device();
        for (rows, columns, count) in [(70, 33, 5000), (70, 36, 5000), (4000, 33, 5000), (4001, 132, 2311)] {
            let what = format!("{rows} x {columns} at {count}");
            let mut random = Random(rows as u64);
            let indices: Vec<u32> = (0..count)
                .map(|_| match random.below(10) {
                    0 => random.below(rows as u64) as u32,
                    1 => u32::MAX - random.below(2) as u32,
                    2 => rows as u32,
                    _ => 65,
                })
                .collect();
            // Whole numbers: every sum is exact.
            let dy: Vec<f32> = (0..count * columns).map(|_| random.below(9) as f32 - 4.0).collect();
            let mut want = vec![0f32; rows * columns];
            for (&index, dy) in indices.iter().zip(dy.chunks(columns)) {
                if let Some(sums) = want.chunks_mut(columns).nth(index as usize) {
                    sums.iter_mut().zip(dy).for_each(|(sum, x)| *sum += x);
                }
            }
            let store = &mut Store::new(&device);
            let mut tape = Tape::new(store);
            let dy_in = tape.input("dy", [count, columns]).expect("dy");
            let indices_in = tape.input_of("indices", TensorType::u32([count])).expect("indices");
            let y = ops::embedding_backward(&mut tape, dy_in, indices_in, rows).expect("recorded");
            tape.output(y).expect("output");
            let mut recording = tape.compile(store).expect("compiles");
            recording.write(dy_in, &dy).expect("dy");
            recording.write(indices_in, &indices).expect("indices");
            recording.replay(store).expect("it runs");
            let found = recording.read(y).expect("y");
            assert!(found == want, "{what}");
            digest(&what, &found);
        }
    }
}

on_stand_in! {
    /// More parts than one launch takes, some of them empty, joined and cut again.
    fn a_row_of_many_parts() {
        let device = device();
        for unit in [1usize, 4] {
            let mut store = Store::new(&device);
            let mut tape = Tape::new(&store);
            let mut random = Random(unit as u64);
            let widths: Vec<usize> = (0..19).map(|i| i % 4 * unit).collect();
            let parts: Vec<(Vec<f32>, _)> = widths
                .iter()
                .enumerate()
                .map(|(i, &width)| {
                    let values = (0..7 * width).map(|_| random.unit() as f32).collect();
                    (values, tape.input(&format!("{i}"), [7, width]).expect("input"))
                })
                .collect();
            let vars: Vec<_> = parts.iter().map(|part| part.1).collect();
            let joined = ops::concat(&mut tape, &vars, 1).expect("joins");
            let mut start = 0;
            let cut: Vec<_> = widths
                .iter()
                .map(|width| {
                    start += width;
                    let part = ops::slice(&mut tape, joined, 1, start - width..start).expect("slice");
                    ops::copy(&mut tape, part).expect("a copy")
                })
                .collect();
            tape.output(joined).expect("output");
            cut.iter().for_each(|&part| tape.output(part).expect("output"));
            let mut recording = tape.compile(&store).expect("compiles");
            parts.iter().for_each(|(values, var)| recording.write(*var, values).expect("write"));
            recording.replay(&mut store).expect("it runs");
            let row = |r: usize| parts.iter().zip(&widths).flat_map(move |((values, _), w)| &values[r * w..][..*w]);
            let want: Vec<f32> = (0..7).flat_map(row).copied().collect();
            let found = recording.read(joined).expect("read");
            assert_eq!(found, want, "parts of {unit}");
            for (part, (values, _)) in cut.iter().zip(&parts) {
                assert_eq!(recording.read(*part).expect("read"), *values, "a part of {unit} cut out again");
            }
            digest("joined", &found);
        }
    }
}
