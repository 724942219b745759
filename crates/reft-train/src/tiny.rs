//! The embedded default model, a small Llama, and the data of the quick start.
//!
//! Both are generated and documented by `cargo run --release -p make-tiny`.

use reft_models::ModelFiles;

/// Prefix of embedded models and data files, as in `embedded:tiny`.
pub const PREFIX: &str = "embedded:";

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/tiny/", $name)))),*]
    };
}

/// The files of the embedded model.
pub fn model() -> ModelFiles {
    ModelFiles::Embedded(embed![
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors"
    ])
}

/// What a device has to compute with the model, see [`selftest`](crate::selftest).
pub(crate) const EXPECTED: &str = include_str!("../assets/tiny/expected.json");

/// The embedded data file `french-train` or `french-eval`.
pub fn data(name: &str) -> Option<&'static str> {
    match name {
        "french-train" => Some(include_str!("../assets/tiny/french-train.jsonl")),
        "french-eval" => Some(include_str!("../assets/tiny/french-eval.jsonl")),
        _ => None,
    }
}
