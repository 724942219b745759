//! Scaled dot-product attention that never keeps its scores.
//!
//! For a query `q` and the keys `kⱼ` and values `vⱼ` that it sees,
//!
//! ```text
//! sⱼ = scale · q·kⱼ      pⱼ = exp(sⱼ) / Σₗ exp(sₗ)      output = Σⱼ pⱼ vⱼ
//! ```
//!
//! The keys are taken in tiles. The scores of one tile for a block of queries fit in a cache; they
//! are turned into weights, used, and overwritten by the next tile. For this the weights of the
//! tiles seen so far are relative to the largest score so far, and the sums are scaled down when a
//! larger one comes up. The backward pass computes the weights again, from the logarithm of the
//! sum of the exponentials that the forward pass gives.
//!
//! Inside of a block, a *lane* is one head of one query. All lanes of a block use the same key
//! head, so that every row of keys and values that is read serves a whole group of heads. A matrix
//! of a block has its lanes side by side, which makes all steps of the softmax sums, products and
//! maxima of whole vectors.
//!
//! The work is cut into tasks by the shapes alone, never by the number of threads, and sums over
//! tasks run in a fixed order: results have the same bits on any number of threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{Matrix, MatrixMut, product};
use super::simd::{self, Simd, WithSimd};
use crate::attention::{Heads, Mask, Segment};

/// Lanes of a block. gemm is at its best with 64 rows on AVX-512.
const LANES: usize = 64;
/// Keys of a tile: the scores of a tile take 16 KiB.
const TILE: usize = 64;
/// The number of lanes in a block is filled up to a multiple of this, the longest vector.
const VECTOR: usize = 16;
/// A block of so few lanes, such as one new token, is computed without gemm.
const FEW: usize = 8;
/// Products of a lane and a key from which on a call uses several threads.
const PARALLEL: usize = 1 << 14;
/// Tiles of blocks that make a backward task worth its own gradients of keys and values.
const TILES_PER_PART: usize = 64;
/// The most such tasks for segments that share keys.
const MAX_PARTS: usize = 8;

/// Dropout of attention weights: each is 0 with the probability `rate`, and divided by `1 − rate`
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability to drop a weight, below 1.
    pub rate: f32,
    /// Two calls with the same seed drop the same weights.
    pub seed: u64,
}

/// The matrices that attention reads, row by row, with the heads of a row side by side.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[n_queries, heads.queries · dim]`
    pub queries: &'a [f32],
    /// `[n_new, heads.keys · dim]`
    pub keys: &'a [f32],
    /// `[n_new, heads.keys · dim]`
    pub values: &'a [f32],
    /// Keys and values of earlier calls, `[n_past, heads.keys · dim]` each, which get no gradient.
    /// Key row `j` of a segment is a row of these if `j < n_past`, and row `j − n_past` of `keys`
    /// and `values` otherwise.
    pub past: Option<(&'a [f32], &'a [f32])>,
    /// Shape of the rows.
    pub heads: Heads,
    /// Factor of the products of queries and keys, commonly `1/√dim`.
    pub scale: f32,
}

/// The outputs of attention, `[n_queries, heads.queries · dim]`.
///
/// `lse` takes the logarithm of `Σⱼ exp(sⱼ)` for each head of each query,
/// `[n_queries, heads.queries]`, which [`attention_backward`] needs. A query that sees no key, or
/// is in no segment, has the output 0 and the logarithm −∞.
pub fn attention(
    inputs: Inputs<'_>,
    segments: &[Segment],
    mask: Mask,
    dropout: Option<Dropout>,
    lse: Option<&mut [f32]>,
) -> Vec<f32> {
    let attention = Attention::new(inputs, segments, mask, dropout);
    let Heads { queries: n_heads, keys: n_key_heads, dim } = inputs.heads;
    let unused = attention.queries_in_no_segment();
    let n_queries = attention.n_queries();

    let mut output = Vec::with_capacity(n_queries * n_heads * dim);
    let output_rows = Rows::room_of(&mut output);
    let lse_rows = lse.map(|lse| {
        assert_eq!(lse.len(), n_queries * n_heads, "shape of the logarithms");
        Rows::new(lse)
    });
    let write = |head: usize, row: &[f32], logarithm: f32| {
        // SAFETY: no two segments share a query, so that a head of a query is one lane of one
        // task, or of no task, and is written once.
        unsafe {
            output_rows.write(head * dim, row);
            if let Some(lse) = &lse_rows {
                lse.write(head, &[logarithm]);
            }
        }
    };
    let zeros = vec![0.0; dim];
    for queries in unused {
        let heads = queries.start * n_heads..queries.end * n_heads;
        heads.for_each(|head| write(head, &zeros, f32::NEG_INFINITY));
    }

    let blocks = attention.blocks();
    let work: usize = blocks.iter().map(|block| block.lanes.len() * block.positions.len()).sum();
    run(blocks.len() * n_key_heads, work * n_key_heads, |task| {
        let block = &blocks[task / n_key_heads];
        if block.lanes.len() <= FEW {
            attention.forward_few(block, task % n_key_heads, write);
        } else {
            attention.forward_block(block, task % n_key_heads, write);
        }
    });
    // SAFETY: all heads of every query were written, by the tasks of its segment or as zeros.
    unsafe { output.set_len(n_queries * n_heads * dim) };
    output
}

