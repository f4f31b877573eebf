//! Softmax and cross-entropy: loss, gradient of the logits and margin statistics from one read of
//! the logits.
//!
//! For logits `z` `[rows, classes]` (f32) and a distribution `t` over the classes of each row:
//!
//! ```text
//! p          = exp(z - m) / sum exp(z - m)                  m = max z, of each row
//! loss       = mean over rows of -sum t log p               scalar, shape []
//! dlogits    = (T p - t) / rows                             T = sum t: 1 for distributions
//! margin     = z[y] - the largest of the other logits       y = the label
//! rest       = sum over j != y of exp(z_j - z_y)            what there is beside the label
//! ```
//!
//! A row is *saturated* if its label has the largest logit and `rest <= 2^-24`: then `1 + rest` rounds to 1 in f32, so that
//! a plain softmax has `p_y = 1`, and `p_y - 1`, the label's gradient, is exactly 0. That is from margin 16.7 on with two
//! classes, 18.9 with ten. It is a property of the logits and the label, whatever label smoothing adds. The gradient here does not vanish.
//!
//! Targets are labels (u32 `[rows]`), with label smoothing `s` as `t = (1 - s) onehot + s / classes`;
//! or distributions (f32 `[rows, classes]`), whose label is the class of the largest weight, the
//! first of equal ones. They are taken as they are: rows that do not sum to 1 give `-sum t log p`
//! and its gradient all the same.
//!
//! **Stable forms.** Where the label has the largest logit, the row's logarithm is `log1p(rest)`
//! with `rest = sum over j != y of exp(z_j - z_y)`, and the gradient of a label that
//! has most of the weight is minus the sum of the others, `-rest / (1 + rest)` without smoothing: neither rounds to zero before `rest`
//! leaves f32, at a margin of about 103 (`p - 1` is zero at margin 17: Prieto et al.,
//! arXiv:2501.04697).
//!
//! **Gradient.** That of the logits is `dlogits` times the loss's own gradient; where this is 1, nothing
//! is computed. `dlogits` has a gradient in turn (a Hessian times a vector), distributions have one,
//! and the statistics have none.
//!
//! **Edges.** No rows or no classes: an error at recording, for there is no mean over nothing. One class:
//! loss 0, gradient 0, margin 0. A label that is not below `classes`: the loss, that row's gradient
//! and the margins are NaN, so that a run stops as diverged; so with a logit that is NaN or positive
//! infinity, and with a row of negative infinities alone. A single logit of negative infinity has
//! probability 0; if the target gives it weight, the loss is infinity.
//!
//! **Memory.** Logits are read once from memory and the gradient is written once as long as a row
//! and its gradient fit the L2 cache; see `softmax/rows.rs`. The gradient lies over logits that a
//! node computed and nobody reads later: then a line that is written need not be fetched before.
//! Sums over rows go by chunks, in order.
//!
//! **Error.** A few rounding errors of `z - m` (relative to the largest |z - m| of the row), 2 to
//! 5 ulp of the exponential (the more the further it is from 1).

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod naive;
#[cfg(test)]
mod tests;

use super::broadcast::Broadcast;
use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, TensorType};
use std::sync::Arc;

/// Numbers of [`CrossEntropy::statistics`].
const STATISTICS: usize = 5;

/// Most that there can be beside a saturated row's label: half the distance from 1 to the next f32, which a sum rounds off.
const SATURATED: f32 = f32::EPSILON / 2.0;

/// What the second input of [`SoftmaxCrossEntropy`] is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Targets {
    /// Class indices, u32 `[rows]`.
    Labels {
        /// Weight, from 0 to 1, that is taken from the label and given to all classes alike.
        smoothing: f32,
    },
    /// Weights of the classes, f32 `[rows, classes]`.
    Distributions,
}

/// The operation `softmax_cross_entropy`: outputs loss, dlogits, statistics, per_row.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxCrossEntropy {
    /// What the second input is.
    pub targets: Targets,
}

/// Outputs of [`softmax_cross_entropy`]; those that nobody reads are not computed.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// The mean over the rows, shape `[]`.
    pub loss: Var,
    /// The gradient of `loss` with respect to the logits, `[rows, classes]`.
    pub dlogits: Var,
    /// Five numbers, shape `[5]`: mean margin; smallest margin; number of rows whose argmax is the
    /// label (of equal logits the first is the argmax); root mean square of the logits; number of saturated rows.
    pub statistics: Var,
    /// Loss of each row, `[rows]`: not divided by the number of rows.
    pub per_row: Var,
}

/// Records the mean cross-entropy of `logits` (f32 `[rows, classes]`) and `labels` (u32 `[rows]`).
///
/// A label that is not below `classes` makes the loss NaN.
///
/// # Errors
/// The shapes do not fit, there are no rows or no classes, or `label_smoothing` is not in 0..=1.
pub fn softmax_cross_entropy(
    tape: &mut dyn Recorder,
    logits: Var,
    labels: Var,
    label_smoothing: f32,
) -> Result<CrossEntropy> {
    push(tape, Targets::Labels { smoothing: label_smoothing }, logits, labels)
}

