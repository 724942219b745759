//! The same without a type for the backend: the device is chosen by name at run time.

use super::{
    classifier::{Prediction, TextClassifier, TextEncoder},
    language_model::LanguageModel,
    trainer::{Trained, Trainer},
};
use crate::{
    data::Row,
    device::{Chosen, OnDevice, on_device},
    error::RunError,
    open::{LanguageModelAdapter, PrecisionRequest, load_model},
};
use reft_core::{NoHook, ReftConfig};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::GenerateConfig;
use std::{any::Any, fmt, ops::ControlFlow, path::Path};

/// A [`LanguageModel`] on a device that is chosen at run time.
pub struct AnyLanguageModel(Box<dyn ErasedModel>);

/// An adapter for an [`AnyLanguageModel`].
pub struct AnyAdapter(Box<dyn ErasedAdapter>);

/// A [`TextEncoder`] on a device that is chosen at run time.
pub struct AnyEncoder(Box<dyn ErasedEncoder>);

/// A [`TextClassifier`] of an [`AnyEncoder`].
pub struct AnyClassifier(Box<dyn ErasedClassifier>);

type OnText<'a> = &'a mut dyn FnMut(&str) -> ControlFlow<()>;

trait ErasedModel: Send + Sync {
    fn n_layers(&self) -> usize;
    fn reft(&self, layers: &[usize]) -> ReftConfig;
    fn train_rows(&self, rows: &[Row], trainer: Trainer<'_>) -> Result<Trained<AnyAdapter>, RunError>;
    fn adapter(&self, folder: &Path) -> Result<AnyAdapter, RunError>;
    fn stream(
        &self,
        prompt: &str,
        adapter: Option<&AnyAdapter>,
        config: GenerateConfig,
        on_text: OnText<'_>,
    ) -> Result<String, RunError>;
}

trait ErasedAdapter: Send + Sync {
    fn save(&self, folder: &Path) -> Result<(), RunError>;
    fn as_any(&self) -> &dyn Any;
}

trait ErasedEncoder: Send + Sync {
    fn reft(&self, layers: &[usize]) -> ReftConfig;
    fn train_rows(
        &self,
        task: &str,
        rows: &[Row],
        trainer: Trainer<'_>,
    ) -> Result<Trained<AnyClassifier>, RunError>;
    fn classifier(&self, folder: &Path) -> Result<AnyClassifier, RunError>;
}

trait ErasedClassifier: Send + Sync {
    fn labels(&self) -> &[String];
    fn save(&self, folder: &Path) -> Result<(), RunError>;
    fn predict_rows(&self, rows: &[Row]) -> Result<Vec<Prediction>, RunError>;
    fn text_column(&self) -> &str;
}

impl<B: Kernels> ErasedModel for LanguageModel<B> {
    fn n_layers(&self) -> usize {
        self.loaded().model.config().num_hidden_layers
    }

    fn reft(&self, layers: &[usize]) -> ReftConfig {
        LanguageModel::reft(self, layers.iter().copied())
    }

    fn train_rows(&self, rows: &[Row], trainer: Trainer<'_>) -> Result<Trained<AnyAdapter>, RunError> {
        Ok(LanguageModel::train_rows(self, rows, trainer)?.map(|adapter| AnyAdapter(Box::new(adapter))))
    }

    fn adapter(&self, folder: &Path) -> Result<AnyAdapter, RunError> {
        Ok(AnyAdapter(Box::new(LanguageModel::adapter(self, folder)?)))
    }

    fn stream(
        &self,
        prompt: &str,
        adapter: Option<&AnyAdapter>,
        config: GenerateConfig,
        on_text: OnText<'_>,
    ) -> Result<String, RunError> {
        let Some(adapter) = adapter else { return self.stream_with_hook(prompt, &NoHook, config, on_text) };
        let adapter: Option<&LanguageModelAdapter<B>> = adapter.0.as_any().downcast_ref();
        LanguageModel::stream(self, prompt, adapter.ok_or(RunError::OtherDevice)?, config, on_text)
    }
}

impl<B: Kernels> ErasedAdapter for LanguageModelAdapter<B> {
    fn save(&self, folder: &Path) -> Result<(), RunError> {
        Ok(LanguageModelAdapter::save(self, folder)?)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<B: Kernels> ErasedEncoder for TextEncoder<B> {
    fn reft(&self, layers: &[usize]) -> ReftConfig {
        TextEncoder::reft(self, layers.iter().copied())
    }

    fn train_rows(
        &self,
        task: &str,
        rows: &[Row],
        trainer: Trainer<'_>,
    ) -> Result<Trained<AnyClassifier>, RunError> {
        let trained = TextEncoder::train_rows(self, task, rows, trainer)?;
        Ok(trained.map(|classifier| AnyClassifier(Box::new(classifier))))
    }

    fn classifier(&self, folder: &Path) -> Result<AnyClassifier, RunError> {
        Ok(AnyClassifier(Box::new(TextEncoder::classifier(self, folder)?)))
    }
}

impl<B: Kernels> ErasedClassifier for TextClassifier<B> {
    fn labels(&self) -> &[String] {
        TextClassifier::labels(self)
    }

    fn save(&self, folder: &Path) -> Result<(), RunError> {
        TextClassifier::save(self, folder)
    }

    fn predict_rows(&self, rows: &[Row]) -> Result<Vec<Prediction>, RunError> {
        TextClassifier::predict_rows(self, rows)
    }

    fn text_column(&self) -> &str {
        TextClassifier::text_column(self)
    }
}

/// Loads a model on whatever device was chosen.
struct Load<'a>(&'a str);
struct LoadEncoder<'a>(&'a str);

impl OnDevice for Load<'_> {
    type Output = Result<AnyLanguageModel, RunError>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Self::Output {
        let loaded = load_model::<A::InnerBackend, _>(self.0, None, PrecisionRequest::default(), on)?;
        Ok(AnyLanguageModel(Box::new(LanguageModel::from(loaded))))
    }
}

