//! The earlier runs that a new one is nearest to: what differs, and how they ended.
//!
//! Runs of the same data come first, then those of the same recipe, then the least [`distance`], then the
//! latest. The configurations of the latest runs are read, and only the nearest are parsed; of the journal only the end, and only
//! of the runs which are shown.

use super::folder::{CONFIG, METRICS, RunFolder};
use super::history::{self, State};
use super::metrics::{self, Row};
use super::settings::{Difference, Settings, differences, flatten, number};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;

/// Earlier runs that are looked at.
const LATEST: usize = 200;
/// Differences that a line names.
const NAMED: usize = 4;

/// How far a setting lies from another one that is not the same, where neither is a number that has a ratio to the other.
const OTHER: f64 = 1.0;
/// The same for what changes a run's noise or its speed, and not what is trained.
const LIGHT: f64 = 0.01;

/// Settings that say which rows are trained on.
const DATA: [&str; 4] = ["data.source", "data.path", "data.test", "data.label"];

/// An earlier run beside a new one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nearest {
    /// Name of its folder.
    pub name: String,
    /// From its settings to those of the new run; empty for the same configuration.
    pub differences: Vec<Difference>,
    /// How far it is.
    pub state: State,
    /// Why it ended, where it has.
    pub reason: Option<String>,
    /// Test accuracy at its last review, 0 to 1.
    pub test_acc: Option<f64>,
    /// Its training clock, as far as its journal says.
    pub seconds: Option<f64>,
}

/// `digits-20260102-000000: lr 0.004 -> 0.002: 97.50 % in 0.31 s (epochs)`.
impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> =
            self.differences.iter().take(NAMED).map(Difference::to_string).collect();
        let differs = match (named.is_empty(), self.differences.len().saturating_sub(NAMED)) {
            (true, _) => "same configuration".to_owned(),
            (false, 0) => named.join(", "),
            (false, more) => format!("{} and {more} more", named.join(", ")),
        };
        let accuracy = match self.test_acc {
            Some(accuracy) => format!("{:.2} %", 100.0 * accuracy),
            None => "not reviewed".to_owned(),
        };
        let seconds = self.seconds.map_or(String::new(), |s| format!(" in {s:.2} s"));
        let end = match (self.state, &self.reason) {
            (State::Finished, Some(reason)) => reason,
            (state, _) => state.name(),
        };
        write!(f, "{}: {differs}: {accuracy}{seconds} ({end})", self.name)
    }
}

/// How far two configurations are apart: the sum over all settings of the size of the natural logarithm of the
/// ratio of two numbers of one sign, and 1 for everything else that differs. What seed, threads, device,
/// precision and the spacing of checkpoints and reviews are counts as 0.01.
pub fn distance(a: &Settings, b: &Settings) -> f64 {
    let number_of = |value: &Option<toml::Value>| value.as_ref().and_then(number);
    let one = |d: &Difference| apart(&d.key, number_of(&d.from), number_of(&d.to));
    differences(a, b).iter().map(one).sum()
}

/// How far two values of a setting are apart that are not the same.
fn apart(key: &str, from: Option<f64>, to: Option<f64>) -> f64 {
    match key {
        "seed" | "threads" | "device" | "precision" => LIGHT,
        "train.checkpoint_seconds" | "train.review_share" => LIGHT,
        _ => match (from, to) {
            (Some(a), Some(b)) if a * b > 0.0 => (a / b).ln().abs(),
            _ => OTHER,
        },
    }
}

/// What decides which of two runs is nearer to `this`.
fn closeness(this: &Settings, other: &Settings) -> (bool, bool, f64) {
    let differs = |key: &str| this.get(key) != other.get(key);
    (DATA.into_iter().any(differs), differs("recipe"), distance(this, other))
}

fn nearer(a: &(bool, bool, f64), b: &(bool, bool, f64)) -> Ordering {
    (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2))
}

/// Where a line of a configuration stands: its table, how many of that name came before it, and its key.
type Place<'t> = (&'t str, usize, &'t str);

/// The lines of a configuration as the crate writes it, one setting a line. To parse 200 of them takes ten times as long.
fn lines(text: &str) -> impl Iterator<Item = (Place<'_>, &str)> {
    let (mut table, mut number) = ("", 0);
    text.lines().filter_map(move |line| {
        if line.starts_with('[') {
            number = if line == table { number + 1 } else { 0 };
            table = line;
        }
        let (key, value) = line.split_once(" = ")?;
        Some(((table, number, key), value))
    })
}

/// [`closeness`], by lines: to choose the few configurations that are parsed.
fn rough(this: &HashMap<Place<'_>, &str>, other: &str) -> (bool, bool, f64) {
    let mut found = (false, false, 0.0);
    let mut common = 0;
    for (place, value) in lines(other) {
        let own = this.get(&place);
        common += usize::from(own.is_some());
        if own != Some(&value) {
            let (table, _, key) = place;
            let table = table.trim_matches(['[', ']']);
            let dotted = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
            found.0 |= DATA.contains(&dotted.as_str());
            found.1 |= dotted == "recipe";
            found.2 += apart(&dotted, own.and_then(|own| own.parse().ok()), value.parse().ok());
        }
    }
    found.2 += OTHER * this.len().saturating_sub(common) as f64;
    found
}

