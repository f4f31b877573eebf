//! `twoclocks train`.

use crate::serve::Server;
use crate::{Common, Work};
use crate::{both, output};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use twoclocks::runs::{Clocks, Done, Epoch, Row};
use twoclocks::train::{Observer, Progress, Reason, Started};
use twoclocks::{Error, Result};

/// Flags of `twoclocks train`.
#[derive(Args, Default)]
pub struct TrainArgs {
    #[command(flatten)]
    work: Work,
    /// Continue a run in its own folder, to the end that it was configured for.
    #[arg(long, value_name = "RUN", conflicts_with_all = [
        "work", "data", "device", "precision", "seed", "lr", "batch", "epochs", "steps", "time",
        "target_acc", "out", "print_config", "threads",
    ])]
    resume: Option<PathBuf>,
    /// Finish a run in a folder of its own: from the checkpoint of the run RUN, whose learning rate is constant so far, let the rate fall
    /// over this share of the steps done there (`--cool 20% RUN`). RUN stays as it is.
    #[arg(long, value_name = "PERCENT", requires = "work", conflicts_with_all = [
        "resume", "data", "device", "precision", "seed", "lr", "batch", "epochs", "steps", "time",
        "target_acc", "print_config", "threads",
    ])]
    cool: Option<String>,
    /// Epochs at most.
    #[arg(long)]
    epochs: Option<u64>,
    /// Updates at most.
    #[arg(long)]
    steps: Option<u64>,
    /// Time of the whole run, from its start to its report, into which the schedule is fitted: 30s, 2m, 1h.
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Test accuracy, 0 to 1, that ends the run; missing it is a failure.
    #[arg(long)]
    target_acc: Option<f64>,
    /// Folder in which the run gets a folder of its own.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: Option<PathBuf>,
    /// Print the configuration as TOML and stop.
    #[arg(long)]
    print_config: bool,
    /// Show the report while it trains, at this port of 127.0.0.1; 0 takes one that is free.
    #[arg(long, value_name = "PORT")]
    serve: Option<u16>,
    /// No progress bar and no reviews on standard error.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    common: Option<Common>,
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let json = args.common.as_ref().is_some_and(|common| common.json);
    let stop = Arc::new(AtomicBool::new(false));
    let share = args.cool.as_deref().map(percent).transpose()?;
    let config = match args.resume.is_some() || share.is_some() {
        true => None,
        false => Some(configure(&args)?),
    };
    if let (true, Some(config)) = (args.print_config, &config) {
        output::say!("{}", config.to_toml().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    stop_on_interrupt(&stop)?;
    let mut screen = Screen::new(json, args.quiet);
    screen.server = args.serve.map(|port| Server::start(port, json)).transpose()?;
    let root = args.out.clone().unwrap_or_else(|| "runs".into());
    let outcome = match (&args.resume, &config) {
        (Some(path), _) => twoclocks::train::resume(path, &mut screen, &stop),
        (None, Some(config)) => twoclocks::train::run(config, &root, &mut screen, &stop)
            .map_err(|error| args.work.name_file(error)),
        (None, None) => {
            let trunk = PathBuf::from(args.work.work.clone().unwrap_or_default());
            let share = share.unwrap_or(f64::NAN);
            twoclocks::train::cool(&trunk, share, &root, &mut screen, &stop)
        }
    };
    if let Some(server) = screen.server.take() {
        server.end();
    }
    let outcome = outcome?;
    if !args.quiet {
        match outcome.reason {
            Reason::Interrupted => output::note(format_args!(
                "interrupted; go on with: twoclocks train --resume {}",
                outcome.done.run
            )),
            _ => output::note(format_args!("report: {}/report.html", outcome.done.run)),
        }
    }
    if outcome.missed_target {
        output::note(format_args!(
            "error: the target accuracy was not reached: {:.2} %",
            outcome.done.test_acc * 100.0
        ));
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets `stop` at the first Ctrl-C or request to end.
pub fn stop_on_interrupt(stop: &Arc<AtomicBool>) -> Result<()> {
    let stop = Arc::clone(stop);
    ctrlc::set_handler(move || {
        // A second Ctrl-C does not wait for the step to end.
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|e| Error::device("cpu", format!("cannot watch for Ctrl-C: {e}")))
}

fn configure(args: &TrainArgs) -> Result<twoclocks::train::Config> {
    let threads = args.common.as_ref().and_then(|common| common.threads);
    let mut config = args.work.config("digits", threads)?;
    // A budget that is given replaces the recipe's, in whatever unit that is.
    if args.epochs.is_some() || args.steps.is_some() || args.time.is_some() {
        (config.train.epochs, config.train.steps) = (args.epochs, args.steps);
    }
    if let Some(time) = &args.time {
        config.train.seconds = Some(duration(time)?);
    }
    if let Some(target) = args.target_acc {
        config.train.target_acc = Some(target);
    }
    config.validate()?;
    Ok(config)
}

/// Seconds of a flag's `30s`, `2m`, `1h`, `500ms` or `30`.
pub fn duration(text: &str) -> Result<f64> {
    twoclocks::runs::time::duration(text).ok_or_else(|| {
        Error::config("--time", format!("'{text}' is not a time like 30s, 2m or 1h"))
    })
}

/// The share of `20%`.
fn percent(text: &str) -> Result<f64> {
    let number = text.strip_suffix('%').and_then(|digits| digits.trim().parse::<f64>().ok());
    number
        .map(|percent| percent / 100.0)
        .ok_or_else(|| Error::config("--cool", format!("'{text}' is not a percentage like 20%")))
}

/// The run as it goes: a progress bar and a line a review, or lines of JSON.
struct Screen {
    json: bool,
    quiet: bool,
    bar: ProgressBar,
    drawn: Instant,
    accuracy: f64,
    /// Both clocks at the last review, for the bar.
    clocks: String,
    /// Whether C at the end as planned was said.
    forecast: bool,
    /// The page that shows it as it goes.
    server: Option<Server>,
}

/// Positions of the bar.
const LENGTH: u64 = 10_000;

impl Screen {
    fn new(json: bool, quiet: bool) -> Self {
        let bar = match quiet {
            true => ProgressBar::hidden(),
            false => ProgressBar::with_draw_target(Some(LENGTH), ProgressDrawTarget::stderr()),
        };
        bar.set_style(
            // The message is cut at the width of the terminal: a line that wraps is not cleared.
            ProgressStyle::with_template("{bar:12} {percent:>3} %  {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Screen {
            json,
            quiet,
            bar,
            drawn: Instant::now(),
            accuracy: f64::NAN,
            clocks: String::new(),
            forecast: false,
            server: None,
        }
    }

    /// What the plan says of the slow clock, once.
    fn forecast(&mut self, planned: f64) {
        if !std::mem::replace(&mut self.forecast, true) {
            self.say(&twoclocks::clocks::forecast(planned));
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| output::note(format_args!("{text}")));
        }
    }
}

impl Observer for Screen {
    fn shows_nearest(&self) -> usize {
        if self.quiet && !self.json { 0 } else { 3 }
    }

    fn started(&mut self, started: &Started) {
        if let Some(server) = &self.server {
            server.show(&started.folder);
        }
        let from = match started.resumed_at {
            0 => String::new(),
            step => format!(", resumed after step {step}"),
        };
        self.say(&format!(
            "{} on {}{from}\n{} parameters, {}FLOP a step, {}B arena; {} training and {} test \
             rows, {} steps an epoch",
            started.folder.display(),
            started.device,
            started.parameters,
            output::quantity(started.step_flops),
            output::quantity(started.arena_bytes as f64),
            started.rows.0,
            started.rows.1,
            started.steps_per_epoch,
        ));
        if let Some(why) = &started.device_why {
            self.say(&format!("device auto: {why}"));
        }
        if self.json && !started.nearest.is_empty() {
            output::event(json!({ "event": "nearest", "runs": started.nearest }));
        }
        for run in &started.nearest {
            self.say(&format!("earlier {run}"));
        }
        if let Some(planned) = started.planned_contraction {
            self.forecast(planned);
        }
    }

    fn step(&mut self, progress: &Progress) {
        const INTERVAL: Duration = Duration::from_millis(100);
        if self.quiet || self.drawn.elapsed() < INTERVAL {
            return;
        }
        self.drawn = Instant::now();
        let (rows, seconds) = progress.rows;
        let left = progress.seconds * (1.0 - progress.progress) / progress.progress.max(1e-9);
        let accuracy = match self.accuracy.is_nan() {
            true => String::new(),
            false => format!("test {:.2} %  ", self.accuracy * 100.0),
        };
        self.bar.set_position((progress.progress * LENGTH as f64) as u64);
        self.bar.set_message(format!(
            "{} left  loss {:.4}  {accuracy}{}{}samples/s  epoch {}  step {}",
            output::seconds(left),
            progress.loss,
            self.clocks,
            output::quantity(rows as f64 / seconds),
            progress.epoch,
            progress.step,
        ));
    }

    fn review(&mut self, epoch: &Epoch) {
        self.accuracy = epoch.test_acc;
        let figure = |key: &str| epoch.extra.get(key).and_then(|value| value.as_f64());
        let c = figure("contraction")
            .map_or(String::new(), |c| format!("C {}  ", twoclocks::clocks::contraction(c)));
        let excess = figure("excess_rank")
            .map_or(String::new(), |share| format!("rank {:.0} %  ", 100.0 * share));
        self.clocks = format!("{c}{excess}");
        if let Some(planned) = figure("planned_contraction") {
            self.forecast(planned);
        }
        if self.json {
            output::event(Row::from(epoch.clone()).to_json());
        }
        self.say(&format!(
            "epoch {:>3}  step {:>6}  {:>9}  train loss {:.4}  test loss {:.4}  test acc {:.2} %{}  \
             margin {:.2}  {}(review {})",
            epoch.epoch,
            epoch.step,
            output::seconds(epoch.seconds),
            epoch.train_loss,
            epoch.test_loss,
            epoch.test_acc * 100.0,
            epoch.extra.get("test_rows").map(|rows| format!(" of {rows} rows")).unwrap_or_default(),
            epoch.margin,
            self.clocks,
            output::seconds(epoch.review_seconds),
        ));
    }

    fn done(&mut self, done: &Done) {
        self.bar.finish_and_clear();
        if self.json {
            output::event(Row::from(done.clone()).to_json());
        }
        let accuracy = match done.test_acc.is_nan() {
            true => "not reviewed yet".to_owned(),
            false => format!("test acc {:.2} %", done.test_acc * 100.0),
        };
        self.say(&format!(
            "done ({}): {accuracy} after {} of training, {} in all",
            done.reason,
            output::seconds(done.seconds_training),
            output::seconds(done.seconds_total),
        ));
        if let Some(clocks) = Clocks::of(done) {
            for line in both::lines(&clocks) {
                self.say(&line);
            }
        }
    }
}
