//! Trained weights: the baselines to which interventions are compared.
//!
//! A model is a function of its named tensors ([`Pretrained::from_source`]). BitFit and full fine-tuning replace
//! frozen tensors with trained ones, LoRA adds low-rank factors; the models are the same.

use crate::{
    linear::{Linear, Lora},
    names::{block_of, name_in_block},
    source::{NamedTensors, Pretrained, TensorSource},
};
use burn::{
    module::Param,
    record::Record,
    tensor::{
        DType, Tensor, TensorData,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{
    complete_module, host_values,
    record::{config_text, recorded_config, recorded_param},
    to_dtype,
};
use serde::{Deserialize, Serialize};

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuning {
    /// Every bias ([BitFit](https://arxiv.org/abs/2106.10199)).
    Bitfit,
    /// Every weight.
    Full,
    /// Low-rank updates of linear maps ([LoRA](https://arxiv.org/abs/2106.09685)).
    Lora(LoraConfig),
}

/// The settings of LoRA, serialized with PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of every update.
    #[serde(rename = "r")]
    pub rank: usize,
    /// The updates are multiplied by `alpha / rank`.
    #[serde(rename = "lora_alpha")]
    pub alpha: f64,
    /// Dropout on the input of an update, during training.
    #[serde(rename = "lora_dropout")]
    pub dropout: f64,
    /// The updated maps, by the last parts of their names, such as `q_proj` or `attention.output.dense`; empty for
    /// every map within the blocks.
    #[serde(rename = "target_modules")]
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// Whether the linear map with this name is updated.
    pub fn updates(&self, name: &str) -> bool {
        let is = |target: &String| {
            name == target || name.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.targets.iter().any(is)
    }

    /// The targets, or those of every map if they are empty.
    fn targets_among(&self, shapes: &[(&str, &[usize])]) -> Vec<String> {
        if !self.targets.is_empty() {
            return self.targets.clone();
        }
        let mut targets: Vec<String> =
            maps(shapes).into_iter().map(|(map, _)| name_in_block(map).into()).collect();
        targets.sort();
        targets.dedup();
        targets
    }
}

/// Weights that cannot be trained as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// The model has no biases.
    #[error("bitfit trains biases, but this model has none; use another method")]
    NoBiases,
    /// No map matches a target.
    #[error("lora.targets: no linear map is named {target:?}; available are {known}")]
    NoTarget {
        /// The target.
        target: String,
        /// The available names.
        known: String,
    },
    /// The model is quantized.
    #[error("the model is quantized: only interventions and heads can be trained on it; remove quant")]
    Quantized,
    /// Rank zero or too large.
    #[error("the rank of LoRA is {rank}; expected 1 to {most}, the smaller side of an updated map")]
    Rank {
        /// The rank.
        rank: usize,
        /// The largest possible rank.
        most: usize,
    },
}

/// Names and shapes `[d_out, d_in]` of the linear maps within the blocks.
pub(crate) fn maps<'a>(shapes: &[(&'a str, &[usize])]) -> Vec<(&'a str, [usize; 2])> {
    let map = |(name, shape): &(&'a str, &[usize])| {
        let map = name.strip_suffix(".weight")?;
        let shape = <[usize; 2]>::try_from(*shape).ok()?;
        block_of(map).map(|_| (map, shape))
    };
    shapes.iter().filter_map(map).collect()
}

/// Trained weights by name, each flattened.
#[derive(Debug, Clone)]
pub struct Tuned<B: Backend> {
    values: Vec<Param<Tensor<B, 1>>>,
    names: Vec<TunedName>,
    lora: Option<LoraConfig>,
}

complete_module!(Tuned, record: TunedRecord, modules: [values], state: [names, lora]);

/// The record of a [`Tuned`].
#[derive(Record, Debug, Clone)]
pub struct TunedRecord<B: Backend> {
    names: String,
    lora: String,
    values: Vec<Param<Tensor<B, 1>>>,
}

/// Name and shape of a trained tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunedName {
    /// The name in Hugging Face's files; LoRA's factors are `{map}.lora_A.weight` and `{map}.lora_B.weight`.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
}

