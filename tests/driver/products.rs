//! Products as operations on the stand-in, and products that end in the update of a weight: beside the two apart, bit for bit.

use crate::common::{Random, assert_close};
use crate::gemm::{Arguments, Epilogue, Kernel, block};
use crate::gpu::{Gpu, NULL, at, digest, launch};
use crate::on_stand_in;
use crate::update;
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use std::sync::Arc;
use twoclocks::device::Control;
use twoclocks::gemm::Precision;
use twoclocks::ops::update::{Decay, Rule, Segment, UpdateSlots};
use twoclocks::ops::{self, Case, TABLE, Tolerance, product_update};
use twoclocks::{Device, Recorder, Store, Tape};

const RULES: [&str; 4] = ["sgd", "momentum", "adamw", "lion"];

on_stand_in! {
    fn updates_at_the_end_of_products() {
        let gpu = Gpu::new();
        let slots = [3u32, 0, 4, 1, 2, 5];
        let mut control = vec![u64::MAX; 6];
        for (slot, value) in slots.into_iter().zip([0.125f32, 0.25, 3.69, 18.26, 0.5, 0.1]) {
            control[slot as usize] = u64::from(value.to_bits());
        }
        let (control, segments) = (gpu.upload(&control), gpu.upload(&[0.5f32, 2.0]));
        let engines = [
            (Kernel::Mma("f32"), "gemm", "gemm_mma_f32_tn"),
            (Kernel::Fma, "gemm_fma", "gemm_fma_f32_tn"),
            (Kernel::FmaTuring, "gemm_fma_turing", "gemm_fma_turing_f32_tn"),
        ];
        for (kernel, file, name) in engines {
            for (tile, [rows, m, n], shift) in [
                (32, [70, 40, 36], 0),
                (32, [3, 33, 10], 0),
                (64, [40, 70, 65], 0),
                (64, [33, 72, 132], 0),
                (128, [20, 130, 136], 0),
                (128, [17, 5, 200], 1),
                (32, [0, 5, 8], 0),
            ] {
                let mut random = Random((rows * 1000 + m + n) as u64);
                let mut make = |len: usize, low: f64| -> Vec<f32> {
                    (0..len.max(1)).map(|_| (low + (1.0 - low) * random.unit()) as f32).collect()
                };
                let size = m * n;
                let (x, dz) = (gpu.upload(&make(rows * m, -1.0)), gpu.upload(&make(rows * n, -1.0)));
                let start = [make(size + shift, -1.0), make(size + shift, -1.0), make(size + shift, 0.0)];
                let (threads, shared) = block(kernel, tile);
                let function = |name: &str| {
                    let function = gpu.kernel(file, name);
                    let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    function.set_attribute(limit, shared as i32).expect("it is allowed");
                    function
                };
                let tiles = (m.div_ceil(tile) * n.div_ceil(tile)) as u32;
                let product = |epilogue| Arguments {
                    a: at(&x),
                    b: at(&dz),
                    partials: NULL,
                    m: m as u32,
                    n: n as u32,
                    k: rows as u32,
                    lda: m as u32,
                    ldb: n as u32,
                    k_per_split: rows.next_multiple_of(64).max(64) as u32,
                    splits: 1,
                    batches: 1,
                    epilogue,
                };
                let gradient = gpu.unset::<f32>(size);
                let plain = product(Epilogue { y: at(&gradient), ..Epilogue::default() });
                let multiply = function(&format!("{name}_{tile}"));
                launch!(gpu, multiply, tiles, threads as u32, shared as u32, plain).expect("it runs");
                let pieces: Vec<u32> =
                    (0..size).step_by(4096).flat_map(|i| [0, (size - i).min(4096) as u32, i as u32, 0]).collect();
                let count = (pieces.len() / 4) as u32;
                let pieces = gpu.upload(&pieces);
                for (number, rule) in RULES.into_iter().enumerate() {
                    let what = format!("{name}_{tile} {rows} x {m} x {n}, {rule}");
                    let moments = [0, 1, 2, 1][number];
                    let go = |fused: bool, guard: f32| {
                        let arrays: Vec<_> = start.iter().map(|x| gpu.upload(x)).collect();
                        let copy = gpu.unset::<u16>(size + shift);
                        let guard = gpu.upload(&[guard]);
                        let blocks = if fused { tiles } else { count };
                        let partials = gpu.unset::<f32>(3 * blocks as usize);
                        let statistics = gpu.unset::<f32>(3);
                        let from = |i: usize| at(&arrays[i]) + 4 * shift as u64;
                        let arguments = update::Arguments {
                            weights: from(0),
                            gradients: if fused { NULL } else { at(&gradient) },
                            first: if moments > 0 { from(1) } else { NULL },
                            second: if moments > 1 { from(2) } else { NULL },
                            copy: at(&copy) + 2 * shift as u64,
                            guard: at(&guard),
                            factor: NULL,
                            pieces: if fused { NULL } else { at(&pieces) },
                            segments: at(&segments),
                            partials: at(&partials),
                            control: at(&control),
                            slots,
                            decay_kind: 0,
                            second_share: 0.01,
                            epsilon: 1e-8,
                            nesterov: 1,
                            rule: number as u32,
                        };
                        if fused {
                            let function = function(&format!("{name}_{tile}_update"));
                            let product = product(Epilogue::default());
                            launch!(gpu, function, tiles, threads as u32, shared as u32, product, arguments)
                                .expect("it runs");
                        } else if shift == 0 {
                            let function = gpu.kernel("update", &format!("update_{rule}"));
                            launch!(gpu, function, count, 256, 0, arguments).expect("it runs");
                        } else {
                            // The parts of a sum, of which there is one here, at any address.
                            let function = gpu.kernel("gemm_sum", "gemm_sum_update");
                            let arguments = update::Arguments { partials: NULL, ..arguments };
                            let grid = size.div_ceil(1024) as u32;
                            launch!(gpu, function, grid, 256, 0, at(&gradient), 1u32, size as u64, arguments)
                                .expect("it runs");
                        }
                        if fused || shift == 0 {
                            let first = gpu.upload(&[0, blocks]);
                            let add = gpu.kernel("update", "update_statistics");
                            launch!(gpu, add, 1, 256, 0, at(&partials), at(&first), at(&statistics), 1u32)
                                .expect("it runs");
                        }
                        let results: Vec<Vec<f32>> = arrays.iter().map(|x| gpu.download(x)).collect();
                        (results, gpu.download(&copy), gpu.download(&statistics))
                    };
                    let (got, copy, statistics) = go(true, 1.0);
                    let (want, want_copy, _) = go(false, 1.0);
                    for i in 0..3 {
                        assert_eq!(got[i], want[i], "{what}: array {i}");
                        digest(&what, &got[i]);
                    }
                    assert_ne!(got[0], start[0], "{what}: weights change");
                    assert_eq!(copy[shift..], want_copy[shift..], "{what}: copies");
                    let gradient = gpu.download(&gradient);
                    let both = gradient.iter().zip(&start[0][shift..]);
                    let mut sums = [0.0f64; 3];
                    for (&g, &w) in both {
                        let (g, w) = (0.5 * f64::from(g), f64::from(w));
                        sums = [sums[0] + g * g, sums[1] + w * w, sums[2] + g * w];
                    }
                    digest(&what, &statistics);
                    // g.w cancels: its error is one of the lengths.
                    let bound = 1e-5 * (1.0 + sums[0].max(sums[1]));
                    for (got, want) in statistics.iter().zip(sums) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error <= bound, "{what}: statistics {statistics:?}, {sums:?}");
                    }
                    // The guard keeps every bit.
                    let (kept, _, again) = go(true, f32::NAN);
                    for i in 0..3 {
                        assert_eq!(kept[i], start[i], "{what}: kept");
                    }
                    assert_eq!(again, statistics, "{what}: statistics");
                }
            }
        }
    }
}

