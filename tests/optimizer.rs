//! Optimizers over ten steps against a scalar f64 re-implementation written as PyTorch's loops are;
//! guard, clipping, statistics, and independence of the number of threads.

mod common;

use common::Random;
use twoclocks::optim::{Decay, Optimizer, OptimizerConfig, Rule, Segment};
use twoclocks::tape::Region;
use twoclocks::{Device, Recording, Shape, Store, Tape, Var};

const STEPS: u64 = 10;
const RATE: f64 = 0.05;
const MICRO_BATCHES: f64 = 4.0;

/// Several chunks, tiny segments that share one, an empty one; gaps that align to cache lines.
fn layout() -> (Vec<Segment>, usize) {
    let (mut segments, mut end) = (Vec::new(), 16);
    for (i, len) in [20_001usize, 5, 1, 0, 40, 17_000].into_iter().enumerate() {
        let (rate_factor, decay_factor) = ([1.0, 0.5, 2.0][i % 3], [1.0, 0.0][i % 2]);
        segments.push(Segment { offset: end, len, rate_factor, decay_factor });
        end = (end + len).next_multiple_of(16) + 16;
    }
    (segments, end)
}

/// A flat region: random values in [-1, 1), zeros between the segments.
fn flat(segments: &[Segment], len: usize, seed: u64) -> Vec<f32> {
    let (mut values, mut random) = (vec![0.0; len], Random(seed));
    for segment in segments {
        for value in &mut values[segment.offset..][..segment.len] {
            *value = (2.0 * random.unit() - 1.0) as f32;
        }
    }
    values
}

struct Run {
    store: Store,
    optimizer: Optimizer,
    recording: Recording,
    weights: Region,
    gradients: Region,
    loss: Var,
    statistics: Var,
    norm: Option<Var>,
    len: usize,
    step: u64,
}

impl Run {
    fn new(config: &OptimizerConfig, threads: usize) -> Run {
        let (segments, len) = layout();
        let mut store = Store::new(&Device::cpu(threads).unwrap());
        let weights = store.upload("weights", &flat(&segments, len, 1));
        let gradients = store.upload("gradients", &vec![0f32; len]);
        let optimizer = Optimizer::new(config, segments, len, &mut store).unwrap();
        let mut tape = Tape::new(&store);
        let loss = tape.input("loss", Shape::scalar()).unwrap();
        let recorded = optimizer.record(&mut tape, weights, gradients, Some(loss)).unwrap();
        tape.output(recorded.statistics).unwrap();
        if let Some(norm) = recorded.norm {
            tape.output(norm).unwrap();
        }
        let recording = tape.compile(&store).unwrap();
        let (statistics, norm) = (recorded.statistics, recorded.norm);
        let step = 0;
        Run { store, optimizer, recording, weights, gradients, loss, statistics, norm, len, step }
    }

    fn step(&mut self, gradients: &[f32], loss: f32) {
        self.step += 1;
        self.store.write(self.gradients, 0, gradients).unwrap();
        self.recording.write(self.loss, &[loss]).unwrap();
        let scale = 1.0 / MICRO_BATCHES;
        self.optimizer.prepare(self.store.control_mut(), self.step, RATE, scale);
        self.recording.replay(&mut self.store).unwrap();
    }

    fn read(&self, region: Region) -> Vec<f32> {
        let mut values = vec![0f32; self.len];
        self.store.read(region, 0, &mut values).unwrap();
        values
    }

    /// Weights and moments.
    fn everything(&self) -> Vec<u32> {
        let moments = self.optimizer.state().iter().map(|&(_, region)| region);
        let all = std::iter::once(self.weights).chain(moments);
        all.flat_map(|region| self.read(region)).map(f32::to_bits).collect()
    }
}

/// PyTorch's single-tensor loops for one parameter, in f64.
#[derive(Clone, Default)]
struct Scalar {
    w: f64,
    first: Option<f64>,
    second: f64,
}

