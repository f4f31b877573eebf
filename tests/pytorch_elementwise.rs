//! Elementwise functions and their gradients against PyTorch's, computed in f64: see
//! `tests/pytorch/README.md`.

mod common;

use common::assert_close;
use serde_json::Value;
use twoclocks::ops::{self, Tolerance};
use twoclocks::{Device, Recorder, Result, Store, Tape, Var};

type Record = fn(&mut dyn Recorder, Var) -> Result<Var>;

/// A few units in the last place, each up to two roundings.
const ROUNDING: Tolerance = Tolerance::Rounding(6.0);
/// The derivatives of tanh and the sigmoid are formed from the value y, whose error of up to a unit
/// in the last place, 2^-24 in 0.5..1, enters them at most twice. Beside that the gradients are
/// small: their root mean square is 0.085 and 0.090.
const FROM_VALUE: Tolerance = Tolerance::Rounding(2.0 / 0.085);

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

/// Shape and values of a tensor that the formula gives.
fn tensor(entry: &Value) -> (Vec<usize>, Vec<f32>) {
    let shape: Vec<usize> = numbers(&entry["shape"]).iter().map(|&x| x as usize).collect();
    let (salt, scale) = (entry["salt"].as_u64().expect("salt"), entry["scale"].as_f64());
    let scale = scale.expect("scale");
    let n = shape.iter().product::<usize>() as u64;
    (shape, (0..n).map(|i| (scale * value(i, salt)) as f32).collect())
}

#[test]
fn functions_and_gradients_agree() {
    let text = include_str!("pytorch/ops.json");
    let reference: Value = serde_json::from_str(text).expect("JSON");
    let functions: [(&str, Record, Tolerance); 5] = [
        ("gelu", ops::gelu, ROUNDING),
        ("gelu_wide", ops::gelu, ROUNDING),
        ("silu", ops::silu, ROUNDING),
        ("tanh", ops::tanh, FROM_VALUE),
        ("sigmoid", ops::sigmoid, FROM_VALUE),
    ];
    for (name, record, tolerance) in functions {
        let cases = reference["cases"].as_array().expect("cases");
        let case = cases.iter().find(|case| case["name"] == name).expect(name);
        let (shape, x) = tensor(&case["inputs"]["x"]);
        let (_, upstream) = tensor(&case["upstream"]);

        let mut store = Store::new(&Device::cpu(1).expect("cpu"));
        let mut tape = Tape::new(&store);
        let x_var = tape.input("x", &shape[..]).expect("input");
        let upstream_var = tape.input("upstream", &shape[..]).expect("input");
        let y = record(&mut tape, x_var).expect("recorded");
        let dx = tape.vector_jacobian(&[(y, upstream_var)], &[x_var]).expect("recorded")[0];
        tape.output(y).expect("output");
        tape.output(dx).expect("output");
        let mut recording = tape.compile(&store).expect("compile");
        recording.write(x_var, &x).expect("write");
        recording.write(upstream_var, &upstream).expect("write");
        recording.replay(&mut store).expect("replay");

        let got = recording.read(y).expect("read");
        assert_close(&format!("{name}, value"), &got, &numbers(&case["output"]), ROUNDING);
        let got = recording.read(dx).expect("read");
        let want = numbers(&case["gradients"]["x"]);
        assert_close(&format!("{name}, gradient"), &got, &want, tolerance);
    }
}
