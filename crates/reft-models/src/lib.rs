//! Frozen language models on [Burn](https://burn.dev) with intervention points.
//!
//! A model calls a [`reft_core::Hook`] at every [`reft_core::Site`]; it never learns what the hook does. Weights are
//! plain tensors, so no optimizer and no tape ever sees them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`llama`] | Llama 1 to 3.2, TinyLlama, SmolLM, Mistral, Qwen2, Qwen2.5, Qwen3 |
//! | [`roberta`] | RoBERTa, XLM-RoBERTa, CamemBERT, BERT |
//! | [`tuned`], [`peft`] | trained weights instead of interventions: BitFit, full fine-tuning, LoRA and its files |
//! | [`attention`], [`rope`], [`norm`], [`linear`], [`cache`] | layers that models share |
//! | [`pass`] | training passes: what is on the tape, gradient checkpointing |
//! | [`footprint`] | what a training pass keeps in memory |
//! | [`precision`] | types of a model's numbers, blockwise quantised weights |
//! | [`batch`] | token rows of unequal length as one padded batch |
//! | [`load`], [`hub`] | a model folder, by path or by its name on the Hugging Face hub |
//! | [`tokenizer`] | text ↔ token ids, chat templates |
//! | [`generate`](mod@generate) | decoding with a KV cache |

pub mod attention;
pub mod batch;
pub mod cache;
pub mod footprint;
pub mod generate;
#[cfg(not(target_arch = "wasm32"))]
pub mod hub;
pub mod linear;
pub mod llama;
pub mod load;
pub mod norm;
pub mod pass;
pub mod peft;
pub mod precision;
pub mod roberta;
pub mod rope;
pub mod tokenizer;
pub mod tuned;

pub use batch::{Padding, TokenBatch};
pub use cache::KvCache;
pub use footprint::Footprint;
pub use generate::{GenerateConfig, GenerateError, Generated, generate};
pub use llama::{Llama, LlamaConfig};
pub use load::{LoadError, LoadedModel, ModelFiles, Pretrained, Unloaded};
pub use pass::{Blocks, Checkpoints, Pass};
pub use precision::{Dtype, Precision, Quant};
pub use roberta::{Roberta, RobertaConfig};
pub use tokenizer::{ChatMessage, Tokenizer, TokenizerError};
pub use tuned::{LoraConfig, Tuned, Tuning};
