//! The update of all parameters by one optimizer step: moments, decay, new weights, their packed
//! copies
//! and the sums that the clocks read, in one pass over memory.
//!
//! With `g = gradient_scale * factor * gradient + coupled * w`, `r = rate * rate_factor` and
//! `d = decay * decay_factor` of the segment (`coupled = d` under [`Decay::Coupled`], else 0;
//! `shrink = r d` under [`Decay::Decoupled`], under [`Decay::Cautious`] for those weights whose step
//! has not the opposite sign, else 0):
//!
//! - SGD: `b = momentum b + g`; `w -= shrink w + r (nesterov ? g + momentum b : b)`. PyTorch starts
//!   with `b = g`: a buffer of zeros gives the same, as there is no dampening. Without momentum
//!   there is no buffer: `w -= shrink w + r g`.
//! - AdamW: `m += (1 - beta1)(g - m)`; `v += (1 - beta2)(g^2 - v)`;
//!   `w -= shrink w + r c1 m / (sqrt(v) c2 + epsilon)` with `c1 = 1 / (1 - beta1^t)` and
//!   `c2 = 1 / sqrt(1 - beta2^t)`. Coupled decay makes it Adam with L2.
//! - Lion: `w -= shrink w + r sign(m + (1 - beta1)(g - m))`; `m += (1 - beta2)(g - m)`; sign(0) = 0,
//!   and sign(NaN) = 0 as PyTorch's: the statistics show such a gradient.
//!
//! Weights, gradients and moments are flat f32 `[P]`; [`Segment`]s say where the parameters lie.
//! Weights and moments are updated in place; what lies between segments is neither read nor written.
//! Rate, decay, momentum or beta1, bias corrections and gradient scale are control slots, all else is
//! baked in.
//!
//! - `statistics` `[segments, 3]`: `g.g`, `w.w`, `g.w` of each segment, `w` before the update and `g`
//!   the gradient times `gradient_scale`, neither clipped nor decayed. Summed in f32 over blocks
//!   of at most 64 vectors, the blocks in f64 in a fixed order; squares above 3e38 overflow.
//! - `packed` `[Q]`: the copies of weights that products read ([`PackedWeights`]), updated in place to
//!   those of the new weights, band by band while these are in cache.
//! - Guard: where the loss or the clipping factor is an operand and is not finite, weights and
//!   moments stay as they are, bit for bit: those of the last good step. Statistics and copies are
//!   still written.
//! - `P = 0` and empty segments are fine; the sums of an empty segment are zero.
//!
//! Error: one rounding per operation above; the decay is subtracted with the step, so a small
//! `r d` is not lost in rounding `1 - r d`.
//!
//! Sources: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; Chen et
//! al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2; Chen et al., "Cautious
//! weight decay", 2025 (arXiv 2510.12402), algorithm 1; `torch.optim` for the place of epsilon and the
//! order of operations.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::{Launches, Place};
use crate::device::{Control, F32Slot};
use crate::error::{Error, Result};
use crate::gemm::{PackedWeight, PackedWeights};
use crate::tensor::{DType, TensorType};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A parameter within the flat regions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Factor of the learning rate.
    pub rate_factor: f32,
    /// Factor of the decay; 0 for a parameter that does not decay.
    pub decay_factor: f32,
}

/// How gradients become steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd {
        /// Share of the last step that is taken again; 0 for none, and then no buffer is kept.
        momentum: f64,
        /// Looks ahead by one step of momentum.
        nesterov: bool,
    },
    /// Adam, with the decay that [`Decay`] says.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// The sign of an interpolated momentum.
    Lion {
        /// Share of the momentum in the step.
        beta1: f64,
        /// Decay of the momentum.
        beta2: f64,
    },
}

impl Rule {
    /// How many buffers of the size of the weights it keeps.
    pub fn moments(&self) -> usize {
        match self {
            Rule::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Rule::AdamW { .. } => 2,
            Rule::Lion { .. } => 1,
        }
    }

