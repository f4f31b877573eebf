//! The loop: step, review, budget, checkpoint, resume.
//!
//! [`Trainer`] is a model with its data on a device: it steps and reviews. [`run`] drives one
//! through a configured run in its folder, to its end or across interruptions.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod amx_tests;
mod closing;
mod config;
mod make;
mod measure;
mod profile;
mod recipes;
mod run;
pub mod select;
mod state;
mod trainer;
mod watch;

pub use closing::examine;
pub use config::{
    Config, DataConfig, LoopConfig, ModelConfig, NormaliseConfig, Precision, SourceConfig,
};
pub use measure::{ParameterSums, ProbeFigures, StepFigures, WeightFigures};
#[cfg(feature = "cuda")]
pub use profile::gpu_floors;
pub use profile::{StepTimes, cpu_floors, step_times};
pub use recipes::{RECIPES, recipe};
pub use run::{Observer, Outcome, Progress, Reason, Silent, Started, resume, run};
pub use trainer::{Review, TrainOptions, Trainer};
