//! `twoclocks clocks`: the experiments, or the clocks of a run.

use crate::Common;
use crate::output;
use crate::report::{self, ReportArgs};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use twoclocks::experiments::{Findings, deep_linear, embedding, relu_regions};
use twoclocks::{Error, Result};

/// Flags of `twoclocks clocks`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct ClocksArgs {
    #[command(subcommand)]
    experiment: Option<Experiment>,
    #[command(flatten)]
    report: ReportArgs,
    /// One JSON object a line on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Experiment {
    /// Deep linear nets: which law the fast clock follows, and what drives the slow one.
    DeepLinear {
        /// Depths of the fast clock.
        #[arg(long, value_delimiter = ',', value_name = "N,...")]
        depths: Option<Vec<usize>>,
        /// Decades of loss: 5 is down to 1e-5.
        #[arg(long, value_name = "N")]
        decades: Option<u32>,
        /// Steps at most for one net.
        #[arg(long, value_name = "N")]
        steps: Option<u64>,
        #[command(flatten)]
        shared: Shared,
    },
    /// From when on the gates of a ReLU net stand, and how well the net with frozen gates predicts.
    ReluRegions {
        /// Hidden units.
        #[arg(long, value_name = "N")]
        width: Option<usize>,
        /// Weight decay.
        #[arg(long, value_name = "X")]
        decay: Option<f64>,
        /// Steps after the fit, in those until it.
        #[arg(long, value_name = "X")]
        longer: Option<f64>,
        #[command(flatten)]
        shared: Shared,
    },
    /// Addition mod p: the classifier fits first, the representation simplifies after.
    Embedding {
        /// The modulus.
        #[arg(long, value_name = "P")]
        p: Option<usize>,
        /// Weight decay.
        #[arg(long, value_name = "X")]
        decay: Option<f64>,
        /// Steps.
        #[arg(long, value_name = "N")]
        steps: Option<u64>,
        #[command(flatten)]
        shared: Shared,
    },
}

/// Flags of every experiment.
#[derive(Args)]
struct Shared {
    /// Seed of data and starting weights.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder for the page and the constants.
    #[arg(long, value_name = "DIR", default_value = "clocks")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Replaces what was given.
fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

pub fn run(args: ClocksArgs) -> Result<ExitCode> {
    let Some(experiment) = args.experiment else {
        let Some(run) = &args.report.run else {
            return Err(Error::config("clocks", "neither an experiment nor a run is named"));
        };
        report::clocks(run, &args.report, args.json)?;
        return Ok(ExitCode::SUCCESS);
    };
    let began = Instant::now();
    let mut say = |what: &str| output::note(format_args!("{what}"));
    let (findings, shared): (Findings, Shared) = match experiment {
        Experiment::DeepLinear { depths, decades, steps, shared } => {
            if shared.common.threads.is_some() {
                let problem = "has no effect: these nets are trained on one thread";
                return Err(Error::config("--threads", problem));
            }
            let mut settings = deep_linear::Settings::default();
            set(&mut settings.depths, depths);
            set(&mut settings.decades, decades);
            set(&mut settings.steps, steps);
            set(&mut settings.seed, shared.seed);
            (deep_linear::run(&settings, &mut say)?, shared)
        }
        Experiment::ReluRegions { width, decay, longer, shared } => {
            let mut settings = relu_regions::Settings::default();
            set(&mut settings.width, width);
            set(&mut settings.decay, decay);
            set(&mut settings.longer, longer);
            set(&mut settings.seed, shared.seed);
            set(&mut settings.threads, shared.common.threads);
            (relu_regions::run(&settings, &mut say)?, shared)
        }
        Experiment::Embedding { p, decay, steps, shared } => {
            let mut settings = embedding::Settings::default();
            set(&mut settings.p, p);
            set(&mut settings.decay, decay);
            set(&mut settings.steps, steps);
            set(&mut settings.seed, shared.seed);
            set(&mut settings.threads, shared.common.threads);
            (embedding::run(&settings, &mut say)?, shared)
        }
    };
    let page = findings.write(&shared.out)?;
    if shared.common.json {
        let mut event = findings.constants.clone();
        event["event"] = "experiment".into();
        event["seconds_total"] = began.elapsed().as_secs_f64().into();
        output::event(event.to_string());
    } else {
        output::say!("{}\n", findings.about);
        findings.tables.iter().for_each(|table| output::say!("{table}"));
    }
    output::note(format_args!(
        "{} in all; page: {}",
        output::seconds(began.elapsed().as_secs_f64()),
        page.display()
    ));
    Ok(ExitCode::SUCCESS)
}
