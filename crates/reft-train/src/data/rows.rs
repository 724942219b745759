//! Rows of JSON and JSON Lines files.

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
            TokenizerError::NoChatTemplate => error.into(),
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

/// Parses JSON Lines or a JSON array; `file` names it in errors.
///
/// # Errors
/// If there are no rows, or one is not a JSON object; the error names the line.
pub fn parse_rows(text: &str, file: &str) -> Result<Vec<Row>, DataError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let object = |value: Value, place: String| match value {
        Value::Object(fields) => Ok(Row::from_fields(fields, place)),
        other => {
            Err(DataError::Row { reason: format!("expected an object, found {}", kind_of(&other)), place })
        }
    };
    let json_error = |line: usize, e: serde_json::Error| {
        let message = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        let reason = message.strip_suffix(&place).unwrap_or(&message);
        DataError::Json { file: file.into(), line, column: e.column(), reason: reason.into() }
    };
    let rows = if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|e| json_error(e.line(), e))?;
        let rows = values.into_iter().enumerate();
        rows.map(|(idx, value)| object(value, format!("{file}, row {}", idx + 1)))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(idx, line)| {
                let value = serde_json::from_str(line).map_err(|e| json_error(idx + 1, e))?;
                object(value, format!("{file}, line {}", idx + 1))
            })
            .collect::<Result<Vec<_>, _>>()?
    };
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

/// The type of a JSON value, in the words of an error message.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_lines_or_as_an_array() {
        let lines = parse_rows("{\"a\": 1}\n\n{\"a\": 2}\n", "d").expect("valid");
        let array = parse_rows(" [{\"a\": 1},\n {\"a\": 2}]", "d").expect("valid");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].fields, array[1].fields);
        assert_eq!((lines[1].place.as_str(), array[1].place.as_str()), ("d, line 3", "d, row 2"));
    }

    #[test]
    fn unusable_files_are_errors_that_say_where() {
        let error = |text: &str| parse_rows(text, "d.json").expect_err("unusable").to_string();
        let no_rows = "d.json: no rows; expected JSON Lines or a JSON array of objects";
        assert_eq!(error(""), no_rows);
        assert_eq!(error("[]"), no_rows);
        assert_eq!(
            error("{\"a\": 1}\n{oops}"),
            "d.json, line 2, column 2: invalid JSON: key must be a string"
        );
        assert_eq!(error("{\"a\": 1}\n3"), "d.json, line 2: expected an object, found a number");
    }
}
