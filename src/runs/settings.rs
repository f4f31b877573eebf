//! A configuration as flat settings, and what differs between two.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use toml::{Table, Value};

/// Settings by their dotted key: `optimizer.rate`, `model.layers.fc1.outputs`.
pub type Settings = BTreeMap<String, Value>;

/// The settings of a configuration. A table within an array is called by its `name`, where it has one that no
/// other has, else by its place: `model.layers.0.kind`. Lists of numbers are one setting.
///
/// # Errors
/// The text is not TOML.
pub fn flatten(text: &str) -> Result<Settings, toml::de::Error> {
    let mut settings = Settings::new();
    add_table(&mut settings, String::new(), toml::from_str::<Table>(text)?);
    Ok(settings)
}

fn add_table(settings: &mut Settings, prefix: String, table: Table) {
    for (key, value) in table {
        add(settings, join(&prefix, &key), value);
    }
}

fn add(settings: &mut Settings, key: String, value: Value) {
    match value {
        Value::Table(table) => add_table(settings, key, table),
        Value::Array(values) if values.iter().any(Value::is_table) => {
            let names: Vec<String> =
                (0..values.len()).map(|index| element_name(&values, index)).collect();
            for (name, value) in names.into_iter().zip(values) {
                add(settings, join(&key, &name), value);
            }
        }
        value => {
            settings.insert(key, value);
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// What an element of an array of tables is called in a dotted key: its own name, or its place from 0.
pub fn element_name(values: &[Value], index: usize) -> String {
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    match values.get(index).and_then(name) {
        Some(own) if values.iter().filter_map(name).filter(|other| *other == own).count() == 1 => {
            own
        }
        _ => index.to_string(),
    }
}

/// A key as people say it: `optimizer.rate` is `lr`, `train.batch` is `batch`.
pub fn short_key(key: &str) -> &str {
    match key {
        "optimizer.rate" => "lr",
        "optimizer.kind" => "optimizer",
        "schedule.kind" => "schedule",
        "data.source" => "data",
        _ => ["optimizer.", "train.", "model.layers."]
            .iter()
            .find_map(|prefix| key.strip_prefix(prefix))
            .unwrap_or(key),
    }
}

/// A value as people write it: text without quotes, numbers as short as they are.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) if number.abs() < 1e-4 && *number != 0.0 => format!("{number:e}"),
        Value::Float(number) => format!("{number}"),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(plain).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> =
                table.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
            entries.join(" ")
        }
        value => value.to_string(),
    }
}

/// The number that a value is.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(whole) => Some(*whole as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

/// Whether two values say the same: 1 and 1.0 do.
pub fn same(a: &Value, b: &Value) -> bool {
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a == b || (a.is_nan() && b.is_nan()),
        _ => a == b,
    }
}

/// A setting in which two configurations differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its dotted key.
    pub key: String,
    /// Its value in the first one, where it is set there.
    pub from: Option<Value>,
    /// Its value in the second one.
    pub to: Option<Value>,
}

/// `lr 0.004 -> 0.002`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<Value>| value.as_ref().map_or("none".into(), plain);
        write!(f, "{} {} -> {}", short_key(&self.key), value(&self.from), value(&self.to))
    }
}

/// What differs between two configurations, by key.
pub fn differences(from: &Settings, to: &Settings) -> Vec<Difference> {
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let differs = |key: &&String| match (from.get(*key), to.get(*key)) {
        (Some(a), Some(b)) => !same(a, b),
        _ => true,
    };
    let difference = |key: &String| Difference {
        key: key.clone(),
        from: from.get(key).cloned(),
        to: to.get(key).cloned(),
    };
    keys.into_iter().filter(differs).map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        recipe = "digits"
        [model]
        layers = [{ kind = "flatten" }, { kind = "linear", name = "fc1", outputs = 8 },
            { kind = "linear", name = "two" }, { kind = "dropout", name = "two", p = 0.5 }]
        [optimizer]
        rate = 4e-3
        betas = [0.9, 0.98]
        [train]
        batch = 64
    "#;

    #[test]
    fn tables_become_dotted_keys_and_layers_are_called_by_name() {
        let settings = flatten(CONFIG).unwrap();
        let keys: Vec<&str> = settings.keys().map(String::as_str).collect();
        let expected = [
            "model.layers.0.kind",
            "model.layers.2.kind",
            "model.layers.2.name",
            "model.layers.3.kind",
            "model.layers.3.name",
            "model.layers.3.p",
            "model.layers.fc1.kind",
            "model.layers.fc1.name",
            "model.layers.fc1.outputs",
            "optimizer.betas",
            "optimizer.rate",
            "recipe",
            "train.batch",
        ];
        assert_eq!(keys, expected);
        assert!(flatten("a = = 1").is_err());
    }

    #[test]
    fn differences_read_as_people_write_them() {
        let a = flatten(CONFIG).unwrap();
        let other = CONFIG.replace("4e-3", "2e-5").replace("batch = 64", "batch = 64.0\nsteps = 9");
        let b = flatten(&other.replace("0.98", "0.999").replace("outputs = 8", "")).unwrap();
        let lines: Vec<String> = differences(&a, &b).iter().map(Difference::to_string).collect();
        let expected = [
            "fc1.outputs 8 -> none",
            "betas [0.9, 0.98] -> [0.9, 0.999]",
            "lr 0.004 -> 2e-5",
            "steps none -> 9",
        ];
        assert_eq!(lines, expected);
        assert_eq!(differences(&a, &a), []);
    }
}