/// The gradients of the queries `[n_queries, heads.queries · dim]` and of the new keys and values
/// `[n_new, heads.keys · dim]` each.
///
/// `output` and `lse` are what [`attention`] gave for the same arguments, and `grad` is the
/// gradient of the output. With the weights `pⱼ`, and `g` the gradient of the output of one query,
///
/// ```text
/// dvⱼ = Σ pⱼ g      dsⱼ = pⱼ (g·vⱼ − g·output)      dq = scale · Σⱼ dsⱼ kⱼ      dkⱼ = scale · Σ dsⱼ q
/// ```
///
/// where the sums without an index run over all queries that see the key. Dropout multiplies the
/// `pⱼ` of `dvⱼ`, and `g·vⱼ`, by the factors that it gave the weights.
pub fn attention_backward(
    inputs: Inputs<'_>,
    segments: &[Segment],
    mask: Mask,
    dropout: Option<Dropout>,
    output: &[f32],
    lse: &[f32],
    grad: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let attention = Attention::new(inputs, segments, mask, dropout);
    let Heads { queries: n_heads, keys: n_key_heads, dim } = inputs.heads;
    assert_eq!(output.len(), inputs.queries.len(), "shape of the output");
    assert_eq!(grad.len(), inputs.queries.len(), "shape of the gradient");
    assert_eq!(lse.len() * dim, inputs.queries.len(), "shape of the logarithms");
    let unused = attention.queries_in_no_segment();

    let mut d_queries = Vec::with_capacity(inputs.queries.len());
    let d_query_rows = Rows::room_of(&mut d_queries);
    let write = |head: usize, row: &[f32]| {
        // SAFETY: no two segments share a query, so that a head of a query is one lane of one
        // task, or of no task, and is written once.
        unsafe { d_query_rows.write(head * dim, row) };
    };
    let zeros = vec![0.0; dim];
    for queries in unused {
        let heads = queries.start * n_heads..queries.end * n_heads;
        heads.for_each(|head| write(head, &zeros));
    }

    let (parts, families) = attention.parts();
    let work: usize = parts.iter().map(|part| part.n_tiles * LANES * TILE).sum();
    let gradients = run(parts.len() * n_key_heads, work * n_key_heads, |task| {
        let part = &parts[task / n_key_heads];
        let key_head = task % n_key_heads;
        let mut gradients = KeyGradients::new(part.rows.clone(), dim);
        let results = Results { output, lse, grad };
        for block in &part.blocks {
            attention.backward_block(block, key_head, results, &mut gradients, write);
        }
        gradients
    });
    // SAFETY: all heads of every query were written, by the tasks of its segment or as zeros.
    unsafe { d_queries.set_len(inputs.queries.len()) };

    let mut d_keys = vec![0.0; inputs.keys.len()];
    let mut d_values = vec![0.0; inputs.values.len()];
    let (d_key_rows, d_value_rows) = (Rows::new(&mut d_keys), Rows::new(&mut d_values));
    run(families.len() * n_key_heads, work * n_key_heads, |task| {
        let key_head = task % n_key_heads;
        for part in families[task / n_key_heads].clone() {
            for (row, (d_key, d_value)) in gradients[part * n_key_heads + key_head].iter() {
                let at = (row * n_key_heads + key_head) * dim;
                // SAFETY: a row of keys is in one family, so that a head of it is in one task.
                unsafe {
                    d_key_rows.add(at, d_key);
                    d_value_rows.add(at, d_value);
                }
            }
        }
    });
    (d_queries, d_keys, d_values)
}

impl Dropout {
    /// Whether dropout keeps the weight of a head of a query, given by its row, for the key at a
    /// position of its segment.
    pub fn keeps(&self, query: usize, head: usize, position: usize) -> bool {
        let [first, second] = self.lane(query, head);
        let bits = dropout_bits(pulp::Scalar, first, second, position as u32);
        bits >= self.threshold()
    }

    /// What the weights that stay are multiplied by.
    fn factor(&self) -> f32 {
        1.0 / (1.0 - self.rate)
    }

    /// The random bits of a weight that is dropped are below this.
    fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 2f64.powi(32)) as u32
    }

    /// Random numbers of a head of a query.
    fn lane(&self, query: usize, head: usize) -> [u32; 2] {
        let bits = mix(mix(self.seed ^ mix(query as u64)).wrapping_add(head as u64));
        [bits as u32, (bits >> 32) as u32]
    }
}

/// The last step of the generator SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Random bits of the weights of some lanes, whose own random numbers are given, for one key.
#[inline(always)]
fn dropout_bits<S: Simd>(simd: S, first: S::u32s, second: S::u32s, position: u32) -> S::u32s {
    let step = simd.splat_u32s(position.wrapping_mul(0x9e37_79b9));
    let x = xor_shift(simd, simd.add_u32s(first, step), 16);
    let x = simd.mul_u32s(x, simd.splat_u32s(0x7feb_352d));
    let x = simd.xor_u32s(xor_shift(simd, x, 15), second);
    let x = simd.mul_u32s(x, simd.splat_u32s(0x846c_a68b));
    xor_shift(simd, x, 16)
}

/// `x xor (x >> bits)`
#[inline(always)]
fn xor_shift<S: Simd>(simd: S, x: S::u32s, bits: u32) -> S::u32s {
    simd.xor_u32s(x, simd.wrapping_dyn_shr_u32s(x, simd.splat_u32s(bits)))
}

/// The arguments of a call.
struct Attention<'a> {
    inputs: Inputs<'a>,
    segments: &'a [Segment],
    mask: Mask,
    dropout: Option<Dropout>,
    n_past: usize,
    /// Number of keys of each segment.
    n_keys: Vec<usize>,
}

/// Some lanes of a segment: lane `l` is head `l % group` of query `l / group`.
struct Block {
    segment: usize,
    lanes: Range<usize>,
    /// The positions that any of them sees.
    positions: Range<usize>,
}

