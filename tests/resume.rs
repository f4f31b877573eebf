//! Runs at their edges: sets of one row, batches larger than the set, ends that are resumed.

mod common;

use common::runs::{Scratch, StopAfter, bits, record, steps};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use twoclocks::data::{Dataset, Split};
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::runs::{Checkpoint, Clocks, Record};
use twoclocks::train::{self, Config, Observer, Progress, Reason, TrainOptions, Trainer};
use twoclocks::{Device, Error};

fn trainer(split: &Split, batch: usize, accumulate: usize) -> twoclocks::Result<Trainer> {
    let layers = [LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs: split.train.classes(),
        activation: Default::default(),
        bias: true,
        initial: None,
        decay_factor: None,
        polar_decay: None,
    }];
    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers, split.train.shape(), &mut parameters)?;
    let options = TrainOptions { batch, accumulate, ..TrainOptions::default() };
    Trainer::new(&Device::cpu(2)?, Box::new(model), parameters, split, options)
}

fn rows(labels: &[u32], classes: usize) -> Dataset {
    let values = (0..labels.len() * 2).map(|i| (i % 7) as f32).collect();
    Dataset::from_arrays(values, 2, labels.to_vec(), classes).expect("a data set")
}

#[test]
fn small_sets_large_batches_and_offsets_past_the_end() {
    let split = Split { train: rows(&[0, 1, 0, 1, 1], 2), test: rows(&[1], 2) };
    for (batch, accumulate) in [(1000, 1), (2, 2), (2, 5), (1 << 40, 1 << 40)] {
        let mut trainer = trainer(&split, batch, accumulate).expect("a trainer");
        trainer.start_epoch(0).expect("an epoch");
        let (mut offset, mut step) = (0, 0);
        while offset < trainer.rows() {
            step += 1;
            assert!(trainer.step(step, offset, 0.01).expect("a step").is_finite());
            offset += trainer.update_rows(offset);
        }
        assert_eq!(step, trainer.steps_per_epoch());
        for offset in [5, 6, usize::MAX] {
            let error = trainer.step(step + 1, offset, 0.01).expect_err("past the end");
            assert!(error.to_string().contains("past the end"), "{error}");
        }
        let review = trainer.review().expect("a review");
        assert!(review.accuracy == 0.0 || review.accuracy == 1.0);
    }
}

#[test]
fn sets_of_different_classes_or_features_are_refused() {
    let split = Split { train: rows(&[0, 1, 1], 2), test: rows(&[2], 3) };
    assert!(matches!(trainer(&split, 2, 1), Err(Error::Config { .. })));
    let wide = Dataset::from_arrays(vec![1.0; 3], 3, vec![1], 2).expect("a data set");
    let split = Split { train: rows(&[0, 1, 1], 2), test: wide };
    assert!(matches!(trainer(&split, 2, 1), Err(Error::Config { .. })));
}

fn config(bound: &str) -> Config {
    let text = format!(
        r#"
recipe = "edge"
seed = 3
threads = 2
[data]
source = "digits"
[model]
layers = [
    {{ kind = "flatten" }},
    {{ kind = "dropout", p = 0.25 }},
    {{ kind = "linear", outputs = 10 }},
]
[optimizer]
kind = "adamw"
rate = 3e-3
[train]
batch = 16
accumulate = 3
{bound}
review_share = 10.0
"#
    );
    Config::parse(&text, "test").expect("a configuration")
}

#[test]
fn a_run_interrupted_again_and_again_ends_with_the_same_bits() {
    let scratch = Scratch::new("again");
    let never = AtomicBool::new(false);
    let config = config("epochs = 3");
    let whole = train::run(&config, &scratch.path().join("whole"), &mut train::Silent, &never);
    let whole = whole.expect("a run").done;
    // Before the first step; then at steps in the middle, and at the ends, of epochs.
    let stop = AtomicBool::new(true);
    let parts = train::run(&config, &scratch.path().join("parts"), &mut train::Silent, &stop);
    let parts = parts.expect("a run");
    assert_eq!((parts.reason, parts.done.step), (Reason::Interrupted, 0));
    let run = Path::new(&parts.done.run).to_owned();
    let mut left = whole.step;
    for part in [1, whole.step / 3 - 1, 1, 5] {
        stop.store(false, Ordering::Relaxed);
        let outcome = train::resume(&run, &mut StopAfter(part, &stop), &stop).expect("resumed");
        assert_eq!(outcome.reason, Reason::Interrupted);
        left -= part;
        // A journal whose last line was not written to its end.
        let journal = run.join("metrics.jsonl");
        let text = std::fs::read(&journal).expect("a journal");
        std::fs::write(&journal, &text[..text.len() - 7]).expect("cut");
    }
    let outcome = train::resume(&run, &mut StopAfter(left + 1, &never), &never).expect("resumed");
    assert_eq!((outcome.reason, outcome.done.step), (Reason::Epochs, whole.step));
    assert_eq!(bits(&run), bits(Path::new(&whole.run)));
    assert_eq!(steps(&run), steps(Path::new(&whole.run)));
}

