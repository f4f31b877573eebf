//! What a sweep varies: the file, and the settings that follow from it.

use super::super::config::Config;
use super::super::recipes::recipe;
use crate::error::{Error, Result};
use crate::runs::settings::{element_name, number, plain, short_key};
use crate::runs::time::duration;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Settings of a sweep, at most.
const MOST_POINTS: usize = 10_000;
/// The share of settings that go on, where the file does not say it.
const KEEP: f64 = 1.0 / 3.0;

/// A setting that is tried: values for the keys that vary, and the run that follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Dotted key and value, in the order of the keys.
    pub values: Vec<(String, Value)>,
    /// The whole run with them.
    pub config: Config,
}

impl Point {
    /// `lr 0.004, batch 64`.
    pub fn label(&self) -> String {
        let value = |(key, value): &(String, Value)| format!("{} {}", short_key(key), plain(value));
        self.values.iter().map(value).collect::<Vec<String>>().join(", ")
    }
}

/// A sweep as its file says it:
///
/// ```toml
/// recipe = "digits"                # or config = "FILE.toml", beside this file
/// [set]                            # fixed settings, where they are not those of the recipe
/// "train.epochs" = 20
/// [vary]
/// "optimizer.rate" = { log = [1e-3, 1e-2], count = 6 }
/// "optimizer.weight_decay" = { linear = [0.0, 0.1], count = 3 }
/// "train.batch" = [32, 64, 128]
/// [sweep]
/// time = "60s"                     # for all of it
/// seeds = 1                        # runs of each setting
/// keep = "1/3"                     # share of the settings that go on to the next rung; 1: all of them, in full
/// whole_runs = false               # true: runs of shorter rungs, too, keep their weights and look at their clocks
/// ```
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The run that is varied.
    pub base: Config,
    /// The settings, in the order of the grid.
    pub points: Vec<Point>,
    /// Seconds for all of it.
    pub seconds: f64,
    /// Runs of each setting, with seeds from that of the base on.
    pub seeds: usize,
    /// Share of the settings that go on to the next rung.
    pub keep: f64,
    /// Whether the runs of all rungs are what they would be by themselves. Else those of rungs before the last keep configuration
    /// and journal only, do not measure their clocks, and are judged by a sample of the test rows where all of them would
    /// take long.
    pub whole_runs: bool,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    set: Table,
    vary: Table,
    #[serde(default)]
    sweep: Limits,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    time: Option<Value>,
    seeds: Option<usize>,
    keep: Option<Value>,
    whole_runs: Option<bool>,
}

impl Sweep {
    /// Reads the file of a sweep; `data` is another place to read the data from, `seconds` another time.
    ///
    /// # Errors
    /// It cannot be read or is not TOML; a key is unknown, to the sweep or to the run; a value cannot be used.
    pub fn read(path: &Path, data: Option<&Path>, seconds: Option<f64>) -> Result<Sweep> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let place = path.display().to_string();
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let place = line.map_or(place.clone(), |line| format!("{place}:{line}"));
            Error::config(place, error.message().to_owned())
        })?;
        let named = |key: &str| format!("{place}: {key}");
        let mut base = match (&file.recipe, &file.config) {
            (Some(name), None) => recipe(name)?,
            (None, Some(config)) => {
                Config::read(&path.parent().unwrap_or(Path::new(".")).join(config))?
            }
            _ => {
                let problem = "name the run that is varied: either `recipe` or `config`";
                return Err(Error::config(place, problem));
            }
        };
        if let Some(data) = data {
            base.data.path = Some(data.to_owned());
        }
        for (key, value) in dotted(&file.set, &Value::is_table) {
            base = with(&base, &key, &value)
                .map_err(|problem| Error::config(named(&format!("set.\"{key}\"")), problem))?;
        }
        let base = base.with_absolute_paths();
        base.validate().map_err(|error| prefixed(error, &place))?;
        let seconds = match (seconds, &file.sweep.time) {
            (Some(seconds), _) => seconds,
            (None, Some(Value::String(text))) => duration(text).ok_or_else(|| {
                let problem = format!("'{text}' is not a time like 30s, 2m or 1h");
                Error::config(named("sweep.time"), problem)
            })?,
            (None, Some(other)) => {
                let problem = format!("{other} is not a time like \"30s\", \"2m\" or \"1h\"");
                return Err(Error::config(named("sweep.time"), problem));
            }
            (None, None) => {
                let problem = "is missing: how long may all of it take? Here, or with --time";
                return Err(Error::config(named("sweep.time"), problem));
            }
        };
        let seeds = file.sweep.seeds.unwrap_or(1);
        if seeds == 0 {
            return Err(Error::config(
                named("sweep.seeds"),
                "0 seeds: a setting has one run at least",
            ));
        }
        let keep = match &file.sweep.keep {
            Some(value) => share(value).ok_or_else(|| {
                let problem = format!("{value} is not a share above 0 and up to 1, like \"1/3\"");
                Error::config(named("sweep.keep"), problem)
            })?,
            None => KEEP,
        };
        let points = grid(&base, &file.vary, &place)?;
        let whole_runs = file.sweep.whole_runs.unwrap_or(false);
        Ok(Sweep { base, points, seconds, seeds, keep, whole_runs })
    }

    /// The sweep as a file that [`Sweep::read`] takes, beside a file `base` with the configuration that is varied: all values are
    /// listed.
    pub fn to_toml(&self, base: &str) -> String {
        let mut vary = Table::new();
        for (column, (key, _)) in self.points[0].values.iter().enumerate() {
            let mut values: Vec<Value> = Vec::new();
            for point in &self.points {
                let value = &point.values[column].1;
                if !values.contains(value) {
                    values.push(value.clone());
                }
            }
            vary.insert(key.clone(), Value::Array(values));
        }
        let sweep = Limits {
            time: Some(Value::String(format!("{}s", self.seconds))),
            seeds: Some(self.seeds),
            keep: Some(Value::Float(self.keep)),
            whole_runs: Some(self.whole_runs),
        };
        let file = File { config: Some(base.into()), vary, sweep, ..File::default() };
        toml::to_string(&file).unwrap_or_else(|e| panic!("a sweep is always TOML: {e}"))
    }
}

