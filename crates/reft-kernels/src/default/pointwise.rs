//! Activations and the rotary embedding.

use crate::dtype::to_dtype;
use crate::rotary::RotaryTable;
use burn::tensor::{
    DType, Tensor,
    activation::{sigmoid, silu},
    backend::Backend,
};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(crate) fn swiglu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    silu(gate) * up
}

/// With `σ = sigmoid(gate)`: `∂up = grad · gate · σ`, `∂gate = grad · up · σ · (1 + gate · (1 − σ))`.
pub(crate) fn swiglu_backward<B: Backend>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    grad: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let sigma = sigmoid(gate.clone());
    let slope = (gate.clone() * (sigma.clone().neg().add_scalar(1.0))).add_scalar(1.0) * sigma.clone();
    let up_grad = grad.clone() * gate * sigma;
    [grad * up * slope, up_grad]
}

/// `2 Φ(x)`. Burn's `gelu` has the gradient of the tanh approximation on most backends, so it is not used.
fn twice_phi<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    x.mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0)
}

pub(crate) fn gelu<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    to_dtype(x.clone().mul_scalar(0.5) * twice_phi(x), dtype)
}

/// `∂x = grad · (Φ(x) + x φ(x))` with the density φ of the normal distribution.
pub(crate) fn gelu_backward<B: Backend>(x: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = to_dtype(x, DType::F32);
    let density = x.clone().square().mul_scalar(-0.5).exp().mul_scalar((2.0 * PI).powf(-0.5));
    let slope = twice_phi(x.clone()).mul_scalar(0.5) + x * density;
    to_dtype(to_dtype(grad, DType::F32) * slope, dtype)
}

pub(crate) fn rotary<B: Backend>(x: Tensor<B, 2>, table: &RotaryTable<B>, inverse: bool) -> Tensor<B, 2> {
    let ([n, width], [positions, half]) = (x.dims(), table.cos.dims());
    let heads = width / (2 * half);
    let x = x.reshape([n / positions, positions, heads, 2 * half]);
    let angle = |table: &Tensor<B, 2>| table.clone().reshape([1, positions, 1, half]);
    let (cos, sin) = (angle(&table.cos), angle(&table.sin));
    let sin = if inverse { sin.neg() } else { sin };
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let rotated = Tensor::cat(
        vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin],
        3,
    );
    rotated.reshape([n, width])
}
