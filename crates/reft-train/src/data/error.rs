//! Errors of data files.

use crate::count::count;
use reft_models::TokenizerError;
use std::io;

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        error: io::Error,
    },
    /// A file without rows.
    #[error(
        "{file}: no rows; expected JSON Lines, a JSON array of objects, or a table with a line of column names"
    )]
    Empty {
        /// The file.
        file: String,
    },
    /// Not JSON.
    #[error("{file}, line {line}, column {column}: invalid JSON: {reason}")]
    Json {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The parser's message.
        reason: String,
    },
    /// A row that cannot be used.
    #[error("{place}: {reason}")]
    Row {
        /// File and row.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that cannot be read as data.
    #[error("{place}: {reason}")]
    File {
        /// The file, and the line if it is known.
        place: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Several rows that cannot be used.
    #[error(
        "{file}: {n_bad} of {} cannot be used: {}\n{}", count(*n_rows, "row"), report_lines(shown, *n_bad), advice(*n_bad, *n_rows)
    )]
    BadRows {
        /// The file.
        file: String,
        /// The place within the file and the reason of the first ones.
        shown: Vec<(String, String)>,
        /// Number of rows that cannot be used.
        n_bad: usize,
        /// Number of rows in the file.
        n_rows: usize,
    },
    /// The template cannot be used.
    #[error("template {template:?}: {reason}")]
    Template {
        /// The template.
        template: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The task does not work with these rows.
    #[error("{task}: {reason}")]
    Task {
        /// The task.
        task: String,
        /// Why not.
        reason: String,
    },
    /// Every row was dropped.
    #[error(
        "{file}: no row has an answer token within the first {max_length} tokens ({}); raise data.max_length", count(*rows, "row")
    )]
    NothingLeft {
        /// The file.
        file: String,
        /// Number of rows in the file.
        rows: usize,
        /// The limit.
        max_length: usize,
    },
    /// Too few rows to hold some out.
    #[error("data.eval_rows is {held_out}, but {file} has only {}; leave some for training", count(*rows, "row"))]
    TooFewRows {
        /// The file.
        file: String,
        /// Number of rows in the file.
        rows: usize,
        /// Number of rows to hold out.
        held_out: usize,
    },
    /// `data.max_length` beyond the model's context.
    #[error(
        "data.max_length is {max_length}, but the model's context is {context} tokens; choose at most {context}"
    )]
    MaxLength {
        /// The requested length.
        max_length: usize,
        /// The model's context.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error(
        "{place}: token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to another model?"
    )]
    UnknownToken {
        /// File and row.
        place: String,
        /// The id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
    /// The tokenizer rejects a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What to do about rows that cannot be used.
fn advice(n_bad: usize, n_rows: usize) -> &'static str {
    if n_bad < n_rows {
        "fix them, or skip them with data.on_bad_row = \"skip\" (--skip-bad-rows)"
    } else {
        "no other row is left, so the file does not suit the task or the template"
    }
}

/// One line for each row shown, and the number of the others.
fn report_lines(shown: &[(String, String)], n_bad: usize) -> String {
    let mut lines: Vec<String> = shown.iter().map(|(at, reason)| format!("{at}: {reason}")).collect();
    if n_bad > shown.len() {
        lines.push(format!("and {} more", n_bad - shown.len()));
    }
    lines.join("\n  ")
}
