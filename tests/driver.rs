//! Kernels of the GPU without one: on the stand-in for libcuda in `tests/driver`, through cudarc and
//! with the PTX that is committed. `tests/driver/README.md` says how.
#![cfg(target_os = "linux")]
// A launch is unsafe, as cudarc knows nothing of what a kernel does.
#![allow(unsafe_code)]

mod common;

#[path = "driver/build.rs"]
mod build;
#[path = "driver/cluster.rs"]
mod cluster;
#[cfg(feature = "cuda")]
#[path = "driver/cross_entropy.rs"]
mod cross_entropy;
#[cfg(feature = "cuda")]
#[path = "driver/device.rs"]
mod device;
#[path = "driver/elementwise.rs"]
mod elementwise;
#[path = "driver/gemm.rs"]
mod gemm;
#[path = "driver/gpu.rs"]
mod gpu;
#[path = "driver/graphs.rs"]
mod graphs;
#[path = "driver/hopper.rs"]
mod hopper;
#[cfg(feature = "cuda")]
#[path = "driver/index.rs"]
mod index;
#[cfg(feature = "cuda")]
#[path = "driver/operations.rs"]
mod operations;
#[cfg(feature = "cuda")]
#[path = "driver/products.rs"]
mod products;
#[cfg(feature = "cuda")]
#[path = "driver/replay.rs"]
mod replay;
#[cfg(feature = "cuda")]
#[path = "driver/rows.rs"]
mod rows;
#[cfg(feature = "cuda")]
#[path = "driver/tape.rs"]
mod tape;
#[path = "driver/tool.rs"]
mod tool;
#[cfg(feature = "cuda")]
#[path = "driver/training.rs"]
mod training;
#[path = "driver/update.rs"]
mod update;

pub(crate) use gpu::launch;

/// A test that runs on the stand-in, once for each order of threads; all give the same digests.
macro_rules! on_stand_in {
    ($(#[$doc:meta])* fn $name:ident() $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            let module = module_path!().split_once("::").map_or("", |(_, module)| module);
            let name = format!("{module}::{}", stringify!($name));
            $crate::build::on_stand_in(&name, &$crate::build::ORDERS, || $body);
        }
    };
}
pub(crate) use on_stand_in;

/// The same where the stand-in is a GPU of compute capability 9.0.
macro_rules! on_hopper {
    ($(#[$doc:meta])* fn $name:ident() $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            let module = module_path!().split_once("::").map_or("", |(_, module)| module);
            let name = format!("{module}::{}", stringify!($name));
            let (orders, hopper) = (&$crate::build::ORDERS, &$crate::build::HOPPER);
            $crate::build::on_stand_in_with(&name, orders, hopper, || $body);
        }
    };
}
pub(crate) use on_hopper;