/// Keys of a tile whose rows follow each other.
struct Piece<'a> {
    /// Their places in the tile.
    place: Range<usize>,
    /// `[place.len(), dim]`
    keys: Matrix<'a>,
    /// `[place.len(), dim]`
    values: Matrix<'a>,
    /// The first row among the new keys, unless they are past.
    new: Option<usize>,
}

/// What the backward pass has to know of the forward pass.
#[derive(Clone, Copy)]
struct Results<'a> {
    output: &'a [f32],
    lse: &'a [f32],
    grad: &'a [f32],
}

impl<'a> Attention<'a> {
    fn new(inputs: Inputs<'a>, segments: &'a [Segment], mask: Mask, dropout: Option<Dropout>) -> Self {
        let Heads { queries, keys, dim } = inputs.heads;
        assert!(keys > 0 && dim > 0 && queries > 0, "heads without numbers");
        assert_eq!(queries % keys, 0, "query heads are a multiple of the key heads");
        assert_eq!(inputs.queries.len() % (queries * dim), 0, "shape of the queries");
        assert_eq!(inputs.keys.len() % (keys * dim), 0, "shape of the keys");
        assert_eq!(inputs.keys.len(), inputs.values.len(), "as many values as keys");
        assert!(mask.causal || mask.window.is_none(), "a window needs a causal mask");
        let mut n_past = 0;
        if let Some((past_keys, past_values)) = inputs.past {
            assert_eq!(past_keys.len() % (keys * dim), 0, "shape of the past keys");
            assert_eq!(past_keys.len(), past_values.len(), "as many past values as keys");
            n_past = past_keys.len() / (keys * dim);
        }
        if let Some(Dropout { rate, .. }) = dropout {
            assert!((0.0..1.0).contains(&rate), "a rate of dropout is at least 0 and below 1");
        }
        let n_rows = n_past + inputs.keys.len() / (keys * dim);
        let inside = |segment: &Segment| segment.keys.iter().all(|rows| rows.end <= n_rows);
        assert!(segments.iter().all(inside), "a segment has key rows that do not exist");
        let length = |segment: &Segment| segment.keys.iter().map(ExactSizeIterator::len).sum();
        let n_keys: Vec<usize> = segments.iter().map(length).collect();
        assert!(n_keys.iter().all(|&n| n < u32::MAX as usize), "a segment has too many keys");
        Self { inputs, segments, mask, dropout, n_past, n_keys }
    }

    fn n_queries(&self) -> usize {
        self.inputs.queries.len() / (self.inputs.heads.queries * self.inputs.heads.dim)
    }

    /// The rows of queries between the segments. Panics if segments share queries.
    fn queries_in_no_segment(&self) -> Vec<Range<usize>> {
        let segments = self.segments.iter().map(|segment| segment.queries.clone());
        let mut used: Vec<_> = segments.filter(|queries| !queries.is_empty()).collect();
        used.sort_by_key(|queries| queries.start);
        let mut unused = Vec::new();
        let mut end = 0;
        for queries in used {
            assert!(end <= queries.start, "two segments share a query");
            unused.push(end..queries.start);
            end = queries.end;
        }
        assert!(end <= self.n_queries(), "a segment has queries that do not exist");
        unused.push(end..self.n_queries());
        unused
    }

    /// The positions that a lane of a segment sees.
    fn visible(&self, segment: usize, lane: usize) -> Range<usize> {
        let n_keys = self.n_keys[segment];
        if !self.mask.causal {
            return 0..n_keys;
        }
        let query = lane / self.inputs.heads.group();
        let end = self.segments[segment].offset + query + 1;
        let start = self.mask.window.map_or(0, |window| end.saturating_sub(window));
        start.min(n_keys)..end.min(n_keys)
    }

    /// The lanes of all segments for one key head, in blocks.
    fn blocks(&self) -> Vec<Block> {
        let group = self.inputs.heads.group();
        let mut blocks = Vec::new();
        for (segment, rows) in self.segments.iter().enumerate() {
            let n_lanes = rows.queries.len() * group;
            for start in (0..n_lanes).step_by(LANES) {
                let lanes = start..n_lanes.min(start + LANES);
                // A later query never sees less at the end, nor more at the start.
                let first = self.visible(segment, lanes.start).start;
                let end = self.visible(segment, lanes.end - 1).end;
                blocks.push(Block { segment, lanes, positions: first..end });
            }
        }
        blocks
    }

    /// For each lane of a block the row of its head, in a matrix that has the heads of the queries
    /// one below the other.
    fn head_rows(&self, block: &Block, key_head: usize) -> Vec<usize> {
        let group = self.inputs.heads.group();
        let first = self.segments[block.segment].queries.start;
        let row = |lane| {
            let query = first + lane / group;
            query * self.inputs.heads.queries + key_head * group + lane % group
        };
        block.lanes.clone().map(row).collect()
    }

