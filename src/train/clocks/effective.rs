//! The effective rank of weights: exact where that is cheap, else an estimate.
//!
//! - The shorter side has no more than the vectors of the subspace (`spectra.rs`): these have found all singular values already.
//! - [`EXACT_WORK`] is enough for all singular values: those.
//! - Else stochastic Lanczos quadrature ([`estimated_rank`]). What the subspace found counts as it is; [`SAMPLES`] vectors of random
//!   signs, at right angles to it, look at the rest. All go through Golub and Kahan's recurrence side by side, so that its products
//!   with W and W^T are recorded matrix products, of all weights in one replay: `a u = W v - b u'`, `b v' = W^T u - a v`,
//!   where a and b are norms. It goes on until the two rules of the quadrature are near each other and the estimate
//!   stands still, or [`MOST_STEPS`] are done: eight steps as a rule. Vectors are not made orthogonal to those before them again:
//!   that changes nodes, but hardly the sums (Knizhnerman, 1996; Chen, Trogdon, Ubaru, 2021).
//!
//! Errors beside the exact rank, over seeds of the signs: within 1 % for nets that the recipes trained and for random matrices; low ranks
//! have a standard deviation of 1 to 3 %; nets with C of 2 and more are 2 % off, and up to 8 % where singular
//! values fall by decades without an end. There the gap of the rules stays above 0.4 after the last step, and the estimate is
//! too large, by up to half of the gap.

use super::spectra::{SEED, VECTORS, Weight, all_singular};
use crate::clocks::{Bidiagonal, Matrix, effective_rank, estimated_rank};
use crate::error::Result;
use crate::ops::{Var, matmul};
use crate::random::Random;
use crate::tape::{Recording, Region, Store, Tape};
use crate::tensor::DType;
use std::mem;

/// Operations that the exact singular values may take: some 0.3 ms of a thread.
const EXACT_WORK: f64 = 3e6;
/// Random vectors.
const SAMPLES: usize = 8;
/// Steps of the recurrence after which it is looked at, and the last of them.
const LOOKED_AT: [usize; 8] = [6, 8, 10, 12, 15, 18, 21, 24];
const MOST_STEPS: usize = 24;
/// By how much the two rules may differ, as a share: in any case, and where the estimate no longer moves by more than [`MOVED`].
const SMALL_GAP: f64 = 0.02;
const GAP: f64 = 0.12;
const MOVED: f64 = 0.01;
/// Below this share of the norm of W a vector is rounding.
const NOTHING: f64 = 3e-6;

/// Numbers of each vector.
type Each = [f64; SAMPLES];

/// How the effective ranks are found.
pub(super) struct Effective {
    /// Where the weights are.
    region: Region,
    walks: Vec<Walk>,
    /// `W v` and `W^T u` of all walks; `None` without any.
    products: Option<[Recording; 2]>,
}

/// The random vectors of a weight on their way.
struct Walk {
    /// Of which weight.
    number: usize,
    /// Random signs, `[shorter, SAMPLES]`.
    signs: Vec<f32>,
    /// Where v and u are read from, and where the products are.
    regions: [Region; 2],
    products: [Var; 2],
    /// `[shorter, SAMPLES]` and `[longer, SAMPLES]`.
    v: Side,
    u: Side,
    /// The last norms beside the diagonal.
    beside: Each,
    /// A product that just came.
    image: Vec<f32>,
    forms: Vec<Bidiagonal>,
    /// The last estimate, and the one that stays.
    before: Option<f64>,
    found: Option<f64>,
}

/// Vectors, each times its norm.
#[derive(Default)]
struct Side {
    values: Vec<f32>,
    norms: Each,
}

fn work(weight: &Weight) -> f64 {
    let (side, depth) = (weight.shorter() as f64, weight.longer() as f64);
    2.0 * side * side * (depth + side)
}

fn is_sampled(weight: &Weight) -> bool {
    weight.count < weight.shorter() && work(weight) > EXACT_WORK
}

