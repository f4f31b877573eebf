//! What a tape does on a GPU beside the operations' own cases, on the stand-in: what it refuses, and sizes
//! beyond the limits of a grid.

use crate::gpu::digest;
use crate::on_stand_in;
use std::sync::Arc;
use twoclocks::device::Control;
use twoclocks::ops::{Cost, Site, Values};
use twoclocks::{DType, Device, Operation, Recorder, Result, Store, Tape, TensorType, ops};

pub fn device() -> Device {
    Device::cuda("cuda:0").expect("the stand-in has a device")
}

/// An operation of a user that has no kernel.
#[derive(Debug)]
struct Own;

impl Operation for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(inputs.to_vec())
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        outputs[0].data.clone_from(&inputs[0].data);
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }
}

on_stand_in! {
    fn what_cannot_be_compiled_is_named() {
        let device = device();
        let mut store = Store::new(&device);
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [4, 3]).expect("input");
        let y = tape.scoped("head", |tape| tape.push(Arc::new(Own), &[x])).expect("recorded")[0];
        tape.output(y).expect("output");
        let error = tape.compile(&store).map(|_| ()).expect_err("no kernel").to_string();
        assert!(error.contains("cuda:0") && error.contains("head/own"), "{error}");
        assert!(error.contains("[4, 3]"), "{error}");
        // More memory than the device has.
        let large = store.allocate("large", DType::F32, 1 << 40);
        let error = store.read(large, 0, &mut [0f32]).expect_err("no memory").to_string();
        assert!(error.contains("large") && error.contains("memory"), "{error}");
    }
}

on_stand_in! {
    /// More rows than a grid has blocks along its second axis.
    fn a_batch_of_seventy_thousand_rows() {
        let rows = 70_000;
        let mut store = Store::new(&device());
        let set = store.upload("values", &[1u8, 2, 3, 4, 5, 6]);
        let labels = store.upload("labels", &[7u32, 9]);
        let order: Vec<u32> = (0..rows as u32).map(|row| row / 3 % 2).collect();
        let order = store.upload("order", &order);
        let scale = store.upload("scale", &[2f32, 1.0, 1.0]);
        let offset = store.control_mut().u64_slot("offset", 0);
        let mut tape = Tape::new(&store);
        let set = tape.persistent("values", set, 0, [2, 3]).expect("values");
        let labels = tape.persistent("labels", labels, 0, [2]).expect("labels");
        let order = tape.persistent("order", order, 0, [rows]).expect("order");
        let scale = tape.persistent("scale", scale, 0, [3]).expect("scale");
        let batch = ops::batch(&mut tape, set, labels, order, scale, scale, rows, offset).expect("fits");
        tape.output(batch.inputs).expect("output");
        tape.output(batch.labels).expect("output");
        let mut recording = tape.compile(&store).expect("no limit of a grid");
        recording.replay(&mut store).expect("it runs");
        let values = recording.read(batch.inputs).expect("inputs");
        let mut found = vec![0u32; rows];
        recording.read_into(batch.labels, &mut found).expect("labels");
        for (row, (values, label)) in values.chunks(3).zip(found).enumerate() {
            let (want, wanted) = [([4.0, 3.0, 4.0], 7), ([10.0, 6.0, 7.0], 9)][row / 3 % 2];
            assert!(values == want && label == wanted, "row {row}: {values:?}, label {label}");
        }
        digest("rows", &values);
    }
}
