//! `twoclocks eval` and `twoclocks runs`.

use crate::report::{self, ReportArgs};
use crate::{Common, output};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use twoclocks::runs::{Record, RunFolder, Summary, list};
use twoclocks::train::Config;
use twoclocks::{Error, Result};

/// Flags of `twoclocks eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// Folder of a saved run.
    run: PathBuf,
    /// Another directory or file to read the data set from.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Where to compute, if not where it trained: cpu or cuda:N.
    #[arg(long)]
    device: Option<String>,
    #[command(flatten)]
    common: Common,
}

pub fn eval(args: EvalArgs) -> Result<ExitCode> {
    let (config, mut trainer) =
        Config::saved_trainer(&args.run, args.data.as_deref(), args.device, args.common.threads)?;
    let review = trainer.review()?;
    if args.common.json {
        output::line(&json!({
            "event": "eval",
            "run": args.run.display().to_string(),
            "recipe": config.recipe,
            "device": trainer.store().device().name(),
            "test_loss": review.loss,
            "test_acc": review.accuracy,
            "margin": review.margin,
        }));
    } else {
        output::say!(
            "test acc {:.2} %  test loss {:.4}  margin {:.2}  (on {})",
            review.accuracy * 100.0,
            review.loss,
            review.margin,
            trainer.store().device().name(),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Flags of `twoclocks runs`.
#[derive(Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    action: Option<RunsAction>,
    /// Folder that holds the runs.
    #[arg(long, value_name = "DIR", default_value = "runs", global = true)]
    out: PathBuf,
    /// One JSON object a line on standard output, and nothing else there.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum RunsAction {
    /// One line a run, oldest first.
    List,
    /// Everything about one run.
    Show {
        /// Its folder, or its name in the folder of runs.
        run: PathBuf,
    },
    /// Find out what a run left out of its report to end sooner, and make its page anew.
    Report(ReportArgs),
}

pub fn runs(args: RunsArgs) -> Result<ExitCode> {
    match args.action {
        None | Some(RunsAction::List) => {
            let all = list(&args.out)?;
            if all.is_empty() && !args.json {
                eprintln!("no runs in {}", args.out.display());
            }
            for summary in &all {
                match args.json {
                    true => summary_line(summary),
                    false => output::say!("{}", one_line(summary)),
                }
            }
        }
        Some(RunsAction::Show { run }) => show(&args.out, &run, args.json)?,
        Some(RunsAction::Report(report)) => {
            let Some(run) = &report.run else {
                return Err(Error::config("runs report", "no run is named"));
            };
            report::report(&args.out, run, &report, args.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary_line(summary: &Summary) {
    let mut value = json!(summary);
    if let Some(object) = value.as_object_mut() {
        object.insert("event".into(), "run".into());
    }
    output::line(&value);
}

fn one_line(summary: &Summary) -> String {
    let accuracy =
        summary.test_acc.map_or("    -".to_owned(), |acc| format!("{:.2} %", acc * 100.0));
    format!(
        "{:<32} {:<11} {:>4} epochs {:>8} steps {:>9} {:>8}  {}",
        summary.name,
        summary.state.name(),
        summary.epochs,
        summary.step,
        output::seconds(summary.seconds),
        accuracy,
        summary.reason.as_deref().unwrap_or(""),
    )
}

fn show(root: &Path, run: &Path, json: bool) -> Result<()> {
    let path = if run.exists() { run.to_owned() } else { root.join(run) };
    let folder = RunFolder::open(&path)?;
    let record = Record::load(&folder)?;
    if json {
        summary_line(&record.summary);
        for epoch in record.epochs {
            output::say!("{}", twoclocks::runs::Row::from(epoch).to_json());
        }
        if let Some(done) = record.done {
            output::say!("{}", twoclocks::runs::Row::from(done).to_json());
        }
        return Ok(());
    }
    output::say!("{}", one_line(&record.summary));
    for epoch in &record.epochs {
        output::say!(
            "epoch {:>3}  step {:>6}  {:>9}  train loss {:.4}  test loss {:.4}  test acc {:.2} %  \
             margin {:.2}",
            epoch.epoch,
            epoch.step,
            output::seconds(epoch.seconds),
            epoch.train_loss,
            epoch.test_loss,
            epoch.test_acc * 100.0,
            epoch.margin
        );
    }
    if let Some(environment) = &record.environment {
        output::say!("\n{}", serde_json::to_string_pretty(environment).unwrap_or_default());
    }
    if let Some(config) = &record.config {
        output::say!("\n{config}");
    }
    output::say!("report: {}", folder.file("report.html").display());
    Ok(())
}
