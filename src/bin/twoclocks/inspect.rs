//! `twoclocks eval` and `twoclocks runs`.

use crate::report::{self, ReportArgs};
use crate::{Common, output};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use twoclocks::runs::compare::Comparison;
use twoclocks::runs::{Record, Summary, history, list, rank, replace_file};
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
    List {
        /// By a figure instead, smallest first: test_acc, seconds, lr, any number of the last review or of the
        /// configuration; one that is not known is answered with those that are.
        #[arg(long, value_name = "METRIC")]
        sort: Option<String>,
        /// The other way round: the newest, or the largest, first.
        #[arg(long)]
        reverse: bool,
        /// The first lines only.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Everything about one run.
    Show {
        /// Its folder, or its name in the folder of runs, or the beginning of its name.
        run: PathBuf,
    },
    /// Find out what a run left out of its report to end sooner, and make its page anew.
    Report(ReportArgs),
    /// Curves, clocks, settings and ends of several runs, side by side in one page.
    Compare {
        /// Their folders, or names in the folder of runs, or beginnings of names.
        #[arg(required = true, num_args = 2..)]
        runs: Vec<PathBuf>,
        /// The page to write; `compare.html` beside the first run without it.
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
    },
}

pub fn runs(args: RunsArgs) -> Result<ExitCode> {
    match args.action {
        None => list_runs(&args.out, None, false, None, args.json)?,
        Some(RunsAction::List { sort, reverse, limit }) => {
            list_runs(&args.out, sort.as_deref(), reverse, limit, args.json)?;
        }
        Some(RunsAction::Compare { runs, page }) => compare(&args.out, &runs, page, args.json)?,
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

fn list_runs(
    root: &Path,
    sort: Option<&str>,
    reverse: bool,
    limit: Option<usize>,
    json: bool,
) -> Result<()> {
    let mut runs: Vec<(Summary, Option<f64>)> = match sort {
        Some(metric) => rank::sorted(history::records(root)?, metric, reverse)?
            .into_iter()
            .map(|(record, value)| (record.summary, value))
            .collect(),
        None => list(root)?.into_iter().map(|summary| (summary, None)).collect(),
    };
    if sort.is_none() && reverse {
        runs.reverse();
    }
    if runs.is_empty() && !json {
        output::note(format_args!("no runs in {}", root.display()));
    }
    runs.truncate(limit.unwrap_or(usize::MAX));
    for (summary, value) in &runs {
        let sorted_by = sort.map(|metric| (metric, *value));
        match (json, sorted_by) {
            (true, _) => summary_line(summary, sorted_by),
            (false, None) => output::say!("{}", one_line(summary)),
            (false, Some((metric, value))) => {
                let value = value.map_or("-".to_owned(), |value| format!("{value:.6}"));
                output::say!("{metric} {value:>12}  {}", one_line(summary));
            }
        }
    }
    Ok(())
}

fn summary_line(summary: &Summary, sorted_by: Option<(&str, Option<f64>)>) {
    let mut value = json!(summary);
    if let Some(object) = value.as_object_mut() {
        object.insert("event".into(), "run".into());
        if let Some((metric, value)) = sorted_by {
            object.insert("sorted_by".into(), json!({ "metric": metric, "value": value }));
        }
    }
    output::line(&value);
}

fn compare(root: &Path, runs: &[PathBuf], page: Option<PathBuf>, json: bool) -> Result<()> {
    let folders = runs.iter().map(|run| history::find(root, run)).collect::<Result<Vec<_>>>()?;
    let comparison = Comparison::new(folders.iter().map(Record::load).collect::<Result<_>>()?)?;
    let beside = || folders[0].root().join("compare.html");
    let page = page.unwrap_or_else(beside);
    replace_file(&page, &comparison.page())?;
    if json {
        for run in &comparison.runs {
            summary_line(&run.summary, None);
        }
        let mut value = json!({ "event": "compare", "page": page.display().to_string() });
        value["differences"] = json!(comparison.settings);
        value["hitting"] = json!(comparison.hitting);
        let clocks = |run: &Record| run.done.as_ref()?.extra.get("clocks").cloned();
        value["clocks"] =
            comparison.runs.iter().map(clocks).map(|c| c.unwrap_or(Value::Null)).collect();
        output::line(&value);
        return Ok(());
    }
    for (number, run) in comparison.runs.iter().enumerate() {
        output::say!("{}: {}", number + 1, run.summary.name);
    }
    let rows = comparison.text_rows();
    let length = |cell: &String| cell.chars().count();
    let width = rows.iter().flat_map(|row| &row[1..]).map(length).max().unwrap_or(0) + 2;
    for row in rows {
        let cells: String = row[1..].iter().map(|cell| format!("{cell:>width$}")).collect();
        output::say!("{:<24}{cells}", row[0]);
    }
    output::say!("page: {}", page.display());
    Ok(())
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
    let folder = history::find(root, run)?;
    let record = Record::load(&folder)?;
    if json {
        summary_line(&record.summary, None);
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
