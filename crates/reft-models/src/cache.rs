//! The KV cache: keys and values of the tokens that a model has already read.

use crate::batch::{TokenBatch, filled};
use burn::tensor::{Tensor, backend::Backend};
use reft_kernels::{Kernels, Mask, Spans, Text};
use std::{ops::Range, sync::Arc};

/// Keys and values of every layer, with a fixed capacity.
///
/// Each slot of a row holds the token at some position of that row, or padding. The mask is computed from these
/// positions, so padding may be on either side.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Option<(Tensor<B, 2>, Tensor<B, 2>)>>,
    /// Position of the token in each slot, `[batch][slot]`.
    slots: Vec<Vec<Option<usize>>>,
    capacity: usize,
}

impl<B: Kernels> KvCache<B> {
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

    /// Which slots the tokens entered last see.
    pub(crate) fn spans(&self, seq: usize, mask: Mask) -> Arc<Spans> {
        let texts = self.slots.iter().map(|slots| {
            let first = slots.len() - seq;
            let tokens = filled(&slots[first..]);
            Text { queries: tokens, keys: runs(slots) }
        });
        Spans::grid(&texts.collect::<Vec<_>>(), [seq, self.capacity], mask)
    }

    /// Appends the keys and values of the tokens entered last, and returns those of all slots, used or not.
    ///
    /// # Shapes
    /// - keys, values `[batch · seq, d_kv]`; output `[batch · capacity, d_kv]`
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let [n, d_kv] = keys.dims();
        let (batch, len) = (self.slots.len(), self.len());
        let seq = n / batch;
        let rows: Vec<usize> = (0..batch)
            .flat_map(|row| (len - seq..len).map(move |slot| (row, slot)))
            .map(|(row, slot)| row * self.capacity + slot)
            .collect();
        let empty = || Tensor::zeros([batch * self.capacity, d_kv], (&keys.device(), keys.dtype()));
        let (all_keys, all_values) = self.layers[layer].take().unwrap_or_else(|| (empty(), empty()));
        let all =
            (Kernels::write_rows(all_keys, &rows, keys), Kernels::write_rows(all_values, &rows, values));
        self.layers[layer] = Some(all.clone());
        all
    }
}

/// The slots with tokens; padding on the right of a prompt is between those of the prompt and those after it.
fn runs(slots: &[Option<usize>]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < slots.len() {
        let run = filled(&slots[start..]);
        if !run.is_empty() {
            runs.push(start + run.start..start + run.end);
        }
        start += run.end.max(1);
    }
    runs
}
