//! Where a sweep stands, by its journal.

use super::halving::{Rung, Score, ranked};
use super::journal::{Begun, Event, Plan, Ranked, Task, Trained};
use std::collections::BTreeMap;

/// A run by rung, setting and seed.
pub(super) type Key = (usize, usize, u64);

pub(super) fn key(task: &Task) -> Key {
    (task.rung, task.point, task.seed)
}

/// Where a sweep stands.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub plan: Plan,
    /// The rungs that were begun.
    pub begun: Vec<Begun>,
    /// The runs that came to their end.
    pub trained: Vec<Trained>,
    /// The folders of those that did not.
    pub open: BTreeMap<Key, String>,
}

impl State {
    pub fn new(plan: Plan) -> State {
        State { plan, begun: Vec::new(), trained: Vec::new(), open: BTreeMap::new() }
    }

    /// As the events of a journal leave it; none without a plan.
    pub fn of(events: Vec<Event>) -> Option<State> {
        let mut state: Option<State> = None;
        for event in events {
            match (event, &mut state) {
                (Event::Sweep(plan), state) => *state = Some(State::new(plan)),
                (event, Some(state)) => state.take(event),
                (_, None) => {}
            }
        }
        state
    }

    pub fn take(&mut self, event: Event) {
        match event {
            Event::Rung(begun) => self.begun.push(begun),
            Event::Began(task) => {
                self.open.insert(key(&task), task.run);
            }
            Event::Trained(run) => {
                self.open.remove(&key(&run.task));
                self.trained.push(run);
            }
            Event::Sweep(_) | Event::Result(_) | Event::Done(_) => {}
        }
    }

    /// Rungs of the plan that are longer than those that were begun.
    pub fn left(&self) -> Vec<Rung> {
        let share = self.begun.last().map_or(0.0, |begun| begun.share);
        let longer = |rung: &&Rung| rung.share > share * (1.0 + 1e-9);
        self.plan.rungs.iter().filter(longer).copied().collect()
    }

    /// Whether a rung is the last one, as far as is known: what it trains is what the sweep finds.
    pub fn is_last(&self, rung: &Begun) -> bool {
        let longer = |later: &Rung| later.share > rung.share * (1.0 + 1e-9);
        rung.points.len() == 1 || !self.plan.rungs.iter().any(longer)
    }

    /// Runs of a rung that did not come to their end, by seed and then by setting: so that the first seeds of all settings come first.
    pub fn missing(&self, rung: &Begun, first_seed: u64) -> Vec<Task> {
        let done = |task: &Task| self.trained.iter().any(|run| key(&run.task) == key(task));
        let task = |seed, &point: &usize| Task { rung: rung.rung, point, seed, run: String::new() };
        let of_seed = |seed| rung.points.iter().map(move |point| task(seed, point));
        let seeds = first_seed..first_seed.saturating_add(rung.seeds as u64);
        seeds.flat_map(of_seed).filter(|task| !done(task)).collect()
    }

    /// Whether nothing is left to do.
    pub fn complete(&self, first_seed: u64) -> bool {
        let last = self.begun.last();
        self.left().is_empty() && last.is_some_and(|rung| self.missing(rung, first_seed).is_empty())
    }

    /// The runs of a setting in a rung that came to their end.
    fn runs(&self, rung: usize, point: usize) -> Vec<&Trained> {
        let of = |run: &&Trained| run.task.rung == rung && run.task.point == point;
        self.trained.iter().filter(of).collect()
    }

    /// The settings of a rung, the best first; those without a run that came to its end are left out.
    pub fn order(&self, rung: &Begun) -> Vec<usize> {
        let tried = |point: &&usize| !self.runs(rung.rung, **point).is_empty();
        let points: Vec<usize> = rung.points.iter().filter(tried).copied().collect();
        let scores: Vec<Score> =
            points.iter().map(|&point| score(&self.runs(rung.rung, point))).collect();
        ranked(&scores).into_iter().map(|at| points[at]).collect()
    }

    /// All settings that were tried, the best first: those of the last rung, then those that were left behind before it, and so on.
    pub fn ranked(&self) -> Vec<Ranked> {
        let mut found: Vec<Ranked> = Vec::new();
        for rung in self.begun.iter().rev() {
            for point in self.order(rung) {
                if found.iter().any(|known| known.point == point) {
                    continue;
                }
                let runs = self.runs(rung.rung, point);
                let mean = |value: &dyn Fn(&Trained) -> f64| {
                    runs.iter().map(|run| value(run)).sum::<f64>() / runs.len() as f64
                };
                let test_acc = mean(&|run| run.test_acc);
                let squares = mean(&|run| (run.test_acc - test_acc).powi(2)) * runs.len() as f64;
                let deviation = (runs.len() > 1)
                    .then(|| (squares / (runs.len() - 1) as f64).sqrt())
                    .filter(|deviation| deviation.is_finite());
                found.push(Ranked {
                    rank: found.len() + 1,
                    point,
                    setting: runs[0].setting.clone(),
                    rung: rung.rung,
                    share: rung.share,
                    test_acc,
                    deviation,
                    test_loss: mean(&|run| run.test_loss),
                    seconds_training: mean(&|run| run.seconds_training),
                    runs: runs.iter().map(|run| run.task.run.clone()).collect(),
                });
            }
        }
        found
    }
}

