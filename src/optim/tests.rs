use super::*;

fn parse(text: &str) -> Result<OptimizerConfig, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

#[test]
fn what_a_file_leaves_out_has_pytorchs_defaults() {
    assert_eq!(parse("").unwrap(), OptimizerConfig::adamw());
    assert_eq!(parse("kind = 'adamw'").unwrap(), OptimizerConfig::adamw());
    assert_eq!(parse("kind = 'sgd'").unwrap(), OptimizerConfig::sgd());
    let lion = parse("kind = 'lion'\nrate = 0.5\nbetas = [0.8, 0.7]\nclip_norm = 2.0").unwrap();
    assert_eq!(lion.rule, Rule::Lion { beta1: 0.8, beta2: 0.7 });
    assert_eq!((lion.rate, lion.clip_norm, lion.decay), (0.5, Some(2.0), Decay::Decoupled));
    let none = parse("decay = 'none'").unwrap();
    assert_eq!((none.decay, none.weight_decay), (Decay::None, 0.0));
    assert!(none.validate().is_ok());
}

#[test]
fn a_printed_configuration_reads_back() {
    let nesterov = Rule::Sgd { momentum: 0.9, nesterov: true };
    let sgd = OptimizerConfig { rule: nesterov, clip_norm: Some(0.5), ..OptimizerConfig::sgd() };
    for config in [OptimizerConfig::adamw(), sgd, OptimizerConfig::lion()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(parse(&text).unwrap(), config, "{text}");
    }
}

#[test]
fn keys_that_mean_nothing_are_refused() {
    for (text, words) in [
        ("lr = 0.1", "unknown field `lr`"),
        ("kind = 'adam'", "unknown variant `adam`"),
        ("momentum = 0.9", "optimizer.momentum: kind = \"adamw\" has no use for it"),
        ("kind = 'sgd'\nbetas = [0.9, 0.9]", "optimizer.betas"),
        ("kind = 'sgd'\nepsilon = 1e-8", "optimizer.epsilon"),
        ("kind = 'lion'\nnesterov = true", "optimizer.nesterov"),
        ("decay = 'none'\nweight_decay = 0.1", "optimizer.weight_decay: 0.1 has no effect"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (text, words) in [
        ("rate = -1.0", "optimizer.rate: -1 is not 0 or more"),
        ("rate = nan", "optimizer.rate: NaN"),
        ("weight_decay = inf", "optimizer.weight_decay: inf"),
        ("betas = [0.9, 1.0]", "optimizer.betas: 1 is not in [0, 1)"),
        ("betas = [-0.1, 0.9]", "optimizer.betas: -0.1"),
        ("epsilon = -1e-8", "optimizer.epsilon"),
        ("clip_norm = 0.0", "optimizer.clip_norm: 0 is not above 0"),
        ("kind = 'sgd'\nmomentum = 1.0", "optimizer.momentum: 1"),
        ("kind = 'sgd'\nnesterov = true", "optimizer.nesterov"),
    ] {
        let error = parse(text).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn only_moments_that_the_rule_has_are_kept() {
    let device = crate::Device::cpu(1).unwrap();
    for (config, names) in [
        (OptimizerConfig::adamw(), &["optimizer.first", "optimizer.second"][..]),
        (OptimizerConfig::lion(), &["optimizer.first"]),
        (OptimizerConfig::sgd(), &[]),
    ] {
        let mut store = Store::new(&device);
        let mut optimizer = Optimizer::new(&config, Vec::new(), 64, &mut store).unwrap();
        let found: Vec<_> = optimizer.state().iter().map(|(name, _)| *name).collect();
        assert_eq!(found, names);
        assert!(optimizer.set_weight_decay(f64::NAN).is_err());
        assert!(optimizer.set_weight_decay(0.5).is_ok());
        assert_eq!(optimizer.weight_decay(), 0.5);
    }
}
