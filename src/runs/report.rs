//! `report.html`: one page about a run that opens without a network, beside the runs before it.
//!
//! Everything is in the page: style sheet, charts as inline SVG, pictures as data, no script. A content security
//! policy in its head forbids the browser to fetch anything.

mod findings;
mod two_clocks;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::runs::closing::Closing;
use crate::runs::folder::{REPORT, RunFolder};
use crate::runs::history::{self, Record, State, Summary};
use crate::runs::metrics::Epoch;
use crate::runs::page;
use crate::runs::plot::{Bars, Chart, Line, SERIES, Scale, escape, short, trimmed};

/// Earlier runs in the table.
const EARLIER_LISTED: usize = 20;
/// Earlier runs of the same recipe whose accuracy is drawn beside this one's.
const EARLIER_DRAWN: usize = 5;
/// Key of the reviews that looked at a sample of the test rows: how many.
const TEST_ROWS: &str = "test_rows";
/// Rows of the table of epochs, at most; the journal has them all.
const EPOCHS_LISTED: usize = 500;

/// Writes `report.html` of a run, whatever state it is in: nothing trained yet, running, diverged,
/// finished. Runs under the same root that began before it are shown beside it.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data) where a file of this run is damaged (a damaged earlier run is
/// listed as such), [`Error::Io`](crate::Error::Io) where the page cannot be written.
pub fn render(folder: &RunFolder) -> Result<()> {
    let content = Report::open(folder.path())?.content()?;
    let page = format!("{}{content}{}", page::head(&folder.name()), page::TAIL);
    folder.write_atomic(REPORT, page.as_bytes())
}

/// A run and those before it, to be shown again while it goes on.
#[derive(Debug)]
pub struct Report {
    folder: RunFolder,
    earlier: Vec<(Summary, Vec<Epoch>)>,
}

impl Report {
    /// Opens the folder of a run and reads the earlier runs, once.
    ///
    /// # Errors
    /// The folder is not one of a run, or the root of the runs cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = RunFolder::open(path)?;
        let mut earlier = Vec::new();
        for folder in history::earlier(&folder, EARLIER_LISTED)? {
            match Record::load(&folder) {
                Ok(record) => earlier.push((record.summary, record.epochs)),
                Err(_) => earlier.push((history::summary(&folder), Vec::new())),
            }
        }
        Ok(Report { folder, earlier })
    }

    /// What the page of the run shows now, without its head.
    ///
    /// # Errors
    /// As [`render`].
    pub fn content(&self) -> Result<String> {
        let record = Record::load(&self.folder)?;
        let closing = Closing::read(&self.folder)?;
        Ok(content(&record, closing.as_ref(), &self.earlier))
    }
}

/// The page of one run; `earlier` runs with their epochs, newest first.
fn content(
    record: &Record,
    closing: Option<&Closing>,
    earlier: &[(Summary, Vec<Epoch>)],
) -> String {
    let mut html = headline(record, earlier);
    html.push_str(&two_clocks::section(record));
    html.push_str("<section><h2>Curves</h2><div class=\"plots\">\n");
    for chart in charts(record, earlier) {
        html.push_str(&chart);
    }
    html.push_str("</div></section>\n");
    html.push_str(&findings::sections(record, closing));
    html.push_str(&earlier_table(&record.summary, earlier));
    html.push_str(&epoch_table(&record.epochs));
    if let Some(config) = &record.config {
        let config = escape(config);
        let _ = writeln!(
            html,
            "<section><h2>Configuration</h2><pre tabindex=\"0\">{config}</pre></section>"
        );
    }
    html.push_str(&environment_table(record));
    html
}

