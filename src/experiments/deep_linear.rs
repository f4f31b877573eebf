//! Deep linear nets: `logits = x W_1 ... W_L`, trained on all of a small separable set at once.
//!
//! - The fast clock: steps for each decade of cross-entropy, by optimizer and depth. Plain gradient descent is polynomial: each
//!   decade takes several times the steps of the one before. Normalised descent takes as many for each, and so does Adam in
//!   the end: the root of its second moment cannot fall faster than beta2^(t/2), which gives 2 ln 10 / -ln beta2 steps a decade.
//! - The slow clock, coupled L2: rank and norm fall with C = rate x decay x steps, whatever the decay is; the regularised loss
//!   approaches its end as exp(-2 C); the imbalance of adjacent layers falls as exp(-2 C) from the first step on.

use super::full_batch::{FullBatch, Objective};
use super::{Findings, Table, digits};
use crate::clocks::{
    Law, Matrix, Point, Series, TailExponent, imbalance, line, schatten, singular_values,
    stable_rank, tail_exponent,
};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Initial, Parameter, Parameters, Role};
use crate::ops;
use crate::optim::{Decay, OptimizerConfig, Rule};
use crate::random::Random;
use crate::runs::page::{Chart, Line, Scale};
use serde_json::json;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Depths of the fast clock.
    pub depths: Vec<usize>,
    /// Second-moment decays of Adam.
    pub beta2: Vec<f64>,
    /// Decades of loss: 5 is down to 1e-5.
    pub decades: u32,
    /// Steps at most for one net.
    pub steps: u64,
    /// Decays of the slow clock.
    pub decays: Vec<f64>,
    /// Depths of the slow clock.
    pub slow_depths: Vec<usize>,
    /// Contraction at which the slow clock's runs end.
    pub contraction: f64,
    /// Seed of samples and starting weights.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            depths: vec![1, 2, 3, 4],
            beta2: vec![0.999, 0.98, 0.95],
            decades: 6,
            steps: 150_000,
            decays: vec![2.5e-4, 5e-4, 1e-3, 2e-3],
            slow_depths: vec![2, 3],
            contraction: 6.0,
            seed: 1,
        }
    }
}

const SAMPLES: usize = 64;
const CLASSES: usize = 4;
const WIDTH: usize = 16;
/// Rates: of gradient descent, of descent on the logarithm of the loss, of Adam, and of the slow clock.
const RATE: f64 = 0.5;
const NORMALISED_RATE: f64 = 0.05;
const ADAM_RATE: f64 = 3e-3;
/// With one layer the margin grows no faster than the rate, which must not be what bounds the clock.
const ADAM_RATE_OF_ONE_LAYER: f64 = 0.1;
const SLOW_RATE: f64 = 0.2;

/// How a net of the fast clock is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Gradient descent of a constant rate.
    Descent,
    /// Descent along `gradient / loss`. Source: Taheri, Thrampoulidis, "Fast convergence in learning two-layer neural networks with
    /// separable data", 2023.
    Normalised,
    /// Adam with this beta2, without decay.
    Adam(f64),
}

impl Method {
    fn name(self) -> String {
        match self {
            Method::Descent => "descent".to_owned(),
            Method::Normalised => "normalised".to_owned(),
            Method::Adam(beta2) => format!("adam {beta2}"),
        }
    }

    /// The optimizer, and its rate in a net of that depth.
    fn config(self, depth: usize) -> (OptimizerConfig, f64) {
        let plain = OptimizerConfig { decay: Decay::None, ..OptimizerConfig::sgd() };
        match self {
            Method::Descent => (plain, RATE),
            Method::Normalised => (plain, NORMALISED_RATE),
            Method::Adam(beta2) => {
                // An epsilon that is far below all roots of second moments.
                let rule = Rule::AdamW { beta1: 0.9, beta2, epsilon: 1e-12 };
                let (weight_decay, decay) = (0.0, Decay::None);
                let config =
                    OptimizerConfig { rule, weight_decay, decay, ..OptimizerConfig::adamw() };
                (config, if depth == 1 { ADAM_RATE_OF_ONE_LAYER } else { ADAM_RATE })
            }
        }
    }

    /// Steps for a decade of loss in the end, where theory says so.
    fn predicted(self) -> Option<f64> {
        match self {
            Method::Adam(beta2) => Some(2.0 * 10f64.ln() / -beta2.ln()),
            _ => None,
        }
    }
}

