//! Examples as padded batches.

use super::dataset::{Example, LabeledText};
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
}

impl LanguageModelBatch {
    /// Pads examples and finds their labels.
    pub fn new(examples: &[&Example]) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let prompt_lens = examples.iter().map(|e| e.prompt_len).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right).with_prompt_lens(prompt_lens);
        let mut batch = Self { label_rows: vec![], labels: vec![], example_of: vec![], tokens };
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
}

impl ClassifierBatch {
    /// Pads examples. The whole text counts as the prompt.
    pub fn new(examples: &[&LabeledText]) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let types: Vec<&[u32]> = examples.iter().map(|e| e.types.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right).with_types(&types);
        Self { tokens, targets: examples.iter().map(|e| e.target).collect() }
    }

    /// Number of tokens, without padding.
    pub fn n_tokens(&self) -> usize {
        self.tokens.positions.iter().flatten().count()
    }
}
