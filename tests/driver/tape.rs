//! Tapes compiled for a GPU, on the stand-in: every operation that has a kernel there against its oracle,
//! and training beside the CPU.

use crate::build;
use crate::common::{Random, assert_close, values};
use crate::gpu::digest;
use crate::on_stand_in;
use std::collections::BTreeSet;
use std::sync::Arc;
use twoclocks::data::Split;
use twoclocks::gemm::Precision;
use twoclocks::nn::{Parameters, Sequential};
use twoclocks::ops::{Case, TABLE, Tolerance};
use twoclocks::train::{TrainOptions, Trainer, recipe};
use twoclocks::{DType, Device, Error, Recorder, Store, Tape, ops};

/// Operations with kernels for GPUs. Views, as `reshape` is, need none.
const HAVE_KERNELS: [&str; 15] = [
    "accumulate",
    "activation_backward",
    "batch",
    "binary",
    "copy",
    "global_norm",
    "linear",
    "matmul",
    "permutation",
    "product_update",
    "reduce",
    "softmax_cross_entropy",
    "unary",
    "unary_gradient",
    "update",
];

pub fn device() -> Device {
    Device::cuda("cuda:0").expect("the stand-in has a device")
}

fn upload(store: &mut Store, dtype: DType, data: &[f64]) -> twoclocks::tape::Region {
    match dtype {
        DType::F32 => store.upload("f32", &data.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::U32 => store.upload("u32", &data.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        DType::U8 => store.upload("u8", &data.iter().map(|&x| x as u8).collect::<Vec<_>>()),
        DType::Bf16 => {
            let all: Vec<half::bf16> = data.iter().map(|&x| half::bf16::from_f64(x)).collect();
            store.upload("bf16", &all)
        }
    }
}

fn read(store: &Store, region: twoclocks::tape::Region, dtype: DType) -> Vec<f32> {
    let len = store.len(region);
    match dtype {
        DType::U32 => {
            let mut all = vec![0u32; len];
            store.read(region, 0, &mut all).expect("read");
            all.iter().map(|&x| x as f32).collect()
        }
        _ => {
            let mut all = vec![0f32; len];
            store.read(region, 0, &mut all).expect("read");
            all
        }
    }
}

/// Runs a case; false where the operation has no kernel for it, or is a view.
fn check(device: &Device, entry: &str, number: usize) -> bool {
    let mut store = Store::new(device);
    let entry = TABLE.iter().find(|e| e.name == entry).expect("in the table");
    let case: Case = (entry.cases)(store.control_mut()).swap_remove(number);
    let what = format!("{} {}", entry.name, case.name);
    let mut random = Random(number as u64 + 1);
    let data: Vec<Vec<f64>> = case.inputs.iter().map(|input| values(input, &mut random)).collect();
    let types: Vec<_> = case.inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let output_types = case.op.infer(&types).unwrap_or_else(|e| panic!("{what}: {e}"));
    let in_place = case.op.in_place();
    let inputs_at: Vec<_> =
        types.iter().zip(&data).map(|(t, data)| upload(&mut store, t.dtype, data)).collect();
    let outputs_at: Vec<_> = output_types
        .iter()
        .enumerate()
        .map(|(i, output)| match in_place.iter().find(|&&(o, _)| o == i) {
            Some(&(_, input)) => inputs_at[input],
            None => {
                let junk = if output.dtype == DType::F32 { f64::NAN } else { 77.0 };
                upload(&mut store, output.dtype, &vec![junk; output.elements()])
            }
        })
        .collect();
    let mut tape = Tape::new(&store);
    let inputs: Vec<_> = types
        .iter()
        .zip(&inputs_at)
        .map(|(t, &region)| tape.persistent("input", region, 0, &t.shape).expect("input"))
        .collect();
    let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("the types were inferred");
    if case.op.view(&types).is_some() {
        return false;
    }
    for (i, &output) in outputs.iter().enumerate() {
        if !in_place.iter().any(|&(o, _)| o == i) {
            tape.place(output, outputs_at[i], 0).expect("place");
        }
    }
    let mut recording = match tape.compile(&store) {
        Ok(recording) => recording,
        Err(Error::Device { problem, .. }) if problem.contains("no kernel for GPUs") => {
            assert!(problem.contains(case.op.name()), "{problem}");
            return false;
        }
        Err(error) => panic!("{what}: {error}"),
    };
    let feeds: Vec<_> = inputs.iter().copied().zip(data.iter().cloned()).collect();
    let oracle = tape.evaluate(&feeds, store.control()).expect("oracle");
    recording.replay(&mut store).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (i, (&output, output_type)) in outputs.iter().zip(&output_types).enumerate() {
        let got = read(&store, outputs_at[i], output_type.dtype);
        let want = &oracle.get(output).expect("computed").data;
        let tolerance = match output_type.dtype {
            DType::F32 => case.tolerance,
            _ => Tolerance::Exact,
        };
        assert_close(&format!("{what}, output {i}"), &got, want, tolerance);
        digest(&format!("{what} {i}"), &got);
    }
    true
}

on_stand_in! {
    fn kernels_agree_with_the_oracle() {
        let device = device();
        let mut found = BTreeSet::new();
        for entry in TABLE {
            let count = (entry.cases)(&mut twoclocks::device::Control::new()).len();
            for number in 0..count {
                if check(&device, entry.name, number) {
                    found.insert(entry.name);
                }
            }
        }
        assert_eq!(found, BTreeSet::from(HAVE_KERNELS));
    }
}

/// A trainer of the recipe `digits` without dropout, and its data.
pub fn digits(
    device: &Device,
    precision: Precision,
    change: impl Fn(&mut TrainOptions),
) -> Trainer {
    let mut config = recipe("digits").expect("a recipe");
    config.model.layers.retain(|layer| !format!("{layer:?}").starts_with("Dropout"));
    let data: Split = config.data.source().expect("embedded").load().expect("embedded");
    let mut parameters = Parameters::new();
    let shape = data.train.shape().to_vec();
    let model = Sequential::new(&config.model.layers, &shape, &mut parameters).expect("fits");
    let mut options = TrainOptions {
        batch: config.train.batch,
        label_smoothing: config.train.label_smoothing,
        optimizer: config.optimizer,
        precision,
        ..TrainOptions::default()
    };
    change(&mut options);
    Trainer::new(device, Box::new(model), parameters, &data, options).expect("a trainer")
}

/// All weights, flat.
pub fn weights(trainer: &Trainer) -> Vec<f32> {
    let region = trainer.parameters().weights();
    let mut values = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut values).expect("read");
    values
}

/// Ten steps on both devices: losses and weights stay together.
fn beside_the_cpu(what: &str, precision: Precision, change: impl Fn(&mut TrainOptions)) {
    let cpu = Device::cpu(1).expect("cpu");
    let mut trainers = [&device(), &cpu].map(|device| digits(device, precision, &change));
    let rows = trainers[0].update_rows(0);
    for trainer in &mut trainers {
        trainer.start_epoch(0).expect("order");
    }
    assert_eq!(weights(&trainers[0]), weights(&trainers[1]), "{what}: starting values");
    // Sums are taken in other orders; bf16 operands may round to the neighbour.
    let bound = if precision == Precision::F32 { 2e-5 } else { 4e-3 };
    for step in 0..10 {
        let [got, want] =
            [0, 1].map(|i| trainers[i].step(step + 1, step as usize * rows, 1e-3).expect("a step"));
        assert!(got.is_finite() && want.is_finite(), "{what}, step {step}: {got}, CPU {want}");
        let error = (got - want).abs() / want.abs();
        assert!(error <= bound, "{what}, step {step}: loss {got}, CPU {want}: {error:e}");
    }
    let [got, want] = [0, 1].map(|i| weights(&trainers[i]));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = &mut got.iter().zip(&want).map(|(a, b)| f64::from(a - b));
    let error = norm(difference) / norm(&mut want.iter().map(|&x| f64::from(x)));
    assert!(error <= bound, "{what}: weights {error:e} apart");
    digest(what, &got);
}

on_stand_in! {
    fn ten_steps_beside_the_cpu() {
        beside_the_cpu("adamw", Precision::F32, |_| ());
        beside_the_cpu("clipped, accumulated", Precision::F32, |options| {
            options.optimizer.clip_norm = Some(0.5);
            (options.batch, options.accumulate) = (32, 2);
        });
        beside_the_cpu("bf16", Precision::Bf16, |_| ());
    }
}

on_stand_in! {
    fn digits_are_learnt() {
        let mut trainer = digits(&device(), Precision::F32, |_| ());
        let (steps, rows) = (trainer.steps_per_epoch(), trainer.update_rows(0));
        for epoch in 0..2 {
            trainer.start_epoch(epoch).expect("order");
            for step in 0..steps {
                let number = epoch * steps + step + 1;
                let loss = trainer.step(number, step as usize * rows, 4e-3).expect("a step");
                assert!(loss.is_finite(), "step {number}: {loss}");
            }
        }
        let review = trainer.review().expect("a review");
        assert!(review.accuracy > 0.9, "{review:?}");
        digest("weights", &weights(&trainer));
        // What went wrong is found node by node.
        assert_eq!(trainer.diagnose(1, 0).expect("it runs"), None);
    }
}

/// On a device that does nothing before somebody waits for it, the same bits come out.
#[test]
fn nothing_is_read_before_it_is_waited_for() {
    let mut found = BTreeSet::new();
    for queue in ["eager", "late"] {
        let variables = [("TWOCLOCKS_STANDIN_QUEUE", queue)];
        let Some(output) = build::start("tape::digits_are_learnt", &variables) else { return };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{queue}: {said}");
        found.extend(said.lines().filter(|line| line.starts_with("digest ")).map(str::to_owned));
    }
    assert_eq!(found.len(), 1, "{found:?}");
}

on_stand_in! {
    fn what_cannot_be_compiled_is_named() {
        let device = device();
        let mut store = Store::new(&device);
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [4, 3]).expect("input");
        let y = tape.scoped("head", |tape| ops::softmax(tape, x)).expect("softmax");
        tape.output(y).expect("output");
        let error = tape.compile(&store).map(|_| ()).expect_err("no kernel").to_string();
        assert!(error.contains("cuda:0") && error.contains("head/softmax"), "{error}");
        assert!(error.contains("[4, 3]"), "{error}");
        // More rows of a batch than there may be blocks along y.
        let rows = 70_000;
        let set = store.upload("values", &[1u8; 4]);
        let labels = store.upload("labels", &[0u32]);
        let order = store.allocate("order", DType::U32, rows);
        let one = store.upload("scale", &[1f32; 4]);
        let offset = store.control_mut().u64_slot("offset", 0);
        let mut tape = Tape::new(&store);
        let set = tape.persistent("values", set, 0, [1, 4]).expect("values");
        let labels = tape.persistent("labels", labels, 0, [1]).expect("labels");
        let order = tape.persistent("order", order, 0, [rows]).expect("order");
        let one = tape.persistent("scale", one, 0, [4]).expect("scale");
        let batch = ops::batch(&mut tape, set, labels, order, one, one, rows, offset).expect("fits");
        tape.output(batch.inputs).expect("output");
        let error = tape.compile(&store).map(|_| ()).expect_err("too many rows").to_string();
        assert!(error.contains("batch_u8_f32") && error.contains("65535"), "{error}");
        // More memory than the device has.
        let large = store.allocate("large", DType::F32, 1 << 40);
        let error = store.read(large, 0, &mut [0f32]).expect_err("no memory").to_string();
        assert!(error.contains("large") && error.contains("memory"), "{error}");
    }
}
