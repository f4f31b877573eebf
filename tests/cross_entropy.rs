//! Cross-entropy where it is delicate: confident rows, bad labels, values that are not finite.

use std::sync::Arc;
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::ops::{softmax_cross_entropy, softmax_cross_entropy_soft};
use twoclocks::{Device, Store, Tape, TensorType, Var};

fn each_isa_and<const N: usize>(sizes: [usize; N]) -> impl Iterator<Item = (Isa, usize)> {
    Isa::available().into_iter().flat_map(move |isa| sizes.map(|size| (isa, size)))
}

/// What the kernel gives for rows of logits.
struct Found {
    loss: f32,
    dlogits: Vec<f32>,
    statistics: Vec<f32>,
    per_row: Vec<f32>,
}

enum Targets<'a> {
    Labels(&'a [u32], f32),
    Soft(&'a [f32]),
}

fn run(isa: Isa, classes: usize, logits: &[f32], targets: Targets<'_>) -> Found {
    let device = Device::Cpu(Arc::new(Cpu::with_isa(1, isa).expect("this machine has it")));
    let mut store = Store::new(&device);
    let rows = logits.len() / classes;
    let given = match targets {
        Targets::Labels(labels, _) => store.upload("targets", labels),
        Targets::Soft(targets) => store.upload("targets", targets),
    };
    let mut tape = Tape::new(&store);
    let x = tape.input_of("logits", TensorType::f32([rows, classes])).expect("input");
    let found = match targets {
        Targets::Labels(_, smoothing) => {
            let labels = tape.persistent("labels", given, 0, [rows]).expect("labels");
            softmax_cross_entropy(&mut tape, x, labels, smoothing)
        }
        Targets::Soft(_) => {
            let targets = tape.persistent("targets", given, 0, [rows, classes]).expect("targets");
            softmax_cross_entropy_soft(&mut tape, x, targets)
        }
    }
    .expect("recorded");
    for var in [found.loss, found.dlogits, found.statistics, found.per_row] {
        tape.output(var).expect("output");
    }
    let mut recording = tape.compile(&store).expect("compile");
    recording.write(x, logits).expect("write");
    recording.replay(&mut store).expect("replay");
    let read = |var: Var| recording.read(var).expect("read");
    Found {
        loss: read(found.loss)[0],
        dlogits: read(found.dlogits),
        statistics: read(found.statistics),
        per_row: read(found.per_row),
    }
}

/// Asserts that `got` is within `ulps` units in the last place of `want`.
fn assert_ulps(what: &str, got: f32, want: f64, ulps: f64) {
    assert!(got.is_finite() && want.is_finite(), "{what}: {got}, want {want}");
    let unit = (want.abs() * f64::from(f32::EPSILON)).max(f64::from(f32::from_bits(1)));
    let error = (f64::from(got) - want).abs();
    assert!(error <= ulps * unit, "{what}: {got:e}, want {want:e}: {} ulp", error / unit);
}

#[test]
fn confident_rows_keep_their_loss_and_gradient() {
    for isa in Isa::available() {
        for classes in [2usize, 10, 65, 5000] {
            for margin in [1.0f32, 16.0, 17.0, 20.0, 30.0, 40.0, 60.0, 85.0] {
                let label = classes / 2;
                let mut logits = vec![0.0; classes];
                logits[label] = margin;
                let found = run(isa, classes, &logits, Targets::Labels(&[label as u32], 0.0));
                let what = format!("{isa}, {classes} classes, margin {margin}");
                // A long sum of equal terms rounds the same way every time.
                let ulps = if classes > 100 { 16.0 } else { 4.0 };
                let rest = (classes - 1) as f64 * f64::from(-margin).exp();
                assert_ulps(&format!("{what}: loss"), found.loss, rest.ln_1p(), ulps);
                assert_eq!(found.loss, found.per_row[0]);
                let own = found.dlogits[label];
                assert!(own < 0.0, "{what}: the gradient of the right class vanished");
                assert_ulps(&format!("{what}: gradient"), own, -rest / (1.0 + rest), ulps);
                let other = f64::from(-margin).exp() / (1.0 + rest);
                assert_ulps(&format!("{what}: others"), found.dlogits[0], other, ulps);
                assert_eq!(&found.statistics[..3], [margin, margin, 1.0], "{what}");
                // Where a plain softmax has 1 for the label.
                let plain = 1.0 / (1.0 + rest as f32) - 1.0;
                assert_eq!(found.statistics[4] == 1.0, plain == 0.0, "{what}: {plain}");
            }
        }
    }
}

/// A one-hot distribution is a label, to the last bits: in the confident tail too.
#[test]
fn one_hot_distributions_are_labels() {
    for isa in Isa::available() {
        for classes in [3usize, 10, 3000] {
            let mut logits: Vec<f32> = (0..classes).map(|j| (j % 7) as f32).collect();
            logits[1] = 30.0;
            let mut target = vec![0.0; classes];
            target[1] = 1.0;
            let soft = run(isa, classes, &logits, Targets::Soft(&target));
            let hard = run(isa, classes, &logits, Targets::Labels(&[1], 0.0));
            assert!(hard.loss > 0.0 && hard.dlogits[1] < 0.0);
            assert_ulps("loss", soft.loss, f64::from(hard.loss), 2.0);
            for (soft, hard) in soft.dlogits.iter().zip(&hard.dlogits) {
                assert_ulps("gradient", *soft, f64::from(*hard), 2.0);
            }
            assert_eq!(soft.statistics, hard.statistics);
        }
    }
}

#[test]
fn bad_labels_and_logits_give_nan_in_their_row_and_in_the_loss() {
    // Transposed, buffered, and kept in place.
    for (isa, classes) in each_isa_and([10, 65, 2500]) {
        for smoothing in [0.0, 0.1] {
            let good: Vec<f32> = (0..4 * classes).map(|i| (i % 7) as f32).collect();
            let labels = [1u32, 2, 3, 4];
            let check = |what: &str, logits: &[f32], labels: &[u32]| {
                let found = run(isa, classes, logits, Targets::Labels(labels, smoothing));
                assert!(found.loss.is_nan(), "{isa} {what}: the loss is {}", found.loss);
                assert!(found.statistics[0].is_nan() && found.statistics[1].is_nan(), "{what}");
                for r in 0..4 {
                    let row = &found.dlogits[r * classes..][..classes];
                    let bad = r == 2;
                    assert!(row.iter().all(|g| g.is_nan() == bad), "{isa} {what} {r}: {row:?}");
                    assert_eq!(found.per_row[r].is_nan(), bad, "{isa} {what}");
                }
            };
            check("no such label", &good, &[1, 2, classes as u32, 4]);
            check("label -1", &good, &[1, 2, u32::MAX, 4]);
            for (place, value) in
                [(3, f32::NAN), (5, f32::NAN), (3, f32::INFINITY), (9, f32::INFINITY)]
            {
                let mut logits = good.clone();
                logits[2 * classes + place] = value;
                check(&format!("{value} at {place}"), &logits, &labels);
            }
            let mut logits = good.clone();
            logits[2 * classes..3 * classes].fill(f32::NEG_INFINITY);
            check("all -inf", &logits, &labels);
        }
    }
}

/// Masked classes have probability 0, whichever block of a long row they fill.
#[test]
fn logits_of_negative_infinity_have_no_part() {
    for isa in Isa::available() {
        for (classes, masked) in
            [(10, 0..9), (10, 4..10), (65, 0..64), (65, 1..50), (5000, 0..4000), (5000, 100..5000)]
        {
            let mut logits = vec![-1000.0f32; classes];
            logits[masked.clone()].fill(f32::NEG_INFINITY);
            let left: Vec<usize> = (0..classes).filter(|j| !masked.contains(j)).collect();
            let found = run(isa, classes, &logits, Targets::Labels(&[left[0] as u32], 0.0));
            assert_ulps("loss", found.loss, (left.len() as f64).ln(), 4.0);
            for (j, &g) in found.dlogits.iter().enumerate() {
                let share = if left.contains(&j) { 1.0 / left.len() as f64 } else { 0.0 };
                let want = if j == left[0] { share - 1.0 } else { share };
                assert_ulps("gradient", g, want, 4.0);
            }
            let mut target = vec![0.0f32; classes];
            for &j in &left {
                target[j] = 1.0 / left.len() as f32;
            }
            let found = run(isa, classes, &logits, Targets::Soft(&target));
            assert_ulps("soft loss", found.loss, (left.len() as f64).ln(), 8.0);
        }
    }
}

/// Equal logits: the first is the argmax, so that a constant model has the accuracy of class 0.
#[test]
fn of_equal_logits_the_first_is_right() {
    for (isa, classes) in each_isa_and([10, 65]) {
        let labels: Vec<u32> = (0..40).map(|r| r % 10).collect();
        let logits = vec![0.5; 40 * classes];
        let found = run(isa, classes, &logits, Targets::Labels(&labels, 0.0));
        assert_eq!(found.statistics, [0.0, 0.0, 4.0, 0.5, 0.0]);
    }
}

/// Second derivatives: the gradient of a function of dlogits, against differences of dlogits; and
/// the gradients of the row losses.
#[test]
fn the_gradient_has_gradients_in_turn() {
    const ROWS: usize = 3;
    const CLASSES: usize = 5;
    const STEP: f64 = 1e-5;
    let wave = |n: usize, phase: f64| -> Vec<f64> {
        (0..n).map(|i| (1.7 * i as f64 + phase).sin()).collect()
    };
    let count = ROWS * CLASSES;
    for soft in [false, true] {
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [ROWS, CLASSES]).expect("input");
        let upstream = tape.input("v", [ROWS, CLASSES]).expect("input");
        let row_upstream = tape.input("w", [ROWS]).expect("input");
        let (given, found, targets);
        if soft {
            given = tape.input("t", [ROWS, CLASSES]).expect("input");
            found = softmax_cross_entropy_soft(&mut tape, x, given).expect("recorded");
            // Not distributions on purpose: their sums are not 1.
            targets = wave(count, 0.3).iter().map(|t| t.abs()).collect();
        } else {
            given = tape.input_of("t", TensorType::u32([ROWS])).expect("input");
            found = softmax_cross_entropy(&mut tape, x, given, 0.1).expect("recorded");
            targets = vec![4.0, 0.0, 2.0];
        }
        let wrt = if soft { vec![x, given] } else { vec![x] };
        let outputs = [(found.dlogits, upstream), (found.per_row, row_upstream)];
        let gradients = tape.vector_jacobian(&outputs, &wrt).expect("gradients");
        let (v, w) = (wave(count, 1.0), wave(ROWS, 2.0));
        let evaluate = |x_values: &[f64], t_values: &[f64]| {
            let feeds = [
                (x, x_values.to_vec()),
                (given, t_values.to_vec()),
                (upstream, v.clone()),
                (row_upstream, w.clone()),
            ];
            tape.evaluate(&feeds, store.control()).expect("evaluated")
        };
        let value = |x_values: &[f64], t_values: &[f64]| -> f64 {
            let at = evaluate(x_values, t_values);
            let dot = |var: Var, by: &[f64]| -> f64 {
                at.get(var).expect("computed").data.iter().zip(by).map(|(a, b)| a * b).sum()
            };
            dot(found.dlogits, &v) + dot(found.per_row, &w)
        };
        let inputs = [wave(count, 0.0), targets];
        let at = evaluate(&inputs[0], &inputs[1]);
        for (which, gradient) in gradients.into_iter().enumerate() {
            for (i, &recorded) in at.get(gradient).expect("computed").data.iter().enumerate() {
                let moved = |step: f64| {
                    let mut inputs = inputs.clone();
                    inputs[which][i] += step;
                    value(&inputs[0], &inputs[1])
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!(recorded.is_finite() && difference.is_finite());
                let error = (recorded - difference).abs();
                assert!(error <= 1e-6, "soft {soft} {which} {i}: {recorded}, {difference}");
            }
        }
    }
}

#[test]
fn statistics_have_no_gradient() {
    let store = Store::new(&Device::cpu(1).expect("cpu"));
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3, 5]).expect("input");
    let labels = tape.input_of("labels", TensorType::u32([3])).expect("input");
    let found = softmax_cross_entropy(&mut tape, x, labels, 0.0).expect("recorded");
    let upstream = tape.input("v", [5]).expect("input");
    let error = tape.vector_jacobian(&[(found.statistics, upstream)], &[x]).expect_err("no rule");
    assert!(error.to_string().contains("statistics"), "{error}");
}

