//! Products against sums in f64: every layout, tile, type and epilogue, several matrices and sums in parts; shapes that are
//! no multiples of anything, and rows that begin anywhere.

use crate::common::{Random, assert_close};
use crate::elementwise::{assert_close_bf16, bf16s};
use crate::gpu::{Gpu, NULL, at, digest, launch};
use crate::on_stand_in;
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use twoclocks::TensorType;
use twoclocks::device::Control;
use twoclocks::ops::unary::{Kind, Unary};
use twoclocks::ops::{Operation, Tolerance, Values};

/// As `Epilogue` in kernels/common/epilogue.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Epilogue {
    pub bias: u64,
    pub saved: u64,
    pub argument: u64,
    pub y: u64,
    pub y_bf16: u64,
    pub activation: u32,
    pub mask: u32,
    pub accumulate: u32,
    pub unused: u32,
}
/// As `Gemm` in kernels/common/product.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arguments {
    pub a: u64,
    pub b: u64,
    pub partials: u64,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub lda: u32,
    pub ldb: u32,
    pub k_per_split: u32,
    pub splits: u32,
    pub batches: u32,
    pub epilogue: Epilogue,
}
// SAFETY: numbers alone, as the kernels declare them.
unsafe impl cudarc::driver::DeviceRepr for Epilogue {}
// SAFETY: as above.
unsafe impl cudarc::driver::DeviceRepr for Arguments {}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// Tensor cores with bf16 or f32 operands.
    Mma(&'static str),
    Fma,
    FmaTuring,
}

impl Kernel {
    /// Whether operands are rounded to bf16.
    fn rounds(self) -> bool {
        matches!(self, Kernel::Mma(_))
    }
}

/// `batches` operands [m][k] and [k][n] and what they give, in f64; bf16 where the kernel rounds.
pub struct Product {
    pub batches: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub y: Vec<f64>,
}

impl Product {
    pub fn new(shape: [usize; 3], rounded: bool) -> Product {
        Product::batched(1, shape, rounded)
    }

    pub fn batched(batches: usize, [m, n, k]: [usize; 3], rounded: bool) -> Product {
        let mut random = Random((m * 1_000_003 + n * 1009 + k) as u64);
        let mut make = |len: usize| -> Vec<f64> {
            let all: Vec<f64> = (0..len).map(|_| random.unit() * 2.0 - 1.0).collect();
            if rounded { bf16s(&all).1 } else { all.iter().map(|&x| f64::from(x as f32)).collect() }
        };
        let (a, b) = (make(batches * m * k), make(batches * k * n));
        let mut y = vec![0.0; batches * m * n];
        for batch in 0..batches {
            let (a, b) = (&a[batch * m * k..], &b[batch * k * n..]);
            let y = &mut y[batch * m * n..];
            for i in 0..m {
                for l in 0..k {
                    for j in 0..n {
                        y[i * n + j] += a[i * k + l] * b[l * n + j];
                    }
                }
            }
        }
        Product { batches, m, n, k, a, b, y }
    }
}

pub fn transposed(x: &[f64], rows: usize) -> Vec<f64> {
    let columns = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Threads and dynamic shared memory, as src/ops/matmul/cuda.rs has them: of `width` bytes an element.
pub fn block(kernel: Kernel, tile: usize) -> (usize, usize) {
    let (width, threads, groups) = match (kernel, tile) {
        (Kernel::Mma("bf16"), 32) => (2, 128, 4),
        (Kernel::Mma("bf16"), 64) => (2, 256, 2),
        (Kernel::Mma("bf16"), _) => (2, 256, 1),
        (Kernel::Mma(_), 32) => (4, 128, 4),
        (Kernel::Mma(_), 64) => (4, 256, 2),
        (Kernel::Fma | Kernel::FmaTuring, 32 | 64) => (4, 256, 4),
        _ => (4, 256, 1),
    };
    let part = match (tile, width) {
        (128, 4) => 128 * (16 + 8),
        (128, _) => 128 * (32 + 8),
        (32, 4) => 32 * (64 + 8),
        _ => 64 * (32 + 8),
    };
    // The sums of a tile, or of half of it, take over what the ring had.
    let (stages, rows) = match (kernel, tile) {
        (Kernel::FmaTuring, 64 | 128) => (2, tile / 2),
        (Kernel::FmaTuring, _) => (2, tile),
        _ => (3, tile),
    };
    (threads, (stages * 2 * part * width).max(groups * rows * (tile + 8) * 4))
}

/// How a product is launched.
#[derive(Clone, Copy)]
struct How<'a> {
    layout: &'a str,
    tile: usize,
    splits: usize,
    /// Elements before the operands: addresses that are no multiples of 16 bytes.
    shift: usize,
}

