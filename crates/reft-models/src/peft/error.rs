//! Trained weights that cannot be read.

use crate::tuned::TuningError;
use reft_core::FileError;
use std::path::PathBuf;

/// Trained weights that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TunedFileError {
    /// A file is missing, damaged or does not match.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model does not have the weights.
    #[error("{}: {reason}", path.display())]
    Tuning {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: TuningError,
    },
}
