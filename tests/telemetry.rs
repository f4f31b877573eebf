//! What a training says of itself: that it changes nothing, and that it is what the tensors say.

mod common;

use twoclocks::Device;
use twoclocks::clocks::{self, Matrix, collapse, imbalance, singular_values};
use twoclocks::data::{NormalisationKind, Split, order, synthetic};
use twoclocks::gemm::Precision;
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::optim::{AverageConfig, OptimizerConfig};
use twoclocks::train::{ProbeFigures, StepFigures, TrainOptions, Trainer};

const CLASSES: usize = 5;

fn data(rows: usize, features: usize) -> Split {
    Split {
        train: synthetic(rows, features, CLASSES, 1),
        test: synthetic(20, features, CLASSES, 2),
    }
}

/// A trainer of these layers, in its first epoch.
fn trainer(layers: &str, data: &Split, options: TrainOptions) -> Trainer {
    trainer_on(2, layers, data, options)
}

fn trainer_on(threads: usize, layers: &str, data: &Split, options: TrainOptions) -> Trainer {
    #[derive(serde::Deserialize)]
    struct Model {
        layers: Vec<LayerConfig>,
    }
    let model: Model = toml::from_str(&format!("layers = [{layers}]")).expect("TOML");
    let mut parameters = Parameters::new();
    let model = Sequential::new(&model.layers, data.train.shape(), &mut parameters).expect("model");
    let device = Device::cpu(threads).expect("cpu");
    let mut trainer =
        Trainer::new(&device, Box::new(model), parameters, data, options).expect("trainer");
    trainer.start_epoch(0).expect("epoch");
    trainer
}

/// Steps of the first epoch from number `first` on, counted from 0; their losses.
fn steps(trainer: &mut Trainer, first: usize, count: usize, rate: f64) -> Vec<u64> {
    let rows = trainer.update_rows(0);
    (first..first + count)
        .map(|step| {
            let loss = trainer.step(step as u64 + 1, step * rows, rate).expect("step");
            assert!(loss.is_finite());
            loss.to_bits()
        })
        .collect()
}

fn weights(trainer: &Trainer) -> Vec<f32> {
    let region = trainer.parameters().weights();
    let mut values = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut values).expect("read");
    values
}

/// The values of a parameter.
fn parameter(trainer: &Trainer, name: &str) -> Vec<f32> {
    let info = trainer.parameters().infos().iter().find(|info| info.name == name).expect("known");
    weights(trainer)[info.offset..][..info.shape.elements()].to_vec()
}

fn close(what: &str, found: f64, want: f64, bound: f64) {
    assert!(found.is_finite() && want.is_finite(), "{what}: {found}, want {want}");
    let error = (found - want).abs();
    assert!(error <= bound * want.abs().max(1e-3), "{what}: {found}, want {want}");
}

const NET: &str = r#"
    { kind = "linear", name = "fc1", outputs = 40, activation = "relu" },
    { kind = "dropout", p = 0.2 },
    { kind = "linear", name = "fc2", outputs = 24 },
    { kind = "layer_norm" },
    { kind = "activation", function = "relu" },
    { kind = "linear", name = "fc3", outputs = 5 },
"#;

/// More than a million weights in products, so that these are updated as their gradients are computed.
const LARGE: &str = r#"
    { kind = "linear", outputs = 1100, activation = "relu" },
    { kind = "linear", outputs = 5 },
"#;

