//! Steps as graphs: many of them a launch, with the bits of one at a time; what stops them, what is refused,
//! and how often the driver is called.

use crate::build;
use crate::gpu::digest;
use crate::on_stand_in;
use crate::tape::device;
use crate::training::{digits, digits_without_kinks, weights};
use cudarc::driver::sys;
use std::collections::BTreeSet;
use std::ffi::{CString, c_char};
use std::sync::atomic::AtomicBool;
use twoclocks::data::order;
use twoclocks::gemm::Precision;
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::ops::update::{Decay, Rule};
use twoclocks::optim::{Optimizer, OptimizerConfig, Segment};
use twoclocks::runs::{Row, RunFolder};
use twoclocks::tape::{KEPT, Recording};
use twoclocks::train::{self, Config, TrainOptions, Trainer};
use twoclocks::{DType, Device, Error, Recorder, Result, Store, Tape, ops};

/// How often the stand-in was called for each of these.
fn calls<const N: usize>(names: [&str; N]) -> [u64; N] {
    build::needs_the_stand_in();
    names.map(|name| {
        let name = CString::new(name).expect("no zeros");
        // SAFETY: the stand-in is the library, and exports the function with this type.
        unsafe {
            let count =
                sys::culib().get::<unsafe extern "C" fn(*const c_char) -> u64>(b"standin_calls\0");
            count.expect("the stand-in counts")(name.as_ptr())
        }
    })
}

fn small(device: &Device, change: impl Fn(&mut TrainOptions)) -> Trainer {
    let mut trainer = digits(device, Precision::F32, |options| {
        options.batch = 32;
        change(options);
    });
    trainer.start_epoch(0).expect("order");
    trainer
}

/// A rate for each step; all of them differ.
fn rate(step: usize) -> f64 {
    4e-3 / (1.0 + step as f64 / 7.0)
}

on_stand_in! {
    /// However the steps are cut into graphs of 16, 4 and 1, the bits are those of one at a time.
    fn steps_given_at_once_are_those_one_by_one() {
        let device = device();
        let adamw: fn(&mut TrainOptions) = |_| ();
        let clipped: fn(&mut TrainOptions) = |options| {
            options.optimizer.clip_norm = Some(0.5);
            options.accumulate = 2;
        };
        for (what, change, cuts) in [
            ("adamw", adamw, &[21, 3, 1][..]),
            ("clipped, accumulated", clipped, &[2, 4]),
        ] {
            let mut one_by_one = small(&device, change);
            let rows = one_by_one.update_rows(0);
            let count: usize = cuts.iter().sum();
            let want: Vec<f64> = (0..count)
                .map(|step| one_by_one.step(step as u64 + 1, step * rows, rate(step)).expect("a step"))
                .collect();
            let mut at_once = small(&device, change);
            let mut got: Vec<f64> = Vec::new();
            for &cut in cuts {
                let done = got.len();
                let rates: Vec<f64> = (done..done + cut).map(rate).collect();
                got.extend(at_once.steps(done as u64 + 1, done * rows, &rates).expect("steps"));
            }
            assert!(got.iter().all(|loss| loss.is_finite()), "{what}: {got:?}");
            assert_eq!(got, want, "{what}");
            assert!(weights(&at_once) == weights(&one_by_one), "{what}: other weights");
            digest(what, &weights(&at_once));
            let [got, want] = [at_once, one_by_one].map(|mut trainer| trainer.review());
            assert_eq!(got.expect("a review"), want.expect("a review"), "{what}");
        }
    }
}

