//! Successive halving as arithmetic: which rungs fit into a time, and who goes on.
//!
//! All settings are trained for a share of the run, the best of them for a larger share, and so on, until the last are
//! trained in full. A rung of a third of the run takes a third of the seeds, too. Source: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter
//! optimization", 2016.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Share of a time that a plan fills; the rest is for machines that are slower than they were.
const FILLED: f64 = 0.9;

/// How many times as long as before a setting is trained at least, where there is not the time to train it in full.
const WORTH_IT: f64 = 1.5;

/// One rung: so many settings, each trained with so many seeds for that share of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// Settings.
    pub settings: usize,
    /// Runs of each.
    pub seeds: usize,
    /// Share of the run, above 0 and up to 1.
    pub share: f64,
}

/// What a run costs, in seconds of one worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Of every run, however short.
    pub fixed: f64,
    /// Of a whole run, beyond that.
    pub full: f64,
}

impl Rung {
    /// A rung for a share of the run, and of the `seeds`.
    fn new(settings: usize, share: f64, seeds: usize) -> Rung {
        let seeds = ((seeds as f64 * share - 1e-9).ceil() as usize).max(1);
        Rung { settings, seeds, share }
    }

    /// Its runs.
    pub fn runs(&self) -> usize {
        self.settings * self.seeds
    }
}

/// How many runs a setting has in the end, and how many are made at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crew {
    /// Runs of each setting that is trained in full.
    pub seeds: usize,
    /// Runs side by side.
    pub workers: usize,
}

/// How many of `settings` go on.
pub fn survivors(settings: usize, keep: f64) -> usize {
    let kept = (settings as f64 * keep - 1e-9).ceil() as usize;
    kept.clamp(1, settings.saturating_sub(1).max(1))
}

/// Seconds that rungs take.
pub fn seconds(rungs: &[Rung], cost: Cost, crew: Crew) -> f64 {
    let rung = |rung: &Rung| {
        let turns = rung.runs().div_ceil(crew.workers);
        turns as f64 * (cost.fixed + rung.share * cost.full)
    };
    rungs.iter().map(rung).sum()
}

/// The rungs with the fewest halvings that fit into a time, none shorter than the share `least`, and with as many that go on
/// as fit then; with `keep` = 1 there is one. Where none fit, those with the most, with shares as much smaller as it takes.
///
/// # Errors
/// The first rung would be shorter than `least`: the seconds that it takes at least.
pub fn plan(
    settings: usize,
    keep: f64,
    least: f64,
    cost: Cost,
    crew: Crew,
    budget: f64,
) -> Result<Vec<Rung>, f64> {
    let mut counts = vec![settings];
    loop {
        let halvings = counts.len() - 1;
        let share = |rung: usize| keep.powi((halvings - rung) as i32);
        let rungs: Vec<Rung> = (0..counts.len())
            .map(|rung| Rung::new(counts[rung], share(rung).max(least), crew.seeds))
            .collect();
        if seconds(&rungs, cost, crew) <= FILLED * budget {
            return Ok(widened(rungs, |rungs| seconds(rungs, cost, crew) <= FILLED * budget));
        }
        let last = counts[halvings];
        // A rung hardly shorter than the next one would tell nothing new.
        if keep == 1.0 || last == 1 || share(0) < WORTH_IT * least {
            return shrunk(rungs, least, cost, crew, budget);
        }
        counts.push(survivors(last, keep));
    }
}

/// Rungs with as many more settings that go on as `fits`: what time is left makes the choice safer.
fn widened(rungs: Vec<Rung>, fits: impl Fn(&[Rung]) -> bool) -> Vec<Rung> {
    let wider = |factor: f64| {
        let mut wide = rungs.clone();
        for at in 1..wide.len() {
            let most = wide[at - 1].settings.saturating_sub(1).max(1);
            let settings = (rungs[at].settings as f64 * factor + 1e-9) as usize;
            wide[at].settings = settings.clamp(1, most);
        }
        wide
    };
    let mut widest = rungs.clone();
    // Steps of a twentieth, up to ten times as many.
    for step in 1..=180 {
        let wide = wider(1.0 + 0.05 * f64::from(step));
        if !fits(&wide) {
            break;
        }
        widest = wide;
    }
    widest
}

/// Rungs with all shares smaller by one factor, so that they fit.
fn shrunk(
    mut rungs: Vec<Rung>,
    least: f64,
    cost: Cost,
    crew: Crew,
    budget: f64,
) -> Result<Vec<Rung>, f64> {
    let fixed = seconds(&rungs, Cost { full: 0.0, ..cost }, crew);
    let full = seconds(&rungs, Cost { fixed: 0.0, ..cost }, crew);
    let smallest = (least / rungs[0].share).min(1.0);
    let factor = ((FILLED * budget - fixed) / full).min(1.0);
    if factor.is_nan() || factor < smallest {
        return Err((fixed + smallest * full) / FILLED);
    }
    rungs.iter_mut().for_each(|rung| rung.share *= factor);
    Ok(rungs)
}

