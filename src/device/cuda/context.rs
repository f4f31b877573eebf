//! One device that is open: its context, one stream, and the modules that were loaded.
#![allow(unsafe_code)]

use super::kernels::cubin;
use super::{Info, driver, find, modules};
use crate::device::Target;
use crate::error::{Error, Result};
use cudarc::driver::sys::{
    self, CUfunction_attribute_enum as FunctionAttribute, CUjit_option_enum,
};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of dynamic shared memory that every launch may have; for more a kernel must be told.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
/// Bytes of the log of the driver's compiler.
const LOG: usize = 16 << 10;

/// An open device. All work of the crate goes to its one stream, in order.
pub struct Cuda {
    info: Info,
    name: String,
    driver: String,
    architecture: String,
    stand_in: bool,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Bytes of shared memory that a block may have where the kernel was told.
    shared_limit: u32,
    loaded: Mutex<Loaded>,
    /// Pinned pages of the host that nobody uses: start and bytes.
    pages: Mutex<Vec<(NonNull<u8>, usize)>>,
}

/// How the kernels of a module came to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// As they were compiled for its architecture (`sm_90a`), before the crate was built.
    Cubin(String),
    /// The driver compiled their PTX; `refused` is its answer to the cubin, where there is one for this device.
    Ptx {
        /// Why not the cubin.
        refused: Option<String>,
    },
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Cubin(architecture) => write!(f, "cubin for {architecture}"),
            Route::Ptx { refused: None } => write!(f, "PTX, compiled by the driver"),
            Route::Ptx { refused: Some(why) } => {
                write!(f, "PTX, compiled by the driver, which refused the cubin: {why}")
            }
        }
    }
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, (sys::CUmodule, Route)>,
    kernels: HashMap<String, Function>,
}

