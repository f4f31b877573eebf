//! Update rules, and schedules of the learning rate.
//!
//! An [`Optimizer`] records the update of all parameters as one operation over flat regions, or that of
//! large weights within the products that are their gradients ([`Optimizer::record_from`]); what
//! changes from step to step goes through control slots ([`Optimizer::prepare`]), so that one
//! recording serves a whole run. A [`Schedule`] says the learning rate of each step.

mod average;
mod between;
mod config;
pub mod polar;
mod rates;
mod schedule;
mod stable;

pub use crate::ops::update::{Decay, Rule, Segment};
pub use average::AverageConfig;
pub use between::Between;
pub use config::OptimizerConfig;
pub use polar::PolarWeight;
pub use rates::Rates;
pub use schedule::{Anneal, CycleMode, Position, Schedule};
pub use stable::Stable;

use crate::device::{Control, F32Slot};
use crate::error::{Error, Result};
use crate::gemm::{PackedWeight, PackedWeights, Precision, may_split};
use crate::ops::matmul::is_transposed_product;
use crate::ops::update::UpdateSlots;
use crate::ops::{
    Recorder, Var, concat, global_norm, orthogonal_gradient, product_update, slice, update,
};
use crate::tape::{Region, Store, Tape};
use crate::tensor::{DType, Shape, TensorType};
use average::Average;
use polar::Polar;
use std::sync::Arc;

/// An update rule with its memory: moments and slots.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Rule,
    decay: Decay,
    weight_decay: f64,
    clip_norm: Option<f64>,
    /// Gradients lose their parts along the weights.
    orthogonal: bool,
    segments: Vec<Segment>,
    flat_len: usize,
    slots: UpdateSlots,
    max_norm: F32Slot,
    moments: Vec<(&'static str, Region)>,
    packed: Option<(Arc<PackedWeights>, Region)>,
    average: Option<Average>,
    polar: Option<Polar>,
    polar_every: Option<u64>,
}

/// What [`Optimizer::record`] or [`Optimizer::record_from`] recorded.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// `g.g`, `w.w`, `g.w` of each segment before the update, f32 `[segments, 3]`; of gradients that are made
    /// orthogonal, as they are then. Computed only if it is read: mark it with [`Tape::output`].
    pub statistics: Var,
    /// Norm of all gradients before clipping, f32 `[]`; `None` without `clip_norm`.
    pub norm: Option<Var>,
}

impl Optimizer {
    /// Allocates the moments for flat regions of `flat_len` elements whose parameters lie in
    /// `segments`, and makes the control slots. To be called before the tapes are made, and once a
    /// store: the slots are found by name.
    ///
    /// # Errors
    /// The configuration is not valid. Segments are checked by [`Optimizer::record`].
    pub fn new(
        config: &OptimizerConfig,
        segments: Vec<Segment>,
        flat_len: usize,
        store: &mut Store,
    ) -> Result<Optimizer> {
        config.validate()?;
        let OptimizerConfig { rule, weight_decay, decay, clip_norm, polar_every, .. } = *config;
        let names = ["optimizer.first", "optimizer.second"];
        let moments = names[..rule.moments()]
            .iter()
            .map(|&name| {
                let region = store.try_allocate(name, DType::F32, flat_len)?;
                // The first step reads them before it writes them.
                store.touch(region)?;
                Ok((name, region))
            })
            .collect::<Result<_>>()?;
        let average = match config.average {
            Some(config) => {
                let region = store.try_allocate("optimizer.average", DType::F32, flat_len)?;
                let share = store.control_mut().f32_slot("optimizer.average.share", 0.0);
                store.control_mut().set_f32_halted(share, 0.0);
                Some(Average { config, region, share })
            }
            None => None,
        };
        let control = store.control_mut();
        let slots = UpdateSlots::register(control, "optimizer", rule);
        let max_norm = control.f32_slot("optimizer.max_norm", f32::INFINITY);
        Ok(Optimizer {
            rule,
            decay,
            weight_decay,
            clip_norm,
            orthogonal: config.orthogonal_gradient,
            segments,
            flat_len,
            slots,
            max_norm,
            moments,
            packed: None,
            average,
            polar: None,
            polar_every,
        })
    }