/// Samples around orthogonal class means, separable: f32 `[SAMPLES, WIDTH]` and labels.
fn samples(seed: u64) -> (Vec<f32>, Vec<u32>) {
    let mut random = Random::new(seed, 100);
    let labels: Vec<u32> = (0..SAMPLES).map(|i| (i % CLASSES) as u32).collect();
    let mut values = vec![0f32; SAMPLES * WIDTH];
    for (row, &label) in values.chunks_mut(WIDTH).zip(&labels) {
        for (j, x) in row.iter_mut().enumerate() {
            *x = f32::from(u8::from(j == label as usize)) + 0.1 * random.normal_pair()[0];
        }
    }
    (values, labels)
}

/// A net of that depth: `WIDTH` wide between `WIDTH` inputs and `CLASSES` outputs; `deviation` of starting weights.
fn net(
    depth: usize,
    seed: u64,
    deviation: f32,
    config: &OptimizerConfig,
    normalised: bool,
) -> Result<(FullBatch, Vec<Parameter>)> {
    let mut parameters = Parameters::new();
    let weights: Vec<Parameter> = (0..depth)
        .map(|layer| {
            let outputs = if layer + 1 == depth { CLASSES } else { WIDTH };
            let initial = Initial::Normal(deviation);
            parameters.declare(
                format!("layer{layer}.weight"),
                [WIDTH, outputs],
                Role::Weight,
                initial,
            )
        })
        .collect::<Result<_>>()?;
    let (values, labels) = samples(seed);
    let upload = |store: &mut crate::tape::Store| {
        (store.upload("values", &values), store.upload("labels", &labels))
    };
    // One thread: a step is some hundred thousand operations.
    let device = Device::cpu(1)?;
    let (net, _) =
        FullBatch::new(&device, parameters, seed, config, upload, |pass, &(values, labels)| {
            let mut x = pass.tape.persistent("values", values, 0, [SAMPLES, WIDTH])?;
            let labels = pass.tape.persistent("labels", labels, 0, [SAMPLES])?;
            for &weight in &weights {
                let weight = pass.parameter(weight)?;
                x = ops::matmul(pass.tape, x, weight, false, false)?;
            }
            let loss = ops::softmax_cross_entropy(pass.tape, x, labels, 0.0)?.loss;
            // The gradient of log loss is that of the loss over the loss.
            let minimised = if normalised { ops::log(pass.tape, loss)? } else { loss };
            Ok(Objective { minimised, loss })
        })?;
    Ok((net, weights))
}

/// Steps until the loss first was at 1e-1, 1e-2 ... `decades`; shorter where `steps` did not do, and the loss as it fell.
///
/// # Errors
/// The net cannot be built, or its loss is not finite.
pub fn fast(method: Method, depth: usize, settings: &Settings) -> Result<(Vec<u64>, Series)> {
    let (config, rate) = method.config(depth);
    let deviation = (WIDTH as f32).sqrt().recip();
    let normalised = method == Method::Normalised;
    let (mut net, _) = net(depth, settings.seed, deviation, &config, normalised)?;
    let (mut hits, mut trace, mut next) = (Vec::new(), Series::default(), 1.0);
    while net.steps() < settings.steps && hits.len() < settings.decades as usize {
        let step = net.steps();
        let loss = net.step(rate)?;
        while hits.len() < settings.decades as usize && loss <= 0.1f64.powi(hits.len() as i32 + 1) {
            hits.push(step);
        }
        if step as f64 >= next || hits.len() == settings.decades as usize {
            next = (step as f64 * 1.05).max(next + 1.0);
            trace.push(Point { step: step as f64, seconds: f64::NAN, value: loss });
        }
    }
    Ok((hits, trace))
}

/// What one run of the slow clock showed; times are contractions, rate x decay x steps.
#[derive(Clone, Debug)]
pub struct Slow {
    /// Layers.
    pub depth: usize,
    /// The decay.
    pub decay: f64,
    /// Where nine tenths of the fall of the layers' mean stable rank were done.
    pub rank: f64,
    /// Where nine tenths of the fall of the sum of squares were done.
    pub norm: f64,
    /// Steps until the loss was at 1e-2.
    pub fitted: Option<u64>,
    /// `sum |W|^2 / L` over the Schatten quasi-norm of the product, at the start and at the end.
    pub quasi_norm: (f64, f64),
    /// Fall of the logarithm of the regularised loss above its end, for each unit of C: 2 in theory.
    pub gap_rate: f64,
    /// Tail exponent of that gap.
    pub tail: Option<TailExponent>,
    /// Imbalance of the first two layers over that at the start, beside `exp(-2 C)`, at C = 0.4, 0.8 and 1.6.
    pub balance: Vec<(f64, f64)>,
    /// Mean stable rank by C.
    pub ranks: Vec<(f64, f64)>,
}