on_stand_in! {
    /// The end of an epoch, where the last batch is short, is no end of what is given at once.
    fn a_whole_epoch_at_once() {
        let mut trainer = digits_without_kinks(&device(), |_| ());
        let mut cpu = digits_without_kinks(&Device::cpu(1).expect("cpu"), |_| ());
        let count = trainer.steps_per_epoch() as usize;
        let rates: Vec<f64> = (0..count).map(rate).collect();
        for epoch in 0..2 {
            let first = (epoch * count) as u64 + 1;
            let [got, want] = [&mut trainer, &mut cpu].map(|trainer| {
                trainer.start_epoch(epoch as u64).expect("order");
                trainer.steps(first, 0, &rates).expect("steps").to_vec()
            });
            assert_eq!(got.len(), count);
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = (got - want).abs() / want.abs();
                assert!(error <= 2e-6, "epoch {epoch}, step {step}: {got}, CPU {want}");
            }
        }
        let error = trainer.steps(1, 0, &vec![1e-3; count + 1]).expect_err("one too many");
        assert!(error.to_string().contains("past the end"), "{error}");
        let [got, want] = [&mut trainer, &mut cpu].map(|trainer| trainer.review().expect("a review"));
        assert!((got.accuracy - want.accuracy).abs() < 0.01 && got.accuracy > 0.9, "{got:?} {want:?}");
        digest("weights", &weights(&trainer));
    }
}

on_stand_in! {
    /// Sixteen steps are one copy to the device, one graph, one copy back and one wait.
    fn calls_of_a_launch() {
        const NAMES: [&str; 7] = [
            "cuGraphLaunch",
            "cuMemcpyHtoDAsync_v2",
            "cuMemcpyDtoHAsync_v2",
            "cuStreamSynchronize",
            "cuLaunchKernel",
            "cuMemHostAlloc",
            "cuMemAlloc_v2",
        ];
        let mut trainer = small(&device(), |_| ());
        let rows = trainer.update_rows(0);
        let mut taken = |first: usize, count: usize| {
            let rates: Vec<f64> = (first..first + count).map(rate).collect();
            let before = calls(NAMES);
            trainer.steps(first as u64 + 1, first * rows, &rates).expect("steps");
            let after = calls(NAMES);
            std::array::from_fn::<u64, 7, _>(|i| after[i] - before[i])
        };
        // The graph of 16 is captured at its first use.
        taken(0, 16);
        assert_eq!(taken(16, 16), [1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(taken(32, 1), [1, 1, 1, 1, 0, 0, 0]);
        // Nor does telemetry take a call.
        let mut measured = small(&device(), |options| options.telemetry = true);
        let rates = [1e-3; 16];
        measured.steps(1, 0, &rates).expect("steps");
        let before = calls(NAMES);
        measured.steps(17, 16 * rows, &rates).expect("steps");
        let after = calls(NAMES);
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|i| after[i] - before[i]), [1, 1, 1, 1, 0, 0, 0]);
        // An epoch's order is made on the device: a row of the control block, and a kernel.
        trainer.start_epoch(1).expect("order");
        let before = calls(NAMES);
        trainer.start_epoch(2).expect("order");
        let after = calls(NAMES);
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|i| after[i] - before[i]), [1, 1, 0, 0, 0, 0, 0]);
        // A review waits once, however many batches it has.
        trainer.review().expect("a review");
        let before = calls(NAMES);
        trainer.review().expect("a review");
        let after = calls(NAMES);
        assert_eq!([2, 3].map(|i| after[i] - before[i]), [1, 1]);
    }
}

on_stand_in! {
    /// Products of weights' gradients do not wait for those of the layers below.
    fn nodes_that_do_not_need_each_other_do_not_wait() {
        let mut trainer = small(&device(), |_| ());
        let (recording, _) = trainer.step_recording().expect("recorded");
        let (nodes, chain) = (recording.nodes().len(), recording.stages());
        assert!(chain < nodes, "{chain} of {nodes} nodes in one chain");
    }
}

