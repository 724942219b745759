//! Opening what is already there: models, adapters and classifiers.

use crate::{
    adapter::{AdapterOrigin, TaskConfig, load_tuned, load_typed, save_adapter},
    adapter_files::{AdapterFiles, AdapterKind},
    data::Template,
    device::Chosen,
    error::RunError,
    method::Baseline,
    same_model::{OtherWeights, check_model, check_sizes},
    tasks::{TaskSpec, output_names},
    tiny,
    trainable::Trainable,
    workload::Workload,
};
use burn::tensor::Tensor;
use reft_core::{Adapter, AdapterError, FileError, Head, Hook, Place, ReftConfig, Site, site::LayersError};
use reft_kernels::Kernels;
use reft_models::{
    Checkpoint, Dtype, Llama, LoadError, LoadedModel, ModelConfig, ModelFiles, Precision, Pretrained, Quant,
    Roberta, Tuned, load,
    peft::{PeftConfig, PeftNames, PeftWeights},
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
pub fn open_model<B: Kernels, M: Pretrained<B>>(
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
pub fn load_model<B: Kernels, M: Pretrained<B>>(
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
pub struct LanguageModelAdapter<B: Kernels> {
    /// The interventions and where they come from.
    pub adapter: Adapter<B>,
    /// The prompt template that it was trained with.
    pub template: String,
    /// The weights of a baseline, if the adapter is one.
    pub tuned: Option<Tuned<B>>,
    /// The model with the weights of a baseline or of PEFT; it shares the frozen weights.
    pub own_model: Option<Llama<B>>,
    /// Differences between the model in use and the one that the adapter was trained on.
    pub warnings: Vec<String>,
    /// The fingerprint of the model in use.
    pub(crate) used_on: String,
}

impl<B: Kernels> LanguageModelAdapter<B> {
    /// An adapter with nothing but interventions, for the model that it was trained on.
    pub(crate) fn trained(adapter: Adapter<B>, template: String) -> Self {
        let used_on = adapter.base_model.fingerprint.clone();
        Self { adapter, template, tuned: None, own_model: None, warnings: Vec::new(), used_on }
    }

    /// Saves the adapter to a folder.
    ///
    /// # Errors
    /// If a file cannot be written, or the adapter is one of PEFT, whose folder can be copied instead.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), AdapterError> {
        if self.own_model.is_some() && self.tuned.is_none() {
            let reason = "an adapter of PEFT is not saved again; copy its folder".into();
            return Err(FileError::Invalid { path: folder.as_ref().into(), reason }.into());
        }
        let tuned = self.tuned.clone();
        let trainable = Trainable { reft: self.adapter.reft.clone(), tuned, head: None };
        let origin = AdapterOrigin::language_model(self.adapter.base_model.clone(), &self.template);
        save_adapter(folder.as_ref(), &trainable, &origin)
    }

    /// The model to use: that of a baseline, or the frozen one.
    pub fn model<'a>(&'a self, frozen: &'a Llama<B>) -> &'a Llama<B> {
        self.own_model.as_ref().unwrap_or(frozen)
    }
}

impl<B: Kernels> Hook<B> for LanguageModelAdapter<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.adapter.edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        self.adapter.sites()
    }
}