/// Contractions at which balance is looked at.
const BALANCE: [f64; 3] = [0.4, 0.8, 1.6];
/// Moments at which a run of the slow clock is looked at.
const LOOKS: u64 = 400;

/// Trains with coupled L2 until the contraction is `settings.contraction`.
///
/// # Errors
/// As [`fast`].
pub fn slow(depth: usize, decay: f64, settings: &Settings) -> Result<Slow> {
    let config = OptimizerConfig { weight_decay: decay, ..OptimizerConfig::sgd() };
    // Large weights: there is something to simplify.
    let deviation = 2.0 / (WIDTH as f32).sqrt();
    let (mut net, weights) = net(depth, settings.seed, deviation, &config, false)?;
    let per_step = SLOW_RATE * decay;
    let steps = (settings.contraction / per_step).ceil() as u64;
    let shapes = |layer: usize| (WIDTH, if layer + 1 == depth { CLASSES } else { WIDTH });
    let matrices = |net: &FullBatch| -> Result<Vec<Vec<f32>>> {
        weights.iter().map(|&w| net.read(w)).collect()
    };
    let ratio = |values: &[Vec<f32>]| {
        let norm2: f64 = values.iter().flatten().map(|&w| f64::from(w).powi(2)).sum();
        let mut product: Vec<f32> = values[0].clone();
        for (layer, next) in values.iter().enumerate().skip(1) {
            let (inputs, outputs) = shapes(layer);
            let mut to = vec![0f32; WIDTH * outputs];
            for (row, to) in product.chunks(inputs).zip(to.chunks_mut(outputs)) {
                for (x, next) in row.iter().zip(next.chunks(outputs)) {
                    to.iter_mut().zip(next).for_each(|(to, w)| *to += x * w);
                }
            }
            product = to;
        }
        let singular = singular_values(Matrix::new(WIDTH, CLASSES, &product));
        norm2 / depth as f64 / schatten(&singular, depth)
    };
    let apart = |values: &[Vec<f32>]| {
        let of = |layer: usize| {
            let (inputs, outputs) = shapes(layer);
            Matrix::new(inputs, outputs, &values[layer])
        };
        imbalance(of(0), of(1)).absolute
    };
    let start = matrices(&net)?;
    let (first_ratio, first_apart) = (ratio(&start), apart(&start));
    let (mut ranks, mut norms, mut energies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fitted, mut balance) = (None, Vec::new());
    let every = (steps / LOOKS).max(1);
    for step in 0..=steps {
        let c = step as f64 * per_step;
        let due = BALANCE.get(balance.len()).is_some_and(|&at| c >= at);
        let look = step % every == 0 || step == steps;
        let values = if look || due { matrices(&net)? } else { Vec::new() };
        if due {
            balance.push((apart(&values) / first_apart, (-2.0 * c).exp()));
        }
        let loss = net.step(SLOW_RATE)?;
        if fitted.is_none() && loss <= 1e-2 {
            fitted = Some(step);
        }
        if look {
            let rank = |layer: usize| {
                let (inputs, outputs) = shapes(layer);
                stable_rank(&singular_values(Matrix::new(inputs, outputs, &values[layer])))
            };
            let norm2: f64 = values.iter().flatten().map(|&w| f64::from(w).powi(2)).sum();
            ranks.push((c, (0..depth).map(rank).sum::<f64>() / depth as f64));
            norms.push((c, norm2));
            energies.push((c, loss + decay / 2.0 * norm2));
        }
    }
    let end = energies.last().map_or(f64::NAN, |last| last.1);
    let gaps =
        || energies.iter().map(|&(c, energy)| (c, energy - end)).filter(|&(_, gap)| gap > 0.0);
    // The later half of what stands above the rounding of f32 sums.
    let floor = 1e-6 * end;
    let late: Vec<(f64, f64)> = gaps()
        .filter(|&(c, gap)| c > 1.0 && c < settings.contraction - 1.5 && gap > floor)
        .collect();
    let gap = Series::new(late.iter().map(|&(c, value)| Point { step: c, seconds: c, value }));
    Ok(Slow {
        depth,
        decay,
        rank: share_done(&ranks, 0.9),
        norm: share_done(&norms, 0.9),
        fitted,
        quasi_norm: (first_ratio, ratio(&matrices(&net)?)),
        gap_rate: line(late.iter().map(|&(c, gap)| (c, gap.ln())))
            .map_or(f64::NAN, |l| -l.slope.value),
        tail: tail_exponent(&gap),
        balance,
        ranks,
    })
}

