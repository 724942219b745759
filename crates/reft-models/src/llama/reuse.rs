//! States of texts that no training changes, kept from one epoch to the next.

use crate::{
    batch::{Padding, TokenBatch},
    cache::KeysValues,
    packed::PackedTokens,
    rows::rows_of,
};
use burn::tensor::{Tensor, backend::Backend};
use std::collections::HashMap;

/// What a training pass starts from.
#[derive(Debug, Clone)]
pub(super) struct EnteringStates<B: Backend> {
    /// The states of active tokens that enter the first edited block, `[active, d_model]`.
    pub(super) active: Tensor<B, 2>,
    /// Keys and values of the constant tokens in every block from the first edited one on; empty if there are no such tokens.
    pub(super) constant: Vec<KeysValues<B>>,
}

impl<B: Backend> EnteringStates<B> {
    /// The states of one text of a packed batch.
    pub(super) fn of_text(&self, packed: &PackedTokens, text: usize, seq: usize) -> Self {
        let (constant, active): (Vec<usize>, Vec<usize>) =
            packed.rows_of(text, seq).into_iter().partition(|row| *row < packed.n_constant);
        let active: Vec<usize> = active.into_iter().map(|row| row - packed.n_constant).collect();
        let take = |x: &Tensor<B, 2>, rows: &[usize]| rows_of(x.clone(), rows.iter().copied());
        let constant = match constant.is_empty() {
            true => Vec::new(),
            false => self.constant.iter().map(|(k, v)| (take(k, &constant), take(v, &constant))).collect(),
        };
        Self { active: take(&self.active, &active), constant }
    }

    /// The states of a batch in which no text shares anything.
    fn of_texts(texts: &[Self]) -> Self {
        let layers = texts.iter().map(|text| text.constant.len()).max().unwrap_or(0);
        let all = |part: &dyn Fn(&Self) -> Option<Tensor<B, 2>>| {
            Tensor::cat(texts.iter().filter_map(part).collect(), 0)
        };
        let constant = (0..layers).map(|layer| {
            let keys = all(&|text| text.constant.get(layer).map(|states| states.0.clone()));
            let values = all(&|text| text.constant.get(layer).map(|states| states.1.clone()));
            (keys, values)
        });
        Self { active: all(&|text| Some(text.active.clone())), constant: constant.collect() }
    }

    fn bytes(&self) -> u64 {
        let of = |x: &Tensor<B, 2>| (x.shape().num_elements() * x.dtype().size()) as u64;
        of(&self.active) + self.constant.iter().map(|(keys, values)| of(keys) + of(values)).sum::<u64>()
    }
}

/// The states of texts before the first edit, which are the same in every epoch: those that enter the first edited block, and
/// the keys and values of the tokens before the first edited one in the blocks above.
#[derive(Debug)]
pub struct ReusedStates<B: Backend> {
    /// By the tokens of a text and the length of its prompt.
    texts: HashMap<(Vec<u32>, usize), EnteringStates<B>>,
    bytes: u64,
    limit: u64,
}

impl<B: Backend> ReusedStates<B> {
    /// Nothing yet, and room for this many bytes.
    pub fn new(limit: u64) -> Self {
        Self { texts: HashMap::new(), bytes: 0, limit }
    }

    /// Number of bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The states of a batch. `compute` gets the texts that are not there yet.
    pub(super) fn states_of(
        &mut self,
        tokens: &TokenBatch,
        compute: impl FnOnce(&TokenBatch) -> Vec<EnteringStates<B>>,
    ) -> EnteringStates<B> {
        let keys: Vec<(Vec<u32>, usize)> = (0..tokens.batch)
            .map(|text| {
                let places = text * tokens.seq..(text + 1) * tokens.seq;
                let present = places.filter(|at| tokens.positions[*at].is_some());
                (present.map(|at| tokens.ids[at]).collect(), tokens.prompt_lens[text])
            })
            .collect();
        let mut missing: Vec<&(Vec<u32>, usize)> = Vec::new();
        for key in &keys {
            if !self.texts.contains_key(key) && !missing.contains(&key) {
                missing.push(key);
            }
        }
        let mut computed = HashMap::new();
        if !missing.is_empty() {
            let rows: Vec<&[u32]> = missing.iter().map(|(ids, _)| ids.as_slice()).collect();
            let prompt_lens = missing.iter().map(|(_, prompt_len)| *prompt_len).collect();
            let batch = TokenBatch::new(&rows, Padding::Right).with_prompt_lens(prompt_lens);
            computed.extend(missing.into_iter().zip(compute(&batch)));
        }
        let states: Vec<EnteringStates<B>> = (keys.iter())
            .map(|key| self.texts.get(key).or_else(|| computed.get(key)).expect("kept or computed").clone())
            .collect();
        for (key, states) in computed {
            let bytes = states.bytes();
            if self.bytes + bytes <= self.limit {
                self.bytes += bytes;
                self.texts.insert(key.clone(), states);
            }
        }
        EnteringStates::of_texts(&states)
    }
}
