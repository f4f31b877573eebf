//! Reductions and the cross-entropy against their oracles.

use crate::common::{Random, assert_close};
use crate::elementwise::{assert_close_bf16, bf16s, f32s};
use crate::gpu::{Gpu, NULL, at, digest, launch};
use crate::on_stand_in;
use twoclocks::TensorType;
use twoclocks::device::Control;
use twoclocks::ops::reduce::{Kind, Reduce};
use twoclocks::ops::softmax_cross_entropy::{SoftmaxCrossEntropy, Targets};
use twoclocks::ops::{Operation, Tolerance, Values};

/// What the oracle of an operation makes of its inputs.
fn oracle(op: &dyn Operation, inputs: &[Values]) -> Vec<Values> {
    let types: Vec<TensorType> = inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let outputs = op.infer(&types).expect("the types fit");
    let mut outputs: Vec<Values> = outputs.into_iter().map(Values::zeros).collect();
    op.naive(inputs, &mut outputs, &Control::new());
    outputs
}

/// f32 values of mixed sign, exact in f64.
fn uniform(shape: &[usize], random: &mut Random, size: f64) -> Values {
    let tensor_type = TensorType::f32(shape);
    let one = |_| f64::from(((random.unit() * 2.0 - 1.0) * size) as f32);
    let data = (0..tensor_type.elements()).map(one).collect();
    Values { tensor_type, data }
}

on_stand_in! {
    fn reduce() {
        let gpu = Gpu::new();
        let shapes = [
            [1, 1, 1], [1, 1000, 1], [5, 31, 1], [3, 1025, 1], [2, 4099, 1], [1, 7, 5], [1, 300, 33],
            [3, 65, 64], [2, 129, 100],
        ];
        for (number, [outer, extent, inner]) in shapes.into_iter().enumerate() {
            for (kind, name) in [(Kind::Sum, "sum"), (Kind::Mean, "sum"), (Kind::Max, "max")] {
                let what = format!("{kind:?} {outer}x{extent}x{inner}");
                let x = uniform(&[outer, extent, inner], &mut Random(number as u64), 1.0);
                let op = Reduce { kind, axes: vec![1], dropped: vec![1] };
                let want = oracle(&op, std::slice::from_ref(&x)).remove(0);
                let scale = if kind == Kind::Mean { 1.0 / extent as f32 } else { 1.0f32 };
                let from = gpu.upload(&f32s(&x));
                let (count, y) = (outer * inner, gpu.unset::<f32>(outer * inner));
                let per_part = 512usize;
                let parts = extent.div_ceil(per_part);
                let scratch = gpu.unset::<f32>(parts * count);
                let columns = gpu.kernel("reduce", &format!("reduce_{name}_columns_f32"));
                // Where there is one part, it goes to the result at once.
                let (to, first_scale) = if parts == 1 { (at(&y), scale) } else { (at(&scratch), 1.0) };
                let (extent, inner, outer) = (extent as u32, inner as u32, outer as u32);
                let (per_part, parts) = (per_part as u32, parts as u32);
                if inner == 1 {
                    let rows = gpu.kernel("reduce", &format!("reduce_{name}_rows_f32"));
                    launch!(gpu, rows, (outer, parts, 1), 256, 0, at(&from), to, extent, per_part, first_scale)
                } else {
                    let grid = (inner.div_ceil(32), parts, outer);
                    launch!(gpu, columns, grid, 256, 0, at(&from), to, extent, inner, per_part, first_scale)
                }.expect("it runs");
                if parts > 1 {
                    let grid = ((count as u32).div_ceil(32), 1, 1);
                    launch!(gpu, columns, grid, 256, 0, at(&scratch), at(&y), parts, count as u32, parts, scale)
                        .expect("it runs");
                }
                let got = gpu.download(&y);
                digest(&what, &got);
                let exact = kind == Kind::Max;
                let tolerance =
                    if exact { Tolerance::Exact } else { Tolerance::Accumulation(extent as usize) };
                assert_close(&what, &got, &want.data, tolerance);
            }
        }
    }
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
    backward: bool,
) -> CrossEntropy {
    let (rows, classes) = (inputs[0].rows(), inputs[0].columns());
    let dtype = if in_bf16 { "bf16" } else { "f32" };
    let (name, smoothing) = match targets {
        Targets::Labels { smoothing } => ("labels", smoothing),
        Targets::Distributions => ("distributions", 0.0),
    };
    let name = format!("softmax_cross_entropy_{dtype}_{name}_{variant}");
    let kernel = gpu.kernel("softmax_cross_entropy", &name);
    let finish = gpu.kernel("softmax_cross_entropy", "softmax_cross_entropy_finish");
    let wide = gpu.upload(&f32s(&inputs[0]));
    let narrow = gpu.upload(&bf16s(&inputs[0].data).0);
    let labels: Vec<u32> = inputs[1].data.iter().map(|&x| x as u32).collect();
    let (labels, weights) = (gpu.upload(&labels), gpu.upload(&f32s(&inputs[1])));
    let given = if name.contains("labels") { at(&labels) } else { at(&weights) };
    let (dz, dz_bf16) = (gpu.unset::<f32>(rows * classes), gpu.unset::<u16>(rows * classes));
    let (results, per_row) = (gpu.unset::<f32>(rows * 4), gpu.unset::<f32>(rows));
    let (loss, statistics) = (gpu.unset::<f32>(1), gpu.unset::<f32>(4));
    let (threads, at_once) = match variant {
        "16" => (128, 8),
        "256" => (128, 4),
        _ => (256, 1),
    };
    let logits = if in_bf16 { at(&narrow) } else { at(&wide) };
    let to = match (backward, in_bf16) {
        (false, _) => NULL,
        (true, true) => at(&dz_bf16),
        (true, false) => at(&dz),
    };
    let (r, c) = (rows as u32, classes as u32);
    launch!(
        gpu,
        kernel,
        r.div_ceil(at_once),
        threads,
        0,
        logits,
        given,
        smoothing,
        to,
        at(&per_row),
        at(&results),
        r,
        c
    )
    .expect("it runs");
    launch!(gpu, finish, 1, 1024, 0, at(&results), at(&loss), at(&statistics), r, c)
        .expect("it runs");
    CrossEntropy {
        loss: gpu.download(&loss)[0],
        dlogits: gpu.download(&dz),
        dlogits_bf16: gpu.download(&dz_bf16),
        statistics: gpu.download(&statistics),
        per_row: gpu.download(&per_row),
    }
}

