//! What a run reports while it is under way, and its result.

use super::plan::Plan;
use crate::{
    eval::Answer,
    method::TrainMethod,
    observer::{StepReport, StopReason},
    score::{Evaluation, Score},
    tasks::DataSummary,
};
use reft_core::BaseModel;
use reft_models::Precision;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model's files are open.
    Model {
        /// Its name.
        base: &'a BaseModel,
        /// Its number of weights.
        weights: usize,
        /// How it will be held.
        precision: Precision,
        /// The device.
        device: &'a str,
    },
    /// The labels of a classifier are known.
    Labels(&'a [String]),
    /// A set of rows is encoded.
    Data {
        /// Its counts.
        summary: &'a DataSummary,
        /// The length at which rows were truncated.
        max_length: usize,
    },
    /// Something that the user should know about the data.
    Notice(&'a str),
    /// Something about the recipe that is probably not meant.
    Warning(&'a str),
    /// The trainable parameters exist.
    Trainable {
        /// What is trained.
        method: TrainMethod,
        /// Number of interventions.
        interventions: usize,
        /// Number of trainable parameters, without the head's.
        parameters: usize,
        /// Number of parameters of the head.
        head: usize,
        /// Number of weights of the model.
        weights: usize,
    },
    /// Rows were scored.
    Score {
        /// `before`, `after` or a file.
        what: &'a str,
        /// The score.
        score: &'a Score,
    },
    /// An update is done.
    Progress {
        /// Updates done.
        step: usize,
        /// Total number of updates.
        total_steps: usize,
    },
    /// A log line.
    Step(&'a StepReport),
    /// Held-out rows were evaluated during training.
    Evaluated {
        /// Updates done.
        step: usize,
        /// The evaluation.
        evaluation: &'a Evaluation,
        /// Whether these parameters are kept.
        best: bool,
    },
}

/// The result of a run, which is also the content of `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What was trained.
    pub method: TrainMethod,
    /// The held-out rows without the adapter, for language models.
    pub before: Option<Score>,
    /// The held-out rows with the adapter; only those that did not select it if `eval.protocol` splits them.
    pub after: Option<Score>,
    /// The rows that selected the adapter, if they are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Score>,
    /// The files of `data.test`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<(String, Score)>,
    /// Number of trainable parameters, without the head's.
    pub trainable: usize,
    /// Their share of the model's weights.
    pub share: f64,
    /// Number of parameters of the head.
    pub head: usize,
    /// Updates done.
    pub steps: usize,
    /// Why training ended.
    pub ended: StopReason,
    /// Seconds of training, including evaluations.
    pub seconds: f64,
    /// Tokens that went through the model during training, without padding.
    pub tokens: usize,
    /// Labels among them: answer tokens, or rows.
    pub label_tokens: usize,
    /// Tokens per second of the updates.
    pub tokens_per_s: f64,
    /// Median seconds per update.
    pub s_per_step_median: f64,
    /// Seconds of every update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step_seconds: Vec<f64>,
    /// Peak memory of the process in MiB, where the operating system reports it.
    pub peak_mb: Option<f64>,
    /// Peak memory added by training in MiB: activations, gradients, optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_mb: Option<f64>,
    /// Memory of the device in MiB, if it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mb: Option<f64>,
    /// Mean loss per label of every update.
    pub losses: Vec<f64>,
    /// The device.
    pub device: String,
    /// The folder of the adapter.
    pub adapter: PathBuf,
}

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// What `summary.json` has.
    pub summary: Summary,
    /// Generated answers to the held-out rows, without and with the adapter.
    pub answers: Vec<(Answer, Answer)>,
}

/// What came of a recipe.
#[derive(Debug)]
pub enum Outcome {
    /// It was run.
    Finished(Box<Finished>),
    /// It was only planned.
    Planned(Box<Plan>),
}