    /// Also writes the packed copies of the weights in the region `copies`, in the same pass.
    /// Without it they are packed anew before each replay, which is slower.
    #[must_use]
    pub fn with_packed(mut self, packed: Option<(Arc<PackedWeights>, Region)>) -> Optimizer {
        self.packed = packed;
        self
    }

    /// Also lets these weights decay along their polar factors ([`polar`]), every so many steps as the
    /// configuration says.
    ///
    /// # Errors
    /// It does not say how often, or there is no decay; or there are no such weights, and it says how often.
    pub fn with_polar(mut self, weights: Vec<PolarWeight>, store: &mut Store) -> Result<Optimizer> {
        let refuse = |problem: &str| Err(Error::config("optimizer.polar_every", problem));
        match (self.polar_every, weights.is_empty()) {
            (None, true) => return Ok(self),
            (None, false) => return refuse("is missing: there are layers with `polar_decay`"),
            (Some(_), true) => return refuse("has no effect: no layer has `polar_decay`"),
            (Some(_), false) if self.weight_decay == 0.0 => {
                return refuse("has no effect with weight_decay = 0");
            }
            (Some(every), false) => {
                let control = store.control_mut();
                let slots = UpdateSlots::register(control, "optimizer.polar", polar::RULE);
                control.set_f32_halted(slots.rate, 0.0);
                self.polar = Some(Polar { every, weights, slots });
            }
        }
        Ok(self)
    }

    /// Records clipping (if configured) and the update of `weights` by `gradients`, flat regions of
    /// `flat_len` f32. Where `guard` (the loss) or, with clipping, the norm of the gradients is not
    /// finite in a step, that step changes nothing.
    ///
    /// # Errors
    /// Regions of another type or too short, or allocated after the tape was made; segments that
    /// overlap or reach past the end; a guard that is not a scalar.
    pub fn record(
        &self,
        tape: &mut Tape,
        weights: Region,
        gradients: Region,
        guard: Option<Var>,
    ) -> Result<Recorded> {
        tape.scoped("optimizer", |tape| {
            let flat = self.flat(tape, weights)?;
            self.record_flat(tape, &self.segments, flat, gradients, guard, self.packed.as_ref())
        })
    }

    /// The same from gradients on the tape, one for each segment and not used elsewhere, which are
    /// all of this update's. Where one is the product of a batch's inputs and upstream gradients, the
    /// weight is updated as that product is computed ([`mod@crate::ops::product_update`]), and the
    /// gradient never goes to memory, not to the region either. The others are placed in the region
    /// `gradients`. All are with clipping, which needs the norm of all, and where they are made orthogonal; where such products are of fewer
    /// than a million weights together; where a weight that is kept packed is not among them. So is one
    /// over 1024 rows or more.
    ///
    /// # Errors
    /// As [`Optimizer::record`]; another number of gradients than of segments, or one of another
    /// size.
    pub fn record_from(
        &self,
        tape: &mut Tape,
        weights: Region,
        gradients: Region,
        of: &[Var],
        guard: Option<Var>,
    ) -> Result<Recorded> {
        let sizes: Vec<usize> = of.iter().map(|&var| tape.tensor_type(var).elements()).collect();
        if !sizes.iter().eq(self.segments.iter().map(|segment| &segment.len)) {
            let problem = format!("gradients of {sizes:?} elements for {:?}", self.segments);
            return Err(Error::operation("optimizer", problem));
        }
        let products = self.products(tape, of);
        let mut rest = Vec::new();
        for ((segment, &gradient), product) in self.segments.iter().zip(of).zip(&products) {
            if product.is_none() {
                tape.place(gradient, gradients, segment.offset)?;
                rest.push(*segment);
            }
        }
        if rest.len() == of.len() {
            return self.record(tape, weights, gradients, guard);
        }
        let mut statistics = Vec::new();
        for (number, product) in products.iter().enumerate() {
            if let Some(product) = product {
                let of_one = tape.scoped_as(of[number], |tape| {
                    self.record_product(tape, number, product, weights, guard)
                })?;
                statistics.push(of_one);
            }
        }
        tape.scoped("optimizer", |tape| {
            let mut of_rest = Vec::new();
            if !rest.is_empty() {
                let flat = self.flat(tape, weights)?;
                let all = self.record_flat(tape, &rest, flat, gradients, guard, None)?.statistics;
                for row in 0..rest.len() {
                    of_rest.push(slice(tape, all, 0, row..row + 1)?);
                }
            }
            // Dropped, with what feeds it alone, unless somebody reads it.
            let (mut fused, mut of_rest) = (statistics.into_iter(), of_rest.into_iter());
            let next = |product: &Option<Product>| match product {
                Some(_) => fused.next(),
                None => of_rest.next(),
            };
            let rows: Vec<Var> = products.iter().filter_map(next).collect();
            Ok(Recorded { statistics: concat(tape, &rows, 0)?, norm: None })
        })
    }

