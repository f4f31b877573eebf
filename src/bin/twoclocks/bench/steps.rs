//! Rows of whole training steps.

use super::{Row, repeat};
use crate::problem::Problem;
use std::path::Path;
use std::time::{Duration, Instant};
use twoclocks::data::{NormalisationKind, Split, synthetic};
use twoclocks::gemm::{self, Precision};
use twoclocks::nn::{Forward, Linear, Module, Parameters};
use twoclocks::ops::{Activation, Var};
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Error, Result};

/// Rows of a batch.
pub(super) const BATCH: usize = 128;
/// Batches of a synthetic set.
const BATCHES: usize = 8;
/// Steps of a problem after which all programs must have the same loss.
const CHECKED_STEPS: u64 = 200;

/// How a net began to train.
pub(super) struct Start {
    /// From the start of the process to the end of the first step.
    pub(super) first_step: Duration,
    /// Mean loss of the last pass over the batches in the first [`CHECKED_STEPS`] steps of a
    /// problem.
    pub(super) loss: Option<f64>,
}

/// The nets that are named, or all.
pub(super) fn nets(named: &[String]) -> Vec<String> {
    match named {
        [] => ["mlp64", "mlp", "mlp2048"].map(str::to_owned).to_vec(),
        named => named.to_vec(),
    }
}

/// Widths of the named nets, all with ReLU between.
fn widths(net: &str) -> Result<&'static [usize]> {
    Ok(match net {
        "mlp64" => &[64, 64, 64, 10],
        "mlp" => &[784, 512, 512, 10],
        "mlp2048" => &[784, 2048, 2048, 2048, 10],
        other => {
            return Err(Error::config("--work", format!("'{other}' is not mlp64, mlp or mlp2048")));
        }
    })
}

/// Linear layers one after another.
struct Net(Vec<Linear>);

impl Module for Net {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        self.0.iter().try_fold(x, |x, layer| layer.forward(pass, x))
    }
}

/// A net in training, on batches in turn.
pub(super) struct Training {
    pub(super) trainer: Trainer,
    batches: usize,
    checked: bool,
    number: u64,
}

impl Training {
    /// The net on the device, from its problem or a synthetic set.
    pub(super) fn new(
        device: &Device,
        net: &str,
        precision: Option<Precision>,
        problem: Option<&Path>,
        telemetry: bool,
    ) -> Result<Training> {
        let widths = widths(net)?;
        let problem = problem.map(|path| Problem::read(path, widths, BATCH)).transpose()?;
        let mut parameters = Parameters::new();
        let mut layers = Vec::new();
        for (number, pair) in widths.windows(2).enumerate() {
            let last = number + 2 == widths.len();
            let activation = if last { Activation::None } else { Activation::Relu };
            let name = format!("linear{number}");
            let layer = Linear::new(&mut parameters, &name, pair[0], pair[1], activation)?;
            // Optimizers of the peers know one decay for all parameters.
            if let (Some(bias), true) = (layer.bias(), problem.is_some()) {
                parameters.info_mut(bias).decay_factor = 1.0;
            }
            layers.push(layer);
        }
        let classes = widths[widths.len() - 1];
        let mut options = TrainOptions { batch: BATCH, telemetry, ..TrainOptions::default() };
        let mut batches = match device {
            Device::Cpu(_) => BATCHES,
            // As many as a run gives it at once.
            _ => 4 * BATCHES,
        };
        if let Some(problem) = &problem {
            options.normalise = NormalisationKind::None;
            batches = problem.batches;
        }
        let shapes: Vec<[usize; 2]> = widths.windows(2).map(|pair| [pair[0], pair[1]]).collect();
        options.precision = match (precision, device) {
            (Some(precision), _) => precision,
            (None, Device::Cpu(cpu)) => gemm::choose(cpu.isa(), BATCH, &shapes).precision,
            (None, _) => Precision::F32,
        };
        let train = match &problem {
            Some(problem) => problem.dataset(classes, options.seed)?,
            None => synthetic(BATCH * batches, widths[0], classes, 1),
        };
        let data = Split { train, test: synthetic(BATCH, widths[0], classes, 2) };
        let mut trainer = Trainer::new(device, Box::new(Net(layers)), parameters, &data, options)?;
        if let Some(problem) = &problem {
            problem.start(&mut trainer)?;
        }
        trainer.start_epoch(0)?;
        Ok(Training { trainer, batches, checked: problem.is_some(), number: 0 })
    }

