//! What to do about a model without `tokenizer.json`.

use super::{class, json::JsonFile};
use crate::files::ModelFiles;
use reft_core::FileError;

/// Files of tokenizers that are not read, but can be converted.
pub(crate) const OTHER_FILES: [&str; 9] = [
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "tekken.json",
];

/// Why a model has no tokenizer, and how `tokenizer.json` is made; `place` is its folder or its name on the Hub.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn reason(files: &ModelFiles, place: &str) -> Result<String, FileError> {
    let mut found = Vec::new();
    for name in OTHER_FILES {
        if files.read_optional(name)?.is_some() {
            found.push(name);
        }
    }
    if found.is_empty() {
        return Ok("no such file, and no other file of a tokenizer; copy the tokenizer files of the model that it was made from"
            .into());
    }
    let found = found.join(" and ");
    let config = JsonFile::read(files, "tokenizer_config.json")?;
    let model = JsonFile::read(files, "config.json")?;
    let class = class::class_name(&config, &model)?.unwrap_or_default();
    if class::is_python_only(&class) {
        return Ok(format!(
            "no such file; there is {found}, but the tokenizer class {class} is written in Python alone and cannot be \
             converted; use a model with a fast tokenizer"
        ));
    }
    Ok(format!(
        "no such file; there is {found}, which is converted with Python: `from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained({place:?}).save_pretrained({place:?})`"
    ))
}
