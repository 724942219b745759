//! Files of trained weights: LoRA in the format of [PEFT](https://github.com/huggingface/peft), other baselines as one
//! safetensors file with Hugging Face's names. Adapters that PEFT wrote are read by [`PeftConfig`] and [`PeftWeights`].

mod config;
mod error;
mod weights;

pub use config::{PEFT_CONFIG, PeftConfig};
pub use error::TunedFileError;
pub use weights::PeftWeights;

use config::{PEFT_TENSORS, ROOT};

use crate::{
    roberta::RobertaConfig,
    source::NamedTensors,
    tuned::{LoraConfig, Tuned, Tuning},
};
use burn::tensor::backend::Backend;
use reft_core::{
    FileError, Head,
    files::{StrictTensors, check_json_text, plain_words, write_atomic, write_tensors},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

const TUNED_TENSORS: &str = "tuned.safetensors";

/// How PEFT names the parts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeftNames {
    task_type: &'static str,
    /// Prefix of the encoder's tensors.
    prefix: &'static str,
    head: Option<PeftHead>,
}

/// PEFT's names for a classification head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PeftHead {
    dense: &'static str,
    out_proj: &'static str,
    /// PEFT's `modules_to_save`.
    modules: &'static [&'static str],
}

impl PeftNames {
    /// A causal language model.
    pub const LANGUAGE_MODEL: Self = Self { task_type: "CAUSAL_LM", prefix: "", head: None };

    /// An encoder with a classification head.
    pub fn classifier(config: &RobertaConfig) -> Self {
        let head = match config.prefix() {
            "bert." => PeftHead {
                dense: "bert.pooler.dense",
                out_proj: "classifier",
                modules: &["classifier", "pooler"],
            },
            _ => PeftHead {
                dense: "classifier.dense",
                out_proj: "classifier.out_proj",
                modules: &["classifier"],
            },
        };
        Self { task_type: "SEQ_CLS", prefix: config.prefix(), head: Some(head) }
    }

    /// What precedes the names of the model's tensors.
    pub fn prefix(&self) -> &'static str {
        self.prefix
    }

    fn tensor(&self, name: &str) -> String {
        format!("{ROOT}{}{name}", self.prefix)
    }
}

/// Saves trained weights to an existing folder: LoRA with the head in PEFT's format, others as `tuned.safetensors`.
///
/// # Errors
/// If a file cannot be written. Each file is replaced atomically.
pub fn save<B: Backend>(
    folder: &Path,
    tuned: &Tuned<B>,
    head: Option<&Head<B>>,
    base_model: &str,
    names: PeftNames,
) -> Result<(), FileError> {
    let Some(lora) = tuned.lora() else {
        let tensors = tuned.values().map(|(name, values)| (name.name.clone(), (name.shape.clone(), values)));
        return write_tensors(&folder.join(TUNED_TENSORS), tensors.collect());
    };
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tuned
        .values()
        .map(|(name, values)| (names.tensor(&name.name), (name.shape.clone(), values)))
        .collect();
    let mut modules_to_save = Value::Null;
    if let (Some(head), Some(peft_head)) = (head, names.head) {
        modules_to_save = json!(peft_head.modules);
        for (name, shape, values) in head.tensors() {
            let (layer, part) = name.split_once('.').expect("layer and part");
            let layer = if layer == "dense" { peft_head.dense } else { peft_head.out_proj };
            tensors.insert(format!("{ROOT}{layer}.{part}"), (shape, values));
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
        "modules_to_save": modules_to_save,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
    });
    write_tensors(&folder.join(PEFT_TENSORS), tensors)?;
    let path = folder.join(PEFT_CONFIG);
    let json = serde_json::to_string_pretty(&config).expect("plain data serializes") + "\n";
    write_atomic(&path, json.as_bytes()).map_err(FileError::io(&path))
}

/// Reads the settings of LoRA from a folder in PEFT's format.
///
/// # Errors
/// If the file is missing, damaged or does not describe LoRA.
pub fn read_lora_config(folder: &Path) -> Result<LoraConfig, FileError> {
    let path = folder.join(PEFT_CONFIG);
    let text = fs::read_to_string(&path).map_err(FileError::io(&path))?;
    let config = check_json_text(text.as_bytes()).and_then(|()| {
        let invalid =
            |error: serde_json::Error| format!("not a LoRA adapter: {}", plain_words(&error.to_string()));
        serde_json::from_str(&text).map_err(invalid)
    });
    config.map_err(|reason| FileError::Invalid { path, reason })
}

/// Loads weights that [`save`] wrote, except for the head, which is also in the adapter's own file.
///
/// # Errors
/// If a file is missing or damaged, or if any tensor is missing, unexpected, or has the wrong shape or dtype: the
/// error lists all of them.
pub fn load<B: Backend>(
    folder: &Path,
    tuning: &Tuning,
    base: &NamedTensors<B>,
    names: PeftNames,
    device: &B::Device,
) -> Result<Tuned<B>, TunedFileError> {
    let is_lora = matches!(tuning, Tuning::Lora(_));
    let path = folder.join(if is_lora { PEFT_TENSORS } else { TUNED_TENSORS });
    let bytes = fs::read(&path).map_err(FileError::io(&path))?;
    let mut tensors = StrictTensors::new(&path, &bytes)?;
    if let (true, Some(head)) = (is_lora, names.head) {
        tensors.ignore(|name| {
            let name = name.strip_prefix(ROOT).unwrap_or_default();
            name.starts_with(head.dense) || name.starts_with(head.out_proj)
        });
    }
    let tuned = tuning
        .with_values(
            base,
            |name| {
                let file_name = if is_lora { names.tensor(&name.name) } else { name.name.clone() };
                tensors.take(&file_name, &name.shape)
            },
            device,
        )
        .map_err(|reason| TunedFileError::Tuning { path: path.clone(), reason })?;
    tensors.finish()?;
    Ok(tuned)
}
