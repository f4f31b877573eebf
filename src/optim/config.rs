//! The optimizer as a configuration file says it.

use super::{AverageConfig, Schedule};
use crate::error::{Error, Result};
use crate::ops::update::{Decay, Rule};
use serde::{Deserialize, Serialize};

/// Which rule, with which numbers. In a file, a flat table:
///
/// ```toml
/// kind = "adamw"            # or "sgd", "lion"
/// rate = 1e-3               # learning rate
/// weight_decay = 0.01
/// decay = "decoupled"       # or "cautious", "coupled", "none"
/// betas = [0.9, 0.999]      # adamw and lion
/// epsilon = 1e-8            # adamw
/// # momentum = 0.9          # sgd
/// # nesterov = true         # sgd
/// # clip_norm = 1.0         # largest norm of all gradients; none by default
/// # orthogonal_gradient = true # without what would only lengthen or shorten a weight
/// # average = { kind = "ema", decay = 0.99, every = 5 }       # slow weights, which reviews take
/// # average = { kind = "lookahead", alpha = 0.5, every = 6 }  # or these
/// # polar_every = 50          # steps between decays of layers with polar_decay
/// # decay_schedule = { kind = "linear", from = 0.0, to = 1.0 } # share of weight_decay over the run
/// ```
///
/// What is left out has PyTorch's defaults: those of [`OptimizerConfig::adamw`],
/// [`OptimizerConfig::sgd`] and [`OptimizerConfig::lion`]. Unknown keys are errors, and keys that the
/// rule has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct OptimizerConfig {
    /// The rule with its hyperparameters.
    pub rule: Rule,
    /// Learning rate, or its peak where a schedule changes it.
    pub rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// How weights decay.
    pub decay: Decay,
    /// Largest norm of all gradients together; they are scaled down to it. `None`: as they are.
    pub clip_norm: Option<f64>,
    /// Share of the weight decay over the run; `None`: all of it, always.
    pub decay_schedule: Option<Schedule>,
    /// Each gradient loses its part along the weights and is made as long as it was
    /// ([`mod@crate::ops::orthogonal_gradient`]).
    pub orthogonal_gradient: bool,
    /// Slow weights beside those that are trained.
    pub average: Option<AverageConfig>,
    /// Steps between decays along the polar factor ([`super::polar`]), where there are such layers.
    pub polar_every: Option<u64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig::adamw()
    }
}

impl OptimizerConfig {
    /// AdamW: rate 1e-3, betas 0.9 and 0.999, epsilon 1e-8, decoupled decay 0.01.
    pub fn adamw() -> OptimizerConfig {
        OptimizerConfig {
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
            rate: 1e-3,
            weight_decay: 0.01,
            decay: Decay::Decoupled,
            clip_norm: None,
            decay_schedule: None,
            orthogonal_gradient: false,
            average: None,
            polar_every: None,
        }
    }

    /// SGD: rate 1e-3, no momentum, no decay (coupled if set).
    pub fn sgd() -> OptimizerConfig {
        OptimizerConfig {
            rule: Rule::Sgd { momentum: 0.0, nesterov: false },
            rate: 1e-3,
            weight_decay: 0.0,
            decay: Decay::Coupled,
            clip_norm: None,
            decay_schedule: None,
            orthogonal_gradient: false,
            average: None,
            polar_every: None,
        }
    }

    /// Lion: rate 1e-4, betas 0.9 and 0.99, no decay (decoupled if set): the defaults of its paper.
    pub fn lion() -> OptimizerConfig {
        OptimizerConfig {
            rule: Rule::Lion { beta1: 0.9, beta2: 0.99 },
            rate: 1e-4,
            weight_decay: 0.0,
            decay: Decay::Decoupled,
            clip_norm: None,
            decay_schedule: None,
            orthogonal_gradient: false,
            average: None,
            polar_every: None,
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// An [`Error::Config`] that names the first field that cannot be used, and its value.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, problem: String| {
            Err(Error::config(format!("optimizer.{field}"), problem))
        };
        for (field, value) in [("rate", self.rate), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(field, format!("{value} is not 0 or more"));
            }
        }
        if self.decay == Decay::None && self.weight_decay != 0.0 {
            let problem = format!("{} has no effect with decay = \"none\"", self.weight_decay);
            return refuse("weight_decay", problem);
        }
        if let Some(norm) = self.clip_norm
            && !(norm.is_finite() && norm > 0.0)
        {
            return refuse("clip_norm", format!("{norm} is not above 0"));
        }
        if let Some((field, problem)) = self.rule.problem() {
            return refuse(field, problem);
        }
        if let Some(average) = &self.average {
            average.validate()?;
        }
        if self.polar_every == Some(0) {
            return refuse("polar_every", "0 steps: there is at least one".to_owned());
        }
        if let Some(schedule) = &self.decay_schedule {
            schedule.validate_as("optimizer.decay_schedule")?;
            if schedule.momentum().is_some() {
                let problem = "a schedule of the decay has none: it belongs to [schedule]";
                return refuse("decay_schedule.momentum", problem.to_owned());
            }
            if self.weight_decay == 0.0 {
                let problem = "has no effect with weight_decay = 0";
                return refuse("decay_schedule", problem.to_owned());
            }
        }
        Ok(())
    }
}

