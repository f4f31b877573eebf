//! `twoclocks sweep`.

use crate::output;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use twoclocks::train::sweep::{Event, Outcome, Ranked, Sweep, resume, sweep};
use twoclocks::{Error, Result};

/// Settings of the table at the end.
const SHOWN: usize = 10;

/// How the file reads, for `--help`.
const FORMAT: &str = r#"CONFIG.toml, for example:
  recipe = "digits"            # or config = "FILE.toml", beside this file
  [set]                        # fixed settings, by the dotted keys of `train --print-config`
  "train.epochs" = 20
  [vary]
  "optimizer.rate" = { log = [1e-3, 1e-2], count = 6 }
  "optimizer.weight_decay" = { linear = [0.0, 0.1], count = 3 }
  "train.batch" = [32, 64, 128]
  "model.layers.fc1.outputs" = [128, 256]
  [sweep]
  time = "60s"                 # for all of it
  seeds = 1                    # runs of each setting
  keep = "1/3"                 # share that goes on to the next rung; 1: all settings in full
  whole_runs = false           # true: runs of shorter rungs, too, keep their weights and look at their clocks"#;

/// Flags of `twoclocks sweep`.
#[derive(Args)]
#[command(after_help = FORMAT)]
pub struct SweepArgs {
    /// What varies, around which run, and for how long.
    #[arg(value_name = "CONFIG.toml", required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Go on with a sweep in its own folder; --time is then how long from now on.
    #[arg(long, value_name = "SWEEP", conflicts_with_all = ["config", "data", "out"])]
    resume: Option<PathBuf>,
    /// Time for all of it, instead of the file's: 30s, 2m, 1h.
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Directory or file of the data set.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Folder in which the sweep gets a folder of its own.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// One JSON object a line on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
    /// Only the settings in their order, at the end.
    #[arg(long, short)]
    quiet: bool,
}

pub fn run(args: SweepArgs) -> Result<ExitCode> {
    let seconds = args.time.as_deref().map(crate::train::duration).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let planned = match &args.config {
        Some(file) => Some(Sweep::read(file, args.data.as_deref(), seconds)?),
        None => None,
    };
    crate::train::stop_on_interrupt(&stop)?;
    let mut watch = |event: &Event| {
        if args.json {
            output::event(event.to_json());
        } else if !args.quiet {
            tell(event);
        }
    };
    let outcome = match (&args.resume, planned) {
        (Some(folder), _) => resume(folder, seconds, &mut watch, &stop)?,
        (None, Some(planned)) => sweep(planned, &args.out, &mut watch, &stop)?,
        (None, None) => return Err(Error::config("sweep", "nothing to sweep")),
    };
    if !args.json {
        table(&outcome);
    }
    Ok(ExitCode::SUCCESS)
}

/// An event for people.
fn tell(event: &Event) {
    match event {
        Event::Sweep(plan) => {
            let rungs: Vec<String> = plan
                .rungs
                .iter()
                .map(|rung| format!("{} for {:.3} %", rung.settings, 100.0 * rung.share))
                .collect();
            output::note(format_args!(
                "{}: {} settings, {} runs of each; {} side by side on {} threads each\nsettings and share of the run: \
                 {}; about {} of {}",
                plan.sweep.display(),
                plan.settings,
                plan.seeds,
                plan.workers,
                plan.threads,
                rungs.join(", "),
                output::seconds(plan.expected),
                output::seconds(plan.budget),
            ));
            for tried in &plan.tried {
                output::note(format_args!(
                    "  {} x {} threads: {}steps/s",
                    tried.workers,
                    tried.threads,
                    output::quantity(tried.steps_per_s)
                ));
            }
        }
        Event::Rung(rung) => output::note(format_args!(
            "rung {}: {} settings for {:.3} % of the run",
            rung.rung + 1,
            rung.points.len(),
            100.0 * rung.share
        )),
        Event::Trained(run) => output::note(format_args!(
            "{:>9}  {}  {}  {} ({})",
            output::seconds(run.seconds),
            percent(run.test_acc),
            output::seconds(run.seconds_training),
            run.setting,
            run.reason
        )),
        Event::Began(_) | Event::Result(_) | Event::Done(_) => {}
    }
}

fn percent(share: f64) -> String {
    if share.is_nan() { "diverged".into() } else { format!("{:.2} %", 100.0 * share) }
}

fn table(outcome: &Outcome) {
    let Outcome { ended, ranked, page, best } = outcome;
    output::say!(
        "{:>4}  {:>16}  {:>8}  {:>9}  {:>6}  setting",
        "",
        "accuracy",
        "loss",
        "training",
        "run"
    );
    for one in &ranked[..ranked.len().min(SHOWN)] {
        let Ranked { rank, test_acc, test_loss, seconds_training, share, setting, .. } = one;
        let spread = one.deviation.map_or(String::new(), |d| format!(" ± {:.2}", 100.0 * d));
        output::say!(
            "{rank:>4}  {:>16}  {test_loss:>8.4}  {:>9}  {:>4.0} %  {setting}",
            format!("{}{spread}", percent(*test_acc)),
            output::seconds(*seconds_training),
            100.0 * share,
        );
    }
    if ranked.len() > SHOWN {
        output::say!("      and {} more", ranked.len() - SHOWN);
    }
    output::say!("{} runs in {} ({})", ended.runs, output::seconds(ended.seconds), ended.reason);
    if !ranked.is_empty() {
        output::say!("best: {}", best.display());
    }
    output::say!("page: {}", page.display());
    if ended.reason != "complete" {
        let more = if ended.reason == "time" { " --time 60s" } else { "" };
        output::say!("go on with: twoclocks sweep --resume {}{more}", ended.sweep.display());
    }
}
