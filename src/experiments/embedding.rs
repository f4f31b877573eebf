//! Addition mod p in a two-layer ReLU net over embeddings: `z = [E_a, E_b]`, `h = relu(z W)`, `logits = h U`. Trained with AdamW on a share of all
//! pairs, all at once: the training loss falls first, the test accuracy long after, as decay takes the rank.
//!
//! Source: Tan, Gai, Zhang, arXiv 2606.05863: p = 113, d = 128, rate 1e-3, betas 0.9 and 0.98, decay 0.6 to 1.0; there the training loss is near
//! 1e-6 at epoch 1500, the test loss falls from 4000 to 8500, the stable rank goes from 36 to 10 or 12.

use super::full_batch::{FullBatch, Objective};
use super::{Findings, Table, digits};
use crate::clocks::{Matrix, Point, Series, effective_rank, singular_values, stable_rank};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Forward, Initial, Parameter, Parameters, Role};
use crate::ops::{self, Var};
use crate::optim::{Decay, OptimizerConfig, Rule};
use crate::random::Random;
use crate::runs::page::{Chart, Line, Scale};
use crate::tape::Region;
use serde_json::json;
use std::time::Instant;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The modulus.
    pub p: usize,
    /// Width of an embedding.
    pub dimension: usize,
    /// Hidden units.
    pub width: usize,
    /// Share of all pairs that is trained on.
    pub share: f64,
    /// Learning rate.
    pub rate: f64,
    /// Decoupled decay.
    pub decay: f64,
    /// Steps at most.
    pub steps: u64,
    /// Threads; 0 for all.
    pub threads: usize,
    /// Seed of the split and of starting weights.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            p: 59,
            dimension: 128,
            width: 128,
            share: 0.5,
            rate: 1e-3,
            decay: 1.0,
            steps: 12_000,
            threads: 0,
            seed: 1,
        }
    }
}

struct Layers {
    embedding: Parameter,
    hidden: Parameter,
    out: Parameter,
}

#[derive(Clone, Copy)]
struct Pairs {
    rows: usize,
    first: Region,
    second: Region,
    sums: Region,
}

fn record(pass: &mut Forward<'_>, layers: &Layers, pairs: &Pairs) -> Result<[Var; 2]> {
    let indices = |pass: &mut Forward<'_>, name: &str, region| {
        pass.tape.persistent(name, region, 0, [pairs.rows])
    };
    let (first, second) =
        (indices(pass, "first", pairs.first)?, indices(pass, "second", pairs.second)?);
    let sums = indices(pass, "sums", pairs.sums)?;
    let table = pass.parameter(layers.embedding)?;
    let (hidden, out) = (pass.parameter(layers.hidden)?, pass.parameter(layers.out)?);
    let a = ops::embedding(pass.tape, table, first)?;
    let b = ops::embedding(pass.tape, table, second)?;
    let z = ops::concat(pass.tape, &[a, b], 1)?;
    let h = ops::linear(pass.tape, z, hidden, None, ops::Activation::Relu)?;
    let logits = ops::matmul(pass.tape, h, out, false, false)?;
    let loss = ops::softmax_cross_entropy(pass.tape, logits, sums, 0.0)?;
    Ok([loss.loss, loss.statistics])
}