/// Loss, gradient and the arena's bytes; nobody reads the logits afterwards, unless they are `wanted`.
fn loss_of_a_product(
    device: &Device,
    [rows, classes]: [usize; 2],
    wanted: bool,
) -> (Vec<f32>, usize) {
    let mut store = Store::new(device);
    let data =
        |n: usize, by: usize| (0..n).map(|i| (i * by % 23) as f32 / 8.0 - 1.4).collect::<Vec<_>>();
    let (x, w) = (store.upload("x", &data(rows * 3, 7)), store.upload("w", &data(3 * classes, 5)));
    let labels: Vec<u32> = (0..rows).map(|row| (row * 13 % classes) as u32).collect();
    let labels = store.upload("labels", &labels);
    let region = store.allocate("dx", DType::F32, rows * 3);
    let mut tape = Tape::new(&store);
    let x = tape.persistent("x", x, 0, [rows, 3]).expect("x");
    let w = tape.persistent("w", w, 0, [3, classes]).expect("w");
    let labels = tape.persistent("labels", labels, 0, [rows]).expect("labels");
    let logits = ops::matmul(&mut tape, x, w, false, false).expect("logits");
    if wanted {
        tape.output(logits).expect("kept");
    }
    let loss = ops::softmax_cross_entropy(&mut tape, logits, labels, 0.1).expect("loss");
    let dx = tape.backward(loss.loss, &[x]).expect("gradient")[0];
    tape.place(dx, region, 0).expect("placed");
    tape.keep(loss.loss).expect("kept");
    let mut recording = tape.compile(&store).expect("it compiles");
    let mut kept = Vec::new();
    recording.enqueue(&mut store, 1, |_, _| ()).expect("it runs");
    store.collect(&mut kept).expect("it ran");
    let mut values = vec![0f32; rows * 3];
    store.read(region, 0, &mut values).expect("read");
    values.push(kept[0][0]);
    (values, recording.memory().arena_bytes)
}

on_stand_in! {
    /// The gradient of the logits takes their memory, which changes no bits, in every form of the kernel.
    fn a_gradient_lies_over_the_logits() {
        let device = device();
        for [rows, classes] in [[5, 10], [33, 3], [3, 100], [2, 1000], [2, 5001]] {
            let (over, least) = loss_of_a_product(&device, [rows, classes], false);
            let (apart, more) = loss_of_a_product(&device, [rows, classes], true);
            assert!(over.iter().all(|x| x.is_finite()) && over == apart, "{rows} x {classes}");
            let saved = more - least;
            assert!(saved >= rows * classes * 4, "{rows} x {classes}: {saved} bytes saved");
            digest(&format!("{rows} x {classes}"), &over);
        }
    }
}

/// A net of one layer on 32 rows of which one has a label that there is none of, with the guarded update;
/// kept: loss and the sum over all losses. Where it trains from, and its weights.
struct OneBadRow {
    store: Store,
    recording: Recording,
    weights: twoclocks::tape::Region,
    optimizer: Optimizer,
    offset: twoclocks::device::U64Slot,
}

