//! `twoclocks lr`.

use crate::output;
use crate::{Common, Work};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use twoclocks::runs::page::{Chart, Line, Page, Scale};
use twoclocks::train::{Config, RangeOptions, RangeTest, range_test};
use twoclocks::{Error, Result};

/// Flags of `twoclocks lr`.
#[derive(Args)]
pub struct LrArgs {
    #[command(flatten)]
    work: Work,
    /// First learning rate.
    #[arg(long, value_name = "RATE", default_value_t = RangeOptions::default().from)]
    from: f64,
    /// Last learning rate, if the loss does not break before.
    #[arg(long, value_name = "RATE", default_value_t = RangeOptions::default().to)]
    to: f64,
    /// Updates from the one to the other: at most one epoch.
    #[arg(long)]
    steps: Option<usize>,
    /// Raise the rate by as much in each step, not by a factor.
    #[arg(long)]
    linear: bool,
    /// File for the plot.
    #[arg(long, value_name = "FILE", default_value = "lr.html")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: LrArgs) -> Result<ExitCode> {
    if args.work.lr.is_some() {
        let problem = "the test tries rates from --from to --to: leave out --lr";
        return Err(Error::config("--lr", problem));
    }
    let config = args.work.config("digits", args.common.threads)?;
    let LrArgs { from, to, steps, linear, .. } = args;
    let found = range_test(&config, RangeOptions { from, to, steps, linear })
        .map_err(|error| args.work.name_file(error))?;
    write_page(&config, &found, linear, &args.out)?;
    if args.common.json {
        for point in &found.points {
            output::event(
                json!({ "event": "rate", "lr": point.rate, "loss": point.loss, "smoothed": point.smoothed })
                    .to_string(),
            );
        }
        let (minimum, maximum) = found.suggestion.map(|s| (s.minimum, s.maximum)).unzip();
        output::event(
            json!({
                "event": "lr", "recipe": config.recipe, "minimum": minimum, "maximum": maximum, "broke": found.broke,
                "steps": found.points.len(), "rough": found.rough(), "epochs": found.epochs, "seconds_training": found.seconds_training,
                "seconds_total": found.seconds, "plot": args.out.display().to_string(),
            })
            .to_string(),
        );
    }
    output::note(format_args!("{}", said(&found)));
    output::note(format_args!("plot: {}", args.out.display()));
    Ok(ExitCode::from(u8::from(found.suggestion.is_none())))
}

/// What was found, for people.
fn said(found: &RangeTest) -> String {
    let last = found.points.last().map_or(f64::NAN, |point| point.rate);
    let end = match found.broke {
        true => format!("the loss broke at {last:.2e}"),
        false => format!("the loss did not break up to {last:.2e}"),
    };
    let cost = format!(
        "{} steps, {:.2} epochs, {} of training, {} in all",
        found.points.len(),
        found.epochs,
        output::seconds(found.seconds_training),
        output::seconds(found.seconds)
    );
    let rough = match found.rough() {
        true => "\nso few steps give an order of magnitude: try half and twice of it",
        false => "",
    };
    match found.suggestion {
        Some(s) => format!(
            "suggested: --lr {:.2e} (the peak of one-cycle); lowest rate of a cycle {:.2e}\n{end}; {cost}{rough}",
            s.maximum, s.minimum
        ),
        None => format!("no rate is suggested: the loss never fell for long; {end}; {cost}"),
    }
}

fn write_page(config: &Config, found: &RangeTest, linear: bool, path: &Path) -> Result<()> {
    // Rates that rise by a factor are plotted by their logarithm, so that the steps lie evenly.
    let place = |rate: f64| if linear { rate } else { rate.log10() };
    let line = |name: &str, class, value: &dyn Fn(usize) -> (f64, f64), count| Line {
        name: name.to_owned(),
        title: name.to_owned(),
        class,
        marks: false,
        points: (0..count).map(value).collect(),
    };
    let points = &found.points;
    let all = points.len();
    let mut lines = vec![
        line("of a batch", "s1", &|i| (place(points[i].rate), points[i].loss), all),
        line("smoothed", "s0", &|i| (place(points[i].rate), points[i].smoothed), all),
    ];
    if let Some(s) = found.suggestion {
        let values = || points.iter().map(|point| point.smoothed);
        let span = [values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max)];
        for (name, class, rate) in
            [("suggested maximum", "s2", s.maximum), ("suggested minimum", "s3", s.minimum)]
        {
            lines.push(line(&format!("{name}, {rate:.2e}"), class, &|i| (place(rate), span[i]), 2));
        }
    }
    let mut page = Page::new(&format!("Learning rates for {}", config.recipe));
    page.paragraph(&said(found));
    page.charts(&[Chart {
        title: "Loss while the rate rises".to_owned(),
        y_label: "cross-entropy".to_owned(),
        x_label: if linear { "learning rate" } else { "learning rate, powers of ten" }.to_owned(),
        scale: Scale::Log,
        lines,
    }]);
    std::fs::write(path, page.html()).map_err(|e| Error::io("write", path, e))
}
