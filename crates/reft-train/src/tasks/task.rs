//! The interface between a run and a kind of work.

use crate::{
    adapter::TaskConfig, error::RunError, eval::Answer, objective::Objective, recipe::Recipe, score::Score,
    trainer::TrainOutcome,
};
use burn::tensor::backend::Backend;
use reft_core::Head;
use reft_models::{Dtype, Footprint, LoadedModel, Pretrained, Tokenizer, peft::PeftNames};

/// One kind of work: how rows become examples, what is optimized, and how the result is evaluated.
///
/// A run calls the methods in the order in which they are listed here.
pub trait Task<B: Backend>: Sized {
    /// The kind of model that the task trains on.
    type Model: Pretrained<B>;
    /// One training row.
    type Example;
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
        config: &<Self::Model as Pretrained<B>>::Config,
        tokenizer: &Tokenizer,
    ) -> Result<DataSets<Self::Example>, RunError>;

    /// The labels of a classifier, for display.
    fn labels(&self) -> Option<&[String]> {
        None
    }

    /// Number of parameters of the head.
    fn num_head_params(&self, _config: &<Self::Model as Pretrained<B>>::Config) -> usize {
        0
    }

    /// Number of labels of an example whose logits over a vocabulary of the returned size are computed; none for classifiers.
    fn logits(
        &self,
        _config: &<Self::Model as Pretrained<B>>::Config,
    ) -> Option<(usize, fn(&Self::Example) -> usize)> {
        None
    }

    /// Memory of one block in a training pass.
    fn footprint(
        &self,
        config: &<Self::Model as Pretrained<B>>::Config,
        batch: usize,
        seq: usize,
        dtype: Dtype,
    ) -> Footprint;

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
    fn peft_names(&self, config: &<Self::Model as Pretrained<B>>::Config) -> PeftNames;

    /// What the training loop optimizes.
    fn objective<'a>(
        &'a self,
        recipe: &Recipe,
        loaded: &'a LoadedModel<B, Self::Model>,
    ) -> Self::Objective<'a>;

    /// Scores the result of training.
    ///
    /// # Errors
    /// If a row cannot be evaluated.
    fn evaluate_result(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Self::Model>,
        outcome: &TrainOutcome<B>,
    ) -> Result<FinalEvaluation, RunError>;
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
    /// The length at which rows were truncated.
    pub max_length: usize,
}

/// Counts of an encoded set of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataSummary {
    /// `train`, `held out` or the like.
    pub what: &'static str,
    /// Rows.
    pub rows: usize,
    /// Truncated rows.
    pub cut: usize,
    /// Rows dropped because no answer token was left.
    pub dropped: usize,
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
