//! Classifiers: fit, predict, save and load.

use super::trainer::{Trained, Trainer};
use crate::{
    adapter::{AdapterOrigin, save_adapter},
    data::{OnBadRow, Row, max_length},
    error::RunError,
    metrics::argmax,
    open::{attach_classifier, find_model, read_classifier},
    same_model::OtherWeights,
    tasks::{Classification, TaskSpec, initial_head, predict as outputs_of, probabilities},
    trainable::Trainable,
};
use reft_core::{Hook, NoHook, ReftConfig, hook::check_sites};
use reft_kernels::Kernels;
use reft_models::{LoadedModel, ModelConfig, Precision, Roberta, peft::PeftNames, roberta::DropoutRates};
use std::{path::Path, sync::Arc};

/// A frozen encoder of texts: RoBERTa, BERT and their relatives. Clones share it.
#[derive(Debug, Clone)]
pub struct TextEncoder<B: Kernels> {
    loaded: Arc<LoadedModel<B, Roberta<B>>>,
}

/// A trained classifier or regression, with its encoder.
#[derive(Debug, Clone)]
pub struct TextClassifier<B: Kernels> {
    encoder: TextEncoder<B>,
    trainable: Trainable<B>,
    spec: TaskSpec,
}

/// What a classifier says about a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Prediction {
    /// Of a classification.
    Label {
        /// The most likely label.
        label: String,
        /// The probability of every label.
        probabilities: Vec<(String, f64)>,
    },
    /// Of a regression.
    Value(f64),
}

impl Prediction {
    /// The most likely label; `None` for a regression.
    pub fn label(&self) -> Option<&str> {
        match self {
            Prediction::Label { label, .. } => Some(label),
            Prediction::Value(_) => None,
        }
    }
}

impl<B: Kernels> From<LoadedModel<B, Roberta<B>>> for TextEncoder<B> {
    fn from(loaded: LoadedModel<B, Roberta<B>>) -> Self {
        Self { loaded: Arc::new(loaded) }
    }
}

impl<B: Kernels> TextEncoder<B> {
    /// Loads an encoder in f32 by the path of its folder, or, with the feature `hub`, by its name on the Hugging Face Hub. For
    /// another precision, load a [`LoadedModel`] and convert it.
    ///
    /// # Errors
    /// If there is no such model, or it is damaged or not supported.
    pub fn load(name: &str, device: &B::Device) -> Result<Self, RunError> {
        let files = find_model(name, None)?;
        Ok(LoadedModel::load(&files, name, Precision::default(), device)?.into())
    }

    /// The model with its tokenizer.
    pub fn loaded(&self) -> &LoadedModel<B, Roberta<B>> {
        &self.loaded
    }

    /// LoReFT of rank 8 on the outputs of these blocks, at positions `f7+l7`.
    pub fn reft(&self, layers: impl IntoIterator<Item = usize>) -> ReftConfig {
        ReftConfig::new(self.loaded.model.config().hidden_size, layers)
    }

    /// Trains a classifier on pairs of text and label.
    ///
    /// # Errors
    /// If the settings or the pairs cannot be used, or training cannot go on.
    pub fn train(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        trainer: Trainer<'_>,
    ) -> Result<Trained<TextClassifier<B>>, RunError> {
        self.train_rows("classification", &Row::pairs(["text", "label"], pairs), trainer)
    }

    /// Trains on rows; `task` is `classification`, `regression` or one of GLUE's, such as `glue/sst2`.
    ///
    /// # Errors
    /// If there is no such task, the settings or the rows cannot be used, or training cannot go on.
    pub fn train_rows(
        &self,
        task: &str,
        rows: &[Row],
        trainer: Trainer<'_>,
    ) -> Result<Trained<TextClassifier<B>>, RunError> {
        let (loaded, model) = (&self.loaded, &self.loaded.model);
        let (config, device) = (model.config(), model.device());
        let reft = trainer.checked_reft(config)?;
        if rows.is_empty() {
            return Err(RunError::NoRows);
        }
        let spec = TaskSpec::discover(task, None, None, rows)?;
        let max_length = max_length(trainer.max_length, config.context())?;
        let (vocab, strict) = (config.vocab_size, OnBadRow::Error);
        let encode = |rows: &[Row]| spec.encode(rows, &loaded.tokenizer, vocab, max_length, true, strict);
        let (train, held_out) = (encode(rows)?.examples, encode(&trainer.held_out)?.examples);
        let rate = trainer.config.model_dropout;
        let head = initial_head(loaded, &spec, rate, trainer.config.seed, &device);
        let trainable = Trainable { reft: reft.try_init(&device)?, tuned: None, head: Some(head) };
        let origin = self.origin(&spec);
        let objective = Classification {
            model,
            tensors: &loaded.tensors,
            spec: &spec,
            selection_metric: spec.selection_metric(None)?,
            dropout: rate.map_or(config.dropout(), |rate| DropoutRates { hidden: rate, attention: rate }),
            eval_batch_size: trainer.config.batch_size,
            reused: None,
        };
        let objective = objective.with_reuse(&trainer.config, trainable.reft.first_layer(), None);
        let trained =
            trainer.run(origin.base.quant.is_some(), &objective, trainable, &train, &held_out, &origin)?;
        Ok(trained.map(|trainable| TextClassifier { encoder: self.clone(), trainable, spec: spec.clone() }))
    }

