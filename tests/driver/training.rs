//! Training on the stand-in: steps beside the CPU's and PyTorch's, and the digits.

use crate::build;
use crate::common::trajectory;
use crate::gpu::digest;
use crate::on_stand_in;
use crate::tape::device;
use std::collections::BTreeSet;
use twoclocks::Device;
use twoclocks::data::Split;
use twoclocks::gemm::Precision;
use twoclocks::nn::{ActivationName, LayerConfig, Parameters, Sequential};
use twoclocks::optim::{AverageConfig, Decay, OptimizerConfig, Rule};
use twoclocks::train::{Config, TrainOptions, Trainer, recipe};

/// A trainer of the recipe `digits`, dropout and all, and its data.
pub fn digits(
    device: &Device,
    precision: Precision,
    change: impl Fn(&mut TrainOptions),
) -> Trainer {
    train(device, recipe("digits").expect("a recipe"), precision, change)
}

/// The same with tanh for ReLU. Over many steps that is what two devices are compared by: of the thousands of values of
/// each step one comes to lie so near the kink that it has another slope there, and AdamW then takes another step.
pub fn digits_without_kinks(device: &Device, change: impl Fn(&mut TrainOptions)) -> Trainer {
    let mut config = recipe("digits").expect("a recipe");
    for layer in &mut config.model.layers {
        if let LayerConfig::Linear { activation, .. } = layer
            && *activation == ActivationName::Relu
        {
            *activation = ActivationName::Tanh;
        }
    }
    train(device, config, Precision::F32, change)
}

fn train(
    device: &Device,
    config: Config,
    precision: Precision,
    change: impl Fn(&mut TrainOptions),
) -> Trainer {
    let data: Split = config.data.source().expect("embedded").load().expect("embedded");
    let mut parameters = Parameters::new();
    let shape = data.train.shape().to_vec();
    let model = Sequential::new(&config.model.layers, &shape, &mut parameters).expect("fits");
    let mut options = TrainOptions {
        batch: config.train.batch,
        label_smoothing: config.train.label_smoothing,
        optimizer: config.optimizer,
        precision,
        ..TrainOptions::default()
    };
    change(&mut options);
    Trainer::new(device, Box::new(model), parameters, &data, options).expect("a trainer")
}

/// All weights, flat.
pub fn weights(trainer: &Trainer) -> Vec<f32> {
    let region = trainer.parameters().weights();
    let mut values = vec![0f32; trainer.store().len(region)];
    trainer.store().read(region, 0, &mut values).expect("read");
    values
}

/// Ten steps on both devices: losses and weights stay together.
fn beside_the_cpu(what: &str, precision: Precision, rate: f64, change: impl Fn(&mut TrainOptions)) {
    let cpu = Device::cpu(1).expect("cpu");
    let mut trainers = [&device(), &cpu].map(|device| digits(device, precision, &change));
    let rows = trainers[0].update_rows(0);
    for trainer in &mut trainers {
        trainer.start_epoch(0).expect("order");
    }
    assert_eq!(weights(&trainers[0]), weights(&trainers[1]), "{what}: starting values");
    // Sums are taken in other orders; bf16 operands may round to the neighbour.
    let bound = if precision == Precision::F32 { 2e-5 } else { 4e-3 };
    for step in 0..10 {
        let [got, want] =
            [0, 1].map(|i| trainers[i].step(step + 1, step as usize * rows, rate).expect("a step"));
        assert!(got.is_finite() && want.is_finite(), "{what}, step {step}: {got}, CPU {want}");
        let error = (got - want).abs() / want.abs();
        assert!(error <= bound, "{what}, step {step}: loss {got}, CPU {want}: {error:e}");
    }
    let [got, want] = [0, 1].map(|i| weights(&trainers[i]));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = &mut got.iter().zip(&want).map(|(a, b)| f64::from(a - b));
    let error = norm(difference) / norm(&mut want.iter().map(|&x| f64::from(x)));
    assert!(error <= bound, "{what}: weights {error:e} apart");
    digest(what, &got);
    let [got, want] = trainers.map(|mut trainer| trainer.review().expect("a review").loss);
    let error = (got - want).abs() / want;
    assert!(error <= bound, "{what}: reviewed {got}, CPU {want}: {error:e}");
}

on_stand_in! {
    fn ten_steps_beside_the_cpu() {
        for precision in [Precision::F32, Precision::Bf16] {
            beside_the_cpu(&format!("{precision:?}"), precision, 1e-3, |_| ());
            beside_the_cpu(&format!("{precision:?}, clipped, accumulated"), precision, 1e-3, |options| {
                options.optimizer.clip_norm = Some(0.5);
                (options.batch, options.accumulate) = (32, 2);
            });
        }
    }
}

