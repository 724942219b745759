//! Attention on dense scores.

use crate::attention::{AttentionInputs, AttentionSettings, Dropout, Heads, Segment, Spans};
use crate::dtype::to_dtype;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, backend::Backend};

/// Added to the scores of keys that a query does not see. Finite, so that a query that sees nothing gives no NaN.
const UNSEEN: f32 = -1e30;

/// How rows of queries and keys become texts of equal length.
#[derive(Debug, Clone)]
pub(crate) struct Layout<B: Backend> {
    pub(crate) batch: usize,
    /// Queries per text.
    pub(crate) seq: usize,
    /// Keys per text.
    slots: usize,
    /// Number of these that any query sees.
    pub(crate) used: usize,
    /// The rows of packed segments; `None` if they lie in a grid.
    packing: Option<Packing<B>>,
}

/// The spans as tensors of equally long texts.
#[derive(Debug, Clone)]
struct Dense<B: Backend> {
    layout: Layout<B>,
    /// Added to the scores, `[batch or 1, 1, seq or 1, used]` in f32.
    mask: Option<Tensor<B, 4>>,
}

#[derive(Debug, Clone)]
struct Packing<B: Backend> {
    /// The row of each query, and of each key, of the texts; row 0 for padding.
    queries: Tensor<B, 1, Int>,
    keys: Tensor<B, 1, Int>,
    /// Where the texts have each row of the queries.
    places: Tensor<B, 1, Int>,
}

fn index<B: Backend>(rows: Vec<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
    let len = rows.len();
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    Tensor::from_data(TensorData::new(rows, [len]), device)
}

impl<B: Backend> Layout<B> {
    pub(crate) fn new(spans: &Spans, device: &B::Device) -> Self {
        if let Some(grid) = spans.as_grid() {
            let used = grid.used.max(1).min(grid.slots);
            return Self { batch: grid.batch, seq: grid.seq, slots: grid.slots, used, packing: None };
        }
        let segments = spans.segments();
        let longest = |len: fn(&Segment) -> usize| segments.iter().map(len).max().unwrap_or(0).max(1);
        let (batch, seq, slots) =
            (segments.len(), longest(|segment| segment.queries.len()), longest(Segment::n_keys));
        let (mut queries, mut keys) = (vec![0; batch * seq], vec![0; batch * slots]);
        let mut places = vec![0; spans.n_queries()];
        for (text, segment) in segments.iter().enumerate() {
            for (i, row) in segment.keys.iter().flat_map(Clone::clone).enumerate() {
                keys[text * slots + i] = row;
            }
            for (i, row) in segment.queries.clone().enumerate() {
                queries[text * seq + i] = row;
                places[row] = text * seq + i;
            }
        }
        let packing = Packing {
            queries: index(queries, device),
            keys: index(keys, device),
            places: index(places, device),
        };
        Self { batch, seq, slots, used: slots, packing: Some(packing) }
    }

    /// Whether the rows lie in a grid, one text a row.
    #[cfg(feature = "cubecl")]
    pub(crate) fn is_grid(&self) -> bool {
        self.packing.is_none()
    }

    /// `[n_queries, heads · dim]` as `[batch, heads, seq, dim]`.
    pub(crate) fn queries(&self, x: Tensor<B, 2>, heads: Heads) -> Tensor<B, 4> {
        let x = match &self.packing {
            Some(packing) => x.select(0, packing.queries.clone()),
            None => x,
        };
        x.reshape([self.batch, self.seq, heads.queries, heads.dim]).swap_dims(1, 2)
    }

    /// `[n_keys, heads · dim]` as `[batch, heads, used, dim]`.
    pub(crate) fn keys(&self, x: Tensor<B, 2>, heads: Heads) -> Tensor<B, 4> {
        let x = match &self.packing {
            Some(packing) => x.select(0, packing.keys.clone()),
            None => x,
        };
        let x = x.reshape([self.batch, self.slots, heads.keys, heads.dim]);
        let x = if self.used < self.slots { x.narrow(1, 0, self.used) } else { x };
        x.swap_dims(1, 2)
    }