/// Loads an adapter of this library, or LoRA of PEFT, and checks that it belongs to the model. A baseline comes with a model of
/// its own, which shares the frozen weights.
///
/// # Errors
/// If it cannot be read, is a classifier's, or was trained on a model of another size or with other weights, unless these are
/// allowed.
pub fn load_adapter<B: Kernels>(
    folder: &Path,
    loaded: &LoadedModel<B, Llama<B>>,
    other_weights: OtherWeights,
    device: &B::Device,
) -> Result<LanguageModelAdapter<B>, RunError> {
    let files = AdapterFiles::find(folder)?;
    check_generates(&files)?;
    let (config, folder) = (loaded.model.config(), files.folder.as_path());
    if let AdapterKind::Peft(settings) = &files.kind {
        return load_peft(folder, settings, loaded, device);
    }
    let (adapter, metadata) = load_typed::<B>(folder, device)?;
    check_sizes(folder, adapter.reft.config(), &loaded.base, config)?;
    let uses_chat = metadata.template == Template::Chat.text();
    let warnings = check_model(folder, &adapter.base_model, loaded, uses_chat, other_weights)?;
    let names = PeftNames::LANGUAGE_MODEL;
    let tuned = load_tuned(folder, metadata.baseline, &loaded.tensors, names, device)?;
    let own_model = tuned.as_ref().map(|tuned| tuned.model(config, &loaded.tensors));
    let used_on = loaded.base.fingerprint.clone();
    Ok(LanguageModelAdapter { adapter, template: metadata.template, tuned, own_model, warnings, used_on })
}

/// Loads LoRA of PEFT, which does not say with which weights it was trained, only the sizes must fit.
fn load_peft<B: Kernels>(
    folder: &Path,
    settings: &PeftConfig,
    loaded: &LoadedModel<B, Llama<B>>,
    device: &B::Device,
) -> Result<LanguageModelAdapter<B>, RunError> {
    let mut config = loaded.model.config().clone();
    let prefix = PeftNames::LANGUAGE_MODEL.prefix();
    let weights = PeftWeights::read::<Llama<B>>(folder, settings, &config, &loaded.tensors, prefix, device)?;
    config.tie_word_embeddings &= !weights.unties;
    let no_edits = ReftConfig::new(config.hidden_size, []).try_init(device)?;
    Ok(LanguageModelAdapter {
        template: "auto".into(),
        tuned: None,
        own_model: Some(weights.model(&config, &loaded.tensors)),
        warnings: Vec::new(),
        used_on: loaded.base.fingerprint.clone(),
        adapter: Adapter::new(no_edits, loaded.base.clone()),
    })
}

/// Checks that an adapter belongs to a language model, before any model is loaded.
///
/// # Errors
/// If it is a classifier's.
pub fn check_generates(files: &AdapterFiles) -> Result<(), RunError> {
    let wrong = |reason| Err(RunError::WrongModel { adapter: files.folder.display().to_string(), reason });
    match &files.kind {
        AdapterKind::Reft(_, metadata) => match &metadata.task {
            Some(task) => {
                wrong(format!("a classifier ({}), expected an adapter of a language model", task.name))
            }
            None => Ok(()),
        },
        AdapterKind::Peft(config) => match config.task_type.as_deref() {
            None | Some("CAUSAL_LM") => Ok(()),
            Some("SEQ_CLS") => {
                wrong("a classifier (task_type SEQ_CLS), expected an adapter of a language model".into())
            }
            Some(other) => {
                wrong(format!("task_type is {other:?}, supported are \"CAUSAL_LM\" and \"SEQ_CLS\""))
            }
        },
    }
}

/// A trained classifier and its model.
#[derive(Debug)]
pub struct Classifier<B: Kernels> {
    /// The model.
    pub loaded: LoadedModel<B, Roberta<B>>,
    /// The trained parameters.
    pub trainable: Trainable<B>,
    /// The task.
    pub spec: TaskSpec,
    /// Differences between the model in use and the one that the classifier was trained on.
    pub warnings: Vec<String>,
}

/// Loads a classifier's adapter and its model.
///
/// # Errors
/// If either cannot be read, or the adapter was trained on a model of another size or with other weights, unless these are
/// allowed.
pub fn load_classifier<B: Kernels>(
    folder: &Path,
    model: &str,
    revision: Option<&str>,
    request: PrecisionRequest,
    other_weights: OtherWeights,
    on: &Chosen<B::Device>,
) -> Result<Classifier<B>, RunError> {
    let files = AdapterFiles::find(folder)?;
    let folder = files.folder.as_path();
    if let AdapterKind::Peft(settings) = &files.kind {
        check_classifies(folder, settings)?;
        let loaded = load_model(model, revision, request, on)?;
        return attach_peft_classifier(folder, settings, loaded, &on.device);
    }
    let saved = read_classifier(folder, &on.device)?;
    let loaded: LoadedModel<B, Roberta<B>> = load_model(model, revision, request, on)?;
    let (trainable, spec, warnings) = attach_classifier(folder, saved, &loaded, other_weights, &on.device)?;
    Ok(Classifier { loaded, trainable, spec, warnings })
}

