//! Both clocks of a run: takes what steps, reviews and probes find, says when levels were first hit, what is to come, and what
//! that advises.

use super::measure::{ProbeFigures, StepFigures, WeightFigures};
use crate::clocks::{
    Advice, Adviser, DONE, FITTED, Hit, Interval, Point, Series, State, Verdict, eta, growth,
    half_decades, tail_exponent,
};
use crate::optim::{Decay, OptimizerConfig, Rule};
use crate::runs::Epoch;
use crate::runs::clocks::{Clocks, Estimate, Eta, NewlyReached, REACHED, Reached, Said, Tail};
use crate::train::config::Config;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Levels of the loss, from half a decade below where a net that knows nothing stands.
const FIT_LEVELS: usize = 8;
/// Levels of the share of the excess rank that is left.
const SIMPLE_LEVELS: [f64; 5] = [0.9, 0.75, 0.5, 0.25, 0.1];
/// The loss is averaged over windows: of so many steps, or this share of the steps before if that is more. So there are some
/// hundred windows however long a run is, and a time is known to 3 %.
const WINDOW: (u64, u64) = (4, 32);
/// Points of what is seen at reviews; beyond, every second one is dropped.
const MOST_POINTS: usize = 512;
/// Accuracies that are kept one by one; of older ones the best.
const RECENT: usize = 64;

/// What a checkpoint keeps of it. Fractions are bits, to come back exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::train) struct Memory {
    contraction: u64,
    loss: Vec<[u64; 3]>,
    /// Of the open window: sums of losses and seconds, and steps.
    window: [u64; 3],
    margin: Vec<[u64; 3]>,
    excess: Vec<[u64; 3]>,
    accuracy: Vec<u64>,
    /// Mean stable rank at the start.
    start_rank: Option<u64>,
    said: Vec<(String, usize)>,
    /// C and seconds at the last review.
    last: [u64; 2],
    /// Test rows of the smallest review so far; 0 before one.
    samples: usize,
}

/// What the run's plan says at a review.
#[derive(Clone, Copy, Debug)]
pub(in crate::train) struct Outlook {
    /// C of the steps to come as planned; `None` where their number is not known.
    pub contraction_left: Option<f64>,
    /// Seconds of training that are left.
    pub seconds_left: Option<f64>,
}

/// The clocks of a run that is under way.
pub(in crate::train) struct Watch {
    /// Lowest loss that smoothed labels allow.
    floor: f64,
    classes: usize,
    test_rows: usize,
    /// By what rate times decay is multiplied for C.
    gain: f64,
    /// The norm stands still where `g.w = -x decay w.w`: x, if the rule has such a one.
    stationary: Option<f64>,
    /// The decay of the last step.
    decay: f64,
    contraction: f64,
    loss: Series,
    /// Sums of losses and seconds of the open window, and its steps.
    window: (f64, f64, u64),
    margin: Series,
    excess: Series,
    accuracy: Vec<f64>,
    /// Test rows of the smallest review so far.
    samples: usize,
    start_rank: Option<f64>,
    adviser: Adviser,
    /// C and seconds at the last review.
    last: (f64, f64),
    now: Clocks,
}

/// The least cross-entropy of labels that are smoothed over `classes`: their entropy.
fn floor(smoothing: f64, classes: usize) -> f64 {
    let other = smoothing / classes as f64;
    let right = 1.0 - smoothing + other;
    let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    term(right) + (classes - 1) as f64 * term(other)
}

/// By how much more than rate times decay a step contracts the weights. Decoupled decay contracts by just that. Coupled decay goes through
/// the momentum of SGD, which multiplies it in the long run, and through the second moment of Adam, where nothing is left of the decay
/// as a rate of contraction, and through the sign of Lion. Cautious decay contracts by as much at most.
fn gain(optimizer: &OptimizerConfig) -> f64 {
    match (optimizer.decay, optimizer.rule) {
        (Decay::Decoupled | Decay::Cautious, _) => 1.0,
        (Decay::Coupled, Rule::Sgd { momentum, .. }) => 1.0 / (1.0 - momentum),
        _ => 0.0,
    }
}

