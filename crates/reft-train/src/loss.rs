//! Negative log-likelihood of answers, and its gradient.

use crate::data::Example;
use burn::tensor::{
    Int, Tensor, TensorData,
    activation::softmax,
    backend::{AutodiffBackend, Backend},
};
use reft_core::{Hook, Positions, position::Rows};
use reft_models::{Llama, Padding, TokenBatch};

/// Most logits that exist at a time.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// A padded batch of examples with everything that a step needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The tokens, padded on the right.
    pub tokens: TokenBatch,
    /// Rows of the flattened batch whose next token is part of an answer.
    pub label_rows: Vec<usize>,
    /// Those next tokens.
    pub labels: Vec<u32>,
    /// For each label, which example it belongs to.
    pub example_of: Vec<usize>,
    /// Rows of the flattened batch that are edited.
    pub edited: Rows,
}

impl Batch {
    /// Gathers examples.
    pub fn new(examples: &[&Example], positions: Option<Positions>) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right);
        let prompt_lens: Vec<usize> = examples.iter().map(|e| e.prompt_len).collect();
        let spans = tokens.prompt_spans(&prompt_lens);
        let edited = positions.map_or_else(Rows::default, |p| p.rows(&spans, tokens.seq));
        let mut batch = Self { label_rows: vec![], labels: vec![], example_of: vec![], edited, tokens };
        for (idx, example) in examples.iter().enumerate() {
            for at in example.prompt_len..example.tokens.len() {
                batch.label_rows.push(idx * batch.tokens.seq + at - 1);
                batch.labels.push(example.tokens[at]);
                batch.example_of.push(idx);
            }
        }
        batch
    }

    /// Tokens without padding.
    pub fn n_tokens(&self) -> usize {
        self.tokens.positions.iter().flatten().count()
    }
}

/// `−log p(label)` for each state, and, if asked for, the gradient of their sum with respect to the states.
///
/// Logits exist for a slice of the rows at a time and are never kept: `∂/∂h (lse(Eh) − E_y h) = Eᵀ softmax(Eh) − E_y`.
///
/// # Shapes
/// - states `[n, d_model]` (normalised), labels `n`
/// - output `n` values, gradient `[n, d_model]`
fn nll_of_states<B: Backend>(
    model: &Llama<B>,
    states: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Vec<f32>, Option<Tensor<B, 2>>) {
    let [n, _] = states.dims();
    let device = states.device();
    let chunk = (LOGITS_AT_ONCE / model.config().vocab_size).clamp(16, n.max(16));
    let weight = model.head_weight();
    let (mut values, mut gradients) = (Vec::with_capacity(n), Vec::new());
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let ids: Vec<i64> = labels[start..start + len].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [len]), &device);
        let logits = model.head(states.clone().narrow(0, start, len));
        let shifted = logits.clone() - logits.max_dim(1);
        let chosen = shifted.clone().gather(1, targets.clone().unsqueeze_dim(1));
        let nll = shifted.clone().exp().sum_dim(1).log() - chosen;
        values.extend(nll.into_data().convert::<f32>().to_vec::<f32>().expect("f32 data"));
        if with_gradient {
            let expected = softmax(shifted, 1).matmul(weight.clone());
            gradients.push(expected - weight.clone().select(0, targets));
        }
    }
    (values, with_gradient.then(|| Tensor::cat(gradients, 0)))
}

/// The negative log-likelihood of every label of a batch.
pub fn nll<B: Backend, H: Hook<B>>(model: &Llama<B>, batch: &Batch, hook: &H) -> Vec<f32> {
    let hidden = model.forward(&batch.tokens, None, hook);
    let states = model.final_states(hidden, &batch.label_rows);
    nll_of_states(model, states, &batch.labels, false).0
}

/// The summed negative log-likelihood of a batch, and a scalar with the same gradient for the backward pass.
///
/// The scalar is `Σ h · ∂nll/∂h`, with the second factor held fixed: its value means nothing, its gradient is the loss's.
pub fn tracked_nll<A: AutodiffBackend, H: Hook<A>>(
    model: &Llama<A::InnerBackend>,
    batch: &Batch,
    hook: &H,
) -> (f64, Tensor<A, 1>) {
    let hidden = model.forward_tracked(&batch.tokens, hook);
    let states = model.final_states_tracked(hidden, &batch.label_rows);
    let (values, gradient) = nll_of_states(model, states.clone().inner(), &batch.labels, true);
    let gradient = gradient.expect("asked for");
    let sum = values.iter().map(|value| f64::from(*value)).sum();
    (sum, (states * Tensor::from_inner(gradient)).sum())
}
