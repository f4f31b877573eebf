//! What the steps say of themselves: sums that stay on the device or come with the loss, until somebody asks.

use super::measure::{ParameterSums, StepFigures};
use crate::error::Result;
use crate::nn::ParameterInfo;
use crate::ops::{self, CrossEntropy};
use crate::tape::{KEPT, Region, Store, Tape};
use crate::tensor::DType;

/// Sums of the update of a parameter: `g.g`, `w.w`, `g.w`.
const OF_PARAMETER: usize = 3;

/// Sums over the steps since the figures were last taken.
///
/// Those of the parameters are added up where the update gives them, in f32: after n steps they are off by a share of n 6e-8 at
/// most. Those of the rows come to the host with the loss.
pub(in crate::train) struct Telemetry {
    /// `[parameters, 3]`: of the last update.
    last: Region,
    /// `[parameters, 3]`: summed over the updates.
    sums: Region,
    parameters: usize,
    rows: Rows,
}

/// Sums over training rows.
#[derive(Clone, Copy)]
struct Rows {
    steps: u64,
    rows: u64,
    margin: f64,
    least_margin: f64,
    right: f64,
    /// Mean square of the logits, times rows.
    squares: f64,
    saturated: f64,
}

impl Rows {
    const NONE: Rows = Rows {
        steps: 0,
        rows: 0,
        margin: 0.0,
        least_margin: f64::INFINITY,
        right: 0.0,
        squares: 0.0,
        saturated: 0.0,
    };
}

impl Telemetry {
    /// Place in what a step keeps of the norm of the gradients, behind the loss and the statistics.
    pub(in crate::train) const NORM_AT: usize = 6;

    pub(in crate::train) fn new(store: &mut Store, parameters: usize) -> Result<Telemetry> {
        let len = parameters * OF_PARAMETER;
        let last = store.try_allocate("telemetry.last", DType::F32, len)?;
        let sums = store.try_allocate("telemetry.sums", DType::F32, len)?;
        Ok(Telemetry { last, sums, parameters, rows: Rows::NONE })
    }

    /// Keeps the statistics of a batch, next to its loss.
    pub(in crate::train) fn record_batch(tape: &mut Tape, loss: &CrossEntropy) -> Result<()> {
        tape.keep(loss.statistics)
    }

    /// Adds the statistics of an update, `[parameters, 3]`.
    pub(in crate::train) fn record_update(
        &self,
        tape: &mut Tape,
        statistics: ops::Var,
    ) -> Result<()> {
        tape.scoped("telemetry", |tape| {
            let last = tape.place(statistics, self.last, 0)?;
            let shape = [self.parameters, OF_PARAMETER];
            let sums = tape.persistent("telemetry.sums", self.sums, 0, shape)?;
            ops::accumulate(tape, sums, last).map(drop)
        })
    }

    /// Adds what a batch of `rows` rows kept.
    pub(in crate::train) fn add_batch(&mut self, rows: usize, kept: &[f32; KEPT]) {
        let [_, margin, least, right, rms, saturated, ..] = kept.map(f64::from);
        let (of, count) = (&mut self.rows, rows as f64);
        of.rows += rows as u64;
        of.margin += margin * count;
        // NaN stays.
        of.least_margin =
            if least.is_nan() || least < of.least_margin { least } else { of.least_margin };
        of.right += right;
        of.squares += rms * rms * count;
        of.saturated += saturated;
    }

    /// Adds an update.
    pub(in crate::train) fn add_update(&mut self) {
        self.rows.steps += 1;
    }

    /// The figures since this was last called; `None` if there was no step.
    pub(in crate::train) fn take(
        &mut self,
        store: &mut Store,
        infos: &[ParameterInfo],
    ) -> Result<Option<StepFigures>> {
        let of = std::mem::replace(&mut self.rows, Rows::NONE);
        let len = self.parameters * OF_PARAMETER;
        let (mut last, mut sums) = (vec![0f32; len], vec![0f32; len]);
        store.read(self.last, 0, &mut last)?;
        store.read(self.sums, 0, &mut sums)?;
        store.write(self.sums, 0, &vec![0f32; len])?;
        if of.steps == 0 {
            return Ok(None);
        }
        let (rows, steps) = (of.rows as f64, of.steps as f64);
        let both = sums.chunks_exact(OF_PARAMETER).zip(last.chunks_exact(OF_PARAMETER));
        let parameters = infos.iter().zip(both).map(|(info, (sums, last))| ParameterSums {
            name: info.name.clone(),
            gradient2: f64::from(sums[0]) / steps,
            weight2: f64::from(last[1]),
            gradient_weight: f64::from(sums[2]) / steps,
            decay_factor: f64::from(info.decay_factor),
        });
        Ok(Some(StepFigures {
            steps: of.steps,
            rows: of.rows,
            accuracy: of.right / rows,
            margin: of.margin / rows,
            least_margin: of.least_margin,
            logit_rms: (of.squares / rows).sqrt(),
            saturated: of.saturated / rows,
            parameters: parameters.collect(),
        }))
    }
}
