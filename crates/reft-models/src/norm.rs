//! Normalisation.

use burn::{
    module::Module,
    tensor::{Tensor, backend::Backend},
};

/// `x / √(mean(x²) + ε) · g` over the last dimension (HF `LlamaRMSNorm`).
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
        let mean_square = x.clone().square().mean_dim(D - 1);
        // A division, because some backends approximate `recip`.
        x / mean_square.add_scalar(self.epsilon).sqrt() * self.weight.clone().unsqueeze::<D>()
    }
}

/// `(x − mean(x)) / √(var(x) + ε) · g + b` over the last dimension (PyTorch's `LayerNorm`).
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
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().square().mean_dim(D - 1);
        centred / variance.add_scalar(self.epsilon).sqrt() * self.weight.clone().unsqueeze::<D>()
            + self.bias.clone().unsqueeze::<D>()
    }
}
