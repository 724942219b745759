//! Negative log-likelihood of language models, and cross-entropy of classifiers.

use crate::data::LanguageModelBatch;
use burn::tensor::{
    DType, Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
    backend::Backend,
};
use reft_core::{Hook, host_values, to_dtype};
use reft_models::Llama;

/// Number of rows of logits that are computed at a time.
pub(crate) fn rows_of_logits(vocab: usize) -> usize {
    const MAX_LOGITS: usize = 1 << 24;
    (MAX_LOGITS / vocab).max(16)
}

/// `−log p(label)` for each final state and, if requested, the gradient of their sum with respect to the states.
///
/// Logits exist for a slice of the rows at a time and are not kept:
/// `∂/∂h (logsumexp(Eh) − E_y h) = Eᵀ softmax(Eh) − E_y`, with the output embedding `E [vocab, d_model]`.
///
/// # Shapes
/// - states `[n, d_model]` (normalized), labels `n`
/// - output `n` values, gradient `[n, d_model]` in f32
pub(crate) fn nll_of_states<B: Backend>(
    model: &Llama<B>,
    states: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Vec<f32>, Option<Tensor<B, 2>>) {
    let [n, _] = states.dims();
    let device = states.device();
    let slice_len = rows_of_logits(model.config().vocab_size);
    let embedding = model.head_weight();
    let (mut values, mut gradients) = (Vec::with_capacity(n), Vec::new());
    for start in (0..n).step_by(slice_len) {
        let len = slice_len.min(n - start);
        let ids: Vec<i64> = labels[start..start + len].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [len]), &device);
        let logits = to_dtype(model.head(states.clone().narrow(0, start, len)), DType::F32);
        let shifted = logits.clone() - logits.max_dim(1);
        let label_logits = shifted.clone().gather(1, targets.clone().unsqueeze_dim(1));
        let nll = shifted.clone().exp().sum_dim(1).log() - label_logits;
        values.extend(host_values(nll));
        if with_gradient {
            let mean_embedding = to_dtype(softmax(shifted, 1), embedding.dtype()).matmul(embedding.clone());
            let label_embedding = to_dtype(embedding.clone().select(0, targets), DType::F32);
            gradients.push(to_dtype(mean_embedding, DType::F32) - label_embedding);
        }
    }
    (values, with_gradient.then(|| Tensor::cat(gradients, 0)))
}

/// The negative log-likelihood of every label of a batch.
pub fn nll<B: Backend, H: Hook<B> + ?Sized>(
    model: &Llama<B>,
    batch: &LanguageModelBatch,
    hook: &H,
) -> Vec<f32> {
    let hidden = model.forward(&batch.tokens, None, hook);
    let states = model.final_states(hidden, &batch.label_rows);
    nll_of_states(model, states, &batch.labels, false).0
}

/// `Σ −log softmax(logits)[label]`.
///
/// # Shapes
/// - logits `[n, n_labels]`, labels `n`
pub(crate) fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: &[u32]) -> Tensor<B, 1> {
    let ids: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
    let targets = TensorData::new(ids, [labels.len(), 1]);
    let targets = Tensor::<B, 2, Int>::from_data(targets, &logits.device());
    log_softmax(logits, 1).gather(1, targets).sum().neg()
}
