//! The KV cache: keys and values of the tokens that a model has already read.

use crate::{
    batch::{TokenBatch, filled},
    packed::{PackedTokens, ranges},
};
use burn::tensor::{Tensor, backend::Backend};
use reft_kernels::{Kernels, Mask, Segment, Spans, Text};
use std::{ops::Range, sync::Arc};

/// Keys and values of every layer, with a fixed capacity.
///
/// Each slot of a row holds the token at some position of that row, or padding. The mask is computed from these
/// positions, so padding may be on either side.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Option<KeysValues<B>>>,
    /// Position of the token in each slot, `[batch][slot]`.
    slots: Vec<Vec<Option<usize>>>,
    capacity: usize,
    prompts: Option<PackedPrompts<B>>,
}

/// Keys and values, `[n, d_kv]` each.
pub(crate) type KeysValues<B> = (Tensor<B, 2>, Tensor<B, 2>);

/// Prompts that are not in slots: without padding, and with beginnings that several of them share.
#[derive(Debug)]
struct PackedPrompts<B: Backend> {
    /// `None` until the layer has read the prompts.
    layers: Vec<Option<KeysValues<B>>>,
    /// The rows of each prompt, in the order of its tokens.
    rows: Vec<Vec<Range<usize>>>,
    n_rows: usize,
}

impl<B: Kernels> KvCache<B> {
    /// An empty cache for `n_layers` layers and up to `capacity` tokens per row.
    pub fn new(n_layers: usize, capacity: usize) -> Self {
        Self { layers: vec![None; n_layers], slots: Vec::new(), capacity, prompts: None }
    }

    /// Number of slots in use.
    pub fn len(&self) -> usize {
        self.slots.first().map_or(0, Vec::len)
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the next pass that of packed prompts, which take no slots.
    ///
    /// # Panics
    /// If tokens have been read already.
    pub(crate) fn enter_packed(&mut self, tokens: &TokenBatch, packed: &PackedTokens) {
        assert!(self.is_empty() && self.prompts.is_none(), "prompts come first");
        self.capacity = self.capacity.saturating_sub(tokens.seq);
        self.prompts = Some(PackedPrompts {
            layers: vec![None; self.layers.len()],
            rows: (0..tokens.batch).map(|text| ranges(&packed.rows_of(text, tokens.seq))).collect(),
            n_rows: packed.len(),
        });
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
        let Some(prompts) = &self.prompts else {
            return Spans::grid(&texts.collect::<Vec<_>>(), [seq, self.capacity], mask);
        };
        let segments = texts.enumerate().map(|(idx, Text { queries, keys })| {
            let queries = idx * seq + queries.start..idx * seq + queries.end;
            let first = prompts.n_rows + idx * self.capacity;
            let own = keys.into_iter().map(|keys| first + keys.start..first + keys.end);
            let keys: Vec<_> = prompts.rows[idx].iter().cloned().chain(own).collect();
            let n_keys: usize = keys.iter().map(Range::len).sum();
            Segment { offset: n_keys - queries.len(), queries, keys }
        });
        Spans::packed(segments.collect(), self.slots.len() * seq, mask)
    }

    /// Appends the keys and values of the tokens entered last. Returns those of all slots, used or not, and those of packed
    /// prompts, which [`spans`](Self::spans) counts before them.
    ///
    /// # Shapes
    /// - keys, values `[batch · seq, d_kv]`; output `[batch · capacity, d_kv]`, and `[prompt tokens, d_kv]`
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> (KeysValues<B>, Option<KeysValues<B>>) {
        let mut past = None;
        if let Some(prompts) = &mut self.prompts {
            if prompts.layers[layer].is_none() {
                prompts.layers[layer] = Some((keys.clone(), values.clone()));
                return ((keys, values), None);
            }
            past.clone_from(&prompts.layers[layer]);
        }
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
        (all, past)
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
