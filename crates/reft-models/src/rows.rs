//! Rows of matrices and of states.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// Some rows of a matrix.
///
/// # Shapes
/// - matrix `[n, d]`, rows `m`; output `[m, d]`
pub(crate) fn rows_of<B: Backend>(
    matrix: Tensor<B, 2>,
    rows: impl ExactSizeIterator<Item = usize>,
) -> Tensor<B, 2> {
    let n_rows = rows.len();
    let index: Vec<i64> = rows.map(|row| row as i64).collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [n_rows]), &matrix.device());
    matrix.select(0, index)
}

/// Some rows of flattened states.
///
/// # Shapes
/// - hidden `[batch, seq, d_model]`, rows `n` of `batch · seq`; output `[n, d_model]`
pub fn select_rows<B: Backend>(hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
    let [batch, seq, d_model] = hidden.dims();
    rows_of(hidden.reshape([batch * seq, d_model]), rows.iter().copied())
}