    /// The first hyperparameter that cannot be used: its name, and what is wrong with it.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let share = |name, value: f64| {
            let good = (0.0..1.0).contains(&value);
            (!good).then(|| (name, format!("{value} is not in [0, 1)")))
        };
        match *self {
            Rule::Sgd { momentum, nesterov } => share("momentum", momentum).or_else(|| {
                let problem = || ("nesterov", "true needs a momentum above 0".to_owned());
                (nesterov && momentum == 0.0).then(problem)
            }),
            Rule::AdamW { beta1, beta2, epsilon } => {
                let bad = !(epsilon.is_finite() && epsilon >= 0.0);
                let problem = || ("epsilon", format!("{epsilon} is not 0 or more"));
                share("betas", beta1).or(share("betas", beta2)).or(bad.then(problem))
            }
            Rule::Lion { beta1, beta2 } => share("betas", beta1).or(share("betas", beta2)),
        }
    }

    /// Momentum of SGD, `beta1` of the others.
    pub fn momentum(&self) -> f64 {
        match *self {
            Rule::Sgd { momentum, .. } => momentum,
            Rule::AdamW { beta1, .. } | Rule::Lion { beta1, .. } => beta1,
        }
    }

    /// What [`UpdateSlots::momentum`] holds for that momentum or `beta1`.
    pub fn momentum_value(&self, momentum: f64) -> f32 {
        match self {
            Rule::Sgd { .. } => momentum as f32,
            Rule::AdamW { .. } | Rule::Lion { .. } => (1.0 - momentum) as f32,
        }
    }
}

/// How weights decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Weights shrink by `rate * decay` of themselves, apart from the rule.
    Decoupled,
    /// The same, but only where the step moves the weight toward zero as well, or nowhere: with the step
    /// `w -= r u`, where `u w >= 0`. So the decay never takes back what the gradient asks for.
    Cautious,
    /// `decay * w` is added to the gradient: L2.
    Coupled,
    /// They do not.
    None,
}

/// Slots of the values that change from step to step.
#[derive(Clone, Copy, Debug)]
pub struct UpdateSlots {
    /// Learning rate.
    pub rate: F32Slot,
    /// Weight decay.
    pub decay: F32Slot,
    /// `1 / (1 - beta1^t)`, t from 1; AdamW only.
    pub first_correction: F32Slot,
    /// `1 / sqrt(1 - beta2^t)`; AdamW only.
    pub second_correction: F32Slot,
    /// What gradients are multiplied by: 1 / micro-batches.
    pub gradient_scale: F32Slot,
    /// Momentum of SGD; of Adam and Lion `1 - beta1`, of which f32 keeps more digits than of `beta1`.
    pub momentum: F32Slot,
}

impl UpdateSlots {
    /// The slots of that name, made where they are new: rate and decay 0, the momentum that of the rule,
    /// the others 1.
    pub fn register(control: &mut Control, name: &str, rule: Rule) -> UpdateSlots {
        let mut slot = |field: &str, value| control.f32_slot(&format!("{name}.{field}"), value);
        UpdateSlots {
            rate: slot("rate", 0.0),
            decay: slot("decay", 0.0),
            first_correction: slot("first_correction", 1.0),
            second_correction: slot("second_correction", 1.0),
            gradient_scale: slot("gradient_scale", 1.0),
            momentum: slot("momentum", rule.momentum_value(rule.momentum())),
        }
    }
}

/// The operation `update`.
#[derive(Clone, Debug)]
pub struct Update {
    pub(super) rule: Rule,
    pub(super) decay: Decay,
    pub(super) segments: Arc<[Segment]>,
    pub(super) slots: UpdateSlots,
    pub(super) has_guard: bool,
    pub(super) has_factor: bool,
    pub(super) packed: Option<Arc<PackedWeights>>,
}

/// What [`update`] works on.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// Weights `[P]`, updated in place.
    pub weights: Var,
    /// Gradients `[P]`.
    pub gradients: Var,
    /// As many moments `[P]` as [`Rule::moments`] says, updated in place.
    pub moments: &'a [Var],
    /// A scalar, the loss: nothing changes if it is not finite.
    pub guard: Option<Var>,
    /// A scalar, the clipping factor of the gradients: nothing changes if it is not finite.
    pub factor: Option<Var>,
    /// Copies of weights, flat, updated in place; each weight is a segment.
    pub packed: Option<(&'a Arc<PackedWeights>, Var)>,
}

/// What [`update`] gives.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The weights' memory after the update: `[P]`.
    pub weights: Var,
    /// The moments' memory after the update.
    pub moments: Vec<Var>,
    /// `g.g`, `w.w`, `g.w` of each segment: `[segments, 3]`.
    pub statistics: Var,
    /// The copies' memory after the update.
    pub packed: Option<Var>,
}