/// Imbalance of the first two layers after `steps` of descent without decay, over that at the start: 1 under gradient flow.
///
/// # Errors
/// As [`fast`].
pub fn undecayed_balance(rate: f64, steps: u64, seed: u64) -> Result<f64> {
    let config = OptimizerConfig { decay: Decay::None, ..OptimizerConfig::sgd() };
    let (mut net, weights) = net(2, seed, (WIDTH as f32).sqrt().recip(), &config, false)?;
    let apart = |net: &FullBatch| -> Result<f64> {
        let (first, second) = (net.read(weights[0])?, net.read(weights[1])?);
        let second = Matrix::new(WIDTH, CLASSES, &second);
        Ok(imbalance(Matrix::new(WIDTH, WIDTH, &first), second).absolute)
    };
    let start = apart(&net)?;
    for _ in 0..steps {
        net.step(rate)?;
    }
    Ok(apart(&net)? / start)
}

/// Where a quantity first had done that share of its way from the first value to the last.
fn share_done(points: &[(f64, f64)], share: f64) -> f64 {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return f64::NAN };
    let level = first.1 + share * (last.1 - first.1);
    let series = points.iter().map(|&(c, value)| Point { step: c, seconds: c, value });
    Series::new(series).first_hit(level).map_or(f64::NAN, |hit| hit.step)
}

/// Steps from each decade to the next.
pub fn increments(hits: &[u64]) -> Vec<f64> {
    hits.windows(2).map(|two| two[1] as f64 - two[0] as f64).collect()
}

/// The law of a fast clock, from the steps of its decades: logarithmic if the last decade took at most 1.5 times the steps of the
/// one before; polynomial if each took more than twice.
pub fn law(hits: &[u64]) -> &'static str {
    let increments = increments(hits);
    let ratios: Vec<f64> = increments.windows(2).map(|two| two[1] / two[0]).collect();
    match ratios.last() {
        Some(&last) if last <= 1.5 => "logarithmic",
        Some(_) if ratios.iter().all(|&ratio| ratio > 2.0) => "polynomial, not logarithmic",
        _ => "undecided",
    }
}

