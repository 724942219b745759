//! The settings of a training in an application, and its result.

use crate::{
    adapter::{AdapterOrigin, save_adapter},
    data::{Row, TrainOn},
    error::RunError,
    objective::Objective,
    observer::{Observer, StepReport, StopReason, TrainError},
    open::check_config,
    score::{Evaluation, Score},
    train_config::TrainConfig,
    trainable::Trainable,
    trainer::train,
};
use burn::backend::Autodiff;
use reft_core::ReftConfig;
use reft_kernels::Kernels;
use reft_models::ModelConfig;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

type OnStep<'a> = Box<dyn FnMut(&StepReport) -> ControlFlow<()> + 'a>;

/// How an application trains: what is edited, the settings of the loop, and what to do at every step.
pub struct Trainer<'a> {
    pub(super) reft: Option<ReftConfig>,
    pub(super) config: TrainConfig,
    pub(super) template: String,
    pub(super) max_length: Option<usize>,
    pub(super) train_on: TrainOn,
    pub(super) held_out: Vec<Row>,
    on_step: OnStep<'a>,
    progress_folder: Option<PathBuf>,
}

/// The result of a training.
#[derive(Debug)]
pub struct Trained<T> {
    /// The adapter or the classifier.
    pub result: T,
    /// The mean loss of every update.
    pub losses: Vec<f64>,
    /// The score of the held-out rows, if there are any.
    pub score: Option<Score>,
    /// Why training ended.
    pub ended: StopReason,
    /// Settings with which nothing, or less than they seem to say, was learned.
    pub warnings: Vec<String>,
}

impl<T> Trained<T> {
    /// The same with another form of the result.
    pub(super) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Trained<U> {
        let Self { result, losses, score, ended, warnings } = self;
        Trained { result: convert(result), losses, score, ended, warnings }
    }
}

impl Default for Trainer<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Trainer<'a> {
    /// LoReFT of rank 8 at every block, at positions `f7+l7`, with the settings of [`TrainConfig::default`].
    pub fn new() -> Self {
        Self {
            reft: None,
            config: TrainConfig::default(),
            template: "auto".into(),
            max_length: None,
            train_on: TrainOn::Last,
            held_out: Vec::new(),
            on_step: Box::new(|_| ControlFlow::Continue(())),
            progress_folder: None,
        }
    }

    /// Sets what is edited and how, with the seed of its initialization.
    pub fn with_reft(self, reft: ReftConfig) -> Self {
        Self { reft: Some(reft), ..self }
    }

    /// Sets the settings of the loop. Their seed is for shuffling and dropout, and for the interventions if
    /// [`with_reft`](Self::with_reft) does not set them.
    pub fn with_config(self, config: TrainConfig) -> Self {
        Self { config, ..self }
    }

    /// Sets the prompt template of a language model: `plain`, `alpaca`, `chat`, or a Jinja template. By default it is chosen by
    /// the fields of the rows; pairs of prompt and answer are used as they are.
    pub fn with_template(self, template: impl Into<String>) -> Self {
        Self { template: template.into(), ..self }
    }

    /// Sets the maximum number of tokens per row; the smaller of 512 and the model's context by default. Longer rows are
    /// truncated.
    pub fn with_max_length(self, max_length: usize) -> Self {
        Self { max_length: Some(max_length), ..self }
    }

    /// Sets which messages of a chat are trained, the last one by default.
    pub fn with_train_on(self, train_on: TrainOn) -> Self {
        Self { train_on, ..self }
    }

    /// Sets rows that are not trained on, but select the best parameters and give the score. They have the fields of the rows
    /// that are trained on: `prompt` and `completion` for pairs of a language model, `text` and `label` for those of a
    /// classifier; see [`Row::pairs`].
    pub fn with_held_out(self, held_out: Vec<Row>) -> Self {
        Self { held_out, ..self }
    }

    /// Saves the adapter so far to a folder: after the first update, then every `log_every` updates, or whenever held-out rows
    /// find a better one; and at the end, also if training cannot go on.
    pub fn with_progress_folder(self, folder: impl AsRef<Path>) -> Self {
        Self { progress_folder: Some(folder.as_ref().into()), ..self }
    }

    /// Calls `on_step` after every update. Training ends, and keeps what it has, when it returns `Break`.
    pub fn on_step(self, on_step: impl FnMut(&StepReport) -> ControlFlow<()> + 'a) -> Self {
        Self { on_step: Box::new(on_step), ..self }
    }

    /// What is edited in a model, once it and the settings are checked.
    pub(super) fn checked_reft(&self, model: &impl ModelConfig) -> Result<ReftConfig, RunError> {
        let every_block =
            || ReftConfig::new(model.hidden_size(), 0..model.n_layers()).with_seed(self.config.seed);
        let reft = self.reft.clone().unwrap_or_else(every_block);
        check_config(&reft, model)?;
        self.config.check().map_err(RunError::Settings)?;
        Ok(reft)
    }

    /// Trains on encoded examples. Blocks of a quantized model are dequantized one at a time, unless the settings say
    /// otherwise.
    pub(super) fn run<B: Kernels, O: Objective<B>>(
        mut self,
        is_quantized: bool,
        objective: &O,
        trainable: Trainable<B>,
        examples: &[O::Example],
        held_out: &[O::Example],
        origin: &AdapterOrigin,
    ) -> Result<Trained<Trainable<B>>, RunError> {
        if examples.is_empty() {
            return Err(RunError::NoRows);
        }
        self.config.checkpointing.get_or_insert(is_quantized);
        // Every update is reported, but not every one is saved.
        let config = TrainConfig { log_every: 1, ..self.config };
        let ended = AtomicBool::new(false);
        let folder = self.progress_folder;
        let mut observer = Watch {
            on_step: self.on_step,
            ended: &ended,
            folder: folder.as_deref(),
            origin,
            step: 0,
            save_every: self.config.log_every,
        };
        let outcome =
            train::<Autodiff<B>, _>(objective, trainable, examples, held_out, &config, &mut observer, &ended);
        if let Some(folder) = folder.filter(|_| outcome.steps > 0) {
            save_adapter(&folder, &outcome.trainable, origin)?;
        }
        Ok(Trained {
            warnings: config.warnings(examples.len()),
            ended: outcome.stop?,
            result: outcome.trainable,
            losses: outcome.history.losses,
            score: outcome.evaluation.map(|evaluation| evaluation.score),
        })
    }
}

/// Passes updates on to the application.
struct Watch<'a, 'b> {
    on_step: OnStep<'a>,
    ended: &'b AtomicBool,
    folder: Option<&'b Path>,
    origin: &'b AdapterOrigin,
    step: usize,
    save_every: usize,
}

impl Watch<'_, '_> {
    fn save<B: Kernels>(&self, trainable: &Trainable<B>) -> Result<(), TrainError> {
        self.folder.map_or(Ok(()), |folder| Ok(save_adapter(folder, trainable, self.origin)?))
    }
}

impl<B: Kernels> Observer<B> for Watch<'_, '_> {
    fn report(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.step = report.step;
        if (self.on_step)(report).is_break() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn save_progress(&mut self, trainable: &Trainable<B>) -> Result<(), TrainError> {
        let is_due = self.step == 1 || self.step.is_multiple_of(self.save_every);
        if is_due { self.save(trainable) } else { Ok(()) }
    }

    fn evaluated(
        &mut self,
        _step: usize,
        _evaluation: &Evaluation,
        best: Option<&Trainable<B>>,
    ) -> Result<(), TrainError> {
        best.map_or(Ok(()), |trainable| self.save(trainable))
    }
}