    /// Which of the gradients are products that are worth a node with the update. Weights that are
    /// kept packed all are, or none: the copies are one tensor of the flat update.
    fn products(&self, tape: &Tape, of: &[Var]) -> Vec<Option<Product>> {
        let found: Vec<Option<Product>> =
            of.iter().map(|&gradient| Product::find(tape, gradient)).collect();
        let weights = self.packed.iter().flat_map(|(packed, _)| packed.weights());
        let mut packed = self.segments.iter().zip(&found).filter(|(segment, _)| {
            weights.clone().any(|weight| weight.offset == segment.offset && segment.len > 0)
        });
        let elements: usize = found.iter().flatten().map(|product| product.shape.elements()).sum();
        let none = elements < WORTH_IT
            || self.clip_norm.is_some()
            || self.orthogonal
            || packed.any(|(_, product)| product.is_none());
        if none { vec![const { None }; of.len()] } else { found }
    }

    fn record_product(
        &self,
        tape: &mut Tape,
        number: usize,
        product: &Product,
        weights: Region,
        guard: Option<Var>,
    ) -> Result<Var> {
        let segment = self.segments[number];
        let shape = &product.shape;
        let weight = tape.persistent("weight", weights, segment.offset, shape)?;
        let mut moments = Vec::new();
        for &(name, region) in &self.moments {
            moments.push(tape.persistent(name, region, segment.offset, shape)?);
        }
        let copies = match &self.packed {
            Some((packed, region)) => {
                let own = |weight: &PackedWeight| weight.offset == segment.offset;
                let number = packed.weights().iter().position(own);
                number.map(|number| -> Result<_> {
                    let place = packed.weights()[number].places[0];
                    let packed = Arc::new(packed.only(number));
                    let copies = tape.persistent("packed", *region, place, [packed.len()])?;
                    Ok((packed, copies))
                })
            }
            None => None,
        };
        let copies = copies.transpose()?;
        let operands = product_update::Operands {
            x: product.x,
            dz: product.dz,
            weight,
            moments: &moments,
            guard,
            packed: copies.as_ref().map(|(packed, copies)| (packed, *copies)),
        };
        let factors = [segment.rate_factor, segment.decay_factor];
        let precision = product.precision;
        product_update(tape, precision, self.rule, self.decay, factors, self.slots, operands)
    }

    /// The flat weights and moments.
    fn flat(&self, tape: &mut Tape, weights: Region) -> Result<(Var, Vec<Var>)> {
        let weights = tape.persistent("weights", weights, 0, [self.flat_len])?;
        let mut moments = Vec::new();
        for &(name, region) in &self.moments {
            moments.push(tape.persistent(name, region, 0, [self.flat_len])?);
        }
        Ok((weights, moments))
    }

    fn record_flat(
        &self,
        tape: &mut Tape,
        segments: &[Segment],
        (weights, moments): (Var, Vec<Var>),
        gradients: Region,
        guard: Option<Var>,
        packed: Option<&(Arc<PackedWeights>, Region)>,
    ) -> Result<Recorded> {
        let mut gradients = tape.persistent("gradients", gradients, 0, [self.flat_len])?;
        if self.orthogonal {
            gradients = orthogonal_gradient(tape, weights, gradients, segments)?;
        }
        let norm = match self.clip_norm {
            Some(_) => {
                let scale = self.slots.gradient_scale;
                Some(global_norm(tape, gradients, self.max_norm, scale)?)
            }
            None => None,
        };
        let factor = norm.map(|norm| norm.factor);
        let packed = match packed {
            Some((packed, region)) => {
                let copies = tape.persistent("packed", *region, 0, [packed.len()])?;
                Some((packed, copies))
            }
            None => None,
        };
        let moments = &moments;
        let operands = update::Operands { weights, gradients, moments, guard, factor, packed };
        let updated = update(tape, self.rule, self.decay, segments, self.slots, operands)?;
        Ok(Recorded { statistics: updated.statistics, norm: norm.map(|norm| norm.norm) })
    }

