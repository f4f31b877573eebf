//! Short training runs: a tape autodiff over hand-optimized kernels.

pub mod data;
pub mod device;
pub mod error;

pub use error::{Error, Result};
