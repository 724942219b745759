//! Rows of tokens, padded to a batch.

use burn::tensor::backend::Backend;
use reft_core::{BatchLayout, RowLayout};
use reft_kernels::{Mask, Spans, Text};
use std::{ops::Range, sync::Arc};

/// The side on which short rows are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Padding {
    /// Padding before the tokens.
    Left,
    /// Padding after the tokens.
    #[default]
    Right,
}

/// A padded batch of token ids, with the position of every token in its own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, row-major `[batch, seq]`; 0 for padding.
    pub ids: Vec<u32>,
    /// Position of each token in its row, `[batch, seq]`; `None` for padding.
    pub positions: Vec<Option<usize>>,
    /// Token types, `[batch, seq]`; empty if all are 0.
    pub types: Vec<u32>,
    /// Number of tokens of each row that belong to its prompt.
    pub prompt_lens: Vec<usize>,
    /// Number of rows.
    pub batch: usize,
    /// Length of every row, padding included.
    pub seq: usize,
}

impl TokenBatch {
    /// Pads rows to the length of the longest. All their tokens are prompts.
    pub fn new<R: AsRef<[u32]>>(rows: &[R], padding: Padding) -> Self {
        let seq = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let mut batch = Self {
            ids: vec![0; rows.len() * seq],
            positions: vec![None; rows.len() * seq],
            types: Vec::new(),
            prompt_lens: rows.iter().map(|row| row.as_ref().len()).collect(),
            batch: rows.len(),
            seq,
        };
        for (idx, row) in rows.iter().enumerate() {
            let row = row.as_ref();
            let start = idx * seq + if padding == Padding::Left { seq - row.len() } else { 0 };
            for (position, id) in row.iter().enumerate() {
                batch.ids[start + position] = *id;
                batch.positions[start + position] = Some(position);
            }
        }
        batch
    }

    /// Sets the number of prompt tokens of each row; the others belong to an answer.
    pub fn with_prompt_lens(self, prompt_lens: Vec<usize>) -> Self {
        Self { prompt_lens, ..self }
    }

    /// Where the tokens are, for hooks.
    pub fn layout<B: Backend>(&self, device: &B::Device) -> BatchLayout<B> {
        let rows = self.positions.chunks(self.seq.max(1)).zip(&self.prompt_lens).map(|(row, prompt_len)| {
            let Range { start, end } = filled(row);
            let len = end - start;
            let position = row.get(start).copied().flatten().unwrap_or(0);
            RowLayout { start, len, prompt_len: *prompt_len, position }
        });
        BatchLayout::new(rows.collect(), self.seq, device)
    }

    /// Sets the token types of each row; padding gets type 0.
    pub fn with_types<R: AsRef<[u32]>>(mut self, rows: &[R]) -> Self {
        self.types = vec![0; self.ids.len()];
        for (idx, row) in rows.iter().enumerate() {
            let places = idx * self.seq..(idx + 1) * self.seq;
            let tokens = places.filter(|place| self.positions[*place].is_some());
            for (place, token_type) in tokens.zip(row.as_ref()) {
                self.types[place] = *token_type;
            }
        }
        self
    }

    /// The next token of each row, at the given position in its row.
    pub fn step(tokens: &[u32], positions: &[usize]) -> Self {
        Self {
            ids: tokens.to_vec(),
            positions: positions.iter().copied().map(Some).collect(),
            types: Vec::new(),
            prompt_lens: vec![0; tokens.len()],
            batch: tokens.len(),
            seq: 1,
        }
    }

    /// The first column of each row, in the flattened batch: the first token, if padding is on the right.
    pub fn first_columns(&self) -> Vec<usize> {
        (0..self.batch).map(|row| row * self.seq).collect()
    }

    /// Which keys the tokens see, in a batch without a cache.
    pub(crate) fn spans(&self, mask: Mask) -> Arc<Spans> {
        let texts = self.positions.chunks(self.seq.max(1)).map(|row| {
            let tokens = filled(row);
            Text { keys: vec![tokens.clone()], queries: tokens }
        });
        Spans::grid(&texts.collect::<Vec<_>>(), [self.seq, self.seq], mask)
    }

    /// Positions for the rotary embedding: of one row if all rows have the same, else of all.
    ///
    /// Padding on the right continues the count. No token attends to it, and all rows get the same positions that way.
    pub(crate) fn rotary_positions(&self) -> Vec<usize> {
        let mut all = Vec::with_capacity(self.positions.len());
        for row in self.positions.chunks(self.seq.max(1)) {
            let mut next = 0;
            for position in row {
                next = position.unwrap_or(next);
                all.push(next);
                // Left padding has position 0; the count starts at the first token.
                next += usize::from(position.is_some() || next > 0);
            }
        }
        if all.chunks(self.seq.max(1)).all(|row| *row == all[..self.seq]) {
            all.truncate(self.seq);
        }
        all
    }
}

/// The columns of the tokens of a row.
pub(crate) fn filled(row: &[Option<usize>]) -> Range<usize> {
    let start = row.iter().take_while(|position| position.is_none()).count();
    start..start + row[start..].iter().take_while(|position| position.is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_on_either_side() {
        let rows = [vec![5, 6, 7], vec![8]];
        let right = TokenBatch::new(&rows, Padding::Right);
        assert_eq!(right.ids, [5, 6, 7, 8, 0, 0]);
        assert_eq!(right.rotary_positions(), [0, 1, 2]);
        let left = TokenBatch::new(&rows, Padding::Left);
        assert_eq!(left.ids, [5, 6, 7, 0, 0, 8]);
        assert_eq!(left.rotary_positions(), [0, 1, 2, 0, 0, 0]);
    }
}
