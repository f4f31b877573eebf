//! Schedules that hold their rate for a while: from there a run can branch.

use super::schedule::{Position, Schedule};

/// A schedule where it holds its rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stable {
    /// That rate, as a share of the optimizer's.
    pub share: f64,
    /// The rate to which it would fall, as a share of this one.
    pub floor: f64,
    /// Steps of the warm-up before.
    pub warmup: f64,
}

impl Schedule {
    /// The rate that the schedule holds at `position`, where it does; `horizon` is by how many steps the last one of the run comes after
    /// the first.
    pub fn stable(&self, position: Position, horizon: f64) -> Option<Stable> {
        match *self {
            Schedule::Constant {} => Some(Stable { share: 1.0, floor: 0.0, warmup: 0.0 }),
            Schedule::Linear { to, steps: Some(steps), .. }
                if to > 0.0 && position.step >= steps =>
            {
                Some(Stable { share: to, floor: 0.0, warmup: steps as f64 })
            }
            Schedule::WarmupStableDecay { warmup, decay, floor }
                if (warmup..=1.0 - decay).contains(&position.horizon()) =>
            {
                Some(Stable { share: 1.0, floor, warmup: warmup * horizon })
            }
            _ => None,
        }
    }

    /// Whether a step's rate depends on how long the run is.
    pub fn has_horizon(&self) -> bool {
        match *self {
            Schedule::Linear { steps, .. } => steps.is_none(),
            Schedule::Cosine { .. }
            | Schedule::OneCycle { .. }
            | Schedule::WarmupStableDecay { .. } => true,
            Schedule::Constant {} | Schedule::Step { .. } | Schedule::Cyclic { .. } => false,
        }
    }
}
