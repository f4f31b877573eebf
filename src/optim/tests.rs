use super::*;
use crate::Device;
use crate::device::cpu::{Cpu, Isa};
use crate::ops::matmul_in;

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
    let cautious = OptimizerConfig {
        decay: Decay::Cautious,
        decay_schedule: Some(Schedule::Linear { from: 0.0, to: 1.0, steps: None }),
        orthogonal_gradient: true,
        average: Some(AverageConfig::Lookahead { alpha: 0.25, every: 7 }),
        polar_every: Some(9),
        ..OptimizerConfig::adamw()
    };
    for config in [OptimizerConfig::adamw(), sgd, OptimizerConfig::lion(), cautious] {
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
        ("average = { kind = 'swa' }", "unknown variant `swa`"),
        ("average = { kind = 'ema', decay = 0.9, alpha = 0.5 }", "unknown field `alpha`"),
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
        ("average = { kind = 'ema', decay = 1.0 }", "optimizer.average.decay: 1 is not"),
        ("average = { kind = 'lookahead', alpha = 0.0 }", "optimizer.average.alpha: 0 is not"),
        ("average = { kind = 'lookahead', every = 0 }", "optimizer.average.every: 0 steps"),
        ("polar_every = 0", "optimizer.polar_every: 0 steps"),
        (
            "decay_schedule = { kind = 'cosine', floor = 2.0 }",
            "optimizer.decay_schedule.floor: 2 is not between 0 and 1",
        ),
        (
            "decay_schedule = { kind = 'one_cycle', momentum = [0.9, 0.8] }",
            "optimizer.decay_schedule.momentum: a schedule of the decay has none",
        ),
        (
            "weight_decay = 0.0\ndecay_schedule = { kind = 'cosine' }",
            "optimizer.decay_schedule: has no effect",
        ),
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

/// Singular values of 1 whatever those of the matrix are, from the right or from the left.
#[test]
fn the_polar_factor_is_orthonormal() {
    for [rows, columns] in [[40, 17], [17, 40], [30, 30], [1, 5]] {
        let mut store = Store::new(&Device::cpu(1).unwrap());
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| {
                ((i * i * 7 + i * 13) % 101) as f32 / 1e4
                    + if i % (columns + 1) == 0 { 0.02 } else { 0.0 }
            })
            .collect();
        let matrix = store.upload("matrix", &values);
        let mut tape = Tape::new(&store);
        let matrix = tape.persistent("matrix", matrix, 0, [rows, columns]).unwrap();
        let factor = polar::polar_factor(&mut tape, matrix).unwrap();
        tape.output(factor).unwrap();
        let zero = tape.fill(Shape::from([rows, columns]), 0.0);
        let of_zero = polar::polar_factor(&mut tape, zero).unwrap();
        tape.output(of_zero).unwrap();
        let mut recording = tape.compile(&store).unwrap();
        recording.replay(&mut store).unwrap();
        assert!(recording.read(of_zero).unwrap().iter().all(|&x| x == 0.0));
        let p: Vec<f32> = recording.read(factor).unwrap();
        let wide = rows <= columns;
        let at = |vector: usize, i: usize| match wide {
            true => f64::from(p[vector * columns + i]),
            false => f64::from(p[i * columns + vector]),
        };
        for a in 0..rows.min(columns) {
            for b in 0..rows.min(columns) {
                let dot: f64 = (0..rows.max(columns)).map(|i| at(a, i) * at(b, i)).sum();
                let want = if a == b { 1.0 } else { 0.0 };
                assert!((dot - want).abs() <= 3e-3, "{rows} x {columns}, [{a}, {b}]: {dot}");
            }
        }
    }
}

