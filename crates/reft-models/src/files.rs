//! The files of a model, in a folder or compiled into the program, and what several of them have in common.

use reft_core::FileError;
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

    /// The commit, if the folder is a snapshot in the Hub's cache: `snapshots/{commit}`.
    pub fn revision(&self) -> Option<String> {
        let ModelFiles::Folder(folder) = self else { return None };
        let is_snapshot = folder.parent()?.file_name()? == "snapshots";
        is_snapshot.then(|| folder.file_name().map(|name| name.to_string_lossy().into_owned()))?
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
            ModelFiles::Folder(folder) if folder.join(name).exists() && !folder.join(name).is_file() => {
                Err(FileError::Invalid { path: self.path(name), reason: "is not a file".into() })
            }
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

    /// The names of the files in a folder within the location, in alphabetical order; none if there is no such folder.
    pub(crate) fn names_in(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match self {
            ModelFiles::Folder(root) => fs::read_dir(root.join(folder))
                .map(|entries| {
                    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
                })
                .unwrap_or_default(),
            ModelFiles::Embedded(files) => {
                let within = |name: &str| Some(name.strip_prefix(folder)?.strip_prefix('/')?.to_string());
                files.iter().filter_map(|(name, _)| within(name)).collect()
            }
        };
        names.sort();
        names
    }

    /// The names of all files, in alphabetical order; none if there is no such folder.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self {
            ModelFiles::Folder(folder) => {
                let entries = fs::read_dir(folder).into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
            ModelFiles::Embedded(files) => files.iter().map(|(name, _)| name.to_string()).collect(),
        };
        names.sort();
        names
    }

    /// The names of the first files, for messages.
    pub fn listing(&self) -> String {
        const SHOWN: usize = 20;
        let names = self.names();
        match names.len() {
            0 => "an empty folder".into(),
            n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
            _ => names.join(", "),
        }
    }
}

/// The type of a JSON value, in the words of an error message.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A token id or a list of them: `eos_token_id` in `config.json` and `generation_config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_the_name_of_a_snapshot() {
        let revision = |path: &str| ModelFiles::Folder(path.into()).revision();
        assert_eq!(revision("hub/models--a--b/snapshots/0123abcd").as_deref(), Some("0123abcd"));
        assert_eq!((revision("models/snapshot"), revision("model"), revision("")), (None, None, None));
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
