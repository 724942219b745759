//! Keys and values of tokens that a model has already seen.

use crate::batch::TokenBatch;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Added to the scores of tokens that must not be seen. Finite, so that a row of padding that sees nothing stays finite.
const HIDDEN_SCORE: f32 = -1e30;

/// Keys and values of every layer, with room for a fixed number of tokens.
///
/// A slot of a row is a column of the cache; it holds the token at some position of that row, or padding. Padding on
/// either side is therefore only a matter of the mask.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    /// Position of the token in each slot, `[batch][slot]`.
    slots: Vec<Vec<Option<usize>>>,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `n_layers` layers, with room for `capacity` tokens a row.
    pub fn new(n_layers: usize, capacity: usize) -> Self {
        Self { layers: vec![None; n_layers], slots: Vec::new(), capacity }
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.slots.first().map_or(0, Vec::len)
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Enters the slots of a new batch of tokens.
    pub(crate) fn enter(&mut self, tokens: &TokenBatch) {
        self.slots.resize(tokens.batch, Vec::new());
        for (slots, row) in self.slots.iter_mut().zip(tokens.positions.chunks(tokens.seq)) {
            slots.extend(row);
        }
        assert!(self.len() <= self.capacity, "the cache holds {} tokens a row", self.capacity);
    }

    /// The scores to add for the tokens entered last, as queries.
    pub(crate) fn mask(
        &self,
        tokens: &TokenBatch,
        window: Option<usize>,
        device: &B::Device,
    ) -> Option<Tensor<B, 4>> {
        mask(&self.slots, tokens.seq, window, device)
    }

    /// Appends the keys and values of the tokens entered last; returns those of all tokens.
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
        let room = || Tensor::zeros([batch, heads, self.capacity, head_dim], (&device, dtype));
        let (all_keys, all_values) = self.layers[layer].take().unwrap_or_else(|| (room(), room()));
        let place = [0..batch, 0..heads, len - seq..len, 0..head_dim];
        let all_keys = all_keys.slice_assign(place.clone(), keys);
        let all_values = all_values.slice_assign(place, values);
        let seen = (all_keys.clone().narrow(2, 0, len), all_values.clone().narrow(2, 0, len));
        self.layers[layer] = Some((all_keys, all_values));
        seen
    }
}

/// The scores to add where a query must not see a key: later tokens, padding, and tokens beyond a sliding window.
///
/// `slots` holds positions, `[batch][slot]`; the last `seq` slots are the queries. None if every query sees every key.
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
    let sees = |query: Option<usize>, key: Option<usize>| match (query, key) {
        (Some(query), Some(key)) => key <= query && window.is_none_or(|window| query - key < window),
        (Some(_), None) => false,
        // What a padding query sees does not matter.
        (None, _) => true,
    };
    let mut values = Vec::with_capacity(rows.len() * seq * n_slots);
    for row in rows {
        for query in &row[n_slots - seq..] {
            values.extend(row.iter().map(|key| if sees(*query, *key) { 0.0 } else { HIDDEN_SCORE }));
        }
    }
    if values.iter().all(|score| *score == 0.0) {
        return None;
    }
    Some(Tensor::from_data(TensorData::new(values, [rows.len(), 1, seq, n_slots]), device))
}
