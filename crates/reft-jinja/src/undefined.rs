//! Missing values.

use crate::{
    error::{Error, Result},
    settings::Undefined,
};
use std::{cell::Cell, sync::Arc};

thread_local! {
    static IS_STRICT: Cell<bool> = const { Cell::new(false) };
}

/// Sets what missing values do in a new rendering.
pub(crate) fn set(undefined: Undefined) {
    IS_STRICT.set(undefined == Undefined::Strict);
}

/// A missing value.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    /// The message of the error that its use raises.
    message: Arc<str>,
    /// Whether the template leaves it out by intention, so that it is always an empty text.
    is_intended: bool,
}

impl Missing {
    /// A missing value, with the message of the error that its use raises.
    pub fn new(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into(), is_intended: false }
    }

    /// The value of `a if b` without `else` where `b` is false.
    pub fn without_else() -> Self {
        let message = "the inline if-expression evaluated to false and no else section was defined.";
        Self { message: message.into(), is_intended: true }
    }

    /// The error of its use.
    pub fn error(&self) -> Error {
        Error::new(&*self.message)
    }

    /// Checks that it may be used as an empty text or without items.
    ///
    /// # Errors
    /// If missing values are errors.
    pub fn check_empty(&self) -> Result<()> {
        if IS_STRICT.get() && !self.is_intended { Err(self.error()) } else { Ok(()) }
    }
}
