//! Normalization layers.

use crate::frozen::frozen;
use burn::tensor::{DType, Tensor, backend::Backend};
use reft_core::to_dtype;

/// `x / √(mean(x²) + ε) · g` over the last dimension (Hugging Face's `LlamaRMSNorm`). The quotient is computed in f32.
///
/// # Shapes
/// - `g [d]`; input and output `[…, d]`
#[derive(Debug, Clone)]
pub struct RmsNorm<B: Backend> {
    /// `g`.
    pub weight: Tensor<B, 1>,
    /// ε.
    pub epsilon: f64,
}

frozen!(RmsNorm { weight; epsilon });

impl<B: Backend> RmsNorm<B> {
    /// Normalizes every row.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = input.dtype();
        let x = to_dtype(input, DType::F32);
        let mean_square = x.clone().square().mean_dim(D - 1);
        // Not `recip`, which some backends approximate.
        let normed = x / mean_square.add_scalar(self.epsilon).sqrt();
        to_dtype(normed, dtype) * self.weight.clone().unsqueeze::<D>()
    }
}

/// `(x − mean(x)) / √(var(x) + ε) · g + b` over the last dimension, in f32 (PyTorch's `LayerNorm`).
///
/// # Shapes
/// - `g [d]`, `b [d]`; input and output `[…, d]`
#[derive(Debug, Clone)]
pub struct LayerNorm<B: Backend> {
    /// `g`.
    pub weight: Tensor<B, 1>,
    /// `b`.
    pub bias: Tensor<B, 1>,
    /// ε.
    pub epsilon: f64,
}

frozen!(LayerNorm { weight, bias; epsilon });

impl<B: Backend> LayerNorm<B> {
    /// Normalizes every row.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = input.dtype();
        let x = to_dtype(input, DType::F32);
        let parameter = |values: &Tensor<B, 1>| to_dtype(values.clone(), DType::F32).unsqueeze::<D>();
        let centered = x.clone() - x.mean_dim(D - 1);
        let variance = centered.clone().square().mean_dim(D - 1);
        let normed = centered / variance.add_scalar(self.epsilon).sqrt();
        to_dtype(normed * parameter(&self.weight) + parameter(&self.bias), dtype)
    }
}
