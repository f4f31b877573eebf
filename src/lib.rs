//! Short training runs: a tape autodiff over hand-optimized kernels.

pub mod device;
pub mod error;
pub mod ops;
pub mod optim;
pub mod tape;
pub mod tensor;

pub use device::Device;
pub use error::{Error, Result};
pub use ops::{Operation, Recorder, Var};
pub use tape::{Recording, Store, Tape};
pub use tensor::{DType, Shape, TensorType};
