//! Representation finetuning (ReFT, [arXiv 2404.03592](https://arxiv.org/abs/2404.03592)) on
//! [Burn](https://burn.dev): tensors in, tensors out, on any backend.
//!
//! ReFT steers a frozen language model with small learned edits of its hidden states. LoReFT, the paper's main method,
//! edits a hidden state `h` in the r-dimensional subspace spanned by the orthonormal rows of `R`:
//!
//! ```text
//! h + Rᵀ(Wh + b − Rh)
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`intervention`] | the interventions: equations, initialization, forward pass |
//! | [`orthogonal`] | a column-orthonormal matrix as an unconstrained parameter |
//! | [`position`] | `f7+l7`, `l1`, `all` … → rows of a batch |
//! | [`site`], [`hook`] | where a model can be edited, and the hook that it calls there |
//! | [`reft`] | [`Reft`]: the interventions of an adapter, applied to a batch |
//! | [`head`] | a small trainable classification head |
//! | [`adapter`] | adapters on disk: JSON and safetensors, loaded strictly |
//! | [`files`], [`tensor`] | helpers: atomic writes, strict tensor files; casts and host copies |
//!
//! This crate does not know any model, tokenizer or training loop.

pub mod adapter;
pub mod files;
pub mod head;
pub mod hook;
pub mod intervention;
pub mod orthogonal;
pub mod position;
pub mod reft;
pub mod site;
pub mod tensor;

pub use adapter::{Adapter, AdapterConfig, AdapterError, BaseModel};
pub use files::FileError;
pub use head::{Head, HeadConfig};
pub use hook::{Hook, NoHook};
pub use intervention::{Activation, Init, Intervention, InterventionConfig, Method};
pub use orthogonal::Orthonormal;
pub use position::{Part, Positions, PromptSpan};
pub use reft::{Reft, ReftConfig, ReftHook};
pub use site::{Component, Layers, Site};
pub use tensor::{host_values, to_dtype};
