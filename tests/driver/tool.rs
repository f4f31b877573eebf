//! The stand-in itself: what it offers, what it refuses, and what it catches.

use crate::build::{self, ORDERS};
use crate::gpu::{Gpu, at, digest, error, image, launch};
use crate::on_stand_in;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

on_stand_in! {
    fn says_what_it_is() {
        // SAFETY: only loads the library and asks.
        assert!(unsafe { sys::is_culib_present() });
        assert_eq!(CudaContext::device_count().expect("it has one"), 1);
        assert_eq!(error(CudaContext::new(1)), CUresult::CUDA_ERROR_INVALID_DEVICE);
        let gpu = Gpu::new();
        assert_eq!(gpu.context.name().expect("a name"), "twoclocks stand-in (no GPU)");
        assert_eq!(gpu.context.compute_capability().expect("it says"), (8, 0));
        assert_eq!(gpu.context.total_mem().expect("it says"), 4 << 30);
        assert!(gpu.context.has_async_alloc());
    }
}

on_stand_in! {
    fn copies() {
        let gpu = Gpu::new();
        let data: Vec<u32> = (0..1000).collect();
        let mut a = gpu.upload(&data);
        assert_eq!(gpu.download(&a), data);
        let fresh = gpu.unset::<f32>(77);
        assert!(gpu.download(&fresh).iter().all(|x| x.is_nan()), "new memory is NaN");
        let b = gpu.stream.clone_dtod(&a).expect("a copy");
        gpu.stream.memset_zeros(&mut a).expect("it is set");
        assert_eq!(gpu.download(&a), vec![0; 1000]);
        assert_eq!(gpu.download(&b), data);
        // SAFETY: filled before it is read.
        let mut pinned = unsafe { gpu.context.alloc_pinned::<u32>(1000) }.expect("host memory");
        pinned.as_mut_slice().expect("nothing runs").copy_from_slice(&data);
        gpu.stream.memcpy_htod(&pinned, &mut a).expect("a copy");
        assert_eq!(gpu.download(&a), data);
        let (free, total) = gpu.context.mem_get_info().expect("it says");
        // Three of 4000 bytes and one of 308.
        assert_eq!(total - free, 2 * 4000 + 77 * 4);
        // SAFETY: never read.
        let large = unsafe { gpu.stream.alloc::<u8>(5 << 30) };
        assert_eq!(error(large), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
}

on_stand_in! {
    fn images() {
        let gpu = Gpu::new();
        let load = |text: &str| gpu.context.load_module(Ptx::from_src(text));
        assert_eq!(error(load("nonsense")), CUresult::CUDA_ERROR_INVALID_PTX);
        let good = image("planted_barrier", 256, &[".u64", ".u64"]);
        let module = load(&good).expect("it is good");
        assert!(module.load_function("planted_barrier").is_ok());
        let missing = module.load_function("planted_missing_barrier");
        assert_eq!(error(missing), CUresult::CUDA_ERROR_NOT_FOUND);
        let newer = good.replace(".version 8.0", ".version 8.1");
        assert_eq!(error(load(&newer)), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        let hopper = good.replace("sm_75", "sm_90a");
        assert_eq!(error(load(&hopper)), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        // An image that is older than its source is refused, not run.
        let older = image("planted_barrier", 256, &[".u64", ".u32"]);
        assert_eq!(error(load(&older)), CUresult::CUDA_ERROR_INVALID_IMAGE);
        let narrower = image("planted_barrier", 128, &[".u64", ".u64"]);
        assert_eq!(error(load(&narrower)), CUresult::CUDA_ERROR_INVALID_IMAGE);

        // The compiler's log, which cudarc has no wrapper for.
        let mut log = [0u8; 200];
        let mut options = [
            sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast(), log.len() as *mut std::ffi::c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image ends in zero, and the two options have the types that they ask for.
        let result = unsafe {
            let text = c"nonsense".as_ptr().cast();
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut module, text, 2, options, values)
        };
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX);
        let said = String::from_utf8_lossy(&log[..values[1] as usize]).into_owned();
        assert!(said.contains("Missing .version"), "{said}");
    }
}

/// What `scripts/kernels` noted when it made the PTX.
pub fn manifest() -> serde_json::Value {
    let path = build::file("kernels/ptx/manifest.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("it is JSON")
}

/// Sources that changed after their PTX was made; `scripts/kernels --check` compiles them anew.
#[test]
fn the_ptx_is_of_these_sources() {
    if build::skipped("tool::the_ptx_is_of_these_sources") {
        return;
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let manifest = manifest();
    let check = |path: String, noted: &serde_json::Value| {
        let data = std::fs::read(folder.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let same = noted["crc32"].as_u64() == Some(u64::from(crc32fast::hash(&data)));
        assert!(same, "{path} changed after the PTX was made: run scripts/kernels");
    };
    for (name, noted) in manifest["headers"].as_object().expect("an object") {
        check(format!("common/{name}"), noted);
    }
    let mut cubins = 0;
    let kernels = manifest["kernels"].as_object().expect("an object");
    for (name, noted) in kernels {
        check(format!("{name}.cu"), &noted["source"]);
        check(format!("ptx/{name}.ptx"), &noted["ptx"]);
        for (architecture, noted) in noted["cubins"].as_object().into_iter().flatten() {
            check(format!("ptx/{name}.{architecture}.cubin"), noted);
            cubins += 1;
        }
    }
    let count = |folder: &std::path::Path, ending: &str| {
        let files = std::fs::read_dir(folder).expect("it is there");
        files
            .filter(|file| {
                let path = file.as_ref().expect("it can be read").path();
                path.extension().is_some_and(|it| it == ending)
            })
            .count()
    };
    assert_eq!(kernels.len(), count(&folder, "cu"), "every source has its PTX");
    assert_eq!(kernels.len(), count(&folder.join("ptx"), "ptx"), "every PTX has its source");
    assert_eq!(cubins, count(&folder.join("ptx"), "cubin"), "every cubin is noted");
    let headers = manifest["headers"].as_object().expect("an object").len();
    assert_eq!(headers, count(&folder.join("common"), "cuh"), "every header is noted");
}

on_stand_in! {
    fn every_kernel_loads() {
        let gpu = Gpu::new();
        for (file, noted) in manifest()["kernels"].as_object().expect("an object") {
            // Those for later GPUs than this one: see `cluster`.
            if noted["target"].as_str().expect("a name") > "compute_80" {
                continue;
            }
            for name in noted["entries"].as_array().expect("an array") {
                let kernel = gpu.kernel(file, name.as_str().expect("a name"));
                let most = kernel.get_attribute(sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
                let most = most.expect("it says");
                assert!(most >= 128 && most % 32 == 0, "{name}: {most} threads");
            }
        }
    }
}

on_stand_in! {
    fn launches_that_a_driver_refuses() {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_shared_past_end", 64, &[".u64", ".u32"]);
        let y = gpu.unset::<f32>(64);
        let go = |grid: (u32, u32, u32), block: u32, shared: u32| {
            launch!(gpu, kernel, grid, block, shared, at(&y), 0u32)
        };
        let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(error(go((0, 1, 1), 64, 256)), refused);
        assert_eq!(error(go((1, 65536, 1), 64, 256)), refused);
        assert_eq!(error(go((1, 1, 1), 65, 256)), refused);
        assert_eq!(error(go((1, 1, 1), 2048, 256)), refused);
        assert_eq!(error(go((1, 1, 1), 64, (48 << 10) + 1)), refused);
        go((1, 1, 1), 64, 48 << 10).expect("48 KiB need no permission");
        let limit = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(error(kernel.set_attribute(limit, (163 << 10) + 1)), refused);
        kernel.set_attribute(limit, 163 << 10).expect("sm_80 has that");
        launch!(gpu, kernel, (1, 1, 1), 64, 163 << 10, at(&y), 0u32).expect("now it may");
        assert_eq!(gpu.download(&y), vec![1.0; 64]);
    }
}

on_stand_in! {
    fn warps_and_barriers() {
        let gpu = Gpu::new();
        let x: Vec<u32> = (0..256).map(|i| i * 7 + i / 3).collect();
        let (dx, y) = (gpu.upload(&x), gpu.unset::<u32>(256 * 8));
        let kernel = gpu.planted("tool_warp", 64, &[".u64", ".u64"]);
        launch!(gpu, kernel, 4, 64, 0, at(&dx), at(&y)).expect("it runs");
        let got = gpu.download(&y);
        digest("warp", &got);
        for i in 0..256 {
            let (first, lane) = (i / 32 * 32, i % 32);
            let votes = (0..32).fold(0, |votes, l| votes | (x[first + l] & 1) << l);
            let want = [
                x[first + 3],
                x[first + (lane ^ 16)],
                x[if lane + 4 < 32 { i + 4 } else { i }],
                x[if lane % 8 > 0 { i - 1 } else { i }],
                votes,
                3,
                x[first + if lane < 16 { 15 } else { 16 }],
                x[i / 64 * 64..][..64].iter().sum(),
            ];
            assert_eq!(got[i * 8..][..8], want, "thread {i}");
        }
        let y = gpu.unset::<u32>(32);
        let kernel = gpu.planted("tool_named_barriers", 64, &[".u64", ".u32"]);
        launch!(gpu, kernel, 1, 64, 0, at(&y), 5u32).expect("it runs");
        let want: Vec<u32> = (0..32).map(|lane| 10 * (31 - lane)).collect();
        assert_eq!(gpu.download(&y), want);
    }
}

on_stand_in! {
    fn short_types_round_as_the_hardware_does() {
        let gpu = Gpu::new();
        let n = 1 << 16;
        // All bf16 with a lower half that is below, at or above the middle, and values around every f16.
        let x: Vec<f32> = (0..n as u32).map(|i| {
            let low = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff][i as usize % 6];
            if i % 7 < 4 {
                return f32::from_bits(i << 16 | low);
            }
            f32::from_bits(half::f16::from_bits(i as u16).to_f32().to_bits().wrapping_add(low >> 4))
        }).collect();
        let (from, short) = (gpu.upload(&x), [gpu.unset::<u16>(n), gpu.unset::<u16>(n)]);
        let wide = [gpu.unset::<f32>(n), gpu.unset::<f32>(n)];
        let kernel = gpu.planted("tool_short_types", 256, &[".u64", ".u64", ".u64", ".u64", ".u64", ".u32"]);
        let [as_bf16, as_half] = &short;
        let [from_bf16, from_half] = &wide;
        launch!(
            gpu, kernel, 256, 256, 0, at(&from), at(as_bf16), at(as_half), at(from_bf16), at(from_half), n as u32
        ).expect("it runs");
        let (short, wide) = (short.map(|x| gpu.download(&x)), wide.map(|x| gpu.download(&x)));
        for i in 0..n {
            let got = half::bf16::from_bits(short[0][i]);
            let want = half::bf16::from_f32(x[i]);
            assert!(got == want || got.is_nan() && want.is_nan(), "{:e} as bf16", x[i]);
            let (got, want) = (half::f16::from_bits(short[1][i]), half::f16::from_f32(x[i]));
            assert!(got == want || got.is_nan() && want.is_nan(), "{:e} as f16", x[i]);
            let (got, want) = (wide[0][i], half::bf16::from_bits(i as u16).to_f32());
            assert!(got == want || got.is_nan() && want.is_nan(), "bf16 {i:x}");
            let (got, want) = (wide[1][i], half::f16::from_bits(i as u16).to_f32());
            assert!(got == want || got.is_nan() && want.is_nan(), "f16 {i:x}");
        }
    }
}

on_stand_in! {
    /// Calls that cudarc has no wrapper for.
    fn the_interface_below() {
        let gpu = Gpu::new();
        let text = std::ffi::CString::new(image("planted_write_past_end", 64, &[".u64", ".u32"])).expect("no zeros");
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let y = gpu.unset::<f32>(64);
        let stream = gpu.stream.cu_stream();
        // SAFETY: handles come from the calls before, and every pointer is to a variable of this function
        // of the type that the driver's interface states.
        unsafe {
            sys::cuModuleLoadData(&mut module, text.as_ptr().cast()).result().expect("it loads");
            let name = c"planted_write_past_end";
            sys::cuModuleGetFunction(&mut function, module, name.as_ptr()).result().expect("it is there");
            let (mut address, mut last) = (at(&y), 31u32);
            let mut arguments = [(&raw mut address).cast(), (&raw mut last).cast::<std::ffi::c_void>()];
            let mut config: sys::CUlaunchConfig = std::mem::zeroed();
            (config.gridDimX, config.gridDimY, config.gridDimZ) = (1, 1, 1);
            (config.blockDimX, config.blockDimY, config.blockDimZ) = (64, 1, 1);
            config.hStream = stream;
            let null = std::ptr::null_mut();
            sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), null).result().expect("it runs");
            let got = gpu.download(&y);
            assert!(got[..32].iter().all(|&y| y == 1.0) && got[32..].iter().all(|y| y.is_nan()));
            // Clusters are not what this can run; it says so.
            let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            (attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z) = (2, 1, 1);
            (config.attrs, config.numAttrs) = (&mut attribute, 1);
            let refused = sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), null);
            assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);

            // Arguments in one buffer, which has to be large enough: an address, then a number.
            let mut buffer = [0u8; 12];
            buffer[..8].copy_from_slice(&address.to_ne_bytes());
            buffer[8..].copy_from_slice(&63u32.to_ne_bytes());
            for (mut bytes, want) in [(11usize, CUresult::CUDA_ERROR_INVALID_VALUE), (12, CUresult::CUDA_SUCCESS)] {
                let [pointer, size] = [1usize, 2].map(|key| key as *mut std::ffi::c_void);
                let mut extra = [pointer, buffer.as_mut_ptr().cast(), size, (&raw mut bytes).cast(), null.cast()];
                let (none, extra) = (std::ptr::null_mut(), extra.as_mut_ptr());
                let got = sys::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, none, extra);
                assert_eq!(got, want, "{bytes} bytes");
            }
            assert_eq!(gpu.download(&y), vec![1.0; 64]);
            let none = std::ptr::null_mut();
            let got = sys::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, none, none);
            assert_eq!(got, CUresult::CUDA_ERROR_INVALID_VALUE, "no arguments");

            let mut found = std::ptr::null_mut();
            let mut status = std::mem::zeroed();
            sys::cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut found, 12000, 0, &mut status).result().expect("found");
            assert!(!found.is_null());
            let missing = sys::cuGetProcAddress_v2(c"cuNothing".as_ptr(), &mut found, 12000, 0, &mut status);
            assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
            sys::cuModuleUnload(module).result().expect("it was loaded");
            let gone = sys::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, arguments.as_mut_ptr(), none);
            assert_eq!(gone, CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
    }
}

