//! Learning rate and momentum of each step.
//!
//! Schedules over a horizon (cosine, one_cycle, warmup_stable_decay, and linear without `steps`)
//! count steps where their number is known, and go by the run's progress where it is not: so that a
//! time budget drives them. Their first step is at 0 and their last one at 1 of the horizon.
//!
//! Sources: Smith, "Cyclical learning rates", 2017; Smith, Topin, "Super-convergence", 2018;
//! Loshchilov, Hutter, "SGDR", 2017; Hu et al., "MiniCPM" (warmup-stable-decay), 2024;
//! `torch.optim.lr_scheduler` for the step that has each rate.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Share of the rate at which a warm-up starts: that of one-cycle, so that no step has rate 0.
const WARMUP_START: f64 = 1.0 / 25.0;

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// Steps already taken: 0 for the first one.
    pub step: u64,
    /// Steps of the whole run, where it is known.
    pub total_steps: Option<u64>,
    /// Share of the run that is over, in [0, 1]; of time, where time is the budget.
    pub progress: f64,
}

impl Position {
    /// Place of this step between the first one (0) and the last one (1).
    pub(super) fn horizon(self) -> f64 {
        match self.total_steps {
            Some(total) if total > 1 => (self.step as f64 / (total - 1) as f64).min(1.0),
            Some(_) => 0.0,
            None if self.progress.is_nan() => 0.0,
            None => self.progress.clamp(0.0, 1.0),
        }
    }
}

/// How one-cycle goes from one rate to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Half a cosine wave.
    #[default]
    Cos,
    /// A straight line.
    Linear,
}

/// How the amplitude of the cycles changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CycleMode {
    /// It does not.
    #[default]
    Triangular,
    /// It halves with each cycle.
    Triangular2,
    /// It is multiplied by `gamma` at each step.
    ExpRange,
}

/// How the learning rate changes over a run. Rates are shares of the optimizer's `rate`; one-cycle
/// and cyclic reach it at their peaks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Does not change.
    Constant {},
    /// Is multiplied by `factor` after each `every` steps.
    Step {
        /// Steps between changes.
        every: u64,
        /// Factor of each change.
        factor: f64,
    },
    /// Half a cosine wave from the rate down to `floor`, after a straight warm-up from 1/25 of it.
    Cosine {
        /// Last rate, as a share of the rate.
        #[serde(default)]
        floor: f64,
        /// Share of the run that is warm-up.
        #[serde(default)]
        warmup: f64,
    },
    /// A straight line, then constant.
    Linear {
        /// First rate, as a share of the rate.
        from: f64,
        /// Last rate, as a share of the rate.
        to: f64,
        /// Steps from the one to the other; the whole run where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<u64>,
    },
    /// Up to the rate and far down again: 1cycle.
    OneCycle {
        /// Share of the run in which the rate rises.
        #[serde(default = "default_pct_start")]
        pct_start: f64,
        /// The first rate is the peak over this.
        #[serde(default = "default_div")]
        div: f64,
        /// The last rate is the first rate over this.
        #[serde(default = "default_final_div")]
        final_div: f64,
        /// Way between the rates.
        #[serde(default)]
        anneal: Anneal,
        /// Momentum (`beta1` of Adam and Lion) at both ends, and at the peak: it falls while the rate rises.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        momentum: Option<[f64; 2]>,
    },
    /// Up and down again, over and over.
    Cyclic {
        /// How the amplitude changes.
        #[serde(default)]
        mode: CycleMode,
        /// Lowest rate, as a share of the rate.
        low: f64,
        /// Steps of rise.
        up: u64,
        /// Steps of fall; as many as of rise where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down: Option<u64>,
        /// Factor of the amplitude at each step in mode `exp_range`.
        #[serde(default = "default_gamma")]
        gamma: f64,
        /// Momentum (`beta1` of Adam and Lion) at the lowest rate, and at the full one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        momentum: Option<[f64; 2]>,
    },
    /// A straight warm-up from 1/25 of the rate, then the rate, then a straight line to `floor`.
    WarmupStableDecay {
        /// Share of the run that is warm-up.
        #[serde(default)]
        warmup: f64,
        /// Share of the run, at its end, in which the rate falls.
        decay: f64,
        /// Last rate, as a share of the rate.
        #[serde(default)]
        floor: f64,
    },
}

