//! Elementwise functions and reductions on the tape: second derivatives, and values that the
//! comparison with the oracle leaves out because they are not finite.

mod common;

use common::{Random, assert_close};
use twoclocks::ops::{self, Tolerance};
use twoclocks::{Device, Recorder, Result, Shape, Store, Tape, Var};

type Record = fn(&mut dyn Recorder, Var) -> Result<Var>;
type Derivative = fn(f64) -> f64;

fn cube(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let square = ops::mul(tape, x, x)?;
    ops::mul(tape, square, x)
}

fn reciprocal(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    let one = tape.fill(Shape::scalar(), 1.0);
    ops::div(tape, one, x)
}

fn normal_density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_second(x: f64) -> f64 {
    let s = sigmoid(x);
    s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))
}

/// What one function or another makes of `x`, run on the CPU.
fn apply(record: impl Fn(&mut Tape, Var) -> Result<Var>, shape: &[usize], x: &[f32]) -> Vec<f32> {
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    let mut tape = Tape::new(&store);
    let input = tape.input("x", shape).expect("input");
    let y = record(&mut tape, input).expect("recorded");
    tape.output(y).expect("output");
    let mut recording = tape.compile(&store).expect("compile");
    recording.write(input, x).expect("write");
    recording.replay(&mut store).expect("replay");
    recording.read(y).expect("read")
}

/// The gradient of the sum of `w f(x)`, differentiated once more, where `w` is another input so
/// that no upstream gradient is ones.
#[test]
fn second_derivatives_are_those_of_calculus() {
    let functions: [(&str, Record, Derivative); 12] = [
        ("x^3", cube, |x| 6.0 * x),
        ("1/x", reciprocal, |x| 2.0 / x.powi(3)),
        ("exp", ops::exp, f64::exp),
        ("log", ops::log, |x| -1.0 / (x * x)),
        ("sqrt", ops::sqrt, |x| -0.25 * x.powf(-1.5)),
        ("tanh", ops::tanh, |x| -2.0 * x.tanh() * (1.0 - x.tanh().powi(2))),
        ("sigmoid", ops::sigmoid, |x| sigmoid(x) * (1.0 - sigmoid(x)) * (1.0 - 2.0 * sigmoid(x))),
        ("gelu", ops::gelu, |x| normal_density(x) * (2.0 - x * x)),
        ("silu", ops::silu, silu_second),
        ("relu", ops::relu, |_| 0.0),
        ("relu(x)^3", |tape, x| ops::relu(tape, x).and_then(|y| cube(tape, y)), |x| 6.0 * x),
        ("-exp", |tape, x| ops::exp(tape, x).and_then(|y| ops::neg(tape, y)), |x| -x.exp()),
    ];
    const N: usize = 100;
    let mut random = Random(3);
    let x: Vec<f64> = (0..N).map(|_| f64::from((0.25 + 2.0 * random.unit()) as f32)).collect();
    let w: Vec<f64> = (0..N).map(|_| 0.5 + random.unit()).collect();
    let single = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    for (name, record, second) in functions {
        for weighted in [false, true] {
            let mut store = Store::new(&Device::cpu(1).expect("cpu"));
            let mut tape = Tape::new(&store);
            let [x_var, w_var] = ["x", "w"].map(|name| tape.input(name, [N]).expect("input"));
            let mut y = record(&mut tape, x_var).expect("recorded");
            if weighted {
                y = ops::mul(&mut tape, y, w_var).expect("recorded");
            }
            let loss = ops::sum_all(&mut tape, y).expect("recorded");
            let dx = tape.backward(loss, &[x_var]).expect(name)[0];
            let slope = ops::sum_all(&mut tape, dx).expect("recorded");
            let ddx = tape.backward(slope, &[x_var]).expect(name)[0];
            tape.output(ddx).expect("output");
            let mut recording = tape.compile(&store).expect("compile");
            recording.write(x_var, &single(&x)).expect("write");
            if weighted {
                recording.write(w_var, &single(&w)).expect("write");
            }
            recording.replay(&mut store).expect("replay");
            let weight = |i: usize| if weighted { w[i] } else { 1.0 };
            let want: Vec<f64> =
                x.iter().enumerate().map(|(i, &x)| weight(i) * second(x)).collect();
            let got = recording.read(ddx).expect("read");
            assert_close(&format!("second derivative of {name}"), &got, &want, TOLERANCE);
        }
    }
}

/// Some ten roundings on the way, each near 2^-24 of terms of the size of the result.
const TOLERANCE: Tolerance = Tolerance::Rounding(24.0);

