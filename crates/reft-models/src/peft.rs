//! Files of trained weights: LoRA as [PEFT](https://github.com/huggingface/peft) writes it, other baselines as one
//! safetensors file by Hugging Face's names.

use crate::{
    roberta::RobertaConfig,
    tuned::{LoraConfig, NamedTensors, Tuned, Tuning, TuningError},
};
use burn::tensor::backend::Backend;
use reft_core::{
    AdapterError, Head,
    adapter::{StrictTensors, write_atomic, write_tensors},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const PEFT_CONFIG: &str = "adapter_config.json";
const PEFT_TENSORS: &str = "adapter_model.safetensors";
const TUNED_TENSORS: &str = "tuned.safetensors";

/// Trained weights that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TunedFileError {
    /// A file.
    #[error(transparent)]
    File(#[from] AdapterError),
    /// The weights do not fit the model.
    #[error("{}: {source}", path.display())]
    Tuning {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TuningError,
    },
}

/// How PEFT names the parts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeftNames {
    task_type: &'static str,
    /// Before the names that our models ask their tensors by.
    prefix: &'static str,
    /// The head's two layers, and the modules that PEFT keeps whole.
    head: Option<([&'static str; 2], &'static [&'static str])>,
}

impl PeftNames {
    /// A causal language model.
    pub const LANGUAGE_MODEL: Self = Self { task_type: "CAUSAL_LM", prefix: "", head: None };

    /// An encoder with a classification head.
    pub fn classifier(config: &RobertaConfig) -> Self {
        let (dense, out, kept): (_, _, &[&str]) = match config.prefix() {
            "bert." => ("bert.pooler.dense", "classifier", &["classifier", "pooler"]),
            _ => ("classifier.dense", "classifier.out_proj", &["classifier"]),
        };
        Self { task_type: "SEQ_CLS", prefix: config.prefix(), head: Some(([dense, out], kept)) }
    }

    fn tensor(&self, name: &str) -> String {
        format!("base_model.model.{}{name}", self.prefix)
    }
}

/// Writes trained weights to a folder that exists: LoRA's with the head as PEFT does, others as `tuned.safetensors`.
///
/// # Errors
/// If a file cannot be written. Each file is replaced as a whole or not at all.
pub fn save<B: Backend>(
    folder: &Path,
    tuned: &Tuned<B>,
    head: Option<&Head<B>>,
    base_model: &str,
    names: PeftNames,
) -> Result<(), AdapterError> {
    let Some(lora) = tuned.lora() else {
        let tensors = tuned.values().map(|(name, values)| (name.name.clone(), (name.shape.clone(), values)));
        return write_tensors(&folder.join(TUNED_TENSORS), tensors.collect());
    };
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tuned
        .values()
        .map(|(name, values)| (names.tensor(&name.name), (name.shape.clone(), values)))
        .collect();
    let mut kept = Value::Null;
    if let (Some(head), Some(([dense, out], modules))) = (head, names.head) {
        kept = json!(modules);
        for (name, shape, values) in head.tensors() {
            let (layer, part) = name.split_once('.').expect("layer and part");
            let layer = if layer == "dense" { dense } else { out };
            tensors.insert(format!("base_model.model.{layer}.{part}"), (shape, values));
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": names.task_type,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets,
        "modules_to_save": kept,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
    });
    write_tensors(&folder.join(PEFT_TENSORS), tensors)?;
    let path = folder.join(PEFT_CONFIG);
    let json = serde_json::to_string_pretty(&config).expect("plain data serialises") + "\n";
    write_atomic(&path, json.as_bytes()).map_err(|source| AdapterError::Io { path, source })
}

/// LoRA's settings from a folder that [`save`] wrote.
///
/// # Errors
/// If the file is missing, damaged or not LoRA's.
pub fn read_lora_config(folder: &Path) -> Result<LoraConfig, AdapterError> {
    let path = folder.join(PEFT_CONFIG);
    let text = fs::read_to_string(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| AdapterError::Config { path, reason: format!("not a LoRA adapter: {error}") })
}

/// Reads weights that [`save`] wrote.
///
/// # Errors
/// If a file is missing or damaged, or if any tensor is missing, unexpected, or of another shape or dtype: the error
/// lists all of them.
pub fn load<B: Backend>(
    folder: &Path,
    tuning: &Tuning,
    base: &NamedTensors<B>,
    names: PeftNames,
    device: &B::Device,
) -> Result<Tuned<B>, TunedFileError> {
    let is_lora = matches!(tuning, Tuning::Lora(_));
    let path = folder.join(if is_lora { PEFT_TENSORS } else { TUNED_TENSORS });
    let bytes = fs::read(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
    let mut tensors = StrictTensors::new(&path, &bytes)?;
    // The head is read from the adapter's own file.
    let ([dense, out], _) = names.head.unwrap_or_default();
    tensors.ignore(|name| {
        let part = name.strip_prefix("base_model.model.").unwrap_or_default();
        is_lora && [dense, out].iter().any(|layer| !layer.is_empty() && part.starts_with(layer))
    });
    let tuned = tuning
        .with_values(
            base,
            |name| {
                let file_name = if is_lora { names.tensor(&name.name) } else { name.name.clone() };
                tensors.take(&file_name, &name.shape)
            },
            device,
        )
        .map_err(|source| TunedFileError::Tuning { path: path.clone(), source })?;
    tensors.finish()?;
    Ok(tuned)
}