fn default_pct_start() -> f64 {
    0.3
}

fn default_div() -> f64 {
    25.0
}

fn default_final_div() -> f64 {
    1e4
}

fn default_gamma() -> f64 {
    1.0
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Constant {}
    }
}

/// The straight line from `a` at 0 to `b` at 1.
fn line(a: f64, b: f64, x: f64) -> f64 {
    a + (b - a) * x
}

/// Half a cosine wave from `a` at 0 to `b` at 1.
fn wave(a: f64, b: f64, x: f64) -> f64 {
    b + (a - b) / 2.0 * (1.0 + (PI * x).cos())
}

/// What goes from the first value to the second one and on to the third one in one cycle.
fn one_cycle(position: Position, pct_start: f64, anneal: Anneal, values: [f64; 3]) -> f64 {
    let [first, peak_value, last] = values;
    let between = match anneal {
        Anneal::Cos => wave,
        Anneal::Linear => line,
    };
    // As PyTorch has it: in steps, the peak is one step before `pct_start` of the run.
    let (at, peak, end) = match position.total_steps {
        Some(total) => {
            let end = total.saturating_sub(1) as f64;
            ((position.step as f64).min(end), pct_start * total as f64 - 1.0, end)
        }
        None => (position.horizon(), pct_start, 1.0),
    };
    if at < peak {
        between(first, peak_value, at / peak)
    } else if at == peak {
        peak_value
    } else {
        between(peak_value, last, (at - peak) / (end - peak))
    }
}

/// How far up its cycle a step is, from 0 to the cycle's amplitude.
fn cyclic(step: u64, mode: CycleMode, up: u64, down: Option<u64>, gamma: f64) -> (f64, f64) {
    let (up, length) = (up as f64, (up + down.unwrap_or(up)) as f64);
    let cycle = (step as f64 / length).floor();
    let x = step as f64 / length - cycle;
    let rise = up / length;
    let height = if x <= rise { x / rise } else { (x - 1.0) / (rise - 1.0) };
    let amplitude = match mode {
        CycleMode::Triangular => 1.0,
        CycleMode::Triangular2 => 0.5f64.powf(cycle),
        CycleMode::ExpRange => gamma.powf(step as f64),
    };
    (height, amplitude)
}

impl Schedule {
    /// Learning rate of the step at `position`, where the optimizer's rate is `base`.
    pub fn rate(&self, base: f64, position: Position) -> f64 {
        base * self.share(position)
    }

    /// Momentum of the step at `position`, where the schedule cycles it: against the rate, as PyTorch's
    /// `cycle_momentum`.
    pub fn momentum_at(&self, position: Position) -> Option<f64> {
        let [high, low] = self.momentum()?;
        match *self {
            Schedule::OneCycle { pct_start, anneal, .. } => {
                Some(one_cycle(position, pct_start, anneal, [high, low, high]))
            }
            Schedule::Cyclic { mode, up, down, gamma, .. } => {
                let (height, amplitude) = cyclic(position.step, mode, up, down, gamma);
                Some(high - (high - low) * height * amplitude)
            }
            _ => None,
        }
    }

    /// Momentum at the lowest rate and at the highest one, where the schedule cycles it.
    pub fn momentum(&self) -> Option<[f64; 2]> {
        match *self {
            Schedule::OneCycle { momentum, .. } | Schedule::Cyclic { momentum, .. } => momentum,
            _ => None,
        }
    }

