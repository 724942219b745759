//! The trait.

use crate::{
    attention::{AttentionInputs, AttentionSettings},
    default,
    rotary::RotaryTable,
};
use burn::tensor::{
    DType, Tensor, TensorData, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
};

/// A backend with the operations of frozen transformers.
///
/// Operations whose name ends in `_backward` return the gradients of their namesake's inputs, given that of its output.
pub trait Kernels: Backend {
    /// Whether attention in this dtype does no work for padding and never has all its scores in memory, so that it pays to pack
    /// the rows of a batch.
    fn packs_rows(_dtype: DType) -> bool {
        false
    }

    /// The operations with kernels of their own, by their names in [`OPERATIONS`](crate::OPERATIONS).
    fn own_kernels() -> &'static [&'static str] {
        &[]
    }

    /// Whether products widen weights of the dtype `stored` to that of the states as they read them, so that weights in half
    /// precision can stay as they are, and states still be f32.
    fn widens(_stored: DType, _states: DType) -> bool {
        false
    }

    /// The largest number of states whose logits [`nll`](Self::nll) has in memory at the same time.
    fn rows_of_logits(vocab: usize) -> usize {
        default::rows_of_logits(vocab)
    }

    /// How many numbers there are for each of these logits at the same time: by default the logit, the same minus the largest,
    /// and the exponential of that.
    fn numbers_per_logit() -> usize {
        3
    }

    /// `x / √(mean(x²) + ε) · g` for every row (Hugging Face's `LlamaRMSNorm`). The quotient is computed in f32.
    ///
    /// # Shapes
    /// - x, output `[n, d]`; g `[d]`
    fn rms_norm(x: Tensor<Self, 2>, g: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        default::rms_norm(x, g, epsilon)
    }

    /// The gradient of x.
    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        default::rms_norm_backward(x, g, epsilon, grad)
    }

    /// `(x − mean(x)) / √(var(x) + ε) · g + b` for every row, in f32 (PyTorch's `LayerNorm`).
    ///
    /// # Shapes
    /// - x, output `[n, d]`; g, b `[d]`
    fn layer_norm(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        b: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        default::layer_norm(x, g, b, epsilon)
    }

    /// The gradient of x.
    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        default::layer_norm_backward(x, g, epsilon, grad)
    }

    /// `silu(gate) · up` with `silu(x) = x / (1 + e⁻ˣ)` ([SwiGLU](https://arxiv.org/abs/2002.05202)).
    ///
    /// # Shapes
    /// - gate, up, output `[n, d]`
    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        default::swiglu(gate, up)
    }

    /// The gradients of gate and up.
    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        default::swiglu_backward(gate, up, grad)
    }

    /// `x Φ(x)` with the cumulative normal distribution Φ (PyTorch's exact `gelu`), in f32.
    fn gelu(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        default::gelu(x)
    }

    /// The gradient of x.
    fn gelu_backward(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        default::gelu_backward(x, grad)
    }

    /// Rotates the halves of every head by the angles of its row, `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`, or back
    /// ([RoPE](https://arxiv.org/abs/2104.09864) in Hugging Face's rotate-half layout).
    ///
    /// # Shapes
    /// - x, output `[n, heads · dim]`
    fn rotary(x: Tensor<Self, 2>, table: &RotaryTable<Self>, inverse: bool) -> Tensor<Self, 2> {
        default::rotary(x, table, inverse)
    }

    /// Scaled dot-product attention, `softmax(QKᵀ/√dim) V` over the keys that each query sees. The softmax is computed in f32.
    ///
    /// # Shapes
    /// - output `[n_queries, heads.queries · dim]`
    fn attention(inputs: AttentionInputs<Self>, settings: &AttentionSettings) -> Tensor<Self, 2> {
        default::attention(inputs, settings, false).0
    }

    /// [`attention`](Self::attention), with the log-sum-exp of the scores, `[n_queries, heads.queries]` in f32.
    fn attention_kept(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (output, lse) = default::attention(inputs, settings, true);
        (output, lse.expect("requested"))
    }

    /// The gradients of queries, keys and values, from what [`attention_kept`](Self::attention_kept) returned.
    fn attention_backward(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
        output: Tensor<Self, 2>,
        lse: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 3] {
        default::attention_backward(inputs, settings, output, lse, grad)
    }

    /// A matrix that is quantized in blocks along its rows, for [`linear`](Self::linear) and its backward pass alone. The data
    /// is packed as Burn's backends expect it: integers from the lowest bits of each u32 up, then the scales.
    fn quantized_matrix(data: TensorData, device: &Self::Device) -> Tensor<Self, 2> {
        Tensor::from_primitive(TensorPrimitive::QFloat(Self::q_from_data(data, device)))
    }

    /// `x Wᵀ + b`, where `W` may be quantized or of another float type than x.
    ///
    /// # Shapes
    /// - x `[n, d_in]`, W `[d_out, d_in]`, b `[d_out]`, output `[n, d_out]`
    fn linear(x: Tensor<Self, 2>, w: Tensor<Self, 2>, b: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
        default::linear(x, w, b)
    }

    /// The gradient of x, `grad W`.
    fn linear_backward(w: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        default::linear_backward(w, grad)
    }

    /// `−log softmax(E h)[label]` for each state `h` and, if requested, its gradient with respect to `h`,
    /// `Eᵀ softmax(E h) − E_label`. Logits exist for a slice of the states at a time. In f32.
    ///
    /// # Shapes
    /// - states `[n, d]`, E `[vocab, d]`, labels `n`; output `[n]`, gradient `[n, d]`
    fn nll(
        states: Tensor<Self, 2>,
        embedding: Tensor<Self, 2>,
        labels: &[u32],
        with_gradient: bool,
    ) -> (Tensor<Self, 1>, Option<Tensor<Self, 2>>) {
        default::nll(states, embedding, labels, with_gradient)
    }

    /// Replaces some rows of a matrix, in place if nobody else holds it.
    ///
    /// # Shapes
    /// - matrix, output `[n, d]`; rows `m`; values `[m, d]`
    fn write_rows(matrix: Tensor<Self, 2>, rows: &[usize], values: Tensor<Self, 2>) -> Tensor<Self, 2> {
        default::write_rows(matrix, rows, values)
    }
}

/// An autodiff backend on one with [`Kernels`]; every `Autodiff<B>` is.
pub trait AutodiffKernels: AutodiffBackend<InnerBackend: Kernels> + Kernels {}

impl<A: AutodiffBackend<InnerBackend: Kernels> + Kernels> AutodiffKernels for A {}
