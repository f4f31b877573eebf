//! When do the gates of a ReLU net stand? A two-layer net is trained on digits, all samples at once. Where it has fitted, its gates are
//! noted; then it goes on twice from the same weights: free, and with the gates of each sample frozen, so that each sample sees a
//! linear model. Reported: the share of samples whose pattern is still that of the fit, the share of gates that flipped, and how
//! well the frozen model predicts what the free one does.

use super::full_batch::{FullBatch, Objective};
use super::{Findings, Table, digits};
use crate::clocks::Gates;
use crate::data::{self, Dataset};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Forward, Initial, Parameter, Parameters, Role};
use crate::ops::{self, Var};
use crate::optim::{Decay, OptimizerConfig, Rule};
use crate::runs::page::{Chart, Line, Scale};
use crate::tape::{Region, Store};
use serde_json::json;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Hidden units.
    pub width: usize,
    /// Training loss at which the gates are noted.
    pub fitted: f64,
    /// Steps after that, as multiples of the steps until then.
    pub longer: f64,
    /// Learning rate of Adam.
    pub rate: f64,
    /// Decoupled decay.
    pub decay: f64,
    /// Steps at most until the fit.
    pub steps: u64,
    /// Threads; 0 for all.
    pub threads: usize,
    /// Seed of starting weights.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            width: 128,
            fitted: 0.05,
            longer: 10.0,
            rate: 2e-3,
            decay: 0.1,
            steps: 20_000,
            threads: 0,
            seed: 1,
        }
    }
}

const CLASSES: usize = 10;
const FEATURES: usize = 64;

struct Layers {
    hidden: Parameter,
    bias: Parameter,
    out: Parameter,
}

fn declare(width: usize) -> Result<(Parameters, Layers)> {
    let mut parameters = Parameters::new();
    let hidden = parameters.declare(
        "hidden.weight",
        [FEATURES, width],
        Role::Weight,
        Initial::KaimingNormal,
    )?;
    let bias = parameters.declare("hidden.bias", [width], Role::Bias, Initial::Zeros)?;
    let out =
        parameters.declare("out.weight", [width, CLASSES], Role::Weight, Initial::XavierNormal)?;
    Ok((parameters, Layers { hidden, bias, out }))
}

/// A set as f32 in [0, 1], and its labels.
fn arrays(set: &Dataset) -> (Vec<f32>, Vec<u32>) {
    let mut values = vec![0f32; set.rows() * FEATURES];
    set.rows_f32(0..set.rows(), &mut values);
    values.iter_mut().for_each(|x| *x /= 16.0);
    (values, set.labels().to_vec())
}

/// A set in device memory, with its gates where they are frozen.
#[derive(Clone, Copy)]
struct Resident {
    rows: usize,
    values: Region,
    labels: Region,
    gates: Option<Region>,
}

fn upload(
    store: &mut Store,
    name: &str,
    set: &(Vec<f32>, Vec<u32>),
    gates: Option<&[f32]>,
) -> Resident {
    Resident {
        rows: set.1.len(),
        values: store.upload(&format!("{name}.values"), &set.0),
        labels: store.upload(&format!("{name}.labels"), &set.1),
        gates: gates.map(|gates| store.upload(&format!("{name}.gates"), gates)),
    }
}

/// Activations \[rows, width\], logits, loss and rows that are right.
fn record(
    pass: &mut Forward<'_>,
    layers: &Layers,
    width: usize,
    set: &Resident,
) -> Result<[Var; 4]> {
    let x = pass.tape.persistent("values", set.values, 0, [set.rows, FEATURES])?;
    let labels = pass.tape.persistent("labels", set.labels, 0, [set.rows])?;
    let (hidden, bias) = (pass.parameter(layers.hidden)?, pass.parameter(layers.bias)?);
    let out = pass.parameter(layers.out)?;
    let h = match set.gates {
        None => ops::linear(pass.tape, x, hidden, Some(bias), ops::Activation::Relu)?,
        Some(gates) => {
            let gates = pass.tape.persistent("gates", gates, 0, [set.rows, width])?;
            let z = ops::linear(pass.tape, x, hidden, Some(bias), ops::Activation::None)?;
            ops::mul(pass.tape, z, gates)?
        }
    };
    let logits = ops::matmul(pass.tape, h, out, false, false)?;
    let loss = ops::softmax_cross_entropy(pass.tape, logits, labels, 0.0)?;
    Ok([h, logits, loss.loss, loss.statistics])
}