fn one_bad_row(device: &Device, halted: bool) -> Result<OneBadRow> {
    let mut store = Store::new(device);
    let (rows, features, classes, batch) = (32, 4, 3, 4);
    let values: Vec<f32> = (0..rows * features).map(|i| (i * 7 % 11) as f32 / 11.0).collect();
    let mut labels: Vec<u32> = (0..rows as u32).map(|i| i % classes as u32).collect();
    labels[17] = 100;
    let identity: Vec<u32> = (0..rows as u32).collect();
    let [values, scale, shift] =
        [values, vec![1.0; features], vec![0.0; features]].map(|data| store.upload("f32", &data));
    let [labels, order] = [labels, identity].map(|data| store.upload("u32", &data));
    let weights = store.upload("weights", &vec![0.1f32; features * classes]);
    let gradients = store.allocate("gradients", DType::F32, features * classes);
    let segment =
        Segment { offset: 0, len: features * classes, rate_factor: 1.0, decay_factor: 1.0 };
    let config = OptimizerConfig {
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 },
        decay: Decay::None,
        weight_decay: 0.0,
        ..OptimizerConfig::default()
    };
    let optimizer = Optimizer::new(&config, vec![segment], features * classes, &mut store)?;
    let offset = store.control_mut().u64_slot("batch offset", 0);
    if halted {
        store.control_mut().set_u64_halted(offset, 1 << 40);
    }
    let mut tape = Tape::new(&store);
    let values = tape.persistent("values", values, 0, [rows, features])?;
    let labels = tape.persistent("labels", labels, 0, [rows])?;
    let order = tape.persistent("order", order, 0, [rows])?;
    let [scale, shift] = [scale, shift].map(|region| tape.persistent("x", region, 0, [features]));
    let w = tape.persistent("w", weights, 0, [features, classes])?;
    let batch = ops::batch(&mut tape, values, labels, order, scale?, shift?, batch, offset)?;
    let logits = ops::matmul(&mut tape, batch.inputs, w, false, false)?;
    let loss = ops::softmax_cross_entropy(&mut tape, logits, batch.labels, 0.0)?;
    let dw = tape.backward(loss.loss, &[w])?[0];
    tape.place(dw, gradients, 0)?;
    optimizer.record(&mut tape, weights, gradients, Some(loss.loss))?;
    tape.stop_on(loss.loss)?;
    tape.keep(loss.statistics)?;
    let recording = tape.compile(&store)?;
    Ok(OneBadRow { store, recording, weights, optimizer, offset })
}

impl OneBadRow {
    /// So many steps from step `first` on; what each kept, and the weights' bits after them.
    fn steps(&mut self, first: usize, count: usize) -> (Vec<[f32; KEPT]>, Vec<u32>) {
        let OneBadRow { store, recording, optimizer, offset, .. } = self;
        recording
            .enqueue(store, count, |i, control| {
                optimizer.prepare(control, (first + i) as u64 + 1, 0.01, 1.0);
                control.set_u64(*offset, 4 * (first + i) as u64);
            })
            .expect("steps");
        let mut kept = Vec::new();
        store.collect(&mut kept).expect("collected");
        let mut weights = vec![0f32; store.len(self.weights)];
        store.read(self.weights, 0, &mut weights).expect("read");
        (kept, weights.iter().map(|w| w.to_bits()).collect())
    }
}

on_stand_in! {
    /// After a step whose loss is not finite nothing changes, in the same launch and in those of the same
    /// series; the next series begins anew.
    fn a_step_that_is_not_finite_stops_those_after_it() {
        for device in [device(), Device::cpu(1).expect("cpu")] {
            let mut alone = one_bad_row(&device, true).expect("it compiles");
            let (_, last_good) = alone.steps(0, 4);
            let (bad, after) = alone.steps(4, 1);
            assert!(!bad[0][0].is_finite());
            assert_eq!(after, last_good, "the guard");
            let mut at_once = one_bad_row(&device, true).expect("it compiles");
            let (kept, after) = at_once.steps(0, 8);
            assert_eq!(after, last_good, "weights are those of the last good step");
            assert_eq!(kept.len(), 8);
            assert!(kept[..4].iter().flatten().all(|x| x.is_finite()), "{kept:?}");
            assert!(kept[4..].iter().all(|kept| !kept[0].is_finite()), "{kept:?}");
            // The next series is not stopped by the last one.
            let (kept, after) = at_once.steps(5, 2);
            assert!(kept.iter().all(|kept| kept[0].is_finite()), "{kept:?}");
            assert_ne!(after, last_good);
        }
        // What the flag is for: where it has no effect, the steps after the bad one update the weights.
        let mut alone = one_bad_row(&self::device(), true).expect("it compiles");
        let (_, last_good) = alone.steps(0, 4);
        let (_, after) = one_bad_row(&self::device(), false).expect("it compiles").steps(0, 8);
        assert_ne!(after, last_good);
    }
}

