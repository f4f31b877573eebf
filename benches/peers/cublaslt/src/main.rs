//! Products by cuBLASLt, through cudarc: a peer of `twoclocks bench gemm --device cuda:0`.
//!
//!     peer-cublaslt [--seconds 0.3] [MxNxK[:nt|:tn] ...]
//!
//! The library is opened at run time; where it is missing the program says so and ends with status 3. Row-major C =
//! A B as everywhere here: cuBLASLt, which counts columns first, is asked for C^T = B^T A^T. Of the 8 algorithms that
//! its heuristic names, with 64 MiB of workspace, the fastest one counts. `bf16`: operands of bf16, sums in f32, C in f32
//! (mode `d_f32`, as ours) and in bf16 (`d_bf16`); `f32`: IEEE f32, no TF32. Sixteen elements are checked before
//! anything is timed. A sample is one CUDA graph of as many products as take 2 ms, by events.

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys as driver;
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use std::error::Error;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SIZES: &str = "1024x1024x1024 2048x2048x2048 4096x4096x4096 8192x8192x8192 128x512x784 128x512x512 128x10x512 \
    784x512x128:tn 512x512x128:tn 512x10x128:tn 128x512x10:nt";
const WORKSPACE: usize = 64 << 20;
const ALGORITHMS: usize = 8;
const SAMPLE: f64 = 2e-3;

fn main() {
    match run() {
        Ok(()) => (),
        Err(error) => {
            eprintln!("cannot measure: {error}");
            std::process::exit(3);
        }
    }
}

fn run() -> Result<()> {
    let mut seconds = 0.3;
    let mut sizes = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => seconds = words.next().ok_or("--seconds takes a number")?.parse()?,
            size => sizes.push(size.to_owned()),
        }
    }
    if sizes.is_empty() {
        sizes = SIZES.split_whitespace().map(str::to_owned).collect();
    }
    // SAFETY: opens the libraries, which is what their initialisers are for.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("there is no libcuda on the loader's path".into());
    }
    // SAFETY: as above.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no libcublasLt on the loader's path".into());
    }
    let context = CudaContext::new(0)?;
    // SAFETY: all work goes to one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let handle = result::create_handle()?;
    let workspace = stream.alloc_zeros::<u8>(WORKSPACE)?;
    let bench = Bench { stream, handle, workspace, budget: Duration::from_secs_f64(seconds) };
    // SAFETY: asks for a number.
    let version = unsafe { sys::cublasLtGetVersion() };
    println!(
        "{{\"event\":\"about\",\"peer\":\"cublaslt\",\"version\":\"{version}\",\"name\":\"{}\"}}",
        context.name()?
    );
    for size in &sizes {
        for (precision, mode) in [("bf16", "d_f32"), ("bf16", "d_bf16"), ("f32", "d_f32")] {
            let work = format!("gemm_{}", size.replace(':', "_"));
            let row = match bench.product(size, precision, mode) {
                Ok(mut times) => {
                    times.sort_by(f64::total_cmp);
                    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize] * 1e3;
                    let (p05, median, p95) = (at(0.05), at(0.5), at(0.95));
                    let n = times.len();
                    format!(
                        "\"event\":\"bench\",\"median_ms\":{median},\"p05_ms\":{p05},\"p95_ms\":{p95},\"n\":{n}"
                    )
                }
                Err(error) => {
                    let why = error.to_string().replace(['"', '\\', '\n'], " ");
                    format!("\"event\":\"failed\",\"why\":\"{why}\"")
                }
            };
            println!(
                "{{{row},\"peer\":\"cublaslt\",\"work\":\"{work}\",\"precision\":\"{precision}\",\"mode\":\"{mode}\"}}"
            );
        }
    }
    Ok(())
}

struct Bench {
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    budget: Duration,
}

/// A product as cuBLASLt is asked for it.
struct Product {
    description: sys::cublasLtMatmulDesc_t,
    /// Of B, A and C, in its order.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    addresses: [u64; 3],
}

