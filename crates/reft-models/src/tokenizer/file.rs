//! `tokenizer.json`.

use super::{components, json::JsonFile, special::SpecialToken};
use crate::{
    files::{ModelFiles, TokenIds},
    keys::Keys,
};
use reft_core::{
    FileError,
    files::{check_json_text, plain_words},
};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Encoding, Token, Tokenizer, TruncationDirection};

/// The parts of `tokenizer.json` that are checked, because the parser ignores what is wrong with them, or panics.
#[derive(Deserialize)]
struct Checked {
    #[serde(default)]
    added_tokens: Vec<Value>,
    /// Its parser panics at every error of JSON.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    #[serde(default)]
    normalizer: Value,
    model: CheckedModel,
}

#[derive(Deserialize)]
struct CheckedModel {
    #[serde(default)]
    continuing_subword_prefix: Value,
}

/// Parses `tokenizer.json`.
///
/// # Errors
/// The reason why it cannot be used.
pub(super) fn parse(json: &[u8]) -> Result<Tokenizer, String> {
    check_json_text(json)?;
    let unusable = |error: String| match serde_json::from_slice::<serde::de::IgnoredAny>(json) {
        Err(error) => format!("invalid JSON: {error}; the file may be incomplete, copy or download it again"),
        Ok(_) => format!(
            "not a tokenizer: {error}; the file may be damaged, or written by a newer version of Python's tokenizers than \
             0.22, with which it can be saved again"
        ),
    };
    let Checked { added_tokens, normalizer, model, .. } =
        serde_json::from_slice(json).map_err(|error| unusable(plain_words(&error.to_string())))?;
    components::check_normalizer(&normalizer)?;
    if let Some(prefix) = model.continuing_subword_prefix.as_str().filter(|prefix| !prefix.is_empty()) {
        check_merges(json, prefix)?;
    }
    let tokenizer = Tokenizer::from_bytes(json).map_err(|error| unusable(error.to_string()))?;
    for token in added_tokens {
        let (Some(id), Some(content)) = (token["id"].as_u64(), token["content"].as_str()) else { continue };
        if let Some(found) = tokenizer.token_to_id(content).filter(|found| u64::from(*found) != id) {
            return Err(format!(
                "`added_tokens` gives {content:?} the id {id}, but its place in the vocabulary is {found}; correct the id, \
                 or add the tokens that are missing between them"
            ));
        }
    }
    components::check(&tokenizer)?;
    Ok(tokenizer)
}

/// Checks that the second part of every merge has room for the prefix of continued words, which the parser takes off.
///
/// # Errors
/// The merge that does not fit.
fn check_merges(json: &[u8], prefix: &str) -> Result<(), String> {
    let file: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    for merge in file["model"]["merges"].as_array().into_iter().flatten() {
        let second = merge.as_str().and_then(|text| text.split(' ').nth(1)).or_else(|| merge[1].as_str());
        if second.is_some_and(|text| !text.is_char_boundary(prefix.len())) {
            return Err(format!("the merge {merge} does not fit the continuing_subword_prefix {prefix:?}"));
        }
    }
    Ok(())
}

/// The side on which a tokenizer truncates long texts.
pub(super) fn truncation_side(
    tokenizer: &Tokenizer,
    config: &JsonFile,
) -> Result<TruncationDirection, FileError> {
    const KEY: &str = "truncation_side";
    match config.text(KEY)? {
        Some("left") => Ok(TruncationDirection::Left),
        Some("right") => Ok(TruncationDirection::Right),
        Some(other) => Err(config.invalid(format!("`{KEY}` is {other:?}, expected \"left\" or \"right\""))),
        None => Ok(tokenizer.get_truncation().map_or(TruncationDirection::Right, |params| params.direction)),
    }
}

/// Number of tokens that a tokenizer puts after a text.
pub(super) fn n_suffix(tokenizer: &Tokenizer) -> tokenizers::Result<usize> {
    let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let encoding = tokenizer.post_process(text, None, true)?;
    Ok(encoding.get_special_tokens_mask().iter().rev().take_while(|is_special| **is_special == 1).count())
}

/// The end token of a model whose tokenizer does not name one: the first id of `eos_token_id` in `config.json` or
/// `generation_config.json` that the tokenizer has.
pub(super) fn end_token_of_model(
    files: &ModelFiles,
    tokenizer: &Tokenizer,
    model: &JsonFile,
) -> Result<Option<SpecialToken>, FileError> {
    let generation = JsonFile::read(files, "generation_config.json")?;
    let ids = [model, &generation].into_iter();
    // Whether they are valid is checked with the model.
    let ids = ids.filter_map(|file| Keys::new(&file.values, "").token_ids("eos_token_id", usize::MAX));
    Ok(ids
        .flat_map(|ids: TokenIds| ids.as_slice().to_vec())
        .find_map(|id| Some(SpecialToken { text: tokenizer.id_to_token(id)?, id })))
}