/// Names of the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    AdamW,
    Sgd,
    Lion,
}

/// The table of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decay: Option<Decay>,
    #[serde(skip_serializing_if = "Option::is_none")]
    betas: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nesterov: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decay_schedule: Option<Schedule>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    orthogonal_gradient: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    average: Option<AverageConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    polar_every: Option<u64>,
}

impl TryFrom<Table> for OptimizerConfig {
    type Error = String;

    fn try_from(table: Table) -> Result<OptimizerConfig, String> {
        let (name, mut config) = match table.kind {
            Kind::AdamW => ("adamw", OptimizerConfig::adamw()),
            Kind::Sgd => ("sgd", OptimizerConfig::sgd()),
            Kind::Lion => ("lion", OptimizerConfig::lion()),
        };
        let given = |field: &'static str, given: bool| given.then_some(field);
        let useless = match &mut config.rule {
            Rule::AdamW { beta1, beta2, epsilon } => {
                [*beta1, *beta2] = table.betas.unwrap_or([*beta1, *beta2]);
                *epsilon = table.epsilon.unwrap_or(*epsilon);
                given("momentum", table.momentum.is_some())
                    .or(given("nesterov", table.nesterov.is_some()))
            }
            Rule::Sgd { momentum, nesterov } => {
                *momentum = table.momentum.unwrap_or(*momentum);
                *nesterov = table.nesterov.unwrap_or(*nesterov);
                given("betas", table.betas.is_some()).or(given("epsilon", table.epsilon.is_some()))
            }
            Rule::Lion { beta1, beta2 } => {
                [*beta1, *beta2] = table.betas.unwrap_or([*beta1, *beta2]);
                given("epsilon", table.epsilon.is_some())
                    .or(given("momentum", table.momentum.is_some()))
                    .or(given("nesterov", table.nesterov.is_some()))
            }
        };
        if let Some(field) = useless {
            return Err(format!("optimizer.{field}: kind = \"{name}\" has no use for it"));
        }
        config.rate = table.rate.unwrap_or(config.rate);
        config.decay = table.decay.unwrap_or(config.decay);
        if config.decay == Decay::None {
            if let Some(weight_decay) = table.weight_decay.filter(|&decay| decay != 0.0) {
                let problem = "has no effect with decay = \"none\"";
                return Err(format!("optimizer.weight_decay: {weight_decay} {problem}"));
            }
            config.weight_decay = 0.0;
        }
        config.weight_decay = table.weight_decay.unwrap_or(config.weight_decay);
        config.clip_norm = table.clip_norm;
        config.decay_schedule = table.decay_schedule;
        config.orthogonal_gradient = table.orthogonal_gradient;
        config.average = table.average;
        config.polar_every = table.polar_every;
        Ok(config)
    }
}

impl From<OptimizerConfig> for Table {
    fn from(config: OptimizerConfig) -> Table {
        let mut table = Table {
            kind: Kind::AdamW,
            rate: Some(config.rate),
            weight_decay: Some(config.weight_decay),
            decay: Some(config.decay),
            betas: None,
            epsilon: None,
            momentum: None,
            nesterov: None,
            clip_norm: config.clip_norm,
            decay_schedule: config.decay_schedule,
            orthogonal_gradient: config.orthogonal_gradient,
            average: config.average,
            polar_every: config.polar_every,
        };
        match config.rule {
            Rule::AdamW { beta1, beta2, epsilon } => {
                table.betas = Some([beta1, beta2]);
                table.epsilon = Some(epsilon);
            }
            Rule::Sgd { momentum, nesterov } => {
                table.kind = Kind::Sgd;
                table.momentum = Some(momentum);
                table.nesterov = Some(nesterov);
            }
            Rule::Lion { beta1, beta2 } => {
                table.kind = Kind::Lion;
                table.betas = Some([beta1, beta2]);
            }
        }
        table
    }
}
