//! The configuration of a run: everything that the flags of the command say, and the model.

use crate::data::{Label, NormalisationKind, Source};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gemm;
use crate::nn::{LayerConfig, Parameters};
use crate::optim::{OptimizerConfig, Position, Rates, Schedule};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A run, complete: a recipe or a file of TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the recipe; the run folder is called by it.
    pub recipe: String,
    /// Seed of initialisation, shuffling and dropout.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu` or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// Element type of the arithmetic.
    #[serde(default)]
    pub precision: Precision,
    /// Threads on the CPU; 0 takes as many as there are processors.
    #[serde(default)]
    pub threads: usize,
    /// The data set.
    pub data: DataConfig,
    /// The model.
    pub model: ModelConfig,
    /// The update rule.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Batch, budget, reviews and checkpoints.
    pub train: LoopConfig,
    /// What is measured for the two clocks.
    #[serde(default)]
    pub clocks: ClocksConfig,
}

fn auto() -> String {
    "auto".to_owned()
}

/// Element type of the arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where a measurement at the start finds that the model's products gain from it on this
    /// device, else f32. The run's own configuration says which it was.
    #[default]
    Auto,
    /// IEEE single precision.
    F32,
    /// Single precision by tiles of bf16, where the processor has them; elsewhere as `F32`.
    #[serde(rename = "f32_split")]
    F32Split,
    /// Products of bfloat16 with f32 sums; weights, activations, loss and optimizer are f32.
    Bf16,
}

impl Precision {
    /// The precision of products for a model on a device, in batches of `rows`.
    pub(super) fn resolve(
        self,
        device: &Device,
        rows: usize,
        parameters: &Parameters,
    ) -> gemm::Precision {
        match self {
            Precision::F32 => gemm::Precision::F32,
            Precision::F32Split => gemm::Precision::F32Split,
            Precision::Bf16 => gemm::Precision::Bf16,
            Precision::Auto => {
                let isa = match device {
                    Device::Cpu(cpu) => cpu.isa(),
                    // Not measured there yet.
                    #[cfg(feature = "cuda")]
                    Device::Cuda(_) => return gemm::Precision::F32,
                };
                let multiplied = parameters.infos().iter().filter(|info| info.multiplied);
                let shapes: Vec<[usize; 2]> =
                    multiplied.map(|info| [info.shape.rows(), info.shape.columns()]).collect();
                gemm::choose(isa, rows, &shapes).precision
            }
        }
    }
}

impl From<gemm::Precision> for Precision {
    fn from(precision: gemm::Precision) -> Precision {
        match precision {
            gemm::Precision::F32 => Precision::F32,
            gemm::Precision::F32Split => Precision::F32Split,
            gemm::Precision::Bf16 => Precision::Bf16,
        }
    }
}

/// Where the data set comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Kind of the source.
    pub source: SourceConfig,
    /// Directory of an IDX set, or file (or directory) of a CSV set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// CSV file of the test rows; without it some training rows are set apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Label column of a CSV set: its name, or its number from 0 (negative: from the end).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How inputs are scaled, by statistics of the training rows.
    #[serde(default)]
    pub normalise: NormaliseConfig,
}

/// Kind of a data source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceConfig {
    /// The embedded handwritten digits.
    Digits,
    /// IDX files: MNIST and its look-alikes.
    Idx,
    /// A table of numbers.
    Csv,
}

/// How inputs are scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormaliseConfig {
    /// One mean and deviation for all features.
    #[default]
    Global,
    /// Mean and deviation of each feature.
    PerFeature,
    /// Mean of each feature, one deviation for all.
    Centred,
    /// As they are.
    None,
}

impl From<NormaliseConfig> for NormalisationKind {
    fn from(config: NormaliseConfig) -> Self {
        match config {
            NormaliseConfig::Global => NormalisationKind::Global,
            NormaliseConfig::PerFeature => NormalisationKind::PerFeature,
            NormaliseConfig::Centred => NormalisationKind::Centred,
            NormaliseConfig::None => NormalisationKind::None,
        }
    }
}

/// The model: a list of layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Layers from input to logits.
    pub layers: Vec<LayerConfig>,
}

/// The loop: batch, budget, reviews, checkpoints. The first bound that is met ends the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Rows of a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged for one update.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Share of a label that is spread over all classes.
    #[serde(default)]
    pub label_smoothing: f32,
    /// Epochs at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Updates at most; where they end within an epoch, the run does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Seconds of training at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Test accuracy, 0 to 1, that ends the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_acc: Option<f64>,
    /// Largest share of the training time that reviews may take: epochs go unreviewed beyond it.
    #[serde(default = "review_share")]
    pub review_share: f64,
    /// Seconds between checkpoints.
    #[serde(default = "checkpoint_seconds")]
    pub checkpoint_seconds: f64,
}

fn one() -> usize {
    1
}
fn review_share() -> f64 {
    0.1
}
fn checkpoint_seconds() -> f64 {
    30.0
}

/// What is measured of a run for its two clocks. None of it changes a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClocksConfig {
    /// Whether steps and reviews are measured.
    pub telemetry: bool,
    /// Training rows of the probe batch, at most.
    pub probe_rows: usize,
}

impl Default for ClocksConfig {
    fn default() -> Self {
        ClocksConfig { telemetry: true, probe_rows: 512 }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, has unknown or missing keys, or unusable values; the error
    /// names file, line and value.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Config::parse(&text, &path.display().to_string())
    }