/// Records the update of all parameters.
///
/// # Errors
/// Types that are not as [`Operands`] says; segments that overlap, are out of order or reach past
/// `P`; hyperparameters that [`Rule::problem`] refuses.
pub fn update(
    tape: &mut dyn Recorder,
    rule: Rule,
    decay: Decay,
    segments: &[Segment],
    slots: UpdateSlots,
    operands: Operands<'_>,
) -> Result<Updated> {
    let Operands { weights, gradients, moments, guard, factor, packed } = operands;
    let op = Update {
        rule,
        decay,
        segments: segments.into(),
        slots,
        has_guard: guard.is_some(),
        has_factor: factor.is_some(),
        packed: packed.map(|(packed, _)| Arc::clone(packed)),
    };
    let inputs = [weights, gradients].into_iter().chain(moments.iter().copied());
    let packed = packed.map(|(_, copies)| copies);
    let inputs: Vec<Var> = inputs.chain(guard).chain(factor).chain(packed).collect();
    let outputs = tape.push(Arc::new(op), &inputs)?;
    let count = rule.moments();
    Ok(Updated {
        weights: outputs[0],
        moments: outputs[1..=count].to_vec(),
        statistics: outputs[count + 1],
        packed: outputs.get(count + 2).copied(),
    })
}

/// The values of one step, the same for all segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    rate: f64,
    decay: f64,
    first_correction: f64,
    second_correction: f64,
    /// As [`UpdateSlots::momentum`].
    momentum: f64,
    /// Gradient scale and clipping factor.
    scale: f64,
}

/// The coefficients of a segment in one step; see the module's equations.
#[derive(Clone, Copy, Debug)]
struct Coefficients {
    scale: f64,
    coupled: f64,
    shrink: f64,
    rate: f64,
}

impl Update {
    /// Input of the first scalar, and how many there are.
    pub(super) fn scalars(&self) -> std::ops::Range<usize> {
        let first = 2 + self.rule.moments();
        first..first + usize::from(self.has_guard) + usize::from(self.has_factor)
    }

    pub(super) fn statistics_output(&self) -> usize {
        1 + self.rule.moments()
    }

    pub(super) fn packed_output(&self) -> usize {
        2 + self.rule.moments()
    }

    /// The step's values from the control block and the scalar operands; `None` if one of these
    /// is not finite.
    pub(super) fn step(&self, control: &Control, scalar: impl Fn(usize) -> f64) -> Option<Step> {
        let slot = |slot| f64::from(control.f32(slot));
        let scalars = self.scalars();
        if scalars.clone().any(|input| !scalar(input).is_finite()) {
            return None;
        }
        let factor = if self.has_factor { scalar(scalars.end - 1) } else { 1.0 };
        Some(Step {
            rate: slot(self.slots.rate),
            decay: slot(self.slots.decay),
            first_correction: slot(self.slots.first_correction),
            second_correction: slot(self.slots.second_correction),
            momentum: slot(self.slots.momentum),
            scale: slot(self.slots.gradient_scale) * factor,
        })
    }

    fn coefficients(&self, step: &Step, segment: &Segment) -> Coefficients {
        let rate = step.rate * f64::from(segment.rate_factor);
        let decay = step.decay * f64::from(segment.decay_factor);
        let (coupled, shrink) = match self.decay {
            Decay::Decoupled | Decay::Cautious => (0.0, rate * decay),
            Decay::Coupled => (decay, 0.0),
            Decay::None => (0.0, 0.0),
        };
        Coefficients { scale: step.scale, coupled, shrink, rate }
    }

    /// FLOPs of one element.
    pub(super) fn flops(&self, statistics: bool) -> usize {
        let rule = match self.rule {
            Rule::Sgd { momentum, nesterov } => {
                2 + 2 * usize::from(momentum != 0.0) + 2 * usize::from(nesterov)
            }
            Rule::AdamW { .. } => 13,
            Rule::Lion { .. } => 9,
        };
        let decay = match self.decay {
            Decay::None => 0,
            Decay::Decoupled | Decay::Coupled => 2,
            Decay::Cautious => 4,
        };
        1 + rule + decay + if statistics { 6 } else { 0 }
    }
}