/// The rungs that are left, where `seconds_left` may have become too short for them: fewer settings go on first, then only
/// one, to the last rung, and then that one for a smaller share. Empty where that is hardly more than the share `trained`
/// that it was trained for already.
pub fn again(
    left: &[Rung],
    trained: f64,
    keep: f64,
    cost: Cost,
    crew: Crew,
    seconds_left: f64,
) -> Vec<Rung> {
    let Some((first, last)) = left.first().zip(left.last()) else { return Vec::new() };
    let fits = |rungs: &[Rung]| seconds(rungs, cost, crew) <= seconds_left;
    if fits(left) {
        return left.to_vec();
    }
    for settings in (2..=first.settings).rev() {
        let mut count = settings;
        let mut rungs = Vec::with_capacity(left.len());
        for rung in left {
            rungs.push(Rung { settings: count.min(rung.settings), ..*rung });
            count = survivors(count, keep);
        }
        // With one left there is nothing to choose, and it goes to the last rung at once.
        rungs = without_lonely(rungs);
        if fits(&rungs) {
            return rungs;
        }
    }
    let turns = last.seeds.div_ceil(crew.workers) as f64;
    let share = ((seconds_left / turns - cost.fixed) / cost.full).min(last.share);
    // In full, or for so much longer that it is worth a run.
    let longer = share >= last.share || share > WORTH_IT * trained;
    if longer { vec![Rung { settings: 1, share, ..*last }] } else { Vec::new() }
}

fn without_lonely(mut rungs: Vec<Rung>) -> Vec<Rung> {
    if let Some(last) = rungs.pop() {
        rungs.retain(|rung| rung.settings > 1);
        rungs.push(last);
    }
    rungs
}

/// What the runs of a setting in one rung came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean test accuracy; 0 for a run that diverged.
    pub accuracy: f64,
    /// Mean test loss.
    pub loss: f64,
    /// Mean seconds to the target accuracy, where there is one and every run reached it.
    pub to_target: Option<f64>,
}

impl Score {
    /// The better one first: sooner at the target, then more accurate, then of smaller loss.
    pub fn better(&self, other: &Score) -> Ordering {
        let target = match (self.to_target, other.to_target) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        // A NaN is worse than any number, whatever its sign.
        let loss = |score: &Score| if score.loss.is_nan() { f64::INFINITY } else { score.loss };
        target
            .then(other.accuracy.total_cmp(&self.accuracy))
            .then(loss(self).total_cmp(&loss(other)))
    }
}

/// Places in `scores`, the best first; of equals, the earlier one.
pub fn ranked(scores: &[Score]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].better(&scores[b]));
    order
}