on_stand_in! {
    /// More steps than the device holds results of are fetched on the way, and one that is not finite still
    /// stops them.
    fn long_series() {
        let mut net = one_bad_row(&device(), true).expect("it compiles");
        let count = 380;
        let OneBadRow { store, recording, offset, .. } = &mut net;
        let bad = 300;
        recording
            .enqueue(store, count, |i, control| {
                control.set_u64(*offset, if i == bad { 16 } else { (i % 4 * 4) as u64 });
            })
            .expect("steps");
        let mut kept = Vec::new();
        store.collect(&mut kept).expect("collected");
        assert_eq!(kept.len(), count);
        assert_eq!(kept.iter().position(|kept| !kept[0].is_finite()), Some(bad));
        assert!(kept[bad..].iter().all(|kept| !kept[0].is_finite()));
    }
}

on_stand_in! {
    /// What a graph of several steps would freeze is an error that names it.
    fn what_would_be_frozen_is_refused() {
        let device = device();
        let mut store = Store::new(&device);
        let mut kept = Vec::new();

        // An input that the host writes.
        let mut tape = Tape::new(&store);
        let x = tape.input("temperature", [3]).expect("input");
        let y = ops::neg(&mut tape, x).expect("neg");
        tape.keep(y).expect("kept");
        let mut recording = tape.compile(&store).expect("it compiles");
        recording.write(x, &[1f32, 2.0, 3.0]).expect("written");
        let error = recording.enqueue(&mut store, 2, |_, _| ()).expect_err("frozen").to_string();
        assert!(error.contains("'temperature'") && error.contains("2 steps"), "{error}");
        recording.enqueue(&mut store, 1, |_, _| ()).expect("one step");
        let error = recording.replay(&mut store).expect_err("a series is open").to_string();
        assert!(error.contains("collected"), "{error}");
        store.collect(&mut kept).expect("collected");
        assert_eq!(kept[0][..4], [-1.0, -2.0, -3.0, 0.0]);

        // A region that the host derives from one that the steps write.
        let weights = store.upload("weights", &[1f32; 4]);
        let packed = store.allocate("packed weights", DType::F32, 4);
        store.derive(weights, packed, |from, to| to.copy_from_slice(from));
        let mut tape = Tape::new(&store);
        let w = tape.persistent("w", weights, 0, [4]).expect("w");
        let dw = tape.fill([4].into(), 0.5);
        ops::accumulate(&mut tape, w, dw).expect("recorded");
        let mut recording = tape.compile(&store).expect("it compiles");
        let error = recording.enqueue(&mut store, 3, |_, _| ()).expect_err("stale").to_string();
        assert!(error.contains("'packed weights'") && error.contains("3 steps"), "{error}");
        recording.enqueue(&mut store, 1, |_, _| ()).expect("one step");
        store.collect(&mut kept).expect("collected");

        // A slot of another store, which nobody of this one writes.
        let mut other = Store::new(&device);
        let control = other.control_mut();
        let slots: Vec<_> = (0..50).map(|i| control.u64_slot(&format!("slot {i}"), i)).collect();
        let mut tape = Tape::new(&store);
        let rows = tape
            .scoped("shuffle", |tape| ops::permutation(tape, 10, slots[48], slots[49]))
            .expect("recorded");
        tape.output(rows).expect("output");
        let error = tape.compile(&store).map(|_| ()).expect_err("another store").to_string();
        assert!(error.contains("shuffle/permutation") && error.contains("slot 48"), "{error}");
    }
}