/// Whether segments lie one after another within `elements`, with factors that can be used.
pub(super) fn check_segments(op: &str, segments: &[Segment], elements: usize) -> Result<()> {
    let mut end = 0;
    for (i, segment) in segments.iter().enumerate() {
        let Segment { offset, len, rate_factor, decay_factor } = *segment;
        if offset < end || offset.checked_add(len).is_none_or(|last| last > elements) {
            let problem = format!(
                "segment {i} has elements {offset} to {offset} + {len}; it must lie from {end} \
                 on, where the one before ends, and within {elements}"
            );
            return Err(Error::operation(op, problem));
        }
        for (name, factor) in [("rate", rate_factor), ("decay", decay_factor)] {
            if !(factor.is_finite() && factor >= 0.0) {
                let problem = format!("segment {i} has {name} factor {factor}");
                return Err(Error::operation(op, problem));
            }
        }
        end = offset + len;
    }
    Ok(())
}

impl Operation for Update {
    fn name(&self) -> &'static str {
        "update"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let expected = self.scalars().end;
        let count = if self.packed.is_some() { expected.min(inputs.len()) } else { inputs.len() };
        let (inputs, copies) = inputs.split_at(count);
        super::expect_f32(self.name(), inputs, expected)?;
        if let Some((name, problem)) = self.rule.problem() {
            return Err(Error::operation(self.name(), format!("{name}: {problem}")));
        }
        let weights = &inputs[0];
        let &[elements] = weights.shape.extents() else {
            let problem = format!("takes flat weights [P], not {weights}");
            return Err(Error::operation(self.name(), problem));
        };
        for (i, input) in inputs.iter().enumerate() {
            let good =
                if self.scalars().contains(&i) { input.elements() == 1 } else { input == weights };
            if !good {
                let problem = format!("input {i} is {input} where the weights are {weights}");
                return Err(Error::operation(self.name(), problem));
            }
        }
        check_segments(self.name(), &self.segments, elements)?;
        for weight in self.packed.iter().flat_map(|packed| packed.weights()) {
            let PackedWeight { offset, inputs, outputs, .. } = *weight;
            let same = |segment: &Segment| (segment.offset, segment.len) == (offset, inputs * outputs);
            if !self.segments.iter().any(same) {
                let problem = format!("no segment is the weight [{inputs}, {outputs}] at {offset}");
                return Err(Error::operation(self.name(), problem));
            }
        }
        let mut outputs = vec![weights.clone(); 1 + self.rule.moments()];
        outputs.push(TensorType::f32([self.segments.len(), 3]));
        if let Some(packed) = &self.packed {
            let wanted = TensorType::new([packed.len()], packed.element());
            if *copies != [wanted.clone()] {
                let problem = format!("takes packed weights of {wanted}, not {copies:?}");
                return Err(Error::operation(self.name(), problem));
            }
            outputs.push(wanted);
        }
        Ok(outputs)
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        naive::update(self, inputs, outputs, control);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(self, site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        let moment = |i: usize| match i < self.rule.moments() {
            true => Place::Output(1 + i),
            false => Place::Null,
        };
        let given = |has: bool, input: usize| if has { Place::Input(input) } else { Place::Null };
        let scalars = self.scalars();
        let statistics = self.statistics_output();
        let places = cuda::Places {
            weights: Place::Output(0),
            gradients: Place::Input(1),
            moments: [moment(0), moment(1)],
            guard: given(self.has_guard, scalars.start),
            factor: given(self.has_factor, scalars.end.saturating_sub(1)),
            statistics: if site.used[statistics] { Place::Output(statistics) } else { Place::Null },
        };
        let mut launches = Launches::new();
        cuda::launch(&mut launches, self, places)?;
        Some(launches)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let covered: usize = self.segments.iter().map(|segment| segment.len).sum();
        let flops = self.flops(site.used[self.statistics_output()]) * covered;
        let mut cost = Cost::of(flops as f64, site);
        // What lies between the segments is neither read nor written.
        let gaps = site.inputs[0].elements() - covered;
        cost.bytes -= (gaps * size_of::<f32>() * (3 + 2 * self.rule.moments())) as f64;
        if self.packed.is_some() {
            // The old copies are not read.
            cost.bytes -= site.inputs[self.scalars().end].bytes() as f64;
        }
        cost
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        let moments = (0..self.rule.moments()).map(|i| (1 + i, 2 + i));
        let packed = self.packed.is_some().then(|| (self.packed_output(), self.scalars().end));
        std::iter::once((0, 0)).chain(moments).chain(packed).collect()
    }
}

const SGD: Rule = Rule::Sgd { momentum: 0.0, nesterov: false };
const MOMENTUM: Rule = Rule::Sgd { momentum: 0.9, nesterov: false };
const NESTEROV: Rule = Rule::Sgd { momentum: 0.9, nesterov: true };
const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
const LION: Rule = Rule::Lion { beta1: 0.9, beta2: 0.99 };

