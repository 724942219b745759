//! What to do about a model without `tokenizer.json`.

use super::{class, json::JsonFile};
use crate::files::ModelFiles;
use reft_core::FileError;

/// Files of tokenizers that are not read, each with the library that it is for.
pub(crate) const OTHER_FILES: [(&str, &str); 9] = [
    ("tokenizer.model", "SentencePiece"),
    ("sentencepiece.bpe.model", "SentencePiece"),
    ("spiece.model", "SentencePiece"),
    ("spm.model", "SentencePiece"),
    ("vocab.txt", "WordPiece"),
    ("vocab.json", "BPE"),
    ("merges.txt", "BPE"),
    ("bpe.codes", "BPE"),
    ("tekken.json", "mistral-common"),
];

/// The reason why a folder has no tokenizer, and how to make `tokenizer.json`.
pub(super) fn reason(files: &ModelFiles, config: &JsonFile, model: &JsonFile) -> Result<String, FileError> {
    let mut found = Vec::new();
    for (name, _) in OTHER_FILES {
        if files.read_optional(name)?.is_some() {
            found.push(name);
        }
    }
    let name = class::class_name(config, model)?.unwrap_or_default();
    let place = files.place();
    Ok(format!("no such file; {}", advice(&found, &name, &place)))
}

/// What to do with the files that were found.
pub(crate) fn advice(found: &[&str], class: &str, place: &str) -> String {
    if found.is_empty() {
        return "the model has no other file of a tokenizer either; copy the tokenizer files of the model that it was \
                made from"
            .into();
    }
    let found = found.join(" and ");
    if class::is_python_only(class) {
        return format!(
            "there is {found}, but the tokenizer class {class} is written in Python alone and cannot be converted; use a \
             model with a fast tokenizer"
        );
    }
    format!(
        "there is {found}, which is converted with Python: `from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained({place:?}).save_pretrained({place:?})`"
    )
}
