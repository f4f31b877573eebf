//! NVIDIA GPUs, by the driver alone: nothing is linked, and what is missing is said, not panicked
//! over.
//!
//! - `driver.rs`: opens the driver, and asks for all it needs before anything is called.
//! - `kernels.rs`: the PTX and cubins that the crate carries.
//! - `context.rs`: an open device with its stream and the modules that were loaded; `memory.rs`: its memory.
//! - `launch.rs`: what an operation gives to run; `program.rs`: whole steps of it, as one graph.
//! - `feed.rs`: the control blocks of the steps to come, and what is kept of those that are over.

mod context;
mod driver;
mod feed;
mod kernels;
mod launch;
mod memory;
mod program;

use crate::error::{Error, Result};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use std::fmt;

pub use context::{Cuda, Route};
pub use feed::{Feed, KEPT};
pub use kernels::modules;
pub use launch::{Argument, Kernel, Launches, Place, Task, Tiles};
pub use memory::Buffer;
pub use program::{Bound, Kept, Program, Range};

/// A device, as the driver describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its number: `N` of `cuda:N`.
    pub ordinal: usize,
    /// What it calls itself: `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{}, compute capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB",
            self.name, self.multiprocessors
        )
    }
}

/// The driver, and the devices that it has.
#[derive(Clone, Debug, PartialEq)]
pub struct Driver {
    /// Version of CUDA that it supports: `12.4`.
    pub version: String,
    /// Whether it is no driver, but the stand-in of the crate's tests, which runs kernels on the host.
    pub stand_in: bool,
    /// Its devices, in order.
    pub devices: Vec<Info>,
}

/// The driver of this machine and its devices.
///
/// # Errors
/// There is no driver, it is older than CUDA 12.0, or it finds no device: the error says which.
pub fn probe() -> Result<Driver> {
    let found = || {
        let driver = driver::driver()?;
        let devices = (0..driver::count()?).map(info).collect::<Result<Vec<_>, String>>()?;
        match devices.is_empty() {
            true => Err("the driver is there and finds no GPU".to_owned()),
            false => {
                let version = driver::version_name(driver.version);
                Ok(Driver { version, stand_in: driver.stand_in, devices })
            }
        }
    };
    found().map_err(|problem| Error::device("cuda", problem))
}

/// The device of a name: `cuda` is `cuda:0`.
///
/// # Errors
/// It is no such name, there is no driver ([`probe`]), or it has no such device.
pub fn find(name: &str) -> Result<(Driver, Info)> {
    let number = match name.split_once(':') {
        None if name == "cuda" => Some(0),
        Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) => number.parse().ok(),
        _ => None,
    };
    let Some(ordinal) = number else {
        return Err(Error::config("device", format!("'{name}' is not auto, cpu or cuda:N")));
    };
    let name = format!("cuda:{ordinal}");
    let driver = probe().map_err(|error| match error {
        Error::Device { problem, .. } => Error::device(&name, problem),
        other => other,
    })?;
    match driver.devices.get(ordinal).cloned() {
        Some(info) => Ok((driver, info)),
        None => {
            let count = driver.devices.len();
            let last = match count {
                1 => "cuda:0 is the only one".to_owned(),
                _ => format!("there are cuda:0 to cuda:{}", count - 1),
            };
            Err(Error::device(name, format!("there is no such device: {last}")))
        }
    }
}

fn info(ordinal: usize) -> Result<Info, String> {
    let device = driver::device(ordinal)?;
    let attribute = |which| driver::attribute(device, which);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Info {
        ordinal,
        name: driver::name(device)?,
        capability: (major, minor),
        memory_bytes: driver::memory(device)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["cuda:", "cuda:x", "cuda:-1", "cuda0", "cuda:1:2", "cuda:99999999999999999999"]
        {
            let error = find(name).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("cuda:N"), "{error}");
        }
    }
}
