//! The JSON files beside `tokenizer.json`, read strictly.

use crate::files::{ModelFiles, kind_of};
use reft_core::{FileError, files::check_json_text};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A file with a JSON object. An absent file has no keys.
#[derive(Debug)]
pub(super) struct JsonFile {
    path: PathBuf,
    /// The object.
    pub values: Map<String, Value>,
}

impl JsonFile {
    /// Reads a file, if it exists.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn read(files: &ModelFiles, name: &str) -> Result<Self, FileError> {
        let path = files.path(name);
        let Some(bytes) = files.read_optional(name)? else { return Ok(Self { path, values: Map::new() }) };
        let invalid = |reason: String| FileError::Invalid { path: path.clone(), reason };
        check_json_text(&bytes).map_err(invalid)?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(values)) => Ok(Self { path, values }),
            Ok(other) => Err(invalid(format!("expected a JSON object, found {}", kind_of(&other)))),
            Err(error) => Err(invalid(format!("invalid JSON: {error}"))),
        }
    }

    /// The value of a key, unless it is null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key exists, with null or another value.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// True or false, if the key exists and is not null.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, FileError> {
        let read =
            |value: &Value| value.as_bool().ok_or_else(|| self.wrong(key, value, "true, false or null"));
        self.get(key).map(read).transpose()
    }

    /// A text, if the key exists and is not null.
    pub fn text(&self, key: &str) -> Result<Option<&str>, FileError> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "text or null")))
            .transpose()
    }

    /// An object, if the key exists and is not null.
    pub fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, FileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.wrong(key, other, "an object or null")),
        }
    }

    /// The error of a value of the wrong kind.
    pub fn wrong(&self, key: &str, found: &Value, expected: &str) -> FileError {
        self.invalid(format!("`{key}` is {}, expected {expected}", kind_of(found)))
    }

    /// An error of this file.
    pub fn invalid(&self, reason: String) -> FileError {
        FileError::Invalid { path: self.path.clone(), reason }
    }
}
