//! The loss that never holds its logits, against `linear` and `softmax_cross_entropy`.

mod common;

use common::{Random, assert_close};
use std::sync::Arc;
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::nn::{Forward, Linear, Mode, Parameters};
use twoclocks::ops::{self, Activation, Tolerance};
use twoclocks::{Device, Recorder, Store, Tape, Var};

/// Sizes that take many blocks of classes at the scratch that the operation has.
const SEVERAL: [usize; 3] = [200, 3, 42_500];

struct Problem {
    sizes: [usize; 3],
    x: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
    labels: Vec<u32>,
    smoothing: f32,
}

/// Loss, statistics, losses of the rows, dx, dW, db.
type Found = [Vec<f32>; 6];

impl Problem {
    fn new(sizes: [usize; 3], smoothing: f32) -> Problem {
        let [rows, inner, classes] = sizes;
        let mut random = Random(7);
        let mut values =
            |n: usize| -> Vec<f32> { (0..n).map(|_| random.unit() as f32 * 2.0 - 1.0).collect() };
        let (x, w, b) = (values(rows * inner), values(inner * classes), values(classes));
        let labels = (0..rows).map(|r| (r * 7919 % classes) as u32).collect();
        Problem { sizes, x, w, b, labels, smoothing }
    }

    fn run(&self, isa: Isa, threads: usize, fused: bool) -> Found {
        let cpu = Cpu::with_isa(threads, isa).expect("this machine has it");
        let mut store = Store::new(&Device::Cpu(Arc::new(cpu)));
        let [rows, inner, classes] = self.sizes;
        let regions =
            [store.upload("x", &self.x), store.upload("w", &self.w), store.upload("b", &self.b)];
        let labels = store.upload("labels", &self.labels);
        let mut tape = Tape::new(&store);
        let x = tape.persistent("x", regions[0], 0, [rows, inner]).expect("x");
        let w = tape.persistent("w", regions[1], 0, [inner, classes]).expect("w");
        let b = tape.persistent("b", regions[2], 0, [classes]).expect("b");
        let labels = tape.persistent("labels", labels, 0, [rows]).expect("labels");
        let outputs = if fused {
            let found = ops::linear_cross_entropy(&mut tape, x, w, Some(b), labels, self.smoothing)
                .expect("recorded");
            [found.loss, found.statistics, found.per_row]
        } else {
            let z = ops::linear(&mut tape, x, w, Some(b), Activation::None).expect("recorded");
            let found =
                ops::softmax_cross_entropy(&mut tape, z, labels, self.smoothing).expect("recorded");
            [found.loss, found.statistics, found.per_row]
        };
        // Not one, so that the upstream gradient is multiplied in.
        let half = tape.fill([].into(), 0.5);
        let gradients = tape.vector_jacobian(&[(outputs[0], half)], &[x, w, b]).expect("gradients");
        let all: Vec<Var> = outputs.into_iter().chain(gradients).collect();
        for &var in &all {
            tape.output(var).expect("output");
        }
        let mut recording = tape.compile(&store).expect("compile");
        // Twice: nothing is left over from the first.
        recording.replay(&mut store).expect("replay");
        recording.replay(&mut store).expect("replay");
        std::array::from_fn(|i| recording.read(all[i]).expect("read"))
    }
}

