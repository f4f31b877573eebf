//! Kernels of the GPU without one: on the stand-in for libcuda in `tests/driver`, through cudarc and
//! with the PTX that is committed. `tests/driver/README.md` says how.
#![cfg(target_os = "linux")]
// A launch is unsafe, as cudarc knows nothing of what a kernel does.
#![allow(unsafe_code)]

mod common;

#[path = "driver/build.rs"]
mod build;
#[cfg(feature = "cuda")]
#[path = "driver/device.rs"]
mod device;
#[path = "driver/elementwise.rs"]
mod elementwise;
#[path = "driver/gemm.rs"]
mod gemm;
#[path = "driver/gpu.rs"]
mod gpu;
#[cfg(feature = "cuda")]
#[path = "driver/products.rs"]
mod products;
#[path = "driver/rows.rs"]
mod rows;
#[cfg(feature = "cuda")]
#[path = "driver/tape.rs"]
mod tape;
#[path = "driver/tool.rs"]
mod tool;
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
