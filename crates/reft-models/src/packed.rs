//! Batches without padding, in which texts that begin alike share the states of their beginning.

use crate::batch::TokenBatch;
use burn::tensor::backend::Backend;
use reft_core::{BatchLayout, Packing, Positions};
use reft_kernels::{Mask, Segment, Spans};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Number of tokens that a training pass of a language model computes, where texts that begin alike share their states.
pub fn n_packed(tokens: &TokenBatch, packing: Packing) -> usize {
    PackedTokens::new(tokens, packing, Constants::Shared).map_or(tokens.ids.len(), |packed| packed.len())
}

/// Number of tokens at the beginning of a text whose states no training changes: those before its first edit and before the
/// token that predicts its first label.
pub fn n_constant(positions: Option<Positions>, prompt_len: usize) -> usize {
    let (prefix, suffix) = positions.map_or((0..0, 0..0), |positions| positions.of_prompt(prompt_len));
    let first_edit =
        [prefix, suffix].into_iter().filter(|range| !range.is_empty()).map(|range| range.start).min();
    let first_label = prompt_len.saturating_sub(1);
    first_edit.unwrap_or(first_label).min(first_label)
}

/// The tokens of a batch, one text after the other.
///
/// Texts share a token if everything up to it agrees: the tokens, and which of them are edited. Constant tokens, which no
/// edit can change, come first; the others are active. Rows of all states count the constant ones, then the active ones.
#[derive(Debug, Clone)]
pub(crate) struct PackedTokens {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Position of each token in its text.
    pub(crate) positions: Vec<usize>,
    /// Number of constant tokens.
    pub(crate) n_constant: usize,
    /// The row of each token of the grid, `[batch · seq]`; `None` for padding.
    places: Vec<Option<usize>>,
    runs: Vec<Run>,
}

/// Which tokens of a packed batch are constant, if the hook says what it edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Constants {
    /// None.
    None,
    /// Those before the first edit and the first label of their text. Texts share them.
    Shared,
    /// The same, but no text shares anything, because the states of constant tokens come from elsewhere.
    OfEachText,
}

/// Tokens that a text adds to those before it, all constant or all active.
#[derive(Debug, Clone)]
struct Run {
    rows: Range<usize>,
    is_constant: bool,
    /// Number of tokens of the text before the run.
    offset: usize,
    /// The text's rows up to the end of the run.
    path: Vec<Range<usize>>,
}

/// What a token is apart from its predecessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Token {
    /// The row of the token before it, with those before that.
    parent: Option<usize>,
    /// Texts that share nothing differ in this.
    text: usize,
    id: u32,
    /// 1 and 2 if an edit of prefixes or suffixes takes place here.
    edited: u8,
    is_constant: bool,
}

impl PackedTokens {
    /// Packs a batch for causal attention; `None` if the hook needs a grid.
    pub(crate) fn new(tokens: &TokenBatch, packing: Packing, constants: Constants) -> Option<Self> {
        let (can_share, positions) = match packing {
            Packing::Grid => return None,
            Packing::Rows => (false, None),
            Packing::Shared(positions) => (true, positions),
        };
        let (shares, splits) = match constants {
            Constants::None => (can_share, false),
            Constants::Shared => (can_share, can_share),
            Constants::OfEachText => (false, can_share),
        };
        let mut nodes: HashMap<Token, usize> = HashMap::new();
        let mut added: Vec<(Token, u32, usize)> = Vec::new();
        let mut places = vec![None; tokens.ids.len()];
        let mut texts: Vec<Vec<usize>> = Vec::with_capacity(tokens.batch);
        for text in 0..tokens.batch {
            let columns = text * tokens.seq..(text + 1) * tokens.seq;
            let present: Vec<usize> = columns.filter(|at| tokens.positions[*at].is_some()).collect();
            let prompt_len = tokens.prompt_lens[text];
            let (prefix, suffix) = positions.map_or((0..0, 0..0), |p: Positions| p.of_prompt(prompt_len));
            let first_active = if splits { n_constant(positions, prompt_len) } else { 0 };
            let mut parent = None;
            let mut path = Vec::with_capacity(present.len());
            for (idx, at) in present.into_iter().enumerate() {
                let token = Token {
                    parent,
                    text: if shares { 0 } else { text },
                    id: tokens.ids[at],
                    edited: u8::from(prefix.contains(&idx)) + 2 * u8::from(suffix.contains(&idx)),
                    is_constant: idx < first_active,
                };
                let node = *nodes.entry(token).or_insert_with(|| {
                    added.push((token, tokens.ids[at], tokens.positions[at].unwrap_or(idx)));
                    added.len() - 1
                });
                places[at] = Some(node);
                path.push(node);
                parent = Some(node);
            }
            texts.push(path);
        }

        // Constant tokens first.
        let n_constant = added.iter().filter(|(token, ..)| token.is_constant).count();
        let (mut constant, mut active) = (0..n_constant, n_constant..added.len());
        let row_of: Vec<usize> = (added.iter())
            .map(|(token, ..)| if token.is_constant { constant.next() } else { active.next() })
            .map(|row| row.expect("as many rows as tokens"))
            .collect();
        let (mut ids, mut token_positions) = (vec![0; added.len()], vec![0; added.len()]);
        for (node, (_, id, position)) in added.iter().enumerate() {
            (ids[row_of[node]], token_positions[row_of[node]]) = (*id, *position);
        }
        let places = places.into_iter().map(|place: Option<usize>| place.map(|node| row_of[node])).collect();
        let mut runs = Vec::new();
        let mut n_seen = 0;
        for path in texts {
            // Nodes are numbered as they are added, so those that this text added are the last of its path.
            let first_new = path.iter().position(|node| *node >= n_seen).unwrap_or(path.len());
            n_seen += path.len() - first_new;
            let n_constant = path.iter().filter(|node| added[**node].0.is_constant).count();
            let rows: Vec<usize> = path.iter().map(|node| row_of[*node]).collect();
            for (range, is_constant) in
                [(first_new..n_constant, true), (first_new.max(n_constant)..rows.len(), false)]
            {
                if !range.is_empty() {
                    runs.push(Run {
                        rows: rows[range.start]..rows[range.end - 1] + 1,
                        is_constant,
                        offset: range.start,
                        path: ranges(&rows[..range.end]),
                    });
                }
            }
        }
        Some(Self { ids, positions: token_positions, n_constant, places, runs })
    }

