//! The part of each gradient that is orthogonal to its weights, as long as the whole was: what would only
//! scale the logits up once the data are fitted is left out.
//!
//! For each segment, a parameter: `h = g - (g.w / w.w) w`, then `g = h |g| / |h|`, in place. `|h|` comes from
//! the sums: `h.h = g.g - (g.w)^2 / w.w`. Where less than 1e-4 of `g.g` is left, its digits are rounding
//! errors: then `g = h`, not made longer. Where `w.w` is 0, `g` stays.
//!
//! `weights` and `gradients` are flat f32 `[P]`; [`Segment`]s say where the parameters lie, as for
//! [`mod@super::update`]; what lies between is neither read nor written. A positive factor of all gradients
//! (of accumulation, of clipping) before or after makes no difference. Sums are taken in f32 over blocks of
//! 1024 elements, these in f64 in a fixed order. A gradient that is not finite makes its segment so.
//!
//! Error: the sums' relative error, some 1e-7 for random signs, times `g.g / h.h`.
//!
//! Source: Prieto et al., "Grokking at the edge of numerical stability", 2025 (arXiv 2501.04697), section 5.2.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::update::Segment;
use super::{Case, Cost, Fill, Operation, Recorder, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::TensorType;
use std::sync::Arc;

/// The share of `g.g` from which on what is left is made as long as the gradient was.
const ENOUGH: f64 = 1e-4;

/// The operation `orthogonal_gradient`. Inputs: weights, gradients.
#[derive(Clone, Debug)]
pub struct OrthogonalGradient {
    segments: Arc<[Segment]>,
}

/// Records the projection of `gradients` `[P]`, in place; gives them.
///
/// # Errors
/// Weights or gradients are not flat f32 of one length; segments that overlap, are out of order or reach
/// past it.
pub fn orthogonal_gradient(
    tape: &mut dyn Recorder,
    weights: Var,
    gradients: Var,
    segments: &[Segment],
) -> Result<Var> {
    push_one(tape, OrthogonalGradient { segments: segments.into() }, &[weights, gradients])
}

/// What becomes of a gradient: `scale (g - along w)`.
#[derive(Clone, Copy, Debug)]
struct Projection {
    scale: f64,
    along: f64,
}

impl Projection {
    /// From `g.g`, `w.w` and `g.w`.
    fn of([gg, ww, gw]: [f64; 3]) -> Projection {
        if ww == 0.0 {
            return Projection { scale: 1.0, along: 0.0 };
        }
        let left = gg - gw * gw / ww;
        let scale = if left > ENOUGH * gg { (gg / left).sqrt() } else { 1.0 };
        Projection { scale, along: gw / ww }
    }
}

impl Operation for OrthogonalGradient {
    fn name(&self) -> &'static str {
        "orthogonal_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        super::expect_f32(self.name(), inputs, 2)?;
        let (weights, gradients) = (&inputs[0], &inputs[1]);
        if weights.shape.extents().len() != 1 || weights != gradients {
            let problem = format!("takes flat weights and gradients [P], not {weights} and {gradients}");
            return Err(Error::operation(self.name(), problem));
        }
        super::update::check_segments(self.name(), &self.segments, weights.elements())?;
        Ok(vec![gradients.clone()])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::project(&self.segments, &inputs[0].data, &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(self, site))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, _site: &Site<'_>) -> Option<Launches> {
        cuda::launch(self)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let covered: usize = self.segments.iter().map(|segment| segment.len).sum();
        let mut cost = Cost::of(9.0 * covered as f64, site);
        cost.bytes -= (3 * (site.inputs[0].elements() - covered) * size_of::<f32>()) as f64;
        cost
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 1)]
    }
}

fn case(name: &str, (lens, gap): (&[usize], usize), weights: Fill, gradients: Fill) -> Case {
    let (mut segments, mut elements) = (Vec::new(), 0);
    for &len in lens {
        segments.push(Segment { offset: elements, len, rate_factor: 1.0, decay_factor: 1.0 });
        elements += len + gap;
    }
    // Both sums come with a few units in the last place, and less than a tenth of a gradient is lost.
    Case::new(name, OrthogonalGradient { segments: segments.into() }, Tolerance::Rounding(16.0))
        .input(&[elements], weights)
        .input(&[elements], gradients)
        .without_gradient()
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mixed = Fill::Uniform(-1.0, 1.0);
    // Pieces of a segment, small segments that share a chunk, an empty one; several chunks.
    let several: &[usize] = &[33_001, 70, 0, 129, 160, 20_011];
    let zero = Fill::Uniform(0.0, 0.0);
    let mut cases = vec![
        case("several_chunks", (several, 5), mixed, mixed),
        case("small", (&[310, 160, 65], 3), mixed, mixed),
        case("no_segments", (&[], 0), mixed, mixed),
        case("weights_of_zero", (&[31, 17], 1), zero, mixed),
        case("gradients_of_zero", (&[31, 17], 1), mixed, zero),
        // Weights and gradients of one sign have much in common.
        case("aligned", (&[3001], 0), Fill::Uniform(0.0, 1.0), Fill::Uniform(-0.25, 1.0)),
    ];
    for len in [127, 128, 129, 1023, 1024, 1025, 16_385] {
        cases.push(case(&format!("{len}"), (&[len], 0), mixed, mixed));
    }
    cases
}

/// Benchmark cases: parameters x segments.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let mixed = Fill::Uniform(-1.0, 1.0);
    [1, 50]
        .map(|count| {
            let lens = vec![10_000_000 / count; count];
            case(&format!("10000000x{count}"), (&lens, 0), mixed, mixed)
        })
        .into()
}

#[cfg(test)]
mod tests;
