//! Products of `kernels/gemm_sm90.cu` against sums in f64, and what the stand-in finds wrong with barriers, tiles and products.

use crate::build::{self, HOPPER};
use crate::common::assert_close;
use crate::elementwise::{assert_close_bf16, bf16s};
use crate::gemm::{Epilogue, Product, activate, derivative, transposed};
use crate::gpu::{Gpu, NULL, at, digest, launch, launch_clusters};
use crate::on_hopper;
use crate::tool::{LAUNCH_FAILED, caught_with};
use cudarc::driver::sys::{
    self, CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CUresult,
};
use std::ffi::c_void;
use twoclocks::ops::Tolerance;

/// As `Gemm` in kernels/gemm_sm90.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    partials: u64,
    m: u32,
    n: u32,
    k: u32,
    k_per_split: u32,
    splits: u32,
    store_tiles: u32,
    epilogue: Epilogue,
}

const SHARED: u32 = 230_656;

/// A tensor of bf16 (rank 2) or f32 (rank 3), rows `stride` elements apart, as boxes of 128 bytes by 64 rows.
fn map(address: u64, extents: &[usize], stride: usize) -> sys::CUtensorMap {
    let wide = extents.len() == 3;
    let bytes = if wide { 4 } else { 2 };
    let extents: Vec<u64> = extents.iter().map(|&extent| extent as u64).collect();
    let row = (stride * bytes) as u64;
    let strides = [row, row * extents[1]];
    let extent = if wide { 32 } else { 64 };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: all arrays are as long as the rank says, and the map is aligned as its type.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            match wide {
                true => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                false => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            },
            extents.len() as u32,
            address as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            [extent, 64, 1].as_ptr(),
            [1, 1, 1].as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    assert_eq!(result, CUresult::CUDA_SUCCESS, "{extents:?} {stride}");
    map
}

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
struct Way {
    layout: &'static str,
    columns: usize,
    /// Blocks of a cluster, and clusters.
    cluster: u32,
    clusters: u32,
    splits: usize,
}

/// Runs the product; `epilogue` names device memory beside y.
fn run(gpu: &Gpu, way: Way, product: &Product, epilogue: Epilogue, store_tiles: bool) {
    let &Product { m, n, k, .. } = product;
    let Way { layout, columns, cluster, clusters, splits } = way;
    let (ta, tb) = (layout.starts_with('t'), layout.ends_with('t'));
    // By the kernel's own conversion, as the crate does it.
    let stored = |x: &[f64], rows: usize| -> (_, Vec<f32>) {
        let values: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let columns = values.len() / rows;
        ((rows, columns, columns.next_multiple_of(8)), values)
    };
    let (a_shape, a) = match ta {
        true => stored(&transposed(&product.a, m), k),
        false => stored(&product.a, m),
    };
    let (b_shape, b) = match tb {
        true => stored(&transposed(&product.b, k), n),
        false => stored(&product.b, k),
    };
    let (a_wide, b_wide) = (gpu.upload(&a), gpu.upload(&b));
    let narrow = |(rows, _, stride)| gpu.unset::<u16>(rows * stride);
    let (a_narrow, b_narrow) = (narrow(a_shape), narrow(b_shape));
    #[repr(C)]
    struct Convert {
        x: u64,
        y: u64,
        rows: u32,
        columns: u32,
        stride: u32,
        blocks: u32,
    }
    // SAFETY: numbers alone, as the kernel declares them.
    unsafe impl cudarc::driver::DeviceRepr for Convert {}
    let convert = |x, y, (rows, columns, stride): (usize, usize, usize)| Convert {
        x,
        y,
        rows: rows as u32,
        columns: columns as u32,
        stride: stride as u32,
        blocks: (rows * stride / 8).div_ceil(256) as u32,
    };
    let of_a = convert(at(&a_wide), at(&a_narrow), a_shape);
    let of_b = convert(at(&b_wide), at(&b_narrow), b_shape);
    let blocks = of_a.blocks + of_b.blocks;
    let kernel = gpu.kernel("gemm_sm90", "gemm_sm90_convert");
    launch!(gpu, kernel, blocks, 256, 0, of_a, of_b).expect("it runs");

    let kernel = gpu.kernel("gemm_sm90", &format!("gemm_sm90_{layout}_{columns}"));
    let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(limit, SHARED as i32).expect("it is allowed");
    let k_per_split = k.div_ceil(splits).div_ceil(64) * 64;
    let splits = k.div_ceil(k_per_split);
    let partials = gpu.unset::<f32>(splits * m * n);
    let result = if splits > 1 { at(&partials) } else { epilogue.y };
    let of_operand = |address, (rows, columns, stride)| map(address, &[columns, rows], stride);
    let maps = [
        of_operand(at(&a_narrow), a_shape),
        of_operand(at(&b_narrow), b_shape),
        match store_tiles {
            true => map(result, &[n, m, splits], n),
            false => sys::CUtensorMap { opaque: [0; 16] },
        },
    ];
    let arguments = Arguments {
        partials: if splits > 1 { result } else { NULL },
        m: m as u32,
        n: n as u32,
        k: k as u32,
        k_per_split: k_per_split as u32,
        splits: splits as u32,
        store_tiles: store_tiles.into(),
        epilogue,
    };
    let pointers: Vec<*const c_void> = std::iter::once(std::ptr::from_ref(&arguments).cast())
        .chain(maps.iter().map(|map| std::ptr::from_ref(map).cast()))
        .collect();
    let extents = [(clusters * cluster, 1, 1), (cluster, 1, 1), (384, 1, 1)];
    let launched = launch_clusters(gpu, &kernel, extents, SHARED, &pointers);
    assert_eq!(launched, CUresult::CUDA_SUCCESS);
    if splits > 1 {
        let sum = gpu.kernel("gemm_sum", "gemm_sum");
        let grid = (m * n).div_ceil(1024) as u32;
        launch!(gpu, sum, grid, 256, 0, result, splits as u32, n as u32, (m * n) as u64, epilogue)
            .expect("it runs");
    }
    gpu.stream.synchronize().expect("it ran");
}

