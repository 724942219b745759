//! Representation finetuning (ReFT, [arXiv 2404.03592](https://arxiv.org/abs/2404.03592)) on
//! [Burn](https://burn.dev): tensors in, tensors out, on any backend.
//!
//! A frozen language model is steered by small learned edits of its hidden states. The paper's main
//! method, LoReFT, edits a hidden state `h` in the r-dimensional subspace spanned by the orthonormal
//! rows of `R`:
//!
//! ```text
//! h + Rᵀ(Wh + b − Rh)
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`intervention`] | the family of edits: equations, initialisation, forward |
//! | [`orthogonal`] | a column-orthonormal matrix as an unconstrained parameter |
//! | [`position`] | `f7+l7`, `l1`, `all` … → rows of a batch |
//! | [`reft`] | sites of a model, the [`Hook`] that a model calls, [`Reft`] = sites → interventions |
//! | [`head`] | the small trained head of a classifier |
//! | [`adapter`] | an adapter on disk: JSON and safetensors, strictly loaded |
//!
//! This crate knows no model, no tokenizer and no training loop.

pub mod adapter;
pub mod head;
pub mod intervention;
pub mod orthogonal;
pub mod position;
pub mod reft;

pub use adapter::{Adapter, AdapterError, BaseModel, TaskConfig, Trained};
pub use head::{Head, HeadConfig};
pub use intervention::{Activation, Intervention, InterventionConfig, Method, to_dtype};
pub use orthogonal::Orthonormal;
pub use position::{Positions, PromptSpan};
pub use reft::{Component, Hook, Layers, NoHook, Part, Reft, ReftConfig, ReftHook, Site};