/// Four elements, turned in sign by a captured graph.
fn negated(gpu: &Gpu) {
    let kernel = gpu.kernel("unary", "unary_neg_f32");
    let x = gpu.upload(&[1f32, 2.0, 3.0, 4.0]);
    let y = gpu.unset::<f32>(4);
    gpu.stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("it begins");
    launch!(gpu, kernel, 1, 256, 0, at(&x), at(&y), 4u64).expect("captured");
    launch!(gpu, kernel, 1, 256, 0, at(&y), at(&x), 4u64).expect("captured");
    launch!(gpu, kernel, 1, 256, 0, at(&x), at(&x), 4u64).expect("captured");
    let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let graph = graph.expect("it ends").expect("it has nodes");
    assert!(gpu.download(&y).iter().all(|y| y.is_nan()), "captured work does not run");
    graph.upload().expect("it is there");
    graph.launch().expect("it runs");
    assert_eq!(gpu.download(&x), [-1.0, -2.0, -3.0, -4.0]);
    graph.launch().expect("it runs again");
    assert_eq!(gpu.download(&x), [1.0, 2.0, 3.0, 4.0]);
}

on_stand_in! {
    fn graphs() {
        let gpu = Gpu::new();
        negated(&gpu);
        let thread_local = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let end = |stream: &Arc<CudaStream>| {
            error(stream.end_capture(sys::CUgraphInstantiate_flags(0)))
        };
        // The null stream cannot be captured.
        let null = gpu.context.default_stream();
        assert_eq!(
            error(null.begin_capture(thread_local)),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        );
        let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        let invalidated = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        // Waiting for what does not run.
        gpu.stream.begin_capture(thread_local).expect("it begins");
        assert_eq!(error(gpu.stream.synchronize()), unsupported);
        assert_eq!(end(&gpu.stream), invalidated);
        // Memory that is not page-locked.
        let mut x = gpu.upload(&[1f32; 4]);
        gpu.stream.begin_capture(thread_local).expect("it begins");
        assert_eq!(error(gpu.stream.memcpy_htod(&[2f32; 4], &mut x)), unsupported);
        assert_eq!(end(&gpu.stream), invalidated);
        // A wait for work outside, as cudarc's tracking of events would record one.
        let event: CudaEvent = gpu.context.new_event(None).expect("an event");
        event.record(&gpu.stream).expect("recorded");
        gpu.stream.begin_capture(thread_local).expect("it begins");
        let isolation = CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        assert_eq!(error(gpu.stream.wait(&event)), isolation);
        assert_eq!(end(&gpu.stream), invalidated);
        // A second stream takes part from where it waits for the first one; its work must be joined.
        let other = gpu.context.new_stream().expect("a stream");
        let mut y = gpu.upload(&[1f32; 4]);
        for join in [false, true] {
            gpu.stream.begin_capture(thread_local).expect("it begins");
            let begun = gpu.stream.record_event(None).expect("an event");
            other.wait(&begun).expect("it takes part");
            other.memset_zeros(&mut y).expect("captured");
            if join {
                let done = other.record_event(None).expect("an event");
                gpu.stream.wait(&done).expect("joined");
            }
            let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
            if join {
                graph.expect("it ends").expect("it has a node").launch().expect("it runs");
                assert_eq!(gpu.download(&y), [0.0; 4]);
            } else {
                assert_eq!(error(graph), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
                assert_eq!(gpu.download(&y), [1.0; 4]);
            }
        }
        negated(&gpu);
        assert_eq!(end(&gpu.stream), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    }
}

on_stand_in! {
    fn events_tell_time() {
        let gpu = Gpu::new();
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let kernel = gpu.planted("tool_switches", 1024, &[".u64", ".u32"]);
        let y = gpu.unset::<f32>(1024);
        let rounds = 2000;
        let start = gpu.stream.record_event(timed).expect("an event");
        launch!(gpu, kernel, 1, 1024, 0, at(&y), rounds).expect("it runs");
        let end = gpu.stream.record_event(timed).expect("an event");
        let milliseconds = start.elapsed_ms(&end).expect("both are timed");
        let switches = f64::from(rounds) * 1024.0;
        println!("a switch at a barrier takes {:.1} ns", f64::from(milliseconds) * 1e6 / switches);
        assert!(milliseconds > 0.0);
        let kernel = gpu.planted("tool_shuffles", 1024, &[".u64", ".u32"]);
        let start = gpu.stream.record_event(timed).expect("an event");
        launch!(gpu, kernel, 1, 1024, 0, at(&y), rounds).expect("it runs");
        let end = gpu.stream.record_event(timed).expect("an event");
        let milliseconds = start.elapsed_ms(&end).expect("both are timed");
        println!("a shuffle takes {:.1} ns a lane", f64::from(milliseconds) * 1e6 / switches);
    }
}

/// Work may run as late as something waits for it. Then a host that reads or writes too early sees it.
#[test]
fn work_that_nobody_waited_for_is_not_done() {
    let body = || {
        let gpu = Gpu::new();
        let kernel = gpu.kernel("unary", "unary_neg_f32");
        // SAFETY: set in the next line, and read only after the copies.
        let mut pinned = unsafe { gpu.context.alloc_pinned::<f32>(4) }.expect("host memory");
        pinned.as_mut_slice().expect("nothing runs").fill(1.0);
        let host = pinned.as_ptr().expect("nothing runs");
        let mut x = gpu.unset::<f32>(4);
        gpu.stream.memcpy_htod(&pinned, &mut x).expect("queued");
        launch!(gpu, kernel, 1, 256, 0, at(&x), at(&x), 4u64).expect("queued");
        gpu.stream.memcpy_dtoh(&x, &mut pinned).expect("queued");
        // SAFETY: the memory is there as long as `pinned`; the stand-in runs nothing meanwhile.
        let early = unsafe { host.read_volatile() };
        gpu.stream.synchronize().expect("it ran");
        let late = pinned.as_slice().expect("it ran")[0];
        println!("\nearly {early} late {late}");
    };
    if build::inside() {
        return body();
    }
    for (queue, words) in [("eager", "early -1 late -1"), ("late", "early 1 late -1")] {
        let variables = [("TWOCLOCKS_STANDIN_QUEUE", queue)];
        let name = "tool::work_that_nobody_waited_for_is_not_done";
        let Some(output) = build::start(name, &variables) else { return };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(words), "{queue}: no `{words}` in {said}");
    }
}

/// Runs the test `name`, in which a kernel with a planted fault runs, in every order, and asserts that the
/// stand-in says all of `words`.
fn caught(name: &str, words: &[&str], body: impl FnOnce()) {
    caught_with(&format!("tool::{name}"), &ORDERS, &[], words, body);
}

/// The same for the test of that full name, with `variables` set, in some orders.
pub fn caught_with(
    name: &str,
    orders: &[&str],
    variables: &[(&str, &str)],
    words: &[&str],
    body: impl FnOnce(),
) {
    if build::skipped(name) {
        return;
    }
    if build::inside() {
        build::needs_the_stand_in();
        return body();
    }
    for order in orders {
        let variables = [variables, &[("TWOCLOCKS_STANDIN_ORDER", *order)]].concat();
        let Some(output) = build::start(name, &variables) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{order}: {said}");
        for word in words {
            assert!(said.contains(word), "{order}: no `{word}` in: {said}");
        }
    }
}

pub const ILLEGAL_ADDRESS: CUresult = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
pub const LAUNCH_FAILED: CUresult = CUresult::CUDA_ERROR_LAUNCH_FAILED;

#[test]
fn a_missing_barrier_shows() {
    let body = || {
        let gpu = Gpu::new();
        let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
        let (x, y) = (gpu.upload(&x), gpu.unset::<f32>(256));
        for name in ["planted_barrier", "planted_missing_barrier"] {
            let kernel = gpu.planted(name, 256, &[".u64", ".u64"]);
            launch!(gpu, kernel, 1, 256, 0, at(&x), at(&y)).expect("it runs");
            digest(name, &gpu.download(&y));
        }
    };
    if build::inside() {
        return body();
    }
    let mut seen = Vec::new();
    for order in ORDERS {
        let variables = [("TWOCLOCKS_STANDIN_ORDER", order)];
        let Some(output) = build::start("tool::a_missing_barrier_shows", &variables) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let lines: Vec<String> =
            text.lines().filter(|line| line.starts_with("digest")).map(str::to_owned).collect();
        let [good, bad] = <[String; 2]>::try_from(lines).expect("two digests");
        seen.push((good, bad));
    }
    assert!(seen.iter().all(|(good, _)| *good == seen[0].0), "with the barrier: {seen:?}");
    let mut bad: Vec<&String> = seen.iter().map(|(_, bad)| bad).collect();
    bad.sort_unstable();
    bad.dedup();
    assert_eq!(bad.len(), ORDERS.len(), "without it every order gives something else: {seen:?}");
}

#[test]
fn a_write_past_the_end_is_caught() {
    let words = [
        "kernel planted_write_past_end",
        "block (1, 0, 0)",
        "a write",
        "global memory 0 bytes past the end",
        "400 bytes",
    ];
    caught("a_write_past_the_end_is_caught", &words, || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_write_past_end", 64, &[".u64", ".u32"]);
        // 400 bytes do not end where a page does: the write is found in the slack behind them.
        let y = gpu.unset::<f32>(100);
        launch!(gpu, kernel, 2, 64, 0, at(&y), 100u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        // As on a device, nothing works any more.
        assert_eq!(error(gpu.stream.clone_htod(&[1f32])), ILLEGAL_ADDRESS);
        std::mem::forget(y);
    });
}

#[test]
fn a_read_past_the_end_is_caught() {
    let words = [
        "kernel planted_read_past_end",
        "block (3, 0, 0)",
        "thread (",
        "a read of global memory",
        "past the end of an allocation of 256 bytes",
    ];
    caught("a_read_past_the_end_is_caught", &words, || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_read_past_end", 64, &[".u64", ".u64", ".u32"]);
        let (x, y) = (gpu.upload(&[1f32; 64]), gpu.unset::<f32>(64));
        launch!(gpu, kernel, 4, 64, 0, at(&x), at(&y), 64u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        std::mem::forget((x, y));
    });
}

#[test]
fn freed_memory_is_not_touched() {
    caught("freed_memory_is_not_touched", &["a read of byte 0 of freed global memory"], || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_read_past_end", 64, &[".u64", ".u64", ".u32"]);
        let (x, y) = (gpu.upload(&[1f32; 1]), gpu.unset::<f32>(64));
        let address = at(&x);
        drop(x);
        launch!(gpu, kernel, 1, 1, 0, address, at(&y), 0u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        std::mem::forget(y);
    });
}

#[test]
fn shared_memory_has_an_end() {
    let words = [
        "kernel planted_shared_past_end",
        "thread (63, 0, 0)",
        "a write to dynamic shared memory, 0 bytes past its end",
    ];
    caught("shared_memory_has_an_end", &words, || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_shared_past_end", 64, &[".u64", ".u32"]);
        let y = gpu.unset::<f32>(64);
        launch!(gpu, kernel, 1, 64, 256, at(&y), 1u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        std::mem::forget(y);
    });
}

#[test]
fn static_shared_memory_has_an_end() {
    let words = ["kernel planted_static_past_end", "block (0, 0, 0)", "past a static array"];
    caught("static_shared_memory_has_an_end", &words, || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_static_past_end", 64, &[".u64", ".u32"]);
        let y = gpu.unset::<f32>(64);
        launch!(gpu, kernel, 1, 64, 0, at(&y), 1u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        std::mem::forget(y);
    });
}

on_stand_in! {
    fn shared_memory_that_nobody_set_is_nan() {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_unset_shared", 64, &[".u64"]);
        let y = gpu.unset::<f32>(64);
        launch!(gpu, kernel, 3, 64, 0, at(&y)).expect("it runs");
        for (i, y) in gpu.download(&y).into_iter().enumerate() {
            assert!(if i == 17 { y.is_nan() } else { y == 1.0 }, "{y} at {i}");
        }
    }
}

fn diverges(name: &str, words: &[&str], kernel: &str, parameters: &[&str], threads: u32) {
    caught(name, words, || {
        let gpu = Gpu::new();
        let kernel = gpu.planted(kernel, threads, parameters);
        let y = gpu.unset::<f32>(64);
        launch!(gpu, kernel, 1, threads, 0, at(&y)).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), LAUNCH_FAILED);
        std::mem::forget(y);
    });
}