/// Weights, moments, packed copies and statistics after some steps of a weight [inputs, outputs] and a
/// bias, whose gradients are `x^T dz` and the sum of `dz`.
fn trained(
    isa: Isa,
    precision: Precision,
    [rows, inputs, outputs]: [usize; 3],
    fused: bool,
) -> (Vec<u32>, Vec<f32>) {
    let mut store = Store::new(&Device::Cpu(Arc::new(Cpu::with_isa(2, isa).unwrap())));
    let (len, bias) = (inputs * outputs, (inputs * outputs).next_multiple_of(16));
    let flat_len = bias + outputs;
    let value = |seed: usize, i: usize| (((i * 7 + seed * 13) % 101) as f32 - 50.0) / 64.0;
    let values =
        |seed: usize, len: usize| -> Vec<f32> { (0..len).map(|i| value(seed, i)).collect() };
    let weights = store.upload("weights", &values(1, flat_len));
    let gradients = store.allocate("gradients", DType::F32, flat_len);
    let segment =
        |offset, len, decay_factor| Segment { offset, len, rate_factor: 1.0, decay_factor };
    let segments = vec![segment(0, len, 1.0), segment(bias, outputs, 0.0)];
    let shapes = [(0, [inputs, outputs])];
    let packed = PackedWeights::new(isa, precision, shapes).map(|packed| {
        let region = store.allocate("packed", packed.element(), packed.len());
        (Arc::new(packed), region)
    });
    let optimizer = Optimizer::new(&OptimizerConfig::adamw(), segments, flat_len, &mut store)
        .unwrap()
        .with_packed(packed.clone());
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [rows, inputs]).unwrap();
    let dz = tape.input("dz", [rows, outputs]).unwrap();
    let loss = tape.input("loss", Shape::scalar()).unwrap();
    let dw = matmul_in(&mut tape, precision, x, dz, true, false).unwrap();
    let db = crate::ops::sum(&mut tape, dz, &[0], false).unwrap();
    let recorded = if fused {
        optimizer.record_from(&mut tape, weights, gradients, &[dw, db], Some(loss)).unwrap()
    } else {
        tape.place(dw, gradients, 0).unwrap();
        tape.place(db, gradients, bias).unwrap();
        optimizer.record(&mut tape, weights, gradients, Some(loss)).unwrap()
    };
    tape.output(recorded.statistics).unwrap();
    let mut recording = tape.compile(&store).unwrap();
    let has = |op: &str| recording.nodes().iter().any(|node| node.op == op);
    assert_eq!((has("product_update"), has("matmul")), (fused, !fused));
    for step in 1..=3 {
        recording.write(x, &values(2 + step, rows * inputs)).unwrap();
        recording.write(dz, &values(12 + step, rows * outputs)).unwrap();
        // The last step's loss is not finite: it changes nothing.
        recording.write(loss, &[if step == 3 { f32::NAN } else { 1.0 }]).unwrap();
        optimizer.prepare(store.control_mut(), step as u64, 0.01, 0.5);
        recording.replay(&mut store).unwrap();
    }
    let mut bits = Vec::new();
    for region in std::iter::once(weights).chain(optimizer.state().iter().map(|&(_, r)| r)) {
        let mut values = vec![0f32; flat_len];
        store.read(region, 0, &mut values).unwrap();
        bits.extend(values.iter().map(|value| value.to_bits()));
    }
    if let Some((packed, region)) = packed {
        if packed.element() == DType::Bf16 {
            let mut values = vec![half::bf16::ZERO; packed.len()];
            store.read(region, 0, &mut values).unwrap();
            bits.extend(values.iter().map(|value| u32::from(value.to_bits())));
        } else {
            let mut values = vec![0f32; packed.len()];
            store.read(region, 0, &mut values).unwrap();
            bits.extend(values.iter().map(|value| value.to_bits()));
        }
    }
    (bits, recording.read(recorded.statistics).unwrap())
}

#[test]
fn an_update_within_the_product_gives_the_bits_of_one_after_it() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            for size in [[5, 1025, 1024], [3, 104_900, 10], [33, 650, 1700], [600, 1024, 1030]] {
                let (apart, sums) = trained(isa, precision, size, false);
                let (within, sums_within) = trained(isa, precision, size, true);
                assert!(apart == within, "{isa} {precision} {size:?}");
                for (a, b) in sums.iter().zip(&sums_within) {
                    assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{isa} {size:?}: {a} {b}");
                }
            }
        }
    }
}

/// A long batch is cut along the sum of the product, and clipping needs all gradients first.
#[test]
fn where_the_gradient_is_needed_whole_it_is() {
    let ops = |rows: usize, clip_norm: Option<f64>| -> Vec<&'static str> {
        let mut store = Store::new(&Device::cpu(1).unwrap());
        let weights = store.upload("weights", &vec![0.5f32; 1 << 20]);
        let gradients = store.allocate("gradients", DType::F32, 1 << 20);
        let segment = Segment { offset: 0, len: 1 << 20, rate_factor: 1.0, decay_factor: 1.0 };
        let config = OptimizerConfig { clip_norm, ..OptimizerConfig::adamw() };
        let optimizer = Optimizer::new(&config, vec![segment], 1 << 20, &mut store).unwrap();
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [rows, 1024]).unwrap();
        let dz = tape.input("dz", [rows, 1024]).unwrap();
        let dw = matmul_in(&mut tape, Precision::F32, x, dz, true, false).unwrap();
        optimizer.record_from(&mut tape, weights, gradients, &[dw], None).unwrap();
        tape.compile(&store).unwrap().nodes().iter().map(|node| node.op).collect()
    };
    assert_eq!(ops(64, None), ["product_update"]);
    assert_eq!(ops(4096, None), ["matmul", "update"]);
    assert_eq!(ops(64, Some(1.0)), ["matmul", "global_norm", "update"]);
}