impl OnDevice for LoadEncoder<'_> {
    type Output = Result<AnyEncoder, RunError>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Self::Output {
        let loaded = load_model::<A::InnerBackend, _>(self.0, None, PrecisionRequest::default(), on)?;
        Ok(AnyEncoder(Box::new(TextEncoder::from(loaded))))
    }
}

impl AnyLanguageModel {
    /// Loads a model, see [`LanguageModel::load`], on a device by its name: `auto`, `cpu`, `wgpu:1` and so on. On a GPU it has
    /// the dtype of its files where the GPU supports that, else f32.
    ///
    /// # Errors
    /// If there is no such model or device, or the device lacks the memory.
    pub fn load(name: &str, device: &str) -> Result<Self, RunError> {
        on_device(device, Load(name))?
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.0.n_layers()
    }

    /// See [`LanguageModel::generate`].
    ///
    /// # Errors
    /// As there, or if the adapter is of a model on another device.
    pub fn generate(&self, prompt: &str, adapter: &AnyAdapter) -> Result<String, RunError> {
        let config = GenerateConfig::default().with_max_new_tokens(256);
        self.stream(prompt, Some(adapter), config, |_| ControlFlow::Continue(()))
    }

    /// See [`LanguageModel::reft`].
    pub fn reft(&self, layers: impl IntoIterator<Item = usize>) -> ReftConfig {
        self.0.reft(&layers.into_iter().collect::<Vec<_>>())
    }

    /// See [`LanguageModel::train`].
    ///
    /// # Errors
    /// As there.
    pub fn train(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        trainer: Trainer<'_>,
    ) -> Result<Trained<AnyAdapter>, RunError> {
        self.0.train_rows(&Row::pairs(["prompt", "completion"], pairs), trainer)
    }

    /// See [`LanguageModel::train_rows`].
    ///
    /// # Errors
    /// As there.
    pub fn train_rows(&self, rows: &[Row], trainer: Trainer<'_>) -> Result<Trained<AnyAdapter>, RunError> {
        self.0.train_rows(rows, trainer)
    }

    /// See [`LanguageModel::adapter`].
    ///
    /// # Errors
    /// As there.
    pub fn adapter(&self, folder: impl AsRef<Path>) -> Result<AnyAdapter, RunError> {
        self.0.adapter(folder.as_ref())
    }

    /// See [`LanguageModel::stream`]; without an adapter, the prompt is continued as it is.
    ///
    /// # Errors
    /// As there, or if the adapter is of a model on another device.
    pub fn stream(
        &self,
        prompt: &str,
        adapter: Option<&AnyAdapter>,
        config: GenerateConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String, RunError> {
        self.0.stream(prompt, adapter, config, &mut on_text)
    }
}

impl AnyAdapter {
    /// See [`LanguageModelAdapter::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), RunError> {
        self.0.save(folder.as_ref())
    }
}

impl AnyEncoder {
    /// Loads an encoder, see [`TextEncoder::load`], on a device by its name: `auto`, `cpu`, `wgpu:1` and so on.
    ///
    /// # Errors
    /// If there is no such model or device, or the device lacks the memory.
    pub fn load(name: &str, device: &str) -> Result<Self, RunError> {
        on_device(device, LoadEncoder(name))?
    }

    /// See [`TextEncoder::reft`].
    pub fn reft(&self, layers: impl IntoIterator<Item = usize>) -> ReftConfig {
        self.0.reft(&layers.into_iter().collect::<Vec<_>>())
    }

    /// See [`TextEncoder::train`].
    ///
    /// # Errors
    /// As there.
    pub fn train(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        trainer: Trainer<'_>,
    ) -> Result<Trained<AnyClassifier>, RunError> {
        self.0.train_rows("classification", &Row::pairs(["text", "label"], pairs), trainer)
    }

    /// See [`TextEncoder::train_rows`].
    ///
    /// # Errors
    /// As there.
    pub fn train_rows(
        &self,
        task: &str,
        rows: &[Row],
        trainer: Trainer<'_>,
    ) -> Result<Trained<AnyClassifier>, RunError> {
        self.0.train_rows(task, rows, trainer)
    }

    /// See [`TextEncoder::classifier`].
    ///
    /// # Errors
    /// As there.
    pub fn classifier(&self, folder: impl AsRef<Path>) -> Result<AnyClassifier, RunError> {
        self.0.classifier(folder.as_ref())
    }
}

impl AnyClassifier {
    /// See [`TextClassifier::labels`].
    pub fn labels(&self) -> &[String] {
        self.0.labels()
    }

    /// See [`TextClassifier::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), RunError> {
        self.0.save(folder.as_ref())
    }

    /// See [`TextClassifier::predict`].
    ///
    /// # Errors
    /// As there.
    pub fn predict(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Prediction>, RunError> {
        self.0.predict_rows(&Row::texts(self.0.text_column(), texts))
    }

    /// See [`TextClassifier::predict_rows`].
    ///
    /// # Errors
    /// As there.
    pub fn predict_rows(&self, rows: &[Row]) -> Result<Vec<Prediction>, RunError> {
        self.0.predict_rows(rows)
    }
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        })*
    };
}
opaque_debug!(AnyLanguageModel, AnyAdapter, AnyEncoder, AnyClassifier);