/// A product that pays on Hopper, recorded on a tape. Its entries in some rows against sums in f64.
#[cfg(feature = "cuda")]
mod on_a_tape {
    use crate::build::{self, HOPPER};
    use crate::common::{Random, assert_close};
    use crate::elementwise::bf16s;
    use crate::gpu::digest;
    use twoclocks::device::cuda::{Cuda, Route};
    use twoclocks::gemm::Precision;
    use twoclocks::ops::{Tolerance, matmul};
    use twoclocks::{Device, Recorder, Store, Tape};

    #[test]
    fn large_products_are_hoppers() {
        build::on_stand_in_with(
            "hopper::on_a_tape::large_products_are_hoppers",
            &["shuffle:1"],
            &HOPPER,
            || {
                let device = Device::cuda("cuda:0").expect("the stand-in has a device");
                let mut store = Store::new(&device);
                let (m, n, k) = (2040, 2056, 304);
                let mut random = Random(3);
                let mut make = |len: usize| -> Vec<f64> {
                    bf16s(&(0..len).map(|_| random.unit() * 2.0 - 1.0).collect::<Vec<_>>()).1
                };
                let (a, b) = (make(m * k), make(k * n));
                let upload = |store: &mut Store, name, x: &[f64]| {
                    store.upload(name, &x.iter().map(|&x| x as f32).collect::<Vec<_>>())
                };
                let (a_at, b_at) = (upload(&mut store, "a", &a), upload(&mut store, "b", &b));
                let mut tape = Tape::new(&store);
                let a_var = tape.persistent("a", a_at, 0, [m, k]).expect("a");
                let b_var = tape.persistent("b", b_at, 0, [k, n]).expect("b");
                let y = matmul::matmul_in(&mut tape, Precision::Bf16, a_var, b_var, false, false)
                    .expect("fits");
                assert_eq!(tape.tensor_type(y).elements(), m * n);
                tape.output(y).expect("output");
                let mut recording = tape.compile(&store).expect("it compiles");
                assert_eq!(recording.nodes()[0].kernel, "gemm_sm90");
                recording.replay(&mut store).expect("it runs");
                let got = recording.read(y).expect("read");
                for row in [0, 63, 127, 128, 1000, 2039] {
                    let want: Vec<f64> = (0..n)
                        .map(|j| (0..k).map(|l| a[row * k + l] * b[l * n + j]).sum())
                        .collect();
                    assert_close(
                        &format!("row {row}"),
                        &got[row * n..][..n],
                        &want,
                        Tolerance::Accumulation(k),
                    );
                }
                digest("y", &got);
            },
        );
    }

