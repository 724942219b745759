//! A frozen linear map.

use crate::frozen::frozen;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use reft_core::to_dtype;
use reft_kernels::Kernels;

/// `y = x Wᵀ + b`, with `W` stored as in Hugging Face's files, plus `s (x Aᵀ) Bᵀ` if LoRA is trained on it.
///
/// `W` may be quantized, see [`precision`](crate::precision).
///
/// # Shapes
/// - `W [d_out, d_in]`, `b [d_out]`
/// - input `[n, d_in]`, output `[n, d_out]`
#[derive(Debug, Clone)]
pub struct Linear<B: Backend> {
    /// `W`.
    pub weight: Tensor<B, 2>,
    /// `b`, if the layer has one.
    pub bias: Option<Tensor<B, 1>>,
    /// LoRA's factors, if the layer has them.
    pub lora: Option<Lora<B>>,
}

frozen!(Linear { weight, bias, lora; });

/// The low-rank update `s B A` of a linear map ([LoRA](https://arxiv.org/abs/2106.09685)).
#[derive(Debug, Clone)]
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

frozen!(Lora { a, b; scale, dropout });

impl<B: Kernels> Linear<B> {
    /// Applies the map to every row.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let update = self.lora.as_ref().map(|lora| lora.forward(x.clone()));
        let output = Kernels::linear(x, self.weight.clone(), self.bias.clone());
        match update {
            Some(update) => output + update,
            None => output,
        }
    }
}

impl<B: Backend> Lora<B> {
    /// `s (x Aᵀ) Bᵀ`, computed in the dtype of the factors and returned in that of the input.
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let dropped = to_dtype(dropout(x, self.dropout), self.a.dtype());
        let low_rank = dropped.matmul(self.a.clone().transpose());
        to_dtype(low_rank.matmul(self.b.clone().transpose()).mul_scalar(self.scale), dtype)
    }
}

/// Drops entries with probability `rate` and divides the others by `1 − rate`. Does nothing if `rate` is 0.
pub fn dropout<B: Backend, const D: usize>(x: Tensor<B, D>, rate: f64) -> Tensor<B, D> {
    if rate == 0.0 {
        return x;
    }
    // Drawn in the backend's default dtype, which not every model has.
    let kept =
        to_dtype(Tensor::random(x.dims(), Distribution::Bernoulli(1.0 - rate), &x.device()), x.dtype());
    x * kept.mul_scalar(1.0 / (1.0 - rate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;
    use burn_flex::Flex;
    use reft_core::host_values;

    #[test]
    fn dropout_works_in_half_precision() {
        let ones = Tensor::<Flex, 1>::ones([1000], &Default::default()).cast(DType::BF16);
        let dropped = dropout(ones, 0.5);
        assert_eq!(dropped.dtype(), DType::BF16);
        let values = host_values(dropped);
        assert!(values.iter().all(|x| [0.0, 2.0].contains(x)));
        assert!(values.contains(&0.0) && values.contains(&2.0));
    }
}
