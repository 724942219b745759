//! Normalization: a workgroup for each row.

use super::{
    launch::{Cubes, address_type, empty_like, rows, vector_size},
    reduce::{sum, total},
};
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

/// `x / √(mean(x²) + ε) · g`, with the quotient rounded to the dtype of x.
///
/// # Shapes
/// - x, y `[n, d]`; g `[d]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn rms_norm_kernel<F: Float, G: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    g: &Tensor<Vector<G, N>>,
    y: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F, G)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= x.shape(0) {
        terminate!();
    }
    let len = x.shape(1) / N::value();
    let (x_row, y_row) = (CUBE_POS * x.stride(0) / N::value(), CUBE_POS * y.stride(0) / N::value());

    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let x = Vector::<f32, N>::cast_from(x[x_row + i]);
        squares += x * x;
    }
    let mean_square = sum(total::<N>(squares), units) / f32::cast_from(x.shape(1));
    let rms = Vector::<f32, N>::new((mean_square + epsilon).sqrt());
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let normed = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(x[x_row + i]) / rms);
        let scaled = Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(g[i]);
        y[y_row + i] = Vector::cast_from(scaled);
    }
}

/// With `r = √(mean(x²) + ε)` and `∂n = grad · g`: `∂x = (∂n − x · mean(∂n · x) / r²) / r`.
///
/// # Shapes
/// - x, grad, x_grad `[n, d]`; g `[d]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn rms_norm_backward_kernel<F: Float, G: Float, D: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    g: &Tensor<Vector<G, N>>,
    grad: &Tensor<Vector<D, N>>,
    x_grad: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F, G, D)] _dtypes: [StorageType; 3],
) {
    if CUBE_POS >= x.shape(0) {
        terminate!();
    }
    let len = x.shape(1) / N::value();
    let d = f32::cast_from(x.shape(1));
    let x_row = CUBE_POS * x.stride(0) / N::value();
    let grad_row = CUBE_POS * grad.stride(0) / N::value();
    let x_grad_row = CUBE_POS * x_grad.stride(0) / N::value();

    let mut squares = Vector::<f32, N>::new(0.0);
    let mut products = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let x = Vector::<f32, N>::cast_from(x[x_row + i]);
        let grad = Vector::<f32, N>::cast_from(grad[grad_row + i]) * Vector::<f32, N>::cast_from(g[i]);
        squares += x * x;
        products += grad * x;
    }
    let mean_square = sum(total::<N>(squares), units) / d + epsilon;
    let along = sum(total::<N>(products), units) / d / mean_square;
    let (rms, along) = (Vector::<f32, N>::new(mean_square.sqrt()), Vector::<f32, N>::new(along));
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let x = Vector::<f32, N>::cast_from(x[x_row + i]);
        let grad = Vector::<f32, N>::cast_from(grad[grad_row + i]) * Vector::<f32, N>::cast_from(g[i]);
        x_grad[x_grad_row + i] = Vector::cast_from((grad - x * along) / rms);
    }
}

/// The mean of row `row` of x, and its standard deviation `√(var(x) + ε)`.
#[cube]
fn moments<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: usize,
    epsilon: f32,
    #[comptime] units: u32,
) -> (f32, f32) {
    let len = x.shape(1) / N::value();
    let d = f32::cast_from(x.shape(1));
    let mut numbers = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        numbers += Vector::cast_from(x[row + i]);
    }
    let mean = sum(total::<N>(numbers), units) / d;
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let centered = Vector::<f32, N>::cast_from(x[row + i]) - Vector::new(mean);
        squares += centered * centered;
    }
    let variance = sum(total::<N>(squares), units) / d;
    (mean, (variance + epsilon).sqrt())
}

/// `(x − mean(x)) / √(var(x) + ε) · g + b`.
///
/// # Shapes
/// - x, y `[n, d]`; g, b `[d]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn layer_norm_kernel<F: Float, G: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    g: &Tensor<Vector<G, N>>,
    b: &Tensor<Vector<G, N>>,
    y: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F, G)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= x.shape(0) {
        terminate!();
    }
    let (x_row, y_row) = (CUBE_POS * x.stride(0) / N::value(), CUBE_POS * y.stride(0) / N::value());
    let (mean, deviation) = moments::<F, N>(x, x_row, epsilon, units);
    for i in range_stepped(UNIT_POS as usize, x.shape(1) / N::value(), comptime!(units as usize)) {
        let centered = Vector::<f32, N>::cast_from(x[x_row + i]) - Vector::new(mean);
        let scaled = centered / Vector::new(deviation) * Vector::cast_from(g[i]);
        y[y_row + i] = Vector::cast_from(scaled + Vector::cast_from(b[i]));
    }
}

