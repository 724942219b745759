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
//! An edit goes into any Burn module, or a [`Reft`] holds those of a whole model:
//!
//! ```
//! use burn_flex::Flex;
//! use reft_core::{Intervention, LoreftConfig, Reft, ReftConfig};
//!
//! let device = Default::default();
//! // LoReFT of rank 4 on hidden states of size 64.
//! let edit: Intervention<Flex> = LoreftConfig::new(64, 4).with_seed(1).init(&device);
//! assert!(edit.orthonormality_error() < 1e-5);
//! // The same at the outputs of blocks 2 and 5, on the first 3 and the last 3 tokens of a prompt.
//! let config = ReftConfig::new(64, [2, 5]).with_rank(4).with_positions("f3+l3".parse()?);
//! let reft: Reft<Flex> = config.init(&device);
//! assert_eq!(reft.edits().len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A model calls a [`Hook`] at its [sites](Site); a [`Reft`] is one. The guide `docs/your-own-model.md` of the repository does
//! it step by step.
//!
//! | module | contents |
//! |---|---|
//! | [`intervention`] | the interventions: equations, initialization, forward pass |
//! | [`orthogonal`] | a column-orthonormal matrix as an unconstrained parameter |
//! | [`position`] | `f7+l7`, `l1`, `all` … → rows of a batch |
//! | [`site`], [`hook`], [`layout`] | where a model can be edited, the hook that it calls there, the tokens of the pass |
//! | [`steer`] | hooks without training: capture hidden states, add a vector |
//! | [`reft`] | [`Reft`]: the interventions of an adapter, applied to a batch |
//! | [`saved`] | a single intervention as a file or bytes |
//! | [`head`] | a small trainable classification head |
//! | [`adapter`] | adapters on disk: JSON and safetensors, loaded strictly |
//! | [`files`], [`tensor`] | helpers: atomic writes, strict tensor files; casts and host copies |
//!
//! This crate does not know any model, tokenizer or training loop.

#[doc(hidden)]
#[macro_use]
pub mod record;

pub mod adapter;
pub mod files;
pub mod head;
pub mod hook;
pub mod intervention;
pub mod layout;
pub mod orthogonal;
pub mod position;
pub mod reft;
pub mod saved;
pub mod site;
pub mod steer;
pub mod tensor;

// The versions that this crate is for.
pub use burn;
pub use serde_json;

pub use adapter::{Adapter, AdapterConfig, AdapterError, BaseModel};
pub use files::FileError;
pub use head::{Head, HeadConfig};
pub use hook::{Hook, MissingSite, NoHook, Packing, Place};
pub use intervention::{Activation, Init, Intervention, InterventionConfig, LoreftConfig, Method};
pub use layout::{BatchLayout, RowLayout};
pub use orthogonal::Orthonormal;
pub use position::{Part, Positions, PromptSpan};
pub use reft::{Reft, ReftConfig, ReftHook};
pub use saved::SavedError;
pub use site::{Component, Layers, Site};
pub use steer::{Capture, Captured, Steer, SteeredTokens};
pub use tensor::{host_values, to_dtype};