    /// Sets the slots for the step to come.
    ///
    /// `step` counts updates from 1 (for the bias corrections), `rates` are those of this step (a number is
    /// the learning rate), `gradient_scale` what the gradients in memory are multiplied by:
    /// 1 / micro-batches where those of several are added up.
    ///
    /// # Panics
    /// If `step` is 0, or there is a momentum for SGD that keeps none.
    pub fn prepare(
        &self,
        control: &mut Control,
        step: u64,
        rates: impl Into<Rates>,
        gradient_scale: f64,
    ) {
        assert!(step > 0, "steps count from 1");
        let rates = rates.into();
        control.set_f32(self.slots.rate, rates.rate as f32);
        control.set_f32(self.slots.decay, (self.weight_decay * rates.decay) as f32);
        control.set_f32(self.slots.gradient_scale, gradient_scale as f32);
        control.set_f32(self.max_norm, self.clip_norm.unwrap_or(f64::INFINITY) as f32);
        let kept = self.rule.moments() > 0 || rates.momentum.is_none();
        assert!(kept, "a momentum for an optimizer without one");
        let momentum = rates.momentum.unwrap_or(self.rule.momentum());
        control.set_f32(self.slots.momentum, self.rule.momentum_value(momentum));
        if let Rule::AdamW { beta2, .. } = self.rule {
            // As PyTorch: by the beta1 of this step, whatever those before it had.
            let left = |beta: f64| 1.0 - beta.powf(step as f64);
            control.set_f32(self.slots.first_correction, (1.0 / left(momentum)) as f32);
            control.set_f32(self.slots.second_correction, (1.0 / left(beta2).sqrt()) as f32);
        }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    /// What a step with these rates adds to the contraction `C`, the sum of learning rate times decay.
    pub fn contraction(&self, rates: Rates) -> f64 {
        rates.rate * rates.decay * self.weight_decay
    }

    /// Sets the weight decay of the steps that are prepared from now on: advice of the clocks.
    ///
    /// # Errors
    /// It is negative or not finite, or above 0 where the configuration says that nothing decays.
    pub fn set_weight_decay(&mut self, weight_decay: f64) -> Result<()> {
        if !(weight_decay.is_finite() && weight_decay >= 0.0) {
            let problem = format!("{weight_decay} is not 0 or more");
            return Err(Error::config("optimizer.weight_decay", problem));
        }
        if self.decay == Decay::None && weight_decay > 0.0 {
            let problem = format!("{weight_decay} has no effect with decay = \"none\"");
            return Err(Error::config("optimizer.weight_decay", problem));
        }
        self.weight_decay = weight_decay;
        Ok(())
    }

    /// The parameters' places.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The moments by name, for checkpoints; beside them only [`Optimizer::average`] and the number of steps
    /// are state.
    pub fn state(&self) -> &[(&'static str, Region)] {
        &self.moments
    }
}

/// From so many weights on, which with gradients and moments exceed common third-level caches, the
/// update is part of the product. With 10 M weights a step takes 0.88 (bf16) and 0.95 (f32) times as
/// long, with 0.7 M 1.00, with 10 thousand 1.04 times (Zen 4).
const WORTH_IT: usize = 1 << 20;

/// A gradient of a weight that is `x^T dz`.
#[derive(Clone, Debug)]
struct Product {
    x: Var,
    dz: Var,
    shape: Shape,
    precision: Precision,
}

impl Product {
    fn find(tape: &Tape, gradient: Var) -> Option<Product> {
        let (op, inputs) = tape.computed_by(gradient)?;
        let types: Vec<TensorType> =
            inputs.iter().map(|&input| tape.tensor_type(input).clone()).collect();
        let precision = is_transposed_product(&*op, &types)?;
        let [x, dz] = inputs[..] else { return None };
        // Over so many rows the product may be cut along its sum, which leaves no one to update.
        if may_split(types[0].shape.rows()) {
            return None;
        }
        let shape = tape.tensor_type(gradient).shape.clone();
        Some(Product { x, dz, shape, precision })
    }
}

#[cfg(test)]
mod tests;
