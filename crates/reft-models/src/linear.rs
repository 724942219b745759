//! A frozen linear map.

use burn::{
    module::Module,
    tensor::{Tensor, backend::Backend},
};

/// `y = x Wᵀ + b`, with `W` as Hugging Face stores it.
///
/// # Shapes
/// - `W [d_out, d_in]`, `b [d_out]`
/// - input `[n, d_in]`, output `[n, d_out]`
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `W`.
    pub weight: Tensor<B, 2>,
    /// `b`, where the layer has one.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    /// Applies the map to every row.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.matmul(self.weight.clone().transpose());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        }
    }
}
