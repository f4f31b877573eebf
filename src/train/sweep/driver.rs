//! A sweep as it goes: rungs of runs side by side, within a time, and on after an interruption.

use super::super::budget::sample;
use super::super::config::{Config, DataConfig};
use super::super::make::{chosen, trainer};
use super::super::shared::{Input, Shared};
use super::grid::Sweep;
use super::halving::{Cost, Crew, Rung, again, plan, seconds};
use super::journal::{Begun, Ended, Event, Journal, Plan, Ranked, Tried, used};
use super::page;
use super::rung::{Over, Wanted, Work, side_by_side};
use super::state::{State, key};
use super::trial::{Costs, Rows, Speed, candidates, fastest, lean, shortened, speed};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::runs::time::Utc;
use crate::runs::{RunFolder, render, replace_file, without_sync};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Files in the folder of a sweep: the run that is varied, by what, and the setting that was best.
const BASE: &str = "base.toml";
const SWEEP: &str = "sweep.toml";
const BEST: &str = "best.toml";
/// The page, and the folder of the runs.
const PAGE: &str = "sweep.html";
const RUNS: &str = "runs";

/// Training steps of the shortest run that says anything.
const LEAST_STEPS: f64 = 15.0;
/// Share of the sweep that one trial may take, and the least and most seconds of it.
const TRIAL: (f64, f64, f64) = (0.005, 0.02, 0.3);
/// Share of the time left that later rungs may fill.
const FILLED: f64 = 0.97;

/// Seconds that are kept for the end: to stop the runs, and for the page.
const TO_END: f64 = 0.05;

/// Test rows for each that is trained on, above which runs of shorter rungs are judged by a sample: a row that is trained on
/// takes three times as long.
const MOST_REVIEWED: f64 = 0.15;

/// How a sweep came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// The settings, the best first.
    pub ranked: Vec<Ranked>,
    /// The page.
    pub page: PathBuf,
    /// The best setting as a configuration.
    pub best: PathBuf,
}

/// Sweeps in a new folder under `root`; `stop` ends it early.
///
/// # Errors
/// A run cannot be made, or the time is too short for the smallest sweep (nothing is left behind then); or a
/// run fails in another way than by diverging.
pub fn sweep(
    sweep: Sweep,
    root: &Path,
    watch: &mut dyn FnMut(&Event),
    stop: &AtomicBool,
) -> Result<Outcome> {
    let mut driver = Driver::new(sweep, 0.0, stop)?;
    let mut plan = driver.plan()?;
    let folder = create(root, &driver.sweep.base.recipe)?;
    plan.sweep.clone_from(&folder);
    replace_file(&folder.join(BASE), &driver.sweep.base.to_toml())?;
    replace_file(&folder.join(SWEEP), &driver.sweep.to_toml(BASE))?;
    let (journal, _) = Journal::open(&folder)?;
    driver.begin(plan, journal, watch)
}

/// Goes on with a sweep in its own folder: runs that came to their end are kept, others are resumed. `seconds` is how
/// long it may take from now on; without it, what is left of its time.
///
/// # Errors
/// The folder is not that of a sweep, is in use, or is damaged; no time is left; and as [`sweep`].
pub fn resume(
    folder: &Path,
    seconds: Option<f64>,
    watch: &mut dyn FnMut(&Event),
    stop: &AtomicBool,
) -> Result<Outcome> {
    let file = folder.join(SWEEP);
    if !file.is_file() {
        let problem = format!("it has no {SWEEP}, so it is not the folder of a sweep");
        return Err(Error::data(folder, "sweep", problem));
    }
    let (journal, events) = Journal::open(folder)?;
    let used = used(&events);
    let sweep = Sweep::read(&file, None, seconds.map(|seconds| used + seconds))?;
    let state = State::of(events);
    let complete = state.as_ref().is_some_and(|state| state.complete(sweep.base.seed));
    if !complete && used >= sweep.seconds {
        let problem = format!("its {} s are used up: give it more with --time", sweep.seconds);
        return Err(Error::data(folder, "time", problem));
    }
    let mut driver = Driver::new(sweep, used, stop)?;
    match state {
        // Killed before it had a plan.
        None => {
            let plan = Plan { sweep: folder.to_owned(), ..driver.plan()? };
            driver.begin(plan, journal, watch)
        }
        Some(mut state) => {
            folder.clone_into(&mut state.plan.sweep);
            state.plan.budget = driver.sweep.seconds;
            if !complete {
                driver.time_kinds(state.plan.workers, state.plan.threads)?;
            }
            Going { driver, state, journal, watch }.go()
        }
    }
}

