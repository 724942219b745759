//! Data, training loop and run folders for representation finetuning: recipe → batches → steps → files.
//!
//! | module | what it holds |
//! |---|---|
//! | [`recipe`] | everything that fixes a run, as TOML |
//! | [`data`], [`table`] | JSON, CSV and TSV rows → prompts and answers → tokens → batches |
//! | [`loss`] | negative log-likelihood of answers, and its gradient |
//! | [`task`], [`classify`], [`metrics`] | classification and regression: GLUE's tasks and one's own |
//! | [`learned`] | everything that training changes, and its files |
//! | [`optim`] | learning-rate schedule, gradient clipping |
//! | [`trainer`], [`tape`] | the training loop, and the backward passes of one update |
//! | [`eval`] | likelihood and exact match of a data set |
//! | [`run`] | recipe → run folder, with everything in between |
//! | [`plan`] | what a run needs of a device's memory |
//! | [`device`] | the backend, chosen at run time |
//! | [`selftest`] | whether a device computes what it should |
//! | [`tiny`] | the embedded default model and data |
//!
//! The library prints nothing; it tells an [`trainer::Observer`] what happens. Only the `reft` program prints.

pub mod classify;
pub mod data;
pub mod device;
pub mod eval;
pub mod learned;
pub mod loss;
pub mod metrics;
pub mod optim;
pub mod plan;
pub mod recipe;
pub mod run;
pub mod selftest;
pub mod table;
pub mod tape;
pub mod task;
pub mod tiny;
pub mod trainer;

mod memory;

pub use data::{DataError, DataSet, Example, Template};
pub use device::{Chosen, DeviceError, OnDevice, on_device};
pub use learned::Learned;
pub use loss::LanguageModelling;
pub use recipe::{Recipe, RecipeError};
pub use run::{RunError, Summary};
pub use task::Task;
pub use trainer::{Objective, Observer, StepReport, Stop, TrainConfig, TrainError};
