//! The settings of the training loop, which are also the `[train]` section of a recipe.

use crate::optim::ScheduleKind;
use serde::{Deserialize, Serialize};

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Number of updates; overrides `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Rows per forward pass (the micro-batch).
    pub batch_size: usize,
    /// Micro-batches per update.
    #[serde(alias = "gradient_accumulation_steps")]
    pub accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// `linear`, `cosine` or `constant`, after the warm-up.
    pub schedule: ScheduleKind,
    /// Share of all updates over which the learning rate rises.
    pub warmup: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 disables clipping.
    #[serde(alias = "max_grad_norm")]
    pub clip: f64,
    /// Random seed: initialization, shuffling, dropout.
    pub seed: u64,
    /// Whether rows are shuffled in every epoch; otherwise they stay in file order.
    pub shuffle: bool,
    /// Updates between log lines.
    pub log_every: usize,
    /// Updates between evaluations; 0 evaluates only at the end.
    pub eval_every: usize,
    /// Whether to evaluate after every epoch instead of every `eval_every` updates.
    pub eval_each_epoch: bool,
    /// Whether to keep the adapter with the best held-out score instead of the last one.
    pub keep_best: bool,
    /// Evaluations without improvement after which training stops; 0 disables early stopping.
    pub patience: usize,
    /// Gradient checkpointing: only one block's activations are kept at a time, which takes less memory and about 50 % more
    /// time. If absent, it is on for quantized models, whose blocks are dequantized while they are on the tape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointing: Option<bool>,
    /// Dropout of an encoder and its head; the model's own rates if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dropout: Option<f64>,
    /// Peak learning rate of the head; `lr` if absent. In a recipe this is `head.lr`.
    #[serde(skip)]
    pub head_lr: Option<f64>,
    /// Whether activations live in host memory. If so, free memory is checked before each larger batch, because the
    /// operating system kills a process that runs out of it.
    #[serde(skip)]
    pub check_host_memory: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 3,
            steps: None,
            batch_size: 16,
            accumulation: 1,
            lr: 9e-4,
            schedule: ScheduleKind::Linear,
            warmup: 0.1,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 42,
            shuffle: true,
            log_every: 10,
            eval_every: 0,
            eval_each_epoch: false,
            keep_best: true,
            patience: 0,
            checkpointing: None,
            model_dropout: None,
            head_lr: None,
            check_host_memory: false,
        }
    }
}

impl TrainConfig {
    /// Sets the number of updates.
    pub fn with_steps(self, steps: usize) -> Self {
        Self { steps: Some(steps), ..self }
    }

    /// Sets the rows per forward pass.
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size, ..self }
    }

    /// Sets the peak learning rate.
    pub fn with_lr(self, lr: f64) -> Self {
        Self { lr, ..self }
    }

    /// Updates per epoch over this many rows.
    pub fn updates_per_epoch(&self, rows: usize) -> usize {
        rows.div_ceil(self.batch_size.saturating_mul(self.accumulation))
    }

    /// Updates of the whole run over this many rows.
    pub fn total_updates(&self, rows: usize) -> usize {
        self.steps.unwrap_or(self.epochs.saturating_mul(self.updates_per_epoch(rows)))
    }
}
