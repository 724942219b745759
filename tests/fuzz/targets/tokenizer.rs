//! The tokenizer files of a model folder, and a text to encode (the part `text`).
//!
//! What encodes decodes without a panic, and a pair of texts has one type per token.

use crate::support::{
    model,
    parts::{Parts, write},
};
use reft_models::{ModelFiles, Tokenizer};

const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"];

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let folder = parts.folder(&FILES);
    if parts.get("tokenizer.json").is_none() {
        write(folder.path(), "tokenizer.json", model::TOKENIZER.as_bytes());
    }
    let tokenizer = match Tokenizer::load(&ModelFiles::Folder(folder.path().into())) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let text = parts.text("text").unwrap_or("<s> the old fox sings Ünïcode\n</s>");
    for ids in [tokenizer.encode(text), tokenizer.encode_rendered(text), tokenizer.encode("")].into_iter().flatten() {
        let _ = tokenizer.decode(&ids);
    }
    for (second, max_length) in [(None, 1), (None, 8), (Some("a fox"), 0), (Some("a fox"), 8)] {
        if let Ok((ids, types, _)) = tokenizer.encode_pair(text, second, max_length) {
            assert_eq!(ids.len(), types.len());
        }
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    let _ = (tokenizer.vocab_size(), tokenizer.has_chat_template(), tokenizer.bos(), tokenizer.eos());
}
