//! A row of a data file.

use super::error::DataError;
use reft_models::TokenizerError;
use serde_json::{Map, Value};

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The fields.
    pub fields: Map<String, Value>,
    /// `file, line N` or `file, row N`, for error messages.
    pub place: String,
    /// Why the row could not be read, see [`readable`](Self::readable); such a row has no fields.
    pub(crate) problem: Option<String>,
}

impl Row {
    /// A row with these fields; `place` names it in errors.
    pub fn new<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>, place: impl Into<String>) -> Self {
        let fields = fields.into_iter().map(|(key, value)| (key.into(), Value::from(value)));
        Self::from_fields(fields.collect(), place)
    }

    /// Rows with two fields of these names.
    pub fn pairs(names: [&str; 2], pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Vec<Self> {
        let row = |(idx, (a, b)): (usize, &(_, _))| {
            let (a, b): (&_, &_) = (a, b);
            let fields = [(names[0], AsRef::<str>::as_ref(a)), (names[1], AsRef::<str>::as_ref(b))];
            Self::new(fields, format!("pair {}", idx + 1))
        };
        pairs.iter().enumerate().map(row).collect()
    }

    /// Rows with one field.
    pub(crate) fn texts(name: &str, texts: &[impl AsRef<str>]) -> Vec<Self> {
        let rows = texts.iter().enumerate();
        rows.map(|(idx, text)| Self::new([(name, text.as_ref())], format!("text {}", idx + 1))).collect()
    }

    /// A row with these fields; `place` names it in errors.
    pub fn from_fields(fields: Map<String, Value>, place: impl Into<String>) -> Self {
        Self { fields, place: place.into(), problem: None }
    }

    /// A row that could not be read.
    pub(crate) fn unreadable(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { fields: Map::new(), place: place.into(), problem: Some(problem.into()) }
    }

    /// An error about this row.
    pub(crate) fn error(&self, reason: impl Into<String>) -> DataError {
        DataError::Row { place: self.place.clone(), reason: reason.into() }
    }

    /// An error of the tokenizer or the chat template about this row.
    pub(crate) fn tokenizer_error(&self, error: TokenizerError) -> DataError {
        match error {
            // This one is about the model.
            TokenizerError::NoChatTemplate | TokenizerError::NoEndToken => error.into(),
            error => self.error(error.to_string()),
        }
    }

    /// Checks the tokens of this row against the size of the model's vocabulary.
    ///
    /// # Errors
    /// If the model does not have one of them.
    pub fn check_tokens(&self, tokens: &[u32], vocab: usize) -> Result<(), DataError> {
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(DataError::UnknownToken { place: self.place.clone(), id: *id, vocab }),
            None => Ok(()),
        }
    }
}
