//! The loop: step, review, budget, checkpoint, resume.
//!
//! [`Trainer`] is a model with its data on a device: it steps and reviews. [`run`] drives one
//! through a configured run in its folder, to its end or across interruptions.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod amx_tests;
mod config;
mod make;
mod measure;
mod probe;
mod recipes;
mod run;
pub mod select;
mod spectra;
mod state;
mod telemetry;
mod trainer;
mod watch;

pub use config::{
    ClocksConfig, Config, DataConfig, LoopConfig, ModelConfig, NormaliseConfig, Precision,
    SourceConfig,
};
pub use measure::{ParameterSums, ProbeFigures, StepFigures, WeightFigures};
pub use recipes::{RECIPES, recipe};
pub use run::{Observer, Outcome, Progress, Reason, Silent, Started, resume, run};
pub use trainer::{Review, TrainOptions, Trainer};
