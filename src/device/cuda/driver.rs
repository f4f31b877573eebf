//! The driver's interface as the crate uses it. The library is opened at run time, and asked for
//! before anything is called: cudarc panics where it, or one of its functions, is missing.
#![allow(unsafe_code)]

use cudarc::driver::sys;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// All functions that the crate calls.
const FUNCTIONS: [&str; 38] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamGetCaptureInfo_v2",
    "cuStreamUpdateCaptureDependencies",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// Exported by the stand-in of the crate's tests, and by no driver.
const STAND_IN: &[u8] = b"standin_last_report\0";

/// The oldest version of the interface, as the driver counts: CUDA 12.0.
const OLDEST: i32 = 12000;

/// What is there of the driver, once it is known to be usable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    /// As `cuDriverGetVersion` has it: 1000 times the major version and 10 times the minor one.
    pub(super) version: i32,
    /// Whether it is the stand-in of the crate's tests.
    pub(super) stand_in: bool,
}

/// The driver, initialised once in a process; or why there is none.
pub(super) fn driver() -> Result<Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(open).clone()
}

fn open() -> Result<Driver, String> {
    // SAFETY: opens the library, whose initialisers are those of the machine's driver.
    if !unsafe { sys::is_culib_present() } {
        return Err("no driver: there is no libcuda on the loader's path".to_owned());
    }
    // SAFETY: it is present.
    let library = unsafe { sys::culib() };
    let has = |name: &[u8]| {
        // SAFETY: only asks whether the name is there; it is not called as this type.
        unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_ok()
    };
    let missing = FUNCTIONS.iter().find(|name| !has(format!("{name}\0").as_bytes()));
    if let Some(name) = missing {
        return Err(format!("the driver has no function {name}: it is older than CUDA 12.0"));
    }
    let mut version = 0;
    // SAFETY: may be called before `cuInit`; writes one integer.
    check(unsafe { sys::cuDriverGetVersion(&mut version) })?;
    if version < OLDEST {
        let found = version_name(version);
        return Err(format!("the driver is of CUDA {found}, the kernels need 12.0 or later"));
    }
    // SAFETY: no argument beyond the flags, which must be 0.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            Err("the driver is there and finds no GPU".to_owned())
        }
        result => check(result),
    }?;
    Ok(Driver { version, stand_in: has(STAND_IN) })
}

/// `12.4`.
pub(super) fn version_name(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The error of a call, with the driver's own words for it.
pub(super) fn check(result: sys::CUresult) -> Result<(), String> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: writes the address of a string that stays, or none.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) };
    if known != sys::CUresult::CUDA_SUCCESS || text.is_null() {
        return Err(format!("{result:?}"));
    }
    // SAFETY: the driver's string ends with a zero and stays for the life of the process.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Err(format!("{text} ({result:?})"))
}

/// Number of devices.
pub(super) fn count() -> Result<usize, String> {
    let mut count = 0;
    // SAFETY: writes one integer.
    check(unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's number of a device.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice, String> {
    let mut device = 0;
    let ordinal = c_int::try_from(ordinal).map_err(|_| format!("there is no device {ordinal}"))?;
    // SAFETY: writes one integer.
    check(unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    Ok(device)
}

/// An attribute of a device, none of which is negative.
pub(super) fn attribute(
    device: sys::CUdevice,
    which: sys::CUdevice_attribute,
) -> Result<u32, String> {
    let mut value = 0;
    // SAFETY: writes one integer.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// What a device calls itself.
pub(super) fn name(device: sys::CUdevice) -> Result<String, String> {
    let mut text = [0 as c_char; 256];
    // SAFETY: writes at most so many bytes, with a zero at the end.
    check(unsafe { sys::cuDeviceGetName(text.as_mut_ptr(), text.len() as c_int, device) })?;
    let bytes = text.map(|c| c.to_ne_bytes()[0]);
    let text = CStr::from_bytes_until_nul(&bytes).map_err(|e| e.to_string())?;
    Ok(text.to_string_lossy().into_owned())
}

/// Bytes of a device's memory.
pub(super) fn memory(device: sys::CUdevice) -> Result<u64, String> {
    let mut bytes = 0;
    // SAFETY: writes one number.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, device) })?;
    Ok(bytes as u64)
}