/// With `s = √(var(x) + ε)`, `n = (x − mean(x)) / s` and `∂n = grad · g`: `∂x = (∂n − mean(∂n) − n · mean(∂n · n)) / s`.
///
/// # Shapes
/// - x, grad, x_grad `[n, d]`; g `[d]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn layer_norm_backward_kernel<F: Float, G: Float, D: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    g: &Tensor<Vector<G, N>>,
    grad: &Tensor<Vector<D, N>>,
    x_grad: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F, G, D)] _dtypes: [StorageType; 3],
) {
    if CUBE_POS >= x.shape(0) {
        terminate!();
    }
    let len = x.shape(1) / N::value();
    let d = f32::cast_from(x.shape(1));
    let x_row = CUBE_POS * x.stride(0) / N::value();
    let grad_row = CUBE_POS * grad.stride(0) / N::value();
    let x_grad_row = CUBE_POS * x_grad.stride(0) / N::value();
    let (mean, deviation) = moments::<F, N>(x, x_row, epsilon, units);
    let (mean, deviation) = (Vector::<f32, N>::new(mean), Vector::<f32, N>::new(deviation));

    let mut grads = Vector::<f32, N>::new(0.0);
    let mut products = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let normed = (Vector::<f32, N>::cast_from(x[x_row + i]) - mean) / deviation;
        let grad = Vector::<f32, N>::cast_from(grad[grad_row + i]) * Vector::<f32, N>::cast_from(g[i]);
        grads += grad;
        products += grad * normed;
    }
    let mean_grad = Vector::<f32, N>::new(sum(total::<N>(grads), units) / d);
    let along = Vector::<f32, N>::new(sum(total::<N>(products), units) / d);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let normed = (Vector::<f32, N>::cast_from(x[x_row + i]) - mean) / deviation;
        let grad = Vector::<f32, N>::cast_from(grad[grad_row + i]) * Vector::<f32, N>::cast_from(g[i]);
        x_grad[x_grad_row + i] = Vector::cast_from((grad - mean_grad - normed * along) / deviation);
    }
}

/// Launches a kernel that makes a matrix of the shape and dtype of its first input.
macro_rules! launch {
    ($kernel:ident, $epsilon:expr, [$x:ident $(, $input:ident)*], [$($dtype:ident),*]) => {{
        let y = empty_like(&$x);
        let tensors = [&$x, $(&$input,)* &y];
        let (size, addresses) = (vector_size(&tensors), address_type(&tensors));
        let (n, d) = ($x.meta.shape()[0], $x.meta.shape()[1]);
        let cubes = Cubes::for_rows(&$x, n, d / size);
        let dtypes = [$($dtype.dtype.into()),*];
        // SAFETY: the kernel stays within the rows and columns of x, which the other tensors have too.
        unsafe {
            $kernel::launch_unchecked::<R>(
                &y.client,
                cubes.count,
                cubes.dim,
                addresses,
                size,
                $x.into_tensor_arg(),
                $($input.into_tensor_arg(),)*
                y.clone().into_tensor_arg(),
                $epsilon as f32,
                cubes.units,
                dtypes,
            );
        }
        y
    }};
}

pub(super) fn rms_norm<R: CubeRuntime>(x: CubeTensor<R>, g: CubeTensor<R>, epsilon: f64) -> CubeTensor<R> {
    let (x, g) = (rows(x), rows(g));
    launch!(rms_norm_kernel, epsilon, [x, g], [x, g])
}

pub(super) fn rms_norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    g: CubeTensor<R>,
    epsilon: f64,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let (x, g, grad) = (rows(x), rows(g), rows(grad));
    launch!(rms_norm_backward_kernel, epsilon, [x, g, grad], [x, g, grad])
}

pub(super) fn layer_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    g: CubeTensor<R>,
    b: CubeTensor<R>,
    epsilon: f64,
) -> CubeTensor<R> {
    let (x, g, b) = (rows(x), rows(g), rows(b));
    launch!(layer_norm_kernel, epsilon, [x, g, b], [x, g])
}

pub(super) fn layer_norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    g: CubeTensor<R>,
    epsilon: f64,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let (x, g, grad) = (rows(x), rows(g), rows(grad));
    launch!(layer_norm_backward_kernel, epsilon, [x, g, grad], [x, g, grad])
}