fn headline(record: &Record, earlier: &[(Summary, Vec<Epoch>)]) -> String {
    let summary = &record.summary;
    let last = record.epochs.last();
    // A run that diverged came to its end, but not to a good one.
    let state = match summary.reason.as_deref() {
        Some("diverged") => "diverged",
        _ => summary.state.name(),
    };
    let mut html = format!(
        "<header><h1>{}</h1> <span class=\"state {state}\">{state}</span><p>",
        escape(&summary.name),
    );
    if let Some(reason) = &summary.reason {
        let _ = write!(html, "Ended by: <b>{}</b>. ", escape(reason));
    }
    if let Some(started) = &summary.started {
        let _ =
            write!(html, "Started {}. ", escape(&started.replace('T', " ").replace('Z', " UTC")));
    }
    let comparable = |run: &&Summary| run.recipe == summary.recipe && run.test_acc.is_some();
    let before = earlier.iter().map(|(run, _)| run).find(comparable);
    if let Some(before) = before {
        let mut changes = Vec::new();
        if let (Some(now), Some(then)) = (summary.test_acc, before.test_acc) {
            changes.push(format!("{:+.2} points of accuracy", 100.0 * (now - then)));
        }
        if summary.seconds > 0.0 && before.seconds > 0.0 {
            let ratio = summary.seconds / before.seconds;
            changes.push(format!("{} times its training time", trimmed(ratio, 2)));
        }
        if !changes.is_empty() {
            let (name, changes) = (escape(&before.name), changes.join(", "));
            let _ = write!(html, "Against the run before, {name}: {changes}.");
        }
    }
    html.push_str("</p></header>\n<dl class=\"tiles\">");
    let total = record.done.as_ref().map(|done| format!("{} in all", duration(done.seconds_total)));
    let reached = match summary.seconds_to_target {
        Some(seconds) => duration(seconds),
        None => "–".into(),
    };
    let rate = match (last, summary.seconds > 0.0) {
        (Some(last), true) => format!("{}/s", short(last.samples_per_s)),
        _ => "–".into(),
    };
    let train_loss = last.map(|last| format!("train {}", short(last.train_loss)));
    let best =
        record.epochs.iter().map(|e| e.test_acc).filter(|a| a.is_finite()).fold(0.0, f64::max);
    let best =
        summary.test_acc.filter(|&acc| acc < best).map(|_| format!("best {}", percent(best)));
    for (label, value, detail) in [
        ("Test accuracy", summary.test_acc.map_or("–".into(), percent), best),
        ("Training time", duration(summary.seconds), total),
        ("Time to target", reached, None),
        ("Test loss", last.map_or("–".into(), |last| short(last.test_loss)), train_loss),
        ("Epochs", summary.epochs.to_string(), Some(format!("{} steps", summary.step))),
        ("Training samples", rate, None),
    ] {
        let detail = escape(&detail.unwrap_or_default());
        let value = escape(&value);
        let _ = write!(html, "<div><dt>{label}</dt><dd>{value}</dd><dd>{detail}</dd></div>");
    }
    html.push_str("</dl>\n");
    html
}

fn charts(record: &Record, earlier: &[(Summary, Vec<Epoch>)]) -> Vec<String> {
    let epochs = &record.epochs;
    let chart = |title: &str, y_label: &str, x_label: &str, scale, lines| {
        let (title, y_label, x_label) = (title.into(), y_label.into(), x_label.into());
        Chart { title, y_label, x_label, scale, lines }.render()
    };
    let by_step = |value: &dyn Fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        epochs.iter().map(|e| (e.step as f64, value(e))).collect()
    };
    let trace = record.steps.iter().map(|s| (s.step as f64, s.loss)).collect();
    let loss = vec![
        Line { marks: false, ..line("train, by step", "trace", trace) },
        line("train, by epoch", "s0", by_step(&|e| e.train_loss)),
        line("test", "s1", by_step(&|e| e.test_loss)),
    ];
    let mut charts = vec![chart("Loss", "nats, log scale", "steps", Scale::Log, loss)];

    // Against the clock, because that is what a run is meant to save.
    let drawn: Vec<&(Summary, Vec<Epoch>)> = earlier
        .iter()
        .filter(|(run, epochs)| run.recipe == record.summary.recipe && !epochs.is_empty())
        .take(EARLIER_DRAWN)
        .collect();
    let latest = |epochs: &[Epoch]| epochs.last().map_or(0.0, |e| e.seconds);
    let longest = drawn.iter().map(|(_, e)| latest(e)).fold(latest(epochs), f64::max);
    let (unit, unit_seconds) = unit_of_time(longest);
    let by_time = |epochs: &[Epoch], value: &dyn Fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        epochs.iter().map(|e| (e.seconds / unit_seconds, value(e))).collect()
    };
    let mut accuracy = Vec::new();
    for (n, (run, epochs)) in drawn.iter().enumerate().rev() {
        accuracy.push(Line {
            name: if n == 0 { "earlier runs".into() } else { String::new() },
            ..line(&run.name, "old", by_time(epochs, &|e| e.test_acc))
        });
    }
    if epochs.iter().any(|e| e.train_acc.is_some()) {
        let points = by_time(epochs, &|e| e.train_acc.unwrap_or(f64::NAN));
        accuracy.push(line("train", "s0", points));
    }
    accuracy.push(line("test", "s1", by_time(epochs, &|e| e.test_acc)));
    let y_label = "log scale of the error";
    charts.push(chart("Accuracy", y_label, unit, Scale::Share, accuracy));

    let rate = if record.steps.len() > epochs.len() {
        record.steps.iter().map(|s| (s.step as f64, s.lr)).collect()
    } else {
        by_step(&|e| e.lr)
    };
    let rate = vec![Line { name: String::new(), ..line("learning rate", "s2", rate) }];
    charts.push(chart("Learning rate", "", "steps", Scale::FromZero, rate));

    let mut clock = 0.0;
    let mut bars = Vec::with_capacity(epochs.len());
    for e in epochs {
        bars.push((e.epoch, vec![e.seconds - clock, e.review_seconds]));
        clock = e.seconds;
    }
    let parts = vec![("training", "s0"), ("review", "s3")];
    let (title, y_label) = ("Time per epoch".into(), "seconds".into());
    charts.push(Bars { title, y_label, x_label: "epoch".into(), parts, bars }.render());

    let mut further: Vec<_> = extra(epochs).into_iter().collect();
    // One rank beside the other.
    further.sort_by_key(|(key, _)| match key.as_str() {
        "effective_rank" => "stable_rank, effective".to_owned(),
        key => key.to_owned(),
    });
    for (key, series) in further {
        let count = series.len();
        let (title, mut note, scale) = figure_of(&key);
        if count > SERIES.len() {
            let _ = write!(note, ", first {} of {count}", SERIES.len());
        }
        let lines = series
            .into_iter()
            .zip(SERIES)
            .map(|((name, points), class)| {
                let title = if name.is_empty() { key.clone() } else { name.clone() };
                Line { name, ..line(&title, class, points) }
            })
            .collect();
        charts.push(chart(&title, &note, "steps", scale, lines));
    }
    charts
}

