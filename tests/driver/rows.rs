//! Operations along rows and columns against their oracles, with the launches that the crate makes.

use crate::common::{Random, assert_close};
use crate::gpu::digest;
use crate::on_stand_in;
use std::sync::Arc;
use twoclocks::device::Control;
use twoclocks::ops::layer_norm::LayerNorm;
use twoclocks::ops::layer_norm_backward::LayerNormBackward;
use twoclocks::ops::log_softmax::LogSoftmax;
use twoclocks::ops::reduce::{Kind, Reduce};
use twoclocks::ops::rms_norm::RmsNorm;
use twoclocks::ops::rms_norm_backward::RmsNormBackward;
use twoclocks::ops::softmax::Softmax;
use twoclocks::ops::softmax_backward::SoftmaxBackward;
use twoclocks::ops::{Operation, Tolerance, Values};
use twoclocks::{DType, Device, Recorder, Store, Tape, TensorType};

/// What the oracle of an operation makes of its inputs.
pub fn oracle(op: &dyn Operation, inputs: &[Values]) -> Vec<Values> {
    let types: Vec<TensorType> = inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let outputs = op.infer(&types).expect("the types fit");
    let mut outputs: Vec<Values> = outputs.into_iter().map(Values::zeros).collect();
    op.naive(inputs, &mut outputs, &Control::new());
    outputs
}

/// f32 values of mixed sign, exact in f64.
pub fn uniform(shape: &[usize], random: &mut Random, size: f64) -> Values {
    between(shape, random, -size, size)
}

/// f32 values of a range, exact in f64.
pub fn between(shape: &[usize], random: &mut Random, low: f64, high: f64) -> Values {
    let tensor_type = TensorType::f32(shape);
    let one = |_| f64::from((low + (high - low) * random.unit()) as f32);
    let data = (0..tensor_type.elements()).map(one).collect();
    Values { tensor_type, data }
}

/// What a GPU makes of the inputs. All tensors begin `offset` elements after an aligned address.
pub fn on_gpu(op: Arc<dyn Operation>, inputs: &[Values], offset: usize) -> Vec<Vec<f32>> {
    on_gpu_by(op, inputs, offset).0
}

/// The same, and the modules of the kernels that did it.
pub fn on_gpu_by(
    op: Arc<dyn Operation>,
    inputs: &[Values],
    offset: usize,
) -> (Vec<Vec<f32>>, Vec<String>) {
    let device = Device::cuda("cuda:0").expect("the stand-in has a device");
    let mut store = Store::new(&device);
    let mut regions = Vec::new();
    for input in inputs {
        let padding = std::iter::repeat_n(f64::NAN, offset);
        let all: Vec<f64> = padding.chain(input.data.iter().copied()).collect();
        regions.push(match input.tensor_type.dtype {
            DType::U32 => store.upload("u32", &all.iter().map(|&x| x as u32).collect::<Vec<_>>()),
            _ => store.upload("f32", &all.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        });
    }
    let types: Vec<TensorType> = inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let output_types = op.infer(&types).expect("the types fit");
    let outputs_at: Vec<_> = output_types
        .iter()
        .map(|output| store.upload("output", &vec![f32::NAN; output.elements() + offset + 1]))
        .collect();
    let mut tape = Tape::new(&store);
    let vars: Vec<_> = types
        .iter()
        .zip(&regions)
        .map(|(t, &region)| tape.persistent("input", region, offset, &t.shape).expect("input"))
        .collect();
    let outputs = tape.push(op, &vars).expect("the types fit");
    for (&output, &region) in outputs.iter().zip(&outputs_at) {
        tape.place(output, region, offset).expect("place");
    }
    let mut recording = tape.compile(&store).expect("there is a kernel");
    recording.replay(&mut store).expect("it runs");
    let read = |(output, &region): (&TensorType, &twoclocks::tape::Region)| {
        let mut all = vec![0f32; output.elements() + offset + 1];
        store.read(region, 0, &mut all).expect("read");
        assert!(all[..offset].iter().all(|x| x.is_nan()), "nothing before a tensor is written");
        assert!(all.pop().is_some_and(f32::is_nan), "nothing after a tensor is written");
        all.split_off(offset)
    };
    let kernels = recording.nodes().iter().map(|node| node.kernel.to_owned()).collect();
    (output_types.iter().zip(&outputs_at).map(read).collect(), kernels)
}

/// A GPU beside the oracle, at aligned addresses and at others: where the kernel does not see a difference but in
/// how it reads, the bits are the same.
fn check(what: &str, op: impl Operation + Clone, inputs: &[Values], tolerance: Tolerance) {
    let want = oracle(&op, inputs);
    let got = on_gpu(Arc::new(op.clone()), inputs, 0);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        digest(&format!("{what} {i}"), got);
        assert_close(&format!("{what}, output {i}"), got, &want.data, tolerance);
    }
    let bits =
        |all: &[Vec<f32>]| -> Vec<u32> { all.iter().flatten().map(|x| x.to_bits()).collect() };
    let beside = on_gpu(Arc::new(op), inputs, 1);
    assert!(bits(&got) == bits(&beside), "{what}: other bits at an odd address");
}

