//! Training steps against PyTorch. The values and the program that made them are in `tests/pytorch/`.

use serde_json::Value;
use twoclocks::Device;
use twoclocks::data::{Dataset, NormalisationKind, Split, order};
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::optim::{Anneal, OptimizerConfig, Position, Rates, Schedule};
use twoclocks::train::{TrainOptions, Trainer};

/// The formula of `tests/pytorch/README.md`.
fn hash(i: u64, salt: u64) -> u64 {
    let mut z = i.wrapping_add(salt << 32).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn value(i: u64, salt: u64) -> f32 {
    ((hash(i, salt) >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
}

fn index(i: u64, salt: u64, classes: u64) -> u32 {
    ((hash(i, salt) >> 40) % classes) as u32
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn optimizer(config: &Value) -> OptimizerConfig {
    let number = |key: &str| config[key].as_f64().unwrap_or_else(|| panic!("no {key}"));
    let mut text = String::new();
    let kind = config["optimizer"].as_str().expect("optimizer");
    let kind = if kind.starts_with("sgd") { "sgd" } else { kind };
    text += &format!("kind = \"{kind}\"\nrate = {:?}\n", number("lr"));
    text += &format!("weight_decay = {:?}\n", number("weight_decay"));
    if let Some(betas) = config["betas"].as_array() {
        text += &format!("betas = [{}, {}]\n", betas[0], betas[1]);
    }
    if let Some(epsilon) = config["eps"].as_f64() {
        text += &format!("epsilon = {epsilon:?}\n");
    }
    if kind == "sgd" {
        text += &format!("momentum = {:?}\n", config["momentum"].as_f64().unwrap_or(0.0));
        text += &format!("nesterov = {}\n", config["nesterov"].as_bool().unwrap_or(false));
        text += "decay = \"coupled\"\n";
    }
    if let Some(norm) = config["clip_norm"].as_f64() {
        text += &format!("clip_norm = {norm:?}\n");
    }
    toml::from_str(&text).unwrap_or_else(|e| panic!("{e} in\n{text}"))
}

fn layers(config: &Value, widths: &[usize]) -> Vec<LayerConfig> {
    let activation = config["activation"].as_str().expect("activation");
    let normed = config["layer_norm"].as_bool().unwrap_or(false);
    let last = widths.len() - 2;
    let mut layers = String::new();
    for (number, outputs) in widths[1..].iter().enumerate() {
        let fused = if normed || number == last { "none" } else { activation };
        layers += &format!(
            "[[layers]]\nkind = \"linear\"\noutputs = {outputs}\nactivation = \"{fused}\"\n"
        );
        if normed && number != last {
            layers += "[[layers]]\nkind = \"layer_norm\"\nepsilon = 1e-5\n";
            layers += &format!("[[layers]]\nkind = \"activation\"\nfunction = \"{activation}\"\n");
        }
    }
    #[derive(serde::Deserialize)]
    struct Model {
        layers: Vec<LayerConfig>,
    }
    toml::from_str::<Model>(&layers).unwrap_or_else(|e| panic!("{e} in\n{layers}")).layers
}

/// A reference, within the program: it may run on another machine.
fn reference(name: &str) -> &'static str {
    macro_rules! references {
        ($($name:literal)*) => {
            match name {
                $($name => include_str!(concat!("../pytorch/trajectory_", $name, ".json")),)*
                _ => panic!("there is no reference {name}"),
            }
        };
    }
    references!(
        "adamw" "adamw_accumulate" "adamw_gelu_layer_norm" "adamw_one_cycle"
        "lion" "sgd_clip" "sgd_nesterov" "sgd_one_cycle"
    )
}

/// Ten steps of `tests/pytorch/trajectory_<name>.json` on a device: losses and all weights.
pub fn check(name: &str, device: &Device) {
    let reference: Value = serde_json::from_str(reference(name)).expect("JSON");
    let config = &reference["config"];
    let widths: Vec<usize> = numbers(&config["widths"]).iter().map(|&w| w as usize).collect();
    let (batch, steps) = (config["batch"].as_u64().expect("batch"), config["steps"].as_u64());
    let steps = steps.expect("steps");
    let accumulate = config["accumulate"].as_u64().expect("accumulate").max(1);
    let (features, classes) = (widths[0], widths[widths.len() - 1]);

    // The rows lie where the shuffled order of the first epoch finds them.
    let rows = (batch * steps) as usize;
    let mut values = vec![0f32; rows * features];
    let mut labels = vec![0u32; rows];
    for (place, &row) in order(0, 0, rows).iter().enumerate() {
        let (step, within) = (place as u64 / batch, place as u64 % batch);
        let target = &mut values[row as usize * features..][..features];
        for (column, target) in target.iter_mut().enumerate() {
            *target = value(within * features as u64 + column as u64, step);
        }
        labels[row as usize] = index(within, 500 + step, classes as u64);
    }
    let train = Dataset::from_arrays(values, features, labels, classes).expect("data");
    let data = Split { test: train.clone(), train };

    let mut parameters = Parameters::new();
    let model = Sequential::new(&layers(config, &widths), &[features], &mut parameters)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let options = TrainOptions {
        batch: (batch / accumulate) as usize,
        accumulate: accumulate as usize,
        optimizer: optimizer(config),
        normalise: NormalisationKind::None,
        ..TrainOptions::default()
    };
    let rate = config["lr"].as_f64().expect("lr");
    let cycle = config["one_cycle"].as_object().map(|of| Schedule::OneCycle {
        pct_start: of["pct_start"].as_f64().expect("pct_start"),
        div: of["div_factor"].as_f64().expect("div_factor"),
        final_div: of["final_div_factor"].as_f64().expect("final_div_factor"),
        anneal: Anneal::Cos,
        momentum: Some(["max_momentum", "base_momentum"].map(|key| of[key].as_f64().expect(key))),
    });
    let mut trainer =
        Trainer::new(device, Box::new(model), parameters, &data, options).expect("trainer");

    let order = if config["layer_norm"].as_bool().unwrap_or(false) {
        vec![
            "linear0.weight",
            "linear0.bias",
            "norm0.gamma",
            "norm0.beta",
            "linear1.weight",
            "linear1.bias",
            "norm1.gamma",
            "norm1.beta",
            "linear2.weight",
            "linear2.bias",
        ]
    } else {
        vec![
            "linear0.weight",
            "linear0.bias",
            "linear1.weight",
            "linear1.bias",
            "linear2.weight",
            "linear2.bias",
        ]
    };
    let infos = trainer.parameters().infos().to_vec();
    assert_eq!(infos.len(), order.len());
    let region = trainer.parameters().weights();
    for (number, (info, name)) in infos.iter().zip(&order).enumerate() {
        let scale = match name.rsplit('.').next() {
            Some("weight") => 0.5,
            Some("gamma") => 0.0,
            _ => 0.125,
        };
        let start: Vec<f32> = (0..info.shape.elements() as u64)
            .map(|i| match scale {
                0.0 => 1.0,
                scale => scale * value(i, 1000 + number as u64),
            })
            .collect();
        trainer.store_mut().write(region, info.offset, &start).expect("write");
    }

    trainer.start_epoch(0).expect("order");
    let losses = numbers(&reference["f32"]["loss"]);
    for (step, &want) in losses.iter().enumerate() {
        let at = Position { step: step as u64, total_steps: Some(steps), progress: 0.0 };
        let rates = match &cycle {
            Some(cycle) => {
                Rates { rate: cycle.rate(rate, at), decay: 1.0, momentum: cycle.momentum_at(at) }
            }
            None => Rates::from(rate),
        };
        let got = trainer.step(step as u64 + 1, step * batch as usize, rates).expect("step");
        assert!(got.is_finite(), "{name} step {step}");
        let error = (got - want).abs() / want.abs();
        assert!(error <= 1e-5, "{name} step {step}: loss {got}, PyTorch {want}");
    }
    for (number, (info, parameter)) in infos.iter().zip(&order).enumerate() {
        let want = numbers(&reference["f32"]["parameters"][parameter]);
        let parameter = twoclocks_parameter(&trainer, number);
        assert_eq!(parameter.len(), want.len(), "{name}: {}", info.name);
        let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
        for (i, (&got, &want)) in parameter.iter().zip(&want).enumerate() {
            let error = (f64::from(got) - want).abs() / largest;
            assert!(got.is_finite(), "{name}: {} {i}", info.name);
            assert!(error <= 1e-5, "{name}: {}[{i}] = {got}, PyTorch {want}", info.name);
        }
    }
}

fn twoclocks_parameter(trainer: &Trainer, number: usize) -> Vec<f32> {
    let info = &trainer.parameters().infos()[number];
    let mut values = vec![0f32; info.shape.elements()];
    trainer.store().read(trainer.parameters().weights(), info.offset, &mut values).expect("read");
    values
}
