//! Runs in order of any of their figures.

use super::history::Record;
use super::settings::{flatten, number};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All figures of a run that runs can be sorted by:
/// - `test_acc`, `seconds`, `seconds_to_target`, `seconds_total`, `epochs`, `steps`, and `started` (as YYYYmmddHHMMSS);
/// - all numbers of the last review: `test_loss`, `margin`, `contraction` ...; those that are given by layer as their
///   mean (`stable_rank`) and each (`stable_rank.fc1`);
/// - `lr`, the configured learning rate, and every other number of the configuration by its dotted
///   key (`train.batch`).
pub fn figures(record: &Record) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for (key, value) in
        record.config.as_deref().and_then(|text| flatten(text).ok()).unwrap_or_default()
    {
        if let Some(value) = number(&value) {
            if key == "optimizer.rate" {
                figures.insert("lr".to_owned(), value);
            }
            figures.insert(key, value);
        }
    }
    let mut set = |key: &str, value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            figures.insert(key.to_owned(), value);
        }
    };
    if let Some(last) = record.epochs.last() {
        set("train_loss", Some(last.train_loss));
        set("test_loss", Some(last.test_loss));
        set("train_acc", last.train_acc);
        set("margin", Some(last.margin));
        set("samples_per_s", Some(last.samples_per_s));
        set("review_seconds", Some(last.review_seconds));
        for (key, value) in &last.extra {
            set(key, mean(value));
            if let Value::Object(parts) = value {
                parts
                    .iter()
                    .for_each(|(part, value)| set(&format!("{key}.{part}"), value.as_f64()));
            }
        }
    }
    let summary = &record.summary;
    set("test_acc", summary.test_acc);
    set("seconds", Some(summary.seconds));
    set("seconds_to_target", summary.seconds_to_target);
    set("seconds_total", record.done.as_ref().map(|done| done.seconds_total));
    set("epochs", Some(summary.epochs as f64));
    set("steps", Some(summary.step as f64));
    let digits = |date: &String| date.chars().filter(char::is_ascii_digit).collect::<String>();
    set("started", summary.started.as_ref().and_then(|date| digits(date).parse().ok()));
    figures
}

/// A number, or the mean of numbers that are given by layer.
pub fn mean(value: &Value) -> Option<f64> {
    let numbers: Vec<f64> = match value {
        Value::Array(values) => values.iter().filter_map(Value::as_f64).collect(),
        Value::Object(values) => values.values().filter_map(Value::as_f64).collect(),
        value => return value.as_f64(),
    };
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// The runs by a figure, the smallest first, or the largest first where `reverse` is set; with that figure. Runs that have none
/// come last, in the order in which they were given.
///
/// # Errors
/// None of the runs has such a figure: the error names those that there are.
pub fn sorted(
    runs: Vec<Record>,
    metric: &str,
    reverse: bool,
) -> Result<Vec<(Record, Option<f64>)>> {
    let mut known = BTreeSet::new();
    let mut found: Vec<(Record, Option<f64>)> = runs
        .into_iter()
        .map(|record| {
            let figures = figures(&record);
            let value = figures.get(metric).copied();
            known.extend(figures.into_keys());
            (record, value)
        })
        .collect();
    // Known even where no run has come so far.
    let always = ["test_acc", "seconds", "seconds_to_target", "started", "steps", "lr"];
    if !known.contains(metric) && !always.contains(&metric) {
        known.extend(always.map(str::to_owned));
        let known: Vec<String> = known.into_iter().collect();
        let problem = format!("no run has '{metric}'; there are {}", known.join(", "));
        return Err(Error::config("--sort", problem));
    }
    found.sort_by(|(_, a), (_, b)| match (a, b) {
        (Some(a), Some(b)) if reverse => b.total_cmp(a),
        (Some(a), Some(b)) => a.total_cmp(b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::folder::RunFolder;
    use crate::runs::metrics::Journal;
    use crate::runs::metrics::tests::{done, epoch};
    use crate::runs::scratch::Scratch;
    use serde_json::json;

    fn record(scratch: &Scratch, rate: &str, accuracy: Option<f64>, rank: Value) -> Record {
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        folder.write_config(&format!("[optimizer]\nrate = {rate}\n[train]\nbatch = 64\n")).unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        if let Some(accuracy) = accuracy {
            let mut review = epoch(1, 10, accuracy);
            review.extra.insert("stable_rank".into(), rank);
            review.extra.insert("advice".into(), json!("keep going"));
            journal.append(review).unwrap();
            journal.append(done(10, accuracy)).unwrap();
        }
        Record::load(&folder).unwrap()
    }

    #[test]
    fn runs_are_sorted_by_any_figure_and_those_without_come_last() {
        let scratch = Scratch::new();
        let runs = || {
            vec![
                record(&scratch, "0.1", None, json!(null)),
                record(&scratch, "0.2", Some(0.9), json!({ "fc1": 8.0, "out": 2.0 })),
                record(&scratch, "0.3", Some(0.8), json!([2.0, 4.0])),
            ]
        };
        let order = |metric: &str, reverse| -> Vec<(f64, Option<f64>)> {
            let sorted = sorted(runs(), metric, reverse).unwrap();
            sorted.into_iter().map(|(record, value)| (figures(&record)["lr"], value)).collect()
        };
        assert_eq!(order("test_acc", false), [(0.3, Some(0.8)), (0.2, Some(0.9)), (0.1, None)]);
        assert_eq!(order("test_acc", true), [(0.2, Some(0.9)), (0.3, Some(0.8)), (0.1, None)]);
        assert_eq!(order("stable_rank", false)[0], (0.3, Some(3.0)));
        assert_eq!(order("stable_rank.fc1", false)[0], (0.2, Some(8.0)));
        assert_eq!(order("lr", true)[0].0, 0.3);
        assert_eq!(order("train.batch", true)[0], (0.1, Some(64.0)));
        assert!(order("started", false)[0].1.is_some_and(|date| date > 2e13));
        let text = sorted(runs(), "contraction", false).unwrap_err().to_string();
        for part in
            ["--sort", "'contraction'", "stable_rank.fc1", "train.batch", "seconds_to_target"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(sorted(Vec::new(), "seconds", false).unwrap().is_empty());
    }
}
