//! Trained weights: the baselines that interventions are compared with.
//!
//! A model is a function of its named tensors ([`Pretrained::from_source`](crate::load::Pretrained::from_source)). BitFit
//! and full fine-tuning put trained tensors in the place of frozen ones; LoRA adds factors beside them. No model knows.

use crate::{
    linear::{Linear, Lora},
    load::TensorSource,
};
use burn::{
    module::{Module, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuning {
    /// Every bias ([BitFit](https://arxiv.org/abs/2106.10199)).
    Bitfit,
    /// Every weight.
    Full,
    /// Low-rank changes of linear maps ([LoRA](https://arxiv.org/abs/2106.09685)).
    Lora(LoraConfig),
}

/// LoRA's settings, by PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of every change.
    #[serde(rename = "r")]
    pub rank: usize,
    /// The changes are multiplied by `alpha / rank`.
    #[serde(rename = "lora_alpha")]
    pub alpha: f64,
    /// Dropout of a change's input, in training.
    #[serde(rename = "lora_dropout")]
    pub dropout: f64,
    /// Last parts of the changed maps' names, such as `q_proj` or `attention.output.dense`; empty for every map within
    /// the blocks.
    #[serde(rename = "target_modules")]
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// Whether the linear map of this name is changed.
    pub fn changes(&self, name: &str) -> bool {
        let is = |target: &String| {
            name == target || name.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.targets.iter().any(is)
    }
}

/// Weights that cannot be trained as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// The model has no biases.
    #[error("bitfit trains biases, and this model has none; use another method")]
    NoBiases,
    /// No map has a target's name.
    #[error("lora.targets: no linear map is called {target:?}; there are {known}")]
    NoTarget {
        /// The name.
        target: String,
        /// The names there are.
        known: String,
    },
    /// Rank zero or too large.
    #[error("LoRA's rank is {rank}; expected 1 to {most}, the smallest side of a changed map")]
    Rank {
        /// The rank.
        rank: usize,
        /// The largest possible.
        most: usize,
    },
}

/// A model's tensors by name, each flat beside its shape.
#[derive(Debug, Clone)]
pub struct NamedTensors<B: Backend>(BTreeMap<String, (Vec<usize>, Tensor<B, 1>)>);

impl<B: Backend> Default for NamedTensors<B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<B: Backend> NamedTensors<B> {
    /// A source that hands on another's tensors and remembers them here.
    pub fn record<S: TensorSource<B>>(&mut self, source: S) -> impl TensorSource<B> {
        Record { source, tensors: self }
    }

    /// The tensors' names and shapes.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice()))
    }

    /// The linear maps within the blocks, by name and shape `[d_out, d_in]`.
    fn maps(&self) -> impl Iterator<Item = (&str, [usize; 2])> {
        self.shapes().filter_map(|(name, shape)| {
            let map = name.strip_suffix(".weight")?;
            let in_a_block = map.split('.').any(|part| part.parse::<usize>().is_ok());
            let shape = <[usize; 2]>::try_from(shape).ok()?;
            in_a_block.then_some((map, shape))
        })
    }
}

struct Record<'a, B: Backend, S> {
    source: S,
    tensors: &'a mut NamedTensors<B>,
}

impl<B: Backend, S: TensorSource<B>> TensorSource<B> for Record<'_, B, S> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let tensor = self.source.take(name, shape);
        // A stand-in for a tensor that does not fit has another shape; loading then fails anyway.
        let flat = tensor.clone().reshape([tensor.shape().num_elements()]);
        self.tensors.0.insert(name.into(), (shape.to_vec(), flat));
        tensor
    }
}

/// The trained weights, each flat, by name.
#[derive(Module, Debug)]
pub struct Tuned<B: Backend> {
    values: Vec<Param<Tensor<B, 1>>>,
    #[module(skip)]
    names: Vec<TunedName>,
    #[module(skip)]
    lora: Option<LoraConfig>,
}

