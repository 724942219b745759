//! Small tensor helpers shared by every crate of the workspace.

use burn::tensor::{DType, Tensor, backend::Backend};

/// Casts a tensor to `dtype`; a no-op if it already has that dtype.
pub fn to_dtype<B: Backend, const D: usize>(tensor: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// Copies a float tensor to the host, row-major, as f32.
pub fn host_values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("converted to f32")
}
