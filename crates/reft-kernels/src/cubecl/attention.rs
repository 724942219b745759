//! Attention: Burn's products, and one kernel for everything between them.

use super::{
    decode::decode,
    launch::{covers, primitive, tensor},
    softmax::{softmax, softmax_backward},
};
use crate::{
    attention::{AttentionInputs, AttentionSettings, Heads, Spans},
    default::{Layout, all_keys},
};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use std::ops::Range;

/// What is computed from the spans once.
#[derive(Debug, Clone)]
struct Tables<B: Backend> {
    layout: Layout<B>,
    /// [`table`]; `None` if a query sees more than two runs.
    seen: Option<Tensor<B, 2, Int>>,
}

/// For each query of each text, padding included: start and end of the first run of columns that it sees, start and end of the
/// second, and its row, or the number of rows if it has none.
fn table(spans: &Spans, batch: usize, seq: usize) -> Option<Vec<i64>> {
    let grid = spans.as_grid();
    let is_grid = grid.is_some();
    let mut table = vec![[0; 5]; batch * seq];
    for (place, entry) in table.iter_mut().enumerate() {
        entry[4] = if is_grid { place } else { spans.n_queries() };
    }
    for (idx, segment) in spans.segments().iter().enumerate() {
        // The columns of packed keys are consecutive.
        let columns: Vec<Range<usize>> = match grid {
            Some(grid) => {
                let first = segment.queries.start / seq * grid.slots;
                segment.keys.iter().map(|rows| rows.start - first..rows.end - first).collect()
            }
            None => std::iter::once(0..segment.n_keys()).collect(),
        };
        for (i, row) in segment.queries.clone().enumerate() {
            let seen = spans.mask().seen(segment.offset + i, segment.n_keys());
            let [first, second] = runs(&columns, seen)?;
            let place = if is_grid { row } else { idx * seq + i };
            table[place] = [first.start, first.end, second.start, second.end, row];
        }
    }
    Some(table.into_iter().flatten().map(|number| number as i64).collect())
}

/// The columns of the keys at `places`, if they lie in at most two runs.
fn runs(columns: &[Range<usize>], places: Range<usize>) -> Option<[Range<usize>; 2]> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut first_place = 0;
    for columns in columns {
        let start = places.start.max(first_place) - first_place;
        let end = places.end.min(first_place + columns.len()).saturating_sub(first_place);
        first_place += columns.len();
        if start >= end {
            continue;
        }
        let run = columns.start + start..columns.start + end;
        match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        }
    }
    let mut runs = runs.into_iter();
    let pair = [runs.next().unwrap_or(0..0), runs.next().unwrap_or(0..0)];
    runs.next().is_none().then_some(pair)
}

/// Attention that the kernels compute.
pub(super) struct Plan<B: Backend> {
    layout: Layout<B>,
    seen: Tensor<B, 2, Int>,
    heads: Heads,
    n_queries: usize,
}