/// Runs it.
///
/// # Errors
/// A setting cannot be used, or the net diverges.
pub fn run(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Result<Findings> {
    let &Settings { p, dimension, width, share, rate, decay, seed, .. } = settings;
    if p < 2 || !(share > 0.0 && share < 1.0) {
        let problem =
            format!("a modulus of {p} and a share of {share}: at least 2, and above 0 and below 1");
        return Err(Error::config("embedding", problem));
    }
    let mut parameters = Parameters::new();
    let layers = Layers {
        embedding: parameters.declare(
            "embedding",
            [p, dimension],
            Role::Weight,
            Initial::Normal(1.0 / (dimension as f32).sqrt()),
        )?,
        hidden: parameters.declare(
            "hidden.weight",
            [2 * dimension, width],
            Role::Weight,
            Initial::KaimingNormal,
        )?,
        out: parameters.declare("out.weight", [width, p], Role::Weight, Initial::XavierNormal)?,
    };
    let mut pairs: Vec<u32> = (0..(p * p) as u32).collect();
    let mut random = Random::new(seed, 200);
    for i in (1..pairs.len()).rev() {
        pairs.swap(i, random.below(i as u64 + 1) as usize);
    }
    let count = ((share * pairs.len() as f64) as usize).max(1);
    let config = OptimizerConfig {
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8 },
        rate,
        weight_decay: decay,
        decay: Decay::Decoupled,
        ..OptimizerConfig::adamw()
    };
    let device = Device::cpu(settings.threads)?;
    let (mut net, sets) = FullBatch::new(
        &device,
        parameters,
        seed,
        &config,
        |store| {
            [("train", &pairs[..count]), ("test", &pairs[count..])].map(|(name, pairs)| {
                let of = |f: &dyn Fn(u32) -> u32| {
                    pairs.iter().map(|&pair| f(pair)).collect::<Vec<u32>>()
                };
                let modulus = p as u32;
                Pairs {
                    rows: pairs.len(),
                    first: store.upload(&format!("{name}.first"), &of(&|pair| pair / modulus)),
                    second: store.upload(&format!("{name}.second"), &of(&|pair| pair % modulus)),
                    sums: store.upload(
                        &format!("{name}.sums"),
                        &of(&|pair| (pair / modulus + pair % modulus) % modulus),
                    ),
                }
            })
        },
        |pass, sets: &[Pairs; 2]| {
            let [loss, _] = record(pass, &layers, &sets[0])?;
            Ok(Objective { minimised: loss, loss })
        },
    )?;
    let mut passes = Vec::new();
    for set in &sets {
        passes.push(net.recording(|pass| Ok(record(pass, &layers, set)?.to_vec()))?);
    }
    let weights = [
        ("embedding", layers.embedding, [p, dimension]),
        ("hidden", layers.hidden, [2 * dimension, width]),
        ("out", layers.out, [width, p]),
    ];
    progress(&format!("{} steps on {count} of {} pairs", settings.steps, pairs.len()));
    let began = Instant::now();
    let every = (settings.steps / 150).max(1);
    let mut losses = [Series::default(), Series::default()];
    let mut accuracy = [Vec::new(), Vec::new()];
    let mut ranks: [Vec<(f64, f64)>; 3] = Default::default();
    let (mut effective, mut norms, mut log) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..=settings.steps {
        if step % every == 0 || step == settings.steps {
            let (at, seconds) = (step as f64, began.elapsed().as_secs_f64());
            let mut found = Vec::new();
            for (set, pass) in passes.iter_mut().enumerate() {
                let values = net.look(pass)?;
                let value = f64::from(values[0][0]);
                let right = f64::from(values[1][2]) / sets[set].rows as f64;
                losses[set].push(Point { step: at, seconds, value });
                accuracy[set].push((at, right));
                found.push((value, right, f64::from(values[1][0])));
            }
            let (mut norm2, mut of_layers) = (0.0, Vec::new());
            for (number, (_, parameter, [rows, columns])) in weights.iter().enumerate() {
                let values = net.read(*parameter)?;
                let matrix = Matrix::new(*rows, *columns, &values);
                let singular = singular_values(matrix);
                norm2 += matrix.norm2();
                ranks[number].push((at, stable_rank(&singular)));
                of_layers.push(stable_rank(&singular));
                if number == 0 {
                    effective.push((at, effective_rank(&singular)));
                }
            }
            norms.push((at, norm2));
            log.push(json!({
                "step": step, "seconds": seconds, "train_loss": found[0].0, "test_loss": found[1].0,
                "train_acc": found[0].1, "test_acc": found[1].1, "margin": found[0].2,
                "stable_rank": of_layers, "norm2": norm2, "contraction": at * rate * decay,
            }));
        }
        if step < settings.steps {
            net.step(rate)?;
        }
    }
    let fit = losses[0].first_hit(1e-2);
    // Errors fall as accuracy rises: the first time that at most 10 % and 1 % of the test set are wrong.
    let wrong = Series::new(accuracy[1].iter().map(|&(step, right)| Point {
        step,
        seconds: step,
        value: 1.0 - right,
    }));
    let simple = [0.5, 0.1, 0.01].map(|level| (level, wrong.first_hit(level).map(|hit| hit.step)));
    let rank_ends = ranks.clone().map(|points| {
        let ends = points.first().zip(points.last());
        ends.map_or((f64::NAN, f64::NAN), |(first, last)| (first.1, last.1))
    });
    let mut table = Table::new("Both clocks", &["what", "steps", "C = rate x decay x steps"]);
    let mut row = |what: String, step: Option<f64>| {
        let shown = step.map_or("not reached".to_owned(), |step| format!("{step:.0}"));
        table.rows.push(vec![
            what,
            shown,
            step.map_or("-".to_owned(), |step| digits(step * rate * decay)),
        ]);
    };
    row("training loss 1e-2".to_owned(), fit.map(|hit| hit.step));
    for (level, step) in simple {
        row(format!("test accuracy {:.0} %", 100.0 * (1.0 - level)), step);
    }
    let ratio = fit.zip(simple[1].1).map(|(fit, simple)| simple / fit.step);
    let mut layers_table = Table::new("Stable rank", &["layer", "start", "end"]);
    for ((name, ..), (start, end)) in weights.iter().zip(rank_ends) {
        layers_table.rows.push(vec![(*name).to_owned(), digits(start), digits(end)]);
    }
    let [train_accuracy, test_accuracy] = accuracy;
    let line = |name: &str, number: usize, series: &Series| {
        Line::new(name, number, series.points().iter().map(|p| (p.step, p.value)).collect())
    };
    let chart = |title: &str, y_label: &str, scale, lines| Chart {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        x_label: "steps".to_owned(),
        scale,
        lines,
    };
    let [rank0, rank1, rank2] = ranks;
    Ok(Findings {
        name: "embedding",
        about: format!(
            "Addition mod {p}, {count} of {} pairs, AdamW of rate {rate} and decay {decay}. The classifier fits first; the test set is \
             learnt when the representation has simplified{}.",
            pairs.len(),
            ratio.map_or(String::new(), |ratio| format!(", {ratio:.1} times as late"))
        ),
        tables: vec![table, layers_table],
        charts: vec![
            chart(
                "Loss",
                "cross-entropy, log scale",
                Scale::Log,
                vec![line("train", 0, &losses[0]), line("test", 1, &losses[1])],
            ),
            chart(
                "Accuracy",
                "share",
                Scale::Linear,
                vec![Line::new("train", 0, train_accuracy), Line::new("test", 1, test_accuracy)],
            ),
            chart(
                "Stable rank",
                "",
                Scale::Linear,
                vec![
                    Line::new("embedding", 0, rank0),
                    Line::new("hidden", 1, rank1),
                    Line::new("out", 2, rank2),
                    Line::new("embedding, effective rank", 4, effective),
                ],
            ),
            chart(
                "Norm",
                "sum of squares of all weights",
                Scale::Linear,
                vec![Line::new("norm", 3, norms)],
            ),
        ],
        constants: json!({
            "experiment": "embedding",
            "settings": {
                "p": p, "dimension": dimension, "width": width, "share": share, "rate": rate, "decay": decay,
                "steps": settings.steps, "seed": seed,
            },
            "seconds": began.elapsed().as_secs_f64(),
            "steps_to_train_loss_1e-2": fit.map(|hit| hit.step),
            "steps_to_test_accuracy": simple.iter().map(|(level, step)| json!([1.0 - level, step])).collect::<Vec<_>>(),
            "ratio": ratio,
            "stable_rank": weights.iter().zip(rank_ends).map(|((name, ..), (start, end))| json!({"layer": name, "start": start, "end": end})).collect::<Vec<_>>(),
            "series": log,
        }),
    })
}
