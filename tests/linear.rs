//! Layers of `linear` through the whole tape: first and second gradients against central differences
//! in f64, and f32 recordings against the f64 oracle.

mod common;

use common::{Random, assert_close};
use std::collections::HashMap;
use twoclocks::ops::{Activation, Tolerance, linear, mean_all, mul, sum_all};
use twoclocks::{Device, Recorder, Store, Tape, Var};

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Gelu, Activation::Tanh, Activation::Silu];

/// `mean((act(x W1 + b1) W2 + b2)^2)`, with `x` of rank 3.
struct Net {
    tape: Tape,
    loss: Var,
    x: Var,
    parameters: [Var; 4],
    feeds: HashMap<Var, Vec<f64>>,
}

fn net(store: &Store, activation: Activation) -> Net {
    let mut tape = Tape::new(store);
    let mut random = Random(7);
    let mut feeds = HashMap::new();
    let mut input = |tape: &mut Tape, name: &str, shape: &[usize]| {
        let var = tape.input(name, shape).expect("input");
        let n: usize = shape.iter().product();
        feeds.insert(var, (0..n).map(|_| random.unit() * 2.0 - 1.0).collect());
        var
    };
    let x = input(&mut tape, "x", &[3, 5, 20]);
    let parameters = [
        input(&mut tape, "w1", &[20, 33]),
        input(&mut tape, "b1", &[33]),
        input(&mut tape, "w2", &[33, 6]),
        input(&mut tape, "b2", &[6]),
    ];
    let [w1, b1, w2, b2] = parameters;
    let hidden = linear(&mut tape, x, w1, Some(b1), activation).expect("hidden");
    let y = linear(&mut tape, hidden, w2, Some(b2), Activation::None).expect("last");
    let square = mul(&mut tape, y, y).expect("square");
    let loss = mean_all(&mut tape, square).expect("loss");
    Net { tape, loss, x, parameters, feeds }
}

impl Net {
    fn evaluate(
        &self,
        store: &Store,
        vars: &[Var],
        feeds: &HashMap<Var, Vec<f64>>,
    ) -> Vec<Vec<f64>> {
        let feeds: Vec<_> = feeds.iter().map(|(&var, data)| (var, data.clone())).collect();
        let oracle = self.tape.evaluate(&feeds, store.control()).expect("oracle");
        vars.iter().map(|&var| oracle.get(var).expect("computed").data.clone()).collect()
    }

