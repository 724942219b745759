//! Activations: a unit for each vector.

use super::launch::{Cubes, address_type, empty_like, vector_size};
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::{prelude::*, std::tensor::layout::linear::LinearView};
use std::f32::consts::{FRAC_1_SQRT_2, PI};

/// `1 / (1 + e⁻ˣ)`.
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    // Bounded, because not every device has an infinity.
    let bounded = max(x, Vector::new(-80.0));
    one / (one + Vector::exp(Vector::new(0.0) - bounded))
}

/// `Φ(x)`.
#[cube]
fn normal<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let half = Vector::<f32, N>::new(0.5);
    half * (Vector::erf(x * Vector::new(FRAC_1_SQRT_2)) + Vector::new(1.0))
}

/// `silu(gate) · up`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn swiglu_kernel<F: Float, N: Size>(
    gate: &LinearView<Vector<F, N>>,
    up: &LinearView<Vector<F, N>>,
    y: &mut LinearView<Vector<F, N>, ReadWrite>,
    #[define(F)] _dtype: StorageType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(gate * sigmoid::<N>(gate) * up);
}

/// With `σ = sigmoid(gate)`: `∂up = grad · gate · σ`, `∂gate = grad · up · σ · (1 + gate · (1 − σ))`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn swiglu_backward_kernel<F: Float, N: Size>(
    gate: &LinearView<Vector<F, N>>,
    up: &LinearView<Vector<F, N>>,
    grad: &LinearView<Vector<F, N>>,
    gate_grad: &mut LinearView<Vector<F, N>, ReadWrite>,
    up_grad: &mut LinearView<Vector<F, N>, ReadWrite>,
    #[define(F)] _dtype: StorageType,
) {
    if !gate_grad.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let (sigma, one) = (sigmoid::<N>(gate), Vector::<f32, N>::new(1.0));
    gate_grad[ABSOLUTE_POS] = Vector::cast_from(grad * up * sigma * (one + gate * (one - sigma)));
    up_grad[ABSOLUTE_POS] = Vector::cast_from(grad * gate * sigma);
}

/// `x Φ(x)`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gelu_kernel<F: Float, N: Size>(
    x: &LinearView<Vector<F, N>>,
    y: &mut LinearView<Vector<F, N>, ReadWrite>,
    #[define(F)] _dtype: StorageType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(x * normal::<N>(x));
}

/// `∂x = grad · (Φ(x) + x φ(x))`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gelu_backward_kernel<F: Float, N: Size>(
    x: &LinearView<Vector<F, N>>,
    grad: &LinearView<Vector<F, N>>,
    x_grad: &mut LinearView<Vector<F, N>, ReadWrite>,
    #[define(F)] _dtype: StorageType,
) {
    if !x_grad.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let density = Vector::exp(x * x * Vector::new(-0.5)) * Vector::new(comptime!((2.0 * PI).sqrt().recip()));
    x_grad[ABSOLUTE_POS] = Vector::cast_from(grad * (normal::<N>(x) + x * density));
}

/// Launches a kernel that makes `$outputs` tensors of the shape and dtype of its inputs, which all have the same.
macro_rules! launch {
    ($kernel:ident, [$first:ident $(, $input:ident)*] -> [$($output:ident),*]) => {{
        $(let $output = empty_like(&$first);)*
        let tensors = [&$first, $(&$input,)* $(&$output),*];
        let (size, addresses) = (vector_size(&tensors), address_type(&tensors));
        let cubes = Cubes::for_vectors(&$first, $first.meta.num_elements() / size);
        let (client, dtype) = ($first.client.clone(), $first.dtype);
        // SAFETY: the kernel ends where the views of all tensors do.
        unsafe {
            $kernel::launch_unchecked::<R>(
                &client,
                cubes.count,
                cubes.dim,
                addresses,
                size,
                $first.into_linear_view(),
                $($input.into_linear_view(),)*
                $($output.clone().into_linear_view(),)*
                dtype.into(),
            );
        }
        [$($output),*]
    }};
}

pub(super) fn swiglu<R: CubeRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
    let [y] = launch!(swiglu_kernel, [gate, up] -> [y]);
    y
}

pub(super) fn swiglu_backward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    launch!(swiglu_backward_kernel, [gate, up, grad] -> [gate_grad, up_grad])
}

pub(super) fn gelu<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let [y] = launch!(gelu_kernel, [x] -> [y]);
    y
}

pub(super) fn gelu_backward<R: CubeRuntime>(x: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let [x_grad] = launch!(gelu_backward_kernel, [x, grad] -> [x_grad]);
    x_grad
}