/// Name and seconds of the unit for a time axis that is so long.
fn unit_of_time(longest: f64) -> (&'static str, f64) {
    match longest {
        s if s >= 7200.0 => ("hours of training", 3600.0),
        s if s >= 300.0 => ("minutes of training", 60.0),
        _ => ("seconds of training", 1.0),
    }
}

fn line(name: &str, class: &'static str, points: Vec<(f64, f64)>) -> Line {
    Line { class, ..Line::new(name, 0, points) }
}

/// Heading, unit and scale of the chart of a further figure.
fn figure_of(key: &str) -> (String, String, Scale) {
    let (unit, scale) = match key {
        "stable_rank" => ("‖W‖² / ‖W‖₂², by layer", Scale::Linear),
        "effective_rank" => ("exp of the singular values’ entropy, by layer", Scale::Linear),
        "weight_norm" => ("Frobenius, by layer", Scale::Linear),
        "gradient_norm" => ("root mean square, log scale", Scale::Log),
        "radial" => ("0 where the norm stands still, log scale", Scale::Log),
        "balance" => ("of layers in a row, 0 is balanced", Scale::Linear),
        "gate_flips" => ("share that changed since the last look", Scale::FromZero),
        "collapse" => ("0 is collapsed, log scale", Scale::Log),
        "saturated" => ("share of training rows", Scale::FromZero),
        "logit_rms" => ("root mean square", Scale::Linear),
        _ => ("", Scale::Linear),
    };
    let title = match key {
        "radial" => "Stationarity residual".to_owned(),
        "logit_rms" => "Logit scale".to_owned(),
        "saturated" => "Numerically saturated".to_owned(),
        "collapse" => "Neural collapse".to_owned(),
        "schatten" => "Schatten quasi-norm".to_owned(),
        key => heading(key),
    };
    (title, unit.to_owned(), scale)
}

/// A key of the journal as the heading of a chart: `stable_rank` is "Stable rank".
fn heading(key: &str) -> String {
    let key = key.replace('_', " ");
    let mut letters = key.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Name and points of one line.
type Series = (String, Vec<(f64, f64)>);

/// The series of further figures, by key and then by layer; text among them is not plotted.
fn extra(epochs: &[Epoch]) -> BTreeMap<String, Vec<Series>> {
    let mut charts: BTreeMap<String, Vec<Series>> = BTreeMap::new();
    for epoch in epochs {
        let elsewhere = |key: &str| two_clocks::DRAWN.contains(&key) || key == TEST_ROWS;
        let others = epoch.extra.iter().filter(|(key, _)| !elsewhere(key));
        for (key, value) in others {
            let values: Vec<(String, &Value)> = match value {
                Value::Array(values) => {
                    values.iter().enumerate().map(|(n, v)| (n.to_string(), v)).collect()
                }
                Value::Object(values) => values.iter().map(|(k, v)| (k.clone(), v)).collect(),
                value => vec![(String::new(), value)],
            };
            for (name, value) in values {
                let Some(value) = value.as_f64() else { continue };
                let series = charts.entry(key.clone()).or_default();
                let at = series.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                    series.push((name, Vec::new()));
                    series.len() - 1
                });
                series[at].1.push((epoch.step as f64, value));
            }
        }
    }
    charts
}

