//! Elementwise kernels against the oracles of their operations.

use crate::common::{Random, assert_close, values};
use crate::gpu::{Gpu, NULL, at, digest, launch};
use crate::on_stand_in;
use half::bf16;
use twoclocks::device::Control;
use twoclocks::ops::{Case, TABLE, Tolerance, Values};
use twoclocks::{DType, Shape};

/// A case with values: what goes in, and what the oracle makes of it.
struct Example {
    case: Case,
    inputs: Vec<Values>,
    outputs: Vec<Values>,
}

/// The cases of a folder of `src/ops`, with the values of their inputs and what the oracle makes of them.
fn cases(folder: &str) -> Vec<Example> {
    let entry = TABLE.iter().find(|entry| entry.name == folder).expect("it is in the table");
    let mut control = Control::new();
    let cases = (entry.cases)(&mut control);
    let with_values = cases.into_iter().enumerate().map(|(number, case)| {
        let mut random = Random(number as u64 + 1);
        let inputs: Vec<Values> = case
            .inputs
            .iter()
            .map(|input| Values {
                tensor_type: input.tensor_type.clone(),
                data: values(input, &mut random),
            })
            .collect();
        let types: Vec<_> = inputs.iter().map(|input| input.tensor_type.clone()).collect();
        let outputs = case.op.infer(&types).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let mut outputs: Vec<Values> = outputs.into_iter().map(Values::zeros).collect();
        for (output, input) in case.op.in_place() {
            outputs[output].data.clone_from(&inputs[input].data);
        }
        case.op.naive(&inputs, &mut outputs, &control);
        Example { case, inputs, outputs }
    });
    with_values.collect()
}

pub fn f32s(values: &Values) -> Vec<f32> {
    values.data.iter().map(|&x| x as f32).collect()
}

/// The values as the bits of the nearest bf16, and these as f64.
pub fn bf16s(values: &[f64]) -> (Vec<u16>, Vec<f64>) {
    let rounded = values.iter().map(|&x| bf16::from_f64(x));
    (rounded.clone().map(bf16::to_bits).collect(), rounded.map(bf16::to_f64).collect())
}

/// Asserts that bf16 results are within their own rounding, and `factor` times `tolerance` of f32, of the oracle.
pub fn assert_close_bf16(what: &str, got: &[u16], want: &[f64], units: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let got = bf16::from_bits(*got).to_f64();
        if !want.is_finite() {
            assert!(got == want || got.is_nan() && want.is_nan(), "{what}: {got} at {i}");
            continue;
        }
        assert!(got.is_finite(), "{what}: {got} at {i}, want {want}");
        // Half a unit in the last place of 8 bits.
        let bound = units * want.abs().max(rms) / 256.0;
        let error = (got - want).abs();
        assert!(error <= bound, "{what}: {got} at {i}, want {want}: error {error:e} > {bound:e}");
    }
}

const KINDS: [&str; 9] = ["neg", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "gelu", "silu"];

on_stand_in! {
    fn unary() {
        let gpu = Gpu::new();
        let mut seen = 0;
        for Example { case, inputs, outputs } in cases("unary") {
            let kind = KINDS.iter().find(|kind| case.op.name() == **kind).expect("a kernel a kind");
            let what = format!("unary {kind} {}", case.name);
            let n = inputs[0].data.len();
            if n == 0 {
                continue;
            }
            let x = gpu.upload(&f32s(&inputs[0]));
            let y = gpu.unset::<f32>(n);
            let kernel = gpu.kernel("unary", &format!("unary_{kind}_f32"));
            let grid = n.div_ceil(1024) as u32;
            launch!(gpu, kernel, grid, 256, 0, at(&x), at(&y), n as u64).expect("it runs");
            let got = gpu.download(&y);
            digest(&what, &got);
            // The library functions of the device have errors of their own, up to 4 units for erfc.
            let tolerance = match case.tolerance {
                Tolerance::Rounding(count) => Tolerance::Rounding(count + 8.0),
                other => other,
            };
            assert_close(&what, &got, &outputs[0].data, tolerance);

            let (short, wide) = bf16s(&inputs[0].data);
            let mut want = [Values::zeros(outputs[0].tensor_type.clone())];
            let inputs = [Values { tensor_type: inputs[0].tensor_type.clone(), data: wide }];
            case.op.naive(&inputs, &mut want, &Control::new());
            let x = gpu.upload(&short);
            let y = gpu.unset::<u16>(n);
            let kernel = gpu.kernel("unary", &format!("unary_{kind}_bf16"));
            launch!(gpu, kernel, grid, 256, 0, at(&x), at(&y), n as u64).expect("it runs");
            let got = gpu.download(&y);
            digest(&what, &got);
            assert_close_bf16(&what, &got, &want[0].data, 1.01);
            seen += 1;
        }
        assert!(seen > 20, "only {seen} cases");
    }
}

