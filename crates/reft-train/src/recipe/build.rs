//! What a recipe describes, as the types that do the work.

use super::sections::Recipe;
use crate::{method::Baseline, train_config::TrainConfig};
use reft_core::{Method, ReftConfig, site::LayersError};
use reft_models::{LoraConfig, Tuning};

impl Recipe {
    /// The configuration of the interventions; without sites for a baseline.
    ///
    /// # Errors
    /// If `reft.layers` names a layer that the model does not have.
    pub fn reft_config(&self, n_layers: usize, hidden_size: usize) -> Result<ReftConfig, LayersError> {
        let section = &self.reft;
        let layers = match section.method.intervention() {
            Some(_) => section.layers.resolve(n_layers)?,
            None => Vec::new(),
        };
        Ok(ReftConfig::new(hidden_size, layers)
            .with_method(section.method.intervention().unwrap_or(Method::Loreft))
            .with_rank(section.rank)
            .with_component(section.component)
            .with_positions(section.positions)
            .with_tied(section.tied)
            .with_activation(section.activation)
            .with_dropout(section.dropout)
            .with_seed(self.train.seed)
            .with_init(section.init))
    }

    /// The weights that a baseline trains, if it trains any.
    pub fn tuning(&self) -> Option<Tuning> {
        match self.reft.method.baseline()? {
            Baseline::HeadOnly => None,
            Baseline::Bitfit => Some(Tuning::Bitfit),
            Baseline::Full => Some(Tuning::Full),
            Baseline::Lora => Some(Tuning::Lora(LoraConfig {
                rank: self.reft.rank,
                alpha: self.lora.alpha.unwrap_or(2.0 * self.reft.rank as f64),
                dropout: self.lora.dropout,
                targets: self.lora.targets.clone(),
            })),
        }
    }

    /// Whether to use gradient checkpointing.
    pub fn checkpointing(&self) -> bool {
        self.train.checkpointing.unwrap_or(self.quant.is_some())
    }

    /// The settings of the training loop; `on_host` says whether activations live in host memory.
    pub fn train_config(&self, on_host: bool) -> TrainConfig {
        TrainConfig {
            checkpointing: Some(self.checkpointing()),
            head_lr: self.head.lr,
            check_host_memory: on_host,
            ..self.train.clone()
        }
    }
}
