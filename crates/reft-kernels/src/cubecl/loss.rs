//! The loss: Burn's products, and one kernel for everything between them.

use super::{
    launch::{primitive, tensor},
    softmax,
};
use crate::{default, dtype::to_dtype};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

pub(super) fn nll<R, B>(
    states: Tensor<B, 2>,
    embedding: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>)
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    let ([n, _], [vocab, _]) = (states.dims(), embedding.dims());
    assert!(labels.iter().all(|label| (*label as usize) < vocab), "a label beyond the vocabulary");
    let device = states.device();
    let slice_len = default::rows_of_logits(vocab);
    let embedding = default::dense(embedding, states.dtype());
    let (mut values, mut gradients) = (Vec::new(), Vec::new());
    for start in (0..n).step_by(slice_len) {
        let len = slice_len.min(n - start);
        let logits = states.clone().narrow(0, start, len).matmul(embedding.clone().transpose());
        let labels = labels[start..start + len].iter().map(|label| i64::from(*label)).collect();
        let labels = Tensor::<B, 1, Int>::from_data(TensorData::new::<i64, _>(labels, [len]), &device);
        let (value, logits_grad) = softmax::nll(primitive(logits), labels.into_primitive(), with_gradient);
        values.push(tensor(value));
        if with_gradient {
            let logits_grad = tensor::<B, 2>(logits_grad);
            gradients.push(to_dtype(logits_grad.matmul(embedding.clone()), DType::F32));
        }
    }
    (Tensor::cat(values, 0), with_gradient.then(|| Tensor::cat(gradients, 0)))
}
