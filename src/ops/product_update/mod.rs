//! The update of a weight from what its gradient is the product of: `G = x^T dz`, and the step of
//! [`mod@super::update`] with it, block by block of W. G never goes to memory.
//!
//! Shapes: `x` `[rows, in]`, `dz` `[rows, out]`, `W` and each moment `[in, out]`, all f32. W, moments
//! and the packed copies of W are updated in place. Equations, guard, `statistics` `[1, 3]` and errors
//! are those of [`mod@super::update`]; G is that of [`mod@super::matmul`] in the same precision, and
//! so weights and moments are, bit for bit, those of a product followed by an update.
//!
//! Right where G is all of the gradient and each step an update: not with gradients that are
//! accumulated over batches, summed over several uses of W, or scaled by their common norm. The
//! optimizer sees to that. Any extent may be 0.
//!
//! Why: of 4 bytes a weight for each of w, g, m, v, the gradient's way to memory and back (with the
//! line that is read before it is written, 12 of 40 bytes under AdamW) falls away.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::update::{Decay, Segment, Update, UpdateSlots};
use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var, update};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::gemm::{PackedWeight, PackedWeights, Precision, Spec};
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

/// The operation `product_update`. Inputs: `x`, `dz`, W, moments, the guard, the copies.
#[derive(Clone, Debug)]
pub struct ProductUpdate {
    precision: Precision,
    /// Of one segment, which is W; its inputs are these without `x`, with G in the place of `dz`
    /// after W.
    update: Update,
}

/// What [`product_update`] works on.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[rows, in]`.
    pub x: Var,
    /// `[rows, out]`.
    pub dz: Var,
    /// W `[in, out]`, updated in place.
    pub weight: Var,
    /// As many moments `[in, out]` as the rule has, updated in place.
    pub moments: &'a [Var],
    /// A scalar, the loss: nothing changes if it is not finite.
    pub guard: Option<Var>,
    /// The packed copies of this weight alone, updated in place.
    pub packed: Option<(&'a Arc<PackedWeights>, Var)>,
}

/// Records the product and the update; gives `statistics` `[1, 3]`. `factors` are those of
/// learning rate and decay.
///
/// # Errors
/// The shapes do not fit each other; as [`fn@super::update`].
pub fn product_update(
    tape: &mut dyn Recorder,
    precision: Precision,
    rule: update::Rule,
    decay: Decay,
    [rate_factor, decay_factor]: [f32; 2],
    slots: UpdateSlots,
    operands: Operands<'_>,
) -> Result<Var> {
    let Operands { x, dz, weight, moments, guard, packed } = operands;
    let len = tape.tensor_type(weight).elements();
    let segment = Segment { offset: 0, len, rate_factor, decay_factor };
    let update = Update {
        rule,
        decay,
        segments: [segment].into(),
        slots,
        has_guard: guard.is_some(),
        has_factor: false,
        packed: packed.map(|(packed, _)| Arc::clone(packed)),
    };
    let statistics = update.statistics_output();
    let inputs = [x, dz, weight].into_iter().chain(moments.iter().copied()).chain(guard);
    let inputs: Vec<Var> = inputs.chain(packed.map(|(_, copies)| copies)).collect();
    let outputs = tape.push(Arc::new(ProductUpdate { precision, update }), &inputs)?;
    Ok(outputs[statistics])
}

/// Input number `input` of the update, beyond the gradient, is this one here.
const SHIFT: usize = 1;

impl ProductUpdate {
    /// The product that is the gradient.
    fn spec(&self, inputs: &[TensorType]) -> Spec {
        let (x, dz) = (&inputs[0].shape, &inputs[1].shape);
        Spec::new(x.columns(), dz.columns(), x.rows()).a_transposed().in_precision(self.precision)
    }
}

fn weight_shape(weight: &PackedWeight) -> [usize; 2] {
    [weight.inputs, weight.outputs]
}

fn flat(tensor_type: &TensorType) -> TensorType {
    TensorType::f32([tensor_type.elements()])
}

