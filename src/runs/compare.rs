//! Several runs side by side in one page: curves, clocks, what differs, how they ended.

use super::clocks::{Clocks, Reached};
use super::history::{Record, State};
use super::metrics::Epoch;
use super::page::{Chart, Line, Page, Scale};
use super::plot::{short, trimmed};
use super::rank::mean;
use super::settings::{Settings, flatten, plain, same, short_key};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Colours and strokes that a page tells apart.
const CLASSES: [&str; 12] = [
    "s0", "s1", "s2", "s4", "s5", "s3", "s0 dash", "s1 dash", "s2 dash", "s4 dash", "s5 dash",
    "s3 dash",
];

/// A setting that is not the same in all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its dotted key.
    pub key: String,
    /// Its value in each run, where it is set there.
    pub values: Vec<Option<toml::Value>>,
}

/// When each run first reached a level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hitting {
    /// `fit` or `simple`.
    pub clock: String,
    /// The level.
    pub level: f64,
    /// Step and seconds of training in each run, where it reached the level.
    pub times: Vec<Option<(f64, f64)>>,
}

/// Runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The runs, in the order in which they were named.
    pub runs: Vec<Record>,
    /// Settings that differ.
    pub settings: Vec<Setting>,
    /// First-hitting times of both clocks.
    pub hitting: Vec<Hitting>,
}

impl Comparison {
    /// Puts runs side by side.
    ///
    /// # Errors
    /// Fewer than two runs or more than twelve, one twice, or a configuration that is damaged.
    pub fn new(runs: Vec<Record>) -> Result<Comparison> {
        let place = "runs compare";
        if !(2..=CLASSES.len()).contains(&runs.len()) {
            let problem = format!("{} given: it takes 2 to {}", runs.len(), CLASSES.len());
            return Err(Error::config(place, problem));
        }
        let paths: BTreeSet<_> = runs.iter().map(|run| &run.summary.path).collect();
        if paths.len() < runs.len() {
            return Err(Error::config(place, "a run is named twice"));
        }
        let configuration = |run: &Record| match &run.config {
            Some(text) => flatten(text).map_err(|error| {
                let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
                let line = format!("line {}", 1 + before.matches('\n').count());
                Error::data(run.summary.path.join("config.toml"), line, error.message())
            }),
            None => Ok(Settings::new()),
        };
        let settings: Vec<Settings> = runs.iter().map(configuration).collect::<Result<_>>()?;
        let settings = differing(&settings);
        let hitting = hitting(&runs);
        Ok(Comparison { runs, settings, hitting })
    }

    /// One page that opens without a network.
    pub fn page(&self) -> String {
        let names: Vec<&str> = self.runs.iter().map(|run| run.summary.name.as_str()).collect();
        let mut page = Page::new(&format!("{} runs side by side", names.len()));
        page.paragraph(&names.join(", "));
        let columns: Vec<String> = [""].into_iter().chain(names).map(str::to_owned).collect();
        page.table("How they ended", &columns, &self.ends());
        match self.settings.is_empty() {
            true => page.paragraph("Their configurations are the same."),
            false => page.table("What differs", &columns, &self.setting_rows()),
        }
        page.charts(&self.charts());
        if !self.hitting.is_empty() {
            page.table("When a level was first reached", &columns, &self.hitting_rows());
        }
        page.html()
    }

    /// Ends, settings that differ and hitting times: a label, and a cell for each run.
    pub fn text_rows(&self) -> Vec<Vec<String>> {
        [self.ends(), self.setting_rows(), self.hitting_rows()].concat()
    }

    fn setting_rows(&self) -> Vec<Vec<String>> {
        let value = |value: &Option<toml::Value>| value.as_ref().map_or("–".into(), plain);
        let row = |setting: &Setting| {
            let label = short_key(&setting.key).to_owned();
            [label].into_iter().chain(setting.values.iter().map(value)).collect()
        };
        self.settings.iter().map(row).collect()
    }

