//! The embedded default: a small Llama of this project's own, and the data of the quick start.
//!
//! Made by `cargo run --release -p make-tiny`, which documents both.

use reft_models::ModelFiles;

/// Names a model or data file that is compiled in, as in `embedded:tiny`.
pub const PREFIX: &str = "embedded:";

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/tiny/", $name)))),*]
    };
}

/// The embedded model's folder.
pub fn model() -> ModelFiles {
    ModelFiles::Embedded(embed![
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors"
    ])
}

/// An embedded data file by its name, `french-train` or `french-eval`.
pub fn data(name: &str) -> Option<&'static str> {
    match name {
        "french-train" => Some(include_str!("../assets/tiny/french-train.jsonl")),
        "french-eval" => Some(include_str!("../assets/tiny/french-eval.jsonl")),
        _ => None,
    }
}
