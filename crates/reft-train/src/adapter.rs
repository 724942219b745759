//! What this crate stores in an adapter: the prompt template, the task, and the weights of a baseline.

use crate::{count::count, method::Baseline, trainable::Trainable};
use reft_core::{
    Adapter, AdapterConfig, AdapterError, BaseModel, FileError, HeadConfig,
    adapter::{CONFIG_FILE, Metadata, parse_metadata, read_config},
};
use reft_kernels::Kernels;
use reft_models::{
    NamedTensors, Tuned, Tuning,
    peft::{self, PeftNames, TunedFileError},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a classifier was trained for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskConfig {
    /// Name of the task, such as `glue/sst2`, `classification` or `regression`.
    pub name: String,
    /// The label of each output; empty for a regression.
    pub labels: Vec<String>,
    /// Names of the one or two text columns.
    pub text: Vec<String>,
    /// Name of the label column.
    pub label: String,
}

/// The keys of `adapter.json` that belong to this crate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdapterMetadata {
    /// Name or text of the prompt template; empty for classifiers.
    #[serde(default)]
    pub template: String,
    /// The baseline that was trained; none for interventions.
    #[serde(default, rename = "trained", with = "trained")]
    pub baseline: Option<Baseline>,
    /// What a classifier was trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskConfig>,
}

/// `interventions`, or the name of a baseline.
mod trained {
    use crate::method::Baseline;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IntoDeserializer};

    const INTERVENTIONS: &str = "interventions";

    pub fn serialize<S: Serializer>(baseline: &Option<Baseline>, serializer: S) -> Result<S::Ok, S::Error> {
        match baseline {
            Some(baseline) => baseline.serialize(serializer),
            None => serializer.serialize_str(INTERVENTIONS),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Baseline>, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == INTERVENTIONS {
            Ok(None)
        } else {
            Baseline::deserialize(name.into_deserializer()).map(Some)
        }
    }
}

/// Reads `adapter.json`.
///
/// # Errors
/// If it is missing, damaged or of a newer format.
pub fn read_adapter(folder: &Path) -> Result<(AdapterConfig, AdapterMetadata), AdapterError> {
    let config = read_config(folder)?;
    let metadata = typed(&config.metadata, config.head.as_ref(), folder)?;
    Ok((config, metadata))
}

/// Types and checks the metadata of an adapter.
fn typed(
    metadata: &Metadata,
    head: Option<&HeadConfig>,
    folder: &Path,
) -> Result<AdapterMetadata, FileError> {
    let metadata: AdapterMetadata = parse_metadata(metadata, folder)?;
    let Some(task) = &metadata.task else { return Ok(metadata) };
    let n_outputs = task.labels.len().max(1);
    let reason = match head {
        Some(head) if head.outputs != n_outputs => {
            format!(
                "task.labels lists {}, but the head has {}",
                count(task.labels.len(), "label"),
                count(head.outputs, "output")
            )
        }
        _ if !(1..=2).contains(&task.text.len()) => {
            format!("task.text lists {}, expected 1 or 2", count(task.text.len(), "column"))
        }
        _ => return Ok(metadata),
    };
    Err(FileError::Invalid { path: folder.join(CONFIG_FILE), reason })
}

/// Where an adapter comes from: everything that is saved beside its values.
#[derive(Debug, Clone)]
pub struct AdapterOrigin {
    /// The model.
    pub base: BaseModel,
    /// The prompt template; empty for classifiers.
    pub template: String,
    /// What a classifier is trained for.
    pub task: Option<TaskConfig>,
    /// PEFT's names for the parts of the model.
    pub peft_names: PeftNames,
}

impl AdapterOrigin {
    /// That of a language model's adapter.
    pub fn language_model(base: BaseModel, template: impl Into<String>) -> Self {
        Self { base, template: template.into(), task: None, peft_names: PeftNames::LANGUAGE_MODEL }
    }
}

/// Saves what was trained to an adapter folder.
///
/// # Errors
/// If a file cannot be written. Each file is replaced atomically.
pub fn save_adapter<B: Kernels>(
    folder: &Path,
    trainable: &Trainable<B>,
    origin: &AdapterOrigin,
) -> Result<(), AdapterError> {
    let metadata = AdapterMetadata {
        template: origin.template.clone(),
        baseline: trainable.baseline(),
        task: origin.task.clone(),
    };
    let mut adapter = Adapter::new(trainable.reft.clone(), origin.base.clone()).with_metadata(&metadata);
    adapter.head = trainable.head.clone();
    adapter.save(folder)?;
    if let Some(tuned) = &trainable.tuned {
        peft::save(folder, tuned, trainable.head.as_ref(), &origin.base.name, origin.peft_names)?;
    }
    Ok(())
}

/// Loads an adapter and types its metadata.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn load_typed<B: Kernels>(
    folder: &Path,
    device: &B::Device,
) -> Result<(Adapter<B>, AdapterMetadata), AdapterError> {
    let adapter = Adapter::<B>::load(folder, device)?;
    let head = adapter.head.as_ref().map(|head| head.config());
    let metadata = typed(&adapter.metadata, head, folder)?;
    Ok((adapter, metadata))
}

/// Loads the weights of a baseline from an adapter folder, if the baseline trains any.
///
/// # Errors
/// If a file is missing or damaged, or does not match the model.
pub fn load_tuned<B: Kernels>(
    folder: &Path,
    baseline: Option<Baseline>,
    tensors: &NamedTensors<B>,
    names: PeftNames,
    device: &B::Device,
) -> Result<Option<Tuned<B>>, TunedFileError> {
    match tuning_of(folder, baseline)? {
        Some(tuning) => Ok(Some(peft::load(folder, &tuning, tensors, names, device)?)),
        None => Ok(None),
    }
}

fn tuning_of(folder: &Path, baseline: Option<Baseline>) -> Result<Option<Tuning>, FileError> {
    Ok(match baseline {
        None | Some(Baseline::HeadOnly) => None,
        Some(Baseline::Bitfit) => Some(Tuning::Bitfit),
        Some(Baseline::Full) => Some(Tuning::Full),
        Some(Baseline::Lora) => Some(Tuning::Lora(peft::read_lora_config(folder)?)),
    })
}
