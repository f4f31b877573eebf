//! Graphs on the stand-in: nodes wait for what they depend on, and for nothing else.

use crate::build::{self, ORDERS};
use crate::gpu::{Gpu, at, digest, launch};
use crate::on_stand_in;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode as Mode};
use std::collections::BTreeSet;
use std::sync::Arc;

const THREAD_LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// What the next node that is given to the captured stream comes after.
fn last(gpu: &Gpu) -> Vec<sys::CUgraphNode> {
    let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut id, mut graph, mut nodes, mut count) =
        (0, std::ptr::null_mut(), std::ptr::null(), 0usize);
    let stream = gpu.stream.cu_stream();
    // SAFETY: pointers to variables of this function, of the types that the interface states.
    let found = unsafe {
        sys::cuStreamGetCaptureInfo_v2(
            stream,
            &mut status,
            &mut id,
            &mut graph,
            &mut nodes,
            &mut count,
        )
    };
    assert_eq!(found, CUresult::CUDA_SUCCESS);
    assert_eq!(status, sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    if count == 0 {
        Vec::new()
    } else {
        // SAFETY: there are so many, until the next call.
        unsafe { std::slice::from_raw_parts(nodes, count) }.to_vec()
    }
}

/// Lets the next node come after these.
fn after(gpu: &Gpu, nodes: &mut [sys::CUgraphNode]) -> CUresult {
    let (nodes, count) = (nodes.as_mut_ptr(), nodes.len());
    // SAFETY: so many handles, and 1 is to set and not to add.
    unsafe { sys::cuStreamUpdateCaptureDependencies(gpu.stream.cu_stream(), nodes, count, 1) }
}

/// `y = -x`, `z = -y`; the second one does not say that it needs the first one unless `named`.
fn twice_negated(gpu: &Gpu, named: bool) -> Vec<f32> {
    let kernel = gpu.kernel("unary", "unary_neg_f32");
    let x = gpu.upload(&[1f32, 2.0, 3.0, 4.0]);
    let (y, z) = (gpu.upload(&[7f32; 4]), gpu.unset::<f32>(4));
    gpu.stream.begin_capture(THREAD_LOCAL).expect("it begins");
    assert!(last(gpu).is_empty());
    launch!(gpu, kernel, 1, 256, 0, at(&x), at(&y), 4u64).expect("captured");
    let mut first = last(gpu);
    assert_eq!(first.len(), 1);
    let count = if named { 1 } else { 0 };
    assert_eq!(after(gpu, &mut first[..count]), CUresult::CUDA_SUCCESS);
    launch!(gpu, kernel, 1, 256, 0, at(&y), at(&z), 4u64).expect("captured");
    assert_ne!(last(gpu), first);
    let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    graph.expect("it ends").expect("it has nodes").launch().expect("it runs");
    gpu.download(&z)
}

/// With the dependency every order of the nodes gives the same; without it some order shows.
#[test]
fn a_missing_dependency_shows() {
    const NAME: &str = "graphs::a_missing_dependency_shows";
    if build::skipped(NAME) {
        return;
    }
    if build::inside() {
        let gpu = Gpu::new();
        digest("named", &twice_negated(&gpu, true));
        digest("missing", &twice_negated(&gpu, false));
        return;
    }
    let (mut named, mut missing) = (BTreeSet::new(), Vec::new());
    for order in ORDERS {
        let variables = [("TWOCLOCKS_STANDIN_ORDER", order)];
        let Some(output) = build::start(NAME, &variables) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let lines: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("digest "))
            .map(str::to_owned)
            .collect();
        let [good, bad] = <[String; 2]>::try_from(lines).expect("two digests");
        named.insert(good);
        missing.push(bad);
    }
    assert_eq!(named.len(), 1, "{named:?}");
    // In the order of the capture it goes well, the other way round it does not.
    assert_ne!(missing[0], missing[1], "{missing:?}");
}

on_stand_in! {
    /// Two streams: what the second one does comes after what it waited for, and no more.
    fn events_are_dependencies() {
        let gpu = Gpu::new();
        let kernel = gpu.kernel("unary", "unary_neg_f32");
        let other = gpu.context.new_stream().expect("a stream");
        let x = gpu.upload(&[1f32, 2.0, 3.0, 4.0]);
        let (mut y, z) = (gpu.upload(&[7f32; 4]), gpu.unset::<f32>(4));
        gpu.stream.begin_capture(THREAD_LOCAL).expect("it begins");
        launch!(gpu, kernel, 1, 256, 0, at(&x), at(&y), 4u64).expect("captured");
        let negated = gpu.stream.record_event(None).expect("an event");
        other.wait(&negated).expect("it takes part");
        launch!(gpu, kernel, 1, 256, 0, at(&y), at(&z), 4u64).expect("captured");
        let copied = gpu.stream.record_event(None).expect("an event");
        other.wait(&copied).expect("it waits again");
        other.memset_zeros(&mut y).expect("captured");
        let done = other.record_event(None).expect("an event");
        gpu.stream.wait(&done).expect("joined");
        launch!(gpu, kernel, 1, 256, 0, at(&z), at(&z), 4u64).expect("captured");
        let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        graph.expect("it ends").expect("it has nodes").launch().expect("it runs");
        assert_eq!(gpu.download(&y), [0.0; 4]);
        assert_eq!(gpu.download(&z), [-1.0, -2.0, -3.0, -4.0]);
        digest("z", &gpu.download(&z));
    }
}

on_stand_in! {
    fn dependencies_that_are_none_are_refused() {
        let gpu = Gpu::new();
        let illegal = CUresult::CUDA_ERROR_ILLEGAL_STATE;
        assert_eq!(after(&gpu, &mut []), illegal, "nothing is captured");
        gpu.stream.begin_capture(THREAD_LOCAL).expect("it begins");
        let nobody = Arc::new(0u8);
        let mut nobody = [Arc::as_ptr(&nobody).cast_mut().cast()];
        assert_eq!(after(&gpu, &mut nobody), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(last(&gpu).is_empty());
        gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("it ends");
    }
}
