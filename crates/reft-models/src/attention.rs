//! Attention with grouped key and value heads.

use crate::linear::dropout;
use burn::tensor::{DType, Tensor, backend::Backend};
use reft_core::to_dtype;

/// Scaled dot-product attention, `softmax(QKᵀ/√d + mask) V`, with grouped query heads
/// ([GQA](https://arxiv.org/abs/2305.13245)): `heads / kv_heads` query heads share one key and value head.
///
/// The softmax is computed in f32.
///
/// # Shapes
/// - queries `[batch, heads, seq, head_dim]`; keys, values `[batch, kv_heads, slots, head_dim]`
/// - mask `[batch or 1, 1, seq or 1, slots]`, f32, added to the scores
/// - output `[batch · seq, heads · head_dim]`
///
/// `dropout_rate` is the probability of dropping an attention weight.
pub fn attention<B: Backend>(
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    mask: Option<&Tensor<B, 4>>,
    dropout_rate: f64,
) -> Tensor<B, 2> {
    let [batch, heads, seq, head_dim] = queries.dims();
    let [_, kv_heads, slots, _] = keys.dims();
    let group = heads / kv_heads;
    let dtype = queries.dtype();

    // The queries of a group become rows of one matrix, so that their key head is used in place instead of repeated.
    let scaled_queries =
        queries.mul_scalar((head_dim as f64).powf(-0.5)).reshape([batch, kv_heads, group * seq, head_dim]);
    let attn_scores = to_dtype(scaled_queries.matmul(keys.swap_dims(2, 3)), DType::F32);
    let masked_scores = add_mask(attn_scores, mask, [batch, heads, seq, slots]).reshape([
        batch,
        kv_heads,
        group * seq,
        slots,
    ]);

    // In f32 the softmax is divided by its sum after the product with V, which has `head_dim` columns instead of
    // `slots`.
    let exp_scores = (masked_scores.clone() - masked_scores.detach().max_dim(3)).exp();
    let sums = exp_scores.clone().sum_dim(3);
    let kept_scores = dropout(exp_scores, dropout_rate);
    let attn_output = match dtype {
        DType::F32 => kept_scores.matmul(values) / sums,
        // The undivided products would overflow in f16.
        _ => {
            let attn_weights = to_dtype(kept_scores / sums, dtype);
            attn_weights.matmul(values)
        }
    };
    attn_output
        .reshape([batch, heads, seq, head_dim])
        .swap_dims(1, 2)
        .reshape([batch * seq, heads * head_dim])
}

/// Adds a mask to scores.
///
/// # Shapes
/// - output `[batch · heads, seq · slots]`
fn add_mask<B: Backend>(
    attn_scores: Tensor<B, 4>,
    mask: Option<&Tensor<B, 4>>,
    [batch, heads, seq, slots]: [usize; 4],
) -> Tensor<B, 2> {
    let flat_shape = [batch * heads, seq * slots];
    match mask {
        // A flat view adds one row to many, which is fast on every backend.
        Some(mask) if mask.dims()[0] == 1 && mask.dims()[2] == seq => {
            attn_scores.reshape(flat_shape) + mask.clone().reshape([1, seq * slots])
        }
        Some(mask) => (attn_scores.reshape([batch, heads, seq, slots]) + mask.clone()).reshape(flat_shape),
        None => attn_scores.reshape(flat_shape),
    }
}
