//! Errors of runs and of opening models and adapters.

use crate::{
    data::DataError,
    device::DeviceError,
    eval::EvalError,
    memory::{MemoryNeeds, format_bytes},
    observer::TrainError,
};
use reft_core::{AdapterError, FileError, MissingSite, intervention::InterventionError, site::LayersError};
use reft_models::{LoadError, peft::TunedFileError, tuned::TuningError};
use std::path::PathBuf;

/// A run, or a model with its adapter, that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The layers.
    #[error("reft.layers: {0}")]
    Layers(#[from] LayersError),
    /// The interventions.
    #[error("reft: {0}")]
    Intervention(#[from] InterventionError),
    /// Settings of the training that make no sense, one per line.
    #[error("{0}")]
    Settings(String),
    /// Nothing to train on.
    #[error("no rows to train on")]
    NoRows,
    /// Interventions for hidden states of another size.
    #[error("reft: hidden_size is {found}, but the hidden states of the model have size {expected}")]
    HiddenSize {
        /// The size in the configuration.
        found: usize,
        /// The size of the model.
        expected: usize,
    },
    /// A hook for a layer that the model does not have.
    #[error(transparent)]
    MissingSite(#[from] MissingSite),
    /// An adapter of a model on another device.
    #[error("the adapter was loaded or trained on another device; load it with the model that uses it")]
    OtherDevice,
    /// The files of an adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Something else than an adapter.
    #[error("{}: {reason}", path.display())]
    NotAnAdapter {
        /// The path.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// An adapter that was trained on a model with other weights.
    #[error("{adapter}: trained on {trained_on}, but {model} has other weights or settings")]
    OtherWeights {
        /// The adapter.
        adapter: String,
        /// The model in use.
        model: String,
        /// The model that it was trained on.
        trained_on: String,
    },
    /// An adapter that does not fit the model.
    #[error("{adapter}: {reason}")]
    WrongModel {
        /// The adapter.
        adapter: String,
        /// Why it does not fit.
        reason: String,
    },
    /// The weights of a baseline.
    #[error("reft.method: {0}")]
    Tuning(#[from] TuningError),
    /// The files of a baseline.
    #[error(transparent)]
    TunedFile(#[from] TunedFileError),
    /// The evaluation.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The training, after its first update.
    #[error(
        "{error}\nthe adapter of the last update before that, or the best so far, is in {}{}",
        adapter.display(),
        replaced.as_ref().map_or(String::new(), |folder| format!(
            "; the run that it was to replace is in {}",
            folder.display()
        ))
    )]
    Stopped {
        /// Why it cannot go on.
        error: TrainError,
        /// The folder of the adapter.
        adapter: PathBuf,
        /// The folder with the run that this one was to replace.
        replaced: Option<PathBuf>,
    },
    /// The evaluation of a run, which the device did not survive.
    #[error(
        "the device failed while it evaluated the model {what}: {reason}; a smaller eval.batch_size needs less memory"
    )]
    Evaluation {
        /// The model.
        what: &'static str,
        /// The driver's message.
        reason: String,
    },
    /// The run was interrupted before it had a result.
    #[error("interrupted before the first update; nothing was written")]
    Interrupted,
    /// The run folder exists.
    #[error("{}: this run already exists; choose another run.name, or replace it with run.overwrite=true", .0.display())]
    Exists(PathBuf),
    /// `run.overwrite` on a folder that is not a run.
    #[error("{}: not the folder of a run of reft, so run.overwrite does not replace it; choose another run.name", .0.display())]
    NotARun(PathBuf),
    /// Another process writes to the run folder.
    #[error("{}: another process is training this run; choose another run.name, or wait until it ends", .0.display())]
    Busy(PathBuf),
    /// More memory than the device has.
    #[error(
        "this needs {} on {device}, which has {}: weights {}, activations {}, evaluation {}\n{}",
        format_bytes(needs.total), format_bytes(*capacity), format_bytes(needs.weights),
        format_bytes(needs.activations), format_bytes(needs.evaluation), list_remedies(remedies, *capacity)
    )]
    Memory {
        /// The memory that the run needs.
        needs: Box<MemoryNeeds>,
        /// The device.
        device: String,
        /// Its memory in bytes.
        capacity: u64,
        /// Settings that would help, and the bytes that the run would then need.
        remedies: Vec<(String, u64)>,
    },
    /// A tensor larger than the device's buffers.
    #[error(
        "this needs a tensor of {} on {device}, whose buffers hold {}; use a smaller train.batch_size with a larger \
         train.accumulation, a smaller data.max_length, a smaller dtype, or another device",
        format_bytes(*needed), format_bytes(*max)
    )]
    Buffer {
        /// Size of the largest tensor in bytes.
        needed: u64,
        /// The device.
        device: String,
        /// Size of its largest buffer in bytes.
        max: u64,
    },
    /// A file of the run folder.
    #[error(transparent)]
    File(#[from] FileError),
}

fn list_remedies(remedies: &[(String, u64)], capacity: u64) -> String {
    let lines =
        remedies.iter().map(|(change, total)| format!("  {change:<44} needs {}", format_bytes(*total)));
    let lines = lines.collect::<Vec<_>>().join("\n");
    match remedies.first() {
        None => "no setting needs less memory; use a smaller model or another device".into(),
        Some((_, least)) if *least > capacity => {
            format!("these settings need less memory, but none of them alone is enough:\n{lines}")
        }
        Some(_) => format!("with these settings it fits:\n{lines}"),
    }
}