impl Effective {
    /// Records what the weights, in this region, need.
    pub(super) fn new(store: &mut Store, weights: &[Weight], region: Region) -> Result<Effective> {
        let sampled = || weights.iter().enumerate().filter(|(_, weight)| is_sampled(weight));
        let mut places = Vec::new();
        for (_, weight) in sampled() {
            let of = |side: usize| side * SAMPLES;
            let v = store.try_allocate("probe.v", DType::F32, of(weight.shorter()))?;
            let u = store.try_allocate("probe.u", DType::F32, of(weight.longer()))?;
            places.push([v, u]);
        }
        let mut recorded = Vec::new();
        for which in 0..2 {
            let mut tape = Tape::new(store);
            let mut products = Vec::new();
            for ((_, weight), places) in sampled().zip(&places) {
                let w = weight.on(&mut tape, region)?;
                let side = [weight.shorter(), weight.longer()][which];
                let x = tape.persistent("probe.x", places[which], 0, [side, SAMPLES])?;
                let tall = weight.shape[0] >= weight.shape[1];
                let product = matmul(&mut tape, w, x, tall == (which == 1), false)?;
                tape.output(product)?;
                products.push(product);
            }
            recorded.push((tape.compile(store)?, products));
        }
        let walk = |(i, (number, weight)): (usize, (usize, &Weight))| {
            let mut random = Random::new(SEED ^ 0x51_67_6e, weight.parameter as u64);
            let sign = |_| if random.bits() & 1 == 0 { -1.0 } else { 1.0 };
            Walk {
                number,
                signs: (0..weight.shorter() * SAMPLES).map(sign).collect(),
                regions: places[i],
                products: [recorded[0].1[i], recorded[1].1[i]],
                v: Side::default(),
                u: Side::default(),
                beside: [0.0; SAMPLES],
                image: Vec::new(),
                forms: Vec::new(),
                before: None,
                found: None,
            }
        };
        let walks: Vec<Walk> = sampled().enumerate().map(walk).collect();
        let mut recorded = recorded.into_iter().map(|(recording, _)| recording);
        let products = match (recorded.next(), recorded.next()) {
            (Some(forward), Some(back)) if !walks.is_empty() => Some([forward, back]),
            _ => None,
        };
        Ok(Effective { region, walks, products })
    }

    /// The effective rank of each weight; NaN where a value is not finite, or all are zero.
    pub(super) fn ranks(&mut self, store: &mut Store, weights: &[Weight]) -> Result<Vec<f64>> {
        self.walk(store, weights)?;
        let mut ranks = Vec::with_capacity(weights.len());
        for (number, weight) in weights.iter().enumerate() {
            let walk = self.walks.iter().find(|walk| walk.number == number);
            ranks.push(match walk {
                Some(walk) => walk.found.unwrap_or(f64::NAN),
                None if weight.count == weight.shorter() => effective_rank(&weight.singular),
                None => {
                    let [rows, columns] = weight.shape;
                    let mut values = vec![0f32; rows * columns];
                    store.read(self.region, weight.offset, &mut values)?;
                    effective_rank(&all_singular(Matrix::new(rows, columns, &values)))
                }
            });
        }
        Ok(ranks)
    }

    /// Takes the random vectors as far as they have to go.
    fn walk(&mut self, store: &mut Store, weights: &[Weight]) -> Result<()> {
        let Some([forward, back]) = &mut self.products else { return Ok(()) };
        for walk in &mut self.walks {
            walk.begin(&weights[walk.number]);
        }
        for step in 1..=MOST_STEPS {
            for walk in self.walks.iter().filter(|walk| walk.found.is_none()) {
                store.write(walk.regions[0], 0, &walk.v.values)?;
            }
            forward.replay(store)?;
            for walk in self.walks.iter_mut().filter(|walk| walk.found.is_none()) {
                let weight = &weights[walk.number];
                walk.image.resize(weight.longer() * SAMPLES, 0.0);
                forward.read_into(walk.products[0], &mut walk.image)?;
                walk.forward(NOTHING * weight.norm);
                store.write(walk.regions[1], 0, &walk.u.values)?;
            }
            back.replay(store)?;
            for walk in self.walks.iter_mut().filter(|walk| walk.found.is_none()) {
                let weight = &weights[walk.number];
                walk.image.resize(weight.shorter() * SAMPLES, 0.0);
                back.read_into(walk.products[1], &mut walk.image)?;
                walk.back(NOTHING * weight.norm);
                if LOOKED_AT.contains(&step) {
                    walk.settle(weight, step == MOST_STEPS);
                }
            }
            if self.walks.iter().all(|walk| walk.found.is_some()) {
                break;
            }
        }
        Ok(())
    }
}