    #[test]
    fn the_cubin_is_loaded_where_the_driver_takes_it() {
        let name = "hopper::on_a_tape::the_cubin_is_loaded_where_the_driver_takes_it";
        let body = || {
            let route = Cuda::open("cuda:0").and_then(|device| device.route("gemm_sm90"));
            println!(
                "\nroute: {}",
                route.as_ref().map_or_else(ToString::to_string, Route::to_string)
            );
        };
        if build::skipped(name) {
            return;
        }
        if build::inside() {
            return body();
        }
        let refuse = ("TWOCLOCKS_STANDIN_CUBIN", "refuse");
        for (variables, words) in [
            (&HOPPER[..], "route: cubin for sm_90a"),
            (
                &[HOPPER[0], refuse][..],
                "route: PTX, compiled by the driver, which refused the cubin",
            ),
            (&[][..], "do not load on sm_80"),
        ] {
            let Some(output) = build::start(name, variables) else { return };
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains(words), "no `{words}` in {said}");
        }
    }
}

const LAYOUTS: [&str; 3] = ["nn", "nt", "tn"];

on_hopper! {
    /// Around tiles, boxes and steps, with rows that can be stored as tiles and rows that cannot.
    fn products() {
        let gpu = Gpu::new();
        for shape in [[1, 1, 1], [64, 64, 64], [130, 260, 70], [257, 129, 136], [127, 40, 9]] {
            let product = Product::new(shape, true);
            for layout in LAYOUTS {
                let mut first = None;
                for (columns, cluster) in [(256, 2), (128, 2), (256, 1), (128, 1)] {
                    let way = Way { layout, columns, cluster, clusters: 1, splits: 1 };
                    let what = format!("{way:?} {shape:?}");
                    let y = gpu.unset::<f32>(product.m * product.n);
                    let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
                    run(&gpu, way, &product, epilogue, shape[1] % 4 == 0);
                    let got = gpu.download(&y);
                    digest(&what, &got);
                    assert_close(&what, &got, &product.y, Tolerance::Accumulation(product.k));
                    let bits: Vec<u32> = got.iter().map(|y| y.to_bits()).collect();
                    assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{what}");
                }
            }
        }
    }
}

on_hopper! {
    /// More steps than stages, several tiles to a cluster, several clusters; K in parts.
    fn rings_and_splits() {
        let gpu = Gpu::new();
        let product = Product::new([300, 136, 456], true);
        for (layout, columns, cluster, clusters, splits) in [
            ("nn", 128, 2, 1, 1),
            ("nt", 256, 2, 2, 1),
            ("tn", 128, 1, 2, 3),
            ("nn", 256, 2, 3, 2),
        ] {
            for store_tiles in [true, false] {
                let way = Way { layout, columns, cluster, clusters, splits };
                let what = format!("{way:?} {store_tiles}");
                let y = gpu.unset::<f32>(product.m * product.n);
                let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
                run(&gpu, way, &product, epilogue, store_tiles);
                let got = gpu.download(&y);
                digest(&what, &got);
                assert_close(&what, &got, &product.y, Tolerance::Accumulation(product.k));
            }
        }
    }
}

on_hopper! {
    /// More rows than clusters go down before the next column.
    fn tall_products() {
        let gpu = Gpu::new();
        let product = Product::new([2200, 136, 24], true);
        for (layout, cluster, clusters, splits) in [("nn", 2, 3, 1), ("nt", 1, 5, 1), ("tn", 2, 2, 1)] {
            let way = Way { layout, columns: 128, cluster, clusters, splits };
            let what = format!("{way:?}");
            let y = gpu.unset::<f32>(product.m * product.n);
            let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
            run(&gpu, way, &product, epilogue, true);
            let got = gpu.download(&y);
            digest(&what, &got);
            assert_close(&what, &got, &product.y, Tolerance::Accumulation(product.k));
        }
    }
}