impl Tuning {
    /// Names and shapes of the trained tensors, given those of the model.
    ///
    /// # Errors
    /// If the model has no such weights, or LoRA's rank is out of range.
    pub fn names(&self, shapes: &[(&str, &[usize])]) -> Result<Vec<TunedName>, TuningError> {
        let all = |keep: fn(&str) -> bool| -> Vec<TunedName> {
            let kept = shapes.iter().filter(|(name, _)| keep(name));
            kept.map(|(name, shape)| TunedName { name: (*name).into(), shape: shape.to_vec() }).collect()
        };
        match self {
            Tuning::Full => Ok(all(|_| true)),
            Tuning::Bitfit => match all(|name| name.ends_with(".bias")) {
                biases if biases.is_empty() => Err(TuningError::NoBiases),
                biases => Ok(biases),
            },
            Tuning::Lora(config) => {
                let (maps, targets) = (maps(shapes), config.targets_among(shapes));
                for target in &targets {
                    let alone = LoraConfig { targets: vec![target.clone()], ..config.clone() };
                    if !maps.iter().any(|(map, _)| alone.updates(map)) {
                        let known = LoraConfig { targets: Vec::new(), ..alone }.targets_among(shapes);
                        return Err(TuningError::NoTarget {
                            target: target.clone(),
                            known: known.join(", "),
                        });
                    }
                }
                let filled = LoraConfig { targets, ..config.clone() };
                let mut names = Vec::new();
                for (map, [d_out, d_in]) in maps.into_iter().filter(|(map, _)| filled.updates(map)) {
                    let (rank, most) = (config.rank, d_out.min(d_in));
                    if rank == 0 || rank > most {
                        return Err(TuningError::Rank { rank, most });
                    }
                    let name = |factor| format!("{map}.lora_{factor}.weight");
                    names.push(TunedName { name: name('A'), shape: vec![rank, d_in] });
                    names.push(TunedName { name: name('B'), shape: vec![d_out, rank] });
                }
                Ok(names)
            }
        }
    }

    /// The weights before training: those of the model; for LoRA, `A` uniform in ±1/√d_in and `B` zero (as in PEFT).
    ///
    /// # Errors
    /// As [`names`](Self::names), or if the model is quantized.
    pub fn init<B: Backend>(
        &self,
        base: &NamedTensors<B>,
        seed: u64,
        device: &B::Device,
    ) -> Result<Tuned<B>, TuningError> {
        let (lora, names) = self.resolve(base)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values = names.iter().map(|TunedName { name, shape }| match base.flat(name) {
            Some(tensor) => to_dtype(tensor.clone(), DType::F32),
            None => {
                let n = shape.iter().product();
                let bound = 1.0 / (shape[1] as f32).sqrt();
                let first = name.ends_with("lora_A.weight");
                let values: Vec<f32> =
                    (0..n).map(|_| if first { rng.random_range(-bound..bound) } else { 0.0 }).collect();
                Tensor::from_data(TensorData::new(values, [n]), device)
            }
        });
        let values = values.map(Param::from_tensor).collect();
        Ok(Tuned { values, names, lora })
    }

    /// Weights with the given values; `values` is called in the order of [`names`](Self::names).
    ///
    /// # Errors
    /// As [`names`](Self::names), or if the model is quantized.
    ///
    /// # Panics
    /// If the number of values does not match the shape.
    pub fn with_values<B: Backend>(
        &self,
        base: &NamedTensors<B>,
        mut values: impl FnMut(&TunedName) -> Vec<f32>,
        device: &B::Device,
    ) -> Result<Tuned<B>, TuningError> {
        let (lora, names) = self.resolve(base)?;
        let values = names
            .iter()
            .map(|name| {
                let shape: [usize; 1] = [name.shape.iter().product()];
                Param::from_tensor(Tensor::from_data(TensorData::new(values(name), shape), device))
            })
            .collect();
        Ok(Tuned { values, names, lora })
    }

