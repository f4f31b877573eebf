//! More threads than processors, and processors that other work has too: steps may take longer, but
//! nobody waits for a thread that does not run.
//!
//! Machines that run tests are noisy. So both sides are measured in turn, in short stretches, the
//! fastest stretch of each counts, and a side that lost is given more stretches before the test
//! fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use twoclocks::data::{Split, synthetic};
use twoclocks::nn::{ActivationName, LayerConfig, Parameters, Sequential};
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Result};

const BATCH: usize = 128;
/// How much longer a step may take with twice as many threads as processors.
const MOST: f64 = 3.0;

struct Steps {
    trainer: Trainer,
    number: u64,
    fastest: f64,
}

impl Steps {
    fn new(widths: &[usize], threads: usize) -> Result<Steps> {
        let layer = |&outputs: &usize| LayerConfig::Linear {
            name: None,
            inputs: None,
            outputs,
            activation: if outputs == 10 { ActivationName::None } else { ActivationName::Relu },
            bias: true,
            initial: None,
            decay_factor: None,
            polar_decay: None,
        };
        let layers: Vec<LayerConfig> = widths[1..].iter().map(layer).collect();
        let mut parameters = Parameters::new();
        let model = Sequential::new(&layers, &widths[..1], &mut parameters)?;
        let data = Split {
            train: synthetic(4 * BATCH, widths[0], 10, 1),
            test: synthetic(BATCH, widths[0], 10, 2),
        };
        let options = TrainOptions { batch: BATCH, ..TrainOptions::default() };
        let device = Device::cpu(threads)?;
        let mut trainer = Trainer::new(&device, Box::new(model), parameters, &data, options)?;
        trainer.start_epoch(0)?;
        Ok(Steps { trainer, number: 0, fastest: f64::INFINITY })
    }

    /// Takes some steps and keeps the seconds of the fastest stretch; gives the last loss.
    fn stretch(&mut self, steps: u64) -> Result<f64> {
        let start = Instant::now();
        let mut loss = f64::NAN;
        for _ in 0..steps {
            let offset = self.number as usize % 4 * BATCH;
            self.number += 1;
            loss = self.trainer.step(self.number, offset, 1e-3)?;
        }
        self.fastest = self.fastest.min(start.elapsed().as_secs_f64());
        Ok(loss)
    }
}

/// Asserts that twice as many threads as processors are at most [`MOST`] times as slow as as many.
fn compare(widths: &[usize], steps: u64) -> Result<()> {
    const STRETCHES: usize = 6;
    const MOST_STRETCHES: usize = 40;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut usual = Steps::new(widths, processors)?;
    let mut crowded = Steps::new(widths, 2 * processors)?;
    for stretch in 0..MOST_STRETCHES {
        let losses = [usual.stretch(steps)?, crowded.stretch(steps)?];
        assert_eq!(losses[0], losses[1], "the loss depends on the number of threads");
        if stretch >= STRETCHES && crowded.fastest <= MOST * usual.fastest {
            return Ok(());
        }
    }
    panic!(
        "{widths:?}: {steps} steps take {:.2} ms on {} threads, {:.2} ms on {processors}",
        1e3 * crowded.fastest,
        2 * processors,
        1e3 * usual.fastest,
    );
}

/// Runs `work` while a thread for each processor is busy with something else.
fn beside_others(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    /// Ends the busy threads also when `work` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let _stop = Stop(&stop);
        work()
    })
}

const SMALL: &[usize] = &[64, 64, 64, 10];
const LARGE: &[usize] = &[784, 512, 512, 10];

// One test, since two at the same time would be each other's noise.
#[test]
fn twice_as_many_threads_as_processors_are_not_three_times_as_slow() -> Result<()> {
    compare(SMALL, 200)?;
    compare(LARGE, 8)?;
    beside_others(|| compare(SMALL, 200))?;
    beside_others(|| compare(LARGE, 8))
}