    /// The keys and values at some positions of a segment.
    fn pieces(&self, segment: &Segment, positions: &Range<usize>, key_head: usize) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut before = 0;
        for rows in &segment.keys {
            let start = positions.start.max(before);
            let end = positions.end.min(before + rows.len());
            if start < end {
                let shift = |position: usize| position - before + rows.start;
                // The row after the last past one.
                let middle = self.n_past.clamp(shift(start), shift(end)) + before - rows.start;
                for part in [start..middle, middle..end] {
                    if !part.is_empty() {
                        let place = part.start - positions.start..part.end - positions.start;
                        pieces.push(self.piece(place, shift(part.start), key_head));
                    }
                }
            }
            before += rows.len();
        }
        pieces
    }

    /// The piece of a tile that begins with a row of the past or new keys.
    fn piece(&self, place: Range<usize>, row: usize, key_head: usize) -> Piece<'a> {
        let Heads { keys: n_heads, dim, .. } = self.inputs.heads;
        let (keys, values, row, new) = match self.inputs.past {
            Some((keys, values)) if row < self.n_past => (keys, values, row, None),
            _ => {
                let row = row - self.n_past;
                (self.inputs.keys, self.inputs.values, row, Some(row))
            }
        };
        let start = (row * n_heads + key_head) * dim;
        let strides = [n_heads * dim, 1];
        Piece {
            place,
            keys: Matrix { data: &keys[start..], strides },
            values: Matrix { data: &values[start..], strides },
            new,
        }
    }

    /// Which positions the lanes of a block see.
    fn limits(&self, block: &Block) -> Limits {
        let mut limits = Limits { start: [0; LANES], end: [0; LANES], all: 0..usize::MAX };
        for (index, lane) in block.lanes.clone().enumerate() {
            let visible = self.visible(block.segment, lane);
            limits.start[index] = visible.start as u32;
            limits.end[index] = visible.end as u32;
            limits.all.start = limits.all.start.max(visible.start);
            limits.all.end = limits.all.end.min(visible.end);
        }
        limits
    }

    /// What decides which weights of some heads are dropped.
    fn dropout_lanes(&self, head_rows: &[usize]) -> Option<DropoutLanes> {
        let dropout = self.dropout?;
        let n_heads = self.inputs.heads.queries;
        let mut lanes = [[0; LANES]; 2];
        for (lane, row) in head_rows.iter().enumerate() {
            [lanes[0][lane], lanes[1][lane]] = dropout.lane(row / n_heads, row % n_heads);
        }
        Some(DropoutLanes { lanes, threshold: dropout.threshold(), factor: dropout.factor() })
    }

    /// Computes the outputs of a block, and gives them to `write` with the row of their head and
    /// their logarithm.
    fn forward_block(&self, block: &Block, key_head: usize, write: impl Fn(usize, &[f32], f32)) {
        let Inputs { heads: Heads { dim, .. }, scale, .. } = self.inputs;
        let segment = &self.segments[block.segment];
        let n_lanes = block.lanes.len();
        let width = n_lanes.next_multiple_of(VECTOR);
        let head_rows = self.head_rows(block, key_head);
        let limits = self.limits(block);
        let dropout = self.dropout_lanes(&head_rows);
        let mut max = [f32::MIN; LANES];
        let mut sum = [0.0; LANES];

        let sizes = [width * dim, width * dim, width * dim, width * TILE];
        with_scratch(sizes, |[rows, queries, output, scores]| {
            copy_rows(self.inputs.queries, dim, &head_rows, rows);
            transpose(rows, dim, queries, width);
            output.fill(0.0);
            for start in block.positions.clone().step_by(TILE) {
                let tile = start..block.positions.end.min(start + TILE);
                let scores = &mut scores[..tile.len() * width];
                let pieces = self.pieces(segment, &tile, key_head);
                for piece in &pieces {
                    // [width, dim] × [dim, keys], with the lanes side by side
                    let scores = &mut scores[piece.place.start * width..];
                    let out = MatrixMut { data: scores, strides: [1, width] };
                    let queries = Matrix { data: queries, strides: [1, width] };
                    let sizes = [width, piece.place.len(), dim];
                    product(sizes, scale, queries, piece.keys.transposed(), out, false);
                }
                if !limits.all_see(&tile) {
                    simd::dispatch(Hide { scores, limits: &limits, start, width });
                }
                simd::dispatch(Softmax { scores, max: &mut max[..width], sum: &mut sum[..width], output });
                if let Some(dropout) = &dropout {
                    simd::dispatch(Drop { weights: scores, dropout, start, width });
                }
                for piece in &pieces {
                    // [width, keys] × [keys, dim]
                    let weights = &scores[piece.place.start * width..];
                    let weights = Matrix { data: weights, strides: [1, width] };
                    let out = MatrixMut { data: output, strides: [1, width] };
                    let sizes = [width, dim, piece.place.len()];
                    product(sizes, 1.0, weights, piece.values, out, true);
                }
            }
            transpose(output, width, rows, dim);
            for ((lane, row), head) in rows.chunks_exact_mut(dim).enumerate().zip(head_rows) {
                normalize(row, sum[lane]);
                write(head, row, logarithm(max[lane], sum[lane]));
            }
        });
    }

    /// What [`Self::forward_block`] does, for a block of few lanes.
    fn forward_few(&self, block: &Block, key_head: usize, write: impl Fn(usize, &[f32], f32)) {
        let dim = self.inputs.heads.dim;
        let n_lanes = block.lanes.len();
        let head_rows = self.head_rows(block, key_head);
        let sizes = [n_lanes * dim, n_lanes * TILE, n_lanes * dim];
        with_scratch(sizes, |[queries, scores, output]| {
            copy_rows(self.inputs.queries, dim, &head_rows, queries);
            let [max, sum] = simd::dispatch(ForwardFew {
                attention: self,
                block,
                key_head,
                head_rows: &head_rows,
                queries,
                scores,
                output,
            });
            for ((lane, row), head) in output.chunks_exact_mut(dim).enumerate().zip(head_rows) {
                normalize(row, sum[lane]);
                write(head, row, logarithm(max[lane], sum[lane]));
            }
        });
    }

    /// Computes the gradients of the queries of a block, which it gives to `write` with the row of
    /// their head, and adds to those of its keys and values.
    fn backward_block(
        &self,
        block: &Block,
        key_head: usize,
        results: Results<'_>,
        gradients: &mut KeyGradients,
        write: impl Fn(usize, &[f32]),
    ) {
        let Inputs { heads: Heads { dim, .. }, scale, .. } = self.inputs;
        let segment = &self.segments[block.segment];
        let n_lanes = block.lanes.len();
        let width = n_lanes.next_multiple_of(VECTOR);
        let head_rows = self.head_rows(block, key_head);
        let limits = self.limits(block);
        let dropout = self.dropout_lanes(&head_rows);

        // A lane that sees no key, or is there to fill up a vector, has weights of 0.
        let mut lse = [f32::INFINITY; LANES];
        for (lse, &head) in lse.iter_mut().zip(&head_rows) {
            if results.lse[head] != f32::NEG_INFINITY {
                *lse = results.lse[head];
            }
        }
        let mut grad_output = [0.0; LANES];

        let (block_size, tile_size) = (width * dim, width * TILE);
        let sizes = [block_size, block_size, block_size, block_size, block_size, tile_size, tile_size];
        with_scratch(sizes, |[query_rows, queries, grad_rows, grad, d_queries, weights, d_scores]| {
            copy_rows(results.output, dim, &head_rows, query_rows);
            copy_rows(results.grad, dim, &head_rows, grad_rows);
            simd::dispatch(RowProducts { dim, x: query_rows, y: grad_rows, out: &mut grad_output });
            copy_rows(self.inputs.queries, dim, &head_rows, query_rows);
            transpose(query_rows, dim, queries, width);
            transpose(grad_rows, dim, grad, width);
            d_queries.fill(0.0);
            for start in block.positions.clone().step_by(TILE) {
                let tile = start..block.positions.end.min(start + TILE);
                let weights = &mut weights[..tile.len() * width];
                let d_scores = &mut d_scores[..tile.len() * width];
                let pieces = self.pieces(segment, &tile, key_head);
                for piece in &pieces {
                    // [width, dim] × [dim, keys], with the lanes side by side
                    let sizes = [width, piece.place.len(), dim];
                    let first = piece.place.start * width;
                    let queries = Matrix { data: queries, strides: [1, width] };
                    let out = MatrixMut { data: &mut weights[first..], strides: [1, width] };
                    product(sizes, scale, queries, piece.keys.transposed(), out, false);
                    let grad = Matrix { data: grad, strides: [1, width] };
                    let out = MatrixMut { data: &mut d_scores[first..], strides: [1, width] };
                    product(sizes, 1.0, grad, piece.values.transposed(), out, false);
                }
                if !limits.all_see(&tile) {
                    simd::dispatch(Hide { scores: weights, limits: &limits, start, width });
                }
                simd::dispatch(SoftmaxBackward {
                    weights,
                    d_scores,
                    lse: &lse[..width],
                    grad_output: &grad_output[..width],
                    dropout: dropout.as_ref(),
                    start,
                });
                for piece in &pieces {
                    let n_keys = piece.place.len();
                    let first = piece.place.start * width;
                    // [width, keys] × [keys, dim]
                    let by_lane = Matrix { data: &d_scores[first..], strides: [1, width] };
                    let out = MatrixMut { data: d_queries, strides: [1, width] };
                    product([width, dim, n_keys], scale, by_lane, piece.keys, out, true);
                    // [dim, lanes] × [lanes, keys]
                    if let Some(row) = piece.new {
                        let (d_keys, d_values) = gradients.at(row);
                        let sizes = [dim, n_keys, n_lanes];
                        let out = MatrixMut { data: d_keys, strides: [1, dim] };
                        let queries = Matrix { data: query_rows, strides: [1, dim] };
                        product(sizes, scale, queries, by_lane, out, true);
                        let out = MatrixMut { data: d_values, strides: [1, dim] };
                        let grad = Matrix { data: grad_rows, strides: [1, dim] };
                        let by_lane = Matrix { data: &weights[first..], strides: [1, width] };
                        product(sizes, 1.0, grad, by_lane, out, true);
                    }
                }
            }
            transpose(d_queries, width, query_rows, dim);
            for (row, head) in query_rows.chunks_exact(dim).zip(head_rows) {
                write(head, row);
            }
        });
    }

    /// The tasks of the backward pass for one key head, and those that share keys.
    ///
    /// Segments that share new keys, directly or by way of others, are a family: they add to the
    /// same gradients. The blocks of a family make one task, or a few if there are many.
    fn parts(&self) -> (Vec<Part>, Vec<Range<usize>>) {
        let mut families: Vec<Vec<Block>> = Vec::new();
        families.resize_with(self.segments.len(), Vec::new);
        let family_of = self.families();
        for block in self.blocks() {
            families[family_of[block.segment]].push(block);
        }
        let (mut parts, mut parts_of_families) = (Vec::new(), Vec::new());
        for blocks in families.into_iter().filter(|blocks| !blocks.is_empty()) {
            let first_part = parts.len();
            let n_tiles: usize = blocks.iter().map(Block::n_tiles).sum();
            let tiles_per_part = n_tiles.div_ceil(MAX_PARTS).max(TILES_PER_PART);
            let mut part = Part::default();
            for block in blocks {
                if part.n_tiles >= tiles_per_part {
                    parts.push(std::mem::take(&mut part));
                }
                part.n_tiles += block.n_tiles();
                part.blocks.push(block);
            }
            parts.push(part);
            parts_of_families.push(first_part..parts.len());
        }
        for part in &mut parts {
            let rows = part.blocks.iter().flat_map(|block| self.new_rows(block));
            part.rows = union(rows.collect());
        }
        (parts, parts_of_families)
    }

    /// For each segment the first one of its family.
    fn families(&self) -> Vec<usize> {
        let segments = self.segments.iter().enumerate();
        let mut keys: Vec<(Range<usize>, usize)> = segments
            .flat_map(|(index, segment)| segment.keys.iter().map(move |rows| (rows, index)))
            .map(|(rows, index)| (rows.start.max(self.n_past)..rows.end, index))
            .filter(|(rows, _)| !rows.is_empty())
            .collect();
        keys.sort_by_key(|(rows, _)| rows.start);

        // Each segment points to itself or to an earlier one of its family.
        let mut earlier: Vec<usize> = (0..self.segments.len()).collect();
        let first = |earlier: &mut [usize], mut index: usize| {
            while earlier[index] != index {
                earlier[index] = earlier[earlier[index]];
                index = earlier[index];
            }
            index
        };
        for pair in 1..keys.len() {
            let (before, (rows, index)) = (&keys[pair - 1], keys[pair].clone());
            if rows.start < before.0.end {
                let a = first(&mut earlier, before.1);
                let b = first(&mut earlier, index);
                earlier[a.max(b)] = a.min(b);
                // The next rows are compared with the end of all that overlap so far.
                keys[pair].0.end = rows.end.max(before.0.end);
            }
        }
        (0..earlier.len()).map(|index| first(&mut earlier, index)).collect()
    }

    /// The rows of new keys that a block sees.
    fn new_rows(&self, block: &Block) -> Vec<Range<usize>> {
        let pieces = self.pieces(&self.segments[block.segment], &block.positions, 0);
        let new = pieces.iter().filter_map(|piece| Some(piece.new?..piece.new? + piece.place.len()));
        new.collect()
    }
}