/// The nearest `count` earlier runs under the root of `folder`, whose configuration is written already. It never fails: a
/// run that cannot be read has nothing to show, and must not keep a new one from starting.
pub fn nearest(folder: &RunFolder, count: usize) -> Vec<Nearest> {
    let Ok(text) = folder.config() else { return Vec::new() };
    let Ok(this) = flatten(&text) else { return Vec::new() };
    if count == 0 {
        return Vec::new();
    }
    let own: HashMap<Place<'_>, &str> = lines(&text).collect();
    let mut others: Vec<_> = history::earlier_paths(folder, LATEST)
        .into_iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(path.join(CONFIG)).ok()?;
            Some((rough(&own, &text), path, text))
        })
        .collect();
    // Stable: of two that are as near, the later one stays first.
    others.sort_by(|a, b| nearer(&a.0, &b.0));
    others.truncate(2 * count);
    let mut exact: Vec<_> = others
        .into_iter()
        .filter_map(|(_, path, text)| {
            let settings = flatten(&text).ok()?;
            Some((closeness(&this, &settings), RunFolder::open(path).ok()?, settings))
        })
        .collect();
    exact.sort_by(|a, b| nearer(&a.0, &b.0));
    exact.truncate(count);
    let show = |(_, folder, settings): &(_, RunFolder, Settings)| {
        ended(folder, differences(settings, &this))
    };
    exact.iter().map(show).collect()
}

