//! Opening what is already there: models, adapters and classifiers.

use crate::{
    adapter::{AdapterOrigin, TaskConfig, load_tuned, load_typed, save_adapter},
    device::Chosen,
    error::RunError,
    method::Baseline,
    tasks::TaskSpec,
    tiny,
    trainable::Trainable,
    workload::Workload,
};
use burn::tensor::{Tensor, backend::Backend};
use reft_core::{Adapter, AdapterError, BaseModel, Head, Hook, Place, ReftConfig, Site, site::LayersError};
use reft_models::{
    Checkpoint, Dtype, Llama, LoadError, LoadedModel, ModelConfig, ModelFiles, Precision, Pretrained, Quant,
    Roberta, Tuned, load, peft::PeftNames,
};
use std::path::Path;

/// The files of a model: `embedded:tiny`, a folder, or a name on the Hub.
///
/// # Errors
/// If there is no such model.
pub fn find_model(name: &str, revision: Option<&str>) -> Result<ModelFiles, LoadError> {
    if name == "embedded:tiny" { Ok(tiny::model()) } else { load::find(name, revision) }
}

/// The requested precision of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrecisionRequest {
    /// The dtype; if absent, whatever suits the device.
    pub dtype: Option<Dtype>,
    /// The quantization of the weights.
    pub quant: Option<Quant>,
}

/// Opens a model's files and resolves its precision on the device.
///
/// # Errors
/// If there is no such model, it is damaged, or the device does not support the precision.
pub fn open_model<B: Backend, M: Pretrained<B>>(
    name: &str,
    revision: Option<&str>,
    request: PrecisionRequest,
    on: &Chosen<B::Device>,
) -> Result<(Checkpoint<M::Config>, Precision), RunError> {
    let checkpoint = Checkpoint::open::<B, M>(&find_model(name, revision)?, name)?;
    let precision = on.precision::<B>(request.dtype, request.quant, checkpoint.dtype())?;
    Ok((checkpoint, precision))
}

/// Loads a model.
///
/// # Errors
/// If there is no such model, it is damaged, or the device does not support the precision or lacks the memory.
pub fn load_model<B: Backend, M: Pretrained<B>>(
    name: &str,
    revision: Option<&str>,
    request: PrecisionRequest,
    on: &Chosen<B::Device>,
) -> Result<LoadedModel<B, M>, RunError> {
    let (checkpoint, precision) = open_model::<B, M>(name, revision, request, on)?;
    Workload::inference(checkpoint.tensors().collect(), precision).check::<B>(on)?;
    Ok(checkpoint.load(precision, &on.device)?)
}

/// An adapter of a language model. It is a [`Hook`], which does nothing if the adapter is a baseline.
#[derive(Debug, Clone)]
pub struct LanguageModelAdapter<B: Backend> {
    /// The interventions and where they come from.
    pub adapter: Adapter<B>,
    /// The prompt template that it was trained with.
    pub template: String,
    /// The weights of a baseline, if the adapter is one, and the model with them.
    pub tuned: Option<(Tuned<B>, Llama<B>)>,
}

impl<B: Backend> LanguageModelAdapter<B> {
    /// Saves the adapter to a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), AdapterError> {
        let tuned = self.tuned.as_ref().map(|(tuned, _)| tuned.clone());
        let trainable = Trainable { reft: self.adapter.reft.clone(), tuned, head: None };
        let origin = AdapterOrigin::language_model(self.adapter.base_model.clone(), &self.template);
        save_adapter(folder.as_ref(), &trainable, &origin)
    }

    /// The model to use: that of a baseline, or the frozen one.
    pub fn model<'a>(&'a self, frozen: &'a Llama<B>) -> &'a Llama<B> {
        self.tuned.as_ref().map_or(frozen, |(_, model)| model)
    }
}

impl<B: Backend> Hook<B> for LanguageModelAdapter<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.adapter.edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        self.adapter.sites()
    }
}

/// Loads an adapter and checks that it belongs to the model. A baseline comes with a model of its own, which shares the frozen
/// weights.
///
/// # Errors
/// If it cannot be read, is a classifier's, or was trained on a model of another size or with other weights.
pub fn load_adapter<B: Backend>(
    folder: &Path,
    loaded: &LoadedModel<B, Llama<B>>,
    device: &B::Device,
) -> Result<LanguageModelAdapter<B>, RunError> {
    let (adapter, metadata) = load_typed::<B>(folder, device)?;
    check_generates(folder, metadata.task.as_ref())?;
    let config = loaded.model.config();
    check_adapter(folder, &adapter, &loaded.base, config)?;
    let names = PeftNames::LANGUAGE_MODEL;
    let tuned = load_tuned(folder, metadata.baseline, &loaded.tensors, names, device)?;
    let tuned = tuned.map(|tuned| {
        let model = tuned.model(config, &loaded.tensors);
        (tuned, model)
    });
    Ok(LanguageModelAdapter { adapter, template: metadata.template, tuned })
}