on_stand_in! {
    fn reduce() {
        // Short and long rows; columns side by side, few and many; rows that are cut, and many matrices.
        let shapes = [
            [1, 1, 1], [9, 31, 1], [3, 512, 1], [2, 513, 1], [3, 1025, 1], [2, 20_011, 1], [70_001, 3, 1], [1, 0, 1],
            [1, 128, 10], [1, 6000, 10], [1, 1, 5], [2, 300, 33], [3, 65, 64], [1, 10_007, 2], [1, 16, 5000],
            [1, 200, 4096], [1, 70, 1028], [70_001, 2, 2], [1, 3, 1025], [2, 0, 5],
        ];
        for (number, [outer, extent, inner]) in shapes.into_iter().enumerate() {
            for kind in [Kind::Sum, Kind::Mean, Kind::Max] {
                // The maximum of nothing is refused; many blocks take their time.
                if (extent == 0 || outer > 1000) && kind != Kind::Sum {
                    continue;
                }
                let x = uniform(&[outer, extent, inner], &mut Random(number as u64), 1.0);
                let op = Reduce { kind, axes: vec![1], dropped: vec![1] };
                let exact = kind == Kind::Max;
                let tolerance = if exact { Tolerance::Exact } else { Tolerance::Accumulation(extent) };
                let what = format!("{kind:?} {outer}x{extent}x{inner}");
                let want = oracle(&op, std::slice::from_ref(&x)).remove(0);
                let got = on_gpu(Arc::new(op), &[x], number % 2).remove(0);
                digest(&what, &got);
                assert_close(&what, &got, &want.data, tolerance);
            }
        }
    }
}

/// Around the lengths at which another form of a kernel serves, whole groups of four and not.
const LENGTHS: [usize; 22] = [
    1, 7, 10, 32, 33, 128, 256, 257, 512, 513, 1000, 1024, 1025, 2048, 2051, 4096, 4097, 6144,
    8192, 8193, 33_000, 50_257,
];

fn rows_for(length: usize) -> usize {
    if length < 2000 { 9 } else { 2 }
}

on_stand_in! {
    fn softmax_and_its_logarithm() {
        for length in LENGTHS {
            let mut random = Random(length as u64);
            let x = uniform(&[rows_for(length), length], &mut random, 6.0);
            // As the cases of both: an exponential has the absolute error of x - m as a relative one.
            check(&format!("softmax {length}"), Softmax, std::slice::from_ref(&x), Tolerance::Rounding(40.0));
            check(&format!("log_softmax {length}"), LogSoftmax, &[x], Tolerance::Rounding(8.0));
            let y = between(&[rows_for(length), length], &mut random, 0.0, 2.0 / length as f64);
            let dy = uniform(&[rows_for(length), length], &mut random, 1.0);
            let tolerance = Tolerance::Accumulation(length);
            check(&format!("softmax_backward {length}"), SoftmaxBackward, &[y, dy], tolerance);
        }
    }
}

