//! The weights of an adapter that PEFT wrote, and the model with them.

use super::{
    config::{PEFT_TENSORS, PeftConfig, ROOT},
    error::TunedFileError,
};
use crate::{
    linear::{Linear, Lora},
    source::{NamedTensors, Pretrained, TensorSource},
    tuned::{TuningError, maps},
    weights::floats_of,
};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use reft_core::{FileError, HeadConfig, files::parse_safetensors, head::HeadValues, to_dtype};
use safetensors::SafeTensors;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const HEAD: &str = "lm_head";
const EMBEDDED: &str = "model.embed_tokens";
const EMBEDDING: &str = "model.embed_tokens.weight";
/// What precedes the tensors of a classification head.
const CLASSIFIER: &str = "classifier.";

/// The weights of a PEFT adapter, for the model that they belong to.
#[derive(Debug)]
pub struct PeftWeights<B: Backend> {
    /// Updates of linear maps, by the names of the maps.
    lora: BTreeMap<String, Lora<B>>,
    /// What is added to the biases of linear maps.
    added_biases: BTreeMap<String, Tensor<B, 1>>,
    /// Tensors that replace those of the model, flattened.
    replaced: BTreeMap<String, Tensor<B, 1>>,
    /// A classification head.
    pub head: Option<(HeadConfig, HeadValues)>,
    /// Whether the output head is no longer the embedding, although it is in the model.
    pub unties: bool,
    /// Number of values in the file.
    pub num_params: usize,
}

/// A tensor of the file.
struct Saved {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The tensors of one updated map.
#[derive(Default)]
struct Update {
    a: Option<Saved>,
    b: Option<Saved>,
    bias: Option<Saved>,
    magnitude: Option<Saved>,
}

impl<B: Backend> PeftWeights<B> {
    /// Reads `adapter_model.safetensors` and checks it against the settings and the model.
    ///
    /// `prefix` precedes the names of the model's tensors in the model that PEFT wrapped.
    ///
    /// # Errors
    /// If the file is missing or damaged, if the model is quantized, or if any tensor is missing, unexpected, or has the wrong
    /// shape or dtype: the error lists all of them.
    pub fn read<M: Pretrained<B>>(
        folder: &Path,
        settings: &PeftConfig,
        config: &M::Config,
        base: &NamedTensors<B>,
        prefix: &str,
        device: &B::Device,
    ) -> Result<Self, TunedFileError> {
        let path = folder.join(PEFT_TENSORS);
        if base.is_quantized() {
            return Err(TunedFileError::Tuning { path, reason: TuningError::Quantized });
        }
        let bytes = fs::read(&path).map_err(FileError::io(&path))?;
        let file =
            parse_safetensors(&bytes).map_err(|reason| FileError::Invalid { path: path.clone(), reason })?;
        let mut reader = Reader { settings, base, prefix, device, problems: Vec::new() };
        let (updates, plain, num_params) = reader.sort(&file, |name| M::tensor_name(config, name));
        let weights = reader.assemble(updates, plain, num_params);
        match reader.problems {
            problems if problems.is_empty() => Ok(weights),
            problems => Err(FileError::Tensors { path, problems }.into()),
        }
    }

    /// The model with these weights. If they [untie](Self::unties) the output head, `config` must say so.
    pub fn model<M: Pretrained<B>>(&self, config: &M::Config, base: &NamedTensors<B>) -> M {
        M::from_source(config, &mut Source { weights: self, base })
    }
}

type Sorted = (BTreeMap<String, Update>, BTreeMap<String, (String, Saved)>, usize);

struct Reader<'a, B: Backend> {
    settings: &'a PeftConfig,
    base: &'a NamedTensors<B>,
    prefix: &'a str,
    device: &'a B::Device,
    problems: Vec<String>,
}