#[test]
fn telemetry_and_probes_change_no_bit() {
    let base = TrainOptions { batch: 16, label_smoothing: 0.1, ..TrainOptions::default() };
    let clipped = |mut options: TrainOptions| {
        options.optimizer.clip_norm = Some(0.3);
        options
    };
    let cases = [
        ("plain", NET, 30, base.clone()),
        ("clipped", NET, 30, clipped(base.clone())),
        ("accumulated", NET, 30, clipped(TrainOptions { accumulate: 3, ..base.clone() })),
        ("accumulated", NET, 30, TrainOptions { accumulate: 2, ..base.clone() }),
        ("within products", LARGE, 1000, base.clone()),
    ];
    for (what, layers, features, options) in cases {
        for precision in [Precision::F32, Precision::Bf16] {
            let what = format!("{what}, {precision}");
            // The last batch is short.
            let data = data(90, features);
            let run = |telemetry: bool| {
                let options = TrainOptions { precision, telemetry, ..options.clone() };
                let mut trainer = trainer(layers, &data, options);
                let count = trainer.steps_per_epoch() as usize;
                let mut losses = steps(&mut trainer, 0, count / 2, 1e-2);
                if telemetry {
                    trainer.probe().expect("probe");
                }
                losses.extend(steps(&mut trainer, count / 2, count - count / 2, 1e-2));
                let figures = trainer.take_figures().expect("figures");
                (losses, weights(&trainer), figures)
            };
            let (losses, weights, none) = run(false);
            let (same_losses, same, figures) = run(true);
            assert_eq!(losses, same_losses, "{what}");
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&weights) == bits(&same), "{what}: other weights");
            assert_eq!(none, None, "{what}");
            let figures = figures.expect("there were steps");
            assert_eq!((figures.steps, figures.rows), (losses.len() as u64, 90), "{what}");
            assert!(figures.parameters.iter().all(|p| p.gradient2 > 0.0), "{what}: {figures:?}");
        }
    }
}

/// Without telemetry the step is recorded as if there were none; with it there is one node more.
#[test]
fn telemetry_is_one_node_of_the_step() {
    let data = data(64, 30);
    let nodes = |telemetry: bool| {
        let options = TrainOptions { batch: 16, telemetry, ..TrainOptions::default() };
        let mut trainer = trainer(NET, &data, options);
        let (recording, _) = trainer.step_recording().expect("recorded");
        recording.nodes().iter().map(|node| node.label.clone()).collect::<Vec<_>>()
    };
    let (off, on) = (nodes(false), nodes(true));
    assert!(off.iter().all(|label| !label.contains("telemetry")), "{off:?}");
    let mut with = off;
    with.push("telemetry/accumulate".to_owned());
    assert_eq!(on, with);
}

/// Sums over the rows of updates of softmax regression, worked out in f64.
struct ByHand {
    rows: f64,
    margin: f64,
    least: f64,
    right: f64,
    squares: f64,
    saturated: f64,
    /// Of weight and bias: `g.g`, `w.w` of the last update, `g.w`.
    parameters: [[f64; 3]; 2],
}

impl ByHand {
    /// Adds an update: the rows `batch` with these weights.
    fn update(&mut self, data: &Split, batch: &[u32], weight: &[f32], bias: &[f32]) {
        let features = data.train.features();
        let mut values = vec![0f32; data.train.rows() * features];
        data.train.rows_f32(0..data.train.rows(), &mut values);
        let mut dw = vec![0f64; features * CLASSES];
        let mut db = [0f64; CLASSES];
        for &row in batch {
            let x = &values[row as usize * features..][..features];
            let label = data.train.labels()[row as usize] as usize;
            let z: Vec<f64> = (0..CLASSES)
                .map(|c| {
                    let products = x
                        .iter()
                        .enumerate()
                        .map(|(i, &x)| f64::from(x) * f64::from(weight[i * CLASSES + c]));
                    products.sum::<f64>() + f64::from(bias[c])
                })
                .collect();
            let other = (0..CLASSES).filter(|&c| c != label).map(|c| z[c]);
            let margin = z[label] - other.fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            let rest: f64 =
                (0..CLASSES).filter(|&c| c != label).map(|c| (z[c] - z[label]).exp()).sum();
            self.rows += 1.0;
            self.margin += margin;
            self.least = self.least.min(margin);
            self.right += f64::from(u8::from(margin > 0.0));
            self.squares += z.iter().map(|z| z * z).sum::<f64>() / CLASSES as f64;
            self.saturated += f64::from(u8::from(margin > 0.0 && rest <= 2f64.powi(-24)));
            for c in 0..CLASSES {
                let dz = z[c].exp() / total - f64::from(u8::from(c == label));
                let dz = dz / batch.len() as f64;
                db[c] += dz;
                for (i, &x) in x.iter().enumerate() {
                    dw[i * CLASSES + c] += f64::from(x) * dz;
                }
            }
        }
        for (sums, (g, w)) in self.parameters.iter_mut().zip([(&dw[..], weight), (&db[..], bias)]) {
            let wide = w.iter().map(|&w| f64::from(w));
            sums[0] += g.iter().map(|g| g * g).sum::<f64>();
            sums[1] = wide.clone().map(|w| w * w).sum();
            sums[2] += g.iter().zip(wide).map(|(g, w)| g * w).sum::<f64>();
        }
    }
}