on_stand_in! {
    fn softmax_at_its_edges() {
        let infinity = f64::INFINITY;
        for length in [5, 40, 1300, 5000, 26_000] {
            let mut random = Random(length as u64);
            let mut x = uniform(&[6, length], &mut random, 1.0);
            // A row far above the range of the exponential, and one far below; a single finite element; one element far
            // above the others, in the part of a long row that is read again; then rows that give NaN.
            x.row_mut(0).iter_mut().for_each(|x| *x = f64::from((*x + 1e5) as f32));
            x.row_mut(1).iter_mut().for_each(|x| *x = f64::from((*x - 1e5) as f32));
            x.row_mut(2).fill(-infinity);
            x.row_mut(2)[length - 1] = 3.0;
            x.row_mut(3)[length - 2] = 60.0;
            x.row_mut(4).fill(-infinity);
            x.row_mut(5)[length / 2] = f64::NAN;
            let p = on_gpu(Arc::new(Softmax), std::slice::from_ref(&x), 0).remove(0);
            let log = on_gpu(Arc::new(LogSoftmax), std::slice::from_ref(&x), 0).remove(0);
            digest(&format!("{length}"), &[p.clone(), log.clone()].concat());
            let good = Values { tensor_type: TensorType::f32([4, length]), data: x.data[..4 * length].to_vec() };
            let want = oracle(&Softmax, std::slice::from_ref(&good)).remove(0);
            assert_close(&format!("softmax {length}"), &p[..4 * length], &want.data, Tolerance::Rounding(250.0));
            let want = oracle(&LogSoftmax, &[good]).remove(0);
            let row = 2 * length;
            assert!(log[row..row + length - 1].iter().all(|&y| y == f32::NEG_INFINITY), "{length}");
            assert_eq!(log[row + length - 1], 0.0, "{length}");
            // The logarithm of one that is nearly certain does not round to zero.
            let (got, want_top) = (log[4 * length - 2], want.data[4 * length - 2]);
            assert!(got < 0.0 && (f64::from(got) / want_top - 1.0).abs() < 1e-5, "{length}: {got} {want_top}");
            assert_close(&format!("log_softmax {length}"), &log[..row], &want.data[..row], Tolerance::Rounding(8.0));
            let bad = 4 * length;
            assert!(p[bad..].iter().chain(&log[bad..]).all(|y| y.is_nan()), "{length}");
            x.row_mut(4).fill(0.0);
            x.row_mut(4)[length - 1] = infinity;
            let p = on_gpu(Arc::new(Softmax), &[x], 0).remove(0);
            assert!(p[bad..].iter().all(|y| y.is_nan()), "{length}: positive infinity");
        }
    }
}

on_stand_in! {
    fn norms() {
        for length in LENGTHS {
            let mut random = Random(length as u64);
            let x = between(&[rows_for(length), length], &mut random, 2.0, 3.0);
            let gamma = between(&[length], &mut random, 0.5, 1.5);
            let beta = uniform(&[length], &mut random, 1.0);
            // The mean is rounded: some 10 roundings in y, and more where few elements lie close together.
            let tolerance = Tolerance::Accumulation(length.max(16));
            let op = LayerNorm { eps: 1e-5 };
            check(&format!("layer_norm {length}"), op, &[x.clone(), gamma.clone(), beta], tolerance);
            let op = RmsNorm { eps: 1e-6 };
            check(&format!("rms_norm {length}"), op, &[x, gamma], tolerance);
        }
    }
}

on_stand_in! {
    fn gradients_of_norms() {
        // And many rows: several a block, and a last block of fewer.
        let more = [(0, 5), (1, 12), (397, 3), (2389, 20), (1201, 300), (801, 516)];
        let all = LENGTHS.map(|length| (rows_for(length), length));
        for (rows, length) in all.into_iter().chain(more) {
            let mut random = Random(length as u64);
            let dy = uniform(&[rows, length], &mut random, 1.0);
            let x = uniform(&[rows, length], &mut random, 1.0);
            let gamma = between(&[length], &mut random, 0.5, 1.5);
            let mean = uniform(&[rows], &mut random, 0.1);
            let rstd = between(&[rows], &mut random, 1.0, 2.0);
            let tolerance = Tolerance::Accumulation(rows.max(length));
            let inputs = [dy.clone(), x.clone(), gamma.clone(), mean, rstd.clone()];
            check(&format!("layer_norm_backward {rows}x{length}"), LayerNormBackward, &inputs, tolerance);
            let inputs = [dy, x, gamma, rstd];
            check(&format!("rms_norm_backward {rows}x{length}"), RmsNormBackward, &inputs, tolerance);
        }
    }
}

on_stand_in! {
    fn norms_of_rows_that_are_not_finite() {
        let mut random = Random(1);
        let mut x = uniform(&[3, 700], &mut random, 1.0);
        x.row_mut(1)[5] = f64::NAN;
        let gamma = uniform(&[700], &mut random, 1.0);
        let y = on_gpu(Arc::new(RmsNorm { eps: 1e-6 }), &[x.clone(), gamma.clone()], 0).remove(0);
        assert!(y[..700].iter().chain(&y[1400..]).all(|y| y.is_finite()) && y[700..1400].iter().all(|y| y.is_nan()));
        let got = on_gpu(Arc::new(LayerNorm { eps: 1e-6 }), &[x, gamma.clone(), gamma], 0);
        assert!(got[0][700..1400].iter().all(|y| y.is_nan()) && got[1][1].is_nan() && got[1][2].is_finite());
    }
}
