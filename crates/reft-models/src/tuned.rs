//! Trained weights: the baselines that interventions are compared with.
//!
//! A model is a function of its named tensors ([`Pretrained::from_source`]). BitFit and full fine-tuning put trained
//! tensors in the place of frozen ones; LoRA adds factors beside them. No model knows.

use crate::{
    linear::{Linear, Lora},
    load::{Pretrained, TensorSource},
    precision::is_quantised,
};
use burn::{
    module::{Module, Param},
    tensor::{
        DType, Tensor, TensorData,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::Rng;
use reft_core::to_dtype;
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

    /// The targets, or where they were left open those of every map.
    fn targets_among(&self, shapes: &[(&str, &[usize])]) -> Vec<String> {
        if !self.targets.is_empty() {
            return self.targets.clone();
        }
        let mut targets: Vec<String> =
            maps(shapes).into_iter().map(|(map, _)| last_parts(map).into()).collect();
        targets.sort();
        targets.dedup();
        targets
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
    /// The model is quantised.
    #[error("the model is quantised, and only interventions and heads are trained on such; leave quant out")]
    Quantised,
    /// Rank zero or too large.
    #[error("LoRA's rank is {rank}; expected 1 to {most}, the smallest side of a changed map")]
    Rank {
        /// The rank.
        rank: usize,
        /// The largest possible.
        most: usize,
    },
}

/// A model's tensors by name, each flat beside its shape; of quantised ones, which cannot be trained, the shape alone.
#[derive(Debug, Clone)]
pub struct NamedTensors<B: Backend>(BTreeMap<String, (Vec<usize>, Option<Tensor<B, 1>>)>);

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

    /// The tensor of that name, flat, if it is not quantised.
    fn flat(&self, name: &str) -> Option<&Tensor<B, 1>> {
        self.0.get(name)?.1.as_ref()
    }

    fn is_quantised(&self) -> bool {
        self.0.values().any(|(_, flat)| flat.is_none())
    }
}

/// The linear maps within the blocks, by name and shape `[d_out, d_in]`.
fn maps<'a>(shapes: &[(&'a str, &[usize])]) -> Vec<(&'a str, [usize; 2])> {
    let map = |(name, shape): &(&'a str, &[usize])| {
        let map = name.strip_suffix(".weight")?;
        let shape = <[usize; 2]>::try_from(*shape).ok()?;
        block_of(map).map(|_| (map, shape))
    };
    shapes.iter().filter_map(map).collect()
}

/// The number of the block that a tensor of that name belongs to, if it belongs to one.
pub fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
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
        self.tensors.0.insert(name.into(), (shape.to_vec(), Some(flat)));
        tensor
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        let matrix = self.source.matrix(name, shape);
        let flat = (!is_quantised(&matrix)).then(|| matrix.clone().reshape([matrix.shape().num_elements()]));
        self.tensors.0.insert(name.into(), (shape.to_vec(), flat));
        matrix
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
    /// The tensors that are trained, of a model's tensors by name and shape.
    ///
    /// # Errors
    /// If the model has no such weights.
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
                    if !maps.iter().any(|(map, _)| alone.changes(map)) {
                        let known = LoraConfig { targets: Vec::new(), ..alone }.targets_among(shapes);
                        return Err(TuningError::NoTarget {
                            target: target.clone(),
                            known: known.join(", "),
                        });
                    }
                }
                let filled = LoraConfig { targets, ..config.clone() };
                let mut names = Vec::new();
                for (map, [d_out, d_in]) in maps.into_iter().filter(|(map, _)| filled.changes(map)) {
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
        let (lora, names) = self.resolve(base)?;
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

    /// LoRA's settings with the targets named, and what is trained.
    fn resolve<B: Backend>(
        &self,
        base: &NamedTensors<B>,
    ) -> Result<(Option<LoraConfig>, Vec<TunedName>), TuningError> {
        if base.is_quantised() {
            return Err(TuningError::Quantised);
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

    /// The tuned model as it is used.
    pub fn model<M: Pretrained<B>>(&self, config: &M::Config, base: &NamedTensors<B>) -> M {
        let lift = |tensor| tensor;
        M::from_source(config, &mut TunedSource { base, tuned: self, lift, training: false })
    }
}

impl<A: AutodiffBackend> Tuned<A> {
    /// The tuned model in training: the frozen tensors come from the inner backend, LoRA's dropout acts.
    pub fn model_in_training<M: Pretrained<A>>(
        &self,
        config: &M::Config,
        base: &NamedTensors<A::InnerBackend>,
    ) -> M {
        let lift = Tensor::from_inner;
        M::from_source(config, &mut TunedSource { base, tuned: self, lift, training: true })
    }
}

/// The tensors of a tuned model: the trained ones, and the others through `lift` from the frozen model's backend.
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
        let frozen = self.base.flat(name).expect("recorded when the model was loaded, and not quantised");
        let flat = match self.tuned.get(name) {
            // Trained in f32, used in the model's own type.
            Some(trained) => to_dtype(trained.val(), frozen.dtype()),
            None => (self.lift)(frozen.clone()),
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
