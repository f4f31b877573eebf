//! The cross-entropy against its oracle: every kernel by itself, and the operations that launch them.

use crate::common::{Random, assert_close};
use crate::elementwise::{assert_close_bf16, bf16s, f32s};
use crate::gpu::{Gpu, NULL, at, digest, launch, launch_clusters};
use crate::rows::{on_gpu, on_gpu_by, oracle, uniform};
use crate::{on_hopper, on_stand_in};
use cudarc::driver::sys::{CUfunction_attribute_enum, CUresult};
use std::sync::Arc;
use twoclocks::TensorType;
use twoclocks::ops::softmax_cross_entropy::{SoftmaxCrossEntropy, Targets};
use twoclocks::ops::{Tolerance, Values};

/// Where the gradient goes.
#[derive(Clone, Copy, PartialEq)]
enum Gradient {
    No,
    Apart,
    OverTheLogits,
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// What the kernels of the cross-entropy give: loss, dlogits (f32 or bf16 bits), statistics, loss of each row.
struct CrossEntropy {
    loss: f32,
    dlogits: Vec<f32>,
    dlogits_bf16: Vec<u16>,
    statistics: Vec<f32>,
    per_row: Vec<f32>,
}

fn cross_entropy(
    gpu: &Gpu,
    inputs: &[Values],
    targets: Targets,
    variant: &str,
    in_bf16: bool,
    gradient: Gradient,
) -> CrossEntropy {
    let (rows, classes) = (inputs[0].rows(), inputs[0].columns());
    let dtype = if in_bf16 { "bf16" } else { "f32" };
    let (name, smoothing) = match targets {
        Targets::Labels { smoothing } => ("labels", smoothing),
        Targets::Distributions => ("distributions", 0.0),
    };
    let module = match (name, variant) {
        ("distributions", _) => "softmax_cross_entropy_soft",
        (_, "16" | "256") => "softmax_cross_entropy",
        _ if variant.starts_with("cluster") => "softmax_cross_entropy_cluster",
        _ => "softmax_cross_entropy_many",
    };
    let name = format!("softmax_cross_entropy_{dtype}_{name}_{variant}");
    let kernel = gpu.kernel(module, &name);
    let finish = gpu.kernel("softmax_cross_entropy", "softmax_cross_entropy_finish");
    let wide = gpu.upload(&f32s(&inputs[0]));
    let narrow = gpu.upload(&bf16s(&inputs[0].data).0);
    let labels: Vec<u32> = inputs[1].data.iter().map(|&x| x as u32).collect();
    let (labels, weights) = (gpu.upload(&labels), gpu.upload(&f32s(&inputs[1])));
    let given = if name.contains("labels") { at(&labels) } else { at(&weights) };
    let (dz, dz_bf16) = (gpu.unset::<f32>(rows * classes), gpu.unset::<u16>(rows * classes));
    let (results, per_row) = (gpu.unset::<f32>(rows * 4), gpu.unset::<f32>(rows));
    let (loss, statistics) = (gpu.unset::<f32>(1), gpu.unset::<f32>(5));
    let (threads, at_once) = match (variant, targets) {
        ("16", _) => (128, 32),
        ("256", _) => (128, 4),
        ("1024", _) => (128, 1),
        ("4096", _) => (256, 1),
        ("6144", _) | (_, Targets::Distributions) => (512, 1),
        _ if variant.starts_with("cluster") => (512, 1),
        _ => (1024, 1),
    };
    let logits = if in_bf16 { at(&narrow) } else { at(&wide) };
    let to = match (gradient, in_bf16) {
        (Gradient::No, _) => NULL,
        (Gradient::Apart, true) => at(&dz_bf16),
        (Gradient::Apart, false) => at(&dz),
        (Gradient::OverTheLogits, _) => logits,
    };
    let (r, c) = (rows as u32, classes as u32);
    let grid = r.div_ceil(at_once);
    if let Some(blocks) = variant.strip_prefix("cluster_") {
        let blocks: u32 = blocks.parse().expect("a number");
        let addresses = [logits, given, to, at(&per_row), at(&results)];
        let [logits, given, to, per_row, results] =
            addresses.each_ref().map(|a| (a as *const u64).cast());
        let (smoothing, r, c) =
            (&raw const smoothing, (&raw const r).cast(), (&raw const c).cast());
        let arguments = [logits, given, smoothing.cast(), to, per_row, results, r, r, c];
        let extents = [grid * blocks, blocks, threads].map(|extent| (extent, 1, 1));
        let shared = 8192 * classes.div_ceil(2048 * blocks as usize) as u32;
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.set_attribute(most, shared as i32).expect("it fits");
        let result = launch_clusters(gpu, &kernel, extents, shared, &arguments);
        assert_eq!(result, CUresult::CUDA_SUCCESS, "{name}");
    } else {
        let (smoothing, per_row, results) = (smoothing, at(&per_row), at(&results));
        launch!(
            gpu, kernel, grid, threads, 0, logits, given, smoothing, to, per_row, results, r, r, c
        )
        .expect("it runs");
    }
    launch!(gpu, finish, 1, 1024, 0, at(&results), at(&loss), at(&statistics), r, c)
        .expect("it runs");
    CrossEntropy {
        loss: gpu.download(&loss)[0],
        dlogits: gpu.download(if gradient == Gradient::OverTheLogits { &wide } else { &dz }),
        dlogits_bf16: gpu.download(if gradient == Gradient::OverTheLogits {
            &narrow
        } else {
            &dz_bf16
        }),
        statistics: gpu.download(&statistics),
        per_row: gpu.download(&per_row),
    }
}

/// Forms of the kernel, and the classes that each takes at most.
const FORMS: [(&str, usize); 6] = [
    ("16", 16),
    ("256", 256),
    ("1024", 1024),
    ("4096", 4096),
    ("6144", 6144),
    ("long", usize::MAX),
];
/// At most 27 groups of 2048 classes lie in the shared memory of a block.
const CLUSTERS: [(&str, usize); 4] =
    [("cluster_1", 55_296), ("cluster_2", 110_592), ("cluster_4", 221_184), ("cluster_8", 442_368)];

/// Every form against the oracle, for each kind of target and type.
fn against_the_oracle(shapes: &[(usize, usize)], forms: &[(&str, usize)]) {
    let gpu = Gpu::new();
    for (number, &(rows, classes)) in shapes.iter().enumerate() {
        for targets in [
            Targets::Labels { smoothing: 0.0 },
            Targets::Labels { smoothing: 0.1 },
            Targets::Distributions,
        ] {
            let mut random = Random(number as u64 + 1);
            let mut logits = uniform(&[rows, classes], &mut random, 8.0);
            // A margin of 30 in the first row: p - 1 would be zero there.
            logits.data[classes - 1] = 40.0;
            let given = match targets {
                Targets::Labels { .. } => {
                    let mut data: Vec<f64> =
                        (0..rows).map(|_| random.below(classes as u64) as f64).collect();
                    data[0] = (classes - 1) as f64;
                    Values { tensor_type: TensorType::u32([rows]), data }
                }
                Targets::Distributions => {
                    let mut weights = uniform(&[rows, classes], &mut random, 1.0);
                    for r in 0..rows {
                        let row = weights.row_mut(r);
                        row.iter_mut().for_each(|t| *t = t.abs() + 0.01);
                        let sum: f64 = row.iter().sum();
                        row.iter_mut().for_each(|t| *t = f64::from((*t / sum) as f32));
                    }
                    weights
                }
            };
            for &(variant, most) in forms {
                // Distributions have fewer forms.
                let soft = ["16", "256", "long"].contains(&variant);
                if classes > most || (targets == Targets::Distributions && !soft) {
                    continue;
                }
                let what = format!("{rows}x{classes} {targets:?} {variant}");
                let inputs = [logits.clone(), given.clone()];
                let want = oracle(&SoftmaxCrossEntropy { targets }, &inputs);
                let got = cross_entropy(&gpu, &inputs, targets, variant, false, Gradient::Apart);
                digest(&what, &got.dlogits);
                digest(&what, &[got.loss]);
                digest(&what, &got.statistics);
                // z - m of up to 48 is rounded before its exponential is taken: 24 units in the last place of
                // e; sums over classes in the order of a few hundred additions at most.
                let tolerance = Tolerance::Rounding(80.0);
                assert_close(&format!("{what} loss"), &[got.loss], &want[0].data, tolerance);
                assert_close(&format!("{what} dlogits"), &got.dlogits, &want[1].data, tolerance);
                assert_close(
                    &format!("{what} statistics"),
                    &got.statistics,
                    &want[2].data,
                    tolerance,
                );
                assert_close(&format!("{what} per_row"), &got.per_row, &want[3].data, tolerance);
                let forward = cross_entropy(&gpu, &inputs, targets, variant, false, Gradient::No);
                assert_eq!(
                    forward.loss.to_bits(),
                    got.loss.to_bits(),
                    "{what}: without the gradient"
                );

                let over =
                    cross_entropy(&gpu, &inputs, targets, variant, false, Gradient::OverTheLogits);
                assert!(same_bits(&over.dlogits, &got.dlogits), "{what}: over the logits");
                assert_eq!(over.loss.to_bits(), got.loss.to_bits(), "{what}: over the logits");

                let rounded = Values { data: bf16s(&logits.data).1, ..logits.clone() };
                let inputs = [rounded, given.clone()];
                let want = oracle(&SoftmaxCrossEntropy { targets }, &inputs);
                let got = cross_entropy(&gpu, &inputs, targets, variant, true, Gradient::Apart);
                digest(&what, &got.dlogits_bf16);
                assert_close(&format!("{what} bf16 loss"), &[got.loss], &want[0].data, tolerance);
                assert_close_bf16(&format!("{what} bf16"), &got.dlogits_bf16, &want[1].data, 1.1);
            }
        }
    }
}

on_stand_in! {
    fn softmax_cross_entropy() {
        let shapes = [
            (1, 1), (5, 2), (9, 10), (17, 16), (3, 17), (5, 100), (6, 256), (2, 257), (3, 1000), (2, 1024), (2, 4096), (2, 4097),
            (1, 13_001), (1, 50_257),
        ];
        against_the_oracle(&shapes, &FORMS);
    }
}

on_hopper! {
    fn softmax_cross_entropy_by_clusters() {
        against_the_oracle(&[(3, 10), (2, 12_289), (1, 50_257), (1, 128_256), (1, 140_001)], &CLUSTERS);
    }
}

on_hopper! {
    /// The crate launches clusters where there are some, for rows that one block does not hold.
    fn vocabularies_by_clusters() {
        let sizes = [
            (12_288, "many"), (12_292, "cluster"), (26_625, "cluster"), (50_257, "cluster"), (128_256, "cluster"),
            (220_000, "cluster"), (442_369, "many"),
        ];
        for (classes, kernel) in sizes {
            let mut random = Random(classes as u64);
            let logits = uniform(&[2, classes], &mut random, 8.0);
            let data = (0..2).map(|_| random.below(classes as u64) as f64).collect();
            let inputs = [logits, Values { tensor_type: TensorType::u32([2]), data }];
            let op = SoftmaxCrossEntropy { targets: Targets::Labels { smoothing: 0.1 } };
            let want = oracle(&op, &inputs);
            let (got, kernels) = on_gpu_by(Arc::new(op), &inputs, 0);
            assert_eq!(kernels, [format!("softmax_cross_entropy_{kernel}")]);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                digest(&format!("{classes} {i}"), got);
                assert_close(&format!("{classes} {i}"), got, &want.data, Tolerance::Rounding(80.0));
            }
        }
    }
}

