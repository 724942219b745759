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
