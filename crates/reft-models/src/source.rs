//! A model as a function of named tensors: where a model gets its tensors, and what it tells about itself.

use crate::{linear::Linear, precision::is_quantized};
use burn::tensor::{DType, Tensor, backend::Backend};
use std::collections::BTreeMap;

/// Sizes that every model's configuration has.
pub trait ModelConfig {
    /// Size `d_model` of the hidden states.
    fn hidden_size(&self) -> usize;

    /// Number of blocks.
    fn n_layers(&self) -> usize;

    /// The longest text that the model can read, in tokens.
    fn context(&self) -> usize;

    /// Number of token ids.
    fn vocab_size(&self) -> usize;

    /// The values on which the result depends, except those that the shapes of the tensors tell. Two configurations have the
    /// same text exactly if models with the same tensors compute the same.
    fn function(&self) -> String;
}

/// A model that can be loaded from files in Hugging Face's layout.
pub trait Pretrained<B: Backend>: Sized {
    /// Its `config.json`.
    type Config: ModelConfig + Clone;

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that lists every missing or unsupported value.
    fn parse(json: &[u8]) -> Result<Self::Config, String>;

    /// The name by which the model asks for the tensor that a checkpoint calls `name`.
    fn tensor_name(_config: &Self::Config, name: &str) -> String {
        name.into()
    }

    /// A tensor that is used in place of another one if a checkpoint lacks the other: both names, as
    /// [`tensor_name`](Self::tensor_name) returns them.
    fn stands_for(_config: &Self::Config) -> Option<(&'static str, &'static str)> {
        None
    }

    /// Whether a tensor may be in a checkpoint although the model does not use it.
    ///
    /// `name` is one that [`tensor_name`](Self::tensor_name) returned; `exists` says whether the checkpoint has a
    /// tensor of such a name.
    fn ignores(config: &Self::Config, name: &str, exists: &dyn Fn(&str) -> bool) -> bool;

    /// Names and shapes of all tensors that [`from_source`](Self::from_source) takes.
    fn tensors(config: &Self::Config) -> impl Iterator<Item = (String, Vec<usize>)>;

    /// Builds the model from its tensors.
    ///
    /// `config` must come from [`parse`](Self::parse).
    fn from_source<S: TensorSource<B>>(config: &Self::Config, source: &mut S) -> Self;

    /// Token ids that end a text.
    fn stop_ids(config: &Self::Config) -> Vec<u32>;
}

/// Provides the tensors of a model, by Hugging Face's names.
pub trait TensorSource<B: Backend> {
    /// The tensor with this name and shape.
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D>;

    /// The matrix of a linear map, `[d_out, d_in]`, which may be quantized.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        self.take(name, shape)
    }

    /// The linear map with this name and shape `[d_out, d_in]`.
    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Linear<B> {
        Linear {
            weight: self.matrix(&format!("{name}.weight"), shape),
            bias: bias.then(|| self.take(&format!("{name}.bias"), [shape[0]])),
            lora: None,
        }
    }
}

/// The tensors of a loaded model by name, each flattened and with its shape; they share memory with the model.
///
/// Of quantized tensors only the shape is kept, because they cannot be trained.
#[derive(Debug, Clone)]
pub struct NamedTensors<B: Backend>(BTreeMap<String, (Vec<usize>, Option<Tensor<B, 1>>)>);

impl<B: Backend> Default for NamedTensors<B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<B: Backend> NamedTensors<B> {
    /// A source that passes on the tensors of another source and records them here.
    pub fn record<S: TensorSource<B>>(&mut self, source: S) -> impl TensorSource<B> {
        Record { source, tensors: self }
    }

    /// Names and shapes of the tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice()))
    }

    /// The flattened tensor with this name, unless it is quantized.
    pub(crate) fn flat(&self, name: &str) -> Option<&Tensor<B, 1>> {
        self.0.get(name)?.1.as_ref()
    }

    /// The dtype in which the model computes: that of its vectors.
    pub(crate) fn dtype(&self) -> DType {
        let vector = self.0.values().find(|(shape, _)| shape.len() == 1);
        vector.and_then(|(_, flat)| flat.as_ref()).map_or(DType::F32, |flat| flat.dtype())
    }

    /// Whether any tensor is quantized.
    pub(crate) fn is_quantized(&self) -> bool {
        self.0.values().any(|(_, flat)| flat.is_none())
    }
}

struct Record<'a, B: Backend, S> {
    source: S,
    tensors: &'a mut NamedTensors<B>,
}

impl<B: Backend, S: TensorSource<B>> TensorSource<B> for Record<'_, B, S> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let tensor = self.source.take(name, shape);
        // The placeholder for a tensor that does not match has another shape; loading fails afterwards in that case.
        let flat = tensor.clone().reshape([tensor.shape().num_elements()]);
        self.tensors.0.insert(name.into(), (shape.to_vec(), Some(flat)));
        tensor
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        let matrix = self.source.matrix(name, shape);
        let flat = (!is_quantized(&matrix)).then(|| matrix.clone().reshape([matrix.shape().num_elements()]));
        self.tensors.0.insert(name.into(), (shape.to_vec(), flat));
        matrix
    }
}