    /// One step: its loss, which is read.
    pub(super) fn step(&mut self) -> Result<f64> {
        let offset = self.number as usize % self.batches * BATCH;
        self.number += 1;
        let loss = self.trainer.step(self.number, offset, 1e-3)?;
        if loss.is_finite() {
            return Ok(loss);
        }
        let problem = format!("the loss of step {} is {loss}", self.number);
        Err(Error::config("bench step", problem))
    }

    /// Up to `count` steps that are given at once; how many they were, as an epoch may end before.
    #[cfg(feature = "cuda")]
    pub(super) fn steps(&mut self, count: usize) -> Result<usize> {
        let batch = self.number as usize % self.batches;
        let count = count.min(self.batches - batch);
        let rates = vec![1e-3; count];
        let losses = self.trainer.steps(self.number + 1, batch * BATCH, &rates)?;
        let last = losses.last().copied().unwrap_or(f64::NAN);
        self.number += losses.len() as u64;
        if last.is_finite() {
            return Ok(count);
        }
        let problem = format!("the loss of step {} is {last}", self.number);
        Err(Error::config("bench step", problem))
    }

    /// Steps to the end of the epoch, up to `count` at once.
    #[cfg(feature = "cuda")]
    pub(super) fn finish_epoch(&mut self, count: usize) -> Result<()> {
        loop {
            self.steps(count)?;
            if (self.number as usize).is_multiple_of(self.batches) {
                return Ok(());
            }
        }
    }

    /// The first step, of a problem the first [`CHECKED_STEPS`]. `began`: the start of the process.
    pub(super) fn start(&mut self, began: Instant) -> Result<Start> {
        let mut losses = vec![self.step()?];
        let first_step = began.elapsed();
        if self.checked {
            for _ in 1..CHECKED_STEPS {
                losses.push(self.step()?);
            }
        }
        let pass = &losses[losses.len().saturating_sub(self.batches)..];
        let loss = self.checked.then(|| pass.iter().sum::<f64>() / pass.len() as f64);
        Ok(Start { first_step, loss })
    }
}

/// Whether steps are measured for the clocks, for each of the rows of a net.
pub(super) fn variants(telemetry: bool) -> &'static [bool] {
    if telemetry { &[false, true] } else { &[false] }
}

/// What a row of a net is called.
pub(super) fn named(net: &str, telemetry: bool) -> String {
    if telemetry { format!("{net}_telemetry") } else { net.to_owned() }
}

/// Nets on the CPU whose steps take turns, each with its row's name.
pub(super) fn rows(
    mut nets: Vec<(String, Training)>,
    budget: Duration,
    began: Instant,
) -> Result<Vec<Row>> {
    let starts: Vec<Start> =
        nets.iter_mut().map(|(_, training)| training.start(began)).collect::<Result<_>>()?;
    let mut seconds = vec![Vec::new(); nets.len()];
    let turns = repeat(budget * nets.len() as u32, || {
        for ((_, training), seconds) in nets.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            training.step()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    let mut rows = Vec::new();
    for (((work, mut training), seconds), start) in nets.into_iter().zip(seconds).zip(starts) {
        // Without those that warmed up.
        let seconds = seconds[seconds.len() - turns.len()..].to_vec();
        rows.push(row(&mut training, work, seconds, Some(start))?);
    }
    Ok(rows)
}

fn row(
    training: &mut Training,
    work: String,
    seconds: Vec<f64>,
    start: Option<Start>,
) -> Result<Row> {
    let precision = training.trainer.precision();
    let (recording, _) = training.trainer.step_recording()?;
    let cost = recording.cost();
    Ok(Row {
        work,
        items: BATCH as f64,
        batch: BATCH,
        precision,
        operands: None,
        flops: cost.flops,
        bytes: cost.bytes,
        seconds,
        updates: Vec::new(),
        start,
    })
}
