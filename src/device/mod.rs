//! Where tensors live and where kernels run.

pub mod control;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

pub use control::{Control, F32Slot, U64Slot};

use crate::error::Result;
use std::fmt;
use std::sync::Arc;

/// What of a GPU its kernels are chosen by. Without one all is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Compute capability: (9, 0). Which kernels run, and so the bits of results, may follow from it.
    pub capability: (u32, u32),
    /// Streaming multiprocessors: how many blocks share the work may follow from it, but no bits of results.
    pub multiprocessors: usize,
}

/// A device: cheap to clone, all clones are the same one.
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The processor of this machine.
    Cpu(Arc<cpu::Cpu>),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Cuda>),
}

impl Device {
    /// The CPU with that many threads; 0 takes as many as there are processors.
    ///
    /// # Errors
    /// See [`cpu::Cpu::new`].
    pub fn cpu(threads: usize) -> Result<Device> {
        Ok(Device::Cpu(Arc::new(cpu::Cpu::new(threads)?)))
    }

    /// The GPU of that name: `cuda:0`.
    ///
    /// # Errors
    /// See [`cuda::Cuda::open`].
    #[cfg(feature = "cuda")]
    pub fn cuda(name: &str) -> Result<Device> {
        Ok(Device::Cuda(Arc::new(cuda::Cuda::open(name)?)))
    }

    /// Name as in `--device`: `cpu`, `cuda:0`.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".to_owned(),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.name().to_owned(),
        }
    }

    /// Instruction set or architecture that its kernels are for.
    pub fn isa(&self) -> &str {
        match self {
            Device::Cpu(cpu) => cpu.isa().name(),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.architecture(),
        }
    }

    /// Number of host threads that take part.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.threads(),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => 1,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} threads)", self.name(), self.isa(), self.threads())
    }
}
