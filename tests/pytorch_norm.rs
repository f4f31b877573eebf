//! `layer_norm`, `rms_norm` and `embedding` with their gradients against PyTorch's, computed in f64:
//! see `tests/pytorch/README.md`.

mod common;

use common::assert_close;
use serde_json::Value;
use twoclocks::ops::{self, Tolerance};
use twoclocks::{Device, Recorder, Result, Store, Tape, Var};

/// Records the operation of a case from its f32 inputs, in the order of their names below, and its
/// integers if it has any.
type Record = fn(&mut dyn Recorder, &[Var], Option<Var>) -> Result<Var>;

/// Statistics of 7 elements, and sums over 5 rows.
const NORM: Tolerance = Tolerance::Accumulation(7);
/// Sums of up to 3 rows.
const EMBEDDING: Tolerance = Tolerance::Rounding(3.0);

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

fn shape(entry: &Value) -> Vec<usize> {
    numbers(&entry["shape"]).iter().map(|&x| x as usize).collect()
}

/// An input of the tape, and the values that the formula gives it.
fn input(tape: &mut Tape, name: &str, entry: &Value) -> (Var, Vec<f32>) {
    let shape = shape(entry);
    let salt = entry["salt"].as_u64().expect("salt");
    let scale = entry["scale"].as_f64().expect("scale");
    let n = shape.iter().product::<usize>() as u64;
    let var = tape.input(name, shape).expect("input");
    (var, (0..n).map(|i| (scale * value(i, salt)) as f32).collect())
}

#[test]
fn operations_and_gradients_agree() {
    let text = include_str!("pytorch/ops.json");
    let reference: Value = serde_json::from_str(text).expect("JSON");
    let operations: [(&str, &[&str], Record, Tolerance); 3] = [
        (
            "layer_norm",
            &["x", "gamma", "beta"],
            |tape, v, _| ops::layer_norm(tape, v[0], v[1], v[2], 1e-5),
            NORM,
        ),
        ("rms_norm", &["x", "gamma"], |tape, v, _| ops::rms_norm(tape, v[0], v[1], 1e-6), NORM),
        (
            "embedding",
            &["table"],
            |tape, v, ids| ops::embedding(tape, v[0], ids.expect("ids")),
            EMBEDDING,
        ),
    ];
    for (name, names, record, tolerance) in operations {
        let cases = reference["cases"].as_array().expect("cases");
        let case = cases.iter().find(|case| case["name"] == name).expect(name);
        let mut store = Store::new(&Device::cpu(1).expect("cpu"));
        let ids = case["integers"].get("ids").map(|entry| {
            let ids: Vec<u32> = numbers(&entry["values"]).iter().map(|&x| x as u32).collect();
            (store.upload("ids", &ids), shape(entry))
        });
        let mut tape = Tape::new(&store);
        let ids = ids
            .map(|(region, shape)| tape.persistent("ids", region, 0, shape).expect("persistent"));
        let inputs: Vec<_> =
            names.iter().map(|&name| input(&mut tape, name, &case["inputs"][name])).collect();
        let vars: Vec<Var> = inputs.iter().map(|(var, _)| *var).collect();
        let (upstream, dy) = input(&mut tape, "upstream", &case["upstream"]);
        let y = record(&mut tape, &vars, ids).expect("recorded");
        let gradients = tape.vector_jacobian(&[(y, upstream)], &vars).expect("recorded");
        for &var in gradients.iter().chain([&y]) {
            tape.output(var).expect("output");
        }
        let mut recording = tape.compile(&store).expect("compile");
        for (var, values) in inputs.iter().chain([&(upstream, dy)]) {
            recording.write(*var, values).expect("write");
        }
        recording.replay(&mut store).expect("replay");

        let got = recording.read(y).expect("read");
        assert_close(&format!("{name}, value"), &got, &numbers(&case["output"]), tolerance);
        for (&input, gradient) in names.iter().zip(gradients) {
            let got = recording.read(gradient).expect("read");
            let want = numbers(&case["gradients"][input]);
            assert_close(&format!("{name}, gradient of {input}"), &got, &want, tolerance);
        }
    }
}

/// Gradients of norms have no rule of their own: an error, not a zero.
#[test]
fn second_derivatives_of_norms_are_refused() {
    let store = Store::new(&Device::cpu(1).expect("cpu"));
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3, 4]).expect("input");
    let gamma = tape.input("gamma", [4]).expect("input");
    let normal = ops::layer_norm(&mut tape, x, gamma, gamma, 1e-5).expect("recorded");
    let rms = ops::rms_norm(&mut tape, x, gamma, 1e-5).expect("recorded");
    for y in [normal, rms] {
        let dx = tape.vector_jacobian(&[(y, x)], &[x]).expect("recorded")[0];
        let error = tape.vector_jacobian(&[(dx, x)], &[x]).expect_err("no rule").to_string();
        assert!(error.contains("no gradient rule"), "{error}");
    }
}