/// By what the decay is multiplied in the balance of which plain gradients say whether norms stand still: that of SGD. Coupled decay
/// goes the way of the gradients, `g.w = -decay w.w`; decoupled decay does not go through the momentum, which multiplies only
/// the gradients: `g.w / (1 - momentum) = -decay w.w`.
fn stationary(optimizer: &OptimizerConfig) -> Option<f64> {
    match (optimizer.rule, optimizer.decay) {
        _ if optimizer.weight_decay == 0.0 => None,
        (Rule::Sgd { .. }, Decay::Coupled) => Some(1.0),
        (Rule::Sgd { momentum, .. }, Decay::Decoupled) => Some(1.0 - momentum),
        _ => None,
    }
}

fn to_bits(series: &Series) -> Vec<[u64; 3]> {
    series.points().iter().map(|p| [p.step, p.seconds, p.value].map(f64::to_bits)).collect()
}

fn from_bits(points: &[[u64; 3]]) -> Series {
    Series::new(points.iter().map(|point| {
        let [step, seconds, value] = point.map(f64::from_bits);
        Point { step, seconds, value }
    }))
}

fn push(series: &mut Series, point: Point) {
    series.push(point);
    if series.points().len() > MOST_POINTS {
        *series = Series::new(series.points().iter().copied().step_by(2));
    }
}

fn reached(hits: Vec<Hit>) -> Vec<Reached> {
    let reached = |hit: Hit| Reached { level: hit.level, step: hit.step, seconds: hit.seconds };
    hits.into_iter().map(reached).collect()
}

/// Those of the levels now that were not among those before.
fn beyond(before: &[Reached], now: &[Reached]) -> Vec<Reached> {
    let known = |level: f64| before.iter().any(|hit| hit.level == level);
    now.iter().copied().filter(|hit| !known(hit.level)).collect()
}

fn estimate(interval: Interval) -> Option<Estimate> {
    let Interval { low, value, high } = interval;
    // JSON knows no infinity.
    [low, value, high].iter().all(|x| x.is_finite()).then_some(Estimate { value, low, high })
}

/// Test rows of a review that was of a sample.
fn sampled_rows(row: &Epoch) -> Option<usize> {
    row.extra.get("test_rows")?.as_u64().and_then(|rows| usize::try_from(rows).ok())
}

/// An object of numbers by name; what is not finite is left out.
fn object<'a>(entries: impl Iterator<Item = (&'a str, f64)>) -> Value {
    let finite = entries.filter(|(_, value)| value.is_finite());
    Value::Object(
        finite.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>(),
    )
}

impl Watch {
    pub(in crate::train) fn new(
        config: &Config,
        classes: usize,
        test_rows: usize,
        memory: &Memory,
    ) -> Watch {
        let optimizer = &config.optimizer;
        let contraction = f64::from_bits(memory.contraction);
        Watch {
            floor: floor(f64::from(config.train.label_smoothing), classes),
            classes,
            test_rows,
            gain: gain(optimizer),
            stationary: stationary(optimizer),
            decay: optimizer.weight_decay,
            contraction,
            loss: from_bits(&memory.loss),
            window: {
                let [loss, seconds, steps] = memory.window;
                (f64::from_bits(loss), f64::from_bits(seconds), steps)
            },
            margin: from_bits(&memory.margin),
            excess: from_bits(&memory.excess),
            accuracy: memory.accuracy.iter().map(|&bits| f64::from_bits(bits)).collect(),
            samples: memory.samples,
            start_rank: memory.start_rank.map(f64::from_bits),
            adviser: Adviser::resumed(&memory.said),
            last: memory.last.map(f64::from_bits).into(),
            now: Clocks::default(),
        }
    }