impl Scalar {
    fn step(&mut self, config: &OptimizerConfig, g: f64, lr: f64, wd: f64, t: i32) {
        let mut g = g;
        match config.decay {
            Decay::Coupled => g += wd * self.w,
            Decay::Decoupled => self.w *= 1.0 - lr * wd,
            Decay::Cautious | Decay::None => {}
        }
        let start = self.w;
        match config.rule {
            Rule::Sgd { momentum, nesterov } => {
                if momentum != 0.0 {
                    // PyTorch's first step takes the gradient itself.
                    let buffer = self.first.map_or(g, |buffer| momentum * buffer + g);
                    self.first = Some(buffer);
                    g = if nesterov { g + momentum * buffer } else { buffer };
                }
                self.w -= lr * g;
            }
            Rule::AdamW { beta1, beta2, epsilon } => {
                let m = beta1 * self.first.unwrap_or(0.0) + (1.0 - beta1) * g;
                self.first = Some(m);
                self.second = beta2 * self.second + (1.0 - beta2) * g * g;
                let correction1 = 1.0 - beta1.powi(t);
                let correction2 = (1.0 - beta2.powi(t)).sqrt();
                self.w -= lr / correction1 * m / (self.second.sqrt() / correction2 + epsilon);
            }
            Rule::Lion { beta1, beta2 } => {
                let m = self.first.unwrap_or(0.0);
                let c = beta1 * m + (1.0 - beta1) * g;
                self.w -= lr * if c == 0.0 { 0.0 } else { c.signum() };
                self.first = Some(beta2 * m + (1.0 - beta2) * g);
            }
        }
        // The decay goes where the step goes.
        let step = self.w - start;
        if config.decay == Decay::Cautious && step * start <= 0.0 {
            self.w -= lr * wd * start;
        }
    }
}

fn configs() -> Vec<OptimizerConfig> {
    let rules = [
        Rule::Sgd { momentum: 0.0, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: true },
        Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        Rule::Lion { beta1: 0.9, beta2: 0.99 },
    ];
    let mut all = Vec::new();
    for rule in rules {
        for decay in [Decay::Decoupled, Decay::Cautious, Decay::Coupled, Decay::None] {
            for clip_norm in [None, Some(10.0)] {
                let weight_decay = if decay == Decay::None { 0.0 } else { 0.1 };
                let rate = RATE;
                let plain = OptimizerConfig::adamw();
                all.push(OptimizerConfig { rule, rate, weight_decay, decay, clip_norm, ..plain });
            }
        }
    }
    all
}

