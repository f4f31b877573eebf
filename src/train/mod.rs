//! The loop: step, review, budget, checkpoint, resume.
//!
//! [`Trainer`] is a model with its data on a device: it steps and reviews. [`run`] drives one
//! through a configured run in its folder, to its end or across interruptions.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod amx_tests;
mod budget;
mod config;
mod make;
mod measure;
mod observer;
mod outlook;
mod recipes;
mod run;
mod runner;
pub mod select;
mod state;
mod trainer;
mod watch;

pub use config::{
    Config, DataConfig, LoopConfig, ModelConfig, NormaliseConfig, Precision, SourceConfig,
};
pub use measure::{ParameterSums, ProbeFigures, StepFigures, WeightFigures};
pub use observer::{Observer, Outcome, Progress, Reason, Silent, Started};
pub use recipes::{RECIPES, recipe};
pub use run::{resume, run};
pub use trainer::{Review, TrainOptions, Trainer};