    pub(in crate::train) fn memory(&self) -> Memory {
        Memory {
            contraction: self.contraction.to_bits(),
            loss: to_bits(&self.loss),
            window: [self.window.0.to_bits(), self.window.1.to_bits(), self.window.2],
            margin: to_bits(&self.margin),
            excess: to_bits(&self.excess),
            accuracy: self.accuracy.iter().map(|a| a.to_bits()).collect(),
            start_rank: self.start_rank.map(f64::to_bits),
            said: self.adviser.counts(),
            last: [self.last.0, self.last.1].map(f64::to_bits),
            samples: self.samples,
        }
    }

    /// What they said at the last review of an earlier process, until there is one in this.
    pub(in crate::train) fn recall(&mut self, clocks: Option<Clocks>) {
        self.now = clocks.unwrap_or_default();
    }

    /// C so far.
    pub(in crate::train) fn contraction(&self) -> f64 {
        self.contraction
    }

    /// What both clocks say, as of the last review.
    pub(in crate::train) fn now(&self) -> &Clocks {
        &self.now
    }

    /// Whether the clocks have advised to stop for long enough.
    pub(in crate::train) fn advised_to_stop(&self) -> bool {
        let stop = Verdict::StopAndBank.name();
        self.now.advice.iter().any(|said| said.settled && said.verdict == stop)
    }

    /// C of a step, or of a sum of rates times decay.
    pub(in crate::train) fn contraction_of(&self, rate_times_decay: f64) -> f64 {
        self.gain * rate_times_decay
    }

    /// Takes account of a step.
    pub(in crate::train) fn step(
        &mut self,
        step: u64,
        seconds: f64,
        loss: f64,
        rate: f64,
        decay: f64,
    ) {
        self.contraction += self.contraction_of(rate * decay);
        self.decay = decay;
        self.window.0 += loss - self.floor;
        self.window.1 += seconds;
        self.window.2 += 1;
        if self.window.2 >= WINDOW.0.max(step / WINDOW.1) {
            let count = self.window.2 as f64;
            let (value, seconds) = (self.window.0 / count, self.window.1 / count);
            self.loss.push(Point { step: step as f64 - (count - 1.0) / 2.0, seconds, value });
            self.window = (0.0, 0.0, 0);
        }
    }

    /// Takes the weights as they are before the first step.
    pub(in crate::train) fn start(&mut self, probe: &ProbeFigures) {
        self.start_rank = mean_rank(probe).filter(|&rank| rank > 1.0);
        if self.start_rank.is_some() {
            self.excess = Series::new([Point { step: 0.0, seconds: 0.0, value: 1.0 }]);
        }
    }

