//! `twoclocks clocks RUN` and `twoclocks runs report RUN`: a run's clocks and its page, with all that can be found
//! out about its net.

use crate::output;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use twoclocks::Result;
use twoclocks::clocks::{effective_rank, stable_rank};
use twoclocks::runs::clocks::{Clocks, Reached};
use twoclocks::runs::closing::{Closing, Spectrum};
use twoclocks::runs::folder::REPORT;
use twoclocks::runs::{Record, RunFolder, history, render};

/// Flags of both.
#[derive(Args)]
pub struct ReportArgs {
    /// Folder of a run, or its name in the folder of runs, or the beginning of its name.
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Another directory or file to read the data set from.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Where to compute, if not where it trained: cpu or cuda:N.
    #[arg(long)]
    pub device: Option<String>,
}

/// Fills in what a run left out, and makes its page anew. The page is made even where something cannot be found
/// out, which is an error then.
fn complete(folder: &RunFolder, args: &ReportArgs) -> Result<Option<Closing>> {
    if folder.is_running() {
        output::note(format_args!("it is training: its net is looked at when it has ended"));
        render(folder)?;
        return Ok(None);
    }
    let found = twoclocks::train::examine(folder.path(), args.data.as_deref(), args.device.clone());
    render(folder)?;
    found.map(Some)
}

/// `twoclocks runs report RUN`.
pub fn report(root: &Path, run: &Path, args: &ReportArgs, json: bool) -> Result<()> {
    let folder = history::find(root, run)?;
    complete(&folder, args)?;
    let page = folder.file(REPORT).display().to_string();
    match json {
        true => output::line(&json!({ "event": "report", "run": folder.name(), "report": page })),
        false => output::say!("report: {page}"),
    }
    Ok(())
}

/// `twoclocks clocks RUN`.
pub fn clocks(run: &Path, args: &ReportArgs, json: bool) -> Result<()> {
    let folder = history::find("runs".as_ref(), run)?;
    let closing = complete(&folder, args)?;
    let record = Record::load(&folder)?;
    let clocks = record.done.as_ref().and_then(Clocks::of);
    let spectra = closing.map(|closing| closing.spectra).unwrap_or_default();
    let page = folder.file(REPORT).display().to_string();
    if json {
        let ranks: Vec<_> = spectra.iter().map(ranks_as_json).collect();
        output::line(&json!({
            "event": "clocks", "run": folder.name(), "state": record.summary.state.name(), "clocks": clocks, "spectra": ranks,
            "report": page,
        }));
        return Ok(());
    }
    output::say!("{} ({})", folder.name(), record.summary.state.name());
    match &clocks {
        Some(clocks) => lines(clocks).iter().for_each(|line| output::say!("{line}")),
        None => output::say!(
            "clocks: none in its journal; they come with the last line of a run that measures them"
        ),
    }
    for Spectrum { name, shape: [inputs, outputs], start, end } in &spectra {
        output::say!(
            "{name:<8} {inputs} x {outputs}: largest singular value {:.3} -> {:.3}, stable rank {:.1} -> {:.1}, \
             effective rank {:.1} -> {:.1}",
            start.first().copied().unwrap_or(f64::NAN),
            end.first().copied().unwrap_or(f64::NAN),
            stable_rank(start),
            stable_rank(end),
            effective_rank(start),
            effective_rank(end),
        );
    }
    output::say!("report: {page}");
    Ok(())
}

fn ranks_as_json(spectrum: &Spectrum) -> serde_json::Value {
    let both = |of: fn(&[f64]) -> f64| [of(&spectrum.start), of(&spectrum.end)];
    json!({
        "name": spectrum.name, "shape": spectrum.shape,
        "stable_rank": both(stable_rank), "effective_rank": both(effective_rank),
    })
}

/// The clocks in words: when they were where, what drives them, what that advises.
fn lines(clocks: &Clocks) -> Vec<String> {
    let mut lines = Vec::new();
    let times = |hits: &[Reached], level: &dyn Fn(f64) -> String| -> String {
        let one = |hit: &Reached| {
            format!("{} at {} ({:.0})", level(hit.level), output::seconds(hit.seconds), hit.step)
        };
        hits.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    if !clocks.fit.is_empty() {
        let text = times(&clocks.fit, &|level| level.to_string());
        lines.push(format!("fit: excess loss {text} (step)"));
    }
    if !clocks.simple.is_empty() {
        let text = times(&clocks.simple, &|level| format!("{:.0} %", 100.0 * level));
        lines.push(format!("simplicity: excess rank {text} (step)"));
    }
    if let Some([steps, seconds]) = clocks.ratio {
        lines.push(format!("simplicity over fit: {steps:.2} in steps, {seconds:.2} in time"));
    }
    if let Some(contraction) = clocks.contraction {
        let planned = clocks.planned.map(|planned| format!(" of {planned:.3} planned"));
        lines.push(format!("contraction C = {contraction:.3}{}", planned.unwrap_or_default()));
    }
    if let Some(growth) = clocks.growth {
        let (value, low, high) = (growth.value, growth.low, growth.high);
        lines.push(format!("margin grows by {value:.2} ({low:.2} to {high:.2}) in 1000 steps"));
    }
    for said in &clocks.advice {
        let settled = if said.settled { "" } else { ", not settled" };
        lines.push(format!(
            "advice: {}: {} ({} reviews{settled}; correlational, validation decides)",
            said.verdict, said.reason, said.reviews
        ));
    }
    lines
}
