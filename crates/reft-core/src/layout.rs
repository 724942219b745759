//! Where the tokens of a forward pass are: prompts, later tokens and padding.

use crate::position::{Part, Positions, PromptSpan};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use std::{cell::RefCell, collections::HashSet, ops::Range};

/// One row of a padded batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// Index of the first token in the row: the amount of left padding.
    pub start: usize,
    /// Number of tokens, without padding.
    pub len: usize,
    /// Number of those that belong to the prompt: all of them unless the row goes on with an answer, none if the pass adds a
    /// generated token.
    pub prompt_len: usize,
    /// Position of the first token in its text: 0, or the number of tokens already in the KV cache.
    pub position: usize,
}

impl RowLayout {
    /// A prompt of `len` tokens without padding.
    pub fn prompt_of(len: usize) -> Self {
        Self { start: 0, len, prompt_len: len, position: 0 }
    }

    /// The columns of the tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The columns of the prompt's tokens.
    pub fn prompt(&self) -> Range<usize> {
        self.start..self.start + self.prompt_len
    }
}

/// The rows of one forward pass. Hidden states of it have the shape `[batch, seq, d_model]`, or `[1, tokens, d_model]` if they
/// are packed.
#[derive(Debug)]
pub struct BatchLayout<B: Backend> {
    rows: Vec<RowLayout>,
    seq: usize,
    /// The row of each token of the grid among packed states; `None` for tokens that are not there.
    packed: Option<Vec<Option<usize>>>,
    device: B::Device,
    /// Index tensors that some hook has asked for.
    indices: RefCell<Vec<PromptIndex<B>>>,
}

/// The rows at some positions of the prompts.
#[derive(Debug)]
struct PromptIndex<B: Backend> {
    positions: Positions,
    part: Part,
    index: Option<RowIndex<B>>,
}

/// Indices of rows of the flattened batch `[batch · seq, d_model]`, on the device.
pub type RowIndex<B> = Tensor<B, 1, Int>;

impl<B: Backend> BatchLayout<B> {
    /// Rows that are padded to `seq` tokens.
    ///
    /// # Panics
    /// If a row is longer than `seq`, or its prompt longer than the row.
    pub fn new(rows: Vec<RowLayout>, seq: usize, device: &B::Device) -> Self {
        for (idx, row) in rows.iter().enumerate() {
            assert!(
                row.start + row.len <= seq && row.prompt_len <= row.len,
                "row {idx} does not fit {seq} columns: {row:?}"
            );
        }
        Self { rows, seq, packed: None, device: device.clone(), indices: RefCell::default() }
    }

    /// The same rows for states that are packed into `[1, tokens, d_model]`, see [`Packing`](crate::Packing).
    ///
    /// `places` has the row of each token of the padded batch, `[batch · seq]`. Several tokens may share one; padding, and
    /// tokens whose states are not needed, have none.
    ///
    /// # Panics
    /// If there is not one place per token.
    pub fn packed(self, places: Vec<Option<usize>>) -> Self {
        assert_eq!(places.len(), self.rows.len() * self.seq, "one place per token of the grid");
        Self { packed: Some(places), indices: RefCell::default(), ..self }
    }

    /// Prompts of `seq` tokens each, without padding.
    pub fn unpadded(batch: usize, seq: usize, device: &B::Device) -> Self {
        Self::new(vec![RowLayout::prompt_of(seq); batch], seq, device)
    }

    /// The rows.
    pub fn rows(&self) -> &[RowLayout] {
        &self.rows
    }

    /// Number of tokens that every row is padded to.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// The rows of the flattened batch at these positions of the prompts; `None` if there are none. Computed once per pass.
    pub fn prompt_index(&self, positions: Positions, part: Part) -> Option<RowIndex<B>> {
        let mut indices = self.indices.borrow_mut();
        let known = indices.iter().find(|known| (known.positions, known.part) == (positions, part));
        if let Some(known) = known {
            return known.index.clone();
        }
        let spans: Vec<PromptSpan> =
            self.rows.iter().map(|row| PromptSpan { start: row.start, len: row.prompt_len }).collect();
        let index = self.index(positions.rows(&spans, self.seq).of(part));
        indices.push(PromptIndex { positions, part, index: index.clone() });
        index
    }

    /// The rows of the flattened batch with a token that is not part of a prompt: an answer's, or a generated one.
    pub fn answer_index(&self) -> Option<RowIndex<B>> {
        self.index(self.flat(|row| row.start + row.prompt_len..row.start + row.len))
    }

    /// The rows of the flattened batch with a token.
    pub fn token_index(&self) -> Option<RowIndex<B>> {
        self.index(self.flat(|row| row.tokens()))
    }

    /// The rows of the flattened batch with the last token of each row.
    pub fn last_token_index(&self) -> Option<RowIndex<B>> {
        self.index(
            self.flat(|row| (row.start + row.len).saturating_sub(1).max(row.start)..row.start + row.len),
        )
    }

    fn flat(&self, columns: impl Fn(&RowLayout) -> Range<usize>) -> Vec<usize> {
        let rows = self.rows.iter().enumerate();
        rows.flat_map(|(idx, row)| columns(row).map(move |column| idx * self.seq + column)).collect()
    }

    /// Indices of rows of the flattened grid.
    fn index(&self, rows: Vec<usize>) -> Option<RowIndex<B>> {
        let rows = match &self.packed {
            None => rows,
            Some(places) => {
                let mut seen = HashSet::new();
                rows.into_iter().filter_map(|row| places[row]).filter(|place| seen.insert(*place)).collect()
            }
        };
        let n_rows = rows.len();
        let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        (n_rows > 0).then(|| Tensor::from_data(TensorData::new(rows, [n_rows]), &self.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    /// An index is uploaded to the device, which costs time.
    #[test]
    fn hooks_of_the_same_positions_share_one_index() {
        let layout = BatchLayout::<Flex>::unpadded(2, 5, &Default::default());
        let positions = Positions::Ends { first: 1, last: 1 };
        let index = |part| layout.prompt_index(positions, part).expect("rows").into_data().convert::<i64>();
        for _ in 0..3 {
            assert_eq!(index(Part::Prefix).to_vec::<i64>().expect("integers"), [0, 5]);
        }
        index(Part::Suffix);
        assert_eq!(layout.indices.borrow().len(), 2);
    }
}
