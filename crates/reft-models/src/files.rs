//! The files of a model, in a folder or compiled into the program, and what several of them have in common.

use reft_core::FileError;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::{borrow::Cow, fs, io, path::PathBuf};

/// Where the files of a model are.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder.
    Folder(PathBuf),
    /// Files compiled into the program, as pairs of name and content.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl ModelFiles {
    /// The name of the location in messages: the folder's path, or `embedded model`.
    pub fn place(&self) -> String {
        match self {
            ModelFiles::Folder(folder) => folder.display().to_string(),
            ModelFiles::Embedded(_) => "embedded model".into(),
        }
    }

    /// The path of a file in errors; `embedded {name}` for embedded files.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            ModelFiles::Folder(folder) => folder.join(name),
            ModelFiles::Embedded(_) => format!("embedded {name}").into(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, FileError> {
        self.read_optional(name)?.ok_or_else(|| FileError::Io {
            path: self.path(name),
            error: io::Error::new(io::ErrorKind::NotFound, "no such file in the model's folder"),
        })
    }

    /// Reads a file if it exists.
    ///
    /// # Errors
    /// If it exists but cannot be read.
    pub fn read_optional(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, FileError> {
        match self {
            ModelFiles::Folder(folder) => match fs::read(folder.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(FileError::Io { path: self.path(name), error }),
            },
            ModelFiles::Embedded(files) => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
        }
    }

    /// The names of all files, for messages.
    pub fn listing(&self) -> String {
        let mut names: Vec<String> = match self {
            ModelFiles::Folder(folder) => match fs::read_dir(folder) {
                Ok(entries) => {
                    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
                }
                Err(_) => return "no such folder".into(),
            },
            ModelFiles::Embedded(files) => files.iter().map(|(name, _)| name.to_string()).collect(),
        };
        names.sort();
        if names.is_empty() { "an empty folder".into() } else { names.join(", ") }
    }
}

/// A token id or a list of them: `eos_token_id` in `config.json` and `generation_config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One id.
    One(u32),
    /// Any number of ids.
    Many(Vec<u32>),
}

impl TokenIds {
    /// The ids as a slice.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            TokenIds::One(id) => std::slice::from_ref(id),
            TokenIds::Many(ids) => ids,
        }
    }

    /// Deserializes an optional value and skips everything that is not a token id.
    ///
    /// Some models write -1 or null for "no such token".
    pub(crate) fn deserialize_lenient<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Self>, D::Error> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        Ok(match Value::deserialize(deserializer)? {
            Value::Array(values) => Some(Self::Many(values.iter().filter_map(id).collect())),
            value => id(&value).map(Self::One),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Config {
        #[serde(default, deserialize_with = "TokenIds::deserialize_lenient")]
        eos_token_id: Option<TokenIds>,
    }

    fn ids(json: &str) -> Vec<u32> {
        let config: Config = serde_json::from_str(json).expect("valid JSON");
        config.eos_token_id.as_ref().map(TokenIds::as_slice).unwrap_or_default().to_vec()
    }

    #[test]
    fn token_ids_are_a_number_or_a_list() {
        assert_eq!(ids(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ids(r#"{"eos_token_id": [128001, 128009]}"#), [128_001, 128_009]);
        for nothing in
            [r#"{}"#, r#"{"eos_token_id": null}"#, r#"{"eos_token_id": -1}"#, r#"{"eos_token_id": []}"#]
        {
            assert!(ids(nothing).is_empty(), "{nothing}");
        }
        assert_eq!(ids(r#"{"eos_token_id": [2, null]}"#), [2]);
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let embedded = ModelFiles::Embedded(&[("config.json", b"{}")]);
        assert_eq!(embedded.read("config.json").expect("present").as_ref(), b"{}");
        assert!(embedded.read_optional("tokenizer.json").expect("readable").is_none());
        assert_eq!(
            embedded.read("tokenizer.json").expect_err("absent").to_string(),
            "embedded tokenizer.json: no such file in the model's folder"
        );
    }
}