#[test]
fn values_that_are_not_finite_are_those_of_ieee() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let x = [nan, -inf, -1.0, 0.0, inf];
    let cases: [(&str, Record, [f32; 5]); 8] = [
        ("neg", ops::neg, [nan, inf, 1.0, -0.0, -inf]),
        ("exp", ops::exp, [nan, 0.0, (-1f32).exp(), 1.0, inf]),
        ("log", ops::log, [nan, nan, nan, -inf, inf]),
        ("sqrt", ops::sqrt, [nan, nan, nan, 0.0, inf]),
        ("tanh", ops::tanh, [nan, -1.0, (-1f32).tanh(), 0.0, 1.0]),
        ("sigmoid", ops::sigmoid, [nan, 0.0, 0.268_941_43, 0.5, 1.0]),
        ("relu", ops::relu, [nan, 0.0, 0.0, 0.0, inf]),
        ("gelu", ops::gelu, [nan, nan, -0.158_655_26, 0.0, inf]),
    ];
    for (name, record, want) in cases {
        // Whole vectors, and a tail.
        for n in [5, 40] {
            let x: Vec<f32> = x.iter().copied().cycle().take(n).collect();
            let got = apply(|tape, x| record(tape, x), &[n], &x);
            for (i, (got, want)) in got.iter().zip(want.iter().cycle()).enumerate() {
                let same = match want.is_finite() {
                    true => (got - want).abs() <= 2e-7,
                    false => got == want || got.is_nan() && want.is_nan(),
                };
                assert!(same, "{name}({}) = {got}, want {want}", x[i]);
            }
        }
    }
}

#[test]
fn a_maximum_over_nan_is_nan_and_one_over_negative_infinity_is_that() {
    for (shape, axis, stride) in [([3, 40], 1, 40), ([40, 3], 0, 1)] {
        let mut x = vec![f32::NEG_INFINITY; 120];
        x[stride] = f32::NAN;
        let got = apply(|tape, x| ops::max(tape, x, &[axis], false), &shape, &x);
        assert!(got[1].is_nan(), "{shape:?}: {got:?}");
        assert_eq!([got[0], got[2]], [f32::NEG_INFINITY; 2], "{shape:?}");
    }
}

/// As PyTorch's amax does.
#[test]
fn the_gradient_of_a_maximum_is_shared_evenly_among_ties() {
    let x = [1.0, 3.0, 3.0, 0.0, 3.0, 2.0, 2.0, 1.0];
    let gradient = |axes: &'static [usize]| {
        let record = |tape: &mut Tape, x: Var| {
            let y = ops::max(tape, x, axes, false)?;
            let loss = ops::sum_all(tape, y)?;
            Ok(tape.backward(loss, &[x])?[0])
        };
        apply(record, &[2, 4], &x)
    };
    let third = 1.0 / 3.0;
    assert_eq!(gradient(&[1]), [0.0, 0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(gradient(&[0]), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    assert_eq!(gradient(&[0, 1]), [0.0, third, third, 0.0, third, 0.0, 0.0, 0.0]);
}

#[test]
fn recording_functions_check_shapes_and_skip_work() {
    let store = Store::new(&Device::cpu(1).expect("cpu"));
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [2, 3]).expect("input");
    let same = ops::sum_to(&mut tape, x, &[2, 3].into()).expect("the shape it has");
    assert_eq!(same, x);
    assert_eq!(ops::broadcast_to(&mut tape, x, &[2, 3].into()).expect("the shape it has"), x);
    assert!(tape.is_empty());
    for (shape, problem) in [
        (&[4][..], "sum: [2, 3] is not a broadcast of [4]"),
        (&[1, 2, 3], "sum: [2, 3] is not a broadcast of [1, 2, 3]"),
    ] {
        let error = ops::sum_to(&mut tape, x, &shape.into()).expect_err("it does not fit");
        assert_eq!(error.to_string(), problem);
    }
    let error = ops::broadcast_to(&mut tape, x, &[3].into()).expect_err("fewer axes");
    assert_eq!(error.to_string(), "broadcast: [2, 3] does not broadcast to [3]");
    let error = ops::max(&mut tape, x, &[], true).expect_err("no axis");
    assert_eq!(error.to_string(), "max: no axis is named");
    let total = ops::sum_to(&mut tape, x, &Shape::scalar()).expect("recorded");
    assert_eq!(tape.tensor_type(total).shape, Shape::scalar());
    let column = ops::sum_to(&mut tape, x, &[2, 1].into()).expect("recorded");
    assert_eq!(tape.tensor_type(column).shape, Shape::from([2, 1]));
}
