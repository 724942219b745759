//! Recipes, data, tasks and the training loop for representation finetuning.
//!
//! An application starts with [`LanguageModel`] or [`TextEncoder`], see [`app`]:
//!
//! ```
//! use burn_flex::Flex;
//! use reft_train::{LanguageModel, Trainer, TrainConfig};
//!
//! let model = LanguageModel::<Flex>::load("embedded:tiny", &Default::default())?;
//! let config = TrainConfig::default().with_steps(2);
//! let trained = model.train(&[("the old fox sings\n", "SINGS!")], Trainer::new().with_config(config))?;
//! trained.result.save(std::env::temp_dir().join("loud"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
//! | [`app`] | models for applications: train, load, apply, stream, classify |
//! | [`open`], [`adapter`] | models and adapters from disk; what an adapter stores |
//! | [`adapter_files`], [`same_model`] | the kind of an adapter, also of other programs; whether it belongs to a model |
//! | [`device`], [`selftest`] | the backend, chosen at run time; whether it computes correctly |
//! | [`memory`], [`workload`] | the memory of the machine, and the memory that a run needs |
//! | [`tiny`] | the embedded default model and data |
//! | [`error`] | what can go wrong |
//!
//! This crate prints nothing: a run reports [`run::Event`]s, training reports to an [`Observer`].

pub mod adapter;
pub mod adapter_files;
pub mod app;
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
mod reuse;
pub mod run;
pub mod same_model;
pub mod score;
pub mod selftest;
pub mod tasks;
pub mod tiny;
pub mod train_config;
pub mod trainable;
pub mod trainer;
pub mod workload;

pub use reft_core;
pub use reft_kernels;
pub use reft_models;

pub use app::{
    AnyAdapter, AnyClassifier, AnyEncoder, AnyLanguageModel, LanguageModel, LanguageModelAdapter, Prediction,
    TextClassifier, TextEncoder, Trained, Trainer,
};
pub use data::{DataError, DataSet, Encoding, Example, Row, Template};
pub use device::{Chosen, DeviceError, OnDevice, on_device};
pub use error::RunError;
pub use objective::{Objective, step_gradients};
pub use observer::{Observer, Silent, StepReport, StopReason, TrainError};
pub use recipe::{Recipe, RecipeError};
pub use run::Summary;
pub use score::Score;
pub use tasks::{Classification, LanguageModeling, TaskSpec};
pub use train_config::TrainConfig;
pub use trainable::Trainable;
pub use trainer::{TrainOutcome, train, train_async};
