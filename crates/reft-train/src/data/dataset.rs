//! Rows as tokens.

use super::{
    bad_rows::{BadRows, OnBadRow},
    conversation::TrainOn,
    encode::EncodedAnswer,
    error::DataError,
    notices::unused_fields,
    rows::Row,
    template::Template,
};
use crate::count::count;
use reft_models::Tokenizer;

/// A training row, as the training loop sees it.
pub trait Tokenized {
    /// Number of tokens.
    fn n_tokens(&self) -> usize;

    /// Number of labels: answer tokens, or 1 for the row.
    fn n_labels(&self) -> usize;
}

/// A prompt and its answer, as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// How rows are encoded.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// The prompt template.
    pub template: &'a Template,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Size of the model's vocabulary.
    pub vocab: usize,
    /// Maximum tokens of an example; longer ones are truncated on the right.
    pub max_length: usize,
    /// Which messages of a chat are trained.
    pub train_on: TrainOn,
    /// What happens to rows that cannot be used.
    pub on_bad_row: OnBadRow,
}

impl<'a> Encoding<'a> {
    /// For the last message of a chat, and files without rows that cannot be used.
    pub fn new(template: &'a Template, tokenizer: &'a Tokenizer, vocab: usize, max_length: usize) -> Self {
        let (train_on, on_bad_row) = (TrainOn::Last, OnBadRow::Error);
        Self { template, tokenizer, vocab, max_length, train_on, on_bad_row }
    }

    /// For other messages of a chat.
    pub fn with_train_on(self, train_on: TrainOn) -> Self {
        Self { train_on, ..self }
    }

    /// For files with rows that cannot be used.
    pub fn with_on_bad_row(self, on_bad_row: OnBadRow) -> Self {
        Self { on_bad_row, ..self }
    }
}

/// The encoded rows of a file, with counts of those that need attention.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSet {
    /// The examples with at least one answer token, in file order.
    pub examples: Vec<Example>,
    /// Row index of each example.
    pub row_of: Vec<usize>,
    /// Number of rows in the file.
    pub n_rows: usize,
    /// Number of truncated examples.
    pub n_cut: usize,
    /// Number of examples dropped because no answer token was left.
    pub n_dropped: usize,
    /// Number of examples with an empty answer, of which only the end token is trained.
    pub n_empty: usize,
    /// Number of examples whose first answer token also holds the end of the prompt.
    pub n_merged: usize,
    /// Number of chats that the template renders differently once they are answered.
    pub n_differing: usize,
    /// Row indices, in file order, of those that were skipped because they cannot be used.
    pub skipped_rows: Vec<usize>,
    /// What a user should know about the rows beside the counts of truncated and dropped ones, one line each.
    pub notices: Vec<String>,
}

impl DataSet {
    /// Encodes rows; `file` names them in errors. Examples without an answer token left are dropped.
    ///
    /// # Errors
    /// If rows have no prompt, no answer, or a token that the model does not have, or if every row is dropped.
    pub fn encode(rows: &[Row], encoding: Encoding, file: &str) -> Result<Self, DataError> {
        let Encoding { template, tokenizer, vocab, max_length, train_on, on_bad_row } = encoding;
        let mut set = DataSet { n_rows: rows.len(), ..Default::default() };
        let mut bad = BadRows::default();
        for (idx, row) in rows.iter().enumerate() {
            let answers = row.readable().and_then(|row| template.encode_answered(row, tokenizer, train_on));
            let Some(answers) = bad.keep(answers)? else {
                set.skipped_rows.push(idx);
                continue;
            };
            for answered in answers {
                row.check_tokens(&answered.tokens, vocab)?;
                set.push(answered, idx, max_length);
            }
        }
        bad.finish(on_bad_row, rows.len())?;
        if set.examples.is_empty() {
            return Err(DataError::NothingLeft { file: file.into(), rows: rows.len(), max_length });
        }
        set.notices = set.counted(template, file);
        set.notices.extend(bad.notice());
        set.notices.extend(unused_fields(file, rows, |row, name| template.uses(row, name)));
        Ok(set)
    }

    /// The rows that a generated answer can be compared with: those that were not skipped and end with an answer.
    pub fn answered(&self, rows: &[Row], template: &Template) -> Vec<Row> {
        let is_skipped = |idx: &usize| self.skipped_rows.binary_search(idx).is_ok();
        let rows =
            rows.iter().enumerate().filter(|(idx, row)| !is_skipped(idx) && template.answer(row).is_ok());
        rows.map(|(_, row)| row.clone()).collect()
    }