on_hopper! {
    fn epilogues() {
        let gpu = Gpu::new();
        for (n, columns) in [(44, 128), (37, 256)] {
            let product = Product::new([70, n, 48], true);
            let size = product.m * n;
            let bias: Vec<f32> = (0..n).map(|j| j as f32 / 16.0 - 1.0).collect();
            let saved: Vec<f32> = (0..size).map(|i| (i % 13) as f32 / 16.0 - 0.375).collect();
            let (bias_at, saved_at) = (gpu.upload(&bias), gpu.upload(&saved));
            let with_bias: Vec<f64> =
                product.y.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % n])).collect();
            let tolerance = Tolerance::Accumulation(2 * 48);
            for activation in 0..5 {
                let what = format!("{n} columns, activation {activation}");
                let (y, z) = (gpu.unset::<f32>(size), gpu.unset::<f32>(size));
                let narrow = gpu.unset::<u16>(size);
                let epilogue = Epilogue {
                    bias: at(&bias_at),
                    argument: at(&z),
                    y: at(&y),
                    y_bf16: at(&narrow),
                    activation,
                    ..Epilogue::default()
                };
                let way = Way { layout: "nn", columns, cluster: 1, clusters: 1, splits: 1 };
                run(&gpu, way, &product, epilogue, false);
                let want: Vec<f64> = activate(activation, &with_bias);
                assert_close(&format!("{what}: z"), &gpu.download(&z), &with_bias, tolerance);
                assert_close(&what, &gpu.download(&y), &want, tolerance);
                assert_close_bf16(&what, &gpu.download(&narrow), &want, 1.1);
                digest(&what, &gpu.download(&y));
                // The gradient mask, and what was there.
                let y = gpu.upload(&vec![0.25f32; size]);
                let epilogue = Epilogue {
                    saved: at(&saved_at),
                    mask: activation,
                    y: at(&y),
                    accumulate: 1,
                    ..Epilogue::default()
                };
                run(&gpu, Way { layout: "nt", ..way }, &product, epilogue, false);
                let want: Vec<f64> = product.y.iter().zip(&saved)
                    .map(|(y, &saved)| y * derivative(activation, f64::from(saved)) + 0.25).collect();
                assert_close(&format!("{what}: mask"), &gpu.download(&y), &want, tolerance);
            }
        }
    }
}

/// Launches `planted_tile` with a fault, or none: the box at (8, 3) of a tensor of 70 x 65.
fn tile(gpu: &Gpu, fault: u32) -> Result<Vec<f32>, CUresult> {
    let kernel = gpu.planted("planted_tile", 64, &[".u64", ".u32", "map", "map"]);
    let (x, values) = bf16s(&(0..72 * 65).map(|i| f64::from(i % 251)).collect::<Vec<_>>());
    let (x, y) = (gpu.upload(&x), gpu.unset::<u16>(64 * 64));
    let copy = gpu.unset::<f32>(32 * 64);
    let maps = [map(at(&x), &[70, 65], 72), map(at(&copy), &[32, 64, 1], 32)];
    let address = at(&y);
    let pointers = [
        std::ptr::from_ref(&address).cast(),
        std::ptr::from_ref(&fault).cast(),
        std::ptr::from_ref(&maps[0]).cast(),
        std::ptr::from_ref(&maps[1]).cast(),
    ];
    let extents = [(1, 1, 1), (1, 1, 1), (64, 1, 1)];
    let launched = launch_clusters(gpu, &kernel, extents, 8192 + 1024 + 64, &pointers);
    assert_eq!(launched, CUresult::CUDA_SUCCESS);
    if let Err(error) = gpu.stream.synchronize() {
        std::mem::forget((x, y, copy));
        return Err(error.0);
    }
    let (got, copied) = (gpu.download(&y), gpu.download(&copy));
    for (i, &got) in got.iter().enumerate() {
        let (row, column) = (i / 64 + 3, i % 64 + 8);
        let want = if row < 65 && column < 70 { values[row * 72 + column] } else { 0.0 };
        assert_eq!(
            f64::from(f32::from_bits(u32::from(got) << 16)),
            want,
            "row {row}, column {column}"
        );
        let half = copied[i / 2].to_bits() >> (i % 2 * 16);
        assert_eq!(half as u16, got, "stored as it was loaded");
    }
    Ok(copied)
}