    /// The rate as a share of the optimizer's.
    fn share(&self, position: Position) -> f64 {
        let (step, x) = (position.step, position.horizon());
        match *self {
            Schedule::Constant {} => 1.0,
            Schedule::Step { every, factor } => factor.powf((step / every) as f64),
            Schedule::Cosine { warmup, .. } if x < warmup => line(WARMUP_START, 1.0, x / warmup),
            Schedule::Cosine { floor, warmup } => wave(1.0, floor, (x - warmup) / (1.0 - warmup)),
            Schedule::Linear { from, to, steps: Some(steps) } => {
                line(from, to, (step as f64 / steps as f64).min(1.0))
            }
            Schedule::Linear { from, to, steps: None } => line(from, to, x),
            Schedule::OneCycle { pct_start, div, final_div, anneal, .. } => {
                let first = 1.0 / div;
                one_cycle(position, pct_start, anneal, [first, 1.0, first / final_div])
            }
            Schedule::Cyclic { mode, low, up, down, gamma, .. } => {
                let (height, amplitude) = cyclic(step, mode, up, down, gamma);
                low + (1.0 - low) * height * amplitude
            }
            Schedule::WarmupStableDecay { warmup, decay, floor } => {
                if x < warmup {
                    line(WARMUP_START, 1.0, x / warmup)
                } else if x <= 1.0 - decay {
                    1.0
                } else {
                    line(1.0, floor, (x - (1.0 - decay)) / decay)
                }
            }
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// An [`Error::Config`] that names the first field that cannot be used, and its value.
    pub fn validate(&self) -> Result<()> {
        self.validate_as("schedule")
    }

    /// The same for a schedule that a configuration calls `table`.
    pub(super) fn validate_as(&self, table: &str) -> Result<()> {
        let refuse = |field: &str, value: f64, wanted: &str| {
            Err(Error::config(format!("{table}.{field}"), format!("{value} is not {wanted}")))
        };
        let range = |field: &str, value: f64, low: f64, high: f64| match value {
            value if value.is_finite() && (low..=high).contains(&value) => Ok(()),
            _ if high == f64::MAX => refuse(field, value, &format!("{low} or more")),
            _ => refuse(field, value, &format!("between {low} and {high}")),
        };
        let positive = |field: &str, value: f64| match value {
            value if value.is_finite() && value > 0.0 => Ok(()),
            _ => refuse(field, value, "above 0"),
        };
        for value in self.momentum().into_iter().flatten() {
            if !(0.0..1.0).contains(&value) {
                return refuse("momentum", value, "in [0, 1)");
            }
        }
        match *self {
            Schedule::Constant {} => Ok(()),
            Schedule::Step { every, factor } => {
                positive("every", every as f64)?;
                positive("factor", factor)
            }
            Schedule::Cosine { floor, warmup } => {
                range("floor", floor, 0.0, 1.0)?;
                if warmup == 1.0 {
                    return refuse("warmup", warmup, "below 1");
                }
                range("warmup", warmup, 0.0, 1.0)
            }
            Schedule::Linear { from, to, steps } => {
                range("from", from, 0.0, f64::MAX)?;
                range("to", to, 0.0, f64::MAX)?;
                positive("steps", steps.unwrap_or(1) as f64)
            }
            Schedule::OneCycle { pct_start, div, final_div, .. } => {
                range("pct_start", pct_start, 0.0, 1.0)?;
                range("div", div, 1.0, f64::MAX)?;
                range("final_div", final_div, 1.0, f64::MAX)
            }
            Schedule::Cyclic { low, up, down, gamma, mode, .. } => {
                range("low", low, 0.0, 1.0)?;
                positive("up", up as f64)?;
                positive("down", down.unwrap_or(up) as f64)?;
                if gamma != 1.0 && mode != CycleMode::ExpRange {
                    return refuse("gamma", gamma, "of use in this mode (only in exp_range)");
                }
                positive("gamma", gamma)?;
                range("gamma", gamma, 0.0, 1.0)
            }
            Schedule::WarmupStableDecay { warmup, decay, floor } => {
                range("warmup", warmup, 0.0, 1.0)?;
                range("decay", decay, 0.0, 1.0)?;
                if warmup + decay > 1.0 + 1e-9 {
                    return refuse("decay", decay, "at most 1 - warmup");
                }
                range("floor", floor, 0.0, 1.0)
            }
        }
    }
}
