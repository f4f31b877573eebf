//! Whole training steps of `mlp64`, `mlp` and `mlp2048`: batch 128, AdamW; and the probe of a review, of 512 rows.
//!
//! `cargo bench --bench steps`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twoclocks::data::{Split, synthetic};
use twoclocks::nn::{Forward, Linear, Module, Parameters};
use twoclocks::ops::Activation;
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Result, Var};

const BATCH: usize = 128;
const BATCHES: usize = 16;

const NETS: [(&str, &[usize]); 3] = [
    ("mlp64", &[64, 64, 64, 10]),
    ("mlp", &[784, 512, 512, 10]),
    ("mlp2048", &[784, 2048, 2048, 2048, 10]),
];

struct Mlp(Vec<Linear>);

impl Mlp {
    fn new(parameters: &mut Parameters, widths: &[usize]) -> Result<Mlp> {
        let last = widths.len() - 2;
        let layer = |(number, pair): (usize, &[usize])| {
            let activation = if number == last { Activation::None } else { Activation::Relu };
            Linear::new(parameters, &format!("fc{number}"), pair[0], pair[1], activation)
        };
        widths.windows(2).enumerate().map(layer).collect::<Result<_>>().map(Mlp)
    }
}

impl Module for Mlp {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        self.0.iter().try_fold(x, |x, layer| layer.forward(pass, x))
    }
}

/// A trainer of the net, in its first epoch.
fn trainer(device: &Device, widths: &[usize]) -> Trainer {
    let mut parameters = Parameters::new();
    let model = Mlp::new(&mut parameters, widths).expect("model");
    let data = Split {
        train: synthetic(BATCH * BATCHES, widths[0], 10, 1),
        test: synthetic(BATCH, widths[0], 10, 2),
    };
    let options = TrainOptions { batch: BATCH, ..TrainOptions::default() };
    let mut trainer =
        Trainer::new(device, Box::new(model), parameters, &data, options).expect("trainer");
    trainer.start_epoch(0).expect("epoch");
    trainer
}

fn steps(criterion: &mut Criterion) {
    let device = Device::cpu(0).expect("cpu");
    let mut group = criterion.benchmark_group("step");
    group.sample_size(30).throughput(Throughput::Elements(BATCH as u64));
    for (name, widths) in NETS {
        let mut trainer = trainer(&device, widths);
        let mut step = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let offset = step as usize % BATCHES * BATCH;
                step += 1;
                trainer.step(step, offset, 1e-3).expect("step")
            });
        });
    }
    group.finish();
}

fn probes(criterion: &mut Criterion) {
    let device = Device::cpu(0).expect("cpu");
    let mut group = criterion.benchmark_group("probe");
    group.sample_size(10);
    for (name, widths) in NETS {
        let mut trainer = trainer(&device, widths);
        trainer.probe().expect("the first probe");
        group.bench_function(name, |bencher| bencher.iter(|| trainer.probe().expect("probe")));
    }
    group.finish();
}

criterion_group!(benches, steps, probes);
criterion_main!(benches);