    fn ends(&self) -> Vec<Vec<String>> {
        let row = |label: &str, cell: &dyn Fn(&Record) -> String| -> Vec<String> {
            [label.to_owned()].into_iter().chain(self.runs.iter().map(cell)).collect()
        };
        let seconds = |seconds: f64| format!("{} s", short(seconds));
        let end = |run: &Record| match (run.summary.state, &run.summary.reason) {
            (State::Finished, Some(reason)) => reason.clone(),
            (state, _) => state.name().to_owned(),
        };
        let last = |run: &Record, value: &dyn Fn(&Epoch) -> f64| {
            run.epochs.last().map_or("–".into(), |epoch| short(value(epoch)))
        };
        let mut rows = vec![
            row("end", &end),
            row("test accuracy", &|run| {
                let percent = |share: f64| format!("{} %", trimmed(100.0 * share, 2));
                run.summary.test_acc.map_or("–".into(), percent)
            }),
            row("test loss", &|run| last(run, &|epoch| epoch.test_loss)),
            row("training loss", &|run| last(run, &|epoch| epoch.train_loss)),
            row("training time", &|run| seconds(run.summary.seconds)),
            row("time to target", &|run| run.summary.seconds_to_target.map_or("–".into(), seconds)),
            row("epochs", &|run| run.summary.epochs.to_string()),
            row("steps", &|run| run.summary.step.to_string()),
        ];
        type OfClocks<'a> = &'a dyn Fn(&Clocks) -> Option<String>;
        let said: [(&str, OfClocks<'_>); 5] = [
            ("loss above its floor", &|clocks| clocks.loss.map(|loss| short(loss - clocks.floor))),
            ("C = sum of rate x decay", &|clocks| clocks.contraction.map(short)),
            ("excess rank left", &|clocks| clocks.excess_rank.map(short)),
            ("slow clock to fast one", &|clocks| {
                clocks.ratio.map(|[steps, time]| {
                    format!("{} in steps, {} in time", short(steps), short(time))
                })
            }),
            ("advice", &|clocks| clocks.advice.first().map(|said| said.verdict.clone())),
        ];
        for (label, value) in said {
            let found = |run: &Record| clocks(run).as_ref().and_then(value);
            if self.runs.iter().any(|run| found(run).is_some()) {
                rows.push(row(label, &|run| found(run).unwrap_or("–".into())));
            }
        }
        rows
    }

    fn hitting_rows(&self) -> Vec<Vec<String>> {
        let cell = |time: &Option<(f64, f64)>| match time {
            Some((step, seconds)) => format!("step {}, {} s", short(*step), short(*seconds)),
            None => "–".into(),
        };
        let row = |hitting: &Hitting| {
            let label = format!("{} {}", hitting.clock, short(hitting.level));
            [label].into_iter().chain(hitting.times.iter().map(cell)).collect()
        };
        self.hitting.iter().map(row).collect()
    }

    fn charts(&self) -> Vec<Chart> {
        let reviews = |value: &dyn Fn(&Epoch) -> f64, x: &dyn Fn(&Epoch) -> f64| {
            let points = |run: &Record| run.epochs.iter().map(|e| (x(e), value(e))).collect();
            self.lines(&points)
        };
        let longest = self.runs.iter().map(|run| run.summary.seconds).fold(0.0, f64::max);
        let (unit, factor) = match longest {
            s if s >= 7200.0 => ("hours of training", 3600.0),
            s if s >= 300.0 => ("minutes of training", 60.0),
            _ => ("seconds of training", 1.0),
        };
        let time = |epoch: &Epoch| epoch.seconds / factor;
        let step = |epoch: &Epoch| epoch.step as f64;
        let chart = |title: &str, y_label: &str, x_label: &str, scale, lines| {
            let (title, y_label, x_label) = (title.into(), y_label.into(), x_label.into());
            Chart { title, y_label, x_label, scale, lines }
        };
        let mut charts = Vec::new();
        for (x_label, x) in [(unit, &time as &dyn Fn(&Epoch) -> f64), ("steps", &step)] {
            let lines = reviews(&|e| e.test_acc, x);
            charts.push(chart(
                "Test accuracy",
                "log scale of the error",
                x_label,
                Scale::Share,
                lines,
            ));
            let lines = reviews(&|e| e.train_loss, x);
            charts.push(chart("Training loss", "nats, log scale", x_label, Scale::Log, lines));
            let lines = reviews(&|e| e.test_loss, x);
            charts.push(chart("Test loss", "nats, log scale", x_label, Scale::Log, lines));
        }
        // The fit clock has its margin, whatever else there is.
        if self.runs.iter().flat_map(|run| &run.epochs).any(|epoch| epoch.margin.is_finite()) {
            let lines = reviews(&|e| e.margin, &time);
            charts.push(chart("Margin", "mean logit margin, test", unit, Scale::Linear, lines));
        }
        for key in self.shared_figures() {
            let value = |epoch: &Epoch| epoch.extra.get(&key).and_then(mean).unwrap_or(f64::NAN);
            let by_layer = |epoch: &Epoch| epoch.extra.get(&key).is_some_and(|v| !v.is_number());
            let all = || self.runs.iter().flat_map(|run| &run.epochs);
            let y_label = if all().any(by_layer) { "mean over layers" } else { "" };
            let lines = reviews(&value, &time);
            let title = key.replace('_', " ");
            charts.push(chart(&capital(&title), y_label, unit, Scale::Linear, lines));
        }
        charts
    }

    /// A line for each run, in its colour; a run without points has none.
    fn lines(&self, points: &dyn Fn(&Record) -> Vec<(f64, f64)>) -> Vec<Line> {
        let line = |(number, run): (usize, &Record)| {
            let line = Line::new(&run.summary.name, 0, points(run));
            Line { class: CLASSES[number], ..line }
        };
        let lines = self.runs.iter().enumerate().map(line);
        lines.filter(|line| !line.points.is_empty()).collect()
    }

    /// Further figures of the reviews that two runs have at least.
    fn shared_figures(&self) -> Vec<String> {
        let mut count = BTreeMap::new();
        for run in &self.runs {
            let figures = |epoch: &'_ Epoch| -> Vec<String> {
                let numeric = epoch.extra.iter().filter(|(_, value)| mean(value).is_some());
                // How many rows a review looked at is no curve.
                let numeric = numeric.filter(|(key, _)| *key != "test_rows");
                numeric.map(|(key, _)| key.clone()).collect()
            };
            let keys: BTreeSet<String> = run.epochs.iter().flat_map(figures).collect();
            keys.into_iter().for_each(|key| *count.entry(key).or_insert(0) += 1);
        }
        count.into_iter().filter(|(_, runs)| *runs >= 2).map(|(key, _)| key).collect()
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// What a run found of its clocks, if it came to its end.
fn clocks(run: &Record) -> Option<Clocks> {
    run.done.as_ref().and_then(Clocks::of)
}

/// The settings that are not the same in all runs.
fn differing(runs: &[Settings]) -> Vec<Setting> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(Settings::keys).collect();
    let values = |key: &str| -> Vec<Option<toml::Value>> {
        runs.iter().map(|settings| settings.get(key).cloned()).collect()
    };
    let differs = |values: &[Option<toml::Value>]| {
        values.windows(2).any(|pair| match (&pair[0], &pair[1]) {
            (Some(a), Some(b)) => !same(a, b),
            (a, b) => a.is_some() != b.is_some(),
        })
    };
    keys.into_iter()
        .map(|key| Setting { key: key.clone(), values: values(key) })
        .filter(|setting| differs(&setting.values))
        .collect()
}

/// First-hitting times by clock, and by level, the easiest first.
fn hitting(runs: &[Record]) -> Vec<Hitting> {
    let mut found: Vec<Hitting> = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let clocks = clocks(run).unwrap_or_default();
        for (clock, reached) in [("fit", clocks.fit), ("simple", clocks.simple)] {
            for Reached { level, step, seconds } in reached {
                let known = |h: &Hitting| h.clock == clock && h.level == level;
                let at = found.iter().position(known).unwrap_or_else(|| {
                    let times = vec![None; runs.len()];
                    found.push(Hitting { clock: clock.to_owned(), level, times });
                    found.len() - 1
                });
                found[at].times[number] = Some((step, seconds));
            }
        }
    }
    found.sort_by(|a, b| a.clock.cmp(&b.clock).then(b.level.total_cmp(&a.level)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::folder::RunFolder;
    use crate::runs::metrics::Journal;
    use crate::runs::metrics::tests::{done, epoch};
    use crate::runs::scratch::Scratch;
    use serde_json::{Value, json};

    fn record(scratch: &Scratch, recipe: &str, config: &str, rank: Value) -> Record {
        let folder = RunFolder::create(scratch.path(), recipe).unwrap();
        folder.write_config(config).unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        for n in 1..4 {
            let mut review = epoch(n, 10 * n, 0.9 + 0.01 * n as f64);
            review.extra.insert("stable_rank".into(), rank.clone());
            review.extra.insert("advice".into(), json!("keep going"));
            review.extra.insert(format!("only_{recipe}"), json!(1.0));
            journal.append(review).unwrap();
        }
        let mut end = done(30, 0.93);
        let level = |level: f64, step: u64| json!({ "level": level, "step": step, "seconds": 0.5 });
        let fit = [level(0.1, 20), level(1.0, 5)];
        let advice =
            json!([{ "verdict": "keep going", "reason": "", "reviews": 3, "settled": true }]);
        let clocks = json!({ "fit": fit, "simple": [], "ratio": [12.5, 8.0], "advice": advice });
        end.extra.insert("clocks".into(), clocks);
        journal.append(end).unwrap();
        Record::load(&folder).unwrap()
    }

    #[test]
    fn a_damaged_configuration_is_named_with_its_line() {
        let scratch = Scratch::new();
        let a = record(&scratch, "a", "[optimizer]\nrate = 1e-3\n", json!(1.0));
        let b = record(&scratch, "b", "[optimizer]\n\nrate = = 1\n", json!(1.0));
        let error = Comparison::new(vec![a, b]).unwrap_err().to_string();
        assert!(error.contains("config.toml: line 3: ") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn runs_stand_side_by_side() {
        let scratch = Scratch::new();
        let a =
            record(&scratch, "a", "[optimizer]\nrate = 1e-3\n", json!({ "fc1": 8.0, "out": 2.0 }));
        let b = record(&scratch, "b<", "[optimizer]\nrate = 2e-3\nclip_norm = 1\n", json!([4.0]));
        let comparison = Comparison::new(vec![a.clone(), b]).unwrap();
        let keys: Vec<&str> = comparison.settings.iter().map(|s| s.key.as_str()).collect();
        assert_eq!(keys, ["optimizer.clip_norm", "optimizer.rate"]);
        assert_eq!(comparison.settings[0].values[0], None);
        let levels: Vec<(f64, _)> =
            comparison.hitting.iter().map(|h| (h.level, h.times[1])).collect();
        assert_eq!(levels, [(1.0, Some((5.0, 0.5))), (0.1, Some((20.0, 0.5)))]);
        assert_eq!(comparison.shared_figures(), ["stable_rank"]);
        let page = comparison.page();
        for part in [
            "slow clock to fast one",
            "12.5 in steps",
            "keep going",
            "Stable rank",
            "mean over layers",
            "Test loss",
            "What differs",
            "clip_norm",
            "When a level",
            "fit 0.1",
            "seconds of training",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        assert!(!page.contains("Only a") && page.contains("b-") && !page.contains("<script"));
        assert!(page.contains("default-src 'none'"));

        let same = record(&scratch, "c", "[optimizer]\nrate = 1e-3\n", json!(1.0));
        let page = Comparison::new(vec![a.clone(), same]).unwrap().page();
        assert!(page.contains("configurations are the same"));
        let text = Comparison::new(vec![a.clone(), a.clone()]).unwrap_err().to_string();
        assert!(text.contains("twice"), "{text}");
        assert!(Comparison::new(vec![a]).unwrap_err().to_string().contains("1 given"));
    }
}