/// What `binary_<kind>_broadcast_f32` takes: `Axes<2>` of kernels/common/index.cuh.
#[repr(C)]
struct Broadcast {
    /// Last axis first, as the strides.
    extents: [u32; 8],
    a: [u64; 8],
    b: [u64; 8],
    count: u32,
    wide: u32,
}
// SAFETY: numbers alone, as the kernel declares them.
unsafe impl cudarc::driver::DeviceRepr for Broadcast {}

impl Broadcast {
    /// Axes of `y` with the strides of `a` and `b` in them, none merged.
    fn of(a: &Shape, b: &Shape, y: &Shape) -> Broadcast {
        let strides = |x: &Shape| {
            let (mut strides, mut stride) = ([0; 8], 1);
            for (to, &extent) in strides.iter_mut().zip(x.extents().iter().rev()) {
                *to = if extent == 1 { 0 } else { stride };
                stride *= extent as u64;
            }
            strides
        };
        let mut extents = [1; 8];
        for (to, &from) in extents.iter_mut().zip(y.extents().iter().rev()) {
            *to = from as u32;
        }
        Broadcast { extents, a: strides(a), b: strides(b), count: y.rank() as u32, wide: 0 }
    }
}

on_stand_in! {
    fn binary() {
        let gpu = Gpu::new();
        let (mut same, mut repeated) = (0, 0);
        for Example { case, inputs, outputs } in cases("binary") {
            let kind = case.op.name();
            let what = format!("binary {}", case.name);
            let n = outputs[0].data.len();
            if n == 0 {
                continue;
            }
            let (a, b) = (gpu.upload(&f32s(&inputs[0])), gpu.upload(&f32s(&inputs[1])));
            let y = gpu.unset::<f32>(n);
            let shape = |i: usize| &inputs[i].tensor_type.shape;
            if shape(0) == shape(1) {
                let kernel = gpu.kernel("binary", &format!("binary_{kind}_f32"));
                let grid = n.div_ceil(1024) as u32;
                launch!(gpu, kernel, grid, 256, 0, at(&a), at(&b), at(&y), n as u64).expect("it runs");
                same += 1;
            } else {
                let of = Broadcast::of(shape(0), shape(1), &outputs[0].tensor_type.shape);
                let kernel = gpu.kernel("binary", &format!("binary_{kind}_broadcast_f32"));
                let grid = n.div_ceil(1024) as u32;
                launch!(gpu, kernel, grid, 256, 0, at(&a), at(&b), at(&y), n as u64, of).expect("it runs");
                repeated += 1;
            }
            let got = gpu.download(&y);
            digest(&what, &got);
            assert_close(&what, &got, &outputs[0].data, case.tolerance);
        }
        assert!(same > 5 && repeated > 5, "{same} and {repeated} cases");
    }
}