impl Walk {
    /// The vectors are random signs, less what the subspace has of them.
    fn begin(&mut self, weight: &Weight) {
        let (vectors, count) = (&weight.looked, weight.count);
        let mut along = [[0f32; SAMPLES]; VECTORS];
        for (signs, q) in self.signs.chunks_exact(SAMPLES).zip(vectors.chunks_exact(count)) {
            for (along, &q) in along.iter_mut().zip(q) {
                along.iter_mut().zip(signs).for_each(|(a, &z)| *a += q * z);
            }
        }
        self.v.values.clone_from(&self.signs);
        let values = self.v.values.chunks_exact_mut(SAMPLES);
        for (v, q) in values.zip(vectors.chunks_exact(count)) {
            for (along, &q) in along.iter().zip(q) {
                v.iter_mut().zip(along).for_each(|(v, a)| *v -= q * a);
            }
        }
        self.v.norms = norms(&self.v.values);
        self.u.values.clear();
        self.u.values.resize(weight.longer() * SAMPLES, 0.0);
        self.u.norms = [0.0; SAMPLES];
        self.beside = [0.0; SAMPLES];
        self.forms = vec![Bidiagonal::default(); SAMPLES];
        self.before = None;
        self.found = None;
    }

    /// `a u = W v - b u'`, where the product of what v is times its norm lies in `image`.
    fn forward(&mut self, nothing: f64) {
        self.u.advance(&mut self.image, &self.v.norms, &self.beside, nothing);
        self.forms.iter_mut().zip(self.u.norms).for_each(|(form, a)| form.diagonal.push(a));
    }

    /// `b v' = W^T u - a v`.
    fn back(&mut self, nothing: f64) {
        self.v.advance(&mut self.image, &self.u.norms, &self.u.norms, nothing);
        self.beside = self.v.norms;
        self.forms.iter_mut().zip(self.beside).for_each(|(form, b)| form.beside.push(b));
    }

    /// Takes the estimate of the steps so far, if it has settled or must do.
    fn settle(&mut self, weight: &Weight, last: bool) {
        let others = weight.shorter() - weight.count;
        let found = estimated_rank(&weight.singular, others, weight.norm.powi(2), &self.forms);
        let moved = self.before.map_or(f64::INFINITY, |before| (found.value / before - 1.0).abs());
        // What is not a number does not become one.
        let settled = found.value.is_nan()
            || found.gap <= SMALL_GAP
            || (found.gap <= GAP && moved <= MOVED)
            || last;
        self.before = Some(found.value);
        self.found = settled.then_some(found.value);
    }
}

impl Side {
    /// The next vectors: `image`, which is of vectors times `of`, less `along` times those here. What is no more than `nothing` becomes zero.
    fn advance(&mut self, image: &mut Vec<f32>, of: &Each, along: &Each, nothing: f64) {
        let inverse = |norm: f64| if norm > 0.0 { 1.0 / norm } else { 0.0 };
        let scale = of.map(|norm| inverse(norm) as f32);
        let mut less = [0f32; SAMPLES];
        for (less, (along, norm)) in less.iter_mut().zip(along.iter().zip(self.norms)) {
            *less = (along * inverse(norm)) as f32;
        }
        for (y, x) in image.chunks_exact_mut(SAMPLES).zip(self.values.chunks_exact(SAMPLES)) {
            for (((y, x), scale), less) in y.iter_mut().zip(x).zip(scale).zip(less) {
                *y = *y * scale - less * x;
            }
        }
        self.norms = norms(image).map(|norm| if norm <= nothing { 0.0 } else { norm });
        mem::swap(&mut self.values, image);
    }
}

/// Norms of the columns of `[rows, SAMPLES]`.
fn norms(values: &[f32]) -> Each {
    /// Rows that are summed in f32.
    const ROWS: usize = 32;
    let mut sums = [0f64; SAMPLES];
    for block in values.chunks(ROWS * SAMPLES) {
        let mut of_block = [0f32; SAMPLES];
        for row in block.chunks_exact(SAMPLES) {
            of_block.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x * x);
        }
        sums.iter_mut().zip(of_block).for_each(|(sum, x)| *sum += f64::from(x));
    }
    sums.map(f64::sqrt)
}