    fn push(&mut self, answered: EncodedAnswer, row: usize, max_length: usize) {
        let EncodedAnswer { mut tokens, prompt_len, is_empty, is_merged, differs } = answered;
        if tokens.len() > max_length {
            tokens.truncate(max_length);
            self.n_cut += 1;
        }
        // The first token of a row has no state before it that could predict it, so it counts as the prompt.
        let prompt_len = prompt_len.max(1);
        if tokens.len() <= prompt_len {
            self.n_dropped += 1;
            return;
        }
        self.n_empty += usize::from(is_empty);
        self.n_merged += usize::from(is_merged);
        self.n_differing += usize::from(differs);
        self.examples.push(Example { tokens, prompt_len });
        self.row_of.push(row);
    }

    /// The counts that are not zero, with what they mean.
    fn counted(&self, template: &Template, file: &str) -> Vec<String> {
        let merged = if *template == Template::Chat {
            "where one token holds the end of the prompt and the start of the answer, and is not trained; a chat template \
             should not end in a space"
        } else {
            "where one token holds the end of the prompt and the start of the answer; if the template ends in a space, \
             remove it"
        };
        let counts = [
            (self.n_empty, "with an empty answer: only the end token is trained"),
            (self.n_merged, merged),
            (
                self.n_differing,
                "that the chat template renders differently once they are answered: the answer is what follows the common \
                 part",
            ),
        ];
        let counts = counts.into_iter().filter(|(n, _)| *n > 0);
        counts.map(|(n, what)| format!("{file}: {} {what}", count(n, "row"))).collect()
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
    /// The rows that can be used, in file order.
    pub examples: Vec<LabeledText>,
    /// Row index of each example.
    pub row_of: Vec<usize>,
    /// Number of rows in the file.
    pub n_rows: usize,
    /// Number of truncated rows.
    pub n_cut: usize,
    /// Number of rows with an empty text.
    pub n_empty: usize,
    /// Number of skipped rows.
    pub n_skipped: usize,
    /// Number of skipped rows that GLUE's files are known to have.
    pub n_malformed: usize,
    /// A line for display if other rows were skipped.
    pub skipped_notice: Option<String>,
}

impl LabeledSet {
    /// What the user should know about the rows, a line each; `what` names them.
    pub fn notices(&self, what: &str) -> Vec<String> {
        let empty =
            (self.n_empty > 0).then(|| format!("{what}: {} with an empty text", count(self.n_empty, "row")));
        self.skipped_notice.clone().into_iter().chain(empty).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::parse_rows, tiny};

    fn answered(row: &Row, tokenizer: &Tokenizer) -> EncodedAnswer {
        Template::Plain.encode_answered(row, tokenizer, TrainOn::Last).expect("usable").remove(0)
    }

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
        let encode =
            |rows: &[Row], vocab| DataSet::encode(rows, Encoding::new(&Template::Plain, &t, vocab, 16), "d");
        let set = encode(&rows, t.vocab_size()).expect("something left");
        assert_eq!((set.examples.len(), set.n_cut, set.n_dropped, set.row_of[0]), (1, 1, 1, 0));
        assert_eq!(set.examples[0].tokens.last(), t.eos().map(|eos| &eos.id));
        // A tokenizer without a start token leaves an empty prompt without any.
        let empty = parse_rows(r#"{"prompt": "", "completion": "yes word word"}"#, "d.json").expect("valid");
        let mut set = encode(&rows[..1], t.vocab_size()).expect("usable");
        let of_empty = EncodedAnswer { prompt_len: 0, ..answered(&empty[0], &t) };
        set.push(of_empty.clone(), 1, 16);
        assert_eq!((set.examples[1].prompt_len, &set.examples[1].tokens), (1, &of_empty.tokens));
        let error = encode(&rows, 2).expect_err("a small vocabulary");
        assert!(matches!(error, DataError::UnknownToken { vocab: 2, .. }), "{error}");
        let error = encode(&rows[1..], t.vocab_size()).expect_err("nothing left");
        assert_eq!(
            error.to_string(),
            "d: no row has an answer token within the first 16 tokens (1 row); raise data.max_length"
        );
    }
}