fn bf16(x: f32) -> u16 {
    // The values here are multiples of 1/64 below 1: exact.
    (x.to_bits() >> 16) as u16
}

fn of_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Small multiples of 1/64, exact in bf16.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % 127) as f32 / 64.0 - 63.0 / 64.0
    };
    (0..len).map(|_| next()).collect()
}

impl Bench {
    fn product(&self, size: &str, precision: &str, mode: &str) -> Result<Vec<f64>> {
        let (extents, layout) = size.split_once(':').unwrap_or((size, "nn"));
        let extents: Vec<usize> = extents.split('x').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [m, n, k] = extents[..] else { return Err(format!("'{size}' is not MxNxK").into()) };
        let (a_transposed, b_transposed) = match layout {
            "nn" => (false, false),
            "nt" => (false, true),
            "tn" => (true, false),
            other => return Err(format!("'{other}' is not nn, nt or tn").into()),
        };
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let narrow = precision == "bf16";
        let upload = |values: &[f32]| -> Result<CudaSlice<u8>> {
            let bytes: Vec<u8> = match narrow {
                true => values.iter().flat_map(|&x| bf16(x).to_ne_bytes()).collect(),
                false => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            };
            Ok(self.stream.clone_htod(&bytes)?)
        };
        let (device_a, device_b) = (upload(&a)?, upload(&b)?);
        let of_c = if mode == "d_bf16" { 2 } else { 4 };
        let mut device_c = self.stream.alloc_zeros::<u8>(m * n * of_c)?;
        let element = if narrow { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_32F };
        let element_c = if of_c == 2 { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_32F };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
        let set = |which, transposed: bool| -> Result<()> {
            let operation =
                if transposed { sys_operation::TRANSPOSE } else { sys_operation::NONE };
            // SAFETY: the attribute is a number of four bytes.
            unsafe {
                result::set_matmul_desc_attribute(description, which, (&raw const operation).cast(), 4)?;
            }
            Ok(())
        };
        set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, b_transposed)?;
        set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, a_transposed)?;
        // Row-major [rows][columns] is column-major [columns x rows].
        let matrix = |element, rows: usize, columns: usize| {
            result::create_matrix_layout(element, columns as u64, rows as u64, columns as i64)
        };
        let layouts = [
            if b_transposed { matrix(element, n, k)? } else { matrix(element, k, n)? },
            if a_transposed { matrix(element, k, m)? } else { matrix(element, m, k)? },
            matrix(element_c, m, n)?,
        ];
        let addresses = [
            device_b.device_ptr(&self.stream).0,
            device_a.device_ptr(&self.stream).0,
            device_c.device_ptr_mut(&self.stream).0,
        ];
        let product = Product { description, layouts, addresses };
        let times = self.fastest(&product, || {
            let c: Vec<u8> = self.stream.clone_dtoh(&device_c)?;
            let value = |index: usize| match of_c {
                2 => of_bf16(u16::from_ne_bytes([c[2 * index], c[2 * index + 1]])),
                _ => f32::from_ne_bytes([c[4 * index], c[4 * index + 1], c[4 * index + 2], c[4 * index + 3]]),
            };
            for number in 0..16 {
                let (row, column) = (number * 7919 % m, number * 104_729 % n);
                let at = |i: usize| {
                    let x = if a_transposed { a[i * m + row] } else { a[row * k + i] };
                    let y = if b_transposed { b[column * k + i] } else { b[i * n + column] };
                    f64::from(x) * f64::from(y)
                };
                let want: f64 = (0..k).map(at).sum();
                let got = f64::from(value(row * n + column));
                let bound = if of_c == 2 { 0.005 * want.abs() + 0.02 } else { 1e-4 * (k as f64).sqrt() };
                // Not `>`: NaN must fail.
                if !((got - want).abs() <= bound) {
                    return Err(format!("C[{row}][{column}] is {got}, not {want}").into());
                }
            }
            Ok(())
        });
        // SAFETY: made above, used no more.
        unsafe {
            for layout in product.layouts {
                result::destroy_matrix_layout(layout)?;
            }
            result::destroy_matmul_desc(product.description)?;
        }
        times
    }

    /// Seconds of a product by the fastest algorithm that the heuristic names, once `check` found its result right.
    fn fastest(&self, product: &Product, check: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
        let [b, a, c] = product.layouts;
        let preference = result::create_matmul_pref()?;
        let bytes = WORKSPACE;
        // SAFETY: an array of plain numbers, which the library fills; the preference is alive.
        let (found, count) = unsafe {
            let which = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, which, (&raw const bytes).cast(), size_of::<usize>())?;
            let mut found: [sys::cublasLtMatmulHeuristicResult_t; ALGORITHMS] = std::mem::zeroed();
            let mut count = 0;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product.description,
                b,
                a,
                c,
                c,
                preference,
                ALGORITHMS as i32,
                found.as_mut_ptr(),
                &mut count,
            )
            .result()?;
            result::destroy_matmul_pref(preference)?;
            (found, count as usize)
        };
        let mut best: Option<(f64, &sys::cublasLtMatmulAlgo_t)> = None;
        for found in &found[..count] {
            if self.give(product, &found.algo).and_then(|()| Ok(self.stream.synchronize()?)).is_err() {
                continue;
            }
            check()?;
            let graph = self.graph(product, &found.algo, 20)?;
            let time = (0..3).map(|_| self.time(&graph)).collect::<Result<Vec<f64>>>()?;
            let time = time.into_iter().fold(f64::INFINITY, f64::min) / 20.0;
            if best.is_none_or(|(least, _)| time < least) {
                best = Some((time, &found.algo));
            }
        }
        let (time, algorithm) = best.ok_or("cuBLASLt names no algorithm that runs")?;
        let repeats = ((SAMPLE / time).ceil() as usize).clamp(1, 1000);
        let graph = self.graph(product, algorithm, repeats)?;
        let (mut times, began) = (Vec::new(), Instant::now());
        self.time(&graph)?;
        while times.len() < 5 || began.elapsed() < self.budget {
            times.push(self.time(&graph)? / repeats as f64);
        }
        Ok(times)
    }

    fn give(&self, product: &Product, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<()> {
        let [b, a, c] = product.layouts;
        let [at_b, at_a, at_c] = product.addresses;
        let (alpha, beta) = (1f32, 0f32);
        // SAFETY: the layouts are those of the memory, which is alive, and so is the workspace.
        unsafe {
            result::matmul(
                self.handle,
                product.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at_b as *const c_void,
                b,
                at_a as *const c_void,
                a,
                at_c as *const c_void,
                c,
                at_c as *mut c_void,
                c,
                algorithm,
                self.workspace.device_ptr(&self.stream).0 as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )?;
        }
        Ok(())
    }

    fn graph(&self, product: &Product, algorithm: &sys::cublasLtMatmulAlgo_t, repeats: usize) -> Result<CudaGraph> {
        self.stream.begin_capture(driver::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let given = (0..repeats).try_for_each(|_| self.give(product, algorithm));
        let flags = driver::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags)?;
        given?;
        graph.ok_or_else(|| "nothing was captured".into())
    }

    /// Seconds of a launch.
    fn time(&self, graph: &CudaGraph) -> Result<f64> {
        let flags = Some(driver::CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.stream.record_event(flags)?;
        graph.launch()?;
        let stop = self.stream.record_event(flags)?;
        stop.synchronize()?;
        Ok(f64::from(start.elapsed_ms(&stop)?) * 1e-3)
    }
}

/// `cublasOperation_t`.
mod sys_operation {
    pub const NONE: i32 = 0;
    pub const TRANSPOSE: i32 = 1;
}