on_stand_in! {
    fn activation_backward() {
        let gpu = Gpu::new();
        let mut seen = 0;
        for Example { case, inputs, outputs } in cases("activation_backward") {
            let what = format!("activation_backward {}", case.name);
            let (rows, columns) = (inputs[0].rows(), inputs[0].columns());
            if inputs[0].data.is_empty() {
                continue;
            }
            let told = format!("{:?}", case.op).to_lowercase();
            let kind = ["relu", "gelu", "tanh", "silu"].into_iter().find(|kind| told.contains(kind));
            let kind = kind.expect("a kernel an activation");
            let (dy, saved) = (gpu.upload(&f32s(&inputs[0])), gpu.upload(&f32s(&inputs[1])));
            let kernel = gpu.kernel("activation_backward", &format!("activation_backward_{kind}_f32"));
            let sum = gpu.kernel("activation_backward", "column_sum_f32");
            let per_block = 64usize;
            let parts = rows.div_ceil(per_block);
            let grid = (columns.div_ceil(32) as u32, parts as u32, 1);
            let (dz, db) = (gpu.unset::<f32>(rows * columns), gpu.unset::<f32>(columns));
            let partials = gpu.unset::<f32>(parts * columns);
            let (r, c, p) = (rows as u32, columns as u32, parts as u32);
            launch!(gpu, kernel, grid, 256, 0, at(&dy), at(&saved), at(&dz), at(&partials), r, c, per_block as u32)
                .expect("it runs");
            launch!(gpu, sum, c.div_ceil(256), 256, 0, at(&partials), at(&db), p, c, 1f32).expect("it runs");
            let (got, sums) = (gpu.download(&dz), gpu.download(&db));
            digest(&what, &got);
            digest(&what, &sums);
            // The library functions of the device have errors of their own.
            assert_close(&what, &got, &outputs[0].data, Tolerance::Rounding(24.0));
            let tolerance = Tolerance::Accumulation(rows * 4);
            assert_close(&what, &sums, &outputs[1].data, tolerance);
            // Without the sums, and in place.
            launch!(gpu, kernel, grid, 256, 0, at(&dy), at(&saved), at(&dy), NULL, r, c, per_block as u32)
                .expect("it runs");
            assert_eq!(gpu.download(&dy), got, "{what}");
            seen += 1;
        }
        assert!(seen > 8, "only {seen} cases");
    }
}

on_stand_in! {
    fn batch() {
        let gpu = Gpu::new();
        let mut seen = 0;
        for Example { case, inputs, outputs } in cases("batch") {
            let (size, features) = (outputs[0].rows(), inputs[0].columns());
            if size == 0 || outputs[1].data.is_empty() {
                continue;
            }
            // The offset is the one in the name, and what the slot of the case holds.
            let told = format!("{:?}", case.op);
            let slot: usize = told.split("U64Slot(").nth(1).and_then(|rest| rest.split(')').next())
                .and_then(|slot| slot.parse().ok()).expect("the operation says its slot");
            let offset: u64 = case.name.split("_from_").nth(1).and_then(|rest| rest.split('_').next())
                .and_then(|offset| offset.parse().ok()).expect("the case says its offset");
            let mut slots = vec![u64::MAX; slot + 2];
            slots[slot] = offset;
            let slots = gpu.upload(&slots);
            let u32s = |i: usize| inputs[i].data.iter().map(|&x| x as u32).collect::<Vec<_>>();
            let u8s: Vec<u8> = inputs[0].data.iter().map(|&x| x as u8).collect();
            let bytes = inputs[0].tensor_type.dtype == DType::U8;
            // An empty row has no memory.
            let values = |len: usize| if len == 0 { NULL } else { 1 };
            let (as_u8, as_f32) = (gpu.upload(if bytes && features > 0 { &u8s } else { &[0] }), {
                let all = f32s(&inputs[0]);
                gpu.upload(if bytes || features == 0 { &[0.0] } else { &all })
            });
            let from = if values(features) == NULL { NULL } else if bytes { at(&as_u8) } else { at(&as_f32) };
            let (labels, order) = (gpu.upload(&u32s(1)), gpu.upload(&u32s(2)));
            let one = |x: Vec<f32>| if x.is_empty() { vec![0.0] } else { x };
            let (scale, shift) = (gpu.upload(&one(f32s(&inputs[3]))), gpu.upload(&one(f32s(&inputs[4]))));
            let (rows, len) = (inputs[0].rows().max(inputs[1].data.len()) as u32, inputs[2].data.len() as u32);
            let grid = (size * features.div_ceil(4).max(1)).div_ceil(256) as u32;
            let name = if bytes { "u8" } else { "f32" };
            let wide = gpu.unset::<f32>((size * features).max(1));
            let narrow = gpu.unset::<u16>((size * features).max(1));
            for (to, result) in [("f32", at(&wide)), ("bf16", at(&narrow))] {
                let labels_out = gpu.unset::<u32>(size);
                let kernel = gpu.kernel("batch", &format!("batch_{name}_{to}"));
                launch!(
                    gpu, kernel, grid, 256, 0, from, at(&labels), at(&order), at(&scale), at(&shift), result,
                    at(&labels_out), size as u32, rows, features as u32, len, at(&slots), slot as u32
                ).expect("it runs");
                let got: Vec<f64> = gpu.download(&labels_out).into_iter().map(f64::from).collect();
                assert_eq!(got, outputs[1].data, "{}", case.name);
            }
            if features > 0 {
                let got = gpu.download(&wide);
                digest(&case.name, &got);
                assert_close(&case.name, &got, &outputs[0].data, case.tolerance);
                assert_close_bf16(&case.name, &gpu.download(&narrow), &outputs[0].data, 1.01);
            }
            seen += 1;
        }
        assert!(seen > 12, "only {seen} cases");
    }
}