    /// The reverse of [`queries`](Self::queries).
    pub(crate) fn query_rows(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [batch, heads, seq, dim] = x.dims();
        let x = x.swap_dims(1, 2).reshape([batch * seq, heads * dim]);
        match &self.packing {
            Some(packing) => x.select(0, packing.places.clone()),
            None => x,
        }
    }

    /// The gradient of the rows of [`keys`](Self::keys).
    pub(crate) fn key_rows(&self, grad: Tensor<B, 4>, n_keys: usize) -> Tensor<B, 2> {
        let [batch, heads, used, dim] = grad.dims();
        let device = grad.device();
        let grad = grad.swap_dims(1, 2);
        let grad = if used < self.slots {
            let rest = Tensor::zeros([batch, self.slots - used, heads, dim], (&device, grad.dtype()));
            Tensor::cat(vec![grad, rest], 1)
        } else {
            grad
        };
        let grad = grad.reshape([batch * self.slots, heads * dim]);
        match &self.packing {
            Some(packing) => {
                let zeros = Tensor::zeros([n_keys, heads * dim], (&device, grad.dtype()));
                let update = burn::tensor::IndexingUpdateOp::Add;
                zeros.select_assign(0, packing.keys.clone(), grad, update)
            }
            None => grad,
        }
    }
}

impl<B: Backend> Dense<B> {
    fn new(spans: &Spans, device: &B::Device) -> Self {
        let layout = Layout::new(spans, device);
        let shape = [layout.batch, layout.seq, layout.slots, layout.used];
        let mask = match layout.packing {
            Some(_) => Some(packed_mask(spans, shape)),
            None => grid_mask(spans, shape),
        };
        let mask = mask.map(|(values, shape)| Tensor::from_data(TensorData::new(values, shape), device));
        Self { layout, mask }
    }
}

/// The mask of packed segments, `[batch, 1, seq, slots]`.
fn packed_mask(spans: &Spans, [batch, seq, slots, _]: [usize; 4]) -> (Vec<f32>, [usize; 4]) {
    let mut mask = vec![UNSEEN; batch * seq * slots];
    for (text, segment) in spans.segments().iter().enumerate() {
        for i in 0..segment.queries.len() {
            let first = (text * seq + i) * slots;
            let seen = spans.mask().seen(segment.offset + i, segment.n_keys());
            mask[first + seen.start..first + seen.end].fill(0.0);
        }
    }
    (mask, [batch, 1, seq, slots])
}

/// The mask of texts in a grid, `[batch or 1, 1, seq or 1, used]`; `None` if everything is seen.
fn grid_mask(spans: &Spans, [batch, seq, slots, used]: [usize; 4]) -> Option<(Vec<f32>, [usize; 4])> {
    let causal = spans.mask().causal;
    let mut rows: Vec<Option<Vec<f32>>> = vec![None; batch];
    let queries = if causal { seq } else { 1 };
    for segment in spans.segments() {
        let text = segment.queries.start / seq;
        let keys: Vec<usize> =
            segment.keys.iter().flat_map(Clone::clone).map(|row| row - text * slots).collect();
        // Padding sees everything: nobody reads its output, and it must not be NaN.
        let mut mask = vec![0.0; queries * used];
        if causal {
            for (i, row) in segment.queries.clone().enumerate() {
                let line = &mut mask[(row - text * seq) * used..][..used];
                let seen = spans.mask().seen(segment.offset + i, keys.len());
                line.fill(UNSEEN);
                keys[seen].iter().for_each(|key| line[*key] = 0.0);
            }
        } else {
            mask.fill(UNSEEN);
            keys.iter().for_each(|key| mask[*key] = 0.0);
        }
        rows[text] = Some(mask);
    }
    let rows: Vec<Vec<f32>> =
        rows.into_iter().map(|row| row.unwrap_or_else(|| vec![0.0; queries * used])).collect();
    // Padding on the right of causal texts needs no mask of its own: no query sees it, and what it sees itself is free.
    let longest = spans.segments().iter().max_by_key(|segment| segment.queries.len());
    let alike = |row: &Vec<f32>, text: usize| {
        let segment = spans.segments().iter().find(|segment| segment.queries.start / seq == text);
        let longest = longest.map(|segment| &rows[segment.queries.start / seq]);
        match (segment, longest) {
            (Some(segment), Some(longest)) if causal => segment.queries.clone().all(|query| {
                let line = (query - text * seq) * used..(query - text * seq + 1) * used;
                row[line.clone()] == longest[line]
            }),
            (Some(_), Some(longest)) => row == longest,
            _ => true,
        }
    };
    if rows.iter().enumerate().all(|(text, row)| alike(row, text)) {
        let mask = longest.map(|segment| rows[segment.queries.start / seq].clone())?;
        let is_free = mask.iter().all(|score| *score == 0.0);
        return (!is_free).then_some((mask, [1, 1, queries, used]));
    }
    Some((rows.concat(), [batch, 1, queries, used]))
}