#[test]
fn a_finished_run_that_is_resumed_stays_as_it_was() {
    let never = AtomicBool::new(false);
    for (name, bound, reason) in [
        ("epochs", "epochs = 2", Reason::Epochs),
        ("steps", "steps = 4", Reason::Steps),
        // 30 are an epoch.
        ("steps-of-epochs", "steps = 60", Reason::Steps),
        ("time", "seconds = 0.02", Reason::Time),
        ("target", "epochs = 40\ntarget_acc = 0.3", Reason::Target),
    ] {
        let scratch = Scratch::new(name);
        let first = train::run(&config(bound), scratch.path(), &mut train::Silent, &never);
        let first = first.expect("a run");
        assert_eq!(first.reason, reason);
        let run = Path::new(&first.done.run);
        let (weights, journal) = (bits(run), record(run));
        for _ in 0..2 {
            let again = train::resume(run, &mut train::Silent, &never).expect("resumed");
            assert_eq!((again.reason, again.done.step), (reason, first.done.step));
            assert_eq!(again.done.test_acc, first.done.test_acc);
            assert_eq!(bits(run), weights);
            let found = record(run);
            assert_eq!((&found.steps, &found.epochs), (&journal.steps, &journal.epochs), "{name}");
            // What its clocks found is found in its last line, by whoever reads it.
            let of = |record: &Record| Clocks::of(record.done.as_ref().expect("an end"));
            assert!(of(&journal).is_some_and(|clocks| !clocks.advice.is_empty()), "{name}");
            assert_eq!(of(&found), of(&journal), "{name}");
        }
    }
}

/// Keeps no weights, and is reviewed by a sample at its end; stops after so many steps.
struct Lean<'a>(StopAfter<'a>);

impl Observer for Lean<'_> {
    fn wants_weights(&self) -> bool {
        false
    }
    fn final_rows(&self) -> Option<usize> {
        Some(64)
    }
    fn step(&mut self, progress: &Progress) {
        self.0.step(progress);
    }
}

#[test]
fn a_run_that_keeps_no_weights_goes_on_like_others_and_leaves_its_journal() {
    let never = AtomicBool::new(false);
    let scratch = Scratch::new("lean");
    // A checkpoint after every step, which is to go.
    let config = config("epochs = 2\ncheckpoint_seconds = 0.0");
    let mut lean = Lean(StopAfter(u64::MAX, &never));
    let whole =
        train::run(&config, &scratch.path().join("whole"), &mut lean, &never).expect("a run");
    let whole = Path::new(&whole.done.run).to_owned();
    let weights = |run: &Path| run.join("model.safetensors").exists();
    assert!(!weights(&whole));
    let last = |run: &Path| record(run).epochs.last().expect("a review").clone();
    assert_eq!(last(&whole).extra["test_rows"], 64, "judged by a sample");

    let stop = AtomicBool::new(false);
    let part =
        train::run(&config, &scratch.path().join("part"), &mut Lean(StopAfter(40, &stop)), &stop);
    let part = part.expect("a run");
    assert_eq!(part.reason, Reason::Interrupted);
    let run = Path::new(&part.done.run);
    assert!(weights(run), "to go on with");
    let end = train::resume(run, &mut Lean(StopAfter(u64::MAX, &never)), &never).expect("resumed");
    assert_eq!((end.reason, end.done.step), (Reason::Epochs, 60));
    assert!(!weights(run));
    assert_eq!(last(run).test_loss.to_bits(), last(&whole).test_loss.to_bits());
    // Whoever wants the weights after all resumes it: nothing is left to go on with, so it is trained anew.
    let again = train::resume(run, &mut train::Silent, &never).expect("resumed");
    assert_eq!((again.reason, again.done.step), (Reason::Epochs, 60));
    let usual = train::run(&config, &scratch.path().join("usual"), &mut train::Silent, &never);
    assert_eq!(bits(run), bits(Path::new(&usual.expect("a run").done.run)));
}

/// A checkpoint of a version that ordered rows otherwise: between two epochs that is no matter.
#[test]
fn a_checkpoint_with_another_row_order_goes_on_between_epochs_only() {
    let scratch = Scratch::new("order");
    for (steps, within) in [(1, true), (30, false)] {
        let stop = AtomicBool::new(false);
        let root = scratch.path().join(steps.to_string());
        let run = train::run(&config("epochs = 2"), &root, &mut StopAfter(steps, &stop), &stop);
        let run = Path::new(&run.expect("a run").done.run).to_owned();
        let file = run.join("model.safetensors");
        let mut checkpoint = Checkpoint::load(&file).expect("a checkpoint");
        let state = checkpoint.state.as_object_mut().expect("a position");
        assert_eq!(state["offset"] != 0, within);
        state.remove("row_order").expect("it is said");
        checkpoint.save(&file).expect("saved");
        let resumed = train::resume(&run, &mut train::Silent, &AtomicBool::new(false));
        match (resumed, within) {
            (Ok(outcome), false) => assert_eq!(outcome.done.step, 60),
            (Err(Error::Checkpoint { problem, .. }), true) => {
                assert!(problem.contains("within an epoch"), "{problem}");
            }
            (other, _) => panic!("after {steps} steps: {other:?}"),
        }
    }
}
