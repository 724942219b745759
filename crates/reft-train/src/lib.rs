//! Recipes, data, tasks and the training loop for representation finetuning.
//!
//! The route of a batch, from top to bottom:
//!
//! | module | contents |
//! |---|---|
//! | [`recipe`] | everything that defines a run, as TOML |
//! | [`run`] | the stages of a run, from the recipe to the run folder |
//! | [`tasks`] | the kinds of work: language modeling, classification and regression (GLUE) |
//! | [`data`] | files → rows → prompts and answers → tokens → batches |
//! | [`trainer`], [`checkpoint`], [`train_config`], [`observer`] | the training loop, its state, its settings, its reports |
//! | [`objective`], [`gradients`] | loss and gradients of one update |
//! | [`trainable`], [`method`] | what is trained: interventions, a head, or the weights of a baseline |
//! | [`loss`], [`optim`] | negative log-likelihood and cross-entropy; AdamW, schedules, clipping |
//! | [`eval`], [`score`], [`metrics`] | how well it does |
//!
//! And around it:
//!
//! | module | contents |
//! |---|---|
//! | [`open`], [`adapter`] | models and adapters from disk; what an adapter stores |
//! | [`device`], [`selftest`] | the backend, chosen at run time; whether it computes correctly |
//! | [`memory`], [`workload`] | the memory of the machine, and the memory that a run needs |
//! | [`tiny`] | the embedded default model and data |
//! | [`error`] | what can go wrong |
//!
//! This crate prints nothing: a run reports [`run::Event`]s, training reports to an [`Observer`].

pub mod adapter;
pub mod checkpoint;
mod count;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod gradients;
pub mod loss;
pub mod memory;
pub mod method;
pub mod metrics;
pub mod objective;
pub mod observer;
pub mod open;
pub mod optim;
pub mod recipe;
pub mod run;
pub mod score;
pub mod selftest;
pub mod tasks;
pub mod tiny;
pub mod train_config;
pub mod trainable;
pub mod trainer;
pub mod workload;

pub use data::{DataError, DataSet, Example, Template};
pub use device::{Chosen, DeviceError, OnDevice, on_device};
pub use error::RunError;
pub use objective::{Objective, step_gradients};
pub use observer::{Observer, Silent, StopReason, TrainError};
pub use recipe::{Recipe, RecipeError};
pub use run::Summary;
pub use tasks::{Classification, LanguageModeling, TaskSpec};
pub use train_config::TrainConfig;
pub use trainable::Trainable;
pub use trainer::{TrainOutcome, train};
