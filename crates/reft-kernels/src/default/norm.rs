//! Normalization.

use crate::dtype::to_dtype;
use burn::tensor::{DType, Tensor, backend::Backend};

/// A row vector in f32.
fn row<B: Backend>(vector: Tensor<B, 1>) -> Tensor<B, 2> {
    to_dtype(vector, DType::F32).unsqueeze()
}

pub(crate) fn rms_norm<B: Backend>(x: Tensor<B, 2>, g: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    let mean_square = x.clone().square().mean_dim(1);
    // Not `recip`, which some backends approximate.
    let normed = x / mean_square.add_scalar(epsilon).sqrt();
    to_dtype(normed, dtype) * g.unsqueeze()
}

/// With `r = √(mean(x²) + ε)` and `n = x / r`: `∂x = (∂n − n · mean(∂n · n)) / r`, `∂n = grad · g`.
pub(crate) fn rms_norm_backward<B: Backend>(
    x: Tensor<B, 2>,
    g: Tensor<B, 1>,
    epsilon: f64,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    let rms = x.clone().square().mean_dim(1).add_scalar(epsilon).sqrt();
    let normed = x / rms.clone();
    let grad = to_dtype(grad, DType::F32) * row(g);
    let along = (grad.clone() * normed.clone()).mean_dim(1);
    to_dtype((grad - normed * along) / rms, dtype)
}

pub(crate) fn layer_norm<B: Backend>(
    x: Tensor<B, 2>,
    g: Tensor<B, 1>,
    b: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normed, _) = standardized(x, epsilon);
    to_dtype(normed * row(g) + row(b), dtype)
}

/// With `s = √(var(x) + ε)` and `n = (x − mean(x)) / s`: `∂x = (∂n − mean(∂n) − n · mean(∂n · n)) / s`, `∂n = grad · g`.
pub(crate) fn layer_norm_backward<B: Backend>(
    x: Tensor<B, 2>,
    g: Tensor<B, 1>,
    epsilon: f64,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normed, deviation) = standardized(x, epsilon);
    let grad = to_dtype(grad, DType::F32) * row(g);
    let along = (grad.clone() * normed.clone()).mean_dim(1);
    let centered = grad.clone() - grad.mean_dim(1);
    to_dtype((centered - normed * along) / deviation, dtype)
}

/// `(x − mean(x)) / s` and `s = √(var(x) + ε)`.
fn standardized<B: Backend>(x: Tensor<B, 2>, epsilon: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = to_dtype(x, DType::F32);
    let centered = x.clone() - x.mean_dim(1);
    let deviation = centered.clone().square().mean_dim(1).add_scalar(epsilon).sqrt();
    (centered / deviation.clone(), deviation)
}
