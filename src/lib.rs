//! Short training runs: a tape autodiff over hand-optimized kernels.
//!
//! A training step is recorded once on a [`Tape`]: operations append nodes, [`Tape::backward`]
//! appends the nodes of the gradients, the optimizer appends the update. [`Tape::compile`] plans the
//! order and every byte of memory, and the [`Recording`] is replayed for each batch by a team of
//! threads, as one parallel region that allocates nothing. The result does not depend on the number
//! of threads.
//!
//! - To train a model on data: [`train::Trainer`], with a model of [`nn`] layers.
//! - To run and resume whole configured runs: [`train::run`] and [`train::resume`].
//! - To differentiate and run anything: [`tape`] and [`ops`].
//! - To add an operation: [`ops::Operation`].
//!
//! The modules are listed below in the order of their names; data flow from [`data`] through
//! [`nn`], [`tape`] and [`ops`] to [`device`], with [`train`] above all and [`runs`] at the end.

pub mod clocks;
pub mod data;
pub mod device;
pub mod error;
pub mod experiments;
pub mod gemm;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod runs;
pub mod tape;
pub mod tensor;
pub mod train;

pub use device::Device;
pub use error::{Error, Result};
pub use ops::{Operation, Recorder, Var};
pub use tape::{Recording, Store, Tape};
pub use tensor::{DType, Shape, TensorType};

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