fn plain(layout: &str, tile: usize) -> How<'_> {
    How { layout, tile, splits: 1, shift: 0 }
}

/// Runs the product; `epilogue` names device memory.
fn run(gpu: &Gpu, kernel: Kernel, how: How<'_>, product: &Product, epilogue: Epilogue) {
    let How { layout, tile, splits, shift } = how;
    let &Product { batches, m, n, k, .. } = product;
    let (ta, tb) = (layout.starts_with('t'), layout.ends_with('t'));
    let before = vec![f64::NAN; shift];
    let stored = |x: &[f64], transpose: bool, rows: usize, columns: usize| {
        let each = x.chunks((rows * columns).max(1));
        let x =
            if transpose { each.flat_map(|x| transposed(x, rows)).collect() } else { x.to_vec() };
        // One more, as there is no memory of nothing.
        [&before[..], &x[..], &[f64::NAN][..]].concat()
    };
    let (a, b) = (stored(&product.a, ta, m, k), stored(&product.b, tb, k, n));
    let wide = |x: &[f64]| gpu.upload(&x.iter().map(|&x| x as f32).collect::<Vec<_>>());
    let (a_wide, b_wide) = (wide(&a), wide(&b));
    let (a_narrow, b_narrow) = (gpu.upload(&bf16s(&a).0), gpu.upload(&bf16s(&b).0));
    let (file, name) = match kernel {
        Kernel::Mma("bf16") => ("gemm_bf16", format!("gemm_mma_bf16_{layout}_{tile}")),
        Kernel::Mma(dtype) => ("gemm", format!("gemm_mma_{dtype}_{layout}_{tile}")),
        Kernel::Fma => ("gemm_fma", format!("gemm_fma_f32_{layout}_{tile}")),
        Kernel::FmaTuring => ("gemm_fma_turing", format!("gemm_fma_turing_f32_{layout}_{tile}")),
    };
    let (threads, shared) = block(kernel, tile);
    let function = gpu.kernel(file, &name);
    let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(limit, shared as i32).expect("it is allowed");
    let narrow = kernel == Kernel::Mma("bf16");
    // A multiple of 32, and no empty part.
    let k_per_split = (k.div_ceil(splits).div_ceil(32) * 32).max(32);
    let splits = k.div_ceil(k_per_split).max(1);
    let size = batches * m * n;
    let partials = gpu.unset::<f32>(splits * size);
    let shifted = |at: u64, width: usize| at + (shift * width) as u64;
    let arguments = Arguments {
        a: if narrow { shifted(at(&a_narrow), 2) } else { shifted(at(&a_wide), 4) },
        b: if narrow { shifted(at(&b_narrow), 2) } else { shifted(at(&b_wide), 4) },
        partials: if splits > 1 { at(&partials) } else { NULL },
        m: m as u32,
        n: n as u32,
        k: k as u32,
        lda: if ta { m } else { k } as u32,
        ldb: if tb { k } else { n } as u32,
        k_per_split: k_per_split as u32,
        splits: splits as u32,
        batches: batches as u32,
        epilogue,
    };
    let grid = (n.div_ceil(tile) * m.div_ceil(tile) * splits * batches) as u32;
    launch!(gpu, function, grid, threads as u32, shared as u32, arguments).expect("it runs");
    if splits > 1 {
        let sum = gpu.kernel("gemm_sum", "gemm_sum");
        let grid = size.div_ceil(1024) as u32;
        launch!(
            gpu,
            sum,
            grid,
            256,
            0,
            at(&partials),
            splits as u32,
            n as u32,
            size as u64,
            epilogue
        )
        .expect("it runs");
    }
    gpu.stream.synchronize().expect("it ran");
}