impl Block {
    fn n_tiles(&self) -> usize {
        self.positions.len().div_ceil(TILE)
    }
}

/// A task of the backward pass.
#[derive(Default)]
struct Part {
    blocks: Vec<Block>,
    n_tiles: usize,
    /// The rows of new keys that the blocks see, in their order.
    rows: Vec<Range<usize>>,
}

/// Gradients of some rows of one key head.
struct KeyGradients {
    /// The rows, in their order.
    rows: Vec<Range<usize>>,
    /// `[n_rows, dim]`
    keys: Vec<f32>,
    /// `[n_rows, dim]`
    values: Vec<f32>,
    dim: usize,
}

impl KeyGradients {
    fn new(rows: Vec<Range<usize>>, dim: usize) -> Self {
        let n_rows: usize = rows.iter().map(ExactSizeIterator::len).sum();
        Self { rows, keys: vec![0.0; n_rows * dim], values: vec![0.0; n_rows * dim], dim }
    }

    /// The gradients from a row on.
    fn at(&mut self, row: usize) -> (&mut [f32], &mut [f32]) {
        let mut before = 0;
        for rows in &self.rows {
            if rows.contains(&row) {
                before += row - rows.start;
                break;
            }
            before += rows.len();
        }
        (&mut self.keys[before * self.dim..], &mut self.values[before * self.dim..])
    }