/// Records the mean cross-entropy of `logits` and `targets`, both f32 `[rows, classes]`.
///
/// # Errors
/// The shapes do not fit, or there are no rows or no classes.
pub fn softmax_cross_entropy_soft(
    tape: &mut dyn Recorder,
    logits: Var,
    targets: Var,
) -> Result<CrossEntropy> {
    push(tape, Targets::Distributions, logits, targets)
}

fn push(
    tape: &mut dyn Recorder,
    targets: Targets,
    logits: Var,
    given: Var,
) -> Result<CrossEntropy> {
    let outputs = tape.push(Arc::new(SoftmaxCrossEntropy { targets }), &[logits, given])?;
    let [loss, dlogits, statistics, per_row] = outputs[..] else {
        unreachable!("infer gives four outputs");
    };
    Ok(CrossEntropy { loss, dlogits, statistics, per_row })
}

impl Operation for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        self.infer_for(self.name(), inputs)
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::softmax_cross_entropy(self.targets, inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.targets))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.targets)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        if rule.upstream(2).is_some() {
            return Err(Error::gradient(self.name(), "the statistics have no gradient rule"));
        }
        if rule.needs(0) {
            let dx = self.of_logits(rule)?;
            rule.give(0, dx)?;
        }
        if rule.needs(1) {
            let dt = of_targets(rule)?;
            rule.give(1, dt)?;
        }
        Ok(())
    }

    fn may_reuse(&self) -> Vec<(usize, usize)> {
        vec![(1, 0)]
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        // A logit costs two comparisons or additions for the maximum and the sum, a subtraction, a
        // product, and an exponential, which is counted as one.
        Cost::of(5.0 * site.inputs[0].elements() as f64, site)
    }
}

/// The sum of the terms that the outputs give, of which there is at least one.
fn total(tape: &mut dyn Recorder, terms: [Option<Var>; 3]) -> Result<Var> {
    let mut terms = terms.into_iter().flatten();
    let first = terms.next().ok_or_else(|| {
        Error::gradient("softmax_cross_entropy", "the loss depends on none of its outputs")
    })?;
    terms.try_fold(first, |sum, term| super::add(tape, sum, term))
}

/// `x` times a gradient that broadcasts to it.
pub(super) fn times(tape: &mut dyn Recorder, x: Var, upstream: Var) -> Result<Var> {
    if tape.is_fill(upstream, 1.0) { Ok(x) } else { super::mul(tape, x, upstream) }
}

/// A vector `[rows]` as `[rows, 1]`.
fn column(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let rows = tape.tensor_type(x).elements();
    push_one(tape, Broadcast { shape: [rows, 1].into(), inserted: vec![1] }, &[x])
}

impl SoftmaxCrossEntropy {
    /// [`Operation::infer`], with errors that name the operation `name`.
    pub(super) fn infer_for(
        &self,
        name: &str,
        inputs: &[TensorType],
    ) -> Result<Vec<TensorType>> {
        let refuse = |problem: String| Err(Error::operation(name, problem));
        let dtype = match self.targets {
            Targets::Labels { .. } => DType::U32,
            Targets::Distributions => DType::F32,
        };
        super::expect_types(name, inputs, &[DType::F32, dtype])?;
        let (logits, targets) = (&inputs[0], &inputs[1]);
        let &[rows, classes] = logits.shape.extents() else {
            return refuse(format!("the logits {logits} are not [rows, classes]"));
        };
        if rows == 0 || classes == 0 {
            return refuse(format!("there is no mean over the logits {logits}"));
        }
        let wanted = match self.targets {
            Targets::Labels { .. } => Shape::from([rows]),
            Targets::Distributions => logits.shape.clone(),
        };
        if targets.shape != wanted {
            return refuse(format!("the targets of logits {logits} are {wanted}, not {targets}"));
        }
        if let Targets::Labels { smoothing } = self.targets
            && !(0.0..=1.0).contains(&smoothing)
        {
            return refuse(format!("label smoothing is a number from 0 to 1, not {smoothing}"));
        }
        Ok(vec![
            TensorType::f32([]),
            logits.clone(),
            TensorType::f32([STATISTICS]),
            TensorType::f32([rows]),
        ])
    }

