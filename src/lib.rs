//! Short training runs: a tape autodiff over hand-optimized kernels.

pub mod device;
pub mod error;
pub mod gemm;

pub use error::{Error, Result};