/// Name and shape of a trained tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunedName {
    /// Hugging Face's name; LoRA's factors are `{map}.lora_A.weight` and `{map}.lora_B.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Tuning {
    /// The tensors that are trained.
    ///
    /// # Errors
    /// If the model has no such weights.
    pub fn names<B: Backend>(&self, base: &NamedTensors<B>) -> Result<Vec<TunedName>, TuningError> {
        let all = |keep: fn(&str) -> bool| -> Vec<TunedName> {
            let kept = base.shapes().filter(|(name, _)| keep(name));
            kept.map(|(name, shape)| TunedName { name: name.into(), shape: shape.to_vec() }).collect()
        };
        match self {
            Tuning::Full => Ok(all(|_| true)),
            Tuning::Bitfit => match all(|name| name.ends_with(".bias")) {
                biases if biases.is_empty() => Err(TuningError::NoBiases),
                biases => Ok(biases),
            },
            Tuning::Lora(config) => {
                let mut names = Vec::new();
                for target in &config.targets {
                    let alone = LoraConfig { targets: vec![target.clone()], ..config.clone() };
                    if !base.maps().any(|(map, _)| alone.changes(map)) {
                        let mut known: Vec<&str> = base.maps().map(|(map, _)| last_parts(map)).collect();
                        known.sort_unstable();
                        known.dedup();
                        return Err(TuningError::NoTarget {
                            target: target.clone(),
                            known: known.join(", "),
                        });
                    }
                }
                for (map, [d_out, d_in]) in base.maps().filter(|(map, _)| config.changes(map)) {
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

    /// The weights as training starts: those of the model; LoRA's `A` uniform in ±1/√d_in, `B` 0 (as PEFT).
    ///
    /// # Errors
    /// If the model has no such weights.
    pub fn init<B: Backend>(
        &self,
        base: &NamedTensors<B>,
        rng: &mut impl Rng,
        device: &B::Device,
    ) -> Result<Tuned<B>, TuningError> {
        let tuning = self.filled(base);
        let names = tuning.names(base)?;
        let values = names.iter().map(|TunedName { name, shape }| match base.0.get(name) {
            Some((_, tensor)) => tensor.clone(),
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
        Ok(Tuned { values, names, lora: tuning.lora().cloned() })
    }

    /// Weights with given values, in the order of [`names`](Self::names).
    ///
    /// # Errors
    /// If the model has no such weights.
    ///
    /// # Panics
    /// If the number of values is not what the names say.
    pub fn with_values<B: Backend>(
        &self,
        base: &NamedTensors<B>,
        mut values: impl FnMut(&TunedName) -> Vec<f32>,
        device: &B::Device,
    ) -> Result<Tuned<B>, TuningError> {
        let tuning = self.filled(base);
        let names = tuning.names(base)?;
        let values = names
            .iter()
            .map(|name| {
                let shape: [usize; 1] = [name.shape.iter().product()];
                Param::from_tensor(Tensor::from_data(TensorData::new(values(name), shape), device))
            })
            .collect();
        Ok(Tuned { values, names, lora: tuning.lora().cloned() })
    }

    /// The same with the targets named, where they were left open.
    fn filled<B: Backend>(&self, base: &NamedTensors<B>) -> Self {
        match self {
            Tuning::Lora(config) if config.targets.is_empty() => {
                let mut targets: Vec<String> = base.maps().map(|(map, _)| last_parts(map).into()).collect();
                targets.sort();
                targets.dedup();
                Tuning::Lora(LoraConfig { targets, ..config.clone() })
            }
            other => other.clone(),
        }
    }

    fn lora(&self) -> Option<&LoraConfig> {
        match self {
            Tuning::Lora(config) => Some(config),
            _ => None,
        }
    }
}

/// What follows the number of the block in a map's name.
fn last_parts(map: &str) -> &str {
    let mut rest = map;
    while let Some((part, after)) = rest.split_once('.') {
        rest = after;
        if part.parse::<usize>().is_ok() {
            break;
        }
    }
    rest
}

impl<B: Backend> Tuned<B> {
    /// Names and shapes, in the order of the values.
    pub fn names(&self) -> &[TunedName] {
        &self.names
    }

    /// LoRA's settings.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// The trained tensor of that name, flat.
    pub fn get(&self, name: &str) -> Option<&Param<Tensor<B, 1>>> {
        // Names are sorted but for LoRA's pairs; a few hundred of them are searched faster than sorted.
        let idx = self.names.iter().position(|known| known.name == name)?;
        Some(&self.values[idx])
    }

    /// The values on the host, by name.
    pub fn values(&self) -> impl Iterator<Item = (&TunedName, Vec<f32>)> {
        self.names.iter().zip(&self.values).map(|(name, value)| {
            let values = value.val().into_data().convert::<f32>().to_vec();
            (name, values.expect("converted to f32"))
        })
    }

    /// The tensors of a tuned model: the trained ones, and the others through `lift` from the frozen model's backend.
    ///
    /// LoRA's dropout acts only where `training` is set.
    pub fn source<'a, C: Backend>(
        &'a self,
        base: &'a NamedTensors<C>,
        lift: impl Fn(Tensor<C, 1>) -> Tensor<B, 1> + 'a,
        training: bool,
    ) -> impl TensorSource<B> + 'a {
        TunedSource { base, tuned: self, lift, training }
    }
}

struct TunedSource<'a, B: Backend, C: Backend, F> {
    base: &'a NamedTensors<C>,
    tuned: &'a Tuned<B>,
    lift: F,
    training: bool,
}

impl<B: Backend, C: Backend, F: Fn(Tensor<C, 1>) -> Tensor<B, 1>> TensorSource<B>
    for TunedSource<'_, B, C, F>
{
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let flat = match self.tuned.get(name) {
            Some(trained) => trained.val(),
            None => (self.lift)(self.base.0.get(name).expect("recorded when the model was loaded").1.clone()),
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