/// Scores, masked and in f32, `[batch, heads, seq, used]`.
fn scores<B: Backend>(
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    mask: Option<&Tensor<B, 4>>,
    heads: Heads,
) -> Tensor<B, 4> {
    let [batch, _, seq, dim] = queries.dims();
    let [_, _, used, _] = keys.dims();
    // The queries of a group become rows of one matrix, so that their key head is used in place instead of repeated.
    let queries = queries.mul_scalar(heads.scale()).reshape([batch, heads.keys, heads.group() * seq, dim]);
    let scores = to_dtype(queries.matmul(keys.swap_dims(2, 3)), DType::F32);
    match mask {
        // A flat view adds one row to many, which is fast on every backend.
        Some(mask) if mask.dims()[0] == 1 && mask.dims()[2] == seq => {
            let flat = scores.reshape([batch * heads.queries, seq * used]);
            (flat + mask.clone().reshape([1, seq * used])).reshape([batch, heads.queries, seq, used])
        }
        Some(mask) => scores.reshape([batch, heads.queries, seq, used]) + mask.clone(),
        None => scores.reshape([batch, heads.queries, seq, used]),
    }
}

/// The factors of attention weights under dropout: 0, or `1 / (1 − rate)`.
fn dropout_factors<B: Backend>(dropout: Dropout, shape: [usize; 4], device: &B::Device) -> Tensor<B, 4> {
    B::seed(device, dropout.seed);
    // Drawn in the backend's default dtype, which not every model has.
    let kept = Tensor::random(shape, Distribution::Bernoulli(1.0 - dropout.rate), device);
    to_dtype(kept, DType::F32).mul_scalar(1.0 / (1.0 - dropout.rate))
}

/// The constant keys or values, then the others.
pub(crate) fn all_keys<B: Backend>(past: Option<Tensor<B, 2>>, new: Tensor<B, 2>) -> Tensor<B, 2> {
    match past {
        Some(past) => Tensor::cat(vec![past, new], 0),
        None => new,
    }
}

pub(crate) fn attention<B: Backend>(
    inputs: AttentionInputs<B>,
    settings: &AttentionSettings,
    with_lse: bool,
) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
    let AttentionSettings { heads, spans, dropout } = settings;
    let heads = *heads;
    let (device, dtype) = (inputs.queries.device(), inputs.queries.dtype());
    let Dense { layout, mask } = spans.dense(|| Dense::<B>::new(spans, &device));
    let (past_keys, past_values) = inputs.past.unzip();
    let queries = layout.queries(inputs.queries, heads);
    let keys = layout.keys(all_keys(past_keys, inputs.keys), heads);
    let values = layout.keys(all_keys(past_values, inputs.values), heads);
    let (batch, seq, used) = (layout.batch, layout.seq, layout.used);

    let scores = scores(queries, keys, mask.as_ref(), heads);
    let largest = scores.clone().detach().max_dim(3);
    let exp_scores = (scores - largest.clone()).exp();
    let sums = exp_scores.clone().sum_dim(3);
    let lse = with_lse.then(|| layout.query_rows(sums.clone().log() + largest));
    let kept = match dropout {
        Some(dropout) => exp_scores.clone() * dropout_factors(*dropout, exp_scores.dims(), &device),
        None => exp_scores,
    };
    let grouped = [batch, heads.keys, heads.group() * seq, used];
    let (kept, sums) = (kept.reshape(grouped), sums.reshape([batch, heads.keys, heads.group() * seq, 1]));
    // In f32 the division by the sum follows the product with V, which has `dim` columns instead of `used`. In other dtypes
    // the undivided products would overflow.
    let output = match dtype {
        DType::F32 => kept.matmul(values) / sums,
        _ => to_dtype(kept / sums, dtype).matmul(values),
    };
    (layout.query_rows(output.reshape([batch, heads.queries, seq, heads.dim])), lse)
}

