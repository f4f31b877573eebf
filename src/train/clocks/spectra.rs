//! What the probe asks of the weights: norm, stable rank, the balance of layers in a row, and the map from end to end.
//!
//! All products are recorded as those of a step are, so they run where the weights are; a few vectors a weight come to the host.
//!
//! - **Stable rank.** The largest singular value of W by subspace iteration: `U = W Q`, `Y = W^T U`, and the columns of Y, made
//!   orthonormal, are the next Q. The largest singular value of U is never above that of W: so stable ranks are found too large,
//!   if anything. Rounds begin where the probe before ended, with random vectors the first time, and go on until one finds
//!   less than `GAIN` more. Of matrices with nothing but noise, whose singular values lie side by side, the stable rank is
//!   then up to 2 % too large, of others some tenths of a percent.
//!   Source: Golub, Van Loan, "Matrix computations", 8.2.4.
//! - **Effective rank.** See `effective.rs`.
//! - **Balance.** `W^T W` and `V V^T` as they are, or, where these two products would take more than `EXACT_FLOPS`, times
//!   `SIGNS` vectors of random signs, the same at every probe: the mean of `|D z|^2` is `|D|^2` (Hutchinson, 1990). Where D has
//!   r directions of about the same size, the estimate of `|D|` is off by a share of about `1 / sqrt(2 r SIGNS)`: 0.02 for a
//!   start at random, 0.13 for a single one.

use super::effective::Effective;
use super::measure::WeightFigures;
use crate::clocks::{Matrix, schatten, singular_values};
use crate::device::F32Slot;
use crate::error::Result;
use crate::nn::{LayerKind, Noted, Role};
use crate::ops::{Activation, Var, global_norm, matmul};
use crate::random::Random;
use crate::tape::{Recording, Region, Store, Tape};
use crate::tensor::DType;
use crate::train::trainer::Trainer;
use std::mem;

/// Vectors of a subspace: a product with one of them takes as long.
pub(super) const VECTORS: usize = 16;
/// Rounds of a probe, at least and at most. In training it is three as a rule.
const LEAST_ROUNDS: usize = 2;
const MOST_ROUNDS: usize = 12;
/// What the last round may have added to a singular value, as a share.
const GAIN: f64 = 1e-3;
/// Vectors of an estimate.
const SIGNS: usize = 32;
/// What the Gram matrices of two layers may take: some 0.3 ms of a thread.
const EXACT_FLOPS: f64 = 2.5e7;
/// Names the random numbers of the probe.
pub(super) const SEED: u64 = 0x0070_726f_6265;

/// The recordings over the weights, and the subspaces that the last probe left.
pub(in crate::train) struct Spectra {
    weights: Vec<Weight>,
    /// Where these are, of all parameters.
    region: Region,
    /// A round of the iteration, and `W Q` and `W^T W Q` of each weight in it.
    round: Recording,
    images: Vec<[Var; 2]>,
    /// The rest, and the norm of each weight in it.
    rest: Recording,
    norms: Vec<Var>,
    pairs: Vec<Pair>,
    end_to_end: Option<EndToEnd>,
    effective: Option<Effective>,
}

/// What is found.
pub(in crate::train) struct Spectral {
    pub(in crate::train) weights: Vec<WeightFigures>,
    pub(in crate::train) balance: Vec<(String, f64)>,
    pub(in crate::train) schatten: Option<f64>,
}

/// A weight and its subspace.
pub(super) struct Weight {
    pub(super) parameter: usize,
    pub(super) name: String,
    pub(super) offset: usize,
    /// Inputs and outputs.
    pub(super) shape: [usize; 2],
    normalised: bool,
    /// Q of the next round, `[side, count]`, for the shorter side of the weight.
    region: Region,
    vectors: Vec<f32>,
    pub(super) count: usize,
    /// Q of the last round, the singular values of `W Q`, and the norm of W.
    pub(super) looked: Vec<f32>,
    pub(super) singular: Vec<f64>,
    pub(super) norm: f64,
}

/// `W^T W` and `V V^T`, or what they make of some vectors.
struct Pair {
    name: String,
    sides: [Var; 2],
}

/// The product of all weights.
struct EndToEnd {
    product: Var,
    shape: [usize; 2],
    depth: usize,
}

impl Weight {
    pub(super) fn longer(&self) -> usize {
        self.shape[0].max(self.shape[1])
    }

    pub(super) fn shorter(&self) -> usize {
        self.shape[0].min(self.shape[1])
    }

