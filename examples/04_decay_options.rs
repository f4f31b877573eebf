//! What each option of the decay, and each average of the weights, does to both clocks: the embedded digits,
//! the same net and as many steps for all. The table of `docs/decay.md` is what it prints for five seeds.
//!
//! `cargo run --release --example 04_decay_options -- 5`

use twoclocks::clocks::{Matrix, singular_values, stable_rank};
use twoclocks::optim::Position;
use twoclocks::train::Config;
use twoclocks::{Error, Result};

const STEPS: u64 = 1500;

/// Mean loss of an epoch at which the data count as fitted.
const FITTED: f64 = 0.01;

/// Name, whether hidden layers are normalised, keys of [optimizer], keys of its hidden and of its last layer,
/// and [schedule].
type Options = (&'static str, bool, &'static str, &'static str, &'static str, &'static str);

const DECAY: &str = "weight_decay = 0.45";
const NO: &str = "decay = 'none'";

fn options() -> Vec<(String, Options)> {
    let plain = |name, more: &str| {
        let keys =
            if more.contains("weight_decay") || more.contains("'none'") { "" } else { DECAY };
        (format!("{keys}\n{more}"), (name, false, "", "", "", ""))
    };
    let cycle = "kind = 'one_cycle'\nmomentum = [0.95, 0.85]";
    let mut all = vec![
        plain("no decay", NO),
        plain("decoupled", ""),
        plain("coupled (L2), a hundredth as much", "weight_decay = 0.0045\ndecay = 'coupled'"),
        plain("cautious", "decay = 'cautious'"),
        plain(
            "decoupled, rising from 0 to twice as much",
            "weight_decay = 0.9\ndecay_schedule = { kind = 'linear', from = 0.0, to = 1.0 }",
        ),
        plain(
            "decoupled, falling from twice as much to 0",
            "weight_decay = 0.9\ndecay_schedule = { kind = 'linear', from = 1.0, to = 0.0 }",
        ),
        plain("orthogonal gradient, no decay", "decay = 'none'\northogonal_gradient = true"),
        plain("orthogonal gradient, decoupled", "orthogonal_gradient = true"),
        plain(
            "orthogonal gradient, decoupled, a tenth as much",
            "weight_decay = 0.045\northogonal_gradient = true",
        ),
        plain("decoupled, EMA", "average = { kind = 'ema', decay = 0.99, every = 5 }"),
        plain("decoupled, Lookahead", "average = { kind = 'lookahead', alpha = 0.5, every = 6 }"),
    ];
    let decayed = || DECAY.to_owned();
    all.push((
        decayed(),
        ("decoupled, not the last layer", false, "", "", ", decay_factor = 0.0", ""),
    ));
    all.push((
        decayed(),
        ("decoupled, the last layer alone", false, "", ", decay_factor = 0.0", "", ""),
    ));
    all.push((decayed(), ("decoupled, one-cycle with momentum", false, "", "", "", cycle)));
    all.push((NO.to_owned(), ("normalised: no decay", true, "", "", "", "")));
    all.push((decayed(), ("normalised: decoupled", true, "", "", "", "")));
    let (every, polar) = ("polar_every = 25", ", polar_decay = 0.1");
    all.push((decayed(), ("normalised: along the polar factor, 0.1", true, every, polar, "", "")));
    all
}

fn config(seed: u64, (optimizer, of): &(String, Options)) -> Result<Config> {
    let &(_, normalised, more, hidden, last, schedule) = of;
    let (fused, between) = match normalised {
        true => ("none", "{ kind = 'layer_norm' }, { kind = 'activation', function = 'relu' },"),
        false => ("relu", ""),
    };
    let layer =
        format!("{{ kind = 'linear', outputs = 64, activation = '{fused}'{hidden} }}, {between}");
    let schedule = if schedule.is_empty() { "kind = 'constant'" } else { schedule };
    let text = format!(
        "recipe = 'decay'\nseed = {seed}\ndevice = 'cpu'\nthreads = 1\nprecision = 'f32'\n\
         [data]\nsource = 'digits'\n\
         [model]\nlayers = [{{ kind = 'flatten' }}, {layer} {layer} {{ kind = 'linear', outputs = 10{last} }}]\n\
         [optimizer]\nkind = 'adamw'\nrate = 3e-3\n{optimizer}\n{more}\n\
         [schedule]\n{schedule}\n\
         [train]\nbatch = 128\nsteps = {STEPS}\n"
    );
    Config::parse(&text, "the example's configuration")
}

/// Steps to the level of loss, last epoch's loss, test accuracy in percent, C, mean stable rank and norm of
/// the hidden layers' weights.
fn train(config: &Config) -> Result<[f64; 6]> {
    let mut trainer = config.trainer()?;
    let (mut step, mut epoch, mut contraction) = (0, 0, 0.0);
    let (mut fitted, mut loss) = (f64::NAN, f64::NAN);
    while step < STEPS {
        trainer.start_epoch(epoch)?;
        let (mut sum, mut offset) = (0.0, 0);
        let first = step;
        while offset < trainer.rows() && step < STEPS {
            let position = Position { step, total_steps: Some(STEPS), progress: 0.0 };
            let rates = config.rates(position);
            contraction += trainer.optimizer().contraction(rates);
            step += 1;
            sum += trainer.step(step, offset, rates)?;
            offset += trainer.update_rows(offset);
        }
        epoch += 1;
        loss = sum / (step - first) as f64;
        if loss <= FITTED && fitted.is_nan() {
            fitted = step as f64;
        }
    }
    let accuracy = trainer.review()?.accuracy * 100.0;
    // The weights that reviews take.
    let (store, parameters) = (trainer.store(), trainer.parameters());
    let region = trainer.optimizer().average().unwrap_or(parameters.weights());
    let matrices = parameters.infos().iter().filter(|info| info.multiplied);
    let (mut ranks, mut norms, mut count) = (0.0, 0.0, 0.0);
    for info in matrices.filter(|info| info.shape.columns() == 64) {
        let mut values = vec![0f32; info.shape.elements()];
        store.read(region, info.offset, &mut values)?;
        let matrix = Matrix::new(info.shape.rows(), info.shape.columns(), &values);
        norms += matrix.norm2().sqrt();
        ranks += stable_rank(&singular_values(matrix));
        count += 1.0;
    }
    Ok([fitted, loss, accuracy, contraction, ranks / count, norms / count])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let given = std::env::args().nth(1);
    let seeds: u64 = match given.as_deref().map(str::parse) {
        None => 1,
        Some(Ok(seeds)) if seeds > 0 => seeds,
        _ => {
            return Err(Error::config(
                "seeds",
                format!("'{}' is not a number of them", given.unwrap_or_default()),
            ));
        }
    };
    println!(
        "Medians of {seeds} seeds, {STEPS} steps of AdamW (rate 3e-3, batch 128), 64-64-64-10, ReLU.\n"
    );
    println!(
        "| option | steps to loss {FITTED} | train loss | test accuracy | C | stable rank | norm |"
    );
    println!("|---|---|---|---|---|---|---|");
    for of in options() {
        let mut runs = Vec::new();
        for seed in 0..seeds {
            runs.push(train(&config(seed, &of)?)?);
        }
        let [fitted, loss, accuracy, contraction, rank, norm] =
            [0, 1, 2, 3, 4, 5].map(|i| median(runs.iter().map(|run| run[i]).collect()));
        let fitted = if fitted.is_nan() { "never".to_owned() } else { format!("{fitted:.0}") };
        println!(
            "| {} | {fitted} | {loss:.1e} | {accuracy:.1} % | {contraction:.2} | {rank:.1} | {norm:.1} |",
            of.1.0
        );
        // Chance is 10 %.
        assert!(accuracy > 50.0, "{} did not learn the digits", of.1.0);
    }
    Ok(())
}