const KERNELS: [Kernel; 4] =
    [Kernel::Mma("bf16"), Kernel::Mma("f32"), Kernel::Fma, Kernel::FmaTuring];
const LAYOUTS: [&str; 4] = ["nn", "nt", "tn", "tt"];

/// Shapes m, n, k around tiles and steps; rows that begin at multiples of 16 bytes and rows that do not.
const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [64, 64, 32],
    [65, 63, 33],
    [16, 8, 16],
    [7, 130, 40],
    [128, 72, 96],
    [31, 10, 200],
    [130, 129, 17],
    [33, 36, 0],
];

on_stand_in! {
    fn products() {
        let gpu = Gpu::new();
        for kernel in KERNELS {
            for shape in SHAPES {
                let product = Product::new(shape, kernel.rounds());
                for layout in LAYOUTS {
                    for tile in [32, 64, 128] {
                        let what = format!("{kernel:?} {layout} {shape:?} tile {tile}");
                        let y = gpu.unset::<f32>(product.m * product.n);
                        let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
                        run(&gpu, kernel, plain(layout, tile), &product, epilogue);
                        let got = gpu.download(&y);
                        digest(&what, &got);
                        assert_close(&what, &got, &product.y, Tolerance::Accumulation(product.k));
                    }
                }
            }
        }
    }
}

on_stand_in! {
    fn products_of_several_matrices_at_any_address() {
        let gpu = Gpu::new();
        for kernel in KERNELS {
            for (batches, shape, splits) in [(3, [33, 40, 72], 1), (2, [40, 36, 160], 3), (5, [9, 7, 96], 2)] {
                let product = Product::batched(batches, shape, kernel.rounds());
                for (layout, tile) in [("nn", 32), ("nt", 64), ("tn", 32), ("tt", 64), ("tt", 128)] {
                    for shift in [0, 1] {
                        let what = format!("{kernel:?} {layout} {batches} {shape:?} tile {tile} shift {shift}");
                        let how = How { layout, tile, splits, shift };
                        let y = gpu.upload(&vec![f32::NAN; shift + product.y.len()]);
                        let to = at(&y) + 4 * shift as u64;
                        run(&gpu, kernel, how, &product, Epilogue { y: to, ..Epilogue::default() });
                        let got = gpu.download(&y);
                        assert!(got[..shift].iter().all(|y| y.is_nan()), "{what}: what lies before");
                        digest(&what, &got[shift..]);
                        assert_close(&what, &got[shift..], &product.y, Tolerance::Accumulation(product.k));
                    }
                }
            }
        }
    }
}

on_stand_in! {
    /// More than there may be blocks along y and z.
    fn many_small_products() {
        let gpu = Gpu::new();
        for (batches, m) in [(65_600, 1), (1, 32 * 65_600)] {
            let product = Product::batched(batches, [m, 1, 1], true);
            let y = gpu.unset::<f32>(batches * m);
            let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
            run(&gpu, Kernel::Mma("bf16"), plain("nn", 32), &product, epilogue);
            let got = gpu.download(&y);
            digest("many", &got);
            assert_close("many", &got, &product.y, Tolerance::Exact);
        }
    }
}

on_stand_in! {
    fn split_products() {
        let gpu = Gpu::new();
        for kernel in KERNELS {
            for n in [40, 37] {
                let product = Product::new([72, n, 304], kernel.rounds());
                // Rows at multiples of 16 bytes: bf16 is copied asynchronously.
                for (layout, tile, splits) in [("nn", 64, 3), ("nt", 32, 5), ("tn", 128, 2), ("tt", 32, 10)] {
                    let what = format!("{kernel:?} {layout} {n} in {splits}");
                    let y = gpu.upload(&vec![0.25f32; product.m * n]);
                    let bias = gpu.upload(&vec![0.5f32; n]);
                    let epilogue = Epilogue { y: at(&y), bias: at(&bias), accumulate: 1, ..Epilogue::default() };
                    let how = How { layout, tile, splits, shift: 0 };
                    run(&gpu, kernel, how, &product, epilogue);
                    let got = gpu.download(&y);
                    digest(&what, &got);
                    let want: Vec<f64> = product.y.iter().map(|y| y + 0.75).collect();
                    assert_close(&what, &got, &want, Tolerance::Accumulation(product.k));
                }
            }
        }
    }
}

