//! A slow copy of all weights that follows the fast ones, in one pass over memory: the exponential
//! moving average (EMA), and Lookahead.
//!
//! - `slow += share (fast - slow)`. For an EMA over steps of decay `b`, applied after every `k`-th of
//!   them, `share = 1 - b^k`; for Lookahead it is its `alpha`.
//! - Under [`Kind::Lookahead`] also `fast = slow`, and the packed copies of the fast weights follow them,
//!   band by band while these are in cache.
//!
//! `slow` and `fast` are flat f32 `[P]`; `slow` is updated in place, and so are `fast` and the copies
//! under Lookahead. `share` is a control slot: where it is 0 nothing changes, not a bit (but copies are
//! written). `P = 0` is fine. Error: two roundings.
//!
//! Sources: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Zhang et
//! al., "Lookahead optimizer: k steps forward, 1 step back", 2019, algorithm 1.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::update::Segment;
use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, F32Slot};
use crate::error::{Error, Result};
use crate::gemm::{PackedWeight, PackedWeights};
use crate::tensor::TensorType;
use std::sync::Arc;

/// What becomes of the fast weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They go on as they are.
    Ema,
    /// They go on from the slow ones.
    Lookahead,
}

/// The operation `average`. Inputs: slow, fast, the copies.
#[derive(Clone, Debug)]
pub struct Average {
    kind: Kind,
    share: F32Slot,
    packed: Option<Arc<PackedWeights>>,
}

/// Records the step of the `slow` weights `[P]` toward the `fast` ones `[P]` by the value of `share`.
/// `packed` are the packed copies of the fast weights, which only Lookahead takes.
///
/// # Errors
/// Types that are not these, copies under [`Kind::Ema`], or copies of weights that lie past `P`.
pub fn average(
    tape: &mut dyn Recorder,
    kind: Kind,
    slow: Var,
    fast: Var,
    share: F32Slot,
    packed: Option<(&Arc<PackedWeights>, Var)>,
) -> Result<()> {
    let op = Average { kind, share, packed: packed.map(|(packed, _)| Arc::clone(packed)) };
    let inputs: Vec<Var> =
        [slow, fast].into_iter().chain(packed.map(|(_, copies)| copies)).collect();
    tape.push(Arc::new(op), &inputs)?;
    Ok(())
}

impl Average {
    /// The flat region as segments without gaps: each packed weight, and what lies between.
    fn segments(&self, elements: usize) -> Vec<Segment> {
        let weights = self.packed.as_deref().map_or(&[][..], PackedWeights::weights);
        let mut places: Vec<(usize, usize)> =
            weights.iter().map(|weight| (weight.offset, weight.inputs * weight.outputs)).collect();
        places.sort_unstable();
        places.push((elements, 0));
        let (mut segments, mut end) = (Vec::new(), 0);
        let mut add = |offset: usize, len: usize| {
            segments.push(Segment { offset, len, rate_factor: 1.0, decay_factor: 0.0 });
        };
        for (offset, len) in places {
            if offset > end {
                add(end, offset - end);
            }
            add(offset, len);
            end = offset + len;
        }
        segments
    }
}

impl Operation for Average {
    fn name(&self) -> &'static str {
        "average"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let refuse = |problem: String| Err(Error::operation(self.name(), problem));
        super::expect_f32(self.name(), &inputs[..inputs.len().min(2)], 2)?;
        let (slow, fast) = (&inputs[0], &inputs[1]);
        if slow.shape.extents().len() != 1 || slow != fast {
            return refuse(format!("takes flat weights [P] twice, not {slow} and {fast}"));
        }
        let Some(packed) = &self.packed else {
            super::expect_f32(self.name(), inputs, 2)?;
            return Ok(match self.kind {
                Kind::Ema => vec![slow.clone()],
                Kind::Lookahead => vec![slow.clone(); 2],
            });
        };
        if self.kind == Kind::Ema {
            return refuse("an average that leaves the weights alone takes no copies".into());
        }
        let mut end = 0;
        let mut weights: Vec<&PackedWeight> = packed.weights().iter().collect();
        weights.sort_unstable_by_key(|weight| weight.offset);
        for weight in weights {
            let PackedWeight { offset, inputs, outputs, .. } = *weight;
            if offset < end || offset + inputs * outputs > slow.elements() {
                return refuse(format!("the weight [{inputs}, {outputs}] at {offset} is not of {slow}"));
            }
            end = offset + inputs * outputs;
        }
        let wanted = TensorType::new([packed.len()], packed.element());
        if inputs[2..] != [wanted.clone()] {
            return refuse(format!("takes packed weights of {wanted}, not {:?}", &inputs[2..]));
        }
        Ok(vec![slow.clone(), slow.clone(), wanted])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        naive::average(self, inputs, outputs, control);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(self, site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(self, site)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let mut cost = Cost::of(3.0 * site.inputs[0].elements() as f64, site);
        if self.packed.is_some() {
            // The old copies are not read.
            cost.bytes -= site.inputs[2].bytes() as f64;
        }
        cost
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        let count = match self.kind {
            Kind::Ema => 1,
            Kind::Lookahead => 2 + usize::from(self.packed.is_some()),
        };
        (0..count).map(|i| (i, i)).collect()
    }
}

fn case(control: &mut Control, kind: Kind, len: usize, share: f32) -> Case {
    let name = format!("{}_{len}_{share}", if kind == Kind::Ema { "ema" } else { "lookahead" });
    let share = control.f32_slot(&format!("{name}.share"), share);
    let uniform = Fill::Uniform(-1.0, 1.0);
    Case::new(name, Average { kind, share, packed: None }, Tolerance::Rounding(3.0))
        .input(&[len], uniform)
        .input(&[len], uniform)
        .without_gradient()
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [Kind::Ema, Kind::Lookahead] {
        for len in [0, 1, 7, 15, 16, 17, 1023, 40_009] {
            cases.push(case(control, kind, len, 0.125));
        }
        for share in [0.0, 1.0] {
            cases.push(case(control, kind, 33, share));
        }
    }
    cases
}

/// Benchmark cases.
pub fn benches(control: &mut Control) -> Vec<Case> {
    [Kind::Ema, Kind::Lookahead].map(|kind| case(control, kind, 10_000_000, 0.125)).into()
}

#[cfg(test)]
mod tests;