    /// The settings of LoRA with explicit targets, and the trained tensors.
    fn resolve<B: Backend>(
        &self,
        base: &NamedTensors<B>,
    ) -> Result<(Option<LoraConfig>, Vec<TunedName>), TuningError> {
        if base.is_quantized() {
            return Err(TuningError::Quantized);
        }
        let shapes: Vec<(&str, &[usize])> = base.shapes().collect();
        let lora = match self {
            Tuning::Lora(config) => {
                Some(LoraConfig { targets: config.targets_among(&shapes), ..config.clone() })
            }
            _ => None,
        };
        Ok((lora, self.names(&shapes)?))
    }
}

impl<B: Backend> Tuned<B> {
    /// Names and shapes, in the order of the values.
    pub fn names(&self) -> &[TunedName] {
        &self.names
    }

    fn to_record(&self) -> TunedRecord<B> {
        let (names, lora) = (config_text(&self.names), config_text(&self.lora));
        TunedRecord { names, lora, values: self.values.clone() }
    }

    fn with_record(self, record: TunedRecord<B>) -> Self {
        let first = self.values.first();
        let device = first.map(|value| value.device()).unwrap_or_default();
        let is_trainable = first.is_some_and(|value| value.is_require_grad());
        let values = record.values.into_iter();
        Self {
            values: values.map(|saved| recorded_param(saved, &device, is_trainable)).collect(),
            names: recorded_config(&record.names),
            lora: recorded_config(&record.lora),
        }
    }

    /// The settings of LoRA, with explicit targets; `None` for other methods.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// The trained tensor with this name, flattened.
    pub fn get(&self, name: &str) -> Option<&Param<Tensor<B, 1>>> {
        // A linear search is fast enough for a few hundred names.
        let idx = self.names.iter().position(|known| known.name == name)?;
        Some(&self.values[idx])
    }

    /// The values on the host, by name.
    pub fn values(&self) -> impl Iterator<Item = (&TunedName, Vec<f32>)> {
        self.names.iter().zip(&self.values).map(|(name, value)| (name, host_values(value.val())))
    }

    /// The tuned model for inference.
    pub fn model<M: Pretrained<B>>(&self, config: &M::Config, base: &NamedTensors<B>) -> M {
        let convert = |tensor| tensor;
        M::from_source(config, &mut TunedSource { base, tuned: self, convert, training: false })
    }
}

impl<A: AutodiffBackend> Tuned<A> {
    /// The tuned model for training, with LoRA's dropout; the frozen tensors come from the inner backend.
    pub fn model_in_training<M: Pretrained<A>>(
        &self,
        config: &M::Config,
        base: &NamedTensors<A::InnerBackend>,
    ) -> M {
        let convert = Tensor::from_inner;
        M::from_source(config, &mut TunedSource { base, tuned: self, convert, training: true })
    }
}

/// The tensors of a tuned model: trained tensors, and frozen ones converted from the backend of the frozen model.
struct TunedSource<'a, B: Backend, C: Backend, F> {
    base: &'a NamedTensors<C>,
    tuned: &'a Tuned<B>,
    convert: F,
    training: bool,
}

impl<B: Backend, C: Backend, F: Fn(Tensor<C, 1>) -> Tensor<B, 1>> TensorSource<B>
    for TunedSource<'_, B, C, F>
{
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let flat = match self.tuned.get(name) {
            // Trained in f32, used in the dtype of the model.
            Some(trained) => to_dtype(trained.val(), self.base.dtype()),
            None => {
                let frozen = self.base.flat(name);
                (self.convert)(frozen.expect("recorded when the model was loaded, and not quantized").clone())
            }
        };
        flat.reshape(shape)
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Linear<B> {
        let factor = |factor: char| Some(self.tuned.get(&format!("{name}.lora_{factor}.weight"))?.val());
        let lora = self.tuned.lora.as_ref().and_then(|config| {
            Some(Lora {
                a: factor('A')?.reshape([config.rank, shape[1]]),
                b: factor('B')?.reshape([shape[0], config.rank]),
                scale: config.alpha / config.rank as f64,
                dropout: if self.training { config.dropout } else { 0.0 },
            })
        });
        Linear {
            weight: self.take(&format!("{name}.weight"), shape),
            bias: bias.then(|| self.take(&format!("{name}.bias"), [shape[0]])),
            lora,
        }
    }
}