/// Of logits and labels.
type Change<'a> = &'a dyn Fn(&mut [f64], &mut [f64]);

on_stand_in! {
    fn cross_entropy_at_its_edges() {
        let gpu = Gpu::new();
        for variant in FORMS.map(|form| form.0) {
            let targets = Targets::Labels { smoothing: 0.0 };
            let run = |change: Change<'_>| {
                let mut logits = Values {
                    tensor_type: TensorType::f32([3, 4]),
                    data: vec![0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, -1.0, 5.0, 0.0, 2.0],
                };
                let mut labels = Values { tensor_type: TensorType::u32([3]), data: vec![3.0, 0.0, 2.0] };
                change(&mut logits.data, &mut labels.data);
                let inputs = [logits, labels];
                let want = oracle(&SoftmaxCrossEntropy { targets }, &inputs);
                (cross_entropy(&gpu, &inputs, targets, variant, false, Gradient::Apart), want)
            };
            // Of equal logits the first is the argmax: two rows are right.
            let (got, _) = run(&|_, _| ());
            assert_eq!(got.statistics[2], 2.0, "{variant}");
            let changes: [(&str, Change<'_>); 6] = [
                ("a label out of range", &|_, y| y[1] = 4.0),
                ("NaN", &|z, _| z[5] = f64::NAN),
                ("NaN of the label", &|z, _| z[4] = f64::NAN),
                ("infinity", &|z, _| z[6] = f64::INFINITY),
                ("infinity of the label", &|z, _| z[4] = f64::INFINITY),
                ("negative infinities", &|z, _| z[4..8].fill(f64::NEG_INFINITY)),
            ];
            for (name, change) in changes {
                let (got, want) = run(change);
                assert!(got.loss.is_nan() && want[0].data[0].is_nan(), "{variant}, {name}: {}", got.loss);
                assert!(got.per_row[1].is_nan() && got.statistics[0].is_nan(), "{variant}, {name}");
                assert!(got.statistics[1].is_nan(), "{variant}, {name}");
                assert!(got.per_row[0].is_finite() && got.per_row[2].is_finite(), "{variant}, {name}");
            }
            let (got, want) = run(&|_, y| y[1] = 4.0);
            assert!(got.dlogits[4..8].iter().all(|x| x.is_nan()), "{variant}");
            assert_close(variant, &got.dlogits[..4], &want[1].data[..4], Tolerance::Rounding(40.0));
            // A single negative infinity has no probability; as the label it costs infinitely much.
            let (got, want) = run(&|z, _| z[5] = f64::NEG_INFINITY);
            assert_close(variant, &got.dlogits, &want[1].data, Tolerance::Rounding(40.0));
            assert_eq!(run(&|z, _| z[4] = f64::NEG_INFINITY).0.loss, f32::INFINITY, "{variant}");
        }
    }
}

