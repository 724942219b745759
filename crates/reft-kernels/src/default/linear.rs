//! Linear maps, the loss, and rows that are replaced.

use crate::dtype::to_dtype;
use burn::tensor::{
    DType, IndexingUpdateOp, Int, Tensor, TensorData, TensorPrimitive, activation::softmax, backend::Backend,
};

/// A matrix in `dtype`, dequantized if it is quantized.
pub(crate) fn dense<B: Backend>(matrix: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
    match matrix.into_primitive() {
        TensorPrimitive::QFloat(quantized) => {
            Tensor::from_primitive(TensorPrimitive::Float(B::dequantize(quantized, dtype.into())))
        }
        TensorPrimitive::Float(matrix) => {
            to_dtype(Tensor::from_primitive(TensorPrimitive::Float(matrix)), dtype)
        }
    }
}

pub(crate) fn linear<B: Backend>(x: Tensor<B, 2>, w: Tensor<B, 2>, b: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    let w = dense(w, x.dtype());
    let product = x.matmul(w.transpose());
    match b {
        Some(b) => product + b.unsqueeze(),
        None => product,
    }
}

pub(crate) fn linear_backward<B: Backend>(w: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    let w = dense(w, grad.dtype());
    grad.matmul(w)
}

/// The largest number of states whose logits `nll` has in memory at the same time.
pub(crate) fn rows_of_logits(vocab: usize) -> usize {
    const MAX_LOGITS: usize = 1 << 24;
    (MAX_LOGITS / vocab.max(1)).max(16)
}

pub(crate) fn nll<B: Backend>(
    states: Tensor<B, 2>,
    embedding: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let ([n, d], [vocab, _]) = (states.dims(), embedding.dims());
    let device = states.device();
    if n == 0 {
        let gradient = with_gradient.then(|| Tensor::zeros([0, d], &device));
        return (Tensor::zeros([0], &device), gradient);
    }
    let slice_len = rows_of_logits(vocab);
    let (mut values, mut gradients) = (Vec::new(), Vec::new());
    for start in (0..n).step_by(slice_len) {
        let len = slice_len.min(n - start);
        let ids: Vec<i64> = labels[start..start + len].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [len]), &device);
        let logits = linear(states.clone().narrow(0, start, len), embedding.clone(), None);
        let logits = to_dtype(logits, DType::F32);
        let shifted = logits.clone() - logits.max_dim(1);
        let label_logits = shifted.clone().gather(1, targets.clone().unsqueeze_dim(1));
        values.push((shifted.clone().exp().sum_dim(1).log() - label_logits).reshape([len]));
        if with_gradient {
            let mean_embedding = to_dtype(softmax(shifted, 1), embedding.dtype()).matmul(embedding.clone());
            let label_embedding = to_dtype(embedding.clone().select(0, targets), DType::F32);
            gradients.push(to_dtype(mean_embedding, DType::F32) - label_embedding);
        }
    }
    (Tensor::cat(values, 0), with_gradient.then(|| Tensor::cat(gradients, 0)))
}

pub(crate) fn write_rows<B: Backend>(
    matrix: Tensor<B, 2>,
    rows: &[usize],
    values: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [rows.len()]), &matrix.device());
    let change = values - matrix.clone().select(0, index.clone());
    matrix.select_assign(0, index, change, IndexingUpdateOp::Add)
}
