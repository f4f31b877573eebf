//! How fast runs are side by side, and how fast alone: a short trial.

use super::super::config::Config;
use super::super::make::trainer;
use super::super::shared::Input;
use super::super::trainer::Trainer;
use super::halving::Cost;
use super::journal::Tried;
use crate::error::Result;
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Kinds of runs that are timed, at most; others count as the mean of those.
const MOST_TIMED: usize = 8;
/// What a run takes beside its steps and the making of its trainer: folder, journal, checkpoint. Replaced by what
/// the first rung shows.
const REST_SECONDS: f64 = 0.004;

/// Test rows by which a review is timed.
const REVIEWED: usize = 512;

/// Steps before those that are timed.
const WARM_STEPS: u64 = 5;

/// Share of a run that its reviews are expected to take, at most, whatever they may take.
const MOST_REVIEWED: f64 = 0.1;

/// What a trial found of one kind of run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// Training steps a second, all workers together.
    steps_per_s: f64,
    /// Seconds until a trainer is there.
    build: f64,
    /// Seconds of a test row in a review.
    test_row: f64,
}

/// What one of the copies showed.
struct Timed {
    steps_per_s: f64,
    build: f64,
    test_row: f64,
}

/// The row of the epoch that the next update starts at; another epoch begins where one is over.
fn after(trainer: &Trainer, offset: usize) -> usize {
    let end = offset + trainer.update_rows(offset);
    if end < trainer.rows() { end } else { 0 }
}

/// Trains `workers` copies of a run side by side, for some seconds.
pub(super) fn speed(
    config: &Config,
    data: Input<'_>,
    (workers, threads): (usize, usize),
    seconds: f64,
) -> Result<Speed> {
    let config = &Config { threads, ..config.clone() };
    let (ready, over) = (Barrier::new(workers), AtomicBool::new(false));
    let prepare = || -> Result<(Trainer, usize, f64)> {
        let began = Instant::now();
        let (mut trainer, _) = trainer(config, data)?;
        let build = began.elapsed().as_secs_f64();
        trainer.start_epoch(0)?;
        // The first steps touch their memory for the first time.
        let mut offset = 0;
        for step in 1..=WARM_STEPS {
            trainer.step(step, offset, config.optimizer.rate)?;
            offset = after(&trainer, offset);
        }
        // The first review records what others replay.
        trainer.review_sample(REVIEWED)?;
        Ok((trainer, offset, build))
    };
    let work = || -> Result<Timed> {
        let prepared = prepare();
        // Also after an error: the others wait for this one.
        ready.wait();
        let (mut trainer, mut offset, build) = prepared?;
        let began = Instant::now();
        let mut steps = 0u64;
        // The first one to be done ends it for all, so that all are timed while all of them run.
        while !over.load(Ordering::Relaxed) {
            trainer.step(WARM_STEPS + steps + 1, offset, config.optimizer.rate)?;
            steps += 1;
            offset = after(&trainer, offset);
            if began.elapsed() >= Duration::from_secs_f64(seconds) {
                over.store(true, Ordering::Relaxed);
            }
        }
        let training = began.elapsed().as_secs_f64();
        let began = Instant::now();
        trainer.review_sample(REVIEWED)?;
        let rows = REVIEWED.min(data.split.test.rows()) as f64;
        let test_row = began.elapsed().as_secs_f64() / rows;
        Ok(Timed { steps_per_s: steps as f64 / training, build, test_row })
    };
    let found: Vec<Result<Timed>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut speed = Speed { steps_per_s: 0.0, build: 0.0, test_row: 0.0 };
    for one in found {
        let one = one?;
        speed.steps_per_s += one.steps_per_s;
        speed.build = speed.build.max(one.build);
        speed.test_row = speed.test_row.max(one.test_row);
    }
    Ok(speed)
}

/// Rows of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Training rows.
    pub train: usize,
    /// Test rows by which a run is judged, and those of the last rung.
    pub judged: [usize; 2],
}