#[test]
fn figures_of_the_steps_are_those_of_the_tensors() {
    // Of rows far apart, of which some become saturated.
    let mut data = data(70, 12);
    let mut values = vec![0f32; 70 * 12];
    data.train.rows_f32(0..70, &mut values);
    values.iter_mut().for_each(|x| *x *= 6.0);
    let labels = data.train.labels().to_vec();
    data.train = twoclocks::data::Dataset::from_arrays(values, 12, labels, CLASSES).expect("data");
    for accumulate in [1, 2] {
        let optimizer = OptimizerConfig { clip_norm: Some(2.0), ..OptimizerConfig::adamw() };
        let options = TrainOptions {
            batch: 16,
            accumulate,
            normalise: NormalisationKind::None,
            optimizer,
            telemetry: true,
            ..TrainOptions::default()
        };
        let mut trainer =
            trainer(r#"{ kind = "linear", name = "fc", outputs = 5 }"#, &data, options);
        let order = order(0, 0, 70);
        let rows = trainer.update_rows(0);
        // The figures are taken twice: the second time they are those of the steps since.
        let count = trainer.steps_per_epoch() as usize;
        for range in [0..count / 2, count / 2..count] {
            let mut want = ByHand {
                rows: 0.0,
                margin: 0.0,
                least: f64::INFINITY,
                right: 0.0,
                squares: 0.0,
                saturated: 0.0,
                parameters: [[0.0; 3]; 2],
            };
            let updates = range.len() as f64;
            for step in range {
                let batch = &order[step * rows..70.min((step + 1) * rows)];
                let [weight, bias] = ["fc.weight", "fc.bias"].map(|n| parameter(&trainer, n));
                want.update(&data, batch, &weight, &bias);
                steps(&mut trainer, step, 1, 0.5);
            }
            let found = trainer.take_figures().expect("figures").expect("there were steps");
            let StepFigures { steps, rows, accuracy, margin, least_margin, .. } = found;
            assert_eq!((steps as f64, rows as f64), (updates, want.rows));
            close("accuracy", accuracy, want.right / want.rows, 1e-12);
            close("margin", margin, want.margin / want.rows, 1e-4);
            close("least margin", least_margin, want.least, 1e-4);
            close("rms", found.logit_rms, (want.squares / want.rows).sqrt(), 1e-5);
            close("saturated", found.saturated, want.saturated / want.rows, 1e-12);
            for (found, [g2, w2, gw]) in found.parameters.iter().zip(want.parameters) {
                close(&found.name, found.gradient2, g2 / updates, 1e-4);
                close(&found.name, found.weight2, w2, 1e-5);
                close(&found.name, found.gradient_weight, gw / updates, 1e-3);
            }
            assert_eq!(found.parameters[0].decay_factor, 1.0);
            assert_eq!(found.parameters[1].decay_factor, 0.0);
            assert_eq!(trainer.take_figures().expect("figures"), None, "they were taken");
            if accumulate == 1 && steps as usize == count - count / 2 {
                assert!(want.saturated > 0.0, "no row of the test is saturated");
            }
        }
    }
}

/// The rows of a probe: from all over the data set, evenly.
fn probed(data: &Split, rows: usize) -> impl Iterator<Item = usize> {
    let all = data.train.rows();
    (0..rows).map(move |i| i * all / rows)
}

/// Rows of the data set as a net's first layer reads them.
fn inputs(data: &Split, rows: usize) -> Vec<f32> {
    let width = data.train.features();
    let mut values = vec![0f32; rows * width];
    for (row, values) in probed(data, rows).zip(values.chunks_mut(width)) {
        data.train.rows_f32(row..row + 1, values);
    }
    values
}

/// Their labels.
fn labels(data: &Split, rows: usize) -> Vec<u32> {
    probed(data, rows).map(|row| data.train.labels()[row]).collect()
}

/// `act(x W + b)` in f64.
fn linear(x: &[f64], weight: &[f32], bias: &[f32], relu: bool) -> Vec<f64> {
    let (outputs, width) = (bias.len(), weight.len() / bias.len());
    let mut y = Vec::new();
    for row in x.chunks(width) {
        for (j, &bias) in bias.iter().enumerate() {
            let products =
                row.iter().enumerate().map(|(i, x)| x * f64::from(weight[i * outputs + j]));
            let z = products.sum::<f64>() + f64::from(bias);
            y.push(if relu { z.max(0.0) } else { z });
        }
    }
    y
}

/// Hidden activations and logits of the net `PLAIN` on `rows` rows of a probe.
fn pass(trainer: &Trainer, data: &Split, rows: usize) -> [Vec<f64>; 2] {
    let x: Vec<f64> = inputs(data, rows).iter().map(|&x| f64::from(x)).collect();
    let of = |name: &str| parameter(trainer, name);
    let h = linear(&x, &of("fc1.weight"), &of("fc1.bias"), true);
    let z = linear(&h, &of("fc2.weight"), &of("fc2.bias"), false);
    [h, z]
}

const PLAIN: &str = r#"
    { kind = "linear", name = "fc1", outputs = 40, activation = "relu" },
    { kind = "dropout", p = 0.5 },
    { kind = "linear", name = "fc2", outputs = 5 },
"#;

fn exact(trainer: &Trainer, name: &str, shape: [usize; 2]) -> f64 {
    let values = parameter(trainer, name);
    clocks::stable_rank(&singular_values(Matrix::new(shape[0], shape[1], &values)))
}

#[test]
fn a_probe_sees_gates_collapse_and_weights() {
    const ROWS: usize = 50;
    let data = data(200, 30);
    let options = TrainOptions {
        batch: 20,
        normalise: NormalisationKind::None,
        probe_rows: ROWS,
        ..TrainOptions::default()
    };
    let mut trainer = trainer(PLAIN, &data, options);
    let mut before: Option<Vec<f64>> = None;
    for turn in 0..4 {
        let found: ProbeFigures = trainer.probe().expect("probe");
        let [h, z] = pass(&trainer, &data, ROWS);

        let names: Vec<&str> = found.weights.iter().map(|w| &*w.name).collect();
        assert_eq!(names, ["fc1", "fc2"]);
        for (weight, shape) in found.weights.iter().zip([[30, 40], [40, 5]]) {
            assert_eq!((weight.shape, weight.normalised), (shape, false));
            let name = format!("{}.weight", weight.name);
            let norm2: f64 = parameter(&trainer, &name).iter().map(|&w| f64::from(w).powi(2)).sum();
            close("norm", weight.norm, norm2.sqrt(), 1e-5);
            close(&name, weight.stable_rank, exact(&trainer, &name, shape), 2e-3);
        }

        let [first, second] = ["fc1.weight", "fc2.weight"].map(|n| parameter(&trainer, n));
        let want = imbalance(Matrix::new(30, 40, &first), Matrix::new(40, 5, &second)).relative;
        assert_eq!(found.balance.len(), 1);
        assert_eq!(found.balance[0].0, "fc1-fc2");
        close("balance", found.balance[0].1, want, 1e-5);

        match &before {
            None => assert!(found.flips.is_empty(), "{:?}", found.flips),
            Some(before) => {
                let changed = h.iter().zip(before).filter(|(a, b)| (**a > 0.0) != (**b > 0.0));
                let share = changed.count() as f64 / h.len() as f64;
                assert_eq!(found.flips.len(), 1);
                assert_eq!(found.flips[0].0, "fc1");
                // A gate may be so near zero that f32 has it on the other side.
                let error = (found.flips[0].1 - share).abs() * h.len() as f64;
                assert!(error < 3.5, "{error} gates: {:?}, want {share}", found.flips);
                assert!(turn != 2 || share > 0.0, "the steps changed no gate");
                assert!(turn != 3 || found.flips[0].1 == 0.0, "{:?}", found.flips);
            }
        }
        before = Some(h.clone());

        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let largest = |row: &[f64]| {
            (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("classes") as u32
        };
        let predicted: Vec<u32> = z.chunks(CLASSES).map(largest).collect();
        let h = narrow(&h);
        let labels = &labels(&data, ROWS);
        let last = Matrix::new(40, CLASSES, &second);
        let want = collapse(Matrix::new(ROWS, 40, &h), labels, &predicted, last).expect("classes");
        let collapse = found.collapse.expect("all classes are there");
        for (what, found, want) in [
            ("nc1", collapse.within, want.within),
            ("nc2 norms", collapse.norms, want.norms),
            ("nc2 angles", collapse.angles, want.angles),
            ("nc3", collapse.duality, want.duality),
            ("nc4", collapse.nearest, want.nearest),
        ] {
            close(what, found, want, 1e-3);
        }
        assert_eq!(found.schatten, None);
        // The last probe follows the one before at once.
        if turn < 2 {
            steps(&mut trainer, 4 * turn, 4, 3e-3);
        }
    }
}

/// Warm-started iteration keeps up with weights in training; the balance of wide layers is an estimate.
#[test]
fn stable_ranks_are_followed_and_the_balance_of_wide_layers_is_estimated() {
    let layers = r#"
        { kind = "linear", name = "fc1", outputs = 256, activation = "relu" },
        { kind = "linear", name = "fc2", outputs = 256, activation = "relu" },
        { kind = "linear", name = "fc3", outputs = 5 },
    "#;
    let data = data(640, 200);
    let options = TrainOptions { batch: 32, probe_rows: 64, ..TrainOptions::default() };
    let mut trainer = trainer(layers, &data, options);
    let shapes = [("fc1.weight", [200, 256]), ("fc2.weight", [256, 256]), ("fc3.weight", [256, 5])];
    let mut worst = [0f64; 2];
    for turn in 0..5 {
        let found = trainer.probe().expect("probe");
        for (weight, (name, shape)) in found.weights.iter().zip(shapes) {
            let exact = exact(&trainer, name, shape);
            // Never below, but for rounding.
            let error = weight.stable_rank / exact - 1.0;
            assert!(error > -1e-4, "{name} {turn}: {}, exact {exact}", weight.stable_rank);
            let which = usize::from(turn > 0);
            worst[which] = worst[which].max(error);
        }
        assert_eq!(found.balance.len(), 2);
        for (i, (name, found)) in found.balance.iter().enumerate() {
            let [first, second] = [i, i + 1].map(|i| parameter(&trainer, shapes[i].0));
            let matrix = |i: usize, values| Matrix::new(shapes[i].1[0], shapes[i].1[1], values);
            let want = imbalance(matrix(i, &first), matrix(i + 1, &second)).relative;
            close(name, *found, want, 0.1);
        }
        steps(&mut trainer, 4 * turn, 4, 1e-2);
    }
    println!(
        "stable rank above the exact one: first probe {:.1e}, later {:.1e}",
        worst[0], worst[1]
    );
    assert!(worst[0] < 3e-2 && worst[1] < 3e-2, "{worst:?}");
}

/// Two of these weights are so wide that their effective rank is an estimate.
const WIDE: &str = r#"
    { kind = "linear", name = "fc1", outputs = 200, activation = "relu" },
    { kind = "linear", name = "fc2", outputs = 256, activation = "relu" },
    { kind = "linear", name = "fc3", outputs = 40, activation = "relu" },
    { kind = "linear", name = "fc4", outputs = 5 },
"#;
const WIDE_SHAPES: [(&str, [usize; 2]); 4] = [
    ("fc1.weight", [300, 200]),
    ("fc2.weight", [200, 256]),
    ("fc3.weight", [256, 40]),
    ("fc4.weight", [40, 5]),
];

/// Replaces a weight.
fn set(trainer: &mut Trainer, name: &str, values: &[f32]) {
    let info = trainer.parameters().infos().iter().find(|info| info.name == name).expect("known");
    let (offset, region) = (info.offset, trainer.parameters().weights());
    trainer.store_mut().write(region, offset, values).expect("written");
}

/// `[rows, columns]` of this rank, from random factors, and noise on it.
fn of_rank(rank: usize, [rows, columns]: [usize; 2], noise: f32) -> Vec<f32> {
    let mut random = common::Random(7 + rank as u64);
    let mut normal = || (0..12).map(|_| random.unit()).sum::<f64>() as f32 - 6.0;
    let left: Vec<f32> = (0..rows * rank).map(|_| normal()).collect();
    let right: Vec<f32> = (0..columns * rank).map(|_| normal()).collect();
    let mut values = Vec::new();
    for row in left.chunks(rank) {
        for column in right.chunks(rank) {
            let product = row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
            values.push(product + noise * normal());
        }
    }
    values
}

#[test]
fn effective_ranks_are_exact_where_small_and_else_nearly() {
    let data = data(640, 300);
    let options = TrainOptions { batch: 32, probe_rows: 64, ..TrainOptions::default() };
    let mut trainer = trainer(WIDE, &data, options);
    let check = |what: &str, trainer: &mut Trainer, bound: f64| {
        let found = trainer.probe().expect("probe").weights;
        for (weight, (name, shape)) in found.iter().zip(WIDE_SHAPES) {
            let values = parameter(trainer, name);
            let exact =
                clocks::effective_rank(&singular_values(Matrix::new(shape[0], shape[1], &values)));
            let rank = weight.effective_rank.expect("looked for");
            println!("{what} {name}: {rank:.2}, exact {exact:.2}: {:+.2e}", rank / exact - 1.0);
            let small = shape[0].min(shape[1]) <= 40;
            close(&format!("{what} {name}"), rank, exact, if small { 1e-5 } else { bound });
        }
    };
    check("start", &mut trainer, 0.01);
    for turn in 0..3 {
        steps(&mut trainer, 4 * turn, 4, 1e-2);
        check("trained", &mut trainer, 0.01);
    }
    // What the subspace holds whole, what it does not, and signal over noise.
    for (rank, noise, bound) in [(5, 0.0, 1e-3), (40, 0.0, 0.03), (100, 0.0, 0.03), (20, 0.3, 0.03)]
    {
        for (name, shape) in &WIDE_SHAPES[..2] {
            set(&mut trainer, name, &of_rank(rank, *shape, noise));
        }
        check(&format!("rank {rank} noise {noise}"), &mut trainer, bound);
    }
    // The quick one does not look for them.
    let quick = trainer.quick_probe().expect("probe").weights;
    assert!(quick.iter().all(|weight| weight.effective_rank.is_none()));
    // Nothing, and what is no number, have no rank; the others keep theirs.
    for (values, what) in [(0.0, "zeros"), (f32::NAN, "NaN")] {
        set(&mut trainer, "fc1.weight", &vec![values; 300 * 200]);
        set(&mut trainer, "fc3.weight", &vec![values; 256 * 40]);
        let found = trainer.probe().expect("probe").weights;
        let ranks: Vec<f64> =
            found.iter().map(|weight| weight.effective_rank.expect("looked for")).collect();
        assert!(ranks[0].is_nan() && ranks[2].is_nan(), "{what}: {ranks:?}");
        assert!(ranks[1] > 10.0 && ranks[3] > 3.0, "{what}: {ranks:?}");
    }
}

#[test]
fn a_probe_has_the_same_bits_on_one_thread_and_on_two() {
    let data = data(640, 300);
    let probes = [1, 2].map(|threads| {
        let options = TrainOptions { batch: 32, probe_rows: 64, ..TrainOptions::default() };
        let mut trainer = trainer_on(threads, WIDE, &data, options);
        trainer.probe().expect("probe");
        steps(&mut trainer, 0, 6, 1e-2);
        trainer.probe().expect("probe")
    });
    let bits = |probe: &ProbeFigures| -> Vec<[u64; 2]> {
        let of = |w: &twoclocks::train::WeightFigures| {
            [w.stable_rank, w.effective_rank.expect("looked for")].map(f64::to_bits)
        };
        probe.weights.iter().map(of).collect()
    };
    assert_eq!(bits(&probes[0]), bits(&probes[1]));
    assert_eq!(probes[0], probes[1]);
}

/// Reviews read the average of the weights, where there is one: the probe looks at the same ones.
#[test]
fn a_probe_looks_at_the_weights_that_reviews_read() {
    const ROWS: usize = 50;
    let data = data(200, 30);
    let averages = [
        AverageConfig::Ema { decay: 0.8, every: 1 },
        AverageConfig::Lookahead { alpha: 0.5, every: 4 },
    ];
    for average in averages {
        let optimizer = OptimizerConfig { average: Some(average), ..OptimizerConfig::adamw() };
        let options = TrainOptions {
            batch: 20,
            normalise: NormalisationKind::None,
            probe_rows: ROWS,
            optimizer,
            ..TrainOptions::default()
        };
        let mut trainer = trainer(PLAIN, &data, options);
        // Not a step at which Lookahead brings both together.
        steps(&mut trainer, 0, 6, 2e-2);
        let found = trainer.probe().expect("probe");
        let trained = weights(&trainer);
        let region = trainer.optimizer().average().expect("an average");
        let mut slow = vec![0f32; trained.len()];
        trainer.store().read(region, 0, &mut slow).expect("read");
        let of = |all: &[f32], name: &str| {
            let info = trainer.parameters().infos().iter().find(|info| info.name == name);
            let info = info.expect("known");
            all[info.offset..][..info.shape.elements()].to_vec()
        };
        for (weight, shape) in found.weights.iter().zip([[30, 40], [40, 5]]) {
            let name = format!("{}.weight", weight.name);
            let norm =
                |all: &[f32]| Matrix::new(shape[0], shape[1], &of(all, &name)).norm2().sqrt();
            close(&name, weight.norm, norm(&slow), 1e-5);
            assert!(
                (norm(&trained) / norm(&slow) - 1.0).abs() > 1e-3,
                "{average:?}: no difference"
            );
            let values = of(&slow, &name);
            let singular = singular_values(Matrix::new(shape[0], shape[1], &values));
            close(&name, weight.stable_rank, clocks::stable_rank(&singular), 2e-3);
            let effective = weight.effective_rank.expect("looked for");
            close(&name, effective, clocks::effective_rank(&singular), 1e-5);
        }
        // Collapse: of the slow net's features, with its last weight.
        let x: Vec<f64> = inputs(&data, ROWS).iter().map(|&x| f64::from(x)).collect();
        let [w1, b1, w2, b2] =
            ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"].map(|name| of(&slow, name));
        let h = linear(&x, &w1, &b1, true);
        let z = linear(&h, &w2, &b2, false);
        let largest = |row: &[f64]| {
            (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("classes") as u32
        };
        let predicted: Vec<u32> = z.chunks(CLASSES).map(largest).collect();
        let h: Vec<f32> = h.iter().map(|&x| x as f32).collect();
        let labels = &labels(&data, ROWS);
        let (features, last) = (Matrix::new(ROWS, 40, &h), Matrix::new(40, CLASSES, &w2));
        let want = collapse(features, labels, &predicted, last).expect("classes");
        let found = found.collapse.expect("all classes are there");
        close("nc1", found.within, want.within, 1e-3);
        close("nc3", found.duality, want.duality, 1e-3);
    }
}

#[test]
fn a_probe_knows_normalised_layers_and_gates_of_their_own() {
    let data = data(60, 30);
    let mut trainer = trainer(NET, &data, TrainOptions { batch: 20, ..TrainOptions::default() });
    trainer.probe().expect("probe");
    let found = trainer.probe().expect("probe");
    let normalised: Vec<(&str, bool)> =
        found.weights.iter().map(|w| (&*w.name, w.normalised)).collect();
    assert_eq!(normalised, [("fc1", false), ("fc2", true), ("fc3", false)]);
    let flips: Vec<&str> = found.flips.iter().map(|(name, _)| &**name).collect();
    assert_eq!(flips, ["fc1", "activation4"]);
    // Dropout is nothing in a probe; a norm stands between fc2 and fc3.
    let pairs: Vec<&str> = found.balance.iter().map(|(name, _)| &**name).collect();
    assert_eq!(pairs, ["fc1-fc2"]);
}

#[test]
fn the_map_of_a_linear_net_has_a_quasi_norm() {
    let layers = |bias: &str| {
        format!(
            r#"{{ kind = "linear", name = "a", outputs = 12, bias = false }},
               {{ kind = "linear", name = "b", outputs = 9, bias = false }},
               {{ kind = "linear", name = "c", outputs = 5{bias} }}"#
        )
    };
    let data = data(40, 8);
    let options = TrainOptions { batch: 20, ..TrainOptions::default() };
    let mut deep = trainer(&layers(", bias = false"), &data, options.clone());
    let found = deep.probe().expect("probe").schatten.expect("all layers are linear");
    let product = |a: &[f64], b: &[f32], inner: usize| -> Vec<f64> {
        let columns = b.len() / inner;
        (0..a.len() / inner * columns)
            .map(|i| {
                let (row, column) = (i / columns, i % columns);
                (0..inner).map(|k| a[row * inner + k] * f64::from(b[k * columns + column])).sum()
            })
            .collect()
    };
    let wide: Vec<f64> = parameter(&deep, "a.weight").iter().map(|&x| f64::from(x)).collect();
    let two = product(&wide, &parameter(&deep, "b.weight"), 12);
    let three = product(&two, &parameter(&deep, "c.weight"), 9);
    let three: Vec<f32> = three.iter().map(|&x| x as f32).collect();
    let want = clocks::schatten(&singular_values(Matrix::new(8, 5, &three)), 3);
    close("three layers", found, want, 1e-4);
    let mut with_bias = trainer(&layers(""), &data, options.clone());
    assert_eq!(with_bias.probe().expect("probe").schatten, None);
    let one = r#"{ kind = "linear", name = "a", outputs = 5, bias = false }"#;
    let mut one = trainer(one, &data, options);
    let found = one.probe().expect("probe").schatten.expect("linear");
    let norm2: f64 = parameter(&one, "a.weight").iter().map(|&w| f64::from(w).powi(2)).sum();
    close("one layer", found, norm2, 1e-4);
}