/// An output that nobody reads changes no other.
#[test]
fn outputs_do_not_depend_on_each_other() {
    const ROWS: usize = 700;
    for classes in [10, 2100] {
        let rows = if classes == 10 { ROWS } else { 3 };
        let labels: Vec<u32> = (0..rows).map(|r| (r * 7 % classes) as u32).collect();
        let logits: Vec<f32> = (0..rows * classes).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let bits = |wanted: [bool; 4]| -> Vec<Option<Vec<u32>>> {
            let mut store = Store::new(&Device::cpu(1).expect("cpu"));
            let region = store.upload("labels", &labels);
            let mut tape = Tape::new(&store);
            let x = tape.input("x", [rows, classes]).expect("input");
            let given = tape.persistent("labels", region, 0, [rows]).expect("labels");
            let found = softmax_cross_entropy(&mut tape, x, given, 0.1).expect("recorded");
            let outputs = [found.loss, found.dlogits, found.statistics, found.per_row];
            for (&output, _) in outputs.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
                tape.output(output).expect("output");
            }
            let mut recording = tape.compile(&store).expect("compile");
            recording.write(x, &logits).expect("write");
            recording.replay(&mut store).expect("replay");
            let read = |output: Var| -> Vec<u32> {
                recording.read(output).expect("read").iter().map(|x| x.to_bits()).collect()
            };
            outputs.iter().zip(wanted).map(|(&o, wanted)| wanted.then(|| read(o))).collect()
        };
        let all = bits([true; 4]);
        for only in 0..4 {
            let alone = bits(std::array::from_fn(|i| i == only));
            assert_eq!(alone[only], all[only], "output {only} of {classes} classes");
        }
    }
}

/// An accuracy over labels that are no classes is no number; a row with NaN is not right.
#[test]
fn accuracy_counts_neither_nan_nor_bad_labels() {
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    let good = store.upload("labels", &[0u32, 1, 2]);
    let bad = store.upload("labels", &[0u32, 1, 3]);
    let logits = [5.0, 1.0, 1.0, 9.0, f32::NAN, 1.0, 0.0, 2.0, 2.0];
    for (region, want) in [(good, Some(1.0)), (bad, None)] {
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [3, 3]).expect("input");
        let labels = tape.persistent("labels", region, 0, [3]).expect("labels");
        let right = twoclocks::ops::accuracy(&mut tape, x, labels).expect("recorded");
        tape.output(right).expect("output");
        let mut recording = tape.compile(&store).expect("compile");
        recording.write(x, &logits).expect("write");
        recording.replay(&mut store).expect("replay");
        let found = recording.read(right).expect("read")[0];
        match want {
            Some(want) => assert_eq!(found, want),
            None => assert!(found.is_nan(), "{found}"),
        }
    }
}