    /// Each row with its gradients.
    fn iter(&self) -> impl Iterator<Item = (usize, (&[f32], &[f32]))> {
        let keys = self.keys.chunks_exact(self.dim);
        let values = self.values.chunks_exact(self.dim);
        self.rows.iter().cloned().flatten().zip(keys.zip(values))
    }
}

/// The numbers that are in any of some ranges, in their order.
fn union(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut union: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

/// Which positions each lane of a block sees.
struct Limits {
    /// The first.
    start: [u32; LANES],
    /// The first after the last.
    end: [u32; LANES],
    /// What all lanes see.
    all: Range<usize>,
}

impl Limits {
    fn all_see(&self, tile: &Range<usize>) -> bool {
        self.all.start <= tile.start && tile.end <= self.all.end
    }
}

/// What decides which weights of a block are dropped.
struct DropoutLanes {
    /// Two random numbers for each lane.
    lanes: [[u32; LANES]; 2],
    threshold: u32,
    factor: f32,
}

impl DropoutLanes {
    /// The factors of the weights of a vector of lanes for one key: 0 for those that are dropped.
    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, vector: usize, position: usize) -> S::f32s {
        let [first, second] = &self.lanes;
        let (first, second) = (S::as_simd_u32s(first).0[vector], S::as_simd_u32s(second).0[vector]);
        let bits = dropout_bits(simd, first, second, position as u32);
        let stays = simd.greater_than_or_equal_u32s(bits, simd.splat_u32s(self.threshold));
        simd.select_f32s(stays, simd.splat_f32s(self.factor), simd.splat_f32s(0.0))
    }
}

/// Makes the scores of the keys that a lane does not see −∞.
struct Hide<'a> {
    /// `[keys, width]`
    scores: &'a mut [f32],
    limits: &'a Limits,
    /// Position of the first key.
    start: usize,
    width: usize,
}

impl WithSimd for Hide<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (start, _) = S::as_simd_u32s(&self.limits.start);
        let (end, _) = S::as_simd_u32s(&self.limits.end);
        let hidden = simd.splat_f32s(f32::NEG_INFINITY);
        for (key, scores) in self.scores.chunks_exact_mut(self.width).enumerate() {
            let position = simd.splat_u32s((self.start + key) as u32);
            let (scores, _) = S::as_mut_simd_f32s(scores);
            for ((score, start), end) in scores.iter_mut().zip(start).zip(end) {
                let after_start = simd.less_than_or_equal_u32s(*start, position);
                let before_end = simd.less_than_u32s(position, *end);
                let visible = simd.and_m32s(after_start, before_end);
                *score = simd.select_f32s(visible, *score, hidden);
            }
        }
    }
}