    /// Takes account of a review, adds what the clocks say to its row, and advises.
    pub(in crate::train) fn review(
        &mut self,
        row: &mut Epoch,
        steps: Option<&StepFigures>,
        probe: Option<&ProbeFigures>,
        outlook: Outlook,
    ) {
        let at = |value| Point { step: row.step as f64, seconds: row.seconds, value };
        if let Some(steps) = steps {
            push(&mut self.margin, at(steps.margin));
        }
        let rank = probe.and_then(mean_rank);
        let excess = rank.zip(self.start_rank).map(|(now, start)| (now - 1.0) / (start - 1.0));
        let before = self.excess.points().last().copied();
        if let Some(excess) = excess {
            push(&mut self.excess, at(excess));
        }
        self.accuracy.push(row.test_acc);
        if self.accuracy.len() > RECENT {
            let oldest = self.accuracy.remove(0);
            self.accuracy[0] = self.accuracy[0].max(oldest);
        }

        let samples = sampled_rows(row).unwrap_or(self.test_rows);
        // The best of all reviews may be one of few rows.
        self.samples = if self.samples == 0 { samples } else { self.samples.min(samples) };

        let excess_loss = row.train_loss - self.floor;
        let levels = half_decades((self.classes as f64).ln(), FIT_LEVELS);
        let next = levels.iter().copied().find(|&level| level < excess_loss);
        let fit_eta = next.and_then(|level| eta(&self.loss, level));
        let per_second = (self.contraction - self.last.0) / (row.seconds - self.last.1);
        let done_in = (per_second > 0.0).then(|| ((DONE - self.contraction) / per_second).max(0.0));
        let planned = outlook.contraction_left.map(|left| self.contraction + left);
        let last_excess = excess.or(before.map(|point| point.value)).unwrap_or(f64::NAN);
        let state = State {
            train_loss: excess_loss,
            floor: self.floor,
            accuracy: self.accuracy.clone(),
            samples: self.samples,
            saturated: steps.map_or(f64::NAN, |steps| steps.saturated),
            contraction: self.contraction,
            planned: planned.unwrap_or(f64::NAN),
            excess: last_excess,
            excess_change: self.excess_change(),
            fit_eta,
            simple_eta: done_in,
            left: outlook.seconds_left,
            normalised: probe.map_or(0.0, normalised),
        };
        let advice = self.adviser.review(&state);
        self.last = (self.contraction, row.seconds);

        let fit = reached(self.loss.hits(&levels));
        let simple = reached(self.excess.hits(&SIMPLE_LEVELS));
        let new = NewlyReached {
            fit: beyond(&self.now.fit, &fit),
            simple: beyond(&self.now.simple, &simple),
        };
        if new != NewlyReached::default() {
            row.extra.insert(REACHED.to_owned(), json!(new));
        }
        self.now = Clocks {
            fit,
            simple,
            loss: Some(row.train_loss).filter(|loss| loss.is_finite()),
            floor: self.floor,
            accuracy: steps.map(|steps| steps.accuracy),
            margin: steps.map(|steps| steps.margin),
            least_margin: steps.map(|steps| steps.least_margin),
            growth: growth(&self.margin).and_then(|g| estimate(g.per_step.scaled(1000.0))),
            saturated: steps.map(|steps| steps.saturated),
            tail_exponent: tail_exponent(&self.loss).and_then(|tail| {
                Some(Tail { theta: estimate(tail.theta)?, law: tail.law().name().to_owned() })
            }),
            next: fit_eta.map(|eta| Eta { level: eta.level, early: eta.early, late: eta.late }),
            contraction: Some(self.contraction),
            planned,
            stable_rank: self
                .start_rank
                .zip(rank)
                .map(|(start, now)| [start, now])
                .or(self.now.stable_rank),
            effective_rank: probe.and_then(mean_effective).or(self.now.effective_rank),
            excess_rank: Some(last_excess).filter(|excess| excess.is_finite()),
            gate_flips: probe.and_then(mean_flips).or(self.now.gate_flips),
            done_in,
            ratio: self.ratio(),
            advice: advice.iter().map(said).collect(),
        };
        self.extend(&mut row.extra, steps, probe);
    }

    /// How the excess rank changed between the last two probes; NaN before there are two.
    fn excess_change(&self) -> f64 {
        match self.excess.last(2) {
            [before, now] => now.value - before.value,
            _ => f64::NAN,
        }
    }

    /// How much later half of the excess rank was gone than the loss was within [`FITTED`] of its floor, in steps and seconds.
    fn ratio(&self) -> Option<[f64; 2]> {
        let (fit, simple) = (self.loss.first_hit(FITTED)?, self.excess.first_hit(0.5)?);
        (fit.step > 0.0 && fit.seconds > 0.0)
            .then(|| [simple.step / fit.step, simple.seconds / fit.seconds])
    }

