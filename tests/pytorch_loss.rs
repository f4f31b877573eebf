//! Softmax and losses with their gradients against PyTorch's, computed in f64: see
//! `tests/pytorch/README.md`.

mod common;

use common::assert_close;
use serde_json::Value;
use twoclocks::ops::{self, Tolerance};
use twoclocks::{Device, Recorder, Store, Tape, TensorType, Var};

/// The exponential and the logarithm have an error of 2 units in the last place, and logits up to 4
/// one more rounding of up to 4 units; see the operations' own tests.
const TOLERANCE: Tolerance = Tolerance::Rounding(16.0);

/// Element `i` of the tensor that `salt` names, in [-1, 1).
fn value(i: u64, salt: u64) -> f64 {
    let mut z = i.wrapping_add(salt << 32).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Shape and values of a tensor: given, or by the formula.
fn tensor(entry: &Value) -> (Vec<usize>, Vec<f32>) {
    let shape: Vec<usize> = numbers(&entry["shape"]).iter().map(|&x| x as usize).collect();
    if entry.get("values").is_some() {
        return (shape, numbers(&entry["values"]).iter().map(|&x| x as f32).collect());
    }
    let salt = entry["salt"].as_u64().expect("salt");
    let scale = entry["scale"].as_f64().expect("scale");
    let n = shape.iter().product::<usize>() as u64;
    (shape, (0..n).map(|i| (scale * value(i, salt)) as f32).collect())
}

fn case(name: &str) -> Value {
    let reference: Value = serde_json::from_str(include_str!("pytorch/ops.json")).expect("JSON");
    let cases = reference["cases"].as_array().expect("cases");
    cases.iter().find(|case| case["name"] == name).expect(name).clone()
}

/// A recording in the making, with the values of its inputs.
struct Bench {
    store: Store,
    tape: Tape,
    fed: Vec<(Var, Vec<f32>)>,
}

impl Bench {
    fn new(store: Store) -> Bench {
        let tape = Tape::new(&store);
        Bench { store, tape, fed: Vec::new() }
    }

    fn input(&mut self, name: &str, entry: &Value) -> Var {
        let (shape, values) = tensor(entry);
        let var = self.tape.input_of(name, TensorType::f32(&shape[..])).expect("input");
        self.fed.push((var, values));
        var
    }

    fn run(mut self, outputs: &[Var]) -> Vec<Vec<f32>> {
        for &output in outputs {
            self.tape.output(output).expect("output");
        }
        let mut recording = self.tape.compile(&self.store).expect("compile");
        for (var, values) in &self.fed {
            recording.write(*var, values).expect("write");
        }
        recording.replay(&mut self.store).expect("replay");
        outputs.iter().map(|&output| recording.read(output).expect("read")).collect()
    }
}

#[test]
fn softmax_and_log_softmax_agree() {
    type Record = fn(&mut dyn Recorder, Var) -> twoclocks::Result<Var>;
    let functions: [(&str, Record); 2] =
        [("softmax", ops::softmax), ("log_softmax", ops::log_softmax)];
    for (name, record) in functions {
        let case = case(name);
        let mut bench = Bench::new(Store::new(&Device::cpu(1).expect("cpu")));
        let x = bench.input("x", &case["inputs"]["x"]);
        let upstream = bench.input("upstream", &case["upstream"]);
        let y = record(&mut bench.tape, x).expect("recorded");
        let dx = bench.tape.vector_jacobian(&[(y, upstream)], &[x]).expect("gradient")[0];
        let found = bench.run(&[y, dx]);
        assert_close(name, &found[0], &numbers(&case["output"]), TOLERANCE);
        assert_close(name, &found[1], &numbers(&case["gradients"]["x"]), TOLERANCE);
    }
}

#[test]
fn cross_entropy_and_its_gradient_agree() {
    for name in
        ["cross_entropy", "cross_entropy_smoothed", "cross_entropy_confident", "cross_entropy_soft"]
    {
        let case = case(name);
        let smoothing = case["parameters"]["label_smoothing"].as_f64().expect("smoothing") as f32;
        let soft = case["constants"].get("targets");
        let labels: Vec<u32> = match soft {
            Some(_) => Vec::new(),
            None => numbers(&case["integers"]["labels"]["values"])
                .iter()
                .map(|&label| label as u32)
                .collect(),
        };
        let mut store = Store::new(&Device::cpu(1).expect("cpu"));
        let region = store.upload("labels", &labels);
        let mut bench = Bench::new(store);
        let x = bench.input("x", &case["inputs"]["x"]);
        let found = if let Some(targets) = soft {
            let targets = bench.input("targets", targets);
            ops::softmax_cross_entropy_soft(&mut bench.tape, x, targets)
        } else {
            let labels = bench.tape.persistent("labels", region, 0, [labels.len()]);
            ops::softmax_cross_entropy(&mut bench.tape, x, labels.expect("labels"), smoothing)
        }
        .expect("recorded");
        let dx = bench.tape.backward(found.loss, &[x]).expect("gradient")[0];
        assert_eq!(dx, found.dlogits, "{name}: nothing is recorded for the gradient");
        let found = bench.run(&[found.loss, dx]);
        assert_close(name, &found[0], &numbers(&case["output"]), TOLERANCE);
        let gradient = numbers(&case["gradients"]["x"]);
        assert_close(name, &found[1], &gradient, TOLERANCE);
        if name == "cross_entropy_confident" {
            // Each element to its own last places: logits are multiples of 2^-17, so z - m is exact.
            let normal = |want: f64| want.abs() > f64::from(f32::MIN_POSITIVE);
            let pairs = || found[1].iter().zip(&gradient).filter(|(_, want)| normal(**want));
            assert!(pairs().count() > 20);
            for (&got, &want) in pairs() {
                let error = (f64::from(got) - want).abs();
                let bound = 6.0 * f64::from(f32::EPSILON) * want.abs();
                assert!(error <= bound, "{got:e}, want {want:e}");
            }
        }
    }
}

#[test]
fn mse_and_its_gradients_agree() {
    let case = case("mse");
    let mut bench = Bench::new(Store::new(&Device::cpu(1).expect("cpu")));
    let x = bench.input("x", &case["inputs"]["x"]);
    let target = bench.input("target", &case["inputs"]["target"]);
    let loss = ops::mse(&mut bench.tape, x, target).expect("recorded");
    let gradients = bench.tape.backward(loss, &[x, target]).expect("gradient");
    let found = bench.run(&[loss, gradients[0], gradients[1]]);
    assert_close("mse", &found[0], &numbers(&case["output"]), TOLERANCE);
    assert_close("mse dx", &found[1], &numbers(&case["gradients"]["x"]), TOLERANCE);
    assert_close("mse dtarget", &found[2], &numbers(&case["gradients"]["target"]), TOLERANCE);
}