/// Workers and threads to try on so many processors: all for one run, and ever fewer for ever more.
pub(super) fn candidates(processors: usize) -> Vec<(usize, usize)> {
    let mut found = vec![(1, processors)];
    let mut threads = processors / 2;
    while threads >= 1 {
        found.push((processors / threads, threads));
        threads /= 2;
    }
    found
}

/// The fastest of what was tried; of two that are as fast, the one with fewer workers, which shows first results sooner.
pub(super) fn fastest(tried: &[Tried]) -> Tried {
    let mut best = tried[0];
    for &one in &tried[1..] {
        if one.steps_per_s > 1.02 * best.steps_per_s {
            best = one;
        }
    }
    best
}

/// The run, for a share of its length: with a whole schedule of its own.
pub(super) fn shortened(config: &Config, share: f64, rows: usize) -> Config {
    let mut config = config.clone();
    if share < 1.0 {
        let train = &mut config.train;
        train.seconds = train.seconds.map(|seconds| seconds * share);
        if let Some(total) = config.train.total_steps(rows) {
            let steps = (total as f64 * share).ceil().max(1.0) as u64;
            (config.train.epochs, config.train.steps) = (None, Some(steps));
        }
    }
    config
}

/// The run without what only a person would look at: it does not measure its clocks, and is reviewed at its end only, unless
/// it may end by what it finds.
pub(super) fn lean(config: Config, rows: usize) -> Config {
    let mut config = config;
    let train = &config.train;
    if !train.stop_on_advice {
        config.clocks.telemetry = false;
    }
    let ends_by_reviews =
        train.stop_on_advice || train.plateau.is_some() || train.target_acc.is_some();
    if let Some(total) = train.total_steps(rows).filter(|_| !ends_by_reviews) {
        config.train.review_steps = Some(total);
    }
    config
}

/// What runs cost, by what they are: those of one model and batch cost the same.
#[derive(Debug, Default)]
pub(super) struct Costs {
    timed: BTreeMap<String, Speed>,
}

impl Costs {
    /// What decides how long a step takes.
    fn kind(config: &Config) -> String {
        let train = &config.train;
        format!(
            "{:?} {} {} {:?} {:?}",
            config.model,
            train.batch,
            train.accumulate,
            config.precision,
            std::mem::discriminant(&config.optimizer.rule),
        )
    }

    /// Whether runs like this one are to be timed yet.
    pub fn wants(&self, config: &Config) -> bool {
        self.timed.len() < MOST_TIMED && !self.timed.contains_key(&Self::kind(config))
    }

    pub fn set(&mut self, config: &Config, speed: Speed) {
        self.timed.insert(Self::kind(config), speed);
    }

    /// Mean cost of runs, each with its training rows, side by side with as many as were timed.
    pub fn mean<'a>(&self, runs: impl Iterator<Item = (&'a Config, Rows)>, workers: usize) -> Cost {
        let of = |speed: &Speed| [workers as f64 / speed.steps_per_s, speed.build, speed.test_row];
        let timed = self.timed.len().max(1) as f64;
        let mut usual = [0.0; 3];
        for speed in self.timed.values() {
            usual.iter_mut().zip(of(speed)).for_each(|(sum, one)| *sum += one / timed);
        }
        let (mut full, mut fixed, mut ending, mut count) = (0.0, 0.0, 0.0, 0.0);
        for (config, rows) in runs {
            let known = self.timed.get(&Self::kind(config)).map(of);
            let [step, build, test_row] = known.unwrap_or(usual);
            let by_steps = config.train.total_steps(rows.train).map(|steps| steps as f64 * step);
            let by_time = config.train.seconds;
            // Reviews come on top of the steps.
            let reviews = 1.0 + config.train.review_share.min(MOST_REVIEWED);
            full += reviews * by_steps.into_iter().chain(by_time).fold(f64::INFINITY, f64::min);
            let [judged, last] = rows.judged.map(|rows| rows as f64 * test_row);
            fixed += build + REST_SECONDS + judged;
            ending += last - judged;
            count += 1.0;
        }
        Cost { fixed: fixed / count, full: full / count, ending: ending / count }
    }
}

