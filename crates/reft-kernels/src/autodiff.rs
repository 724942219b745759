//! The operations on the tape, with backward passes of their own.
//!
//! Weights are constants there. If one is tracked, because a baseline trains it, the operation takes Burn's own graph.

use crate::{
    attention::{AttentionInputs, AttentionSettings},
    default,
    kernels::Kernels,
    rotary::RotaryTable,
};
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive, backend::Backend, ops::FloatTensor};
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};

type Tracked<B, C, const D: usize> = Tensor<Autodiff<B, C>, D>;

fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

fn tensor<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// Whether a gradient is wanted for a weight.
fn is_tracked<B: Backend, C: CheckpointStrategy, const D: usize>(x: &Tracked<B, C, D>) -> bool {
    match x.clone().into_primitive() {
        TensorPrimitive::Float(x) => x.is_tracked(),
        TensorPrimitive::QFloat(_) => false,
    }
}

/// Puts an operation with one tracked input on the tape. `forward` gets the input and `state` makes what the backward pass
/// needs, if there will be one.
fn unary_step<B, C, S>(
    step: S,
    x: Tracked<B, C, 2>,
    state: impl FnOnce(&Tensor<B, 2>) -> S::State,
    forward: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tracked<B, C, 2>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Backward<B, 1>,
{
    let x = primitive(x);
    let (node, x) = (x.node, tensor(x.primitive));
    match step.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let state = state(&x);
            tensor(prepared.finish(state, primitive(forward(x))))
        }
        OpsKind::UnTracked(prepared) => tensor(prepared.finish(primitive(forward(x)))),
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: Kernels> Backward<B, 1> for RmsNorm {
    type State = (Tensor<B, 2>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, g, epsilon) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            primitive(Kernels::rms_norm_backward(x, g, epsilon, tensor(grad)))
        });
    }
}

#[derive(Debug)]
struct LayerNorm;

impl<B: Kernels> Backward<B, 1> for LayerNorm {
    type State = (Tensor<B, 2>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, g, epsilon) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            primitive(Kernels::layer_norm_backward(x, g, epsilon, tensor(grad)))
        });
    }
}

#[derive(Debug)]
struct Gelu;

impl<B: Kernels> Backward<B, 1> for Gelu {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            primitive(Kernels::gelu_backward(ops.state, tensor(grad)))
        });
    }
}

#[derive(Debug)]
struct Rotary;

impl<B: Kernels> Backward<B, 1> for Rotary {
    type State = (RotaryTable<B>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (table, inverse) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            primitive(Kernels::rotary(tensor(grad), &table, !inverse))
        });
    }
}

#[derive(Debug)]
struct Linear;

impl<B: Kernels> Backward<B, 1> for Linear {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            primitive(Kernels::linear_backward(ops.state, tensor(grad)))
        });
    }
}

#[derive(Debug)]
struct Swiglu;

impl<B: Kernels> Backward<B, 2> for Swiglu {
    type State = (Tensor<B, 2>, Tensor<B, 2>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = ops.state;
        let grad = tensor(grads.consume::<B>(&ops.node));
        let parts = Kernels::swiglu_backward(gate, up, grad);
        for (parent, part) in ops.parents.into_iter().zip(parts) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(part));
            }
        }
    }
}

#[derive(Debug)]
struct Attention;

/// What the backward pass of attention needs.
#[derive(Debug, Clone)]
struct AttentionState<B: Backend> {
    inputs: AttentionInputs<B>,
    settings: AttentionSettings,
    output: Tensor<B, 2>,
    lse: Tensor<B, 2>,
}

