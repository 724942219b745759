//! Which keys each query sees, and what attention is computed from.

use burn::tensor::{Tensor, backend::Backend};
use std::{
    any::Any,
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Number and size of the heads.
///
/// `queries / keys` query heads share one key and value head ([grouped-query attention](https://arxiv.org/abs/2305.13245)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads.
    pub queries: usize,
    /// Number of key and value heads.
    pub keys: usize,
    /// Size of a head.
    pub dim: usize,
}

impl Heads {
    /// Number of query heads that share a key head.
    pub fn group(&self) -> usize {
        self.queries / self.keys
    }

    /// The factor of the scores, `1/√dim`.
    pub fn scale(&self) -> f64 {
        (self.dim as f64).powf(-0.5)
    }
}

/// A run of queries and the keys that they see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the keys, in the order of their positions.
    pub keys: Vec<Range<usize>>,
    /// The place of the first query in that order: with a causal mask, query `i` of the segment sees the keys up to and
    /// including the one at `offset + i`.
    pub offset: usize,
}

impl Segment {
    /// Number of keys.
    pub fn n_keys(&self) -> usize {
        self.keys.iter().map(Range::len).sum()
    }
}

/// One text of a batch in a grid: the columns of its queries, and those of its keys, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Columns of the queries.
    pub queries: Range<usize>,
    /// Columns of the keys, in the order of their positions. The last of them belong to the queries.
    pub keys: Vec<Range<usize>>,
}

/// Which of the keys of its segment a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Only keys up to its own place.
    pub causal: bool,
    /// Only this many keys, its own included; causal attention only.
    pub window: Option<usize>,
}

impl Mask {
    /// Every key.
    pub const NONE: Self = Self { causal: false, window: None };
    /// Keys up to the query's place.
    pub const CAUSAL: Self = Self { causal: true, window: None };

    /// The places of the keys that the query at `place` sees, of `n_keys` keys.
    pub fn seen(&self, place: usize, n_keys: usize) -> Range<usize> {
        if !self.causal {
            return 0..n_keys;
        }
        let end = (place + 1).min(n_keys);
        let start = self.window.map_or(0, |window| (place + 1).saturating_sub(window));
        start.min(end)..end
    }
}

/// Rows of queries and keys that lie in a grid, one text a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) batch: usize,
    /// Queries per text.
    pub(crate) seq: usize,
    /// Keys per text.
    pub(crate) slots: usize,
    /// Number of these that any query sees: the others lie behind them.
    pub(crate) used: usize,
}

/// Which keys each query of a batch sees.
///
/// Queries and keys are rows of matrices. A batch is described by segments, so its texts may be padded on either side, packed
/// one after the other, continue what a cache holds, or share a prefix that is computed once.
pub struct Spans {
    segments: Vec<Segment>,
    mask: Mask,
    n_queries: usize,
    grid: Option<Grid>,
    /// What the default bodies compute from the segments, for one backend.
    dense: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Spans {
    /// Segments whose queries cover each of `n_queries` rows exactly once.
    ///
    /// # Panics
    /// If they do not.
    pub fn packed(segments: Vec<Segment>, n_queries: usize, mask: Mask) -> Arc<Self> {
        let mut covered = vec![false; n_queries];
        for row in segments.iter().flat_map(|segment| segment.queries.clone()) {
            assert!(!std::mem::replace(&mut covered[row], true), "row {row} is in two segments");
        }
        assert!(covered.iter().all(|covered| *covered), "a query is in no segment");
        Arc::new(Self { segments, mask, n_queries, grid: None, dense: OnceLock::new() })
    }

    /// Texts in a grid: text `b` has queries in the rows `b · seq ..` and keys in the rows `b · slots ..`. Outputs of padding
    /// have no meaning.
    ///
    /// # Panics
    /// If a text exceeds the grid, or has fewer keys than queries with a causal mask.
    pub fn grid(texts: &[Text], [seq, slots]: [usize; 2], mask: Mask) -> Arc<Self> {
        let mut segments = Vec::with_capacity(texts.len());
        let mut used = 0;
        for (idx, Text { queries, keys }) in texts.iter().enumerate() {
            let n_keys: usize = keys.iter().map(Range::len).sum();
            let end = keys.iter().map(|range| range.end).max().unwrap_or(0);
            assert!(queries.end <= seq && end <= slots, "text {idx} exceeds the grid");
            assert!(!mask.causal || n_keys >= queries.len(), "text {idx} has too few keys");
            used = used.max(end);
            if !queries.is_empty() {
                segments.push(Segment {
                    queries: idx * seq + queries.start..idx * seq + queries.end,
                    keys: keys
                        .iter()
                        .map(|range| idx * slots + range.start..idx * slots + range.end)
                        .collect(),
                    offset: n_keys.saturating_sub(queries.len()),
                });
            }
        }
        let grid = Grid { batch: texts.len(), seq, slots, used };
        Arc::new(Self {
            segments,
            mask,
            n_queries: texts.len() * seq,
            grid: Some(grid),
            dense: OnceLock::new(),
        })
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The mask within each segment.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// Number of rows of queries.
    pub fn n_queries(&self) -> usize {
        self.n_queries
    }

    pub(crate) fn as_grid(&self) -> Option<Grid> {
        self.grid
    }

    /// What `make` computes from the spans: once, as long as the type stays the same.
    pub(crate) fn dense<T: Clone + Send + Sync + 'static>(&self, make: impl Fn() -> T) -> T {
        let dense = self.dense.get_or_init(|| Box::new(make()));
        dense.downcast_ref::<T>().cloned().unwrap_or_else(make)
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Spans");
        debug.field("segments", &self.segments).field("mask", &self.mask).field("n_queries", &self.n_queries);
        debug.finish_non_exhaustive()
    }
}

/// Dropout of attention weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The probability of dropping a weight.
    pub rate: f64,
    /// The same seed drops the same weights.
    pub seed: u64,
}

/// What attention is computed from.
///
/// # Shapes
/// - queries `[n_queries, heads.queries · dim]`
/// - keys, values `[n_keys, heads.keys · dim]`
/// - past: keys and values `[n_past, heads.keys · dim]` that are constants; the spans count their rows before those of `keys`
#[derive(Debug, Clone)]
pub struct AttentionInputs<B: Backend> {
    /// Queries.
    pub queries: Tensor<B, 2>,
    /// Keys.
    pub keys: Tensor<B, 2>,
    /// Values.
    pub values: Tensor<B, 2>,
    /// Constant keys and values.
    pub past: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
}

/// How attention is computed.
#[derive(Debug, Clone)]
pub struct AttentionSettings {
    /// The heads.
    pub heads: Heads,
    /// Which keys each query sees.
    pub spans: Arc<Spans>,
    /// Dropout of attention weights.
    pub dropout: Option<Dropout>,
}