    /// The rows of the tokens of a text, in the order of their positions.
    pub(crate) fn rows_of(&self, text: usize, seq: usize) -> Vec<usize> {
        self.places[text * seq..(text + 1) * seq].iter().flatten().copied().collect()
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Which tokens each sees, all of them.
    pub(crate) fn spans(&self, mask: Mask) -> Arc<Spans> {
        self.spans_of(|_| true, 0, self.len(), mask)
    }

    /// Which tokens the constant ones see.
    pub(crate) fn constant_spans(&self, mask: Mask) -> Arc<Spans> {
        self.spans_of(|run| run.is_constant, 0, self.n_constant, mask)
    }

    /// Which tokens the active ones see, constant ones among them.
    pub(crate) fn active_spans(&self, mask: Mask) -> Arc<Spans> {
        self.spans_of(|run| !run.is_constant, self.n_constant, self.len() - self.n_constant, mask)
    }

    fn spans_of(
        &self,
        is_query: impl Fn(&Run) -> bool,
        first: usize,
        n_queries: usize,
        mask: Mask,
    ) -> Arc<Spans> {
        let segments = self.runs.iter().filter(|run| is_query(run)).map(|run| Segment {
            queries: run.rows.start - first..run.rows.end - first,
            keys: run.path.clone(),
            offset: run.offset,
        });
        Spans::packed(segments.collect(), n_queries, mask)
    }

    /// The layout of all tokens, or of the active ones.
    pub(crate) fn layout<B: Backend>(
        &self,
        tokens: &TokenBatch,
        first: usize,
        device: &B::Device,
    ) -> BatchLayout<B> {
        tokens.layout(device).packed(self.places_from(first))
    }

    /// The row of each token of the grid among the tokens from `first` on.
    pub(crate) fn places_from(&self, first: usize) -> Vec<Option<usize>> {
        self.places.iter().map(|place| place.and_then(|row| row.checked_sub(first))).collect()
    }
}

/// Ascending numbers as ranges.
pub(crate) fn ranges(rows: &[usize]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for row in rows {
        match ranges.last_mut() {
            Some(last) if last.end == *row => last.end += 1,
            _ => ranges.push(*row..*row + 1),
        }
    }
    ranges
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::batch::Padding;

    fn pack(
        rows: &[&[u32]],
        prompt_lens: &[usize],
        positions: Option<&str>,
        constants: Constants,
    ) -> PackedTokens {
        let tokens = TokenBatch::new(rows, Padding::Right).with_prompt_lens(prompt_lens.to_vec());
        let positions = positions.map(|text| text.parse().expect("positions"));
        PackedTokens::new(&tokens, Packing::Shared(positions), constants).expect("packed")
    }

    #[test]
    fn beginnings_are_shared_where_tokens_and_edits_agree() {
        let rows: [&[u32]; 3] = [&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 3, 6, 7]];
        let packed = pack(&rows, &[4, 3, 5], None, Constants::None);
        assert_eq!(packed.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 2, 3, 4]);
        let segments = packed.spans(Mask::CAUSAL).segments().to_vec();
        assert_eq!(segments[1], Segment { queries: 4..5, keys: vec![0..2, 4..5], offset: 2 });
        assert_eq!(segments[2], Segment { queries: 5..7, keys: vec![0..3, 5..7], offset: 3 });
        // The first prompt ends with an edited token that is not the last of the second.
        assert_eq!(pack(&[&[1, 2], &[1, 2, 3]], &[2, 3], Some("l1"), Constants::None).ids, [1, 2, 2, 3]);
        assert_eq!(pack(&[&[1, 2], &[1, 2, 3]], &[2, 3], Some("f1"), Constants::None).ids, [1, 2, 3]);
    }

    #[test]
    fn tokens_before_the_first_edit_are_constant() {
        let rows: [&[u32]; 2] = [&[1, 2, 3, 4, 9], &[1, 2, 5, 9]];
        let packed = pack(&rows, &[4, 3], Some("l1"), Constants::Shared);
        assert_eq!((packed.n_constant, packed.ids.as_slice()), (3, &[1, 2, 3, 4, 9, 5, 9][..]));
        let active = packed.active_spans(Mask::CAUSAL).segments().to_vec();
        assert_eq!(active[0], Segment { queries: 0..2, keys: vec![0..5], offset: 3 });
        assert_eq!(active[1], Segment { queries: 2..4, keys: vec![0..2, 5..7], offset: 2 });
        assert_eq!(packed.constant_spans(Mask::CAUSAL).segments().len(), 1);
        let places = packed.places_from(packed.n_constant);
        assert_eq!(places, [None, None, None, Some(0), Some(1), None, None, Some(2), Some(3), None]);
    }
}
