//! The command `twoclocks`.

mod bench;
mod both;
mod clocks;
mod doctor;
mod inspect;
mod lr;
mod output;
mod problem;
mod profile;
mod report;
mod serve;
mod sweep;
mod train;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use twoclocks::{Error, Result};

/// Short training runs, and when they are done.
#[derive(Parser)]
#[command(version, about, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Train a recipe (digits, mnist) or a configuration file.
    Train(train::TrainArgs),
    /// Learning-rate range test: a plot, and the rates that it suggests.
    Lr(lr::LrArgs),
    /// Vary settings of a run within a time, and rank them.
    Sweep(sweep::SweepArgs),
    /// Score a saved run.
    Eval(inspect::EvalArgs),
    /// List earlier runs, show one, or compare several.
    Runs(inspect::RunsArgs),
    /// Time kernels and whole steps, beside what the machine can do at most.
    Bench(bench::BenchArgs),
    /// Time every node of one training step, beside its floor.
    Profile(profile::ProfileArgs),
    /// Both clocks of a run, or an experiment about them, with what theory predicts beside what is measured.
    Clocks(clocks::ClocksArgs),
    /// Devices and instruction sets, what is chosen, and why.
    Doctor(doctor::DoctorArgs),
}

/// Flags that most commands have.
#[derive(Args, Clone, Debug)]
struct Common {
    /// One JSON object a line on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
    /// Threads on the CPU; 0 takes as many as there are processors.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// A file or recipe and the flags that change its configuration.
#[derive(Args, Clone, Debug, Default)]
struct Work {
    /// A recipe (digits, mnist) or a .toml file.
    #[arg(value_name = "RECIPE | CONFIG.toml")]
    work: Option<String>,
    /// Directory or file of the data set.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long)]
    device: Option<String>,
    /// Precision of products: auto, f32, f32_split (f32 by bf16 tiles, AMX) or bf16.
    #[arg(long)]
    precision: Option<String>,
    /// Seed of initialisation, shuffling and dropout.
    #[arg(long)]
    seed: Option<u64>,
    /// Learning rate (the peak of a one-cycle schedule).
    #[arg(long)]
    lr: Option<f64>,
    /// Rows of a batch.
    #[arg(long)]
    batch: Option<usize>,
}

fn main() -> ExitCode {
    let began = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to standard output, and everything else to standard
            // error; unusable arguments end with status 2.
            let code = u8::from(error.use_stderr()) * 2;
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let command = cli.command.unwrap_or_else(|| Command::Train(train::TrainArgs::default()));
    let outcome = match command {
        Command::Train(args) => train::run(args),
        Command::Lr(args) => lr::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Eval(args) => inspect::eval(args),
        Command::Runs(args) => inspect::runs(args),
        Command::Bench(args) => bench::run(args, began),
        Command::Profile(args) => profile::run(args),
        Command::Clocks(args) => clocks::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            output::note(format_args!("error: {error}"));
            ExitCode::from(status(&error))
        }
    }
}

/// Exit status of an error: 1 where the run failed, 2 where arguments or data cannot be used.
fn status(error: &Error) -> u8 {
    match error {
        Error::Diverged { .. } => 1,
        _ => 2,
    }
}

impl Work {
    /// Says in which file a model is wrong: the model comes from there, never from a flag.
    fn name_file(&self, error: Error) -> Error {
        match (error, &self.work) {
            (Error::Config { place, problem }, Some(file))
                if file.ends_with(".toml") && place.starts_with("model.") =>
            {
                Error::config(format!("{file}: {place}"), problem)
            }
            (error, _) => error,
        }
    }

    /// The configuration that the flags describe; `default` is the recipe without any.
    fn config(&self, default: &str, threads: Option<usize>) -> Result<twoclocks::train::Config> {
        use twoclocks::train::{Config, Precision, recipe};
        let name = self.work.as_deref().unwrap_or(default);
        let mut config =
            if name.ends_with(".toml") { Config::read(name.as_ref())? } else { recipe(name)? };
        if let Some(data) = &self.data {
            config.data.path = Some(data.clone());
        }
        if let Some(device) = &self.device {
            config.device.clone_from(device);
        }
        if let Some(precision) = &self.precision {
            config.precision = match precision.as_str() {
                "auto" => Precision::Auto,
                "f32" => Precision::F32,
                "f32_split" => Precision::F32Split,
                "bf16" => Precision::Bf16,
                other => {
                    let problem = format!("'{other}' is not auto, f32, f32_split or bf16");
                    return Err(Error::config("--precision", problem));
                }
            };
        }
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
        if let Some(rate) = self.lr {
            config.optimizer.rate = rate;
        }
        if let Some(batch) = self.batch {
            config.train.batch = batch;
        }
        if let Some(threads) = threads {
            config.threads = threads;
        }
        Ok(config)
    }
}
