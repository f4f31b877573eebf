//! The configuration of a run: everything that the flags of the command say, and the model.

use super::loop_config::LoopConfig;
use crate::data::{Label, NormalisationKind, Source};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gemm;
use crate::nn::{LayerConfig, Parameters};
use crate::optim::{Decay, OptimizerConfig, Position, Rates, Schedule};
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
    /// The run that this one branched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchConfig>,
}

/// Where a run branched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchConfig {
    /// Folder of the run whose checkpoint this one began with.
    pub run: String,
    /// The steps that were done there.
    pub step: u64,
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
        let refuse = |key: &str, problem: String| Err(Error::config(key, problem));
        if self.recipe.is_empty() || self.recipe.contains(['/', '\\']) {
            let problem = format!("'{}' cannot name a folder", self.recipe);
            return refuse("recipe", problem);
        }
        // By flags there are larger numbers than a file can say, and the run's own file has to.
        let LoopConfig { batch, epochs, steps, .. } = self.train;
        let numbers = [
            ("seed", Some(self.seed)),
            ("train.batch", u64::try_from(batch).ok()),
            ("train.epochs", epochs),
            ("train.steps", steps),
        ];
        for (key, number) in numbers {
            if let Some(number) = number.filter(|&number| i64::try_from(number).is_err()) {
                return refuse(
                    key,
                    format!("{number} is above {}, the largest number of TOML", i64::MAX),
                );
            }
        }
        for (key, path) in [("data.path", &self.data.path), ("data.test", &self.data.test)] {
            if let Some(path) = path.as_deref().filter(|path| path.to_str().is_none()) {
                let problem = format!("{} is not UTF-8, as a file of TOML is", path.display());
                return refuse(key, problem);
            }
        }
        self.train.validate()?;
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
        for (number, layer) in self.model.layers.iter().enumerate() {
            for (key, factor) in layer.decay_factors() {
                let place = || format!("model.layers[{number}].{key}");
                let decays = self.optimizer.decay != Decay::None || key == "polar_decay";
                if !decays || self.optimizer.weight_decay == 0.0 {
                    let problem = format!("{factor} has no effect without optimizer.weight_decay");
                    return refuse(&place(), problem);
                }
            }
        }
        self.schedule.validate()?;
        if self.schedule.momentum().is_some() && self.optimizer.rule.moments() == 0 {
            let problem = "kind = \"sgd\" has no momentum to cycle: set optimizer.momentum";
            return refuse("schedule.momentum", problem.into());
        }
        self.data.source()?;
        Ok(())
    }

    /// What the schedules say of the step at `position`.
    pub fn rates(&self, position: Position) -> Rates {
        let decay = self.optimizer.decay_schedule;
        Rates {
            rate: self.schedule.rate(self.optimizer.rate, position),
            decay: decay.map_or(1.0, |schedule| schedule.rate(1.0, position)),
            momentum: self.schedule.momentum_at(position),
        }
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