    /// `g dlogits` for the loss and `rows g dlogits` for the row losses; and for dlogits itself the
    /// Hessian times `v`, `T p (v - sum p v) / rows`.
    fn of_logits(&self, rule: &mut Rule<'_>) -> Result<Var> {
        let (logits, given, dlogits) = (rule.inputs[0], rule.inputs[1], rule.outputs[1]);
        let upstream = [0, 1, 3].map(|i| rule.upstream(i));
        let tape = &mut *rule.tape;
        let rows = tape.tensor_type(logits).shape.rows() as f32;
        let mut terms = [None; 3];
        if let Some(dloss) = upstream[0] {
            terms[0] = Some(times(tape, dlogits, dloss)?);
        }
        if let Some(v) = upstream[1] {
            let p = super::softmax(tape, logits)?;
            let mut product = super::softmax_backward(tape, p, v)?;
            if self.targets == Targets::Distributions {
                let weight = super::sum(tape, given, &[1], true)?;
                product = super::mul(tape, product, weight)?;
            }
            terms[1] = Some(super::scale(tape, product, 1.0 / rows)?);
        }
        if let Some(dlosses) = upstream[2] {
            let dlosses = column(tape, dlosses)?;
            let product = super::mul(tape, dlogits, dlosses)?;
            terms[2] = Some(super::scale(tape, product, rows)?);
        }
        total(tape, terms)
    }
}

/// Of the distributions: `-g log p / rows`, `-g log p`; and for dlogits `(sum p v - v) / rows`.
fn of_targets(rule: &mut Rule<'_>) -> Result<Var> {
    let logits = rule.inputs[0];
    let upstream = [0, 1, 3].map(|i| rule.upstream(i));
    let tape = &mut *rule.tape;
    let rows = tape.tensor_type(logits).shape.rows() as f32;
    let mut terms = [None; 3];
    if let Some(dloss) = upstream[0] {
        let log_p = super::log_softmax(tape, logits)?;
        let share = super::scale(tape, log_p, -1.0 / rows)?;
        terms[0] = Some(times(tape, share, dloss)?);
    }
    if let Some(v) = upstream[1] {
        let p = super::softmax(tape, logits)?;
        let product = super::mul(tape, p, v)?;
        let sum = super::sum(tape, product, &[1], true)?;
        let difference = super::sub(tape, sum, v)?;
        terms[1] = Some(super::scale(tape, difference, 1.0 / rows)?);
    }
    if let Some(dlosses) = upstream[2] {
        let log_p = super::log_softmax(tape, logits)?;
        let dlosses = column(tape, dlosses)?;
        let product = super::mul(tape, log_p, dlosses)?;
        terms[2] = Some(super::scale(tape, product, -1.0)?);
    }
    total(tape, terms)
}

const SMOOTHINGS: [f32; 3] = [0.0, 0.1, 1.0];

fn labelled(rows: usize, classes: usize, smoothing: f32, spread: f64) -> Case {
    let op = SoftmaxCrossEntropy { targets: Targets::Labels { smoothing } };
    let name = format!("{rows}x{classes}_smoothing{smoothing}_spread{spread}");
    // An exponential has the absolute rounding error of z - m, up to 2 spread, as a relative one.
    Case::new(name, op, Tolerance::Rounding(16.0 + 4.0 * spread))
        .input(&[rows, classes], Fill::Uniform(-spread, spread))
        .fixed(&[rows], DType::U32, Fill::Indices(classes as u32))
}

fn soft(rows: usize, classes: usize) -> Case {
    let op = SoftmaxCrossEntropy { targets: Targets::Distributions };
    Case::new(format!("{rows}x{classes}_soft"), op, Tolerance::Rounding(32.0))
        .input(&[rows, classes], Fill::Uniform(-4.0, 4.0))
        .input(&[rows, classes], Fill::Distributions)
}

/// Test cases: classes around the lanes, the buffer and the blocks; rows around a group and a chunk.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for smoothing in SMOOTHINGS {
        for (rows, classes) in [(1, 1), (3, 2), (128, 10), (17, 16), (5, 65), (3, 2500)] {
            cases.push(labelled(rows, classes, smoothing, 4.0));
        }
    }
    for (rows, classes) in
        [(16, 7), (15, 8), (33, 15), (1, 17), (17, 32), (18, 33), (1301, 10), (2, 2048), (2, 2049), (7, 257), (1, 4096)]
    {
        cases.push(labelled(rows, classes, 0.0, 4.0));
    }
    cases.push(labelled(40, 10, 0.0, 40.0));
    // Rows of which some are saturated, in each of the kernel's ways.
    for (rows, classes) in [(37, 2), (40, 65), (9, 2500)] {
        cases.push(labelled(rows, classes, 0.0, 30.0));
    }
    cases.push(labelled(2, 140_000, 0.0, 20.0));
    for (rows, classes) in [(1, 1), (16, 10), (37, 17), (600, 31), (20, 33), (3, 2500)] {
        cases.push(soft(rows, classes));
    }
    cases
}

/// Benchmark cases: a classifier's batch, characters, and a vocabulary.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let mut cases: Vec<Case> = [(128, 10), (4096, 65), (1024, 1000), (4096, 50257)]
        .map(|(rows, classes)| {
            let mut case = labelled(rows, classes, 0.0, 4.0);
            case.name = format!("{rows}x{classes}");
            case
        })
        .into();
    let mut smoothed = labelled(128, 10, 0.1, 4.0);
    smoothed.name = "smoothed_128x10".to_owned();
    cases.push(smoothed);
    cases.push(soft(128, 10));
    cases
}