/// Every rule, with each kind of decay.
fn optimizers() -> Vec<(&'static str, OptimizerConfig)> {
    let sgd = |momentum, nesterov| OptimizerConfig {
        rule: Rule::Sgd { momentum, nesterov },
        rate: 0.05,
        weight_decay: 0.01,
        ..OptimizerConfig::sgd()
    };
    let adamw = OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::adamw() };
    let ema = AverageConfig::Ema { decay: 0.9, every: 2 };
    let lookahead = AverageConfig::Lookahead { alpha: 0.5, every: 3 };
    vec![
        ("sgd", sgd(0.0, false)),
        ("sgd, decoupled", OptimizerConfig { decay: Decay::Decoupled, ..sgd(0.0, false) }),
        ("momentum", sgd(0.9, false)),
        ("nesterov", sgd(0.9, true)),
        ("adam, cautious", OptimizerConfig { decay: Decay::Cautious, ..adamw }),
        ("adam, coupled", OptimizerConfig { decay: Decay::Coupled, ..adamw }),
        ("adam", OptimizerConfig { decay: Decay::None, weight_decay: 0.0, ..adamw }),
        ("lion", OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::lion() }),
        ("adam, orthogonal", OptimizerConfig { orthogonal_gradient: true, ..adamw }),
        ("adam, ema", OptimizerConfig { average: Some(ema), ..adamw }),
        ("nesterov, lookahead", OptimizerConfig { average: Some(lookahead), ..sgd(0.9, true) }),
    ]
}

on_stand_in! {
    fn every_optimizer_beside_the_cpu() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (name, optimizer) in optimizers() {
                let what = format!("{name}, {precision:?}");
                beside_the_cpu(&what, precision, optimizer.rate, |options| options.optimizer = optimizer);
            }
        }
    }
}

on_stand_in! {
    /// Losses and weights of ten steps are those of PyTorch, as on the CPU.
    fn ten_steps_of_pytorch() {
        for name in ["adamw", "adamw_accumulate", "adamw_gelu_layer_norm", "sgd_nesterov", "sgd_clip", "lion", "adamw_one_cycle"] {
            trajectory::check(name, &device());
        }
    }
}

on_stand_in! {
    fn digits_are_learnt() {
        let mut trainer = digits(&device(), Precision::F32, |_| ());
        let (steps, rows) = (trainer.steps_per_epoch(), trainer.update_rows(0));
        for epoch in 0..2 {
            trainer.start_epoch(epoch).expect("order");
            for step in 0..steps {
                let number = epoch * steps + step + 1;
                let loss = trainer.step(number, step as usize * rows, 4e-3).expect("a step");
                assert!(loss.is_finite(), "step {number}: {loss}");
            }
        }
        let review = trainer.review().expect("a review");
        assert!(review.accuracy > 0.9, "{review:?}");
        digest("weights", &weights(&trainer));
        // What went wrong is found node by node.
        assert_eq!(trainer.diagnose(1, 0).expect("it runs"), None);
    }
}

/// `found` is `want` within a share of it.
fn near(what: &str, found: f64, want: f64, share: f64) {
    assert!(found.is_finite() && want.is_finite(), "{what}: {found}, CPU {want}");
    assert!((found - want).abs() <= share * want.abs().max(1e-2), "{what}: {found}, CPU {want}");
}

