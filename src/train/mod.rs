//! The loop: step, review, budget, checkpoint, resume.
//!
//! [`Trainer`] is a model with its data on a device: it steps and reviews. [`run`] drives one
//! through a configured run in its folder, to its end or across interruptions.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod amx_tests;
mod branch;
mod budget;
mod clocks;
mod closing;
mod config;
mod loop_config;
mod make;
mod observer;
mod profile;
mod range;
mod recipes;
mod run;
mod runner;
pub mod select;
mod shared;
mod state;
pub mod sweep;
mod trainer;

pub use branch::cool;
pub use clocks::measure::{ParameterSums, ProbeFigures, StepFigures, WeightFigures};
pub use closing::examine;
pub use config::{
    ClocksConfig, Config, DataConfig, ModelConfig, NormaliseConfig, Precision, SourceConfig,
};
pub use loop_config::{BatchFrom, LoopConfig, Plateau, RateScale};
pub use observer::{Observer, Outcome, Progress, Reason, Silent, Started};
#[cfg(feature = "cuda")]
pub use profile::gpu_floors;
pub use profile::{StepTimes, cpu_floors, step_times};
pub use range::{RangeOptions, RangePoint, RangeTest, Suggestion, range_test};
pub use recipes::{RECIPES, recipe};
pub use run::{resume, run};
pub use trainer::{Review, TrainOptions, Trainer};