impl<B: Backend> Reader<'_, B> {
    /// Sorts the tensors of the file into updates of maps, and others by the model's names, with the file's names.
    fn sort(&mut self, file: &SafeTensors, tensor_name: impl Fn(&str) -> String) -> Sorted {
        let (mut updates, mut plain) = (BTreeMap::<String, Update>::new(), BTreeMap::new());
        let mut num_params = 0;
        let mut names: Vec<&str> = file.names();
        names.sort_unstable();
        for name in names {
            let Ok(view) = file.tensor(name) else { continue };
            let Some(values) = floats_of(view.dtype(), view.data()) else {
                self.problems.push(format!("{name}: dtype {:?}, expected F32, F16 or BF16", view.dtype()));
                continue;
            };
            if values.iter().any(|x| !x.is_finite()) {
                self.problems.push(format!("{name}: contains NaN or infinite values"));
            }
            num_params += values.len();
            let saved = Saved { shape: view.shape().to_vec(), values };
            let inner = name.strip_prefix(ROOT).unwrap_or(name);
            // With biases, PEFT saves those of a module twice: as trained, and as they were.
            if inner.contains(".original_module.") {
                continue;
            }
            let Some((module, part)) = inner.split_once(".lora_") else {
                let inner = inner
                    .replace(".base_layer", "")
                    .replace(".modules_to_save.default", "")
                    .replace(".modules_to_save", "");
                plain.insert(tensor_name(&inner), (name.into(), saved));
                continue;
            };
            let map = tensor_name(&format!("{module}.weight"));
            let map = map.strip_suffix(".weight").unwrap_or(&map).to_string();
            let update = updates.entry(map).or_default();
            let slot = match part.replace(".default", "").as_str() {
                "A.weight" | "embedding_A" => &mut update.a,
                "B.weight" | "embedding_B" => &mut update.b,
                "B.bias" => &mut update.bias,
                "magnitude_vector" | "magnitude_vector.weight" => &mut update.magnitude,
                _ => {
                    self.problems.push(format!("unexpected: {name}"));
                    continue;
                }
            };
            *slot = Some(saved);
        }
        (updates, plain, num_params)
    }

    fn assemble(
        &mut self,
        mut updates: BTreeMap<String, Update>,
        plain: BTreeMap<String, (String, Saved)>,
        num_params: usize,
    ) -> PeftWeights<B> {
        let shapes: Vec<(&str, &[usize])> = self.base.shapes().collect();
        let mut all_maps: BTreeMap<String, [usize; 2]> =
            maps(&shapes).into_iter().map(|(map, shape)| (map.to_string(), shape)).collect();
        let head_shape = shapes.iter().find(|(name, _)| [EMBEDDING, "lm_head.weight"].contains(name));
        let head_shape = head_shape.and_then(|(_, shape)| <[usize; 2]>::try_from(*shape).ok());
        let is_tied = head_shape.is_some() && !shapes.iter().any(|(name, _)| *name == "lm_head.weight");
        let mut weights = PeftWeights {
            lora: BTreeMap::new(),
            added_biases: BTreeMap::new(),
            replaced: BTreeMap::new(),
            head: None,
            unties: false,
            num_params,
        };
        let touches_head = updates.contains_key(HEAD) || plain.contains_key("lm_head.weight");
        let saves_embedding = plain.contains_key(EMBEDDING) && self.settings.saves(EMBEDDED);
        let of_embedding = updates.remove(EMBEDDED);
        weights.unties = is_tied && (touches_head || saves_embedding || of_embedding.is_some());
        self.take_plain(plain, head_shape, &mut weights);

        for (map, shape) in &all_maps {
            let wrapped = format!("{}{map}", self.prefix);
            let is_target = self.settings.updates(map) || self.settings.updates(&wrapped);
            if is_target && !updates.contains_key(map) && !self.settings.saves(&wrapped) {
                let (rank, _) = self.settings.rank_and_scale(&wrapped);
                self.problems.push(format!("missing: {wrapped}.lora_A.weight {:?}", [rank, shape[1]]));
            }
        }
        if let Some(shape) = head_shape {
            if self.settings.updates_by_name(HEAD)
                && !updates.contains_key(HEAD)
                && !self.settings.saves(HEAD)
            {
                self.problems.push("missing: lm_head.lora_A.weight".into());
            }
            all_maps.insert(HEAD.into(), shape);
            self.take_embedding(shape, of_embedding, &mut weights);
        }
        for (map, update) in updates {
            let wrapped = format!("{}{map}", self.prefix);
            let is_target = self.settings.updates(&map) || self.settings.updates(&wrapped);
            match all_maps.get(&map) {
                Some(_) if !is_target => self.problems.push(format!(
                    "unexpected: the update of {wrapped}, which target_modules and layers_to_transform do not name"
                )),
                Some(shape) => self.take_update(&map, &wrapped, *shape, update, &mut weights),
                None => self
                    .problems
                    .push(format!("unexpected: the update of {wrapped}, which the model does not have")),
            }
        }
        weights
    }

    /// Takes tensors that replace those of the model.
    fn take_plain(
        &mut self,
        plain: BTreeMap<String, (String, Saved)>,
        head_shape: Option<[usize; 2]>,
        weights: &mut PeftWeights<B>,
    ) {
        let shapes: BTreeMap<&str, &[usize]> = self.base.shapes().collect();
        let mut saved_names = BTreeSet::new();
        let mut classifier = BTreeMap::new();
        for (name, (file_name, saved)) in plain {
            if let Some(part) = name.strip_prefix(CLASSIFIER) {
                classifier.insert(part.to_string(), saved);
                continue;
            }
            let module =
                format!("{}{}", self.prefix, name.rsplit_once('.').map_or(name.as_str(), |(m, _)| m));
            let is_bias = name.ends_with(".bias") && self.settings.has_biases;
            // PEFT adds embeddings and output head of its own accord.
            let is_table = name == EMBEDDING || name == "lm_head.weight";
            let head_shape = head_shape.as_ref().map(|shape| &shape[..]);
            let shape = match shapes.get(name.as_str()) {
                Some(shape) => Some(*shape),
                None if name == "lm_head.weight" => head_shape,
                None => None,
            };
            match shape {
                Some(shape) if is_bias || is_table || self.settings.saves(&module) => {
                    if saved.shape == shape {
                        saved_names.insert(module);
                        weights.replaced.insert(name, self.flat(saved.values));
                    } else {
                        self.problems
                            .push(format!("{file_name}: shape {:?}, expected {shape:?}", saved.shape));
                    }
                }
                _ => self.problems.push(format!("unexpected: {file_name}")),
            }
        }
        weights.head = self.classifier(classifier);
        let modules = shapes.keys().filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module);
        let modules = modules.map(|module| format!("{}{module}", self.prefix));
        let modules = modules.chain(head_shape.map(|_| HEAD.to_string()));
        let missing: BTreeSet<String> =
            modules.filter(|m| self.settings.saves(m) && !saved_names.contains(m)).collect();
        self.problems.extend(missing.iter().map(|m| format!("missing: {m}, which modules_to_save names")));
    }

    /// The classification head, if the file has one.
    fn classifier(&mut self, mut tensors: BTreeMap<String, Saved>) -> Option<(HeadConfig, HeadValues)> {
        let [outputs, hidden_size] = tensors.get("out_proj.weight")?.shape[..] else { return None };
        let config = HeadConfig { hidden_size, outputs, input_dropout: 0.0, inner_dropout: 0.0 };
        let values = config.tensors().map(|(name, shape)| match tensors.remove(name) {
            Some(saved) if saved.shape == shape => saved.values,
            Some(saved) => {
                let found = saved.shape;
                self.problems.push(format!("{CLASSIFIER}{name}: shape {found:?}, expected {shape:?}"));
                saved.values
            }
            None => {
                self.problems.push(format!("missing: {CLASSIFIER}{name} {shape:?}"));
                Vec::new()
            }
        });
        self.problems.extend(tensors.keys().map(|name| format!("unexpected: {CLASSIFIER}{name}")));
        Some((config, HeadValues::from_list(values)))
    }

    /// Takes the update of the embedding, which is merged: `W + s (B A)ᵀ`.
    fn take_embedding(
        &mut self,
        [vocab, d]: [usize; 2],
        update: Option<Update>,
        weights: &mut PeftWeights<B>,
    ) {
        let Some(Update { a, b, bias, magnitude }) = update else {
            if self.settings.updates_by_name(EMBEDDED) && !self.settings.saves(EMBEDDED) {
                self.problems.push(format!("missing: {EMBEDDED}.lora_embedding_A"));
            }
            return;
        };
        if bias.is_some() || magnitude.is_some() {
            self.problems
                .push(format!("{EMBEDDED}: use_dora and lora_bias are not supported for embeddings"));
            return;
        }
        let (rank, scale) = self.settings.rank_and_scale(EMBEDDED);
        let mut matrix = |saved: Option<Saved>, part: &str, shape: [usize; 2]| match saved {
            Some(saved) if saved.shape == shape => {
                Some(Tensor::<B, 2>::from_data(TensorData::new(saved.values, shape), self.device))
            }
            found => {
                let found = found.map_or("missing".into(), |saved| format!("shape {:?}", saved.shape));
                self.problems.push(format!("{EMBEDDED}.lora_embedding_{part}: {found}, expected {shape:?}"));
                None
            }
        };
        let (a, b) = (matrix(a, "A", [rank, vocab]), matrix(b, "B", [d, rank]));
        let original = weights.replaced.get(EMBEDDING).or_else(|| self.base.flat(EMBEDDING));
        if let (Some(a), Some(b), Some(original)) = (a, b, original) {
            let weight = to_dtype(original.clone(), DType::F32).reshape([vocab, d]);
            let merged = weight + b.matmul(a).transpose().mul_scalar(scale);
            weights.replaced.insert(EMBEDDING.into(), merged.reshape([vocab * d]));
        }
    }

    /// Takes the update of a linear map.
    fn take_update(
        &mut self,
        map: &str,
        wrapped: &str,
        [d_out, d_in]: [usize; 2],
        update: Update,
        weights: &mut PeftWeights<B>,
    ) {
        let (rank, scale) = self.settings.rank_and_scale(wrapped);
        let mut check = |saved: Option<Saved>, part: &str, shape: &[usize], is_needed: bool| match saved {
            Some(saved) if saved.shape == shape && is_needed => Some(saved.values),
            Some(_) if !is_needed => {
                self.problems.push(format!("unexpected: {wrapped}.lora_{part}"));
                None
            }
            Some(saved) => {
                let found = saved.shape;
                self.problems.push(format!("{wrapped}.lora_{part}: shape {found:?}, expected {shape:?}"));
                None
            }
            None if is_needed => {
                self.problems.push(format!("missing: {wrapped}.lora_{part} {shape:?}"));
                None
            }
            None => None,
        };
        let a = check(update.a, "A.weight", &[rank, d_in], true);
        let b = check(update.b, "B.weight", &[d_out, rank], true);
        let has_bias = update.bias.is_some();
        let bias = check(update.bias, "B.bias", &[d_out], has_bias);
        let magnitude = check(update.magnitude, "magnitude_vector", &[d_out], self.settings.use_dora);
        let (Some(a), Some(b)) = (a, b) else { return };
        let matrix = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), self.device)
        };
        let (a, b) = (matrix(a, [rank, d_in]), matrix(b, [d_out, rank]));
        if let Some(bias) = bias {
            weights.added_biases.insert(map.into(), self.flat(bias).mul_scalar(scale));
        }
        if map != HEAD && magnitude.is_none() {
            weights.lora.insert(map.into(), Lora { a, b, scale, dropout: 0.0 });
            return;
        }
        // Lengths of rows depend on the whole weight, and the loss needs that of the head, so these are merged.
        let name = format!("{map}.weight");
        let replaced = weights.replaced.get(&name);
        let original = replaced.or_else(|| self.base.flat(&name)).or_else(|| self.base.flat(EMBEDDING));
        let Some(original) = original else { return };
        let weight = to_dtype(original.clone(), DType::F32).reshape([d_out, d_in]);
        let mut merged = weight + b.matmul(a).mul_scalar(scale);
        if let Some(magnitude) = magnitude {
            let lengths = merged.clone().square().sum_dim(1).sqrt();
            merged = merged * (matrix(magnitude, [d_out, 1]) / lengths);
        }
        weights.replaced.insert(name, merged.reshape([d_out * d_in]));
    }

    fn flat(&self, values: Vec<f32>) -> Tensor<B, 1> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), self.device)
    }
}

/// The tensors of a model with a PEFT adapter.
struct Source<'a, B: Backend> {
    weights: &'a PeftWeights<B>,
    base: &'a NamedTensors<B>,
}

impl<B: Backend> TensorSource<B> for Source<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let flat = match self.weights.replaced.get(name) {
            // Saved in f32, used in the dtype of the model.
            Some(replaced) => to_dtype(replaced.clone(), self.base.dtype()),
            // The head of a model in which it is the embedding.
            None => {
                let frozen = self.base.flat(name).or_else(|| self.base.flat(EMBEDDING));
                frozen.expect("recorded when the model was loaded, and not quantized").clone()
            }
        };
        flat.reshape(shape)
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Linear<B> {
        let weight: Tensor<B, 2> = self.take(&format!("{name}.weight"), shape);
        let own = bias.then(|| self.take(&format!("{name}.bias"), [shape[0]]));
        let added = self.weights.added_biases.get(name).map(|bias| to_dtype(bias.clone(), self.base.dtype()));
        let bias = match (own, added) {
            (Some(own), Some(added)) => Some(own + added),
            (own, added) => own.or(added),
        };
        Linear { weight, bias, lora: self.weights.lora.get(name).cloned() }
    }
}