on_stand_in! {
    /// Slots that are made after a recording was compiled are seen, up to as many as a device is told.
    fn slots_made_later() {
        let device = device();
        let mut store = Store::new(&device);
        let control = store.control_mut();
        let (seed, epoch) = (control.u64_slot("seed", 3), control.u64_slot("epoch", 1));
        let region = store.allocate("order", DType::U32, 100);
        let mut tape = Tape::new(&store);
        let rows = ops::permutation(&mut tape, 100, seed, epoch).expect("recorded");
        tape.place(rows, region, 0).expect("placed");
        let mut recording = tape.compile(&store).expect("it compiles");
        let mut got = vec![0u32; 100];
        for (later, value) in [(0, 1), (7, 2), (1000, 3)] {
            for i in 0..later {
                store.control_mut().u64_slot(&format!("later {i}"), 9);
            }
            store.control_mut().set_u64(epoch, value);
            recording.replay(&mut store).expect("it runs");
            store.read(region, 0, &mut got).expect("read");
            assert_eq!(got, order(3, value, 100));
        }
        store.control_mut().f32_slot("the last straw", 1.0);
        for i in 0..30 {
            store.control_mut().u64_slot(&format!("too many {i}"), 9);
        }
        let error = recording.replay(&mut store).expect_err("too many").to_string();
        assert!(error.contains("1033 slots") && error.contains("too many 21"), "{error}");
        let error = recording.enqueue(&mut store, 2, |_, _| ()).expect_err("too many").to_string();
        assert!(error.contains("1033 slots"), "{error}");
    }
}

on_stand_in! {
    /// Memory that a device does not have is said at once, with what it was for.
    fn memory_that_is_not_there() {
        let device = device();
        let mut store = Store::new(&device);
        let error = store.try_allocate("the moon", DType::F32, 1 << 40).expect_err("too much");
        let error = error.to_string();
        assert!(error.contains("'the moon'") && error.contains(&format!("{} bytes", 4u64 << 40)), "{error}");
        let mut parameters = Parameters::new();
        let layers = [LayerConfig::Linear {
            name: Some("wide".into()),
            inputs: None,
            outputs: 1 << 25,
            activation: Default::default(),
            bias: true,
            initial: None,
            decay_factor: None,
            polar_decay: None,
        }];
        Sequential::new(&layers, &[64], &mut parameters).expect("it is a net");
        let error = parameters.bind(&mut Store::new(&device), 1).map(|_| ()).expect_err("too much");
        assert!(error.to_string().contains("'weights'"), "{error}");
        // Pages that were pinned once are used again.
        let mut store = Store::new(&device);
        let region = store.upload("x", &vec![1f32; 3_000_000]);
        let mut back = vec![0f32; 3_000_000];
        store.read(region, 0, &mut back).expect("read");
        let before = calls(["cuMemHostAlloc"]);
        for value in [2f32, 3.0] {
            store.write(region, 0, &vec![value; 3_000_000]).expect("written");
            store.read(region, 0, &mut back).expect("read");
            assert!(back.iter().all(|&x| x == value));
        }
        assert_eq!(calls(["cuMemHostAlloc"]), before);
    }
}

on_stand_in! {
    fn what_cannot_be_kept_is_refused() {
        let mut store = Store::new(&device());
        let region = store.upload("x", &[1f32; 9]);
        let labels = store.upload("labels", &[1u32]);
        let mut tape = Tape::new(&store);
        let x = tape.persistent("x", region, 0, [9]).expect("x");
        let y = tape.scoped("head", |tape| ops::neg(tape, x)).expect("y");
        let error = tape.keep(y).expect_err("nine").to_string();
        assert!(error.contains("head/") && error.contains("f32[9]"), "{error}");
        let labels = tape.persistent("labels", labels, 0, [1]).expect("labels");
        assert!(tape.keep(labels).is_err());
        let first = tape.persistent("first", region, 0, [1]).expect("x");
        tape.keep(first).expect("it is one f32");
        let error = tape.compile(&store).map(|_| ()).expect_err("in the store").to_string();
        assert!(error.contains("'first'") && error.contains("region"), "{error}");
    }
}