on_hopper! {
    fn tiles() {
        let copied = tile(&Gpu::new(), 0).expect("nothing is wrong");
        digest("tile", &copied);
    }
}

/// A fault of `planted_tile` that is found in these orders.
fn faulty_tile(name: &str, fault: u32, orders: &[&str], words: &[&str]) {
    let name = format!("hopper::{name}");
    caught_with(&name, orders, &HOPPER, &[&["planted_tile"], words].concat(), || {
        assert_eq!(tile(&Gpu::new(), fault).expect_err("it is caught"), LAUNCH_FAILED);
    });
}

#[test]
fn an_mbarrier_that_nobody_initialised_is_caught() {
    let words = ["an mbarrier that was not initialised"];
    faulty_tile("an_mbarrier_that_nobody_initialised_is_caught", 1, &build::ORDERS, &words);
}

#[test]
fn a_missing_arrival_is_a_deadlock() {
    let words = [
        "deadlock: thread (",
        "waits for an mbarrier at byte",
        "1 of 1 arrivals and -8192 bytes are missing",
        "planted.cu",
    ];
    faulty_tile("a_missing_arrival_is_a_deadlock", 2, &build::ORDERS, &words);
}

#[test]
fn too_many_expected_bytes_are_a_deadlock() {
    let words = ["deadlock: thread (", "0 of 1 arrivals and 128 bytes are missing"];
    faulty_tile("too_many_expected_bytes_are_a_deadlock", 3, &build::ORDERS, &words);
}

#[test]
fn too_few_expected_bytes_are_caught() {
    let words = ["deadlock: thread (", "0 of 1 arrivals and -4096 bytes are missing"];
    faulty_tile("too_few_expected_bytes_are_caught", 4, &build::ORDERS, &words);
}

#[test]
fn a_tile_that_nobody_waits_for_is_caught() {
    let words = ["the block returns with an mbarrier"];
    faulty_tile("a_tile_that_nobody_waits_for_is_caught", 5, &["forward"], &words);
}

#[test]
fn a_store_that_nobody_waits_for_is_caught() {
    let words = ["a copy of a tile lands after its block has returned"];
    faulty_tile("a_store_that_nobody_waits_for_is_caught", 6, &["forward"], &words);
}

fn product(fault: u32) -> Result<Vec<f32>, CUresult> {
    let gpu = Gpu::new();
    let kernel = gpu.planted("planted_product", 128, &[".u64", ".u32"]);
    let y = gpu.unset::<f32>(128);
    launch!(gpu, kernel, 1, 128, 26 << 10, at(&y), fault).expect("it is launched");
    match gpu.stream.synchronize() {
        Ok(()) => Ok(gpu.download(&y)),
        Err(error) => {
            std::mem::forget(y);
            Err(error.0)
        }
    }
}

on_hopper! {
    fn products_of_a_warpgroup() {
        assert_eq!(product(0).expect("nothing is wrong"), [16.0; 128]);
        // Sums that were not waited for are what they were.
        assert_eq!(product(3).expect("it runs"), [-1.0; 128]);
    }
}

/// A fault of `planted_product`.
fn faulty_product(name: &str, fault: u32, word: &str) {
    let name = format!("hopper::{name}");
    caught_with(&name, &build::ORDERS, &HOPPER, &["planted_product", word], || {
        assert_eq!(product(fault).expect_err("it is caught"), LAUNCH_FAILED);
    });
}

#[test]
fn descriptors_are_checked() {
    let word = "a matrix descriptor without the swizzle of 128 bytes";
    faulty_product("descriptors_are_checked", 1, word);
}

#[test]
fn descriptors_agree_within_a_warp() {
    let word = "a product whose operands differ within a warp";
    faulty_product("descriptors_agree_within_a_warp", 2, word);
}