    /// Parses a configuration; `place` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, place: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or(place.to_owned(), |line| format!("{place}:{line}"));
            Error::config(place, error.message().to_owned())
        })?;
        config.validate().map_err(|error| match error {
            Error::Config { place: key, problem } => {
                Error::config(format!("{place}: {key}"), problem)
            }
            other => other,
        })?;
        Ok(config)
    }

    /// The configuration as TOML, as [`Config::parse`] takes it.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| panic!("a configuration is always TOML: {e}"))
    }

    /// Checks every value that can be checked without data.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        let LoopConfig { batch, accumulate, epochs, steps, seconds, target_acc, .. } = self.train;
        let refuse = |key: &str, problem: String| Err(Error::config(key, problem));
        if self.recipe.is_empty() || self.recipe.contains(['/', '\\']) {
            let problem = format!("'{}' cannot name a folder", self.recipe);
            return refuse("recipe", problem);
        }
        if batch == 0 {
            return refuse("train.batch", "0 rows: a batch has at least one".into());
        }
        if accumulate == 0 {
            return refuse("train.accumulate", "0 batches: an update takes at least one".into());
        }
        if epochs.is_none() && steps.is_none() && seconds.is_none() {
            let problem = "none of `epochs`, `steps` and `seconds` bounds the run";
            return refuse("train", problem.into());
        }
        if epochs == Some(0) {
            return refuse("train.epochs", "0 epochs: a run has at least one".into());
        }
        if steps == Some(0) {
            return refuse("train.steps", "0 updates: a run has at least one".into());
        }
        if let Some(seconds) = seconds.filter(|s| !(s.is_finite() && *s > 0.0)) {
            return refuse("train.seconds", format!("{seconds} is not a time above 0"));
        }
        if let Some(target) = target_acc.filter(|t| !(*t > 0.0 && *t <= 1.0)) {
            return refuse("train.target_acc", format!("{target} is not in (0, 1]"));
        }
        if !(0.0..1.0).contains(&self.train.label_smoothing) {
            let problem = format!("{} is not in [0, 1)", self.train.label_smoothing);
            return refuse("train.label_smoothing", problem);
        }
        if !(self.train.review_share > 0.0 && self.train.review_share.is_finite()) {
            let problem = format!("{} is not a share above 0", self.train.review_share);
            return refuse("train.review_share", problem);
        }
        if self.train.checkpoint_seconds.is_nan() || self.train.checkpoint_seconds < 0.0 {
            let problem = format!("{} is not a time", self.train.checkpoint_seconds);
            return refuse("train.checkpoint_seconds", problem);
        }
        if let Some(LayerConfig::Embedding { .. }) = self.model.layers.first()
            && self.data.normalise != NormaliseConfig::None
        {
            let problem = "an `embedding` takes whole numbers: use normalise = \"none\"";
            return refuse("data.normalise", problem.into());
        }
        if self.clocks.probe_rows == 0 {
            return refuse("clocks.probe_rows", "0 rows: a probe looks at one at least".into());
        }
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.data.source()?;
        Ok(())
    }

    /// What the schedules say of the step at `position`.
    pub fn rates(&self, position: Position) -> Rates {
        Rates::from(self.schedule.rate(self.optimizer.rate, position))
    }

    /// The configuration with paths that do not depend on the current directory, so that a run can
    /// be resumed from anywhere.
    #[must_use]
    pub fn with_absolute_paths(&self) -> Config {
        let mut config = self.clone();
        for path in [&mut config.data.path, &mut config.data.test].into_iter().flatten() {
            if let Ok(absolute) = std::path::absolute(&path) {
                *path = absolute;
            }
        }
        config
    }

    /// Opens the device that the configuration names; not for `auto`, which takes a model to choose for.
    pub(super) fn open_device(&self) -> Result<Device> {
        match self.device.as_str() {
            "cpu" => Device::cpu(self.threads),
            cuda if cuda.starts_with("cuda") => open_cuda(cuda),
            other => Err(Error::config("device", format!("'{other}' is not auto, cpu or cuda:N"))),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(name: &str) -> Result<Device> {
    Device::cuda(name)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(name: &str) -> Result<Device> {
    Err(Error::device(name, "this build is without the feature `cuda`: use --device cpu"))
}

impl DataConfig {
    /// A key that is given and that only CSV sets have.
    fn csv_only(&self) -> (&'static str, bool) {
        match self.test {
            Some(_) => ("test", true),
            None => ("label", self.label.is_some()),
        }
    }

    /// The source that the configuration names.
    ///
    /// # Errors
    /// A key is missing that this kind of source needs, or given and of no use to it.
    pub fn source(&self) -> Result<Source> {
        let (kind, useless) = match self.source {
            SourceConfig::Digits => ("digits", [("path", self.path.is_some()), self.csv_only()]),
            SourceConfig::Idx => ("idx", [("path", false), self.csv_only()]),
            SourceConfig::Csv => ("csv", [("path", false), ("test", false)]),
        };
        if let Some((key, _)) = useless.into_iter().find(|(_, given)| *given) {
            let problem = format!("source = \"{kind}\" has no use for it");
            return Err(Error::config(format!("data.{key}"), problem));
        }
        let path = || {
            self.path.clone().ok_or_else(|| {
                Error::config("data.path", "is missing: name the data with --data or in the file")
            })
        };
        Ok(match self.source {
            SourceConfig::Digits => Source::Digits,
            SourceConfig::Idx => Source::Idx(path()?),
            SourceConfig::Csv => {
                let label = self.label.as_deref().map_or(Label::Auto, Label::from);
                Source::Csv { train: path()?, test: self.test.clone(), label }
            }
        })
    }
}
