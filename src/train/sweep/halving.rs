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
    /// Of a run of the last rung, beyond that, however short: it is reviewed by all test rows.
    pub ending: f64,
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
    let ending = |rung: &Rung| rung.runs().div_ceil(crew.workers) as f64 * cost.ending;
    rungs.iter().map(rung).sum::<f64>() + rungs.last().map_or(0.0, ending)
}

/// The rungs with the fewest halvings that fit into a time, none shorter than the share `least`, and with as many that go on
/// as fit then; with `keep` = 1 there is one. Where none fit, those that can end with the longest runs, though these are no whole
/// ones.
///
/// # Errors
/// None fit, with runs as short as they may be: the seconds that it takes at least.
pub fn plan(
    settings: usize,
    keep: f64,
    least: f64,
    cost: Cost,
    crew: Crew,
    budget: f64,
) -> Result<Vec<Rung>, f64> {
    let fits = |rungs: &[Rung]| seconds(rungs, cost, crew) <= FILLED * budget;
    let chooses = keep < 1.0 && settings > 1;
    let mut counts = vec![settings];
    let (mut longest, mut needed): (Option<Vec<Rung>>, f64) = (None, f64::INFINITY);
    loop {
        let halvings = counts.len() as i32 - 1;
        // Of runs whose last ones have the share `top`.
        let rungs = |top: f64| -> Vec<Rung> {
            let share = |rung: i32| (top * keep.powi(halvings - rung)).max(least);
            (0..).zip(&counts).map(|(rung, &n)| Rung::new(n, share(rung), crew.seeds)).collect()
        };
        // A rung hardly longer than the first one would tell nothing new.
        let smallest = match halvings {
            0 => least,
            _ => WORTH_IT * least / keep.powi(halvings - 1),
        };
        if halvings > 0 && smallest > 1.0 {
            break;
        }
        if fits(&rungs(1.0)) {
            return Ok(widened(rungs(1.0), None, fits));
        }
        if halvings > 0 || !chooses {
            needed = needed.min(seconds(&rungs(smallest), cost, crew));
            let (mut fit, mut top) = (smallest, 1.0);
            if fits(&rungs(fit)) {
                for _ in 0..40 {
                    let middle = (fit + top) / 2.0;
                    *if fits(&rungs(middle)) { &mut fit } else { &mut top } = middle;
                }
                let before = longest.as_ref().and_then(|rungs| rungs.last());
                if before.is_none_or(|before| before.share < fit) {
                    longest = Some(rungs(fit));
                }
            }
        }
        let last = counts[counts.len() - 1];
        if !chooses || last == 1 {
            break;
        }
        counts.push(survivors(last, keep));
    }
    longest.map(|rungs| widened(rungs, None, fits)).ok_or(needed / FILLED)
}

/// Rungs with as many more settings that go on as `fits`, one by one where the fewest do, the later rung first: what time is left
/// makes the choice safer. The first rung stays as it is, unless there were so many settings `before` it.
fn widened(
    mut rungs: Vec<Rung>,
    before: Option<usize>,
    fits: impl Fn(&[Rung]) -> bool,
) -> Vec<Rung> {
    loop {
        let from = |at: usize| if at == 0 { before } else { Some(rungs[at - 1].settings) };
        let mut narrow: Vec<(f64, usize)> = (0..rungs.len())
            .rev()
            .filter_map(|at| Some((at, from(at)?)))
            // One at least is left behind.
            .filter(|&(at, from)| rungs[at].settings + 1 < from)
            .map(|(at, from)| (rungs[at].settings as f64 / from as f64, at))
            .collect();
        narrow.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wider = narrow.into_iter().find_map(|(_, at)| {
            let mut wider = rungs.clone();
            wider[at].settings += 1;
            fits(&wider).then_some(wider)
        });
        match wider {
            Some(wider) => rungs = wider,
            None => return rungs,
        }
    }
}

/// The rungs that are left after one of so many settings and such a share (`trained`), cut to `seconds_left`. More settings go
/// on where that is more than was planned. Where it is less, fewer go on first, then only
/// one, to the last rung, and then that one for a smaller share; empty where that is hardly more than it was trained for
/// already.
pub fn again(
    left: &[Rung],
    trained: (usize, f64),
    keep: f64,
    cost: Cost,
    crew: Crew,
    seconds_left: f64,
) -> Vec<Rung> {
    let Some((first, last)) = left.first().zip(left.last()) else { return Vec::new() };
    let fits = |rungs: &[Rung]| seconds(rungs, cost, crew) <= seconds_left;
    if fits(left) {
        return widened(left.to_vec(), Some(trained.0), fits);
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
    let share = ((seconds_left / turns - cost.fixed - cost.ending) / cost.full).min(last.share);
    // In full, or for so much longer that it is worth a run.
    let longer = share >= last.share || share > WORTH_IT * trained.1;
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
    const SECOND: Cost = Cost { fixed: 0.0, full: 1.0, ending: 0.0 };
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
        assert_eq!(counts(&plan(10.05)), [18, 9, 4], "9 s: more go on");
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
        // The first rung stays at the least that says anything, and the others become shorter.
        let rungs = plan(18, THIRD, 0.06, SECOND, ONE, 3.0).unwrap();
        assert_eq!((counts(&rungs), rungs[0].share), (vec![18, 6, 2], 0.06));
        assert!(
            (rungs[2].share - 0.405).abs() < 1e-6,
            "1.08 s of 2.7 go into the first: {rungs:?}"
        );
        assert!((rungs[1].share - 0.135).abs() < 1e-6);
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
        let cost = Cost { fixed: 0.1, full: 1.0, ending: 0.5 };
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
        let cost = Cost { fixed: 0.25, full: 1.0, ending: 0.125 };
        assert_eq!(seconds(&rungs, cost, crew), 5.0 * 0.875);
        let two = [rungs[0], Rung { settings: 2, seeds: 1, share: 1.0 }];
        assert_eq!(seconds(&two, cost, crew), 5.0 * 0.75 + 1.375, "only the last one is ended");
        assert_eq!(survivors(18, THIRD), 6);
        assert_eq!(survivors(2, 0.9), 1);
        assert_eq!(survivors(1, 0.5), 1);
        assert_eq!(survivors(7, THIRD), 3);
    }

    #[test]
    fn what_is_left_is_cut_to_the_time() {
        let left = [rung(6, THIRD), rung(2, 1.0)];
        let trained = (18, 1.0 / 9.0);
        let again = |seconds| again(&left, trained, THIRD, SECOND, ONE, seconds);
        assert_eq!(again(4.1), left);
        assert_eq!(counts(&again(7.1)), [9, 4], "there is time for more");
        assert_eq!(counts(&again(1e3)), [17, 16], "no rung tells nothing");
        assert_eq!(counts(&again(3.7)), [5, 2]);
        assert_eq!(counts(&again(2.01)), [3, 1]);
        assert_eq!(again(1.7), [rung(2, THIRD), rung(1, 1.0)]);
        assert_eq!(again(1.1), [rung(1, 1.0)]);
        assert_eq!(again(0.5), [rung(1, 0.5)]);
        assert_eq!(again(0.15), [], "it was trained for 0.11 already");
        assert_eq!(again(0.1), []);
        let ended = Cost { ending: 0.5, ..SECOND };
        let again = super::again(&left, trained, THIRD, ended, ONE, 1.0);
        assert_eq!(again, [rung(1, 0.5)], "its review takes the rest");
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
