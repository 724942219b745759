//! Rows as tokens.

use super::{error::DataError, rows::Row, template::Template};
use reft_models::Tokenizer;

/// A training row, as the training loop sees it.
pub trait Tokenized {
    /// Number of tokens.
    fn n_tokens(&self) -> usize;

    /// Number of labels: answer tokens, or 1 for the row.
    fn n_labels(&self) -> usize;
}

/// A prompt and its answer, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids of the prompt, followed by those of the answer.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens.
    pub prompt_len: usize,
}

impl Example {
    /// Token ids of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }
}

impl Tokenized for Example {
    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The answer's tokens.
    fn n_labels(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

/// The encoded rows of a file, with counts of those that did not fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSet {
    /// The rows with at least one answer token, in file order.
    pub examples: Vec<Example>,
    /// Row index of each example.
    pub row_of: Vec<usize>,
    /// Number of rows in the file.
    pub n_rows: usize,
    /// Number of truncated rows.
    pub n_cut: usize,
}

impl DataSet {
    /// Encodes rows, truncated on the right to `max_length`. Rows without an answer token left are dropped. `vocab` is the
    /// size of the model's vocabulary, and `file` names the rows in errors.
    ///
    /// # Errors
    /// If a row has no prompt, no answer, or a token that the model does not have, or if every row is dropped.
    pub fn encode(
        rows: &[Row],
        template: &Template,
        tokenizer: &Tokenizer,
        vocab: usize,
        max_length: usize,
        file: &str,
    ) -> Result<Self, DataError> {
        let mut set = DataSet { n_rows: rows.len(), ..Default::default() };
        for (idx, row) in rows.iter().enumerate() {
            let (mut tokens, prompt_len) = template.encode_answered(row, tokenizer)?;
            row.check_tokens(&tokens, vocab)?;
            if tokens.len() > max_length {
                tokens.truncate(max_length);
                set.n_cut += 1;
            }
            // The first token of a row has no state before it that could predict it.
            if prompt_len > 0 && tokens.len() > prompt_len {
                set.examples.push(Example { tokens, prompt_len });
                set.row_of.push(idx);
            }
        }
        if set.examples.is_empty() {
            return Err(DataError::NothingLeft { file: file.into(), rows: rows.len(), max_length });
        }
        Ok(set)
    }

    /// Number of rows dropped because no answer token was left.
    pub fn n_dropped(&self) -> usize {
        self.n_rows - self.examples.len()
    }
}

/// A text or a text pair with its target, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct LabeledText {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Token type ids.
    pub types: Vec<u32>,
    /// Index of the label, or the value of a regression.
    pub target: f64,
}

impl Tokenized for LabeledText {
    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn n_labels(&self) -> usize {
        1
    }
}

/// The encoded rows of a classification or regression file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabeledSet {
    /// The rows, in file order.
    pub examples: Vec<LabeledText>,
    /// Number of truncated rows.
    pub n_cut: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::parse_rows, tiny};

    #[test]
    fn long_rows_are_truncated_and_counted() {
        let t = Tokenizer::load(&tiny::model()).expect("embedded");
        let rows: Vec<Row> = ["hi", &"word ".repeat(40)]
            .iter()
            .map(|prompt| {
                let json = serde_json::json!({"prompt": prompt, "completion": "yes"}).to_string();
                parse_rows(&json, "d.json").expect("valid").remove(0)
            })
            .collect();
        let set =
            DataSet::encode(&rows, &Template::Plain, &t, t.vocab_size(), 16, "d").expect("something left");
        assert_eq!((set.examples.len(), set.n_cut, set.n_dropped(), set.row_of[0]), (1, 1, 1, 0));
        assert_eq!(set.examples[0].tokens.last(), t.eos().map(|eos| &eos.id));
        let error = DataSet::encode(&rows, &Template::Plain, &t, 2, 16, "d").expect_err("a small vocabulary");
        assert!(matches!(error, DataError::UnknownToken { vocab: 2, .. }), "{error}");
        let error = DataSet::encode(&rows[1..], &Template::Plain, &t, t.vocab_size(), 16, "d")
            .expect_err("nothing left");
        assert_eq!(
            error.to_string(),
            "d: no row has an answer token within the first 16 tokens (1 row); raise data.max_length"
        );
    }
}