/// A folder for one test, removed at its end.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("twoclocks-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Scratch(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(device: &str, rate: &str, bound: &str) -> Config {
    let text = format!(
        r#"
recipe = "steps"
seed = 5
threads = 1
device = "{device}"
precision = "f32"
[data]
source = "digits"
[model]
layers = [{{ kind = "flatten" }}, {{ kind = "linear", outputs = 10 }}]
[optimizer]
kind = "adamw"
rate = {rate}
[train]
batch = 64
{bound}
"#
    );
    Config::parse(&text, "test").expect("a configuration")
}

/// Runs, and gives what came of it with the steps of the journal.
fn run(config: &Config, scratch: &Scratch) -> (Result<train::Outcome>, Vec<(u64, f64)>) {
    let root = scratch.0.join(config.device.replace(':', "-"));
    let outcome = train::run(config, &root, &mut train::Silent, &AtomicBool::new(false));
    let folder =
        std::fs::read_dir(&root).expect("a run").next().expect("one").expect("read").path();
    let folder = RunFolder::open(&folder).expect("it is one");
    let rows = twoclocks::runs::metrics::read(&folder.file("metrics.jsonl")).expect("a journal");
    let steps = rows.into_iter().filter_map(|row| match row {
        Row::Step(step) => Some((step.step, step.loss)),
        _ => None,
    });
    (outcome, steps.collect())
}

on_stand_in! {
    /// A configured run has the journal, the end and the failure that it has on the CPU.
    fn runs_are_those_of_the_cpu() {
        let scratch = Scratch::new("steps");
        for bound in ["epochs = 2", "steps = 29", "epochs = 3\nsteps = 30"] {
            let [(got, got_steps), (want, want_steps)] =
                ["cuda:0", "cpu"].map(|device| {
                    let found = run(&config(device, "4e-3", bound), &scratch);
                    let _ = std::fs::remove_dir_all(scratch.0.join(device.replace(':', "-")));
                    found
                });
            let (got, want) = (got.expect("it runs"), want.expect("it runs"));
            assert_eq!((got.reason, got.done.step), (want.reason, want.done.step), "{bound}");
            assert!((got.done.test_acc - want.done.test_acc).abs() < 0.01, "{bound}: {got:?} {want:?}");
            assert_eq!(got_steps.len(), want_steps.len(), "{bound}");
            for (got, want) in got_steps.iter().zip(&want_steps) {
                assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-4, "{bound}: {got:?} {want:?}");
            }
        }
        // A time that is over at once still has its first step; and it ends.
        let (outcome, steps) = run(&config("cuda:0", "4e-3", "seconds = 0.05"), &scratch);
        assert_eq!(outcome.expect("it runs").reason, train::Reason::Time);
        assert!(!steps.is_empty());
        let _ = std::fs::remove_dir_all(scratch.0.join("cuda-0"));
        // Weights that are too large by the second or third step: the error names the same one.
        let failed = ["cuda:0", "cpu"].map(|device| {
            let (outcome, steps) = run(&config(device, "1e38", "epochs = 1"), &scratch);
            match outcome.expect_err("it diverges") {
                Error::Diverged { step, place, .. } => (step, place, steps.len()),
                other => panic!("{other}"),
            }
        });
        assert_eq!(failed[0].0, failed[1].0, "{failed:?}");
        assert_eq!(failed[0].2, failed[0].0 as usize - 1, "{failed:?}");
    }
}

/// On a device that does nothing before somebody waits for it, the same bits come out.
#[test]
fn nothing_is_written_over_before_it_is_read() {
    let mut found = BTreeSet::new();
    for queue in ["eager", "late"] {
        let variables = [("TWOCLOCKS_STANDIN_QUEUE", queue)];
        let Some(output) = build::start("replay::a_whole_epoch_at_once", &variables) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{queue}: {said}");
        found.extend(said.lines().filter(|line| line.starts_with("digest ")).map(str::to_owned));
        let Some(output) = build::start("replay::long_series", &variables) else { return };
        assert!(output.status.success(), "{queue}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(found.len(), 1, "{found:?}");
}
