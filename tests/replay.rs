//! What a replay promises: no allocations, the same bits for any number of threads.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use twoclocks::data::{Split, synthetic};
use twoclocks::gemm::Precision;
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Store, Tape, ops};

/// Counts the allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MODEL: &str = r#"
[[layers]]
kind = "linear"
outputs = 96
activation = "gelu"
[[layers]]
kind = "layer_norm"
[[layers]]
kind = "dropout"
p = 0.3
[[layers]]
kind = "linear"
outputs = 257
activation = "relu"
[[layers]]
kind = "linear"
outputs = 11
"#;

fn trainer(precision: Precision, threads: usize, features: usize) -> Trainer {
    #[derive(serde::Deserialize)]
    struct Model {
        layers: Vec<LayerConfig>,
    }
    let model: Model = toml::from_str(MODEL).expect("TOML");
    let mut parameters = Parameters::new();
    let model = Sequential::new(&model.layers, &[features], &mut parameters).expect("model");
    let data =
        Split { train: synthetic(1000, features, 11, 1), test: synthetic(100, features, 11, 2) };
    let device = Device::cpu(threads).expect("cpu");
    let options = TrainOptions {
        batch: 128,
        label_smoothing: 0.1,
        precision,
        telemetry: true,
        ..TrainOptions::default()
    };
    Trainer::new(&device, Box::new(model), parameters, &data, options).expect("trainer")
}

/// All tests of this file in one: allocations are counted for the whole process, so nothing else
/// may run beside.
#[test]
fn a_replay_allocates_nothing_and_gives_the_same_bits_on_any_number_of_threads() {
    let f32_bits = check(Precision::F32);
    assert_ne!(f32_bits, check(Precision::Bf16), "bf16 rounds");

    // The counter counts: a recording made anew does allocate.
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [4]).expect("input");
    let y = ops::add(&mut tape, x, x).expect("add");
    tape.output(y).expect("output");
    tape.compile(&store).expect("compile").replay(&mut store).expect("replay");
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
}

/// Returns the bits of the weights after two epochs.
fn check(precision: Precision) -> Vec<u32> {
    let weights = |threads: usize| -> Vec<u32> {
        let mut trainer = trainer(precision, threads, 100);
        for epoch in 0..2 {
            trainer.start_epoch(epoch).expect("epoch");
            for number in 0..trainer.steps_per_epoch() {
                let step = epoch * trainer.steps_per_epoch() + number + 1;
                let loss = trainer.step(step, number as usize * 128, 1e-3).expect("step");
                assert!(loss.is_finite());
            }
        }
        let region = trainer.parameters().weights();
        let mut values = vec![0f32; trainer.store().len(region)];
        trainer.store().read(region, 0, &mut values).expect("read");
        values.iter().map(|x| x.to_bits()).collect()
    };
    let one = weights(1);
    assert_eq!(one, weights(1), "two runs differ");
    assert_eq!(one, weights(2), "two threads differ from one");
    assert_eq!(one, weights(3), "three threads differ from one");

    let mut trainer = trainer(precision, 2, 100);
    trainer.start_epoch(0).expect("epoch");
    // The first steps record: the full batch, and the last short one.
    for (step, offset) in [(1, 0), (2, 896), (3, 128)] {
        trainer.step(step, offset, 1e-3).expect("step");
    }
    // The harness has a thread of its own, which allocates when it gets to run: of several windows
    // one must be without. What a replay allocated would be in all of them.
    let mut fewest = u64::MAX;
    for window in 0..5 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for number in 0..100 {
            let offset = (number as usize % 8) * 128;
            trainer.step(4 + 100 * window + number, offset, 1e-3).expect("step");
        }
        fewest = fewest.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    assert_eq!(fewest, 0, "{precision}: 100 steps allocated {fewest} times");
    one
}