impl Speed {
    pub fn tried(&self, (workers, threads): (usize, usize)) -> Tried {
        Tried { workers, threads, steps_per_s: self.steps_per_s }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::recipes::recipe;
    use super::*;

    #[test]
    fn fewer_threads_for_more_runs() {
        assert_eq!(candidates(1), [(1, 1)]);
        assert_eq!(candidates(2), [(1, 2), (2, 1)]);
        assert_eq!(candidates(6), [(1, 6), (2, 3), (6, 1)]);
        let tried = |workers, steps_per_s| Tried { workers, threads: 1, steps_per_s };
        assert_eq!(fastest(&[tried(1, 100.0), tried(2, 101.0)]).workers, 1);
        assert_eq!(fastest(&[tried(1, 100.0), tried(2, 150.0), tried(4, 140.0)]).workers, 2);
    }

    #[test]
    fn a_shorter_run_is_a_whole_one_of_fewer_steps() {
        let mut config = recipe("digits").unwrap();
        // 23 steps an epoch, 40 epochs.
        assert_eq!(config.train.total_steps(1437), Some(920));
        let third = shortened(&config, 1.0 / 3.0, 1437);
        assert_eq!((third.train.epochs, third.train.steps), (None, Some(307)));
        assert_eq!(third.schedule, config.schedule);
        assert_eq!(shortened(&config, 1.0, 1437), config);
        config.train.steps = Some(100);
        assert_eq!(shortened(&config, 0.5, 1437).train.steps, Some(50));
        assert_eq!(shortened(&config, 1e-9, 1437).train.steps, Some(1));
        (config.train.epochs, config.train.steps, config.train.seconds) = (None, None, Some(8.0));
        let shorter = shortened(&config, 0.25, 1437).train;
        assert_eq!((shorter.seconds, shorter.steps), (Some(2.0), None));
    }

    #[test]
    fn a_lean_run_looks_only_at_what_may_end_it() {
        let config = recipe("digits").unwrap();
        let lean = |config: &Config| super::lean(config.clone(), 1437);
        let (telemetry, reviews) =
            (lean(&config).clocks.telemetry, lean(&config).train.review_steps);
        assert_eq!((telemetry, reviews), (false, Some(920)));
        let mut target = config.clone();
        target.train.target_acc = Some(0.9);
        let mut wanted = target.clone();
        wanted.clocks.telemetry = false;
        assert_eq!(lean(&target), wanted);
        let mut advised = config;
        advised.train.stop_on_advice = true;
        assert_eq!(lean(&advised), advised);
    }

    #[test]
    fn costs_follow_steps_and_kinds() {
        let config = recipe("digits").unwrap();
        let mut other = config.clone();
        other.train.batch = 128;
        let mut rate = config.clone();
        rate.optimizer.rate = 1.0;
        let mut costs = Costs::default();
        costs.set(&config, Speed { steps_per_s: 920.0, build: 0.5, test_row: 1e-3 });
        assert!(costs.wants(&other) && !costs.wants(&rate));
        let rows = Rows { train: 1437, judged: [100, 360] };
        let cost = costs.mean([(&rate, rows)].into_iter(), 2);
        let reviews = 1.0 + config.train.review_share.min(MOST_REVIEWED);
        assert!((cost.full - 2.0 * reviews).abs() < 1e-9, "two side by side: {}", cost.full);
        assert!((cost.fixed - 0.6 - REST_SECONDS).abs() < 1e-12);
        assert!((cost.ending - 0.26).abs() < 1e-12);
        // One of another kind counts as the mean of those that are known, and has 480 steps.
        let cost = costs.mean([(&config, rows), (&other, rows)].into_iter(), 1);
        assert!((cost.full - reviews * (920.0 + 480.0) / 920.0 / 2.0).abs() < 1e-9);
    }
}