    /// The weight on a tape.
    pub(super) fn on(&self, tape: &mut Tape, weights: Region) -> Result<Var> {
        tape.persistent(&self.name, weights, self.offset, self.shape)
    }
}

impl Spectra {
    /// Of the weights of that region that are matrices, in the order of their declaration.
    pub(in crate::train) fn new(
        trainer: &mut Trainer,
        region: Region,
        noted: &[Noted],
        logits: Var,
    ) -> Result<Spectra> {
        let weights = weights(trainer, noted)?;
        let store = &mut trainer.store;

        let mut tape = Tape::new(store);
        let mut images = Vec::new();
        for weight in &weights {
            let w = weight.on(&mut tape, region)?;
            let q =
                tape.persistent("probe.q", weight.region, 0, [weight.shorter(), weight.count])?;
            let tall = weight.shape[0] >= weight.shape[1];
            let u = matmul(&mut tape, w, q, !tall, false)?;
            let y = matmul(&mut tape, w, u, tall, false)?;
            tape.output(u)?;
            tape.output(y)?;
            images.push([u, y]);
        }
        let round = tape.compile(store)?;

        let joints = joints(noted, &weights);
        let mut signs = Vec::new();
        for &[first, _] in &joints {
            signs.push(random_signs(store, weights[first].shape[1]));
        }
        let control = store.control_mut();
        let no_limit = control.f32_slot("probe.no_limit", f32::INFINITY);
        let one = control.f32_slot("probe.one", 1.0);
        let mut tape = Tape::new(store);
        let mut norms = Vec::new();
        for weight in &weights {
            norms.push(norm(&mut tape, weight, region, [no_limit, one])?);
        }
        let mut pairs = Vec::new();
        for (&[first, second], signs) in joints.iter().zip(signs) {
            pairs.push(pair(&mut tape, &weights[first], &weights[second], region, signs)?);
        }
        let chain = linear_chain(trainer, noted, &weights, &joints, logits);
        let end_to_end = match chain {
            Some(chain) => Some(end_to_end(&mut tape, &chain, region)?),
            None => None,
        };
        let rest = tape.compile(&trainer.store)?;
        let effective = None;
        Ok(Spectra { weights, region, round, images, rest, norms, pairs, end_to_end, effective })
    }

    pub(in crate::train) fn figures(&mut self, trainer: &mut Trainer) -> Result<Spectral> {
        let store = &mut trainer.store;
        let mut largest = vec![0.0; self.weights.len()];
        for number in 1..=MOST_ROUNDS {
            let gain = self.round(store, &mut largest)?;
            if number >= LEAST_ROUNDS && gain <= GAIN {
                break;
            }
        }
        if !self.weights.is_empty() {
            self.rest.replay(store)?;
        }
        let mut weights = Vec::new();
        for (i, weight) in self.weights.iter_mut().enumerate() {
            let norm = f64::from(self.rest.read(self.norms[i])?[0]);
            weight.norm = norm;
            weights.push(WeightFigures {
                name: weight.name.clone(),
                shape: weight.shape,
                norm,
                stable_rank: (norm / largest[i]).powi(2),
                effective_rank: None,
                normalised: weight.normalised,
            });
        }
        let mut balance = Vec::new();
        for pair in &self.pairs {
            let [first, second] = [self.rest.read(pair.sides[0])?, self.rest.read(pair.sides[1])?];
            balance.push((pair.name.clone(), imbalance(&first, &second)));
        }
        let schatten = match &self.end_to_end {
            Some(EndToEnd { product, shape: [inputs, outputs], depth }) => {
                let product = self.rest.read(*product)?;
                finite(&product).then(|| {
                    schatten(&singular_values(Matrix::new(*inputs, *outputs, &product)), *depth)
                })
            }
            None => None,
        };
        Ok(Spectral { weights, balance, schatten })
    }

    /// The effective ranks of the weights, which are those that were last looked at.
    pub(in crate::train) fn effective_ranks(&mut self, trainer: &mut Trainer) -> Result<Vec<f64>> {
        let effective = match &mut self.effective {
            Some(effective) => effective,
            None => {
                let made = Effective::new(&mut trainer.store, &self.weights, self.region)?;
                self.effective.insert(made)
            }
        };
        effective.ranks(&mut trainer.store, &self.weights)
    }

