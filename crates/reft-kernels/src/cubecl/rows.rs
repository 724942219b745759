//! Rows that are replaced: a unit for each vector.

use super::launch::{Cubes, address_type, own_rows, rows, vector_size};
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

/// `matrix[index[i]] = values[i]`.
///
/// # Shapes
/// - matrix `[n, d]`; values `[m, d]`; index `[m]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn write_rows_kernel<F: Float, I: Int, N: Size>(
    values: &Tensor<Vector<F, N>>,
    index: &Tensor<I>,
    matrix: &mut Tensor<Vector<F, N>>,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let len = values.shape(1) / N::value();
    if ABSOLUTE_POS >= values.shape(0) * len {
        terminate!();
    }
    let (i, column) = (ABSOLUTE_POS / len, ABSOLUTE_POS % len);
    let row = usize::cast_from(index[i]);
    matrix[row * matrix.stride(0) / N::value() + column] = values[i * values.stride(0) / N::value() + column];
}

/// Writes the values in place, or into a copy if somebody else holds the matrix. The index has to be within it.
pub(super) fn write_rows<R: CubeRuntime>(
    matrix: CubeTensor<R>,
    index: CubeTensor<R>,
    values: CubeTensor<R>,
) -> CubeTensor<R> {
    let (matrix, values) = (own_rows(matrix), rows(values));
    let tensors = [&matrix, &values];
    let (size, addresses) = (vector_size(&tensors), address_type(&[&matrix, &values, &index]));
    let cubes = Cubes::for_vectors(&values, values.meta.num_elements() / size);
    let dtypes = [values.dtype.into(), index.dtype.into()];
    // SAFETY: the kernel ends after the last of the values, and the caller has checked the index.
    unsafe {
        write_rows_kernel::launch_unchecked::<R>(
            &matrix.client,
            cubes.count,
            cubes.dim,
            addresses,
            size,
            values.into_tensor_arg(),
            index.into_tensor_arg(),
            matrix.clone().into_tensor_arg(),
            dtypes,
        );
    }
    matrix
}
