//! A frozen linear map.

use crate::precision::dense;
use burn::{
    module::Module,
    tensor::{DType, Distribution, Tensor, backend::Backend},
};
use reft_core::to_dtype;

/// `y = x Wᵀ + b`, with `W` as Hugging Face stores it, and LoRA's `+ s (x Aᵀ) Bᵀ` where that is trained.
///
/// `W` may be quantised (see [`precision`](crate::precision)); it then becomes numbers again for each use.
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
    /// LoRA's factors, where the layer has them.
    pub lora: Option<Lora<B>>,
}

/// The low-rank change `s B A` of a linear map ([LoRA](https://arxiv.org/abs/2106.09685)).
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `A [r, d_in]`.
    pub a: Tensor<B, 2>,
    /// `B [d_out, r]`.
    pub b: Tensor<B, 2>,
    /// `s`, alpha over rank.
    pub scale: f64,
    /// Dropout of the input.
    pub dropout: f64,
}

impl<B: Backend> Linear<B> {
    /// The same with weights that are not quantised.
    pub(crate) fn dense(&self, dtype: DType) -> Self {
        Self { weight: dense(self.weight.clone(), dtype), bias: self.bias.clone(), lora: self.lora.clone() }
    }

    /// Applies the map to every row.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let change = self.lora.as_ref().map(|lora| {
            let x = to_dtype(dropout(x.clone(), lora.dropout), lora.a.dtype());
            let low = x.matmul(lora.a.clone().transpose());
            to_dtype(low.matmul(lora.b.clone().transpose()).mul_scalar(lora.scale), dtype)
        });
        let y = x.matmul(dense(self.weight.clone(), dtype).transpose());
        let y = match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        };
        match change {
            Some(change) => y + change,
            None => y,
        }
    }
}

/// Drops entries with probability `rate` and divides the others by `1 − rate`. A rate of 0 does nothing.
pub fn dropout<B: Backend, const D: usize>(x: Tensor<B, D>, rate: f64) -> Tensor<B, D> {
    if rate == 0.0 {
        return x;
    }
    let kept = Tensor::random(x.dims(), Distribution::Bernoulli(1.0 - rate), &x.device());
    x * kept.mul_scalar(1.0 / (1.0 - rate))
}