on_stand_in! {
    fn softmax_cross_entropy() {
        let gpu = Gpu::new();
        let shapes = [(1, 1), (5, 2), (9, 10), (17, 16), (3, 17), (5, 100), (6, 256), (2, 257), (3, 1000), (2, 5003)];
        for (number, (rows, classes)) in shapes.into_iter().enumerate() {
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
                        let mut data: Vec<f64> = (0..rows).map(|_| random.below(classes as u64) as f64).collect();
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
                for variant in ["16", "256", "block"] {
                    if variant.parse::<usize>().is_ok_and(|most| classes > most) {
                        continue;
                    }
                    let what = format!("{rows}x{classes} {targets:?} {variant}");
                    let inputs = [logits.clone(), given.clone()];
                    let want = oracle(&SoftmaxCrossEntropy { targets }, &inputs);
                    let got = cross_entropy(&gpu, &inputs, targets, variant, false, true);
                    digest(&what, &got.dlogits);
                    digest(&what, &[got.loss]);
                    digest(&what, &got.statistics);
                    // z - m of up to 48 is rounded before its exponential is taken: 24 units in the last place of
                    // e; sums over classes in the order of a few hundred additions at most.
                    let tolerance = Tolerance::Rounding(80.0);
                    assert_close(&format!("{what} loss"), &[got.loss], &want[0].data, tolerance);
                    assert_close(&format!("{what} dlogits"), &got.dlogits, &want[1].data, tolerance);
                    assert_close(&format!("{what} statistics"), &got.statistics, &want[2].data, tolerance);
                    assert_close(&format!("{what} per_row"), &got.per_row, &want[3].data, tolerance);
                    let forward = cross_entropy(&gpu, &inputs, targets, variant, false, false);
                    assert_eq!(forward.loss.to_bits(), got.loss.to_bits(), "{what}: without the gradient");

                    let rounded = Values { data: bf16s(&logits.data).1, ..logits.clone() };
                    let inputs = [rounded, given.clone()];
                    let want = oracle(&SoftmaxCrossEntropy { targets }, &inputs);
                    let got = cross_entropy(&gpu, &inputs, targets, variant, true, true);
                    digest(&what, &got.dlogits_bf16);
                    assert_close(&format!("{what} bf16 loss"), &[got.loss], &want[0].data, tolerance);
                    assert_close_bf16(&format!("{what} bf16"), &got.dlogits_bf16, &want[1].data, 1.1);
                }
            }
        }
    }
}

/// Of logits and labels.
type Change<'a> = &'a dyn Fn(&mut [f64], &mut [f64]);

on_stand_in! {
    fn cross_entropy_at_its_edges() {
        let gpu = Gpu::new();
        for variant in ["16", "256", "block"] {
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
                (cross_entropy(&gpu, &inputs, targets, variant, false, true), want)
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
