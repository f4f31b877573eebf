//! Averages of the weights: how a configuration says them, and their memory.

use crate::device::F32Slot;
use crate::error::{Error, Result};
use crate::tape::Region;
use serde::{Deserialize, Serialize};

/// Slow weights beside those that are trained: reviews and checkpoints take them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum AverageConfig {
    /// Exponential moving average. It begins as the plain mean of what it has seen, until that is as long
    /// as its memory: so the start is forgotten.
    Ema {
        /// Share that is kept from step to step, whatever `every` is.
        decay: f64,
        /// Steps from one average to the next.
        #[serde(default = "every_ema")]
        every: u64,
    },
    /// Lookahead: the trained weights go back to the slow ones as these have moved.
    Lookahead {
        /// Share of the way that the slow weights go.
        #[serde(default = "alpha")]
        alpha: f64,
        /// Steps of the trained weights.
        #[serde(default = "every_lookahead")]
        every: u64,
    },
}

fn every_ema() -> u64 {
    5
}
fn alpha() -> f64 {
    0.5
}
fn every_lookahead() -> u64 {
    6
}

impl AverageConfig {
    /// Steps from one to the next.
    pub fn every(&self) -> u64 {
        match *self {
            AverageConfig::Ema { every, .. } | AverageConfig::Lookahead { every, .. } => every,
        }
    }

    /// The share of the way to the trained weights that the slow ones go after update `step`.
    pub(super) fn share(&self, step: u64) -> f64 {
        match *self {
            AverageConfig::Ema { decay, every } => {
                let seen = (step / every).max(1);
                (1.0 - decay.powf(every as f64)).max(1.0 / seen as f64)
            }
            AverageConfig::Lookahead { alpha, .. } => alpha,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |field: &str, problem: String| {
            Err(Error::config(format!("optimizer.average.{field}"), problem))
        };
        if self.every() == 0 {
            return refuse("every", "0 steps: there is at least one".to_owned());
        }
        match *self {
            AverageConfig::Ema { decay, .. } if !(decay > 0.0 && decay < 1.0) => {
                refuse("decay", format!("{decay} is not between 0 and 1"))
            }
            AverageConfig::Lookahead { alpha, .. } if !(alpha > 0.0 && alpha <= 1.0) => {
                refuse("alpha", format!("{alpha} is not above 0 and at most 1"))
            }
            _ => Ok(()),
        }
    }
}

/// The slow weights of an optimizer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Average {
    pub(super) config: AverageConfig,
    pub(super) region: Region,
    pub(super) share: F32Slot,
}
