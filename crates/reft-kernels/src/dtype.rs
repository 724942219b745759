//! Casts.

use burn::tensor::{DType, Tensor, backend::Backend};

/// Casts a tensor; a no-op if it has the dtype.
pub(crate) fn to_dtype<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