/// Turns the scores of a tile into weights relative to the largest score so far.
struct Softmax<'a> {
    /// `[keys, width]`
    scores: &'a mut [f32],
    /// The largest score of each lane so far.
    max: &'a mut [f32],
    /// The sum of the weights of each lane so far.
    sum: &'a mut [f32],
    /// The sum of the weighted values so far, `[dim, width]`.
    output: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (scores, _) = S::as_mut_simd_f32s(self.scores);
        let (max, _) = S::as_mut_simd_f32s(self.max);
        let (sum, _) = S::as_mut_simd_f32s(self.sum);
        let (output, _) = S::as_mut_simd_f32s(self.output);
        let vectors = max.len();
        for vector in 0..vectors {
            let mut new_max = max[vector];
            for row in scores.chunks_exact(vectors) {
                new_max = simd.max_f32s(new_max, row[vector]);
            }
            let factor = exp_of_difference(simd, max[vector], new_max);
            max[vector] = new_max;
            let mut new_sum = simd.mul_f32s(sum[vector], factor);
            for row in scores.chunks_exact_mut(vectors) {
                row[vector] = exp_of_difference(simd, row[vector], new_max);
                new_sum = simd.add_f32s(new_sum, row[vector]);
            }
            sum[vector] = new_sum;
            for row in output.chunks_exact_mut(vectors) {
                row[vector] = simd.mul_f32s(row[vector], factor);
            }
        }
    }
}

#[inline(always)]
fn exp_of_difference<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
    simd::exp(simd, simd.sub_f32s(x, y))
}

/// Applies dropout to the weights of a tile.
struct Drop<'a> {
    /// `[keys, width]`
    weights: &'a mut [f32],
    dropout: &'a DropoutLanes,
    /// Position of the first key.
    start: usize,
    width: usize,
}

impl WithSimd for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (key, weights) in self.weights.chunks_exact_mut(self.width).enumerate() {
            let (weights, _) = S::as_mut_simd_f32s(weights);
            for (vector, weight) in weights.iter_mut().enumerate() {
                let factors = self.dropout.factors(simd, vector, self.start + key);
                *weight = simd.mul_f32s(*weight, factors);
            }
        }
    }
}

/// Turns the scores of a tile into weights, after dropout, and the gradients of the weights into
/// those of the scores.
struct SoftmaxBackward<'a> {
    /// `[keys, width]`
    weights: &'a mut [f32],
    /// `[keys, width]`
    d_scores: &'a mut [f32],
    /// `[width]`
    lse: &'a [f32],
    /// The product of the output and its gradient, `[width]`.
    grad_output: &'a [f32],
    dropout: Option<&'a DropoutLanes>,
    /// Position of the first key.
    start: usize,
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.lse.len();
        let (lse, _) = S::as_simd_f32s(self.lse);
        let (grad_output, _) = S::as_simd_f32s(self.grad_output);
        let weights = self.weights.chunks_exact_mut(width);
        let d_scores = self.d_scores.chunks_exact_mut(width);
        for (key, (weights, d_scores)) in weights.zip(d_scores).enumerate() {
            let (weights, _) = S::as_mut_simd_f32s(weights);
            let (d_scores, _) = S::as_mut_simd_f32s(d_scores);
            for (vector, (weight, d_score)) in weights.iter_mut().zip(d_scores).enumerate() {
                let kept = exp_of_difference(simd, *weight, lse[vector]);
                *weight = kept;
                if let Some(dropout) = self.dropout {
                    let factors = dropout.factors(simd, vector, self.start + key);
                    *weight = simd.mul_f32s(kept, factors);
                    *d_score = simd.mul_f32s(*d_score, factors);
                }
                let difference = simd.sub_f32s(*d_score, grad_output[vector]);
                *d_score = simd.mul_f32s(kept, difference);
            }
        }
    }
}

/// The product of each row of a matrix with that of another, `[rows, dim]` each.
struct RowProducts<'a> {
    dim: usize,
    x: &'a [f32],
    y: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for RowProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.x.chunks_exact(self.dim).zip(self.y.chunks_exact(self.dim));
        for (out, (x, y)) in self.out.iter_mut().zip(rows) {
            *out = simd::dot(simd, x, y);
        }
    }
}

/// The outputs of a block of few lanes. Each row of keys and values is read once for all of them.
struct ForwardFew<'a> {
    attention: &'a Attention<'a>,
    block: &'a Block,
    key_head: usize,
    head_rows: &'a [usize],
    /// `[lanes, dim]`
    queries: &'a [f32],
    /// `[lanes, TILE]`
    scores: &'a mut [f32],
    /// Takes the sum of the weighted values, `[lanes, dim]`.
    output: &'a mut [f32],
}

