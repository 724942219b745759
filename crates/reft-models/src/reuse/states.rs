//! What a training pass starts from.

use crate::{cache::KeysValues, packed::PackedTokens, rows::rows_of};
use burn::tensor::{Tensor, backend::Backend};

/// What a training pass starts from.
#[derive(Debug, Clone)]
pub(crate) struct EnteringStates<B: Backend> {
    /// The states of active tokens that enter the first edited block, `[active, d_model]`.
    pub(crate) active: Tensor<B, 2>,
    /// Keys and values of the constant tokens in every block from the first edited one on; empty if there are no such tokens.
    pub(crate) constant: Vec<KeysValues<B>>,
}

impl<B: Backend> EnteringStates<B> {
    /// The states of one text of a packed batch.
    pub(crate) fn of_text(&self, packed: &PackedTokens, text: usize, seq: usize) -> Self {
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
    pub(super) fn of_texts(texts: &[Self]) -> Self {
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

    pub(super) fn bytes(&self) -> u64 {
        let of = |x: &Tensor<B, 2>| (x.shape().num_elements() * x.dtype().size()) as u64;
        of(&self.active) + self.constant.iter().map(|(keys, values)| of(keys) + of(values)).sum::<u64>()
    }
}