/// `1/3`, 0.5 or 1.
fn share(value: &Value) -> Option<f64> {
    let share = match value {
        Value::String(text) => match text.split_once('/') {
            Some((a, b)) => a.trim().parse::<f64>().ok()? / b.trim().parse::<f64>().ok()?,
            None => text.parse().ok()?,
        },
        value => number(value)?,
    };
    (share > 0.0 && share <= 1.0).then_some(share)
}

/// A table of tables as dotted keys, down to where `inner` is not met.
fn dotted(table: &Table, inner: &dyn Fn(&Value) -> bool) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(within) if inner(value) => {
                let deeper = dotted(within, inner);
                found.extend(
                    deeper.into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)),
                );
            }
            value => found.push((key.clone(), value.clone())),
        }
    }
    found
}

/// Whether a table says what a key takes, and is not one of keys.
fn is_range(value: &Value) -> bool {
    let says =
        |table: &Table| ["log", "linear", "count"].iter().any(|key| table.contains_key(*key));
    value.as_table().is_some_and(says)
}

/// All settings: every value of each key with every one of the others; the last key changes fastest.
fn grid(base: &Config, vary: &Table, place: &str) -> Result<Vec<Point>> {
    let keys = dotted(vary, &|value| value.is_table() && !is_range(value));
    if keys.is_empty() {
        return Err(Error::config(
            format!("{place}: vary"),
            "nothing varies: name a key and its values",
        ));
    }
    let mut points = vec![Point { values: Vec::new(), config: base.clone() }];
    for (key, range) in keys {
        let named = format!("{place}: vary.\"{key}\"");
        let refused = |problem: String| Error::config(named.clone(), problem);
        if key == "seed" {
            let problem =
                "the runs of each setting have seeds of their own: say how many by sweep.seeds";
            return Err(refused(problem.into()));
        }
        let values = values(&range, &get(base, &key)).map_err(refused)?;
        // A key that the run does not have is found here, and not after the first runs.
        let mut next =
            Vec::with_capacity(points.len().saturating_mul(values.len()).min(MOST_POINTS));
        for point in &points {
            for value in &values {
                if next.len() == MOST_POINTS {
                    return Err(refused(format!("more than {MOST_POINTS} settings")));
                }
                let config = with(&point.config, &key, value).map_err(refused)?;
                let mut values = point.values.clone();
                values.push((key.clone(), value.clone()));
                next.push(Point { values, config });
            }
        }
        points = next;
    }
    for point in &points {
        point
            .config
            .validate()
            .map_err(|error| prefixed(error, &format!("{place}: {}", point.label())))?;
    }
    Ok(points)
}