/// A case whose flat regions have `gap` elements after each segment; scalar operands are `guard`
/// and a clipping factor.
fn case(
    control: &mut Control,
    name: String,
    (rule, decay): (Rule, Decay),
    (lens, gap): (&[usize], usize),
    (guard, factor): (Option<f64>, bool),
) -> Case {
    let mut segments = Vec::new();
    let mut elements = 0;
    for (i, &len) in lens.iter().enumerate() {
        let (rate_factor, decay_factor) = ([1.0, 0.5][i % 2], [1.0, 0.0, 2.0][i % 3]);
        segments.push(Segment { offset: elements, len, rate_factor, decay_factor });
        elements += len + gap;
    }
    let slots = UpdateSlots::register(control, &name, rule);
    for (slot, value) in [
        (slots.rate, 0.125),
        (slots.decay, 0.25),
        (slots.first_correction, 3.69),
        (slots.second_correction, 18.26),
        (slots.gradient_scale, 0.5),
    ] {
        control.set_f32(slot, value);
    }
    let op = Update {
        rule,
        decay,
        segments: segments.into(),
        slots,
        has_guard: guard.is_some(),
        has_factor: factor,
        packed: None,
    };
    // Some ten roundings to a weight; a statistic sums blocks of 64 positive terms a lane.
    let mut case = Case::new(name, op, Tolerance::Rounding(16.0));
    let mixed = Fill::Uniform(-1.0, 1.0);
    case = case.input(&[elements], mixed).input(&[elements], mixed);
    for moment in 0..rule.moments() {
        let fill = if moment == 0 { mixed } else { Fill::Uniform(0.0, 1.0) };
        case = case.input(&[elements], fill);
    }
    if let Some(value) = guard {
        case = case.fixed(&[], DType::F32, Fill::Uniform(value, value));
    }
    if factor {
        case = case.fixed(&[], DType::F32, Fill::Uniform(0.25, 0.75));
    }
    case.without_gradient()
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    let rules = [
        ("sgd", SGD),
        ("momentum", MOMENTUM),
        ("nesterov", NESTEROV),
        ("adamw", ADAMW),
        ("lion", LION),
    ];
    let decays = [
        ("decoupled", Decay::Decoupled),
        ("cautious", Decay::Cautious),
        ("coupled", Decay::Coupled),
        ("none", Decay::None),
    ];
    // Pieces of a segment, tiny segments that share a chunk, an empty one; several chunks.
    let several: &[usize] = &[33_001, 7, 1, 0, 129, 16, 20_011];
    for (rule_name, rule) in rules {
        for (decay_name, decay) in decays {
            let name = format!("{rule_name}_{decay_name}_small");
            let sizes: &[usize] = &[31, 16, 1, 5];
            cases.push(case(control, name, (rule, decay), (sizes, 3), (Some(1.5), true)));
        }
        let name = format!("{rule_name}_several_chunks");
        let scalars = (None, rule_name == "adamw");
        cases.push(case(control, name, (rule, Decay::Decoupled), (several, 5), scalars));
        let name = format!("{rule_name}_guarded");
        let infinite = Some(1e300);
        cases.push(case(control, name, (rule, Decay::Coupled), (&[100, 3], 1), (infinite, false)));
    }
    for len in [0, 1, 7, 8, 15, 16, 17, 33, 1023, 1024, 1025, 16_384, 16_385] {
        let name = format!("adamw_{len}");
        cases.push(case(control, name, (ADAMW, Decay::Decoupled), (&[len], 0), (None, false)));
    }
    let none: &[usize] = &[];
    let what = (LION, Decay::None);
    cases.push(case(control, "no_segments".to_owned(), what, (none, 0), (None, false)));
    cases
}

/// Benchmark cases: parameters x segments.
pub fn benches(control: &mut Control) -> Vec<Case> {
    let rules = [("adamw", ADAMW), ("lion", LION), ("nesterov", NESTEROV)];
    let mut cases = Vec::new();
    for (rule_name, rule) in rules {
        for count in [1, 50] {
            let name = format!("{rule_name}_10000000x{count}");
            let lens = vec![10_000_000 / count; count];
            let what = (rule, Decay::Decoupled);
            cases.push(case(control, name, what, (&lens, 0), (None, false)));
        }
    }
    cases
}

#[cfg(test)]
pub(super) mod tests;