    /// `of` (one number) differentiated by `wrt` as `gradient` says and by central differences
    /// along a random direction.
    fn check(&self, what: &str, store: &Store, of: Var, wrt: Var, gradient: Var) {
        const STEP: f64 = 1e-5;
        let mut random = Random(u64::from(what.len() as u32));
        let direction: Vec<f64> =
            self.feeds[&wrt].iter().map(|_| random.unit() * 2.0 - 1.0).collect();
        let at = |sign: f64| {
            let mut feeds = self.feeds.clone();
            for (x, d) in feeds.get_mut(&wrt).expect("fed").iter_mut().zip(&direction) {
                *x += sign * STEP * d;
            }
            self.evaluate(store, &[of], &feeds)[0][0]
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * STEP);
        let gradient = &self.evaluate(store, &[gradient], &self.feeds)[0];
        let products = gradient.iter().zip(&direction).map(|(g, d)| g * d);
        let (recorded, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
        assert!(recorded.is_finite() && difference.is_finite(), "{what}");
        assert!(size > 0.0, "{what}: the gradient is zero");
        let error = (recorded - difference).abs();
        assert!(error <= 1e-6 * size, "{what}: recorded {recorded}, difference {difference}");
    }
}

#[test]
fn gradients_of_two_layers_agree_with_central_differences() {
    let store = Store::new(&Device::cpu(1).expect("cpu"));
    for activation in ACTIVATIONS {
        let mut net = net(&store, activation);
        let wrt: Vec<Var> = net.parameters.into_iter().chain([net.x]).collect();
        let gradients = net.tape.backward(net.loss, &wrt).expect("gradient");
        for (&var, gradient) in wrt.iter().zip(gradients) {
            let what = format!("{activation}, {}", net.tape.name(var));
            net.check(&what, &store, net.loss, var, gradient);
        }
    }
}

#[test]
fn second_gradients_agree_with_central_differences() {
    let store = Store::new(&Device::cpu(1).expect("cpu"));
    for activation in ACTIVATIONS {
        let mut net = net(&store, activation);
        let [w1, b1, w2, _] = net.parameters;
        let first = net.tape.backward(net.loss, &[w1, b1]).expect("gradient");
        // The square of the first gradient, so that every part of the Hessian takes part.
        let tape = &mut net.tape;
        let parts = first.into_iter().map(|gradient| {
            let square = mul(tape, gradient, gradient).expect("square");
            sum_all(tape, square).expect("sum")
        });
        let parts: Vec<Var> = parts.collect();
        let norm = twoclocks::ops::add(tape, parts[0], parts[1]).expect("norm");
        let wrt = [w1, b1, w2, net.x];
        let second = net.tape.backward(norm, &wrt).expect("second gradient");
        for (&var, gradient) in wrt.iter().zip(second) {
            let what = format!("{activation}, {} again", net.tape.name(var));
            net.check(&what, &store, norm, var, gradient);
        }
    }
}

#[test]
fn an_f32_recording_agrees_with_the_oracle() {
    for activation in ACTIVATIONS {
        let mut store = Store::new(&Device::cpu(2).expect("cpu"));
        let mut net = net(&store, activation);
        let wrt: Vec<Var> = net.parameters.into_iter().chain([net.x]).collect();
        let gradients = net.tape.backward(net.loss, &wrt).expect("gradient");
        let outputs: Vec<Var> = [net.loss].into_iter().chain(gradients).collect();
        for &output in &outputs {
            net.tape.output(output).expect("output");
        }
        let mut recording = net.tape.compile(&store).expect("compile");
        for (&var, data) in &net.feeds {
            let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
            recording.write(var, &data).expect("write");
        }
        recording.replay(&mut store).expect("replay");
        for (&output, want) in outputs.iter().zip(net.evaluate(&store, &outputs, &net.feeds)) {
            let got = recording.read(output).expect("read");
            let what = format!("{activation}, {}", net.tape.name(output));
            // Two layers there and back: sums of 20, 33, 6 and 15 products in turn.
            assert_close(&what, &got, &want, Tolerance::Accumulation(20 + 33 + 6 + 15));
        }
    }
}

/// Where the value itself is not read, only the argument of the activation is computed.
#[test]
fn a_gradient_alone_needs_only_the_argument() {
    for activation in [Activation::Gelu, Activation::Silu] {
        let mut store = Store::new(&Device::cpu(1).expect("cpu"));
        let mut tape = Tape::new(&store);
        let (m, k, n) = (37, 19, 45);
        let x = tape.input("x", [m, k]).expect("input");
        let w = tape.input("w", [k, n]).expect("input");
        let b = tape.input("b", [n]).expect("input");
        let dy = tape.input("dy", [m, n]).expect("input");
        let y = linear(&mut tape, x, w, Some(b), activation).expect("linear");
        let gradients = tape.vector_jacobian(&[(y, dy)], &[x, w, b]).expect("gradient");
        for &gradient in &gradients {
            tape.output(gradient).expect("output");
        }
        let mut random = Random(3);
        let mut feeds = Vec::new();
        let mut recording = tape.compile(&store).expect("compile");
        for var in [x, w, b, dy] {
            let n = tape.tensor_type(var).elements();
            let data: Vec<f32> = (0..n).map(|_| random.unit() as f32 - 0.5).collect();
            recording.write(var, &data).expect("write");
            feeds.push((var, data.into_iter().map(f64::from).collect()));
        }
        let operands = 4.0 * (m * k + k * n + n) as f64;
        let written = recording.nodes()[0].cost.bytes - operands;
        assert_eq!(written, 4.0 * (m * n) as f64, "{activation}: one of the two outputs");
        recording.replay(&mut store).expect("replay");
        let oracle = tape.evaluate(&feeds, store.control()).expect("oracle");
        for gradient in gradients {
            let want = &oracle.get(gradient).expect("computed").data;
            let got = recording.read(gradient).expect("read");
            let what = format!("{activation}, {}", tape.name(gradient));
            assert_close(&what, &got, want, Tolerance::Accumulation(k + n + m));
        }
    }
}