/// A new folder for a sweep.
fn create(root: &Path, recipe: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(root).map_err(|e| Error::io("create", root, e))?;
    let name = format!("{recipe}-sweep-{}", Utc::now().compact());
    let mut folder = root.join(&name);
    let mut n = 1;
    while let Err(source) = std::fs::create_dir(&folder) {
        if source.kind() != std::io::ErrorKind::AlreadyExists {
            return Err(Error::io("create", folder, source));
        }
        n += 1;
        folder = root.join(format!("{name}-{n}"));
    }
    let runs = folder.join(RUNS);
    std::fs::create_dir(&runs).map_err(|e| Error::io("create", runs, e))?;
    Ok(folder)
}

/// What a sweep needs to make runs.
struct Driver<'a> {
    sweep: Sweep,
    /// The data of each kind of source that the settings name, for all trainers.
    data: Vec<Source>,
    /// Whether runs may be made with another number of threads than the configuration says.
    may_choose: bool,
    processors: usize,
    costs: Costs,
    began: Instant,
    /// Seconds of earlier processes.
    used: f64,
    stop: &'a AtomicBool,
}

impl<'a> Driver<'a> {
    /// Loads the data, and settles what `auto` chooses, once for all runs.
    fn new(mut sweep: Sweep, used: f64, stop: &'a AtomicBool) -> Result<Self> {
        let began = Instant::now();
        let mut data: Vec<Source> = Vec::new();
        let all = || sweep.points.iter().map(|point| &point.config.data).chain([&sweep.base.data]);
        for config in all() {
            if !data.iter().any(|source| same_source(&source.config, config)) {
                let split = config.source()?.load()?;
                let alike = all().filter(|other| same_source(other, config));
                let shared = Shared::new(&split, alike.map(|other| other.normalise.into()));
                data.push(Source { config: config.clone(), split, shared });
            }
        }
        let (first, _) = trainer(&sweep.base, of_source(&data, &sweep.base.data))?;
        let base = chosen(&sweep.base, &first);
        drop(first);
        for point in &mut sweep.points {
            let config = &mut point.config;
            if config.device == sweep.base.device {
                config.device.clone_from(&base.device);
            }
            if config.precision == sweep.base.precision {
                config.precision = base.precision;
            }
        }
        sweep.base = base;
        let cpu = |config: &Config| config.device == "cpu";
        let threads = sweep.base.threads;
        let may_choose = sweep.points.iter().all(|p| cpu(&p.config) && p.config.threads == threads);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let costs = Costs::default();
        Ok(Driver { sweep, data, may_choose, processors, costs, began, used, stop })
    }

    /// Seconds since the sweep began.
    fn seconds(&self) -> f64 {
        self.used + self.began.elapsed().as_secs_f64()
    }