impl WithSimd for ForwardFew<'_> {
    /// The largest score of each lane, and the sum of the weights.
    type Output = [[f32; FEW]; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { attention, block, key_head, head_rows, queries, scores, output } = self;
        let Inputs { heads: Heads { dim, queries: n_heads, .. }, scale, .. } = attention.inputs;
        let segment = &attention.segments[block.segment];
        let mut max = [f32::MIN; FEW];
        let mut sum = [0.0; FEW];
        output.fill(0.0);
        for start in block.positions.clone().step_by(TILE) {
            let tile = start..block.positions.end.min(start + TILE);
            let pieces = attention.pieces(segment, &tile, key_head);
            for piece in &pieces {
                for (row, place) in piece.place.clone().enumerate() {
                    let key = piece.keys.row(row, dim);
                    for (lane, query) in queries.chunks_exact(dim).enumerate() {
                        scores[lane * TILE + place] = scale * simd::dot(simd, query, key);
                    }
                }
            }
            for (lane, scores) in scores.chunks_exact_mut(TILE).enumerate() {
                let visible = attention.visible(block.segment, block.lanes.start + lane);
                let place = |position: usize| position.clamp(tile.start, tile.end) - start;
                let visible = place(visible.start)..place(visible.end);
                scores[..visible.start].fill(0.0);
                scores[visible.end..].fill(0.0);
                let scores = &mut scores[visible.clone()];

                let new_max = max[lane].max(simd::max(simd, scores));
                let factor = (max[lane] - new_max).exp();
                max[lane] = new_max;
                let new_max = simd.splat_f32s(new_max);
                simd::map(
                    simd,
                    scores,
                    #[inline(always)]
                    |x| exp_of_difference(simd, x, new_max),
                );
                sum[lane] = sum[lane] * factor + simd::sum(simd, scores);
                let factor = simd.splat_f32s(factor);
                let output = &mut output[lane * dim..][..dim];
                simd::map(
                    simd,
                    output,
                    #[inline(always)]
                    |x| simd.mul_f32s(x, factor),
                );

                if let Some(dropout) = attention.dropout {
                    let row = head_rows[lane];
                    for (score, place) in scores.iter_mut().zip(visible) {
                        let keeps = dropout.keeps(row / n_heads, row % n_heads, start + place);
                        *score *= if keeps { dropout.factor() } else { 0.0 };
                    }
                }
            }
            for piece in &pieces {
                for (row, place) in piece.place.clone().enumerate() {
                    let value = piece.values.row(row, dim);
                    for (lane, output) in output.chunks_exact_mut(dim).enumerate() {
                        simd::axpy(simd, scores[lane * TILE + place], value, output);
                    }
                }
            }
        }
        [max, sum]
    }
}

/// Divides a sum of weighted values by the sum of the weights, unless there were none.
fn normalize(row: &mut [f32], sum: f32) {
    if sum != 0.0 {
        let factor = 1.0 / sum;
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

/// `ln Σⱼ exp(sⱼ)` of the largest score and the sum of the weights relative to it.
fn logarithm(max: f32, sum: f32) -> f32 {
    if sum == 0.0 { f32::NEG_INFINITY } else { max + sum.ln() }
}

/// Matrices whose rows several tasks write.
struct Rows<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the methods that use the pointer leave it to the caller that no two threads use the same
// numbers.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    fn new(numbers: &'a mut [f32]) -> Self {
        Self { start: numbers.as_mut_ptr(), len: numbers.len(), borrow: PhantomData }
    }

    /// The memory that a vector has room for, which can be written but not read.
    fn room_of(vector: &'a mut Vec<f32>) -> Self {
        let room = vector.spare_capacity_mut();
        Self { start: room.as_mut_ptr().cast(), len: room.len(), borrow: PhantomData }
    }

    /// Writes a row at an index.
    ///
    /// # Safety
    ///
    /// No other thread may use these numbers at the same time.
    unsafe fn write(&self, at: usize, row: &[f32]) {
        assert!(at + row.len() <= self.len);
        // SAFETY: the numbers are inside of the matrix, and the caller ensures that only this
        // thread uses them.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.start.add(at), row.len()) };
    }

    /// Adds a row to the numbers at an index.
    ///
    /// # Safety
    ///
    /// No other thread may use these numbers at the same time, and they have to be initialized.
    unsafe fn add(&self, at: usize, row: &[f32]) {
        assert!(at + row.len() <= self.len);
        // SAFETY: the numbers are inside of the matrix, and the caller ensures that they are
        // initialized and that only this thread uses them.
        let out = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), row.len()) };
        out.iter_mut().zip(row).for_each(|(y, x)| *y += x);
    }
}

/// Copies some rows of a matrix below each other, followed by rows of zeros.
fn copy_rows(from: &[f32], n_columns: usize, rows: &[usize], to: &mut [f32]) {
    let (copies, rest) = to.split_at_mut(rows.len() * n_columns);
    for (to, row) in copies.chunks_exact_mut(n_columns).zip(rows) {
        to.copy_from_slice(&from[row * n_columns..][..n_columns]);
    }
    rest.fill(0.0);
}

/// Writes the columns of a matrix as the rows of another. Both are row by row.
fn transpose(from: &[f32], from_columns: usize, to: &mut [f32], to_columns: usize) {
    for (column, to) in to.chunks_exact_mut(to_columns).enumerate() {
        for (y, row) in to.iter_mut().zip(from.chunks_exact(from_columns)) {
            *y = row[column];
        }
    }
}

/// Gives a function some slices with any contents, which begin at a cache line.
fn with_scratch<const N: usize, R>(sizes: [usize; N], function: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    /// Numbers in a cache line.
    const LINE: usize = 16;
    let sizes_in_lines = sizes.map(|size| size.next_multiple_of(LINE));
    let total = sizes_in_lines.iter().sum::<usize>() + LINE;
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>());
        let mut rest = &mut scratch[skip..];
        let mut sizes = sizes.into_iter();
        function(sizes_in_lines.map(|size| {
            let (slice, tail) = std::mem::take(&mut rest).split_at_mut(size);
            rest = tail;
            &mut slice[..sizes.next().unwrap_or(size)]
        }))
    })
}

/// The results of some tasks, in their order, on several threads if this is enough work.
fn run<T: Send>(n_tasks: usize, work: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if n_tasks == 1 || work < PARALLEL {
        return (0..n_tasks).map(task).collect();
    }
    (0..n_tasks).into_par_iter().with_max_len(1).map(&task).collect()
}
