//! The interface between a run and a kind of work.

use crate::{
    adapter::TaskConfig,
    data::Tokenized,
    error::RunError,
    eval::Answer,
    objective::Objective,
    observer::StopReason,
    recipe::Recipe,
    score::{Evaluation, Score},
    trainable::Trainable,
};
use reft_core::{Head, Packing, ReftConfig};
use reft_kernels::Kernels;
use reft_models::{Dtype, Footprint, LoadedModel, Pretrained, Tokenizer, peft::PeftNames};

/// The `config.json` of a task's model.
pub type ConfigOf<B, T> = <<T as Task<B>>::Model as Pretrained<B>>::Config;

/// One kind of work: how rows become examples, what is optimized, and how the result is evaluated.
///
/// A run calls the methods in the order in which they are listed here.
pub trait Task<B: Kernels>: Sized {
    /// The kind of model that the task trains on.
    type Model: Pretrained<B>;
    /// One training row.
    type Example: Tokenized;
    /// The loss and its evaluation.
    type Objective<'a>: Objective<B, Example = Self::Example>
    where
        Self: 'a,
        B: 'a;

    /// Reads the data files, and refuses what can be refused without a model.
    ///
    /// # Errors
    /// If the data or the recipe cannot be used.
    fn read(recipe: &Recipe) -> Result<Self, RunError>;

    /// Encodes the rows.
    ///
    /// # Errors
    /// If a row cannot be used; the error names its line.
    fn encode(
        &mut self,
        recipe: &Recipe,
        config: &ConfigOf<B, Self>,
        tokenizer: &Tokenizer,
    ) -> Result<DataSets<Self::Example>, RunError>;

    /// The labels of a classifier, for display.
    fn labels(&self) -> Option<&[String]> {
        None
    }

    /// Number of parameters of the head.
    fn num_head_params(&self, _config: &ConfigOf<B, Self>) -> usize {
        0
    }

    /// Number of logits per label that exist at a time in a slice; 0 for classifiers, whose outputs are few.
    fn n_logits(&self, _config: &ConfigOf<B, Self>) -> usize {
        0
    }

    /// Bytes of the KV cache for one token, for tasks that generate answers.
    fn cache_bytes(&self, _config: &ConfigOf<B, Self>, _dtype: Dtype) -> u64 {
        0
    }

    /// Number of tokens that a training pass without padding computes.
    fn n_packed(&self, examples: &[&Self::Example], _packing: Packing) -> usize {
        examples.iter().map(|example| example.n_tokens()).sum()
    }

    /// Bytes of the states of all training rows that training interventions does not change, if they can be kept.
    fn reusable_bytes(
        &self,
        _config: &ConfigOf<B, Self>,
        _reft: &ReftConfig,
        _examples: &[Self::Example],
    ) -> u64 {
        0
    }

    /// Memory of one block in a training pass.
    fn footprint(&self, config: &ConfigOf<B, Self>, batch: usize, seq: usize, dtype: Dtype) -> Footprint;

    /// A new head, if the task has one.
    fn init_head(
        &self,
        _recipe: &Recipe,
        _loaded: &LoadedModel<B, Self::Model>,
        _device: &B::Device,
    ) -> Option<Head<B>> {
        None
    }

    /// Scores the held-out rows with the frozen model, if that makes sense; also returns generated answers.
    ///
    /// # Errors
    /// If a row cannot be evaluated.
    fn evaluate_base(
        &self,
        _recipe: &Recipe,
        _loaded: &LoadedModel<B, Self::Model>,
        _data: &DataSets<Self::Example>,
    ) -> Result<(Option<Score>, Vec<Answer>), RunError> {
        Ok((None, Vec::new()))
    }

    /// Replaces the choices that the recipe left open.
    fn resolve(&self, recipe: &mut Recipe);

    /// What the adapter stores: the prompt template, and a classifier's task.
    fn metadata(&self) -> (String, Option<TaskConfig>);

    /// PEFT's names for the parts of the model.
    fn peft_names(&self, config: &ConfigOf<B, Self>) -> PeftNames;

    /// What the training loop optimizes.
    fn objective<'a>(
        &'a self,
        recipe: &Recipe,
        loaded: &'a LoadedModel<B, Self::Model>,
    ) -> Self::Objective<'a>;

    /// Scores the trained parameters.
    ///
    /// # Errors
    /// If a row cannot be evaluated.
    fn evaluate_result(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Self::Model>,
        trained: &Trained<B>,
    ) -> Result<FinalEvaluation, RunError>;
}

/// Parameters after training.
#[derive(Debug)]
pub struct Trained<B: Kernels> {
    /// The parameters that are kept.
    pub trainable: Trainable<B>,
    /// Their evaluation on held-out rows, if there are any.
    pub evaluation: Option<Evaluation>,
    /// Why training ended.
    pub ended: StopReason,
}

/// The encoded rows of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSets<E> {
    /// Rows to train on.
    pub train: Vec<E>,
    /// Rows that select the adapter.
    pub held_out: Vec<E>,
    /// Counts of every set, for display.
    pub summaries: Vec<DataSummary>,
    /// What else the user should know about the data, a line each.
    pub notices: Vec<String>,
    /// The length at which rows were truncated.
    pub max_length: usize,
}

/// Counts of an encoded set of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSummary {
    /// `train`, `held out` or the like.
    pub what: &'static str,
    /// Rows.
    pub rows: usize,
    /// Truncated rows.
    pub cut: usize,
    /// Rows dropped because no answer token was left.
    pub dropped: usize,
    /// Rows skipped because they cannot be used.
    pub skipped: usize,
}

/// Scores of a finished run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FinalEvaluation {
    /// The held-out rows; only those that did not select the adapter if the protocol splits them.
    pub after: Option<Score>,
    /// The rows that selected the adapter, if they are others.
    pub selection: Option<Score>,
    /// Further files and their scores.
    pub test: Vec<(String, Score)>,
    /// Generated answers to the held-out rows.
    pub answers: Vec<Answer>,
}
