//! Where tensors live and where kernels run.

pub mod control;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

pub use control::{Control, F32Slot, U64Slot};

use crate::error::Result;
use std::fmt;
use std::sync::Arc;

/// A device: cheap to clone, all clones are the same one.
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The processor of this machine.
    Cpu(Arc<cpu::Cpu>),
}

impl Device {
    /// The CPU with that many threads; 0 takes as many as there are processors.
    ///
    /// # Errors
    /// See [`cpu::Cpu::new`].
    pub fn cpu(threads: usize) -> Result<Device> {
        Ok(Device::Cpu(Arc::new(cpu::Cpu::new(threads)?)))
    }

    /// Name as in `--device`: `cpu`.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".to_owned(),
        }
    }

    /// Instruction set or architecture that its kernels are for.
    pub fn isa(&self) -> &'static str {
        match self {
            Device::Cpu(cpu) => cpu.isa().name(),
        }
    }

    /// Number of host threads that take part.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.threads(),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} threads)", self.name(), self.isa(), self.threads())
    }
}