    /// A round of the iteration, after which `largest` has the singular values. The largest share that one grew by.
    fn round(&mut self, store: &mut Store, largest: &mut [f64]) -> Result<f64> {
        for weight in &self.weights {
            store.write(weight.region, 0, &weight.vectors)?;
        }
        if !self.weights.is_empty() {
            self.round.replay(store)?;
        }
        let mut gain = 0f64;
        for ((weight, images), largest) in self.weights.iter_mut().zip(&self.images).zip(largest) {
            let [u, y] = [self.round.read(images[0])?, self.round.read(images[1])?];
            let singular = all_singular(Matrix::new(weight.longer(), weight.count, &u));
            let found = singular[0];
            // NaN is no gain: more rounds would not find a number.
            gain = gain.max((found - *largest) / found);
            *largest = found;
            weight.singular = singular;
            weight.looked = mem::replace(&mut weight.vectors, orthonormal(&y, weight.count));
        }
        Ok(gain)
    }
}

/// The matrices that multiply, with a random subspace each.
fn weights(trainer: &mut Trainer, noted: &[Noted]) -> Result<Vec<Weight>> {
    let normalised = |parameter: usize| {
        noted.iter().any(|layer| match layer.kind {
            LayerKind::Linear { weight, activation: Activation::None } => {
                let reads =
                    |other: &Noted| other.kind == LayerKind::Norm && other.input == layer.output;
                weight.index() == parameter && noted.iter().any(reads)
            }
            _ => false,
        })
    };
    let mut weights = Vec::new();
    for (parameter, info) in trainer.parameters.infos().iter().enumerate() {
        let &[inputs, outputs] = info.shape.extents() else { continue };
        if info.role != Role::Weight || inputs * outputs == 0 {
            continue;
        }
        let side = inputs.min(outputs);
        let count = VECTORS.min(side);
        let mut random = Random::new(SEED, parameter as u64);
        let start: Vec<f32> = (0..side * count).map(|_| random.normal_pair()[0]).collect();
        let region = trainer.store.try_allocate("probe.q", DType::F32, side * count)?;
        weights.push(Weight {
            parameter,
            name: info.layer().to_owned(),
            offset: info.offset,
            shape: [inputs, outputs],
            normalised: normalised(parameter),
            region,
            vectors: orthonormal(&start, count),
            count,
            looked: Vec::new(),
            singular: Vec::new(),
            norm: f64::NAN,
        });
    }
    Ok(weights)
}

/// Numbers of the weights of each two layers in a row, with nothing but an activation between them.
fn joints(noted: &[Noted], weights: &[Weight]) -> Vec<[usize; 2]> {
    let number = |layer: &Noted| match layer.kind {
        LayerKind::Linear { weight, .. } => {
            weights.iter().position(|other| other.parameter == weight.index())
        }
        _ => None,
    };
    let mut joints = Vec::new();
    for first in noted {
        let activated = noted.iter().find(|layer| {
            matches!(layer.kind, LayerKind::Activation(_)) && layer.input == first.output
        });
        let outputs = [Some(first.output), activated.map(|layer| layer.output)];
        for second in noted.iter().filter(|second| outputs.contains(&Some(second.input))) {
            if let (Some(a), Some(b)) = (number(first), number(second)) {
                joints.push([a, b]);
            }
        }
    }
    joints
}

/// The weights from end to end, if the model is these products and nothing else.
fn linear_chain<'a>(
    trainer: &Trainer,
    noted: &[Noted],
    weights: &'a [Weight],
    joints: &[[usize; 2]],
    logits: Var,
) -> Option<Vec<&'a Weight>> {
    let plain = |layer: &Noted| {
        matches!(layer.kind, LayerKind::Linear { activation: Activation::None, .. })
    };
    let in_a_row = joints.iter().enumerate().all(|(i, &joint)| joint == [i, i + 1]);
    let all = weights.len();
    let linear = all > 0
        && noted.iter().all(plain)
        && [noted.len(), trainer.parameters.infos().len(), joints.len() + 1] == [all; 3]
        && in_a_row
        && noted.last()?.output == logits;
    linear.then(|| weights.iter().collect())
}

/// Records the norm of a weight.
fn norm(
    tape: &mut Tape,
    weight: &Weight,
    region: Region,
    [no_limit, one]: [F32Slot; 2],
) -> Result<Var> {
    let flat = [weight.shape[0] * weight.shape[1]];
    let flat = tape.persistent(&weight.name, region, weight.offset, flat)?;
    let norm = global_norm(tape, flat, no_limit, one)?.norm;
    tape.output(norm)?;
    Ok(norm)
}