fn bits(found: &Found) -> Vec<Vec<u32>> {
    found.iter().map(|values| values.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn it_is_linear_and_then_cross_entropy() {
    for sizes in [SEVERAL, [37, 19, 300]] {
        for isa in Isa::available() {
            for smoothing in [0.0, 0.1] {
                let problem = Problem::new(sizes, smoothing);
                let (fused, unfused) = (problem.run(isa, 2, true), problem.run(isa, 2, false));
                let names = ["loss", "statistics", "per_row", "dx", "dW", "db"];
                for ((name, fused), unfused) in names.iter().zip(&fused).zip(&unfused) {
                    let want: Vec<f64> = unfused.iter().map(|&x| f64::from(x)).collect();
                    // Two sums of rounded values that may differ in order.
                    let terms = if *name == "dx" { sizes[2] } else { sizes[0] };
                    let tolerance = Tolerance::Accumulation(4 * terms);
                    let what = format!("{isa} {sizes:?} smoothing {smoothing}: {name}");
                    assert_close(&what, fused, &want, tolerance);
                }
                assert_eq!(fused[1][2], unfused[1][2], "{isa}: right rows");
            }
        }
    }
}

#[test]
fn blocks_give_the_same_bits_with_any_number_of_threads() {
    let problem = Problem::new(SEVERAL, 0.1);
    let isa = Isa::detect().expect("isa");
    let one = bits(&problem.run(isa, 1, true));
    for threads in [2, 3] {
        assert!(one == bits(&problem.run(isa, threads, true)), "{threads} threads");
    }
}

/// A row of a bad label or a bad value is NaN alone; the loss and what is summed over rows with it.
#[test]
fn bad_labels_and_values_give_nan_in_their_row_and_in_the_sums() {
    for sizes in [SEVERAL, [20, 3, 10]] {
        let [rows, inner, classes] = sizes;
        let bad_row = rows - 3;
        let check = |what: &str, problem: &Problem, isa: Isa| {
            let [loss, statistics, per_row, dx, dw, db] = problem.run(isa, 2, true);
            assert!(loss[0].is_nan(), "{isa} {what}: the loss is {}", loss[0]);
            assert!(statistics[0].is_nan() && statistics[1].is_nan(), "{isa} {what}");
            assert!(dw.iter().chain(&db).all(|g| g.is_nan()), "{isa} {what}: a sum is a number");
            for r in 0..rows {
                assert_eq!(per_row[r].is_nan(), r == bad_row, "{isa} {what} {r}");
                let dx = &dx[r * inner..][..inner];
                assert!(dx.iter().all(|g| g.is_nan() == (r == bad_row)), "{isa} {what} {r}");
            }
        };
        for isa in Isa::available() {
            for label in [classes as u32, u32::MAX] {
                let mut problem = Problem::new(sizes, 0.0);
                problem.labels[bad_row] = label;
                check(&format!("label {label}"), &problem, isa);
            }
            for value in [f32::NAN, f32::INFINITY] {
                let mut problem = Problem::new(sizes, 0.1);
                problem.x[bad_row * inner] = value;
                check(&format!("x {value}"), &problem, isa);
            }
        }
    }
}

/// The first of equal logits is the argmax, and logits of negative infinity have no part, whichever
/// blocks they fill.
#[test]
fn ties_and_masks_hold_across_blocks() {
    for isa in Isa::available() {
        let mut problem = Problem::new(SEVERAL, 0.0);
        problem.w.fill(0.0);
        problem.b.fill(0.5);
        for (r, label) in problem.labels.iter_mut().enumerate() {
            *label = if r % 10 == 3 { 0 } else { 42_400 };
        }
        let found = problem.run(isa, 2, true);
        assert_eq!(found[1], [0.0, 0.0, 20.0, 0.5, 0.0], "{isa}");

        for left in [0..200, 20_000..20_200, 42_300..42_500] {
            problem.b.fill(f32::NEG_INFINITY);
            problem.b[left.clone()].fill(-1000.0);
            problem.labels.fill(left.start as u32);
            let [loss, .., db] = problem.run(isa, 2, true);
            let want = 200f64.ln();
            assert!((f64::from(loss[0]) - want).abs() < 1e-5 * want, "{isa}: {}", loss[0]);
            for (j, &g) in db.iter().enumerate() {
                let share = if left.contains(&j) { 1.0 / 200.0 } else { 0.0 };
                let want = 0.5 * if j == left.start { share - 1.0 } else { share };
                assert!((g - want).abs() <= 1e-6, "{isa}: {g} at {j}, want {want}");
            }
        }
    }
}

/// The layer records what its parameters say, and an activation is refused.
#[test]
fn a_linear_layer_gives_its_loss() {
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    let labels = store.upload("labels", &[1u32, 0, 4]);
    let mut parameters = Parameters::new();
    let head = Linear::new(&mut parameters, "head", 6, 5, Activation::None).expect("layer");
    let wrong = Linear::new(&mut parameters, "wrong", 6, 5, Activation::Relu).expect("layer");
    let parameters = parameters.bind(&mut store, 1).expect("memory");
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3, 6]).expect("input");
    let labels = tape.persistent("labels", labels, 0, [3]).expect("labels");
    let mut pass = Forward::new(&mut tape, Mode::Train, &parameters);
    let fused = head.cross_entropy(&mut pass, x, labels, 0.1).expect("recorded");
    let z = twoclocks::nn::Module::forward(&head, &mut pass, x).expect("recorded");
    let error = wrong.cross_entropy(&mut pass, x, labels, 0.1).expect_err("has an activation");
    assert!(error.to_string().contains("relu"), "{error}");
    let unfused = ops::softmax_cross_entropy(&mut tape, z, labels, 0.1).expect("recorded");
    for var in [fused.loss, unfused.loss] {
        tape.output(var).expect("output");
    }
    let mut recording = tape.compile(&store).expect("compile");
    let values: Vec<f32> = (0..18).map(|i| (i as f32 * 0.7).sin()).collect();
    recording.write(x, &values).expect("write");
    recording.replay(&mut store).expect("replay");
    let [fused, unfused] = [fused.loss, unfused.loss].map(|v| recording.read(v).expect("read")[0]);
    assert!(fused.is_finite() && (fused - unfused).abs() <= 1e-5 * unfused, "{fused}, {unfused}");
}