fn device() -> Device {
    Device::cuda("cuda:0").expect("the stand-in has a device")
}

/// Weights, moments and statistics after a step of AdamW with the gradient `x^T dz`, as bits.
fn stepped(precision: Precision, [rows, m, n]: [usize; 3], fused: bool) -> Vec<Vec<f32>> {
    let mut store = Store::new(&device());
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };
    let slots = UpdateSlots::register(store.control_mut(), "update", rule);
    store.control_mut().set_f32(slots.rate, 0.125);
    store.control_mut().set_f32(slots.decay, 0.25);
    let mut random = Random(5);
    let mut make = |store: &mut Store, name, len: usize, low: f64| {
        let all: Vec<f32> = (0..len).map(|_| (low + (1.0 - low) * random.unit()) as f32).collect();
        store.upload(name, &all)
    };
    let (x, dz) = (make(&mut store, "x", rows * m, -1.0), make(&mut store, "dz", rows * n, -1.0));
    let regions = [-1.0, -1.0, 0.0].map(|low| make(&mut store, "flat", m * n, low));
    let gradients = make(&mut store, "gradients", m * n, 0.0);
    let statistics = store.upload("statistics", &[f32::NAN; 3]);
    let mut tape = Tape::new(&store);
    let x = tape.persistent("x", x, 0, [rows, m]).expect("x");
    let dz = tape.persistent("dz", dz, 0, [rows, n]).expect("dz");
    let sums = if fused {
        let [weight, first, second] =
            regions.map(|region| tape.persistent("flat", region, 0, [m, n]).expect("flat"));
        let operands = product_update::Operands {
            x,
            dz,
            weight,
            moments: &[first, second],
            guard: None,
            packed: None,
        };
        ops::product_update(
            &mut tape,
            precision,
            rule,
            Decay::Decoupled,
            [0.5, 2.0],
            slots,
            operands,
        )
        .expect("it fits")
    } else {
        let dw = ops::matmul_in(&mut tape, precision, x, dz, true, false).expect("it fits");
        tape.place(dw, gradients, 0).expect("place");
        let gradients = tape.persistent("gradients", gradients, 0, [m * n]).expect("gradients");
        let [weights, first, second] =
            regions.map(|region| tape.persistent("flat", region, 0, [m * n]).expect("flat"));
        let segment = Segment { offset: 0, len: m * n, rate_factor: 0.5, decay_factor: 2.0 };
        let moments = &[first, second];
        let operands = ops::update::Operands {
            weights,
            gradients,
            moments,
            guard: None,
            factor: None,
            packed: None,
        };
        ops::update(&mut tape, rule, Decay::Decoupled, &[segment], slots, operands)
            .expect("it fits")
            .statistics
    };
    tape.place(sums, statistics, 0).expect("place");
    let mut recording = tape.compile(&store).expect("there are kernels");
    recording.replay(&mut store).expect("it runs");
    let read = |region| {
        let mut all = vec![0f32; store.len(region)];
        store.read(region, 0, &mut all).expect("read");
        all
    };
    regions.into_iter().chain([statistics]).map(read).collect()
}