impl Operation for ProductUpdate {
    fn name(&self) -> &'static str {
        "product_update"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let moments = self.update.rule.moments();
        let count = 3 + moments;
        super::expect_f32(self.name(), &inputs[..inputs.len().min(count)], count)?;
        let [x, dz, weight] = [0, 1, 2].map(|i| inputs[i].shape.extents());
        let fits = match (x, dz, weight) {
            (&[rows, wide], &[same, out], &[inner, outer]) => {
                (rows, wide, out) == (same, inner, outer)
            }
            _ => false,
        };
        if !fits || inputs[3..count].iter().any(|moment| *moment != inputs[2]) {
            let found: Vec<String> = inputs[..count].iter().map(ToString::to_string).collect();
            let problem = format!(
                "takes [rows, in], [rows, out], [in, out] and moments like it, not {}",
                found.join(", ")
            );
            return Err(Error::operation(self.name(), problem));
        }
        if let Some(packed) = &self.update.packed {
            let own = |weight: &PackedWeight| weight_shape(weight) == inputs[2].shape.extents();
            if packed.weights().len() != 1 || !packed.weights().iter().all(own) {
                let problem = format!("the copies are not those of W {}", inputs[2]);
                return Err(Error::operation(self.name(), problem));
            }
        }
        let mut inner = vec![flat(&inputs[2]); 2 + moments];
        inner.extend_from_slice(&inputs[count..]);
        let mut outputs = self.update.infer(&inner)?;
        outputs[..=moments].fill(inputs[2].clone());
        Ok(outputs)
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        naive::product_update(self, inputs, outputs, control);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(self, site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(self, site)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let statistics = site.used[self.update.statistics_output()];
        let update = self.update.flops(statistics) * site.inputs[2].elements();
        let product = self.spec(site.inputs).flops();
        let mut cost = Cost::of(update as f64 + product as f64, site);
        if self.update.packed.is_some() {
            // The old copies are not read.
            cost.bytes -= site.inputs[self.update.scalars().end + SHIFT].bytes() as f64;
        }
        cost
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        let shifted = |(output, input): (usize, usize)| {
            (output, if input == 0 { 2 } else { input + SHIFT })
        };
        self.update.in_place().into_iter().map(shifted).collect()
    }
}

/// A case: `rows` of a weight `[in, out]`.
fn case(
    control: &mut Control,
    (rule_name, rule): (&str, update::Rule),
    [rows, inputs, outputs]: [usize; 3],
    precision: Precision,
    guard: Option<f64>,
) -> Case {
    let kind = if guard.is_some_and(|guard| !(guard as f32).is_finite()) { "_guarded" } else { "" };
    let name = format!("{rule_name}_{rows}x{inputs}x{outputs}_{precision}{kind}");
    let slots = UpdateSlots::register(control, &format!("product {name}"), rule);
    for (slot, value) in [
        (slots.rate, 0.125),
        (slots.decay, 0.25),
        (slots.first_correction, 3.69),
        (slots.second_correction, 18.26),
        (slots.gradient_scale, 0.5),
    ] {
        control.set_f32(slot, value);
    }
    let len = inputs * outputs;
    let segment = Segment { offset: 0, len, rate_factor: 0.5, decay_factor: 2.0 };
    let update = Update {
        rule,
        decay: Decay::Decoupled,
        segments: [segment].into(),
        slots,
        has_guard: guard.is_some(),
        has_factor: false,
        packed: None,
    };
    // Integers make the gradient exact in every precision: then the error is that of the update.
    let op = ProductUpdate { precision, update };
    let mut case = Case::new(name, op, Tolerance::Rounding(16.0))
        .input(&[rows, inputs], Fill::Integers)
        .input(&[rows, outputs], Fill::Integers)
        .input(&[inputs, outputs], Fill::Uniform(-1.0, 1.0));
    for moment in 0..rule.moments() {
        let fill = if moment == 0 { Fill::Uniform(-1.0, 1.0) } else { Fill::Uniform(0.0, 1.0) };
        case = case.input(&[inputs, outputs], fill);
    }
    if let Some(value) = guard {
        case = case.fixed(&[], DType::F32, Fill::Uniform(value, value));
    }
    case.without_gradient()
}

const RULES: [(&str, update::Rule); 4] = [
    ("sgd", update::Rule::Sgd { momentum: 0.0, nesterov: false }),
    ("nesterov", update::Rule::Sgd { momentum: 0.9, nesterov: true }),
    ("adamw", update::Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }),
    ("lion", update::Rule::Lion { beta1: 0.9, beta2: 0.99 }),
];

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for rule in RULES {
        for precision in [Precision::F32, Precision::Bf16] {
            cases.push(case(control, rule, [5, 33, 17], precision, Some(1.5)));
            cases.push(case(control, rule, [3, 4, 5], precision, Some(1e300)));
        }
    }
    for precision in [Precision::F32, Precision::Bf16] {
        for size in [[0, 3, 2], [4, 0, 2], [4, 3, 0], [1, 1, 1], [128, 64, 10], [70, 300, 129], [3, 70, 2100], [300, 70, 129], [1023, 40, 50]] {
            cases.push(case(control, RULES[2], size, precision, None));
        }
    }
    cases
}

/// Benchmark cases: the weights of `mlp64`, `mlp` and `mlp2048` at batch 128.
pub fn benches(control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for [inputs, outputs] in [[64, 64], [784, 512], [512, 512], [512, 10], [784, 2048], [2048, 2048]] {
        for precision in [Precision::F32, Precision::Bf16] {
            cases.push(case(control, RULES[2], [128, inputs, outputs], precision, None));
        }
    }
    cases
}