#[test]
fn ten_steps_are_those_of_pytorchs_loops() {
    for config in configs() {
        let mut run = Run::new(&config, 2);
        let segments = run.optimizer.segments().to_vec();
        let start = run.read(run.weights);
        let scalar = |&w: &f32| Scalar { w: f64::from(w), ..Scalar::default() };
        let mut scalars: Vec<Scalar> = start.iter().map(scalar).collect();
        for t in 1..=STEPS {
            let gradients = flat(&segments, run.len, 100 + t);
            let mean = |i: usize| f64::from(gradients[i]) / MICRO_BATCHES;
            run.step(&gradients, 1.0);

            let norm = (0..run.len).map(|i| mean(i).powi(2)).sum::<f64>().sqrt();
            let factor = config.clip_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
            if let Some(var) = run.norm {
                let found = f64::from(run.recording.read(var).unwrap()[0]);
                assert!(factor < 1.0, "clips");
                assert!((found - norm).abs() <= 1e-6 * norm, "norm {found}, want {norm}");
            }
            let statistics = run.recording.read(run.statistics).unwrap();
            for (segment, found) in segments.iter().zip(statistics.chunks(3)) {
                let range = segment.offset..segment.offset + segment.len;
                let sums = range.clone().fold([0.0; 3], |[gg, ww, gw], i| {
                    let (g, w) = (mean(i), scalars[i].w);
                    [gg + g * g, ww + w * w, gw + g * w]
                });
                // The weights differ by the rounding of the steps before.
                let scale = (sums[0] * sums[1]).sqrt().max(sums[0]).max(sums[1]);
                for (found, want) in found.iter().zip(sums) {
                    let error = (f64::from(*found) - want).abs();
                    assert!(error <= 2e-5 * scale, "{config:?}: {found}, want {want}");
                }
                let lr = RATE * f64::from(segment.rate_factor);
                let wd = config.weight_decay * f64::from(segment.decay_factor);
                for i in range {
                    scalars[i].step(&config, mean(i) * factor, lr, wd, t as i32);
                }
            }
        }
        let found = run.read(run.weights);
        for (i, (found, want)) in found.iter().zip(&scalars).enumerate() {
            // Each step rounds the weight once and its step a few times: 10 steps of rate 0.05, in
            // each at most a few units of 2^-24 of weights and steps below 2.
            let error = (f64::from(*found) - want.w).abs();
            assert!(error <= 2e-6, "{config:?} at {i}: {found}, want {}: {error:e}", want.w);
        }
        let covered = |i: usize| segments.iter().any(|s| (s.offset..s.offset + s.len).contains(&i));
        for (i, found) in found.iter().enumerate() {
            assert!(covered(i) || found.to_bits() == 0, "a gap was written at {i}");
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    for config in configs() {
        let mut run = Run::new(&config, 2);
        let segments = run.optimizer.segments().to_vec();
        let gradients = flat(&segments, run.len, 7);
        let poisoned: Vec<f32> = gradients.iter().map(|_| f32::NAN).collect();
        run.step(&gradients, 1.0);
        let good = run.everything();
        for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            run.step(&poisoned, loss);
            assert!(run.everything() == good, "{config:?}, loss {loss}");
        }
        // With clipping, the norm guards as well: a finite loss does not exclude bad gradients.
        if config.clip_norm.is_some() {
            let mut one = gradients.clone();
            one[20_000] = f32::INFINITY;
            run.step(&one, 1.0);
            assert!(run.everything() == good, "{config:?}, infinite gradient");
        }
        let statistics = run.recording.read(run.statistics).unwrap();
        assert!(!statistics[0].is_finite(), "the statistics show the gradient");
        run.step(&gradients, 1.0);
        assert!(run.everything() != good, "and goes on with a good one");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for config in configs() {
        let outcome = |threads: usize| {
            let mut run = Run::new(&config, threads);
            let segments = run.optimizer.segments().to_vec();
            for t in 0..3 {
                run.step(&flat(&segments, run.len, t), 1.0);
            }
            let statistics = run.recording.read(run.statistics).unwrap();
            let bits: Vec<u32> = statistics.into_iter().map(f32::to_bits).collect();
            (run.everything(), bits)
        };
        let one = outcome(1);
        assert!(one == outcome(2) && one == outcome(3), "{config:?}");
    }
}

/// lr x decay of 1e-8 is lost in f32 if the weight is multiplied by 1 - lr x decay.
#[test]
fn a_small_decay_is_not_lost_in_rounding() {
    let mut store = Store::new(&Device::cpu(1).unwrap());
    let config = OptimizerConfig { weight_decay: 1e-3, ..OptimizerConfig::sgd() };
    let config = OptimizerConfig { decay: Decay::Decoupled, ..config };
    let start: Vec<f32> = (0..10_000).map(|i| 1.0 + i as f32 / 10_000.0).collect();
    let weights = store.upload("weights", &start);
    // Steps evenly spread over two units in the last place: on top of them the decay, a tenth of a
    // unit, turns as much of the roundings as it should on average.
    let gradients: Vec<f32> = (0..10_000).map(|i| (i % 1000) as f32 * 2.384e-5).collect();
    let gradients = store.upload("gradients", &gradients);
    let segment = Segment { offset: 0, len: 10_000, rate_factor: 1.0, decay_factor: 1.0 };
    let optimizer = Optimizer::new(&config, vec![segment], 10_000, &mut store).unwrap();
    let mut tape = Tape::new(&store);
    optimizer.record(&mut tape, weights, gradients, None).unwrap();
    let mut recording = tape.compile(&store).unwrap();
    let total = |store: &Store| -> f64 {
        let mut values = vec![0f32; 10_000];
        store.read(weights, 0, &mut values).unwrap();
        values.iter().map(|&w| f64::from(w)).sum()
    };
    let mut moved = [0.0; 2];
    for (moved, decay) in moved.iter_mut().zip([0.0, 1e-3]) {
        store.write(weights, 0, &start).unwrap();
        let mut optimizer = optimizer.clone();
        optimizer.set_weight_decay(decay).unwrap();
        let before = total(&store);
        optimizer.prepare(store.control_mut(), 1, 1e-5, 1.0);
        recording.replay(&mut store).unwrap();
        *moved = before - total(&store);
    }
    let (found, want) = (moved[1] - moved[0], 1e-8 * 15_000.0);
    assert!((found - want).abs() <= 0.1 * want, "moved by {found:e}, want {want:e}");
}
