//! The rotary embedding: a unit for each vector of the first halves of the heads, and its partner in the second halves.

use super::launch::{Cubes, address_type, empty_like, rows, vector_size};
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

/// `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`, where row `i` has the angles in row `i mod positions`.
///
/// # Shapes
/// - x, y `[n, heads · 2 · half]`; cos, sin `[positions, half]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn rotary_kernel<F: Float, G: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<G, N>>,
    sin: &Tensor<Vector<G, N>>,
    y: &mut Tensor<Vector<F, N>>,
    #[comptime] inverse: bool,
    #[define(F, G)] _dtypes: [StorageType; 2],
) {
    let half = cos.shape(1) / N::value();
    let pairs = x.shape(1) / N::value() / 2;
    if ABSOLUTE_POS >= x.shape(0) * pairs {
        terminate!();
    }
    let (row, pair) = (ABSOLUTE_POS / pairs, ABSOLUTE_POS % pairs);
    let (head, i) = (pair / half, pair % half);
    let position = row % cos.shape(0);

    let cos = Vector::<f32, N>::cast_from(cos[position * cos.stride(0) / N::value() + i]);
    let sin = Vector::<f32, N>::cast_from(sin[position * sin.stride(0) / N::value() + i]);
    let column = head * 2 * half + i;
    let from = row * x.stride(0) / N::value() + column;
    let to = row * y.stride(0) / N::value() + column;
    let first = Vector::<f32, N>::cast_from(x[from]);
    let second = Vector::<f32, N>::cast_from(x[from + half]);
    if comptime!(inverse) {
        y[to] = Vector::cast_from(first * cos + second * sin);
        y[to + half] = Vector::cast_from(second * cos - first * sin);
    } else {
        y[to] = Vector::cast_from(first * cos - second * sin);
        y[to + half] = Vector::cast_from(second * cos + first * sin);
    }
}

pub(super) fn rotary<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    inverse: bool,
) -> CubeTensor<R> {
    let (x, cos, sin) = (rows(x), rows(cos), rows(sin));
    let y = empty_like(&x);
    let tensors = [&x, &cos, &sin, &y];
    let (size, addresses) = (vector_size(&tensors), address_type(&tensors));
    let cubes = Cubes::for_vectors(&x, x.meta.num_elements() / 2 / size);
    let dtypes = [x.dtype.into(), cos.dtype.into()];
    // SAFETY: the kernel ends after the last pair of x; the table has an angle for each of a head.
    unsafe {
        rotary_kernel::launch_unchecked::<R>(
            &y.client,
            cubes.count,
            cubes.dim,
            addresses,
            size,
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            inverse,
            dtypes,
        );
    }
    y
}
