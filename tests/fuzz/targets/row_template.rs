//! A template of a recipe or an adapter, over the fields of a row.
//!
//! It renders the same text twice or is an error.

use crate::support::{model, parts::write};
use reft_models::{ModelFiles, Tokenizer};
use reft_train::{Row, Template};
use std::sync::LazyLock;

/// Of a text that a template renders.
const MAX_OUTPUT: usize = 32 << 20;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "tokenizer.json", model::TOKENIZER.as_bytes());
    Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("a valid tokenizer")
});

pub fn target(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(template.text(), text);
    let row = Row::new([("instruction", "the old fox"), ("input", "é"), ("output", "yes")], "row 1");
    match template.prompt(&row, &TOKENIZER) {
        Ok(text) => {
            assert!(text.len() <= MAX_OUTPUT, "{} bytes", text.len());
            assert_eq!(template.prompt(&row, &TOKENIZER).ok(), Some(text));
        }
        Err(error) => assert!(error.to_string().starts_with("row 1: "), "{error}"),
    }
}
