//! Normalisation.

use burn::{
    module::Module,
    tensor::{DType, Tensor, backend::Backend},
};
use reft_core::to_dtype;

/// `x / √(mean(x²) + ε) · g` over the last dimension, the quotient in f32 (HF `LlamaRMSNorm`).
///
/// # Shapes
/// - `g [d]`; input and output `[…, d]`
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `g`.
    pub weight: Tensor<B, 1>,
    /// ε.
    pub epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Normalises every row.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = x.dtype();
        let x = to_dtype(x, DType::F32);
        let mean_square = x.clone().square().mean_dim(D - 1);
        // A division, because some backends approximate `recip`.
        let normed = x / mean_square.add_scalar(self.epsilon).sqrt();
        to_dtype(normed, dtype) * self.weight.clone().unsqueeze::<D>()
    }
}

/// `(x − mean(x)) / √(var(x) + ε) · g + b` over the last dimension, in f32 (PyTorch's `LayerNorm`).
///
/// # Shapes
/// - `g [d]`, `b [d]`; input and output `[…, d]`
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `g`.
    pub weight: Tensor<B, 1>,
    /// `b`.
    pub bias: Tensor<B, 1>,
    /// ε.
    pub epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Normalises every row.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = x.dtype();
        let x = to_dtype(x, DType::F32);
        let part = |part: &Tensor<B, 1>| to_dtype(part.clone(), DType::F32).unsqueeze::<D>();
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().square().mean_dim(D - 1);
        let normed = centred / variance.add_scalar(self.epsilon).sqrt();
        to_dtype(normed * part(&self.weight) + part(&self.bias), dtype)
    }
}