on_stand_in! {
    /// Where the label is 60 above all others, p - 1 is zero in f32; the gradient is not.
    fn a_margin_of_60_keeps_a_gradient() {
        for classes in [10, 200, 1000, 4097, 50_257] {
            let targets = Targets::Labels { smoothing: 0.0 };
            let mut data = vec![0.0; 2 * classes];
            let labels = [0, classes - 1];
            data[labels[0]] = 60.0;
            data[classes + labels[1]] = 60.0;
            let logits = Values { tensor_type: TensorType::f32([2, classes]), data };
            let given = Values { tensor_type: TensorType::u32([2]), data: labels.map(|l| l as f64).into() };
            let inputs = [logits, given];
            let op = SoftmaxCrossEntropy { targets };
            let (got, want) = (on_gpu(Arc::new(op), &inputs, 0), oracle(&op, &inputs));
            for at in [labels[0], classes + labels[1]] {
                let (got, want) = (f64::from(got[1][at]), want[1].data[at]);
                assert!(got < 0.0 && (got / want - 1.0).abs() < 1e-5, "{classes}: {got}, want {want}");
            }
            digest(&format!("{classes}"), &got[1]);
            assert_close(&format!("{classes}"), &got[0], &want[0].data, Tolerance::Rounding(40.0));
        }
    }
}

on_stand_in! {
    /// Logits of either sign and of hundreds: no exponential overflows, and few are not zero.
    fn large_logits() {
        for classes in [10, 33, 700, 4097, 20_000] {
            for smoothing in [0.0, 0.1] {
                let mut random = Random(classes as u64);
                let logits = uniform(&[3, classes], &mut random, 400.0);
                let data = (0..3).map(|_| random.below(classes as u64) as f64).collect();
                let inputs = [logits, Values { tensor_type: TensorType::u32([3]), data }];
                let op = SoftmaxCrossEntropy { targets: Targets::Labels { smoothing } };
                let (got, want) = (on_gpu(Arc::new(op), &inputs, 0), oracle(&op, &inputs));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let what = format!("{classes} {smoothing} {i}");
                    digest(&what, got);
                    // The rounding error of z - m, up to 800, is a relative one of the exponential.
                    assert_close(&what, got, &want.data, Tolerance::Rounding(1000.0));
                }
            }
        }
    }
}