/// Records both sides of the balance of `x W V`.
fn pair(
    tape: &mut Tape,
    first: &Weight,
    second: &Weight,
    region: Region,
    signs: Region,
) -> Result<Pair> {
    let [inputs, width] = first.shape;
    let outputs = second.shape[1];
    let (w, v) = (first.on(tape, region)?, second.on(tape, region)?);
    let flops = 2.0 * (inputs + outputs) as f64 * (width * width) as f64;
    let sides = if flops <= EXACT_FLOPS {
        [matmul(tape, w, w, true, false)?, matmul(tape, v, v, false, true)?]
    } else {
        let z = tape.persistent("probe.signs", signs, 0, [width, SIGNS])?;
        let (wz, vz) = (matmul(tape, w, z, false, false)?, matmul(tape, v, z, true, false)?);
        [matmul(tape, w, wz, true, false)?, matmul(tape, v, vz, false, false)?]
    };
    for side in sides {
        tape.output(side)?;
    }
    Ok(Pair { name: format!("{}-{}", first.name, second.name), sides })
}

/// Records the product of the weights, from the last one on, which as a rule is the smallest.
fn end_to_end(tape: &mut Tape, chain: &[&Weight], region: Region) -> Result<EndToEnd> {
    let depth = chain.len();
    let mut product = chain[depth - 1].on(tape, region)?;
    for weight in chain[..depth - 1].iter().rev() {
        let w = weight.on(tape, region)?;
        product = matmul(tape, w, product, false, false)?;
    }
    if depth == 1 {
        // A tensor of the store is not an output.
        product = crate::ops::copy(tape, product)?;
    }
    tape.output(product)?;
    Ok(EndToEnd { product, shape: [chain[0].shape[0], chain[depth - 1].shape[1]], depth })
}

fn random_signs(store: &mut Store, width: usize) -> Region {
    let mut random = Random::new(SEED, u64::MAX - width as u64);
    let signs: Vec<f32> =
        (0..width * SIGNS).map(|_| if random.bits() & 1 == 0 { -1.0 } else { 1.0 }).collect();
    store.upload("probe.signs", &signs)
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// The singular values, largest first; NaN where a value is not finite.
pub(super) fn all_singular(u: Matrix<'_>) -> Vec<f64> {
    let side = u.rows.min(u.columns);
    if finite(u.values) { singular_values(u) } else { vec![f64::NAN; side] }
}

/// `|A - B| / (|A| + |B|)`.
fn imbalance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let [of_a, of_b] = [a, b].map(|x| norm(&mut x.iter().map(|&x| f64::from(x))));
    norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b))) / (of_a + of_b)
}

/// Sum of products, in eight parts that do not wait for each other.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let whole = a.len() / 8 * 8;
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum::<f64>();
    sums.iter().sum::<f64>() + rest
}

/// The columns of `values`, `count` of them, made orthonormal one after another; again where that took most of a column away,
/// as its digits went with it. A column that depends on those before it becomes a random one.
fn orthonormal(values: &[f32], count: usize) -> Vec<f32> {
    const TRIES: usize = 4;
    let rows = values.len() / count.max(1);
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for j in 0..count {
        let mut column: Vec<f64> = (0..rows).map(|i| f64::from(values[i * count + j])).collect();
        let mut random = Random::new(SEED, j as u64);
        for _ in 0..TRIES {
            let before = dot(&column, &column).sqrt();
            for other in &columns {
                let along = dot(&column, other);
                column.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
            let norm = dot(&column, &column).sqrt();
            if norm > 1e-6 * before {
                column.iter_mut().for_each(|x| *x /= norm);
                if norm > 0.5 * before {
                    break;
                }
            } else {
                column.fill_with(|| f64::from(random.normal_pair()[0]));
            }
        }
        columns.push(column);
    }
    (0..rows * count).map(|i| columns[i % count][i / count] as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_orthonormal_dependent_ones_too() {
        // The third column is the sum of the first two, the fourth zero, the fifth nearly the first.
        let (rows, count) = (37, 5);
        let mut random = Random::new(1, 0);
        let mut values = vec![0f32; rows * count];
        for row in values.chunks_mut(count) {
            let [a, b] = random.normal_pair();
            row.copy_from_slice(&[a, b, a + b, 0.0, a + 1e-4 * random.normal_pair()[0]]);
        }
        let found = orthonormal(&values, count);
        for i in 0..count {
            for j in 0..=i {
                let product: f64 =
                    found.chunks(count).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
                let want = f64::from(u8::from(i == j));
                assert!((product - want).abs() < 1e-6, "{i} {j}: {product}");
            }
        }
    }

    #[test]
    fn imbalance_is_between_0_and_1() {
        assert_eq!(imbalance(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(imbalance(&[3.0, 4.0], &[0.0, 0.0]), 1.0);
        assert!((imbalance(&[4.0], &[1.0]) - 0.6).abs() < 1e-12);
    }
}