on_stand_in! {
    /// What changes from step to step is read at the replay, not frozen into the graph.
    fn a_graph_reads_the_control_block() {
        let gpu = Gpu::new();
        let kernel = gpu.kernel("batch", "batch_u8_f32");
        let bytes: Vec<u8> = (0..24).collect();
        let (values, labels) = (gpu.upload(&bytes), gpu.upload(&[0u32, 1, 2, 3, 4, 5]));
        let order = gpu.upload(&[5u32, 4, 3, 2, 1, 0]);
        let (scale, shift) = (gpu.upload(&[1f32; 4]), gpu.upload(&[0.5f32; 4]));
        let (inputs, out) = (gpu.unset::<f32>(2 * 4), gpu.unset::<u32>(2));
        let mut slots = gpu.upload(&[7u64, 0]);
        // SAFETY: set before the graph reads it.
        let mut pinned = unsafe { gpu.context.alloc_pinned::<u64>(2) }.expect("host memory");
        // Taken now: cudarc records an event of its own with a captured copy, and cannot wait for it later.
        let host = pinned.as_mut_ptr().expect("nothing runs");
        let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream.begin_capture(mode).expect("it begins");
        gpu.stream.memcpy_htod(&pinned, &mut slots).expect("captured");
        launch!(
            gpu, kernel, 1, 256, 0, at(&values), at(&labels), at(&order), at(&scale), at(&shift), at(&inputs),
            at(&out), 2u32, 6u32, 4u32, 6u32, at(&slots), 1u32
        ).expect("captured");
        let graph = gpu.stream.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0));
        let graph = graph.expect("it ends").expect("it has nodes");
        for offset in [0u64, 4, 2] {
            // SAFETY: two elements, and the graph is done with them.
            unsafe { host.add(1).write(offset) };
            graph.launch().expect("it runs");
            gpu.stream.synchronize().expect("it ran");
            let want = [5 - offset as u32, 4 - offset as u32];
            assert_eq!(gpu.download(&out), want, "offset {offset}");
            assert_eq!(gpu.download(&inputs)[..2], [want[0] as f32 * 4.0 + 0.5, want[0] as f32 * 4.0 + 1.5]);
        }
        std::mem::forget(pinned);
    }
}

on_stand_in! {
    fn a_batch_out_of_range_is_nan() {
        let gpu = Gpu::new();
        let kernel = gpu.kernel("batch", "batch_f32_f32");
        let (values, labels) = (gpu.upload(&[1f32; 5 * 6]), gpu.upload(&[7u32; 5]));
        // Row 1 names a row that is not there; rows 3 and 4 lie past the end of the order.
        let order = gpu.upload(&[9u32, 0, 5, 4]);
        let (scale, shift) = (gpu.upload(&[2f32; 6]), gpu.upload(&[1f32; 6]));
        let (inputs, out, slots) = (gpu.unset::<f32>(5 * 6), gpu.unset::<u32>(5), gpu.upload(&[1u64]));
        launch!(
            gpu, kernel, 1, 256, 0, at(&values), at(&labels), at(&order), at(&scale), at(&shift), at(&inputs),
            at(&out), 5u32, 5u32, 6u32, 4u32, at(&slots), 0u32
        ).expect("it runs");
        let bad = u32::MAX;
        assert_eq!(gpu.download(&out), [7, bad, 7, bad, bad]);
        for (i, x) in gpu.download(&inputs).into_iter().enumerate() {
            let good = [true, false, true, false, false][i / 6];
            assert!(if good { x == 3.0 } else { x.is_nan() }, "{x} at {i}");
        }
    }
}