/// Checks that a PEFT adapter is a classifier.
fn check_classifies(folder: &Path, settings: &PeftConfig) -> Result<(), RunError> {
    match settings.task_type.as_deref() {
        Some("SEQ_CLS") => Ok(()),
        other => {
            let reason = format!("task_type is {}, expected \"SEQ_CLS\"", other.unwrap_or("absent"));
            Err(RunError::WrongModel { adapter: folder.display().to_string(), reason })
        }
    }
}

/// A classifier of PEFT: its model has the adapter's weights. Texts are in the column `text` and labels in `label`; their names
/// are those of `id2label` in the model's `config.json`, or `LABEL_0` and so on.
fn attach_peft_classifier<B: Kernels>(
    folder: &Path,
    settings: &PeftConfig,
    mut loaded: LoadedModel<B, Roberta<B>>,
    device: &B::Device,
) -> Result<Classifier<B>, RunError> {
    let config = loaded.model.config().clone();
    let prefix = PeftNames::classifier(&config).prefix();
    let weights =
        PeftWeights::read::<Roberta<B>>(folder, settings, &config, &loaded.tensors, prefix, device)?;
    let Some((head, values)) = weights.head.as_ref() else {
        let reason = "a classifier without the tensors of its head, classifier.*".into();
        return Err(RunError::WrongModel { adapter: folder.display().to_string(), reason });
    };
    if head.hidden_size != config.hidden_size {
        let reason = format!("the head's inputs are {}, expected {}", head.hidden_size, config.hidden_size);
        return Err(RunError::WrongModel { adapter: folder.display().to_string(), reason });
    }
    let is_regression = head.outputs == 1;
    let task = TaskConfig {
        name: if is_regression { "regression" } else { "classification" }.into(),
        labels: if is_regression { Vec::new() } else { output_names(&loaded, head.outputs)? },
        text: vec!["text".into()],
        label: "label".into(),
    };
    let head = config.head(head.outputs, None).with_values(values.clone(), device);
    let reft = ReftConfig::new(config.hidden_size, []).try_init(device)?;
    loaded.model = weights.model(&config, &loaded.tensors);
    let trainable = Trainable { reft, tuned: None, head: Some(head) };
    Ok(Classifier { loaded, trainable, spec: TaskSpec::of_adapter(task), warnings: Vec::new() })
}

/// A classifier's adapter without its model.
pub(crate) struct SavedClassifier<B: Kernels> {
    adapter: Adapter<B>,
    head: Head<B>,
    task: TaskConfig,
    baseline: Option<Baseline>,
}

/// Reads the adapter of a classifier.
pub(crate) fn read_classifier<B: Kernels>(
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

/// Checks that a classifier belongs to a model; also returns warnings.
pub(crate) fn attach_classifier<B: Kernels>(
    folder: &Path,
    saved: SavedClassifier<B>,
    loaded: &LoadedModel<B, Roberta<B>>,
    other_weights: OtherWeights,
    device: &B::Device,
) -> Result<(Trainable<B>, TaskSpec, Vec<String>), RunError> {
    let SavedClassifier { adapter, head, task, baseline } = saved;
    let config = loaded.model.config();
    check_sizes(folder, adapter.reft.config(), &loaded.base, config)?;
    let warnings = check_model(folder, &adapter.base_model, loaded, false, other_weights)?;
    let names = PeftNames::classifier(config);
    let tuned = load_tuned(folder, baseline, &loaded.tensors, names, device)?;
    Ok((Trainable { reft: adapter.reft, tuned, head: Some(head) }, TaskSpec::of_adapter(task), warnings))
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
