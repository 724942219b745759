//! Kernels in CubeCL, written once for CUDA, Vulkan, Metal and DX12, and burn-cubecl's backends with them.
//!
//! Matrix products are Burn's. What lies between them takes one launch per operation instead of one per arithmetic step, and
//! no intermediate tensors. All kernels compute in f32, whatever the dtype (f32, f16 or bf16) of their inputs and outputs.
//!
//! | operation | launches |
//! |---|---|
//! | norms, activations and the rotary embedding, forward and backward | 1 each |
//! | attention | 1 between `QKᵀ` and `PV`, with scale, mask and softmax |
//! | attention, backward | 1 between the products, likewise |
//! | attention of one query per text without a backward pass, as in decoding | 1 in all |
//! | the loss and its gradient | 1 between the products |
//! | rows that are replaced | 1, and a copy if somebody else holds the matrix |
//!
//! Dropout of attention weights, texts whose keys lie in more than two runs, and tensors without numbers take the default
//! bodies. With the environment variable `REFT_GPU_KERNELS=off` every operation does, which tells a fault of these kernels from
//! one of a driver.

mod activation;
mod attention;
mod decode;
mod launch;
mod loss;
mod norm;
mod reduce;
mod rotary;
mod rows;
mod softmax;

use crate::{
    attention::{AttentionInputs, AttentionSettings},
    default,
    kernels::Kernels,
    rotary::RotaryTable,
};
use burn::tensor::{Int, Tensor, TensorData};
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};
use launch::{covers, primitive, tensor};

impl<R, F, I, BT> Kernels for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn own_kernels() -> &'static [&'static str] {
        &["normalization", "activations", "rotary embedding", "attention", "loss", "row edits"]
    }

    fn rms_norm(x: Tensor<Self, 2>, g: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        if !(covers(&x) && covers(&g)) {
            return default::rms_norm(x, g, epsilon);
        }
        tensor(norm::rms_norm(primitive(x), primitive(g), epsilon))
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        if !(covers(&x) && covers(&g) && covers(&grad)) {
            return default::rms_norm_backward(x, g, epsilon, grad);
        }
        tensor(norm::rms_norm_backward(primitive(x), primitive(g), epsilon, primitive(grad)))
    }

    fn layer_norm(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        b: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if !(covers(&x) && covers(&g) && g.dtype() == b.dtype()) {
            return default::layer_norm(x, g, b, epsilon);
        }
        tensor(norm::layer_norm(primitive(x), primitive(g), primitive(b), epsilon))
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        if !(covers(&x) && covers(&g) && covers(&grad)) {
            return default::layer_norm_backward(x, g, epsilon, grad);
        }
        tensor(norm::layer_norm_backward(primitive(x), primitive(g), epsilon, primitive(grad)))
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(covers(&gate) && gate.dtype() == up.dtype()) {
            return default::swiglu(gate, up);
        }
        tensor(activation::swiglu(primitive(gate), primitive(up)))
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        if !(covers(&gate) && gate.dtype() == up.dtype() && gate.dtype() == grad.dtype()) {
            return default::swiglu_backward(gate, up, grad);
        }
        activation::swiglu_backward(primitive(gate), primitive(up), primitive(grad)).map(tensor)
    }

    fn gelu(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !covers(&x) {
            return default::gelu(x);
        }
        tensor(activation::gelu(primitive(x)))
    }

    fn gelu_backward(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(covers(&x) && x.dtype() == grad.dtype()) {
            return default::gelu_backward(x, grad);
        }
        tensor(activation::gelu_backward(primitive(x), primitive(grad)))
    }

    fn rotary(x: Tensor<Self, 2>, table: &RotaryTable<Self>, inverse: bool) -> Tensor<Self, 2> {
        if !(covers(&x) && covers(&table.cos) && table.cos.dtype() == table.sin.dtype()) {
            return default::rotary(x, table, inverse);
        }
        let (cos, sin) = (primitive(table.cos.clone()), primitive(table.sin.clone()));
        tensor(rotary::rotary(primitive(x), cos, sin, inverse))
    }

    fn attention(inputs: AttentionInputs<Self>, settings: &AttentionSettings) -> Tensor<Self, 2> {
        match attention::Plan::new(&inputs, settings) {
            Some(plan) => plan.attention(inputs),
            None => default::attention(inputs, settings, false).0,
        }
    }

    fn attention_kept(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        match attention::Plan::new(&inputs, settings) {
            Some(plan) => plan.attention_kept(inputs),
            None => {
                let (output, lse) = default::attention(inputs, settings, true);
                (output, lse.expect("requested"))
            }
        }
    }

    fn attention_backward(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
        output: Tensor<Self, 2>,
        lse: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 3] {
        match attention::Plan::new(&inputs, settings) {
            Some(plan) if grad.dtype() == inputs.queries.dtype() => plan.backward(inputs, lse, grad),
            _ => default::attention_backward(inputs, settings, output, lse, grad),
        }
    }

    fn nll(
        states: Tensor<Self, 2>,
        embedding: Tensor<Self, 2>,
        labels: &[u32],
        with_gradient: bool,
    ) -> (Tensor<Self, 1>, Option<Tensor<Self, 2>>) {
        if !covers(&states) {
            return default::nll(states, embedding, labels, with_gradient);
        }
        loss::nll(states, embedding, labels, with_gradient)
    }

    fn write_rows(matrix: Tensor<Self, 2>, rows: &[usize], values: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(covers(&matrix) && covers(&values) && matrix.dtype() == values.dtype()) {
            return default::write_rows(matrix, rows, values);
        }
        let [n, _] = matrix.dims();
        assert!(rows.iter().all(|row| *row < n) && values.dims()[0] == rows.len(), "rows beyond the matrix");
        let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let index = TensorData::new(index, [rows.len()]);
        let index = Tensor::<Self, 1, Int>::from_data(index, &matrix.device()).into_primitive();
        tensor(rows::write_rows(primitive(matrix), index, primitive(values)))
    }
}
