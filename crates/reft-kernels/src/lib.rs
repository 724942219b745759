//! The operations that frozen transformers spend their time in, as one trait over Burn's `Backend`.
//!
//! [`Kernels`] has a default body of Burn's own operations for each of them, so that every backend has them all. burn-flex has
//! kernels instead (feature `flex`), and so have burn-wgpu and burn-cuda for most (feature `cubecl`). `Autodiff` has backward passes
//! written by hand, which keep only what they need; weights that are trained take Burn's own graph. A backend of one's own gets
//! everything with `impl Kernels for MyBackend {}`.
//!
//! States are matrices, one row per token, with the heads side by side. Nothing here knows models or interventions.
//!
//! | operation | keeps for its backward pass |
//! |---|---|
//! | [`rms_norm`](Kernels::rms_norm), [`layer_norm`](Kernels::layer_norm) | its input |
//! | [`swiglu`](Kernels::swiglu), [`gelu`](Kernels::gelu) | its inputs |
//! | [`rotary`](Kernels::rotary) | nothing |
//! | [`attention`](Kernels::attention) | its inputs, its output, and one number per query and head |
//! | [`linear`](Kernels::linear) | nothing |
//!
//! [`nll`](Kernels::nll) returns its gradient with its value.

mod attention;
mod autodiff;
mod default;
mod deviation;
mod dtype;
mod kernels;
mod rotary;

#[cfg(feature = "flex")]
pub mod cpu;
#[cfg(feature = "cubecl")]
mod cubecl;

pub use attention::{AttentionInputs, AttentionSettings, Dropout, Heads, Mask, Segment, Spans, Text};
pub use deviation::{OPERATIONS, deviations, product_deviation};
pub use kernels::{AutodiffKernels, Kernels};
pub use rotary::RotaryTable;

#[cfg(feature = "ndarray")]
impl<E, I, Q> Kernels for burn_ndarray::NdArray<E, I, Q>
where
    Self: burn::tensor::backend::Backend,
    E: 'static,
    I: 'static,
    Q: 'static,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>> + From<burn_ndarray::SharedArray<I>>,
{
}
