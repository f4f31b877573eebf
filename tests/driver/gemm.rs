//! Products against sums in f64: every layout, tile, type and epilogue, and shapes that are no multiples of anything.

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
/// As `Gemm` in kernels/gemm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    a: u64,
    b: u64,
    partials: u64,
    m: u32,
    n: u32,
    k: u32,
    lda: u32,
    ldb: u32,
    k_per_split: u32,
    epilogue: Epilogue,
}
// SAFETY: numbers alone, as the kernels declare them.
unsafe impl cudarc::driver::DeviceRepr for Epilogue {}
// SAFETY: as above.
unsafe impl cudarc::driver::DeviceRepr for Arguments {}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    /// Tensor cores with bf16 or f32 operands.
    Mma(&'static str),
    Fma,
}

/// Operands [m][k] and [k][n] and what they give, in f64; bf16 where the kernel rounds.
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub y: Vec<f64>,
}

impl Product {
    pub fn new([m, n, k]: [usize; 3], rounded: bool) -> Product {
        let mut random = Random((m * 1_000_003 + n * 1009 + k) as u64);
        let mut make = |len: usize| -> Vec<f64> {
            let all: Vec<f64> = (0..len).map(|_| random.unit() * 2.0 - 1.0).collect();
            if rounded { bf16s(&all).1 } else { all }
        };
        let (a, b) = (make(m * k), make(k * n));
        let mut y = vec![0.0; m * n];
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    y[i * n + j] += a[i * k + l] * b[l * n + j];
                }
            }
        }
        Product { m, n, k, a, b, y }
    }
}

pub fn transposed(x: &[f64], rows: usize) -> Vec<f64> {
    let columns = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Runs the product; `epilogue` names device memory beside y.
fn run(
    gpu: &Gpu,
    kernel: Kernel,
    layout: &str,
    tile: usize,
    product: &Product,
    splits: usize,
    epilogue: Epilogue,
) {
    let &Product { m, n, k, .. } = product;
    let (ta, tb) = (layout.starts_with('t'), layout.ends_with('t'));
    let a = if ta { transposed(&product.a, m) } else { product.a.clone() };
    let b = if tb { transposed(&product.b, k) } else { product.b.clone() };
    let wide = |x: &[f64]| gpu.upload(&x.iter().map(|&x| x as f32).collect::<Vec<_>>());
    let (a_wide, b_wide) = (wide(&a), wide(&b));
    let (a_narrow, b_narrow) = (gpu.upload(&bf16s(&a).0), gpu.upload(&bf16s(&b).0));
    let (file, name, threads, shared) = match kernel {
        Kernel::Mma(dtype) => {
            ("gemm", format!("gemm_mma_{dtype}_{layout}_{tile}"), tile * 2, tile * 480)
        }
        Kernel::Fma => ("gemm_fma", format!("gemm_fma_f32_{layout}_{tile}"), 256, 0),
    };
    let function = gpu.kernel(file, &name);
    if shared > 48 << 10 {
        let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(limit, shared as i32).expect("it is allowed");
    }
    let narrow = kernel == Kernel::Mma("bf16");
    // A multiple of 32, and no empty part.
    let k_per_split = k.div_ceil(splits).div_ceil(32) * 32;
    let splits = k.div_ceil(k_per_split);
    let partials = gpu.unset::<f32>(splits * m * n);
    let arguments = Arguments {
        a: if narrow { at(&a_narrow) } else { at(&a_wide) },
        b: if narrow { at(&b_narrow) } else { at(&b_wide) },
        partials: if splits > 1 { at(&partials) } else { NULL },
        m: m as u32,
        n: n as u32,
        k: k as u32,
        lda: if ta { m } else { k } as u32,
        ldb: if tb { k } else { n } as u32,
        k_per_split: k_per_split as u32,
        epilogue,
    };
    let grid = (n.div_ceil(tile) as u32, m.div_ceil(tile) as u32, splits as u32);
    launch!(gpu, function, grid, threads as u32, shared as u32, arguments).expect("it runs");
    if splits > 1 {
        let sum = gpu.kernel("gemm_fma", "gemm_sum");
        let grid = (m * n).div_ceil(256) as u32;
        launch!(gpu, sum, grid, 256, 0, at(&partials), splits as u32, m as u32, n as u32, epilogue)
            .expect("it runs");
    }
    gpu.stream.synchronize().expect("it ran");
}

const KERNELS: [Kernel; 3] = [Kernel::Mma("bf16"), Kernel::Mma("f32"), Kernel::Fma];
const LAYOUTS: [&str; 3] = ["nn", "nt", "tn"];

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
    [64, 16, 136],
];

on_stand_in! {
    fn products() {
        let gpu = Gpu::new();
        for kernel in KERNELS {
            for shape in SHAPES {
                let product = Product::new(shape, kernel != Kernel::Fma);
                for layout in LAYOUTS {
                    for tile in [64, 128] {
                        let what = format!("{kernel:?} {layout} {shape:?} tile {tile}");
                        let y = gpu.unset::<f32>(product.m * product.n);
                        let epilogue = Epilogue { y: at(&y), ..Epilogue::default() };
                        run(&gpu, kernel, layout, tile, &product, 1, epilogue);
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
    fn split_products() {
        let gpu = Gpu::new();
        for kernel in KERNELS {
            let product = Product::new([72, 40, 304], kernel != Kernel::Fma);
            // Rows at multiples of 16 bytes: bf16 is copied asynchronously.
            for (layout, splits) in [("nn", 3), ("nt", 5), ("tn", 10)] {
                let what = format!("{kernel:?} {layout} in {splits}");
                let y = gpu.unset::<f32>(product.m * product.n);
                let bias = gpu.upload(&[0.5f32; 40]);
                let epilogue = Epilogue { y: at(&y), bias: at(&bias), ..Epilogue::default() };
                run(&gpu, kernel, layout, 64, &product, splits, epilogue);
                let got = gpu.download(&y);
                digest(&what, &got);
                let want: Vec<f64> = product.y.iter().map(|y| y + 0.5).collect();
                assert_close(&what, &got, &want, Tolerance::Accumulation(product.k));
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
        for kernel in [Kernel::Mma("bf16"), Kernel::Fma] {
            let product = Product::new([67, 37, 48], kernel != Kernel::Fma);
            let size = product.m * product.n;
            let bias: Vec<f32> = (0..37).map(|j| j as f32 / 16.0 - 1.0).collect();
            let saved: Vec<f32> = (0..size).map(|i| (i % 13) as f32 / 16.0 - 0.375).collect();
            let (bias_at, saved_at) = (gpu.upload(&bias), gpu.upload(&saved));
            let with_bias: Vec<f64> =
                product.y.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % 37])).collect();
            // A sum of 48 products, then functions with slopes up to 1.1.
            let tolerance = Tolerance::Accumulation(2 * 48);
            for activation in 0..5 {
                let what = format!("{kernel:?}, activation {activation}");
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
                run(&gpu, kernel, "nn", 64, &product, 1, epilogue);
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
                run(&gpu, kernel, "nt", 64, &product, 1, epilogue);
                let want: Vec<f64> = product.y.iter().zip(&saved)
                    .map(|(y, &saved)| y * derivative(f64::from(saved)) + 0.25).collect();
                assert_close(&format!("{what}: mask"), &gpu.download(&y), &want, tolerance);
            }
        }
    }
}