fn earlier_table(this: &Summary, earlier: &[(Summary, Vec<Epoch>)]) -> String {
    if earlier.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<section><h2>Earlier runs</h2><div class=\"wide\"><table class=\"runs\"><thead><tr><th>run</th>\
         <th>end</th><th>epochs</th><th>accuracy</th><th>time</th>\
         <th>to target</th></tr></thead><tbody>\n",
    );
    let runs = std::iter::once(this).chain(earlier.iter().map(|(run, _)| run));
    for (n, run) in runs.enumerate() {
        let class = if n == 0 { " class=\"this\"" } else { "" };
        let reason = run.reason.as_deref().unwrap_or_default();
        let state = match run.state {
            State::Finished => reason,
            state => state.name(),
        };
        let accuracy = run.test_acc.map_or("–".into(), percent);
        let target = run.seconds_to_target.map_or("–".into(), duration);
        let _ = writeln!(
            html,
            "<tr{class}><td>{}</td><td title=\"{}\">{}</td><td>{}</td><td>{accuracy}</td><td>{}</td>\
             <td>{target}</td></tr>",
            escape(&run.name),
            escape(reason),
            escape(state),
            run.epochs,
            duration(run.seconds),
        );
    }
    html.push_str("</tbody></table></div></section>\n");
    html
}

fn epoch_table(epochs: &[Epoch]) -> String {
    if epochs.is_empty() {
        return String::new();
    }
    let skipped = epochs.len().saturating_sub(EPOCHS_LISTED);
    let note = if skipped > 0 { format!(" (the last {EPOCHS_LISTED})") } else { String::new() };
    let mut html = format!(
        "<section><details><summary>Epochs{note}</summary><div class=\"wide\"><table><thead><tr>\
         <th>epoch</th><th>steps</th><th>time</th><th>train loss</th><th>test loss</th>\
         <th>test accuracy</th><th>margin</th><th>learning rate</th><th>samples/s</th>\
         <th>review</th></tr></thead><tbody>\n"
    );
    for e in &epochs[skipped..] {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            e.epoch,
            e.step,
            duration(e.seconds),
            short(e.train_loss),
            short(e.test_loss),
            accuracy(e),
            short(e.margin),
            short(e.lr),
            short(e.samples_per_s),
            duration(e.review_seconds),
        );
    }
    html.push_str("</tbody></table></div></details></section>\n");
    html
}

fn environment_table(record: &Record) -> String {
    let Some(environment) = &record.environment else { return String::new() };
    let build = if environment.release { "release" } else { "debug" };
    let unknown = || "not known".to_owned();
    let text = |text: &Option<String>| text.clone().unwrap_or_else(unknown);
    let cores = environment.cores.map_or_else(unknown, |cores| cores.to_string());
    let memory = environment.memory_bytes.map(|b| format!("{:.1} GiB", b as f64 / 2f64.powi(30)));
    let mut html = String::from("<section><h2>Environment</h2><table class=\"facts\"><tbody>\n");
    for (key, value) in [
        ("device", environment.device.clone()),
        ("instruction set", environment.isa.clone()),
        ("threads", environment.threads.to_string()),
        ("processor", text(&environment.cpu)),
        ("hardware threads", cores),
        ("memory", memory.unwrap_or_else(unknown)),
        ("system", environment.os.clone()),
        ("twoclocks", format!("{} ({build} build)", environment.twoclocks)),
        ("commit", text(&environment.commit)),
        ("compiler", text(&environment.rustc)),
        ("date", environment.date.clone()),
    ] {
        let _ = writeln!(html, "<tr><th>{key}</th><td>{}</td></tr>", escape(&value));
    }
    html.push_str("</tbody></table></section>\n");
    html
}

/// The accuracy of a review, and of how many test rows where not of all.
fn accuracy(epoch: &Epoch) -> String {
    let rows = epoch.extra.get(TEST_ROWS).and_then(Value::as_u64);
    let of = rows.map_or(String::new(), |rows| format!(" of {rows} rows"));
    format!("{}{of}", percent(epoch.test_acc))
}

fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.2} %", 100.0 * share) } else { short(share) }
}

/// A length of time for people.
fn duration(seconds: f64) -> String {
    if !(0.0..1e12).contains(&seconds) {
        return short(seconds);
    }
    match seconds {
        0.0 => "0 s".into(),
        s if s < 0.9995 => format!("{} ms", short((1e6 * s).round() / 1e3)),
        s if s < 59.995 => format!("{s:.2} s"),
        s => {
            let s = s.round() as u64;
            match (s / 3600, s / 60 % 60) {
                (0, minutes) => format!("{minutes} min {:02} s", s % 60),
                (hours, minutes) => format!("{hours} h {minutes:02} min"),
            }
        }
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