/// Runs all of it. `progress` is told what comes next.
///
/// # Errors
/// As [`fast`].
pub fn run(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Result<Findings> {
    if settings.depths.contains(&0) {
        return Err(Error::config("--depths", "a net has at least one layer, not 0"));
    }
    // Below 1e-30 a loss in f32 is nothing but rounding.
    if !(1..=30).contains(&settings.decades) {
        let problem = format!("{} is not a number of decades from 1 to 30", settings.decades);
        return Err(Error::config("--decades", problem));
    }
    if settings.steps == 0 {
        return Err(Error::config("--steps", "0 steps: there is at least one"));
    }
    if settings.slow_depths.iter().any(|&depth| depth < 2) {
        return Err(Error::config("slow_depths", "balance is between two layers at least"));
    }
    if let Some(decay) = settings.decays.iter().find(|decay| !(decay.is_finite() && **decay > 0.0))
    {
        let problem = format!("{decay} is not above 0: the slow clock would stand still");
        return Err(Error::config("decays", problem));
    }
    let adam = settings.beta2.iter().map(|&beta2| Method::Adam(beta2));
    let methods: Vec<Method> =
        [Method::Descent, Method::Normalised].into_iter().chain(adam).collect();
    let levels: Vec<String> = (1..=settings.decades).map(|k| format!("1e-{k}")).collect();
    let columns: Vec<&str> = ["depth", "optimizer"]
        .into_iter()
        .chain(levels.iter().map(String::as_str))
        .chain(["last decade", "theory", "law"])
        .collect();
    let mut table =
        Table::new("Fast clock: steps until the loss first was at each level", &columns);
    let (mut fast_json, mut charts) = (Vec::new(), Vec::new());
    for &depth in &settings.depths {
        let mut lines = Vec::new();
        for (number, &method) in methods.iter().enumerate() {
            progress(&format!("fast clock: depth {depth}, {}", method.name()));
            let (hits, trace) = fast(method, depth, settings)?;
            let last = increments(&hits).last().copied();
            let mut row = vec![depth.to_string(), method.name()];
            row.extend(
                (0..levels.len()).map(|i| hits.get(i).map_or("-".to_owned(), u64::to_string)),
            );
            let shown = |x: Option<f64>| x.map_or("-".to_owned(), digits);
            row.extend([shown(last), shown(method.predicted()), law(&hits).to_owned()]);
            table.rows.push(row);
            fast_json.push(json!({
                "depth": depth, "optimizer": method.name(), "steps": hits, "last_decade": last,
                "predicted_last_decade": method.predicted(), "law": law(&hits),
            }));
            let points = trace.points().iter().filter(|p| p.step > 0.0);
            let points = points.map(|p| (p.step.log10(), p.value)).collect();
            lines.push(Line::new(&method.name(), number, points));
        }
        charts.push(Chart {
            title: format!("Fast clock, depth {depth}"),
            y_label: "cross-entropy, log scale".to_owned(),
            x_label: "log10 of steps".to_owned(),
            scale: Scale::Log,
            lines,
        });
    }

    let columns = [
        "depth",
        "decay",
        "C at 90 % rank",
        "C at 90 % norm",
        "steps to 1e-2",
        "norm / quasi-norm",
        "at the end",
        "gap rate",
        "2 theta",
        "law",
        "balance at C = 0.4",
        "0.8",
        "1.6",
    ];
    let mut slow_table =
        Table::new("Slow clock, coupled L2 (theory: gap rate 2, balance 1)", &columns);
    let mut slow_json = Vec::new();
    for &depth in &settings.slow_depths {
        let mut lines = Vec::new();
        for (number, &decay) in settings.decays.iter().enumerate() {
            progress(&format!("slow clock: depth {depth}, decay {decay}"));
            let found = slow(depth, decay, settings)?;
            let tail = found.tail.map(|tail| tail.theta.scaled(2.0));
            let law = found.tail.map_or("-", |tail| tail.law().name());
            let mut row =
                vec![depth.to_string(), digits(decay), digits(found.rank), digits(found.norm)];
            row.push(found.fitted.map_or("-".to_owned(), |steps| steps.to_string()));
            row.extend([
                digits(found.quasi_norm.0),
                digits(found.quasi_norm.1),
                digits(found.gap_rate),
            ]);
            row.push(tail.map_or("-".to_owned(), |t| {
                format!("{:.2} [{:.2}, {:.2}]", t.value, t.low, t.high)
            }));
            row.push(law.to_owned());
            row.extend(
                found.balance.iter().map(|(measured, predicted)| digits(measured / predicted)),
            );
            row.resize(columns.len(), "-".to_owned());
            slow_table.rows.push(row);
            slow_json.push(json!({
                "depth": depth, "decay": decay, "rate": SLOW_RATE,
                "contraction_at_90_percent_of_rank": found.rank, "contraction_at_90_percent_of_norm": found.norm,
                "steps_to_1e-2": found.fitted, "norm_over_quasi_norm": [found.quasi_norm.0, found.quasi_norm.1],
                "gap_rate": found.gap_rate,
                "two_theta": tail.map(|t| [t.low, t.value, t.high]),
                "law": found.tail.map(|tail| tail.law().name()),
                "polynomial": found.tail.map(|tail| tail.law() == Law::Polynomial),
                "balance": found.balance.iter().zip(BALANCE).map(|((measured, predicted), c)| {
                    json!({"contraction": c, "measured": measured, "predicted": predicted})
                }).collect::<Vec<_>>(),
            }));
            lines.push(Line::new(&format!("decay {decay}"), number, found.ranks));
        }
        charts.push(Chart {
            title: format!("Slow clock, depth {depth}"),
            y_label: "mean stable rank of the layers".to_owned(),
            x_label: "C = rate x decay x steps".to_owned(),
            scale: Scale::Linear,
            lines,
        });
    }
    Ok(Findings {
        name: "deep-linear",
        about: format!(
            "Deep linear nets of width {WIDTH}, {SAMPLES} separable samples of {CLASSES} classes, all at once. Which law the fast clock \
             follows depends on the optimizer; the slow clock goes with C = rate x decay x steps, and its end is exponential."
        ),
        tables: vec![table, slow_table],
        charts,
        constants: json!({
            "experiment": "deep-linear",
            "settings": {
                "samples": SAMPLES, "classes": CLASSES, "width": WIDTH, "seed": settings.seed,
                "rates": {
                    "descent": RATE, "normalised": NORMALISED_RATE, "adam": ADAM_RATE,
                    "adam_of_one_layer": ADAM_RATE_OF_ONE_LAYER, "slow": SLOW_RATE,
                },
                "contraction": settings.contraction,
            },
            "fast": fast_json,
            "slow": slow_json,
        }),
    })
}
