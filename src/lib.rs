//! Short training runs: a tape autodiff over hand-optimized kernels.

pub mod device;
pub mod error;
pub mod runs;

pub use error::{Error, Result};