/// What the runs of a setting came to; one that diverged counts as accuracy 0.
fn score(runs: &[&Trained]) -> Score {
    let mean = |value: &dyn Fn(&Trained) -> f64| {
        runs.iter().map(|run| value(run)).sum::<f64>() / runs.len() as f64
    };
    let reached = runs.iter().all(|run| run.seconds_to_target.is_some());
    Score {
        accuracy: mean(&|run| if run.test_acc.is_nan() { 0.0 } else { run.test_acc }),
        loss: mean(&|run| run.test_loss),
        to_target: reached.then(|| mean(&|run| run.seconds_to_target.unwrap_or(f64::NAN))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{Event, Tried};
    use super::*;

    fn plan() -> Plan {
        let rung = |settings, share| Rung { settings, seeds: 2, share };
        Plan {
            sweep: "here".into(),
            settings: 4,
            seeds: 2,
            workers: 2,
            threads: 1,
            tried: vec![Tried { workers: 2, threads: 1, steps_per_s: 10.0 }],
            rungs: vec![rung(4, 0.25), rung(2, 0.5), rung(1, 1.0)],
            expected: 3.0,
            budget: 4.0,
            seconds: 0.1,
        }
    }

    fn begun(rung: usize, share: f64, points: &[usize]) -> Event {
        Event::Rung(Begun { rung, share, seeds: 2, points: points.to_vec(), seconds: 1.0 })
    }

    fn task(rung: usize, point: usize, seed: u64) -> Task {
        Task { rung, point, seed, run: format!("run-{rung}-{point}-{seed}") }
    }

    fn trained(rung: usize, point: usize, seed: u64, test_acc: f64) -> Event {
        Event::Trained(Trained {
            task: task(rung, point, seed),
            setting: format!("lr {point}"),
            reason: if test_acc.is_nan() { "diverged" } else { "steps" }.into(),
            test_acc,
            test_loss: 1.0 - test_acc,
            seconds_training: 0.5,
            seconds_to_target: None,
            steps: 10,
            seconds_worker: 0.6,
            seconds: 2.0,
        })
    }

    #[test]
    fn a_journal_says_where_a_sweep_stands() {
        assert!(State::of(vec![]).is_none());
        let mut events = vec![Event::Sweep(plan()), begun(0, 0.25, &[0, 1, 2, 3])];
        for seed in 7..9 {
            events.extend([
                trained(0, 0, seed, 0.8),
                trained(0, 1, seed, 0.9 + 0.02 * (seed - 7) as f64),
                trained(0, 2, seed, if seed == 7 { f64::NAN } else { 0.99 }),
                trained(0, 3, seed, 0.85),
            ]);
        }
        let after = |events: &[Event]| State::of(events.to_vec()).unwrap();
        let state = after(&events);
        assert!(!state.complete(7) && state.missing(&state.begun[0], 7).is_empty());
        assert!(!state.is_last(&state.begun[0]));
        assert_eq!(state.order(&state.begun[0]), [1, 3, 0, 2]);
        assert_eq!(state.left().len(), 2);

        events.extend([
            begun(1, 0.5, &[1, 3]),
            trained(1, 3, 7, 0.95),
            Event::Began(task(1, 1, 7)),
        ]);
        let state = after(&events);
        let missing: Vec<Key> = state.missing(&state.begun[1], 7).iter().map(key).collect();
        assert_eq!(missing, [(1, 1, 7), (1, 1, 8), (1, 3, 8)]);
        assert_eq!(state.open[&(1, 1, 7)], "run-1-1-7");
        let ranked = state.ranked();
        let order: Vec<(usize, usize, usize)> =
            ranked.iter().map(|one| (one.rank, one.point, one.rung)).collect();
        assert_eq!(order, [(1, 3, 1), (2, 1, 0), (3, 0, 0), (4, 2, 0)]);
        assert_eq!(ranked[0].deviation, None);
        assert!((ranked[1].test_acc - 0.91).abs() < 1e-12);
        assert!((ranked[1].deviation.unwrap() - 0.02 / 2f64.sqrt()).abs() < 1e-12);
        assert!(ranked[3].test_acc.is_nan());

        for seed in 7..9 {
            events.extend([trained(1, 1, seed, 0.9), trained(1, 3, seed, 0.95)]);
        }
        events.extend([begun(2, 0.9, &[3]), trained(2, 3, 7, 0.96), trained(2, 3, 8, 0.96)]);
        // Cut short by the time: with more of it, it goes on.
        let state = after(&events);
        assert!(!state.complete(7));
        assert!(state.is_last(&state.begun[2]), "one setting, for as long as there was time");
        assert!(!state.is_last(&state.begun[1]));
        events.extend([begun(3, 1.0, &[3]), trained(3, 3, 7, 0.96), trained(3, 3, 8, 0.96)]);
        assert!(after(&events).complete(7));
        // Every line reads back as it was written.
        let lines: Vec<String> = events.iter().map(Event::to_json).collect();
        let back: Vec<Event> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(format!("{back:?}"), format!("{events:?}"));
    }
}