/// Checks that an adapter belongs to a language model, before any model is loaded.
///
/// # Errors
/// If it is a classifier's.
pub fn check_generates(folder: &Path, task: Option<&TaskConfig>) -> Result<(), RunError> {
    match task {
        None => Ok(()),
        Some(task) => Err(RunError::WrongModel {
            adapter: folder.display().to_string(),
            reason: format!(
                "this adapter is a classifier (task: {}); use it with `reft eval` or `reft predict`",
                task.name
            ),
        }),
    }
}

/// A trained classifier and its model.
#[derive(Debug)]
pub struct Classifier<B: Backend> {
    /// The model.
    pub loaded: LoadedModel<B, Roberta<B>>,
    /// The trained parameters.
    pub trainable: Trainable<B>,
    /// The task.
    pub spec: TaskSpec,
}

/// Loads a classifier's adapter and its model.
///
/// # Errors
/// If either cannot be read, or the adapter was trained on a model of another size or with other weights.
pub fn load_classifier<B: Backend>(
    folder: &Path,
    model: &str,
    revision: Option<&str>,
    request: PrecisionRequest,
    on: &Chosen<B::Device>,
) -> Result<Classifier<B>, RunError> {
    let saved = read_classifier(folder, &on.device)?;
    let loaded: LoadedModel<B, Roberta<B>> = load_model(model, revision, request, on)?;
    let (trainable, spec) = attach_classifier(folder, saved, &loaded, &on.device)?;
    Ok(Classifier { loaded, trainable, spec })
}

/// A classifier's adapter without its model.
pub(crate) struct SavedClassifier<B: Backend> {
    adapter: Adapter<B>,
    head: Head<B>,
    task: TaskConfig,
    baseline: Option<Baseline>,
}

/// Reads the adapter of a classifier.
pub(crate) fn read_classifier<B: Backend>(
    folder: &Path,
    device: &B::Device,
) -> Result<SavedClassifier<B>, RunError> {
    let (adapter, metadata) = load_typed::<B>(folder, device)?;
    match (metadata.task, adapter.head.clone()) {
        (Some(task), Some(head)) => Ok(SavedClassifier { adapter, head, task, baseline: metadata.baseline }),
        _ => {
            let reason = "not a classifier: the adapter has no head".into();
            Err(RunError::WrongModel { adapter: folder.display().to_string(), reason })
        }
    }
}

/// Checks that a classifier belongs to a model.
pub(crate) fn attach_classifier<B: Backend>(
    folder: &Path,
    saved: SavedClassifier<B>,
    loaded: &LoadedModel<B, Roberta<B>>,
    device: &B::Device,
) -> Result<(Trainable<B>, TaskSpec), RunError> {
    let SavedClassifier { adapter, head, task, baseline } = saved;
    let config = loaded.model.config();
    check_adapter(folder, &adapter, &loaded.base, config)?;
    let names = PeftNames::classifier(config);
    let tuned = load_tuned(folder, baseline, &loaded.tensors, names, device)?;
    Ok((Trainable { reft: adapter.reft, tuned, head: Some(head) }, TaskSpec::of_adapter(task)))
}

/// Checks that interventions fit a model.
pub(crate) fn check_config(reft: &ReftConfig, model: &impl ModelConfig) -> Result<(), RunError> {
    let (found, expected, n_layers) = (reft.hidden_size, model.hidden_size(), model.n_layers());
    if found != expected {
        return Err(RunError::HiddenSize { found, expected });
    }
    if reft.sites.is_empty() {
        return Err(RunError::Settings("reft: no layer is edited, expected at least one".into()));
    }
    match reft.sites.iter().find(|site| site.layer >= n_layers) {
        Some(site) => Err(LayersError::Missing { index: site.layer as i64, n_layers }.into()),
        None => Ok(()),
    }
}

/// Checks that an adapter belongs to a model.
pub(crate) fn check_adapter<B: Backend>(
    folder: &Path,
    adapter: &Adapter<B>,
    base: &BaseModel,
    model: &impl ModelConfig,
) -> Result<(), RunError> {
    let config = adapter.reft.config();
    let (hidden_size, n_layers) = (model.hidden_size(), model.n_layers());
    let reason = if config.hidden_size != hidden_size {
        format!(
            "edits hidden states of size {}, but those of {} have size {hidden_size}",
            config.hidden_size, base.name
        )
    } else if let Some(site) = config.sites.iter().find(|site| site.layer >= n_layers) {
        format!("edits layer {}, but {} has {n_layers} layers", site.layer, base.name)
    } else if adapter.base_model.fingerprint != base.fingerprint {
        let expected = &adapter.base_model.fingerprint;
        format!("expects a model with fingerprint {expected}, but {} has {}", base.name, base.fingerprint)
    } else {
        return Ok(());
    };
    let name = &adapter.base_model.name;
    Err(RunError::WrongModel {
        adapter: folder.display().to_string(),
        reason: format!("{reason}; pass the model it was trained on, {name}, with --model"),
    })
}