    /// Loads a classifier for this encoder, which stays as it is.
    ///
    /// # Errors
    /// If it cannot be read, is not a classifier, or was trained on another model.
    pub fn classifier(&self, folder: impl AsRef<Path>) -> Result<TextClassifier<B>, RunError> {
        self.load_classifier(folder.as_ref(), OtherWeights::Refuse)
    }

    /// Loads a classifier of an encoder with other weights, whose quality with this one is unknown. Its sizes must fit.
    ///
    /// # Errors
    /// If it cannot be read, is not a classifier, or does not fit the sizes of this encoder.
    pub fn classifier_of_other_weights(
        &self,
        folder: impl AsRef<Path>,
    ) -> Result<TextClassifier<B>, RunError> {
        self.load_classifier(folder.as_ref(), OtherWeights::Warn)
    }

    fn load_classifier(
        &self,
        folder: &Path,
        other_weights: OtherWeights,
    ) -> Result<TextClassifier<B>, RunError> {
        let device = self.loaded.model.device();
        let saved = read_classifier::<B>(folder, &device)?;
        let (trainable, spec, _) = attach_classifier(folder, saved, &self.loaded, other_weights, &device)?;
        Ok(TextClassifier { encoder: self.clone(), trainable, spec })
    }

    fn origin(&self, spec: &TaskSpec) -> AdapterOrigin {
        AdapterOrigin {
            base: self.loaded.base.clone(),
            template: String::new(),
            task: Some(spec.config.clone()),
            peft_names: PeftNames::classifier(self.loaded.model.config()),
        }
    }
}

impl<B: Kernels> TextClassifier<B> {
    /// The labels; empty for a regression.
    pub fn labels(&self) -> &[String] {
        &self.spec.config.labels
    }

    /// The column of the (first) text.
    pub(super) fn text_column(&self) -> &str {
        &self.spec.config.text[0]
    }

    /// Saves the classifier to a folder, without the encoder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), RunError> {
        Ok(save_adapter(folder.as_ref(), &self.trainable, &self.encoder.origin(&self.spec))?)
    }

    /// Classifies texts.
    ///
    /// # Errors
    /// If a text does not fit the encoder, or the classifier compares two texts.
    pub fn predict(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Prediction>, RunError> {
        self.predict_with_hook(texts, &NoHook)
    }

    /// Classifies texts with a hook that is called after the classifier's own edits.
    ///
    /// # Errors
    /// As [`predict`](Self::predict), or if the hook needs a layer that the encoder does not have.
    pub fn predict_with_hook(
        &self,
        texts: &[impl AsRef<str>],
        hook: &(impl Hook<B> + ?Sized),
    ) -> Result<Vec<Prediction>, RunError> {
        self.predict_rows_with_hook(&Row::texts(self.text_column(), texts), hook)
    }

    /// Classifies rows with the classifier's text columns, which may be two.
    ///
    /// # Errors
    /// If a row lacks a column, or a text does not fit the encoder.
    pub fn predict_rows(&self, rows: &[Row]) -> Result<Vec<Prediction>, RunError> {
        self.predict_rows_with_hook(rows, &NoHook)
    }

    /// Classifies rows with a hook that is called after the classifier's own edits.
    ///
    /// # Errors
    /// As [`predict_rows`](Self::predict_rows), or if the hook needs a layer that the encoder does not have.
    pub fn predict_rows_with_hook(
        &self,
        rows: &[Row],
        hook: &(impl Hook<B> + ?Sized),
    ) -> Result<Vec<Prediction>, RunError> {
        const ROWS_PER_PASS: usize = 32;
        let loaded = &self.encoder.loaded;
        let config = loaded.model.config();
        check_sites(hook, config.num_hidden_layers)?;
        let max_length = max_length(None, config.context())?;
        let (vocab, strict) = (config.vocab_size, OnBadRow::Error);
        let set = self.spec.encode(rows, &loaded.tokenizer, vocab, max_length, false, strict)?;
        let outputs =
            outputs_of(&loaded.model, &loaded.tensors, &self.trainable, &set.examples, ROWS_PER_PASS, hook);
        let prediction = |outputs: &Vec<f32>| match self.labels() {
            [] => Prediction::Value(f64::from(outputs[0])),
            labels => Prediction::Label {
                label: labels[argmax(outputs)].clone(),
                probabilities: labels.iter().cloned().zip(probabilities(outputs)).collect(),
            },
        };
        Ok(outputs.iter().map(prediction).collect())
    }
}
