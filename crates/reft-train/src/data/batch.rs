//! Examples as padded batches.

use super::dataset::{Example, LabeledText};
use reft_core::{Positions, position::Rows};
use reft_models::{Padding, TokenBatch};

/// A padded batch for a language model.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageModelBatch {
    /// The tokens, padded on the right.
    pub tokens: TokenBatch,
    /// Rows of the flattened batch whose next token is a label.
    pub label_rows: Vec<usize>,
    /// The labels: the answers' token ids.
    pub labels: Vec<u32>,
    /// The example that each label belongs to.
    pub example_of: Vec<usize>,
    /// Rows of the flattened batch that are edited.
    pub edited: Rows,
}

impl LanguageModelBatch {
    /// Pads examples and finds their labels and edited rows. Without `positions` nothing is edited.
    pub fn new(examples: &[&Example], positions: Option<Positions>) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right);
        let prompt_lens: Vec<usize> = examples.iter().map(|e| e.prompt_len).collect();
        let spans = tokens.prompt_spans(&prompt_lens);
        let edited = positions.map_or_else(Rows::default, |p| p.rows(&spans, tokens.seq));
        let mut batch = Self { label_rows: vec![], labels: vec![], example_of: vec![], edited, tokens };
        for (idx, example) in examples.iter().enumerate() {
            for position in example.prompt_len..example.tokens.len() {
                batch.label_rows.push(idx * batch.tokens.seq + position - 1);
                batch.labels.push(example.tokens[position]);
                batch.example_of.push(idx);
            }
        }
        batch
    }

    /// Number of tokens, without padding.
    pub fn n_tokens(&self) -> usize {
        self.tokens.positions.iter().flatten().count()
    }
}

/// A padded batch for a classifier or a regression.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierBatch {
    /// The tokens, padded on the right.
    pub tokens: TokenBatch,
    /// The target of each row: index of the label, or the value of a regression.
    pub targets: Vec<f64>,
    /// Rows of the flattened batch that are edited. The whole text counts as the prompt.
    pub edited: Rows,
}

impl ClassifierBatch {
    /// Pads examples and finds their edited rows.
    pub fn new(examples: &[&LabeledText], positions: Positions) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let types: Vec<&[u32]> = examples.iter().map(|e| e.types.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right).with_types(&types);
        let lens: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let edited = positions.rows(&tokens.prompt_spans(&lens), tokens.seq);
        Self { tokens, targets: examples.iter().map(|e| e.target).collect(), edited }
    }

    /// Number of tokens, without padding.
    pub fn n_tokens(&self) -> usize {
        self.tokens.positions.iter().flatten().count()
    }
}