/// A kernel of a module that is loaded, for as long as its device is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: the driver's handles may be used from any thread that has made the context its own, which
// every method here does before it calls anything else.
unsafe impl Send for Cuda {}
// SAFETY: as above; what changes is behind a mutex, and the driver's calls are safe from many threads.
unsafe impl Sync for Cuda {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Cuda {
    /// Opens the device of that name: `cuda:0`.
    ///
    /// # Errors
    /// As [`find`]; or the device is there and refuses, as one that others have for themselves.
    pub fn open(name: &str) -> Result<Cuda> {
        let (driver, info) = find(name)?;
        let name = format!("cuda:{}", info.ordinal);
        let refused = |problem: String| Error::device(&name, problem);
        let device = driver::device(info.ordinal).map_err(refused)?;
        let which =
            sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_limit = driver::attribute(device, which).map_err(refused)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is one of the driver's; released in `drop`.
        driver::check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })
            .map_err(refused)?;
        let mut cuda = Cuda {
            architecture: format!("sm_{}{}", info.capability.0, info.capability.1),
            name: name.clone(),
            driver: driver.version,
            stand_in: driver.stand_in,
            info,
            device,
            context,
            stream: std::ptr::null_mut(),
            shared_limit,
            loaded: Mutex::default(),
            pages: Mutex::default(),
        };
        cuda.enter()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is this thread's; the stream is destroyed in `drop`. One that blocks
        // could not be captured.
        let made = unsafe { sys::cuStreamCreate(&mut cuda.stream, flags) };
        cuda.check("a stream", made)?;
        Ok(cuda)
    }

    /// What the device is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// `cuda:0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Version of CUDA that the driver supports: `12.4`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// `sm_90`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Whether it is no GPU, but the stand-in of the crate's tests.
    pub fn is_stand_in(&self) -> bool {
        self.stand_in
    }

    /// What kernels are chosen by.
    pub fn target(&self) -> Target {
        let Info { capability, multiprocessors, .. } = self.info;
        Target { capability, multiprocessors: multiprocessors as usize }
    }

    /// Bytes of shared memory that a block may have.
    pub(super) fn shared_limit(&self) -> u32 {
        self.shared_limit
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context this thread's: before every call that needs one.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until `drop`.
        self.check("its context", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// The error of a call on this device, with what was called for.
    pub(super) fn check(&self, what: &str, result: sys::CUresult) -> Result<()> {
        driver::check(result).map_err(|e| Error::device(&self.name, format!("{what}: {e}")))
    }

    /// Waits until all that was given to the device is done.
    ///
    /// # Errors
    /// Something of it failed; then the device is of no more use to this process.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is this device's, until `drop`.
        self.check("a kernel or copy before this", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// The smallest block of pinned pages of at least so many bytes that nobody uses any more.
    pub(super) fn unused_pages(&self, bytes: usize) -> Option<(NonNull<u8>, usize)> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = pages.iter().enumerate().filter(|(_, (_, size))| *size >= bytes);
        let best = fits.min_by_key(|(_, (_, size))| *size).map(|(number, _)| number)?;
        Some(pages.swap_remove(best))
    }

    /// Takes pinned pages that the device is done with.
    pub(super) fn give_back_pages(&self, start: NonNull<u8>, bytes: usize) {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push((start, bytes));
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        // Handles are added whole: nothing is left halfway where a holder panicked.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kernel of one of [`modules`], for launches with so many bytes of dynamic shared memory. The
    /// module is loaded at its first use: the driver compiles its PTX for this device, and keeps the
    /// result for later processes.
    pub(super) fn function(&self, module: &str, kernel: &str, shared: u32) -> Result<Function> {
        self.enter()?;
        let mut loaded = self.loaded();
        let function = match loaded.kernels.get(kernel) {
            Some(&function) => function,
            None => {
                let handle = self.module(&mut loaded, module)?.0;
                let text =
                    CString::new(kernel).map_err(|e| Error::device(&self.name, e.to_string()))?;
                let (mut function, name) = (std::ptr::null_mut(), text.as_ptr());
                // SAFETY: the module is loaded; the name is that of `text`, and ends with a zero.
                let result = unsafe { sys::cuModuleGetFunction(&mut function, handle, name) };
                self.check(&format!("kernel {kernel} of {module}"), result)?;
                loaded.kernels.insert(kernel.to_owned(), Function(function));
                Function(function)
            }
        };
        if shared > SHARED_WITHOUT_ASKING {
            let which = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            // SAFETY: the function is of a module that is loaded.
            let result = unsafe { sys::cuFuncSetAttribute(function.0, which, bytes) };
            self.check(&format!("kernel {kernel}: {shared} bytes of shared memory"), result)?;
        }
        Ok(function)
    }

    /// How the kernels of one of [`modules`] come to this device. It is loaded, if it was not before.
    ///
    /// # Errors
    /// There is no such module, or it does not load here.
    pub fn route(&self, module: &str) -> Result<Route> {
        self.enter()?;
        Ok(self.module(&mut self.loaded(), module)?.1)
    }

    fn module(&self, loaded: &mut Loaded, name: &str) -> Result<(sys::CUmodule, Route)> {
        let Some(&(name, text)) = modules().iter().find(|(module, _)| *module == name) else {
            let problem = format!("this build has no module of kernels '{name}'");
            return Err(Error::device(&self.name, problem));
        };
        if let Some(module) = loaded.modules.get(name) {
            return Ok(module.clone());
        }
        // Code for sm_90a runs on compute capability 9.0 and nowhere else.
        let exact = format!("{}a", self.architecture);
        let mut refused = None;
        let module = match cubin(name, &exact).map(|image| self.load_cubin(image)) {
            Some(Ok(module)) => (module, Route::Cubin(exact)),
            answer => {
                if let Some(Err(why)) = answer {
                    refused = Some(why);
                }
                (self.load_ptx(name, text)?, Route::Ptx { refused })
            }
        };
        loaded.modules.insert(name, module.clone());
        Ok(module)
    }

    /// Or what the driver says against it: one that is older than what made the cubin does not take it.
    fn load_cubin(&self, image: &[u8]) -> std::result::Result<sys::CUmodule, String> {
        // Aligned for what is read in it.
        let mut words = vec![0u64; image.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..image.len()].copy_from_slice(image);
        let (mut module, none) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a whole image, which outlives the call; no options. Unloaded in `drop`.
        driver::check(unsafe {
            let image = words.as_ptr().cast();
            sys::cuModuleLoadDataEx(&mut module, image, 0, none, std::ptr::null_mut())
        })?;
        Ok(module)
    }

    fn load_ptx(&self, name: &str, text: &str) -> Result<sys::CUmodule> {
        let image = CString::new(text).map_err(|e| Error::device(&self.name, e.to_string()))?;
        let mut log = vec![0u8; LOG];
        // Values are of the width of an address, whatever they are.
        let mut options = [
            CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG)];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image ends with a zero; both options have their value, and the log has as many
        // bytes as is said and outlives the call. Unloaded in `drop`.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_end_matches('\0').trim();
        let target = text.lines().find_map(|line| line.strip_prefix(".target ")).unwrap_or("?");
        let what = format!(
            "the kernels of {name}.ptx (for {target} and later) do not load on {}{}{log}",
            self.architecture,
            if log.is_empty() { "" } else { ": " },
        );
        self.check(&what, result)?;
        Ok(module)
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.info)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What fails here has failed before, and was said then.
        if self.enter().is_err() {
            return;
        }
        // SAFETY: buffers, graphs and pinned memory hold an `Arc` of this device, so nothing uses the
        // stream and the modules any more once its work is done; each handle is given back once.
        unsafe {
            if !self.stream.is_null() {
                let _ = sys::cuStreamSynchronize(self.stream);
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            for (start, _) in pages.iter() {
                let _ = sys::cuMemFreeHost(start.as_ptr().cast());
            }
            for &(module, _) in self.loaded().modules.values() {
                let _ = sys::cuModuleUnload(module);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
