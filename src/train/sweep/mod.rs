//! Sweeps: many short runs of one configuration, varied, within a time; successive halving finds the best.
//!
//! Every rung trains its settings anew, for a share of the run that the file names, each with a whole schedule of its own: what
//! a one-cycle run has reached half-way says little of where it ends, as its learning rate is still high, and a
//! checkpoint of a shorter one is at its end already. So a rung is what somebody would see who trained for that long, and
//! the last one is the run itself: `best.toml` trained by itself gives the same bits.
//!
//! `grid` and `halving` are arithmetic; `trial` measures; `rung` trains side by side; `driver` keeps the time; `journal` and
//! `state` bring a killed sweep back.

mod driver;
mod grid;
mod halving;
mod journal;
mod page;
mod rung;
mod state;
mod trial;

pub use driver::{Outcome, resume, sweep};
pub use grid::{Point, Sweep};
pub use halving::Rung;
pub use journal::{Begun, Ended, Event, Plan, Ranked, Task, Trained, Tried};