#[test]
fn a_thread_that_returns_before_a_barrier_is_caught() {
    diverges(
        "a_thread_that_returns_before_a_barrier_is_caught",
        &[
            "planted_early_return",
            "divergence",
            "waits for __syncthreads at",
            "planted.cu",
            "thread (40, 0, 0) has returned",
        ],
        "planted_early_return",
        &[".u64"],
        64,
    );
}

#[test]
fn threads_at_different_barriers_are_caught() {
    diverges(
        "threads_at_different_barriers_are_caught",
        &["planted_other_barrier", "divergence", "waits for __syncthreads at"],
        "planted_other_barrier",
        &[".u64"],
        64,
    );
}

#[test]
fn a_lane_that_does_not_come_is_caught() {
    diverges(
        "a_lane_that_does_not_come_is_caught",
        &["planted_lane_missing", "divergence", "__shfl_xor_sync", "thread (5, 0, 0) has returned"],
        "planted_lane_missing",
        &[".u64"],
        32,
    );
}

#[test]
fn misaligned_vectors_are_caught() {
    caught(
        "misaligned_vectors_are_caught",
        &["planted_misaligned", "a misaligned address"],
        || {
            let gpu = Gpu::new();
            let kernel = gpu.planted("planted_misaligned", 32, &[".u64", ".u64"]);
            let (x, y) = (gpu.upload(&[1f32; 64]), gpu.unset::<f32>(64));
            launch!(gpu, kernel, 1, 32, 0, at(&x), at(&y)).expect("a launch itself succeeds");
            assert_eq!(error(gpu.stream.synchronize()), LAUNCH_FAILED);
            std::mem::forget((x, y));
        },
    );
}

#[test]
fn a_stack_that_overflows_is_caught() {
    caught("a_stack_that_overflows_is_caught", &["planted_endless_stack", "stack"], || {
        let gpu = Gpu::new();
        let kernel = gpu.planted("planted_endless_stack", 32, &[".u64", ".u32"]);
        let y = gpu.unset::<f32>(64);
        launch!(gpu, kernel, 1, 32, 0, at(&y), 4u32).expect("a launch itself succeeds");
        assert_eq!(error(gpu.stream.synchronize()), ILLEGAL_ADDRESS);
        std::mem::forget(y);
    });
}
