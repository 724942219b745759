//! Frozen language models on [Burn](https://burn.dev) with intervention points.
//!
//! A model calls a [`reft_core::Hook`] at every [`reft_core::Site`] and does not know what the hook does. Weights are
//! plain tensors, not parameters, so they are never on the tape or in an optimizer.
//!
//! ```no_run
//! use burn_flex::Flex;
//! use reft_core::NoHook;
//! use reft_models::{GenerateConfig, Llama, LoadedModel, Precision, generate, load::find};
//! use std::ops::ControlFlow;
//!
//! let files = find("path/to/model", None)?;
//! let loaded: LoadedModel<Flex, Llama<Flex>> =
//!     LoadedModel::load(&files, "my model", Precision::default(), &Default::default())?;
//! let prompt = loaded.tokenizer.encode("Once upon a time")?;
//! let config = loaded.generate_config();
//! let out = generate(&loaded.model, &[prompt], &NoHook, &config, |_, _| ControlFlow::Continue(()))?;
//! println!("{}", loaded.tokenizer.decode(&out[0].tokens)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`llama`] | Llama 1 to 3.2, TinyLlama, SmolLM, Mistral, Qwen2, Qwen2.5, Qwen3 |
//! | [`roberta`] | RoBERTa, XLM-RoBERTa, CamemBERT, BERT |
//! | [`rope`], [`norm`], [`linear`], [`cache`] | layers shared by the models |
//! | [`source`] | the traits that connect models, weights and training |
//! | [`files`], [`weights`], [`load`], `hub` | model files → tensors → model; downloads from the Hugging Face Hub (feature `hub`) |
//! | [`names`] | names of tensors |
//! | [`precision`] | dtypes, blockwise quantized weights |
//! | [`tokenizer`] | text ↔ token ids |
//! | [`chat`] | conversations, chat templates |
//! | [`batch`] | rows of tokens, padded to a batch |
//! | [`generate`](mod@generate) | text generation with a KV cache |
//! | [`pass`] | training passes: which blocks are on the tape, gradient checkpointing |
//! | [`footprint`] | the memory of a training pass |
//! | [`tuned`], [`peft`] | the baselines BitFit, full fine-tuning and LoRA, and their files |

pub mod batch;
pub mod cache;
pub mod chat;
pub mod files;
mod fingerprint;
pub mod footprint;
mod frozen;
pub mod generate;
mod hash;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub mod hub;
mod keys;
pub mod linear;
pub mod llama;
pub mod load;
pub mod names;
pub mod norm;
mod packed;
pub mod pass;
pub mod peft;
pub mod precision;
mod quantized;
mod reuse;
pub mod roberta;
pub mod rope;
mod rows;
mod shards;
pub mod source;
pub mod tokenizer;
pub mod tuned;
pub mod weights;

pub use reft_core;
pub use reft_kernels;

pub use batch::{Padding, TokenBatch};
pub use cache::KvCache;
pub use chat::{Chat, ChatMessage, RenderedChat};
pub use files::ModelFiles;
pub use footprint::Footprint;
pub use generate::{GenerateConfig, GenerateError, Generated, generate};
pub use llama::{Llama, LlamaConfig};
pub use load::{Checkpoint, LoadError, LoadedModel};
pub use packed::{n_constant, n_packed};
pub use pass::{Blocks, TrainingPass};
pub use precision::{Dtype, Precision, Quant};
pub use reuse::ReusedStates;
pub use roberta::{DropoutRates, Roberta, RobertaConfig};
pub use source::{ModelConfig, NamedTensors, Pretrained, TensorSource};
pub use tokenizer::{EncodedText, Tokenizer, TokenizerError};
pub use tuned::{LoraConfig, Tuned, TunedName, Tuning, TuningError};
pub use weights::Weights;
