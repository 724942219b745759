//! Normalization layers.

use crate::frozen::frozen;
use burn::tensor::{Tensor, backend::Backend};
use reft_kernels::Kernels;

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

impl<B: Kernels> RmsNorm<B> {
    /// Normalizes every row.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let shape = input.shape();
        Kernels::rms_norm(rows(input), self.weight.clone(), self.epsilon).reshape(shape)
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

impl<B: Kernels> LayerNorm<B> {
    /// Normalizes every row.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let shape = input.shape();
        let (g, b) = (self.weight.clone(), self.bias.clone());
        Kernels::layer_norm(rows(input), g, b, self.epsilon).reshape(shape)
    }
}

/// The last dimension as the rows of a matrix.
fn rows<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 2> {
    let dims = x.dims();
    x.reshape([dims[..D - 1].iter().product(), dims[D - 1]])
}