on_stand_in! {
    fn a_fused_update_gives_the_bits_of_two_operations() {
        for precision in [Precision::F32, Precision::Bf16] {
            // One of small tiles, one of larger ones, one whose sum is in parts.
            for shape in [[65, 40, 37], [16, 520, 500], [4099, 20, 12]] {
                let what = format!("{precision} {shape:?}");
                let (got, want) = (stepped(precision, shape, true), stepped(precision, shape, false));
                for i in 0..3 {
                    assert_eq!(got[i], want[i], "{what}: array {i}");
                    digest(&what, &got[i]);
                }
                let sums: Vec<f64> = want[3].iter().map(|&x| f64::from(x)).collect();
                assert_close(&what, &got[3], &sums, Tolerance::Accumulation(1000));
                digest(&what, &got[3]);
            }
        }
    }
}

on_stand_in! {
    fn every_product_of_the_table_compiles() {
        let device = device();
        for entry in TABLE.iter().filter(|e| ["linear", "matmul", "product_update"].contains(&e.name)) {
            for number in 0..(entry.cases)(&mut Control::new()).len() {
                let mut store = Store::new(&device);
                let case: Case = (entry.cases)(store.control_mut()).swap_remove(number);
                let types: Vec<_> = case.inputs.iter().map(|input| input.tensor_type.clone()).collect();
                let regions: Vec<_> =
                    types.iter().map(|t| store.allocate("input", t.dtype, t.elements())).collect();
                let mut tape = Tape::new(&store);
                let inputs: Vec<_> = regions
                    .iter()
                    .zip(&types)
                    .map(|(&region, t)| tape.persistent("input", region, 0, &t.shape).expect("input"))
                    .collect();
                let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("it fits");
                tape.output(outputs[outputs.len() - 1]).expect("output");
                if let Err(error) = tape.compile(&store) {
                    panic!("{} {}: {error}", entry.name, case.name);
                }
            }
        }
    }
}

on_stand_in! {
    fn what_products_do_not_take_is_named() {
        let device = device();
        let store = Store::new(&device);
        // Extents that kernels do not count: nothing is allocated before that is found.
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [1 << 31, 1]).expect("input");
        let y = tape.input("y", [1, 3]).expect("input");
        let y = ops::matmul(&mut tape, x, y, false, false).expect("1 with 1");
        tape.output(y).expect("output");
        let error = tape.compile(&store).map(|_| ()).expect_err("too long").to_string();
        assert!(error.contains("matmul") && error.contains("[2147483648, 1]"), "{error}");
    }
}

on_stand_in! {
    /// As on a CPU without tiles, `f32_split` is f32; and bf16 rounds, of several matrices too.
    fn precisions() {
        let device = device();
        let run = |precision| {
            let mut store = Store::new(&device);
            let mut random = Random(3);
            let mut make = |len: usize| -> Vec<f32> { (0..len).map(|_| random.unit() as f32 - 0.5).collect() };
            let (a, b) = (store.upload("a", &make(2 * 33 * 20)), store.upload("b", &make(2 * 20 * 17)));
            let to = store.upload("c", &[f32::NAN; 2 * 33 * 17]);
            let mut tape = Tape::new(&store);
            let a = tape.persistent("a", a, 0, [2, 33, 20]).expect("a");
            let b = tape.persistent("b", b, 0, [2, 17, 20]).expect("b");
            let c = ops::matmul_in(&mut tape, precision, a, b, false, true).expect("it fits");
            tape.place(c, to, 0).expect("place");
            tape.compile(&store).expect("there are kernels").replay(&mut store).expect("it runs");
            let mut all = vec![0f32; 2 * 33 * 17];
            store.read(to, 0, &mut all).expect("read");
            digest(&precision.to_string(), &all);
            all
        };
        let (f32, bf16) = (run(Precision::F32), run(Precision::Bf16));
        assert_eq!(run(Precision::F32Split), f32);
        let wide: Vec<f64> = f32.iter().map(|&x| f64::from(x)).collect();
        assert_ne!(bf16, f32);
        for (got, want) in bf16.iter().zip(wide) {
            // 20 products of numbers below 0.5, each with two roundings of half of 2^-8.
            assert!((f64::from(*got) - want).abs() <= 20.0 * 0.25 / 256.0, "{got} for {want}");
        }
    }
}