/// Places of the points (seconds, accuracy) to which no other is both quicker and as accurate, by seconds.
pub fn pareto(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len())
        .filter(|&at| points[at].0.is_finite() && points[at].1.is_finite())
        .collect();
    order.sort_by(|&a, &b| {
        points[a].0.total_cmp(&points[b].0).then(points[b].1.total_cmp(&points[a].1))
    });
    let mut best = f64::NEG_INFINITY;
    order.retain(|&at| {
        let better = points[at].1 > best;
        best = best.max(points[at].1);
        better
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Crew = Crew { seeds: 1, workers: 1 };
    const SECOND: Cost = Cost { fixed: 0.0, full: 1.0 };
    const THIRD: f64 = 1.0 / 3.0;

    fn counts(rungs: &[Rung]) -> Vec<usize> {
        rungs.iter().map(|rung| rung.settings).collect()
    }

    fn rung(settings: usize, share: f64) -> Rung {
        Rung { settings, seeds: 1, share }
    }

    #[test]
    fn halving_is_as_mild_as_the_time_allows() {
        let plan = |budget| plan(18, THIRD, 0.01, SECOND, ONE, budget).unwrap();
        assert_eq!(plan(21.0), [rung(18, 1.0)]);
        let two = plan(14.0);
        assert_eq!(counts(&two), [18, 6]);
        assert!((two[0].share - THIRD).abs() < 1e-12 && two[1].share == 1.0);
        assert_eq!(counts(&plan(7.0)), [18, 6, 2], "6 s of whole runs");
        assert_eq!(counts(&plan(10.0)), [18, 11, 3], "8.7 s: more go on");
        let most = plan(3.6);
        assert_eq!(counts(&most), [18, 8, 2, 1], "a fifth of the grid's 18 s");
        assert_eq!(most[3].share, 1.0);
        let shorter = plan(2.0);
        assert_eq!(counts(&shorter), [18, 6, 2, 1]);
        assert!(shorter[3].share < 0.7 && seconds(&shorter, SECOND, ONE) <= 1.8 + 1e-9);
    }

    #[test]
    fn no_rung_is_shorter_than_the_least() {
        let rungs = plan(18, THIRD, 0.06, SECOND, ONE, 3.85).unwrap();
        assert_eq!((counts(&rungs), rungs[0].share), (vec![18, 6, 2, 1], 0.06));
        let rungs = plan(18, THIRD, 0.2, SECOND, ONE, 8.5).unwrap();
        assert_eq!((counts(&rungs), rungs[0].share), (vec![18, 6, 2], 0.2));
        // A rung of 0.3 before one of a third is none.
        assert_eq!(counts(&plan(18, THIRD, 0.3, SECOND, ONE, 12.5).unwrap()), [18, 6]);
        // A share of 0.2 is the shortest, and so there are no more rungs.
        assert!(plan(18, THIRD, 0.2, SECOND, ONE, 3.0).is_err());
    }

    #[test]
    fn a_share_of_the_run_takes_a_share_of_the_seeds() {
        let crew = Crew { seeds: 5, workers: 1 };
        let rungs = plan(18, THIRD, 0.01, SECOND, crew, 18.0).unwrap();
        let seeds: Vec<usize> = rungs.iter().map(|rung| rung.seeds).collect();
        assert_eq!((counts(&rungs), seeds), (vec![18, 6, 2], vec![1, 2, 5]));
    }

    #[test]
    fn a_time_that_is_too_short_says_what_it_takes() {
        let cost = Cost { fixed: 0.1, full: 1.0 };
        let needed = plan(9, THIRD, 0.02, cost, ONE, 0.5).unwrap_err();
        let rungs = plan(9, THIRD, 0.02, cost, ONE, needed + 1e-6).unwrap();
        assert_eq!(counts(&rungs), [9, 3, 1]);
        assert!((rungs[0].share - 0.02).abs() < 1e-3);
        // All of them in full, or for as long as it goes.
        let all = plan(9, 1.0, 0.02, SECOND, ONE, 5.0).unwrap();
        assert_eq!(counts(&all), [9]);
        assert!((all[0].share - 0.5).abs() < 1e-9);
    }

    #[test]
    fn workers_share_the_runs() {
        let crew = Crew { seeds: 3, workers: 2 };
        let rungs = [Rung { settings: 3, seeds: 3, share: 0.5 }];
        assert_eq!(seconds(&rungs, Cost { fixed: 0.25, full: 1.0 }, crew), 5.0 * 0.75);
        assert_eq!(survivors(18, THIRD), 6);
        assert_eq!(survivors(2, 0.9), 1);
        assert_eq!(survivors(1, 0.5), 1);
        assert_eq!(survivors(7, THIRD), 3);
    }

    #[test]
    fn what_is_left_is_cut_to_the_time() {
        let left = [rung(6, THIRD), rung(2, 1.0)];
        let again = |seconds| again(&left, 1.0 / 9.0, THIRD, SECOND, ONE, seconds);
        assert_eq!(again(4.1), left);
        assert_eq!(counts(&again(3.7)), [5, 2]);
        assert_eq!(counts(&again(2.01)), [3, 1]);
        assert_eq!(again(1.7), [rung(2, THIRD), rung(1, 1.0)]);
        assert_eq!(again(1.1), [rung(1, 1.0)]);
        assert_eq!(again(0.5), [rung(1, 0.5)]);
        assert_eq!(again(0.15), [], "it was trained for 0.11 already");
        assert_eq!(again(0.1), []);
    }

    #[test]
    fn the_best_goes_on() {
        let score = |accuracy, loss, to_target| Score { accuracy, loss, to_target };
        let scores = [
            score(0.0, f64::NAN, None),
            score(0.9, 0.5, None),
            score(0.9, 0.4, None),
            score(0.95, -f64::NAN, None),
            score(0.8, 0.1, Some(2.0)),
            score(0.7, 0.1, Some(1.0)),
            score(0.9, 0.5, None),
        ];
        assert_eq!(ranked(&scores), [5, 4, 3, 2, 1, 6, 0]);
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let points = [
            (3.0, 0.9),
            (1.0, 0.8),
            (2.0, 0.7),
            (4.0, 0.9),
            (1.0, 0.6),
            (5.0, 0.95),
            (0.5, f64::NAN),
        ];
        assert_eq!(pareto(&points), [1, 0, 5]);
    }
}
