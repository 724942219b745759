//! Attention with shared key and value heads.

use crate::linear::dropout;
use burn::tensor::{DType, Tensor, backend::Backend};
use reft_core::to_dtype;

/// Scaled dot-product attention, `softmax(QKᵀ/√d + mask) V`, where groups of query heads share a key and value head.
///
/// The softmax is computed in f32.
///
/// # Shapes
/// - queries `[batch, heads, seq, head_dim]`; keys, values `[batch, kv_heads, slots, head_dim]`
/// - mask `[batch or 1, 1, seq or 1, slots]`, f32, added to the scores; `dropout_rate` is the share of dropped weights
/// - output `[batch · seq, heads · head_dim]`
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
    let queries = queries.mul_scalar((head_dim as f64).powf(-0.5));
    // The queries of a group stand below each other, so that its key head is used in place, not repeated.
    let queries = queries.reshape([batch, kv_heads, group * seq, head_dim]);
    let dtype = queries.dtype();
    let scores = to_dtype(queries.matmul(keys.swap_dims(2, 3)), DType::F32);
    let scores = match mask {
        // Flat, a mask that all rows share is one row added to many, which every backend does fast.
        Some(mask) if mask.dims()[0] == 1 && mask.dims()[2] == seq => {
            scores.reshape([batch * heads, seq * slots]) + mask.clone().reshape([1, seq * slots])
        }
        Some(mask) => {
            (scores.reshape([batch, heads, seq, slots]) + mask.clone()).reshape([batch * heads, seq * slots])
        }
        None => scores.reshape([batch * heads, seq * slots]),
    };
    // Softmax, but in f32 divided by its sum only after the mixing, where there is `head_dim` instead of `slots` to divide.
    let scores = scores.reshape([batch, kv_heads, group * seq, slots]);
    let weights = (scores.clone() - scores.detach().max_dim(3)).exp();
    let sums = weights.clone().sum_dim(3);
    let weights = dropout(weights, dropout_rate);
    let mixed = match dtype {
        DType::F32 => weights.matmul(values) / sums,
        // Sums of weights that are not yet divided would leave the range of f16.
        _ => to_dtype(weights / sums, dtype).matmul(values),
    };
    let mixed = mixed.reshape([batch, heads, seq, head_dim]);
    mixed.swap_dims(1, 2).reshape([batch * seq, heads * head_dim])
}