on_stand_in! {
    /// Telemetry changes no bit of the weights; what it says, and what probes see, is what the CPU's say.
    fn telemetry_beside_the_cpu() {
        let device = device();
        for clipped in [false, true] {
            let trainer = |device: &Device, telemetry: bool| {
                let mut trainer = digits(device, Precision::F32, |options| {
                    (options.batch, options.probe_rows, options.telemetry) = (32, 60, telemetry);
                    if clipped {
                        options.accumulate = 2;
                        options.optimizer.clip_norm = Some(0.5);
                    }
                });
                trainer.start_epoch(0).expect("order");
                trainer
            };
            let what = if clipped { "clipped, accumulated" } else { "plain" };
            let cpu = Device::cpu(1).expect("cpu");
            let mut trainers =
                [trainer(&device, true), trainer(&device, false), trainer(&cpu, true)];
            let rows = trainers[0].update_rows(0);
            let mut probes = Vec::new();
            for turn in 0..2 {
                for trainer in &mut trainers {
                    trainer.steps(3 * turn as u64 + 1, 3 * turn * rows, &[1e-3; 3]).expect("steps");
                }
                probes = [0, 2].map(|i| trainers[i].probe().expect("a probe")).to_vec();
            }
            let [on, off] = [0, 1].map(|i| weights(&trainers[i]));
            assert!(on.iter().map(|x| x.to_bits()).eq(off.iter().map(|x| x.to_bits())), "{what}");

            let [got, none, want] =
                [0, 1, 2].map(|i| trainers[i].take_figures().expect("figures"));
            assert_eq!(none, None);
            let (got, want) = (got.expect("there were steps"), want.expect("there were steps"));
            assert_eq!((got.steps, got.rows), (want.steps, want.rows), "{what}");
            near("accuracy", got.accuracy, want.accuracy, 0.05);
            near("margin", got.margin, want.margin, 1e-3);
            near("least margin", got.least_margin, want.least_margin, 1e-3);
            near("rms", got.logit_rms, want.logit_rms, 1e-4);
            assert_eq!(got.saturated, want.saturated, "{what}");
            for (got, want) in got.parameters.iter().zip(&want.parameters) {
                near(&got.name, got.gradient2, want.gradient2, 1e-3);
                near(&got.name, got.weight2, want.weight2, 1e-4);
                near(&got.name, got.gradient_weight, want.gradient_weight, 1e-2);
            }
            assert_eq!(trainers[0].take_figures().expect("figures"), None, "they were taken");

            let (got, want) = (&probes[0], &probes[1]);
            assert!(!got.weights.is_empty() && got.weights.len() == want.weights.len());
            for (got, want) in got.weights.iter().zip(&want.weights) {
                near(&got.name, got.norm, want.norm, 1e-4);
                near(&got.name, got.stable_rank, want.stable_rank, 2e-2);
                let [rank, wanted] = [got, want].map(|w| w.effective_rank.expect("looked for"));
                near(&got.name, rank, wanted, 1e-2);
            }
            assert!(!got.balance.is_empty() && !got.flips.is_empty(), "{what}: {got:?}");
            for (got, want) in got.balance.iter().zip(&want.balance) {
                near(&got.0, got.1, want.1, 1e-3);
            }
            for (got, want) in got.flips.iter().zip(&want.flips) {
                assert!((got.1 - want.1).abs() < 2e-3, "{what}: {got:?}, CPU {want:?}");
            }
            let [got, want] = [got, want].map(|probe| probe.collapse.expect("all classes"));
            near("nc1", got.within, want.within, 1e-2);
            near("nc3", got.duality, want.duality, 1e-3);
            digest(what, &on);
        }
    }
}

/// On a device that does nothing before somebody waits for it, the same bits come out.
#[test]
fn nothing_is_read_before_it_is_waited_for() {
    let mut found = BTreeSet::new();
    for queue in ["eager", "late"] {
        let variables = [("TWOCLOCKS_STANDIN_QUEUE", queue)];
        let Some(output) = build::start("training::digits_are_learnt", &variables) else { return };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{queue}: {said}");
        found.extend(said.lines().filter(|line| line.starts_with("digest ")).map(str::to_owned));
    }
    assert_eq!(found.len(), 1, "{found:?}");
}

/// `twoclocks train digits --device cuda:0`, as shipped: it learns them, and a second run has the same bits.
#[cfg(feature = "cli")]
#[test]
fn the_command_trains_the_digits() {
    use crate::common::command::{json_lines, text, twoclocks};
    use crate::common::runs::Scratch;
    use std::process::Stdio;
    let name = "training::the_command_trains_the_digits";
    let Some(folder) = build::library_for(name) else { return };
    // Both at once: they take 15 seconds each.
    let runs = ["first", "second"].map(|name| {
        let scratch = Scratch::new(name);
        let mut command = twoclocks();
        let command = command.args(["train", "digits", "--device", "cuda:0", "--json", "--quiet"]);
        let command = command.arg("--out").arg(scratch.path()).env("LD_LIBRARY_PATH", folder);
        let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (scratch, run.expect("the command starts"))
    });
    let [first, second] = runs.map(|(scratch, run)| {
        let output = run.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", text(&output));
        let done = json_lines(&output).pop().expect("a last line");
        assert!(done["event"] == "done" && done["epochs"] == 40, "{done}");
        // As on the CPU, but for the rounding of a host's library functions: 98 % and a row or two.
        let accuracy = done["test_acc"].as_f64().expect("an accuracy");
        assert!(accuracy >= 0.97, "{done}");
        let saved = scratch.only_folder().join("model.safetensors");
        let checkpoint = twoclocks::runs::Checkpoint::load(&saved).expect("a checkpoint");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let tensors = checkpoint.tensors.into_iter().map(|(name, _, values)| (name, bits(values)));
        (accuracy, tensors.collect::<Vec<_>>())
    });
    assert!(!first.1.is_empty() && first == second, "the runs differ");
}
