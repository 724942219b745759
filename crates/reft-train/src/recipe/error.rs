//! Errors of recipes.

use std::io;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        error: io::Error,
    },
    /// Not TOML, or not a valid recipe.
    #[error("{file}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// An override that is not `key=value`.
    #[error("{0:?} is not of the form key=value, for example train.lr=4e-4")]
    Override(String),
}
