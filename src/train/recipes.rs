//! Recipes: runs that are configured already.

use super::config::Config;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// Names of the recipes.
pub const RECIPES: &[&str] = &["digits", "mnist"];

/// The configuration of a recipe.
///
/// # Errors
/// There is no recipe of that name.
pub fn recipe(name: &str) -> Result<Config> {
    let text = match name {
        "digits" => DIGITS,
        "mnist" => MNIST,
        _ => {
            let known = RECIPES.join(", ");
            let problem = format!("'{name}' is neither a recipe ({known}) nor a .toml file");
            return Err(Error::config("recipe", problem));
        }
    };
    let mut config: Config = toml::from_str(text)
        .unwrap_or_else(|e| panic!("the embedded recipe '{name}' does not parse: {e}"));
    if name == "mnist" {
        config.data.path = Some(data_root().join("mnist"));
    }
    Ok(config)
}

/// Where data sets are kept: `$TWOCLOCKS_DATA`, or `.cache/twoclocks` in the home directory.
fn data_root() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    variable("TWOCLOCKS_DATA").map(PathBuf::from).unwrap_or_else(|| {
        let home = variable("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        home.join(".cache").join("twoclocks")
    })
}

const DIGITS: &str = r#"
recipe = "digits"

[data]
source = "digits"
normalise = "global"

[model]
layers = [
    { kind = "flatten" },
    { kind = "linear", name = "fc1", outputs = 256, activation = "relu" },
    { kind = "dropout", p = 0.2 },
    { kind = "linear", name = "fc2", outputs = 128, activation = "relu" },
    { kind = "linear", name = "out", outputs = 10 },
]

[optimizer]
kind = "adamw"
rate = 4e-3
weight_decay = 0.05

[schedule]
kind = "one_cycle"

[train]
batch = 64
epochs = 40
label_smoothing = 0.05
"#;

/// One epoch: found by trying what gives the best mean accuracy of some ten seeds after 420 steps, checked with others. It takes
/// pixels without their common part, a short rise and a straight way down to 0, moments of short memory and smoothed labels.
/// Of the seeds 100 to 139 and 200 to 239, by which these were not chosen, 78 of 80 reached 98 % (mean 98.16, deviation 0.08).
const MNIST: &str = r#"
recipe = "mnist"

[data]
source = "idx"
normalise = "centred"

[model]
layers = [
    { kind = "flatten" },
    { kind = "linear", name = "fc1", outputs = 512, activation = "relu", initial = "xavier_normal" },
    { kind = "linear", name = "fc2", outputs = 512, activation = "relu", initial = "xavier_normal" },
    { kind = "linear", name = "out", outputs = 10 },
]

[optimizer]
kind = "adamw"
rate = 2.5e-3
weight_decay = 0.01
betas = [0.8, 0.95]

[schedule]
kind = "one_cycle"
pct_start = 0.1
anneal = "linear"

[train]
batch = 128
epochs = 1
label_smoothing = 0.1
"#;