    /// The figures of a review's row.
    fn extend(
        &self,
        extra: &mut BTreeMap<String, Value>,
        steps: Option<&StepFigures>,
        probe: Option<&ProbeFigures>,
    ) {
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                extra.insert(key.to_owned(), value);
            }
        };
        put("contraction", json!(self.contraction));
        put("planned_contraction", json!(self.now.planned));
        if let Some(steps) = steps {
            put("train_margin", json!(steps.margin));
            put("least_margin", json!(steps.least_margin));
            put("logit_rms", json!(steps.logit_rms));
            put("saturated", json!(steps.saturated));
            let matrices = || steps.parameters.iter().filter(|sums| sums.decay_factor > 0.0);
            let norms = matrices().map(|sums| (sums.name.as_str(), sums.gradient2.sqrt()));
            put("gradient_norm", object(norms));
            if let Some(stationary) = self.stationary {
                let radial = matrices().map(|sums| {
                    let decayed = stationary * self.decay * sums.decay_factor * sums.weight2;
                    (sums.name.as_str(), (sums.gradient_weight + decayed).abs() / decayed)
                });
                put("radial", object(radial));
            }
        }
        if let Some(probe) = probe {
            let by = |value: fn(&WeightFigures) -> f64| {
                object(probe.weights.iter().map(|w| (w.name.as_str(), value(w))))
            };
            put("stable_rank", by(|w| w.stable_rank));
            if probe.weights.iter().any(|w| w.effective_rank.is_some()) {
                put("effective_rank", by(|w| w.effective_rank.unwrap_or(f64::NAN)));
            }
            put("weight_norm", by(|w| w.norm));
            let pairs = |pairs: &[(String, f64)]| {
                object(pairs.iter().map(|(name, value)| (name.as_str(), *value)))
            };
            put("balance", pairs(&probe.balance));
            put("gate_flips", pairs(&probe.flips));
            if let Some(c) = &probe.collapse {
                let parts = [
                    ("nc1", c.within),
                    ("nc2_norms", c.norms),
                    ("nc2_angles", c.angles),
                    ("nc3", c.duality),
                    ("nc4", c.nearest),
                ];
                put("collapse", object(parts.into_iter()));
            }
            put("schatten", json!(probe.schatten));
            put("excess_rank", json!(self.now.excess_rank));
        }
        if let Some(first) = self.now.advice.first() {
            put("advice", json!(format!("{}: {}", first.verdict, first.reason)));
        }
    }
}

/// The mean stable rank of the weight matrices; `None` without any.
fn mean_rank(probe: &ProbeFigures) -> Option<f64> {
    let ranks = probe.weights.iter().map(|weight| weight.stable_rank);
    let mean = ranks.sum::<f64>() / probe.weights.len() as f64;
    mean.is_finite().then_some(mean)
}

/// The mean effective rank of the weight matrices; `None` where it was not looked for.
fn mean_effective(probe: &ProbeFigures) -> Option<f64> {
    let ranks: Option<Vec<f64>> = probe.weights.iter().map(|w| w.effective_rank).collect();
    let ranks = ranks.filter(|ranks| !ranks.is_empty())?;
    let mean = ranks.iter().sum::<f64>() / ranks.len() as f64;
    mean.is_finite().then_some(mean)
}

fn mean_flips(probe: &ProbeFigures) -> Option<f64> {
    let sum: f64 = probe.flips.iter().map(|(_, share)| share).sum();
    (!probe.flips.is_empty()).then(|| sum / probe.flips.len() as f64)
}

/// Share of the elements of weight matrices whose outputs are normalised.
fn normalised(probe: &ProbeFigures) -> f64 {
    let size = |weight: &WeightFigures| (weight.shape[0] * weight.shape[1]) as f64;
    let all: f64 = probe.weights.iter().map(size).sum();
    let normalised = probe.weights.iter().filter(|weight| weight.normalised).map(size);
    if all > 0.0 { normalised.sum::<f64>() / all } else { 0.0 }
}

fn said(advice: &Advice) -> Said {
    Said {
        verdict: advice.verdict.name().to_owned(),
        reason: advice.reason.clone(),
        reviews: advice.reviews,
        settled: advice.is_settled(),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