fn prefixed(error: Error, place: &str) -> Error {
    match error {
        Error::Config { place: key, problem } => Error::config(format!("{place}: {key}"), problem),
        other => other,
    }
}

/// The values of a key: a list, or a range `{ log = [a, b], count = n }` or `{ linear = [a, b], count = n }`. Ranges of a
/// key whose value is a whole number are rounded to such.
fn values(range: &Value, current: &Option<Value>) -> Result<Vec<Value>, String> {
    let found = match range {
        Value::Array(values) => values.clone(),
        Value::Table(table) => span(table, matches!(current, Some(Value::Integer(_))))?,
        other => return Err(format!("{other} is neither a list of values nor a range")),
    };
    let mut values: Vec<Value> = Vec::new();
    for value in found {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    if values.is_empty() { Err("it has no values".into()) } else { Ok(values) }
}

fn span(table: &Table, whole: bool) -> Result<Vec<Value>, String> {
    let unknown = |key: &&String| !["log", "linear", "count"].contains(&key.as_str());
    if let Some(key) = table.keys().find(unknown) {
        return Err(format!(
            "'{key}' is not known here: a range has `log` or `linear`, and `count`"
        ));
    }
    let (ends, is_log) = match (table.get("log"), table.get("linear")) {
        (Some(ends), None) => (ends, true),
        (None, Some(ends)) => (ends, false),
        _ => return Err("a range is either `log` or `linear`".into()),
    };
    let numbers = ends.as_array().map(|ends| ends.iter().filter_map(number).collect::<Vec<f64>>());
    let Some(&[from, to]) = numbers.as_deref() else {
        return Err(format!("{ends} is not a first and a last value"));
    };
    if !(from.is_finite() && to.is_finite()) || (is_log && !(from > 0.0 && to > 0.0)) {
        let kind = if is_log { "numbers above 0" } else { "finite numbers" };
        return Err(format!("{ends}: a range goes between two {kind}"));
    }
    let count = match table.get("count").map(|count| (count, count.as_integer())) {
        Some((_, Some(count))) if (2..=MOST_POINTS as i64).contains(&count) => count as usize,
        Some((count, _)) => {
            return Err(format!("count = {count} is not a number of values from 2 on"));
        }
        None => return Err("`count` is missing: how many values?".into()),
    };
    let value = |n: usize| {
        let share = n as f64 / (count - 1) as f64;
        let exact = match (n, is_log) {
            (0, _) => from,
            (n, _) if n == count - 1 => to,
            (_, true) => four_digits(from * (to / from).powf(share)),
            (_, false) => four_digits(from + share * (to - from)),
        };
        if whole { Value::Integer(exact.round() as i64) } else { Value::Float(exact) }
    };
    Ok((0..count).map(value).collect())
}

/// The number that four digits say, so that a setting can be read and typed again.
fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The value of a dotted key.
fn get(config: &Config, key: &str) -> Option<Value> {
    let mut value = Value::try_from(config).ok()?;
    for part in key.split('.') {
        value = match &value {
            Value::Table(table) => table.get(part)?.clone(),
            Value::Array(values) => {
                let at = (0..values.len()).find(|&at| element_name(values, at) == part)?;
                values[at].clone()
            }
            _ => return None,
        };
    }
    Some(value)
}

/// The configuration with another value of a dotted key.
fn with(config: &Config, key: &str, value: &Value) -> Result<Config, String> {
    let mut whole = Value::try_from(config).map_err(|error| error.to_string())?;
    set(&mut whole, key, value)?;
    whole.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

fn set(within: &mut Value, key: &str, value: &Value) -> Result<(), String> {
    let (part, rest) = key.split_once('.').map_or((key, None), |(part, rest)| (part, Some(rest)));
    let inner = match within {
        Value::Table(table) => match rest {
            // The configuration itself says whether it has such a key.
            None => {
                table.insert(part.to_owned(), value.clone());
                return Ok(());
            }
            Some(_) => table.entry(part.to_owned()).or_insert_with(|| Value::Table(Table::new())),
        },
        Value::Array(values) => {
            let names: Vec<String> = (0..values.len()).map(|at| element_name(values, at)).collect();
            let at = names
                .iter()
                .position(|name| name == part)
                .ok_or_else(|| format!("'{part}' is none of {}", names.join(", ")))?;
            &mut values[at]
        }
        other => return Err(format!("'{part}' cannot lie within {other}")),
    };
    match rest {
        Some(rest) => set(inner, rest, value),
        None => {
            *inner = value.clone();
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "grid_tests.rs"]
mod tests;