/// With the weights `P = exp(S − lse)`, their factors `M` under dropout, and `D = Σ grad · output`:
/// `∂V = (P M)ᵀ ∂O`, `∂S = P (M ∂O Vᵀ − D)`, `∂Q = ∂S K / √dim`, `∂K = ∂Sᵀ Q / √dim`.
pub(crate) fn attention_backward<B: Backend>(
    inputs: AttentionInputs<B>,
    settings: &AttentionSettings,
    output: Tensor<B, 2>,
    lse: Tensor<B, 2>,
    grad: Tensor<B, 2>,
) -> [Tensor<B, 2>; 3] {
    let AttentionSettings { heads, spans, dropout } = settings;
    let heads = *heads;
    let (device, dtype) = (inputs.queries.device(), inputs.queries.dtype());
    let Dense { layout, mask } = spans.dense(|| Dense::<B>::new(spans, &device));
    let (past_keys, past_values) = inputs.past.unzip();
    let n_past = past_keys.as_ref().map_or(0, |past| past.dims()[0]);
    let n_new = inputs.keys.dims()[0];
    let queries = layout.queries(inputs.queries, heads);
    let keys = layout.keys(all_keys(past_keys, inputs.keys), heads);
    let values = layout.keys(all_keys(past_values, inputs.values), heads);
    let (batch, seq, used) = (layout.batch, layout.seq, layout.used);
    let rows = heads.group() * seq;
    let grouped = |x: Tensor<B, 4>| x.reshape([batch, heads.keys, rows, heads.dim]);
    let one = Heads { dim: 1, ..heads };

    let lse = layout.queries(lse, one);
    let weights = (scores(queries.clone(), keys.clone(), mask.as_ref(), heads) - lse).exp();
    let factors = dropout.map(|dropout| dropout_factors::<B>(dropout, weights.dims(), &device));
    let dropped = |x: Tensor<B, 4>| match &factors {
        Some(factors) => x * factors.clone(),
        None => x,
    };
    let flat = [batch, heads.keys, rows, used];
    let per_head = [batch, heads.queries, seq, used];

    // Padding in a grid is a query too, whose gradient is 0.
    let (grad, output) = (layout.queries(grad, heads), layout.queries(output, heads));
    let along = (to_dtype(grad.clone(), DType::F32) * to_dtype(output, DType::F32)).sum_dim(3);
    let grad = grouped(grad);
    let values_grad =
        to_dtype(dropped(weights.clone()).reshape(flat), dtype).swap_dims(2, 3).matmul(grad.clone());
    let weights_grad = to_dtype(grad.matmul(values.swap_dims(2, 3)), DType::F32).reshape(per_head);
    let scores_grad = weights * (dropped(weights_grad) - along);
    let scores_grad = to_dtype(scores_grad.mul_scalar(heads.scale()).reshape(flat), dtype);
    let queries_grad = scores_grad.clone().matmul(keys);
    let keys_grad = scores_grad.swap_dims(2, 3).matmul(grouped(queries));

    let new_rows = |grad: Tensor<B, 4>| {
        let rows = layout.key_rows(grad, n_past + n_new);
        if n_past > 0 { rows.narrow(0, n_past, n_new) } else { rows }
    };
    [
        layout.query_rows(queries_grad.reshape([batch, heads.queries, seq, heads.dim])),
        new_rows(keys_grad),
        new_rows(values_grad),
    ]
}
