//! The settings of the training loop, which are also the `[train]` section of a recipe.

use crate::{
    count::count,
    optim::{Schedule, ScheduleKind},
};
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
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
    /// time. If absent, it is on for quantized models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointing: Option<bool>,
    /// Whether states that training does not change are kept from one epoch to the next.
    pub reuse: Reuse,
    /// The memory for these states, in MiB; at most half of what is free.
    pub reuse_memory: u64,
    /// The disk for those that do not fit, in MiB; at most half of what is free. A run keeps them beside its folder while it
    /// trains. What does not fit there either is computed again in every epoch.
    pub reuse_disk: u64,
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

/// Whether states that training does not change are kept from one epoch to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// If there are such states, more than one epoch, and a backend that computes texts without padding.
    #[default]
    Auto,
    /// Never.
    Off,
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
            reuse: Reuse::Auto,
            reuse_memory: 2048,
            reuse_disk: 8192,
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

    /// Sets the passes over the data and clears the number of updates.
    pub fn with_epochs(self, epochs: usize) -> Self {
        Self { epochs, steps: None, ..self }
    }

    /// Sets the micro-batches per update.
    pub fn with_accumulation(self, accumulation: usize) -> Self {
        Self { accumulation, ..self }
    }

    /// Sets the course of the learning rate after the warm-up.
    pub fn with_schedule(self, schedule: ScheduleKind) -> Self {
        Self { schedule, ..self }
    }

    /// Sets the share of all updates over which the learning rate rises.
    pub fn with_warmup(self, warmup: f64) -> Self {
        Self { warmup, ..self }
    }

    /// Sets AdamW's weight decay.
    pub fn with_weight_decay(self, weight_decay: f64) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets the largest global gradient norm; 0 disables clipping.
    pub fn with_clip(self, clip: f64) -> Self {
        Self { clip, ..self }
    }

    /// Sets whether states that training does not change are kept from one epoch to the next.
    pub fn with_reuse(self, reuse: Reuse) -> Self {
        Self { reuse, ..self }
    }

    /// Sets the dropout of an encoder and its head.
    pub fn with_model_dropout(self, rate: f64) -> Self {
        Self { model_dropout: Some(rate), ..self }
    }

    /// Sets the peak learning rate of the head.
    pub fn with_head_lr(self, head_lr: f64) -> Self {
        Self { head_lr: Some(head_lr), ..self }
    }

    /// Sets the random seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets whether to use gradient checkpointing.
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing: Some(checkpointing), ..self }
    }

    /// Evaluates held-out rows every `eval_every` updates, and stops after `patience` evaluations without improvement (0:
    /// never).
    pub fn with_evaluation(self, eval_every: usize, patience: usize) -> Self {
        Self { eval_every, patience, ..self }
    }

    /// Lists every impossible value, one per line, by its key in a recipe.
    ///
    /// # Errors
    /// If there is one.
    pub fn check(&self) -> Result<(), String> {
        let mut problems = Vec::new();
        let mut expect = |good: bool, key: &str, found: &dyn Display, expected: &str| {
            if !good {
                problems.push(format!("train.{key} is {found}, expected {expected}"));
            }
        };
        expect(self.batch_size > 0, "batch_size", &self.batch_size, "at least 1");
        expect(self.accumulation > 0, "accumulation", &self.accumulation, "at least 1");
        expect(self.log_every > 0, "log_every", &self.log_every, "at least 1");
        expect(self.epochs > 0 || self.steps.is_some(), "epochs", &self.epochs, "at least 1");
        expect(self.steps != Some(0), "steps", &0, "at least 1");
        expect(self.lr > 0.0 && self.lr.is_finite(), "lr", &self.lr, "a number above 0");
        expect((0.0..=1.0).contains(&self.warmup), "warmup", &self.warmup, "a share from 0 to 1");
        let is_finite = |value: f64| value >= 0.0 && value.is_finite();
        expect(is_finite(self.weight_decay), "weight_decay", &self.weight_decay, "0 or more");
        expect(is_finite(self.clip), "clip", &self.clip, "0 or more");
        let model_dropout = self.model_dropout.unwrap_or(0.0);
        let is_rate = (0.0..1.0).contains(&model_dropout);
        expect(is_rate, "model_dropout", &model_dropout, "a share below 1");
        let head_lr = self.head_lr.unwrap_or(1.0);
        expect(head_lr > 0.0 && head_lr.is_finite(), "head_lr", &head_lr, "a number above 0");
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
    }

    /// Updates per epoch over this many rows.
    pub fn updates_per_epoch(&self, rows: usize) -> usize {
        rows.div_ceil(self.batch_size.saturating_mul(self.accumulation))
    }

    /// The learning rates of a run over this many rows.
    pub fn schedule_of(&self, rows: usize) -> Schedule {
        let total_steps = self.total_updates(rows);
        Schedule {
            kind: self.schedule,
            peak: self.lr,
            warmup_steps: (self.warmup * total_steps as f64).ceil() as usize,
            total_steps,
        }
    }

    /// Settings with which a run over this many rows would learn nothing, or less than they seem to say.
    pub fn warnings(&self, rows: usize) -> Vec<String> {
        let schedule = self.schedule_of(rows);
        if schedule.total_steps == 0 {
            return Vec::new();
        }
        let (warmup, total) = (schedule.warmup_steps, schedule.total_steps);
        let updates = count(total, "update");
        if schedule.is_zero() {
            return vec![format!(
                "nothing will be learned: the learning rate of {updates} is 0, because train.warmup={} starts it at 0; set \
                 train.warmup=0, or train longer",
                self.warmup
            )];
        }
        if warmup >= total {
            let reached = schedule.lr(total - 1);
            return vec![format!(
                "train.warmup={} is as long as the run of {updates}, so the learning rate ends at {reached:.2e}, below \
                 train.lr",
                self.warmup
            )];
        }
        Vec::new()
    }

    /// Updates of the whole run over this many rows.
    pub fn total_updates(&self, rows: usize) -> usize {
        self.steps.unwrap_or(self.epochs.saturating_mul(self.updates_per_epoch(rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_in_which_nothing_is_learned_are_warned_about() {
        let warnings =
            |steps, warmup| TrainConfig::default().with_steps(steps).with_warmup(warmup).warnings(16);
        assert_eq!(
            warnings(1, 0.1),
            [
                "nothing will be learned: the learning rate of 1 update is 0, because train.warmup=0.1 starts it at 0; set \
              train.warmup=0, or train longer"
            ]
        );
        assert_eq!(
            warnings(4, 1.0),
            [
                "train.warmup=1 is as long as the run of 4 updates, so the learning rate ends at 6.75e-4, below train.lr"
            ]
        );
        for (steps, warmup) in [(1, 0.0), (2, 0.1), (100, 0.1), (100, 0.99)] {
            assert!(warnings(steps, warmup).is_empty(), "{steps} {warmup}");
        }
        // The same for every shape of the schedule.
        for schedule in [ScheduleKind::Cosine, ScheduleKind::Constant] {
            assert_eq!(TrainConfig::default().with_schedule(schedule).with_epochs(1).warnings(3).len(), 1);
        }
    }
}
