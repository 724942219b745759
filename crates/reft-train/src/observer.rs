//! What training reports: log lines, evaluations, and why it stopped.

use crate::{
    memory::{OUT_OF_MEMORY_ADVICE, format_bytes},
    score::Evaluation,
    trainable::Trainable,
};
use reft_core::AdapterError;
use reft_kernels::Kernels;
use serde::{Deserialize, Serialize};
use std::io;

/// One log line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Updates done.
    pub step: usize,
    /// Total number of updates.
    pub total_steps: usize,
    /// Mean loss per label (answer token, or row) since the last report.
    pub loss: f64,
    /// Learning rate of the last update.
    pub lr: f64,
    /// Gradient norm of the last update, before clipping.
    pub grad_norm: f64,
    /// Tokens per second, without padding, since the last report.
    pub tokens_per_s: f64,
    /// Peak memory of the process in MiB, where the operating system reports it.
    pub peak_mb: Option<f64>,
    /// Memory of the device in MiB, if it has its own.
    pub device_mb: Option<f64>,
    /// Estimated seconds left.
    pub seconds_left: f64,
}

/// Receives what happens during training. An error returned by any method ends the training.
pub trait Observer<B: Kernels> {
    /// Called after every update.
    fn progress(&mut self, _step: usize, _total_steps: usize) {}

    /// Memory of the device in MiB, if it has its own.
    fn device_mb(&self) -> Option<f64> {
        None
    }

    /// Called with every log line.
    ///
    /// # Errors
    /// If the line cannot be recorded.
    fn report(&mut self, _report: &StepReport) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called with parameters that should survive the end of the process: after the first update, and with every log line
    /// while no evaluation has selected better ones.
    ///
    /// # Errors
    /// If the parameters cannot be saved.
    fn save_progress(&mut self, _trainable: &Trainable<B>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called after every evaluation of held-out rows; `best` has the parameters if they are to be kept.
    ///
    /// # Errors
    /// If the evaluation cannot be recorded or the parameters cannot be saved.
    fn evaluated(
        &mut self,
        _step: usize,
        _evaluation: &Evaluation,
        _best: Option<&Trainable<B>>,
    ) -> Result<(), TrainError> {
        Ok(())
    }
}

/// Ignores every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl<B: Kernels> Observer<B> for Silent {}

/// Training that cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss or the gradient is NaN or infinite.
    #[error(
        "the {what} is {value} at step {step}; lower train.lr (now {lr}) or raise train.warmup, use dtype=bf16 or f32 \
         instead of f16, and on a GPU test the device with `reft doctor`"
    )]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The update, from 1.
        step: usize,
        /// The peak learning rate.
        lr: f64,
    },
    /// The next update needs more memory than is free.
    #[error(
        "out of memory at step {step}: its batch needs {} more, {} are free\n\
         {OUT_OF_MEMORY_ADVICE}",
        format_bytes(*needed), format_bytes(*free)
    )]
    OutOfMemory {
        /// The update, from 1.
        step: usize,
        /// Bytes beyond those of earlier updates.
        needed: u64,
        /// Free bytes.
        free: u64,
    },
    /// The device failed.
    #[error(
        "the device failed at step {step}: {reason}\n\
         if it ran out of memory, {OUT_OF_MEMORY_ADVICE}"
    )]
    Device {
        /// The update, from 1.
        step: usize,
        /// The driver's message.
        reason: String,
    },
    /// A file cannot be written.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        error: io::Error,
    },
    /// The adapter cannot be written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// All updates are done.
    Done,
    /// It was interrupted.
    Interrupted,
    /// The held-out score did not improve for `train.patience` evaluations.
    NoLongerBetter,
}
