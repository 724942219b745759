//! The KV cache: keys and values of the tokens that a model has already read.

use crate::batch::TokenBatch;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Added to the scores of masked tokens. Finite, so that a padding row in which everything is masked gives no NaN.
const MASKED_SCORE: f32 = -1e30;

/// Keys and values of every layer, with a fixed capacity.
///
/// Each slot of a row holds the token at some position of that row, or padding. The mask is computed from these
/// positions, so padding may be on either side.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    /// Position of the token in each slot, `[batch][slot]`.
    slots: Vec<Vec<Option<usize>>>,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `n_layers` layers and up to `capacity` tokens per row.
    pub fn new(n_layers: usize, capacity: usize) -> Self {
        Self { layers: vec![None; n_layers], slots: Vec::new(), capacity }
    }

    /// Number of slots in use.
    pub fn len(&self) -> usize {
        self.slots.first().map_or(0, Vec::len)
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds slots for a new batch of tokens.
    ///
    /// # Panics
    /// If they exceed the capacity.
    pub(crate) fn enter(&mut self, tokens: &TokenBatch) {
        self.slots.resize(tokens.batch, Vec::new());
        for (slots, row) in self.slots.iter_mut().zip(tokens.positions.chunks(tokens.seq)) {
            slots.extend(row);
        }
        assert!(self.len() <= self.capacity, "the cache holds {} tokens per row", self.capacity);
    }

    /// Position of the token in each slot, `[batch][slot]`.
    pub(crate) fn slots(&self) -> &[Vec<Option<usize>>] {
        &self.slots
    }

    /// Appends the keys and values of the tokens entered last, and returns those of all tokens.
    ///
    /// # Shapes
    /// - keys, values `[batch, kv_heads, seq, head_dim]`; output `[batch, kv_heads, len, head_dim]`
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let [batch, heads, seq, head_dim] = keys.dims();
        let len = self.len();
        let device = keys.device();
        let dtype = keys.dtype();
        let empty = || Tensor::zeros([batch, heads, self.capacity, head_dim], (&device, dtype));
        let (all_keys, all_values) = self.layers[layer].take().unwrap_or_else(|| (empty(), empty()));
        let new_slots = [0..batch, 0..heads, len - seq..len, 0..head_dim];
        let all_keys = all_keys.slice_assign(new_slots.clone(), keys);
        let all_values = all_values.slice_assign(new_slots, values);
        let used = (all_keys.clone().narrow(2, 0, len), all_values.clone().narrow(2, 0, len));
        self.layers[layer] = Some((all_keys, all_values));
        used
    }
}

/// The attention mask, added to the scores: large and negative for later tokens, padding, and tokens outside the
/// sliding window; 0 for the others. `None` if nothing is masked.
///
/// `slots` are positions, `[batch][slot]`; the last `seq` slots are the queries.
///
/// # Shapes
/// - output `[batch or 1, 1, seq, slots]`
pub(crate) fn mask<B: Backend>(
    slots: &[Vec<Option<usize>>],
    seq: usize,
    window: Option<usize>,
    device: &B::Device,
) -> Option<Tensor<B, 4>> {
    let rows = if slots.iter().all(|row| *row == slots[0]) { &slots[..1] } else { slots };
    let n_slots = rows[0].len();
    let attends = |query: Option<usize>, key: Option<usize>| match (query, key) {
        (Some(query), Some(key)) => key <= query && window.is_none_or(|window| query - key < window),
        (Some(_), None) => false,
        // The output at padding is never used.
        (None, _) => true,
    };
    let mut values = Vec::with_capacity(rows.len() * seq * n_slots);
    for row in rows {
        for query in &row[n_slots - seq..] {
            values.extend(row.iter().map(|key| if attends(*query, *key) { 0.0 } else { MASKED_SCORE }));
        }
    }
    if values.iter().all(|score| *score == 0.0) {
        return None;
    }
    Some(Tensor::from_data(TensorData::new(values, [rows.len(), 1, seq, n_slots]), device))
}