impl<R, B> Plan<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    /// `None` if the default body has to.
    pub(super) fn new(inputs: &AttentionInputs<B>, settings: &AttentionSettings) -> Option<Self> {
        let AttentionSettings { heads, spans, dropout } = settings;
        let AttentionInputs { queries, keys, values, past } = inputs;
        let of_past = past.iter().flat_map(|(keys, values)| [keys, values]);
        let is_one_dtype = [keys, values].into_iter().chain(of_past).all(|x| x.dtype() == queries.dtype());
        if dropout.is_some() || !is_one_dtype || !covers(queries) || !covers(keys) {
            return None;
        }
        let device = queries.device();
        let Tables { layout, seen } = spans.dense(|| {
            let layout = Layout::new(spans, &device);
            let n = layout.batch * layout.seq;
            let seen = table(spans, layout.batch, layout.seq);
            let seen = seen.map(|seen| Tensor::from_data(TensorData::new(seen, [n, 5]), &device));
            Tables::<B> { layout, seen }
        });
        Some(Self { layout, seen: seen?, heads: *heads, n_queries: spans.n_queries() })
    }

    /// `QKᵀ`, and the factor that is still missing.
    fn scores(&self, queries: Tensor<B, 4>, keys: Tensor<B, 4>) -> (Tensor<B, 4>, f64) {
        let scale = self.heads.scale();
        // Undivided products could exceed the largest number of f16.
        let (queries, scale) =
            if queries.dtype() == DType::F16 { (queries.mul_scalar(scale), 1.0) } else { (queries, scale) };
        (self.grouped(queries).matmul(keys.swap_dims(2, 3)), scale)
    }

    /// `[batch, heads.queries, seq, dim]` as `[batch, heads.keys, group · seq, dim]`, so that the key head of a group is used in
    /// place instead of repeated.
    fn grouped(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let Self { layout, heads, .. } = self;
        x.reshape([layout.batch, heads.keys, heads.group() * layout.seq, heads.dim])
    }

    /// The reverse of [`grouped`](Self::grouped), as rows.
    fn query_rows(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let Self { layout, heads, .. } = self;
        layout.query_rows(x.reshape([layout.batch, heads.queries, layout.seq, heads.dim]))
    }

    /// The output, when there will be no backward pass.
    pub(super) fn attention(&self, inputs: AttentionInputs<B>) -> Tensor<B, 2> {
        let Self { layout, seen, heads, .. } = self;
        if layout.is_grid() && layout.seq == 1 && inputs.past.is_none() {
            let AttentionInputs { queries, keys, values, .. } = inputs.clone();
            let tensors = [queries, keys, values].map(primitive);
            if let Some(output) = decode(tensors, seen.clone().into_primitive(), *heads, layout.used) {
                return tensor(output);
            }
        }
        self.attention_kept(inputs).0
    }

    /// The output, and the log-sum-exp of the scores as the backward pass will round them.
    pub(super) fn attention_kept(&self, inputs: AttentionInputs<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let Self { layout, seen, heads, n_queries } = self;
        let seen = seen.clone().into_primitive();
        let (past_keys, past_values) = inputs.past.unzip();
        let queries = layout.queries(inputs.queries, *heads);
        let keys = layout.keys(all_keys(past_keys, inputs.keys), *heads);
        let values = layout.keys(all_keys(past_values, inputs.values), *heads);
        let (scores, scale) = self.scores(queries, keys);
        let shape = [*n_queries, heads.queries];
        let (weights, lse) = softmax(primitive(scores), seen, shape, layout.seq, scale as f32);
        (self.query_rows(tensor::<B, 4>(weights).matmul(values)), tensor(lse))
    }

    /// The gradients of queries, keys and values.
    pub(super) fn backward(
        &self,
        inputs: AttentionInputs<B>,
        lse: Tensor<B, 2>,
        grad: Tensor<B, 2>,
    ) -> [Tensor<B, 2>; 3] {
        let Self { layout, heads, .. } = self;
        let (past_keys, past_values) = inputs.past.unzip();
        let n_past = past_keys.as_ref().map_or(0, |past| past.dims()[0]);
        let n_new = inputs.keys.dims()[0];
        let queries = layout.queries(inputs.queries, *heads);
        let keys = layout.keys(all_keys(past_keys, inputs.keys), *heads);
        let values = layout.keys(all_keys(past_values, inputs.values), *heads);
        let grad = self.grouped(layout.queries(grad, *heads));

        let (scores, scale) = self.scores(queries.clone(), keys.clone());
        let weights_grad = grad.clone().matmul(values.swap_dims(2, 3));
        let scales = [scale as f32, heads.scale() as f32];
        let (scores, weights_grad) = (primitive(scores), primitive(weights_grad));
        let seen = self.seen.clone().into_primitive();
        let [weights, scores_grad] =
            softmax_backward(scores, weights_grad, seen, primitive(lse), layout.seq, scales)
                .map(tensor::<B, 4>);
        let values_grad = weights.swap_dims(2, 3).matmul(grad);
        let queries_grad = scores_grad.clone().matmul(keys);
        let keys_grad = scores_grad.swap_dims(2, 3).matmul(self.grouped(queries));
        let new_rows = |grad: Tensor<B, 4>| {
            let rows = layout.key_rows(grad, n_past + n_new);
            if n_past > 0 { rows.narrow(0, n_past, n_new) } else { rows }
        };
        [self.query_rows(queries_grad), new_rows(keys_grad), new_rows(values_grad)]
    }
}