    fn data(&self, config: &Config) -> Input<'_> {
        of_source(&self.data, &config.data)
    }

    fn trial_seconds(&self) -> f64 {
        let (share, least, most) = TRIAL;
        (share * self.sweep.seconds).clamp(least, most)
    }

    /// Finds how many runs side by side are fastest, and what runs cost then.
    fn trial(&mut self) -> Result<Vec<Tried>> {
        let config = &self.sweep.base;
        let tries = match (self.may_choose, config.threads) {
            (true, 0) => candidates(self.processors),
            (true, threads) => vec![((self.processors / threads).max(1), threads)],
            // One at a time has the device to itself.
            (false, threads) => vec![(1, threads)],
        };
        let mut found: Vec<(Tried, Speed)> = Vec::new();
        for crew in tries {
            let one = speed(config, self.data(config), crew, self.trial_seconds())?;
            found.push((one.tried(crew), one));
        }
        let tried: Vec<Tried> = found.iter().map(|&(tried, _)| tried).collect();
        let best = fastest(&tried);
        if let Some(&(_, speed)) = found.iter().find(|(tried, _)| *tried == best) {
            self.costs.set(config, speed);
        }
        self.time_kinds(best.workers, best.threads)?;
        Ok(tried)
    }

    /// Times each kind of run, so many side by side.
    fn time_kinds(&mut self, workers: usize, threads: usize) -> Result<()> {
        for at in 0..self.sweep.points.len() {
            let config = &self.sweep.points[at].config;
            if self.costs.wants(config) {
                let found =
                    speed(config, self.data(config), (workers, threads), self.trial_seconds())?;
                self.costs.set(&self.sweep.points[at].config, found);
            }
        }
        Ok(())
    }

    /// Mean cost of a run.
    fn cost(&self, workers: usize) -> Cost {
        // Of one rung, and where runs are whole, all are judged by all test rows.
        let whole = self.sweep.whole_runs || self.sweep.keep == 1.0;
        let runs = self.sweep.points.iter().map(|point| {
            let split = self.data(&point.config).split;
            let (train, test) = (split.train.rows(), split.test.rows());
            let sampled = if whole { None } else { sample(test) };
            (&point.config, Rows { train, judged: [sampled.unwrap_or(test), test] })
        });
        self.costs.mean(runs, workers)
    }

    /// Test rows that judge the runs of a rung, alike for all of them; `None` is all rows.
    fn sampled_rows(&self, rung: &Begun) -> Option<usize> {
        let mut sampled = None;
        for &point in &rung.points {
            let config = &self.sweep.points[point].config;
            let split = self.data(config).split;
            let (train, test) = (split.train.rows(), split.test.rows());
            let steps = config.train.total_steps(train)? as f64 * rung.share;
            let trained = steps * (config.train.batch * config.train.accumulate) as f64;
            if test as f64 > MOST_REVIEWED * trained {
                sampled = sampled.or(sample(test));
            }
        }
        sampled
    }

    /// What will be done; the folder is not known yet.
    fn plan(&mut self) -> Result<Plan> {
        let tried = self.trial()?;
        let Tried { workers, threads, .. } = fastest(&tried);
        let crew = Crew { seeds: self.sweep.seeds, workers };
        let cost = self.cost(workers);
        let settings = self.sweep.points.len();
        // Runs that time alone bounds may be as short as a trial.
        let shortest = |point: &super::grid::Point| {
            let rows = self.data(&point.config).split.train.rows();
            match (point.config.train.total_steps(rows), point.config.train.seconds) {
                (Some(steps), _) => LEAST_STEPS / steps as f64,
                (None, all) => all.map_or(1.0, |all| TRIAL.1 / all),
            }
        };
        let least = self.sweep.points.iter().map(shortest).fold(0.0, f64::max).min(1.0);
        let left = self.sweep.seconds - self.seconds();
        let rungs = plan(settings, self.sweep.keep, least, cost, crew, left).map_err(|needed| {
            let problem = format!(
                "{} s are too short for {settings} settings: it takes about {:.1} s",
                self.sweep.seconds,
                1.05 * (needed + self.seconds()),
            );
            Error::config("sweep.time", problem)
        })?;
        let expected = self.seconds() + seconds(&rungs, cost, crew);
        Ok(Plan {
            sweep: PathBuf::new(),
            settings,
            seeds: crew.seeds,
            workers,
            threads,
            tried,
            rungs,
            expected,
            budget: self.sweep.seconds,
            seconds: self.seconds(),
        })
    }

    fn begin(self, plan: Plan, journal: Journal, watch: &mut dyn FnMut(&Event)) -> Result<Outcome> {
        let mut going = Going { driver: self, state: State::new(plan.clone()), journal, watch };
        going.say(Event::Sweep(plan))?;
        going.go()
    }
}

/// Whether two configurations read the same rows.
fn same_source(a: &DataConfig, b: &DataConfig) -> bool {
    DataConfig { normalise: b.normalise, ..a.clone() } == *b
}

fn of_source<'d>(data: &'d [Source], config: &DataConfig) -> Input<'d> {
    match data.iter().find(|source| same_source(&source.config, config)) {
        Some(Source { split, shared, .. }) => Input { split, shared: Some(shared) },
        None => unreachable!("all sources were loaded"),
    }
}

/// A data set that was loaded.
struct Source {
    config: DataConfig,
    split: Split,
    shared: Shared,
}

/// A sweep that is under way.
struct Going<'a, 'w> {
    driver: Driver<'a>,
    state: State,
    journal: Journal,
    watch: &'w mut dyn FnMut(&Event),
}

impl Going<'_, '_> {
    fn say(&mut self, event: Event) -> Result<()> {
        self.journal.append(&event)?;
        (self.watch)(&event);
        self.state.take(event);
        Ok(())
    }

    fn go(mut self) -> Result<Outcome> {
        let reason = loop {
            if let Some(rung) = self.state.begun.last().cloned() {
                self.train(&rung)?;
                if self.driver.stop.load(Ordering::Relaxed) {
                    break "interrupted";
                }
                if !self.state.missing(&rung, self.driver.sweep.base.seed).is_empty() {
                    break "time";
                }
            }
            let left = self.next_rungs();
            match left.first() {
                Some(rung) => self.begin_rung(*rung)?,
                None if self.state.left().is_empty() => break "complete",
                None => break "time",
            }
        };
        without_sync(|| self.end(reason))
    }

    /// The rungs that are left, cut to the time that is.
    fn next_rungs(&self) -> Vec<Rung> {
        let left = self.state.left();
        let Some(last) = self.state.begun.last() else { return left };
        let Plan { seeds, workers, .. } = self.state.plan;
        let seconds_left = FILLED * (self.driver.sweep.seconds - TO_END - self.driver.seconds());
        let keep = self.driver.sweep.keep;
        let trained = (last.points.len(), last.share);
        again(&left, trained, keep, self.cost(last, &left), Crew { seeds, workers }, seconds_left)
    }

