//! Negative log-likelihood of language models, and cross-entropy of classifiers.

use crate::data::LanguageModelBatch;
use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use reft_core::{Hook, host_values};
use reft_kernels::Kernels;
use reft_models::Llama;

/// The negative log-likelihood of every label of a batch.
pub fn nll<B: Kernels, H: Hook<B> + ?Sized>(
    model: &Llama<B>,
    batch: &LanguageModelBatch,
    hook: &H,
) -> Vec<f32> {
    let states = model.states_of(&batch.tokens, &batch.label_rows, hook);
    host_values(Kernels::nll(states, model.head_weight(), &batch.labels, false).0)
}

/// `Σ −log softmax(logits)[label]`.
///
/// # Shapes
/// - logits `[n, n_labels]`, labels `n`
pub(crate) fn cross_entropy<B: Kernels>(logits: Tensor<B, 2>, labels: &[u32]) -> Tensor<B, 1> {
    let ids: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
    let targets = TensorData::new(ids, [labels.len(), 1]);
    let targets = Tensor::<B, 2, Int>::from_data(targets, &logits.device());
    log_softmax(logits, 1).gather(1, targets).sum().neg()
}