/// What one look finds.
struct Look {
    gates: Gates,
    predicted: Vec<usize>,
    loss: f64,
    accuracy: f64,
}

fn look(
    net: &mut FullBatch,
    pass: &mut (crate::tape::Recording, Vec<Var>),
    rows: usize,
) -> Result<Look> {
    let found = net.look(pass)?;
    let largest =
        |row: &[f32]| (0..CLASSES).fold(0, |best, c| if row[c] > row[best] { c } else { best });
    Ok(Look {
        gates: Gates::of(&found[0]),
        predicted: found[1].chunks(CLASSES).map(largest).collect(),
        loss: f64::from(found[2][0]),
        accuracy: f64::from(found[3][2]) / rows as f64,
    })
}

/// Runs it.
///
/// # Errors
/// A setting cannot be used, the net does not reach the loss, or it diverges.
pub fn run(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Result<Findings> {
    let &Settings { width, rate, seed, longer, .. } = settings;
    if width == 0 {
        return Err(Error::config("--width", "0 units: a layer has at least one"));
    }
    if !(longer.is_finite() && longer >= 0.0) {
        let problem = format!("{longer} is not 0 or more");
        return Err(Error::config("--longer", problem));
    }
    let digits_set = data::digits::load()?;
    let (train, test) = (arrays(&digits_set.train), arrays(&digits_set.test));
    let config = OptimizerConfig {
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 },
        rate,
        weight_decay: settings.decay,
        decay: Decay::Decoupled,
        ..OptimizerConfig::adamw()
    };
    let device = Device::cpu(settings.threads)?;
    let build = |gates: Option<[&[f32]; 2]>| -> Result<_> {
        let (parameters, layers) = declare(width)?;
        let (net, sets) = FullBatch::new(
            &device,
            parameters,
            seed,
            &config,
            |store| {
                [
                    upload(store, "train", &train, gates.map(|gates| gates[0])),
                    upload(store, "test", &test, gates.map(|gates| gates[1])),
                ]
            },
            |pass, sets| {
                let [_, _, loss, _] = record(pass, &layers, width, &sets[0])?;
                Ok(Objective { minimised: loss, loss })
            },
        )?;
        let mut passes = Vec::new();
        for set in &sets {
            passes.push(net.recording(|pass| Ok(record(pass, &layers, width, set)?.to_vec()))?);
        }
        Ok((net, passes))
    };

    progress("until the fit");
    let (mut free, mut free_passes) = build(None)?;
    while free.step(rate)? > settings.fitted {
        if free.steps() >= settings.steps {
            let problem = format!(
                "the training loss is not at {} after {} steps",
                settings.fitted, settings.steps
            );
            return Err(Error::config("relu-regions", problem));
        }
    }
    let fitted_at = free.steps();
    let rows = [train.1.len(), test.1.len()];
    let mut open = Vec::new();
    let mut at_fit = Vec::new();
    for (set, pass) in free_passes.iter_mut().enumerate() {
        let activations = free.look(pass)?.swap_remove(0);
        open.push(activations.iter().map(|&h| f32::from(u8::from(h > 0.0))).collect::<Vec<f32>>());
        at_fit.push(look(&mut free, pass, rows[set])?);
    }
    let (mut frozen, mut frozen_passes) = build(Some([&open[0], &open[1]]))?;
    frozen.set_weights(&free.weights()?)?;

    progress("on from there, free and frozen");
    let more = (longer * fitted_at as f64).ceil() as u64;
    let every = (more / 40).max(1);
    let columns = [
        "steps / fit",
        "fixed samples",
        "gates flipped",
        "agree, train",
        "agree, test",
        "test free",
        "test frozen",
        "loss free",
        "loss frozen",
    ];
    let mut table = Table::new("After the fit, beside the gates of the fit", &columns);
    let (mut fixed, mut flips, mut agree, mut accuracy) =
        (vec![], vec![], vec![], [vec![], vec![]]);
    let mut series = Vec::new();
    for step in 0..=more {
        if step % every == 0 || step == more {
            let time = 1.0 + step as f64 / fitted_at as f64;
            let mut of_free = Vec::new();
            let mut of_frozen = Vec::new();
            for set in 0..2 {
                of_free.push(look(&mut free, &mut free_passes[set], rows[set])?);
                of_frozen.push(look(&mut frozen, &mut frozen_passes[set], rows[set])?);
            }
            let same = |set: usize| {
                let pairs = of_free[set].predicted.iter().zip(&of_frozen[set].predicted);
                pairs.filter(|(a, b)| a == b).count() as f64 / rows[set] as f64
            };
            let row = [
                time,
                of_free[0].gates.fixed_samples(&at_fit[0].gates, width),
                of_free[0].gates.flips(&at_fit[0].gates),
                same(0),
                same(1),
                of_free[1].accuracy,
                of_frozen[1].accuracy,
                of_free[0].loss,
                of_frozen[0].loss,
            ];
            fixed.push((time, row[1]));
            flips.push((time, row[2]));
            agree.push((time, row[4]));
            accuracy[0].push((time, row[5]));
            accuracy[1].push((time, row[6]));
            if series.len() % 8 == 0 || step == more {
                table.rows.push(row.iter().map(|&x| digits(x)).collect());
            }
            series.push(json!({
                "steps": fitted_at + step, "fixed_samples": row[1], "flips": row[2], "agree_train": row[3],
                "agree_test": row[4], "test_acc_free": row[5], "test_acc_frozen": row[6],
                "train_loss_free": row[7], "train_loss_frozen": row[8],
            }));
        }
        if step < more {
            free.step(rate)?;
            frozen.step(rate)?;
        }
    }
    let x_label = "steps, in those until the fit";
    let chart = |title: &str, y_label: &str, lines| Chart {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        x_label: x_label.to_owned(),
        scale: Scale::Linear,
        lines,
    };
    let [free_accuracy, frozen_accuracy] = accuracy;
    let last = series.last().cloned().unwrap_or_default();
    Ok(Findings {
        name: "relu-regions",
        about: format!(
            "A ReLU net of {width} hidden units on digits. It fitted (training loss {}) after {fitted_at} steps; from there it was \
             trained {more} more steps, free and with each sample's gates frozen.",
            settings.fitted
        ),
        tables: vec![table],
        charts: vec![
            chart(
                "Patterns that stand",
                "share of training samples, of gates",
                vec![
                    Line::new("samples with all gates as at the fit", 0, fixed),
                    Line::new("gates flipped", 1, flips),
                ],
            ),
            chart(
                "Frozen model",
                "share of the test set",
                vec![
                    Line::new("frozen and free agree", 2, agree),
                    Line::new("test accuracy, free", 0, free_accuracy),
                    Line::new("test accuracy, frozen", 1, frozen_accuracy),
                ],
            ),
        ],
        constants: json!({
            "experiment": "relu-regions",
            "settings": {
                "width": width, "fitted": settings.fitted, "rate": rate, "decay": settings.decay, "seed": seed,
            },
            "steps_to_fit": fitted_at,
            "steps_after": more,
            "end": last,
            "series": series,
        }),
    })
}