/// The activations of `common/math.cuh`, by the oracle of `src/ops/unary`.
pub fn activate(number: u32, z: &[f64]) -> Vec<f64> {
    let kind = match number {
        0 => return z.to_vec(),
        1 => Kind::Relu,
        2 => Kind::Gelu,
        3 => Kind::Tanh,
        _ => Kind::Silu,
    };
    let tensor_type = TensorType::f32([z.len()]);
    let inputs = [Values { tensor_type: tensor_type.clone(), data: z.to_vec() }];
    let mut outputs = [Values::zeros(tensor_type)];
    Unary { kind }.naive(&inputs, &mut outputs, &Control::new());
    outputs[0].data.clone()
}

/// Their derivatives.
pub fn derivative(number: u32, saved: f64) -> f64 {
    match number {
        1 => f64::from(saved > 0.0),
        2 => {
            let cdf = if saved == 0.0 { 0.5 } else { activate(2, &[saved])[0] / saved };
            cdf + saved * (-saved * saved / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
        }
        3 => 1.0 - saved * saved,
        4 => {
            let s = 1.0 / (1.0 + (-saved).exp());
            s + saved * s * (1.0 - s)
        }
        _ => 1.0,
    }
}

on_stand_in! {
    fn epilogues() {
        let gpu = Gpu::new();
        // Columns in fours and singly.
        for (kernel, n, tile) in
            [(Kernel::Mma("bf16"), 37, 64), (Kernel::Mma("f32"), 36, 32), (Kernel::Fma, 37, 64), (Kernel::Fma, 36, 128)]
        {
            let product = Product::new([67, n, 48], kernel.rounds());
            let size = product.m * product.n;
            let bias: Vec<f32> = (0..n).map(|j| j as f32 / 16.0 - 1.0).collect();
            let saved: Vec<f32> = (0..size).map(|i| (i % 13) as f32 / 16.0 - 0.375).collect();
            let (bias_at, saved_at) = (gpu.upload(&bias), gpu.upload(&saved));
            let with_bias: Vec<f64> =
                product.y.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % n])).collect();
            // A sum of 48 products, then functions with slopes up to 1.1.
            let tolerance = Tolerance::Accumulation(2 * 48);
            for activation in 0..5 {
                let what = format!("{kernel:?} {n}, activation {activation}");
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
                run(&gpu, kernel, plain("nn", tile), &product, epilogue);
                let want: Vec<f64> = activate(activation, &with_bias);
                assert_close(&format!("{what}: z"), &gpu.download(&z), &with_bias, tolerance);
                assert_close(&what, &gpu.download(&y), &want, tolerance);
                assert_close_bf16(&what, &gpu.download(&narrow), &want, 1.1);
                digest(&what, &gpu.download(&y));
                // The gradient mask: dz = dy act'(saved), then added to what was there.
                let derivative = |saved| derivative(activation, saved);
                let y = gpu.upload(&vec![0.25f32; size]);
                let epilogue = Epilogue {
                    saved: at(&saved_at),
                    mask: activation,
                    y: at(&y),
                    accumulate: 1,
                    ..Epilogue::default()
                };
                run(&gpu, kernel, plain("nt", tile), &product, epilogue);
                let want: Vec<f64> = product.y.iter().zip(&saved)
                    .map(|(y, &saved)| y * derivative(f64::from(saved)) + 0.25).collect();
                assert_close(&format!("{what}: mask"), &gpu.download(&y), &want, tolerance);
            }
        }
    }
}
