//! A file of rows of any format: the part's name is the file's name, whose extension is the format.
//!
//! Rows that are read say where they come from. Rows that are encoded have a prompt and an answer within the limit, of tokens
//! that exist.

use crate::support::{
    model,
    parts::{Parts, write},
};
use reft_models::{ModelFiles, Tokenizer};
use reft_train::{
    DataError, DataSet, Row, TaskSpec, Template,
    data::{Encoding, OnBadRow, PromptLimit, TrainOn, read_rows},
    tasks::read_task_rows,
};
use std::path::Path;

const EXTENSIONS: [&str; 12] = [
    "jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "csv.gz", "json.gz", "jsonl.zst", "csv.zst", "json.zst",
];
const MAX_LENGTH: usize = 24;
const CHAT: &str = "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant {% endif %}";

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let Some((name, content)) = parts.iter().next() else { return };
    let Some(extension) = EXTENSIONS.iter().find(|extension| name == format!("data.{extension}")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(format!("data.{extension}"));
    write(folder.path(), &format!("data.{extension}"), content);
    let tokenizer = tokenizer(folder.path());
    if let Ok(rows) = has_places(read_rows(&path)) {
        encode(&rows, &tokenizer);
        for task in ["classification", "regression", "glue/mnli"] {
            classify(task, &rows, &tokenizer);
        }
    }
    for task in ["classification", "glue/cola"] {
        if let Ok(rows) = has_places(read_task_rows(task, &path)) {
            classify(task, &rows, &tokenizer);
        }
    }
}

fn tokenizer(folder: &Path) -> Tokenizer {
    write(folder, "tokenizer.json", model::TOKENIZER.as_bytes());
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT});
    write(folder, "tokenizer_config.json", config.to_string().as_bytes());
    Tokenizer::load(&ModelFiles::Folder(folder.into())).expect("a valid tokenizer")
}

fn has_places(rows: Result<Vec<Row>, DataError>) -> Result<Vec<Row>, DataError> {
    match &rows {
        Ok(rows) => assert!(!rows.is_empty() && rows.iter().all(|row| !row.place.is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    rows
}

fn encode(rows: &[Row], tokenizer: &Tokenizer) {
    let vocab = tokenizer.vocab_size();
    for template in ["auto", "alpaca", "chat", "plain", "{{ instruction }} {{ input }}"] {
        let Ok(template) = Template::resolve(template, rows) else { continue };
        for row in rows.iter().take(4) {
            if let Ok(prompt) = template.encode_prompt(row, tokenizer, PromptLimit::of(MAX_LENGTH)) {
                assert!(prompt.tokens.len() <= MAX_LENGTH);
            }
            let _ = template.answer(row);
        }
        for (train_on, on_bad_row) in [(TrainOn::Last, OnBadRow::Error), (TrainOn::All, OnBadRow::Skip)] {
            let encoding = Encoding::new(&template, tokenizer, vocab, MAX_LENGTH);
            let encoding = encoding.with_train_on(train_on).with_on_bad_row(on_bad_row);
            let Ok(set) = DataSet::encode(rows, encoding, "data") else { continue };
            assert!(set.row_of.iter().all(|row| *row < rows.len() && !set.skipped_rows.contains(row)));
            for example in &set.examples {
                assert!(example.prompt_len > 0 && example.prompt_len < example.tokens.len());
                assert!(example.tokens.len() <= MAX_LENGTH);
                assert!(example.tokens.iter().all(|id| (*id as usize) < vocab));
            }
        }
    }
}

fn classify(task: &str, rows: &[Row], tokenizer: &Tokenizer) {
    let Ok(spec) = TaskSpec::discover(task, None, None, rows) else { return };
    let vocab = tokenizer.vocab_size();
    let Ok(set) = spec.encode(rows, tokenizer, vocab, MAX_LENGTH, true, OnBadRow::Skip) else { return };
    for example in &set.examples {
        assert!(example.tokens.len() <= MAX_LENGTH && example.tokens.len() == example.types.len());
        assert!(example.target.is_finite());
        assert!(spec.is_regression() || (example.target as usize) < spec.outputs());
    }
}