/// How the run of a folder ended, by the end of its journal.
fn ended(folder: &RunFolder, differences: Vec<Difference>) -> Nearest {
    let running = folder.is_running();
    let open = if running { State::Running } else { State::Interrupted };
    let name = folder.name();
    let (state, reason, test_acc, seconds) = match metrics::last(&folder.file(METRICS)) {
        Ok(Some(Row::Done(done))) => {
            let state =
                if done.reason == "interrupted" { State::Interrupted } else { State::Finished };
            (state, Some(done.reason), Some(done.test_acc), Some(done.seconds_training))
        }
        Ok(Some(Row::Epoch(epoch))) => (open, None, Some(epoch.test_acc), Some(epoch.seconds)),
        Ok(_) => (open, None, None, None),
        Err(error) => (State::Damaged, Some(error.to_string()), None, None),
    };
    let test_acc = test_acc.filter(|accuracy| accuracy.is_finite());
    Nearest { name, differences, state, reason, test_acc, seconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::metrics::tests::{done, epoch, step};
    use crate::runs::scratch::{self, Scratch};
    use std::path::Path;

    const CONFIG: &str = r#"
        recipe = "digits"
        seed = 0
        [data]
        source = "digits"
        [optimizer]
        rate = 4e-3
        weight_decay = 0.0
        [train]
        batch = 64
    "#;

    fn settings(changes: &[(&str, &str)]) -> Settings {
        flatten(&changed(changes)).unwrap()
    }

    fn changed(changes: &[(&str, &str)]) -> String {
        changes.iter().fold(CONFIG.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        })
    }

    #[test]
    fn numbers_are_apart_by_their_ratio_and_others_by_one() {
        let this = settings(&[]);
        let far = |changes: &[(&str, &str)]| distance(&this, &settings(changes));
        assert_eq!(far(&[]), 0.0);
        assert!((far(&[("4e-3", "2e-3")]) - 2f64.ln()).abs() < 1e-12);
        assert!((far(&[("4e-3", "8e-3"), ("= 64", "= 32")]) - 4f64.ln()).abs() < 1e-12);
        assert_eq!(far(&[("weight_decay = 0.0", "weight_decay = 0.1")]), 1.0);
        assert_eq!(far(&[("weight_decay = 0.0", "")]), 1.0);
        assert_eq!(far(&[("weight_decay = 0.0", "clip_norm = 1.0")]), 2.0);
        assert_eq!(far(&[("seed = 0", "seed = 7")]), 0.01);
        let reversed = distance(&settings(&[("4e-3", "1e-3")]), &this);
        assert_eq!(reversed, far(&[("4e-3", "1e-3")]));
    }

    #[test]
    fn the_same_data_and_recipe_come_first() {
        let this = settings(&[]);
        let near = |changes: &[(&str, &str)]| closeness(&this, &settings(changes));
        let far_rate = near(&[("4e-3", "4e-9"), ("= 64", "= 6400")]);
        let recipe = near(&[("recipe = \"digits\"", "recipe = \"mine\"")]);
        let data = near(&[("source = \"digits\"", "source = \"idx\"")]);
        assert_eq!(nearer(&far_rate, &recipe), Ordering::Less);
        assert_eq!(nearer(&recipe, &data), Ordering::Less);
        assert_eq!(nearer(&near(&[]), &far_rate), Ordering::Less);
    }

    #[test]
    fn lines_say_what_settings_say() {
        let configs = [
            settings_text(&[]),
            settings_text(&[("4e-3", "2e-3"), ("= 64", "= 128")]),
            settings_text(&[
                ("seed = 0", "seed = 7"),
                ("weight_decay = 0.0", "weight_decay = 0.1"),
            ]),
            settings_text(&[("recipe = \"digits\"", "recipe = \"mine\"")]),
            settings_text(&[("source = \"digits\"", "source = \"idx\"\npath = \"there\"")]),
        ];
        for a in &configs {
            let own: HashMap<Place<'_>, &str> = lines(a).collect();
            for b in &configs {
                let exact = closeness(&flatten(a).unwrap(), &flatten(b).unwrap());
                let (data, recipe, far) = rough(&own, b);
                assert_eq!((data, recipe), (exact.0, exact.1), "{a}\n{b}");
                assert!((far - exact.2).abs() < 1e-12, "{a}\n{b}");
            }
        }
    }

    /// As the crate writes it.
    fn settings_text(changes: &[(&str, &str)]) -> String {
        toml::to_string(&toml::from_str::<toml::Table>(&changed(changes)).unwrap()).unwrap()
    }

    fn run(root: &Path, name: &str, config: &str, rows: Vec<Row>) -> RunFolder {
        let folder = scratch::run(root, name, rows);
        folder.write_config(config).unwrap();
        folder
    }

    #[test]
    fn the_nearest_runs_say_what_differed_and_how_they_ended() {
        let scratch = Scratch::new();
        let root = scratch.path();
        let rate = changed(&[("4e-3", "2e-3"), ("= 64", "= 128")]);
        let trace: Vec<Row> = (1..3000).map(|n| step(n, 1.0).into()).collect();
        let mut rows = vec![epoch(1, 10, 0.9).into()];
        rows.extend(trace);
        rows.push(done(20, 0.975).into());
        drop(run(root, "digits-20260101-000001", &rate, rows));
        drop(run(root, "digits-20260101-000002", CONFIG, vec![epoch(1, 10, 0.9).into()]));
        drop(run(root, "digits-20260101-000003", CONFIG, vec![]));
        drop(run(root, "digits-20260101-000004", "not = = toml", vec![]));
        let many =
            changed(&[("4e-3", "1e3"), ("weight_decay = 0.0", "a = 1\nb = 2\nc = 3\nd = 4")]);
        drop(run(root, "digits-20260101-000005", &many, vec![done(20, f64::NAN).into()]));
        let new = run(root, "digits-20260101-000006", CONFIG, vec![]);
        drop(run(root, "digits-20260101-000007", CONFIG, vec![]));

        let lines: Vec<String> = nearest(&new, 9).iter().map(Nearest::to_string).collect();
        let expected = [
            "digits-20260101-000003: same configuration: not reviewed (interrupted)",
            "digits-20260101-000002: same configuration: 90.00 % in 0.10 s (interrupted)",
            "digits-20260101-000001: lr 0.002 -> 0.004, batch 128 -> 64: 97.50 % in 0.20 s (target)",
            "digits-20260101-000005: a 1 -> none, b 2 -> none, c 3 -> none, d 4 -> none and 2 more: \
             not reviewed in 0.20 s (target)",
        ];
        assert_eq!(lines, expected);
        assert_eq!(nearest(&new, 2).len(), 2);
        std::fs::write(root.join("digits-20260101-000001/metrics.jsonl"), "?\n").unwrap();
        assert_eq!(nearest(&new, 3)[2].state, State::Damaged);
    }

    /// Prints how long it takes with 200 runs; a measurement, for a machine that does nothing else.
    #[test]
    #[ignore = "a measurement"]
    fn two_hundred_runs() {
        let scratch = Scratch::new();
        // As long as that of the recipe.
        let layers: String = (0..5)
            .map(|n| format!("[[model.layers]]\nkind = \"linear\"\nname = \"fc{n}\"\noutputs = 256\nactivation = \"relu\"\nbias = true\n"))
            .collect();
        let more = "accumulate = 1\nepochs = 40\nlabel_smoothing = 0.05\nreview_share = 0.1\ncheckpoint_seconds = 30.0\n";
        let config = &format!("{}{more}{layers}", changed(&[("4e-3", "0.004")]));
        for n in 0..200 {
            let name = format!("digits-20260101-{:06}", n + 1);
            let rate = config.replace("0.004", &format!("0.{:03}", n + 1));
            let trace = (1..1000).map(|n| step(n, 1.0).into());
            drop(run(scratch.path(), &name, &rate, trace.chain([done(20, 0.9).into()]).collect()));
        }
        let new = run(scratch.path(), "digits-20270101-000000", config, vec![]);
        for _ in 0..5 {
            let began = std::time::Instant::now();
            assert_eq!(nearest(&new, 3).len(), 3);
            println!("{:.3} ms", began.elapsed().as_secs_f64() * 1e3);
        }
    }
}
