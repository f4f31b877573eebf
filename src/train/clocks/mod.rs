//! Both clocks of a run.
//!
//! [`telemetry`] measures in the step and [`probe`] (with [`spectra`] and [`effective`], the weights) at a review; what they find are the plain
//! figures of [`measure`]. [`watch`] makes hitting times, estimates and advice of them, by the room `clocks`; [`outlook`] is
//! what the rest of the run is planned to do.

mod effective;
pub(super) mod measure;
mod outlook;
pub(super) mod probe;
mod spectra;
pub(super) mod telemetry;
pub(super) mod watch;
