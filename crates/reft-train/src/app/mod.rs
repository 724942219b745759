//! Models for applications: load one, train an adapter, keep several, stream text, classify.
//!
//! ```
//! use burn_flex::Flex;
//! use reft_train::{LanguageModel, TrainConfig, Trainer};
//! use std::ops::ControlFlow;
//!
//! let model = LanguageModel::<Flex>::load("embedded:tiny", &Default::default())?;
//! let pairs = [("the old fox sings on the hill\n", "THE OLD FOX SINGS ON THE HILL!")];
//! let trainer = Trainer::new()
//!     .with_reft(model.reft([1, 3]).with_rank(4).with_positions("f2+l2".parse()?))
//!     .with_config(TrainConfig::default().with_steps(3).with_lr(1e-2))
//!     .on_step(|step| {
//!         println!("step {}/{}: loss {:.3}", step.step, step.total_steps, step.loss);
//!         ControlFlow::Continue(())
//!     });
//! let trained = model.train(&pairs, trainer)?;
//! println!("{}", model.generate("the young queen reads\n", &trained.result)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod any;
mod classifier;
mod language_model;
mod trainer;

pub use crate::open::LanguageModelAdapter;
pub use any::{AnyAdapter, AnyClassifier, AnyEncoder, AnyLanguageModel};
pub use classifier::{Prediction, TextClassifier, TextEncoder};
pub use language_model::LanguageModel;
pub use trainer::{Trained, Trainer};
