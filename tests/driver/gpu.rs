//! A device through cudarc, as the crate will use it, and what tests of kernels share.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DeviceRepr, DriverError, sys,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::Mutex;

/// One device with one stream that can be captured.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    kernels: Mutex<HashMap<String, CudaFunction>>,
}

impl Gpu {
    pub fn new() -> Gpu {
        let context = CudaContext::new(0).expect("the driver has a device");
        // SAFETY: all work of a test goes to one stream, so there is nothing that events would order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        Gpu { context, stream, kernels: Mutex::new(HashMap::new()) }
    }

    /// The kernel `name` of `kernels/ptx/<file>.ptx`, as it is committed.
    pub fn kernel(&self, file: &str, name: &str) -> CudaFunction {
        let mut kernels = self.kernels.lock().expect("no test panicked while it held it");
        let load = || {
            let path = crate::build::file(&format!("kernels/ptx/{file}.ptx"));
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let module = self.context.load_module(Ptx::from_src(text));
            let module = module.unwrap_or_else(|e| panic!("{file}.ptx: {e}"));
            module.load_function(name).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        kernels.entry(name.to_owned()).or_insert_with(load).clone()
    }

    /// A kernel of `tests/driver/planted.cu`, of which there is no PTX: its image says no more than name and parameters.
    pub fn planted(&self, name: &str, threads: u32, parameters: &[&str]) -> CudaFunction {
        crate::build::needs_the_stand_in();
        let image = image(name, threads, parameters);
        let module = self.context.load_module(Ptx::from_src(image)).expect("the image is good");
        module.load_function(name).expect("the image names it")
    }

    pub fn upload<T: DeviceRepr>(&self, data: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(data).expect("there is memory")
    }

    pub fn download<T: DeviceRepr + Clone + Default>(&self, data: &CudaSlice<T>) -> Vec<T> {
        self.stream.clone_dtoh(data).expect("nothing failed before")
    }

    /// Memory that the stand-in fills with NaN.
    pub fn unset<T: DeviceRepr>(&self, len: usize) -> CudaSlice<T> {
        // SAFETY: only kernels read it, and reading what was not written is what a test would find.
        unsafe { self.stream.alloc(len) }.expect("there is memory")
    }
}

/// PTX of a kernel that does nothing: parameters as `.u64`, `.u32`, ..., `map` for a tensor map.
pub fn image(name: &str, threads: u32, parameters: &[&str]) -> String {
    let parameters: Vec<String> = parameters
        .iter()
        .enumerate()
        .map(|(i, kind)| match *kind {
            "map" => format!(".param .align 64 .b8 {name}_param_{i}[128]"),
            kind => format!(".param {kind} {name}_param_{i}"),
        })
        .collect();
    let parameters = parameters.join(", ");
    format!(
        ".version 8.0\n.target sm_75\n.address_size 64\n\
         .visible .entry {name}({parameters})\n.maxntid {threads}, 1, 1\n{{\n ret;\n}}\n"
    )
}

/// The address of device memory, as kernels take it.
pub fn at<T>(data: &CudaSlice<T>) -> u64 {
    use cudarc::driver::DevicePtr;
    let stream = data.stream();
    data.device_ptr(stream).0
}

/// No memory.
pub const NULL: u64 = 0;

/// Launches a kernel: grid and block extents, dynamic shared bytes, then its arguments in order.
macro_rules! launch {
    ($gpu:expr, $kernel:expr, $grid:expr, $block:expr, $shared:expr $(, $argument:expr)* $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        let (gpu, kernel) = (&$gpu, &$kernel);
        let mut launch = gpu.stream.launch_builder(kernel);
        // Arguments outlive the call, and have the type the kernel's parameter has.
        $crate::launch!(@arguments launch, gpu, $grid, $block, $shared; $($argument),*)
    }};
    (@arguments $launch:ident, $gpu:ident, $grid:expr, $block:expr, $shared:expr; $($argument:expr),*) => {{
        $(let $launch = &mut *$launch.arg($crate::gpu::leak($argument));)*
        let config = cudarc::driver::LaunchConfig {
            grid_dim: $crate::gpu::extents($grid),
            block_dim: $crate::gpu::extents($block),
            shared_mem_bytes: $shared,
        };
        // SAFETY: tests give arguments of the types that the kernel's source states; the stand-in
        // compares their sizes with those in the image and catches accesses outside of memory.
        let result = unsafe { $launch.launch(config) };
        result.map(|_| ())
    }};
}
pub(crate) use launch;

/// The same with clusters, which cudarc has no wrapper for. `arguments` are addresses of the values.
pub fn launch_clusters(
    gpu: &Gpu,
    kernel: &CudaFunction,
    [grid, cluster, block]: [(u32, u32, u32); 3],
    shared: u32,
    arguments: &[*const std::ffi::c_void],
) -> sys::CUresult {
    let mut arguments: Vec<_> = arguments.iter().map(|argument| argument.cast_mut()).collect();
    let (x, y, z) = cluster;
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        },
    };
    let configuration = sys::CUlaunchConfig {
        gridDimX: grid.0,
        gridDimY: grid.1,
        gridDimZ: grid.2,
        blockDimX: block.0,
        blockDimY: block.1,
        blockDimZ: block.2,
        sharedMemBytes: shared,
        hStream: gpu.stream.cu_stream(),
        attrs: &mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as for launches without clusters.
    unsafe {
        let (function, extra) = (kernel.cu_function(), std::ptr::null_mut());
        sys::cuLaunchKernelEx(&configuration, function, arguments.as_mut_ptr(), extra)
    }
}

/// An argument that outlives the launch; a test's few bytes.
pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Extents of a grid or a block.
pub trait Extents {
    fn extents(self) -> (u32, u32, u32);
}
impl Extents for u32 {
    fn extents(self) -> (u32, u32, u32) {
        (self, 1, 1)
    }
}
impl Extents for (u32, u32, u32) {
    fn extents(self) -> (u32, u32, u32) {
        self
    }
}
pub fn extents(of: impl Extents) -> (u32, u32, u32) {
    of.extents()
}

/// The error that a call gave.
pub fn error<T>(result: Result<T, DriverError>) -> sys::CUresult {
    match result {
        Ok(_) => panic!("the call went well"),
        Err(error) => error.0,
    }
}

/// Prints the bits of a result, which must be the same in every order of threads.
pub fn digest<T: bytemuck::NoUninit>(what: &str, values: &[T]) {
    let mut hasher = DefaultHasher::new();
    bytemuck::cast_slice::<T, u8>(values).hash(&mut hasher);
    // The runner may have begun the line.
    println!("\ndigest {what} {:016x}", hasher.finish());
}