    /// Mean cost of a run, as the runs of a rung showed it of those settings that go on next: a longer batch that is better is
    /// dearer, too.
    fn cost(&self, rung: &Begun, left: &[Rung]) -> Cost {
        let next = left.first().map_or(1, |rung| rung.settings);
        let best: Vec<usize> = self.state.order(rung).into_iter().take(next).collect();
        let of = |task: &super::journal::Task| task.rung == rung.rung && best.contains(&task.point);
        let runs: Vec<_> = self.state.trained.iter().filter(|run| of(&run.task)).collect();
        if runs.is_empty() {
            return self.driver.cost(self.state.plan.workers);
        }
        let training: f64 = runs.iter().map(|run| run.seconds_training).sum();
        let all: f64 = runs.iter().map(|run| run.seconds_worker).sum();
        let count = runs.len() as f64;
        let ending = self.driver.cost(self.state.plan.workers).ending;
        let fixed = (all - training).max(0.0) / count;
        Cost { fixed, full: training / rung.share / count, ending }
    }

    fn begin_rung(&mut self, rung: Rung) -> Result<()> {
        let points = match self.state.begun.last() {
            Some(before) => self.state.order(before).into_iter().take(rung.settings).collect(),
            None => (0..self.driver.sweep.points.len()).collect(),
        };
        let number = self.state.begun.len();
        let seconds = self.driver.seconds();
        self.say(Event::Rung(Begun {
            rung: number,
            share: rung.share,
            seeds: rung.seeds,
            points,
            seconds,
        }))
    }

    /// Makes the runs of a rung that are missing, until the time is over.
    fn train(&mut self, rung: &Begun) -> Result<()> {
        let tasks = self.state.missing(rung, self.driver.sweep.base.seed);
        let Plan { mut workers, mut threads, .. } = self.state.plan;
        if self.driver.may_choose && self.driver.sweep.base.threads == 0 && tasks.len() < workers {
            // A few runs have the machine to themselves.
            workers = tasks.len().max(1);
            threads = (self.driver.processors / workers).max(1);
        }
        let runs = self.state.plan.sweep.join(RUNS);
        let whole = self.driver.sweep.whole_runs || self.state.is_last(rung);
        let wanted = Wanted {
            weights: whole,
            rows: if whole { None } else { self.driver.sampled_rows(rung) },
        };
        let Going { driver, state, journal, watch } = self;
        let work = |task: super::journal::Task| {
            let point = &driver.sweep.points[task.point];
            let data = driver.data(&point.config);
            let mut config = shortened(&point.config, rung.share, data.split.train.rows());
            config.seed = task.seed;
            if !whole {
                config = lean(config, data.split.train.rows());
            }
            if driver.may_choose {
                config.threads = threads;
            }
            let folder = state.open.get(&key(&task)).map(|name| runs.join(name));
            // One that was killed before it had a configuration has done nothing.
            let folder = folder.filter(|path| path.join("config.toml").is_file());
            Work { task, setting: point.label(), config, data, folder, wanted }
        };
        let works: Vec<Work<'_>> = tasks.into_iter().map(work).collect();
        let mut hear = |over| {
            let event = match over {
                Over::Began(task) => Event::Began(task),
                Over::Trained(mut run) => {
                    run.seconds = driver.seconds();
                    Event::Trained(run)
                }
                Over::Stopped => return Ok(()),
                Over::Failed(error) => return Err(error),
            };
            journal.append(&event)?;
            watch(&event);
            state.take(event);
            Ok(())
        };
        let is_over = || {
            driver.stop.load(Ordering::Relaxed) || driver.seconds() >= driver.sweep.seconds - TO_END
        };
        side_by_side(works, workers, &runs, &mut hear, &is_over)
    }

    fn end(mut self, reason: &str) -> Result<Outcome> {
        let folder = self.state.plan.sweep.clone();
        let ranked = self.state.ranked();
        for one in &ranked {
            self.say(Event::Result(one.clone()))?;
        }
        let best = folder.join(BEST);
        if let Some(first) = ranked.first() {
            let point = &self.driver.sweep.points[first.point];
            replace_file(&best, &point.config.to_toml())?;
            if let Some(run) = first.runs.first() {
                render(&RunFolder::open(folder.join(RUNS).join(run))?)?;
            }
        }
        let page = folder.join(PAGE);
        let seconds = self.driver.seconds();
        replace_file(&page, &page::page(&self.state, &ranked, reason, seconds))?;
        let runs = self.state.trained.len();
        let seconds = self.driver.seconds();
        let ended = Ended { reason: reason.to_owned(), runs, seconds, sweep: folder };
        self.say(Event::Done(ended.clone()))?;
        Ok(Outcome { ended, ranked, page, best })
    }
}