impl<B: Kernels> Backward<B, 3> for Attention {
    type State = AttentionState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let AttentionState { inputs, settings, output, lse } = ops.state;
        let grad = tensor(grads.consume::<B>(&ops.node));
        let parts = Kernels::attention_backward(inputs, &settings, output, lse, grad);
        for (parent, part) in ops.parents.into_iter().zip(parts) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(part));
            }
        }
    }
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn packs_rows(dtype: DType) -> bool {
        B::packs_rows(dtype)
    }

    fn own_kernels() -> &'static [&'static str] {
        B::own_kernels()
    }

    fn widens(stored: DType, states: DType) -> bool {
        B::widens(stored, states)
    }

    fn rows_of_logits(vocab: usize) -> usize {
        B::rows_of_logits(vocab)
    }

    fn numbers_per_logit() -> usize {
        B::numbers_per_logit()
    }

    fn rms_norm(x: Tracked<B, C, 2>, g: Tracked<B, C, 1>, epsilon: f64) -> Tracked<B, C, 2> {
        if is_tracked(&g) {
            return default::rms_norm(x, g, epsilon);
        }
        let g = g.inner();
        unary_step(
            RmsNorm,
            x,
            |x| (x.clone(), g.clone(), epsilon),
            |x| Kernels::rms_norm(x, g.clone(), epsilon),
        )
    }

    fn layer_norm(
        x: Tracked<B, C, 2>,
        g: Tracked<B, C, 1>,
        b: Tracked<B, C, 1>,
        epsilon: f64,
    ) -> Tracked<B, C, 2> {
        if is_tracked(&g) || is_tracked(&b) {
            return default::layer_norm(x, g, b, epsilon);
        }
        let (g, b) = (g.inner(), b.inner());
        let state = |x: &Tensor<B, 2>| (x.clone(), g.clone(), epsilon);
        unary_step(LayerNorm, x, state, |x| Kernels::layer_norm(x, g.clone(), b, epsilon))
    }

    fn swiglu(gate: Tracked<B, C, 2>, up: Tracked<B, C, 2>) -> Tracked<B, C, 2> {
        let (gate, up) = (primitive(gate), primitive(up));
        let nodes = [gate.node, up.node];
        let (gate, up) = (tensor::<B, 2>(gate.primitive), tensor::<B, 2>(up.primitive));
        match Swiglu.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = (gate.clone(), up.clone());
                tensor(prepared.finish(state, primitive(Kernels::swiglu(gate, up))))
            }
            OpsKind::UnTracked(prepared) => tensor(prepared.finish(primitive(Kernels::swiglu(gate, up)))),
        }
    }

    fn gelu(x: Tracked<B, C, 2>) -> Tracked<B, C, 2> {
        unary_step(Gelu, x, Tensor::clone, Kernels::gelu)
    }

    fn rotary(x: Tracked<B, C, 2>, table: &RotaryTable<Self>, inverse: bool) -> Tracked<B, C, 2> {
        let table = RotaryTable { cos: table.cos.clone().inner(), sin: table.sin.clone().inner() };
        unary_step(Rotary, x, |_| (table.clone(), inverse), |x| Kernels::rotary(x, &table, inverse))
    }

    fn attention(inputs: AttentionInputs<Self>, settings: &AttentionSettings) -> Tracked<B, C, 2> {
        let (queries, keys, values) =
            (primitive(inputs.queries), primitive(inputs.keys), primitive(inputs.values));
        let nodes = [queries.node, keys.node, values.node];
        let inputs = AttentionInputs {
            queries: tensor::<B, 2>(queries.primitive),
            keys: tensor(keys.primitive),
            values: tensor(values.primitive),
            past: inputs.past.map(|(keys, values)| (keys.inner(), values.inner())),
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (output, lse) = Kernels::attention_kept(inputs.clone(), settings);
                let kept = primitive(output.clone());
                let state = AttentionState { inputs, settings: settings.clone(), output, lse };
                tensor(prepared.finish(state, kept))
            }
            OpsKind::UnTracked(prepared) => {
                tensor(prepared.finish(primitive(Kernels::attention(inputs, settings))))
            }
        }
    }

    fn quantized_matrix(data: TensorData, device: &B::Device) -> Tracked<B, C, 2> {
        Tensor::from_inner(B::quantized_matrix(data, device))
    }

    fn linear(x: Tracked<B, C, 2>, w: Tracked<B, C, 2>, b: Option<Tracked<B, C, 1>>) -> Tracked<B, C, 2> {
        if is_tracked(&w) {
            return default::linear(x, w, b);
        }
        if let Some(b) = b.clone().filter(is_tracked) {
            return Kernels::linear(x, w, None) + b.unsqueeze();
        }
        let (w, b) = (w.inner(), b.map(Tensor::inner));
        unary_step(Linear, x, |_| w.clone(), |x| Kernels::linear(x, w.clone(), b))
    }

    /// The values and their gradient are constants.
    fn nll(
        states: Tracked<B, C, 2>,
        embedding: Tracked<B, C, 2>,
        labels: &[u32],
        with_gradient: bool,
    ) -> (Tracked<B, C, 1>, Option<Tracked<B, C, 2>>) {
        let (values, gradient) = Kernels::nll(states.inner(), embedding.inner(), labels, with_gradient);
        (Tensor::from_inner(values), gradient.map(Tensor::from_inner))
    }
}
