//! What kind of adapter a folder holds: one of this library, one of PEFT, or something else that is named in the error.

use crate::{
    adapter::{AdapterMetadata, read_adapter},
    error::RunError,
};
use reft_core::{AdapterConfig, FileError, adapter::CONFIG_FILE};
use reft_models::peft::{PEFT_CONFIG, PeftConfig};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const PEFT_TENSORS: &str = "adapter_model.safetensors";
/// The adapter within a run folder.
const OF_RUN: &str = "adapter";

/// An adapter on disk.
#[derive(Debug)]
pub struct AdapterFiles {
    /// The folder with its files.
    pub folder: PathBuf,
    /// Its kind and settings.
    pub kind: AdapterKind,
}

/// The kinds of adapters that can be used.
#[derive(Debug)]
pub enum AdapterKind {
    /// One of this library.
    Reft(Box<AdapterConfig>, AdapterMetadata),
    /// LoRA, saved by [PEFT](https://github.com/huggingface/peft).
    Peft(Box<PeftConfig>),
}

impl AdapterFiles {
    /// Finds the adapter in a folder, or in the folder of a run, and reads its settings.
    ///
    /// # Errors
    /// If there is none; if there is something else, the error says what. If the settings cannot be read or used.
    pub fn find(path: &Path) -> Result<Self, RunError> {
        let not_an_adapter = |reason: String| RunError::NotAnAdapter { path: path.into(), reason };
        let has = |name: &str| path.join(name).is_file();
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_an_adapter("no such folder".into()));
            }
            Err(error) => return Err(FileError::io(path)(error).into()),
            Ok(metadata) if !metadata.is_dir() => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).display();
                return Err(not_an_adapter(format!("a file, expected the adapter's folder: {folder}")));
            }
            Ok(_) => {}
        }
        if has(CONFIG_FILE) {
            let (config, metadata) = read_adapter(path)?;
            return Ok(Self { folder: path.into(), kind: AdapterKind::Reft(Box::new(config), metadata) });
        }
        if has(PEFT_CONFIG) {
            return Self::peft(path);
        }
        let of_run = path.join(OF_RUN);
        if of_run.join(CONFIG_FILE).is_file() {
            return Self::find(&of_run);
        }
        Err(not_an_adapter(what_else(path)))
    }

    fn peft(folder: &Path) -> Result<Self, RunError> {
        let has = |name: &str| folder.join(name).is_file();
        let json: Value = match fs::read(folder.join(PEFT_CONFIG)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) => return Err(FileError::io(&folder.join(PEFT_CONFIG))(error).into()),
        };
        let not_an_adapter = |reason: String| RunError::NotAnAdapter { path: folder.into(), reason };
        if json.is_object() && json.get("peft_type").is_none() {
            let is_adapter_hub = json.get("model_class").is_some() || has("pytorch_adapter.bin");
            let kind = if is_adapter_hub { "an adapter of AdapterHub" } else { "not an adapter of PEFT" };
            let reason = format!("{kind}: {PEFT_CONFIG} has no peft_type; reading it is not supported");
            return Err(not_an_adapter(reason));
        }
        let config = PeftConfig::read(folder)?;
        if !has(PEFT_TENSORS) {
            let reason = match has("adapter_model.bin") {
                true => format!(
                    "a PEFT adapter with pickled weights, adapter_model.bin, which are not read because they can run code; \
                     load it with PEFT and save it again, which writes {PEFT_TENSORS}"
                ),
                false => format!("a PEFT adapter without {PEFT_TENSORS}, found {}", listing(folder)),
            };
            return Err(not_an_adapter(reason));
        }
        Ok(Self { folder: folder.into(), kind: AdapterKind::Peft(Box::new(config)) })
    }

    /// The name of the model that the adapter was trained on, if it is known.
    pub fn base_model(&self) -> Option<&str> {
        match &self.kind {
            AdapterKind::Reft(config, _) => Some(&config.base_model.name),
            AdapterKind::Peft(config) => config.base_model.as_deref(),
        }
    }

    /// The revision of that model on the Hub, if it is known.
    pub fn revision(&self) -> Option<&str> {
        match &self.kind {
            AdapterKind::Reft(config, _) => config.base_model.revision.as_deref(),
            AdapterKind::Peft(config) => config.revision.as_deref(),
        }
    }

    /// Whether it is a classifier.
    pub fn is_classifier(&self) -> bool {
        match &self.kind {
            AdapterKind::Reft(_, metadata) => metadata.task.is_some(),
            AdapterKind::Peft(config) => config.task_type.as_deref() == Some("SEQ_CLS"),
        }
    }
}

/// What a folder without an adapter holds.
fn what_else(folder: &Path) -> String {
    let names = names(folder);
    let has = |name: &str| names.iter().any(|found| found == name);
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    let json: Value = fs::read(folder.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let is_pyvene = json.get("representations").is_some() || json.get("intervention_types").is_some();
    let has_edits = any(&|name| name.starts_with("intkey_"));
    if has_edits || is_pyvene || folder.join("intervenable_model").is_dir() {
        return "an adapter of pyreft (pyvene); reading it is not supported yet, only those of reft and LoRA of PEFT are".into();
    }
    if has("pytorch_adapter.bin") || has("head_config.json") {
        return "an adapter of AdapterHub; reading it is not supported".into();
    }
    let has_weights = any(&|name| {
        (name.starts_with("model") && name.ends_with(".safetensors")) || name.starts_with("pytorch_model")
    });
    if json.get("model_type").is_some() || (has("config.json") && has_weights) {
        return "a model, not an adapter; give it as the model instead".into();
    }
    if has("adapter_model.safetensors") || has("adapter_model.bin") {
        return format!("an adapter of PEFT without its {PEFT_CONFIG}");
    }
    if has("recipe.toml") {
        return "the folder of a run that has not saved an adapter".into();
    }
    let is_adapter = |name: &&String| {
        let folder = folder.join(name);
        folder.join(CONFIG_FILE).is_file() || folder.join(PEFT_CONFIG).is_file()
    };
    if let Some(last) = names.iter().rfind(is_adapter) {
        return format!("a folder of adapters; give one of them, such as {}", folder.join(last).display());
    }
    let checkpoints: Vec<&String> = names.iter().filter(|name| name.starts_with("checkpoint-")).collect();
    if let Some(last) = checkpoints.last() {
        return format!("a folder of checkpoints; give one of them, such as {}", folder.join(last).display());
    }
    format!(
        "not an adapter: expected {CONFIG_FILE} of reft or {PEFT_CONFIG} of PEFT, found {}",
        listing(folder)
    )
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The first files of a folder.
fn listing(folder: &Path) -> String {
    const SHOWN: usize = 8;
    let names = names(folder);
    match names.len() {
        0 => "an empty folder".into(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of a folder with these files, with the folder's name replaced.
    fn error(files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            fs::write(path, text).expect("written");
        }
        let message = AdapterFiles::find(folder.path()).expect_err("not an adapter").to_string();
        message.replace(&folder.path().display().to_string(), "folder")
    }

    #[test]
    fn other_folders_are_named() {
        let pyreft = "folder: an adapter of pyreft (pyvene); reading it is not supported yet, only those of reft and LoRA of \
                      PEFT are";
        for files in [
            &[("intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin", "")][..],
            &[("intkey_layer.0.comp.block_output.unit.pos.nunit.1#0.bin", ""), ("config.json", "{}")],
            &[("config.json", r#"{"representations": [], "intervention_types": []}"#)],
            &[("intervenable_model/intkey_layer.0.bin", "")],
        ] {
            assert_eq!(error(files), pyreft);
        }
        assert_eq!(
            error(&[
                ("adapter_config.json", r#"{"config": {}, "model_class": "X"}"#),
                ("pytorch_adapter.bin", "")
            ]),
            "folder: an adapter of AdapterHub: adapter_config.json has no peft_type; reading it is not supported"
        );
        assert_eq!(
            error(&[("adapter_config.json", r#"{"peft_type": "PROMPT_TUNING"}"#)]),
            "folder/adapter_config.json: peft_type is \"PROMPT_TUNING\"; of PEFT's adapters only \"LORA\" is supported"
        );
        assert_eq!(
            error(&[("adapter_config.json", r#"{"peft_type": "LORA"}"#), ("adapter_model.bin", "")]),
            "folder: a PEFT adapter with pickled weights, adapter_model.bin, which are not read because they can run \
             code; load it with PEFT and save it again, which writes adapter_model.safetensors"
        );
        assert_eq!(
            error(&[("config.json", r#"{"model_type": "llama"}"#), ("model.safetensors", "")]),
            "folder: a model, not an adapter; give it as the model instead"
        );
        assert_eq!(
            error(&[("recipe.toml", ""), ("metrics.jsonl", "")]),
            "folder: the folder of a run that has not saved an adapter"
        );
        assert_eq!(
            error(&[("checkpoint-5/x", ""), ("checkpoint-7/x", "")]),
            "folder: a folder of checkpoints; give one of them, such as folder/checkpoint-7"
        );
        assert_eq!(
            error(&[("checkpoint-5/adapter_config.json", ""), ("checkpoint-7/adapter_config.json", "")]),
            "folder: a folder of adapters; give one of them, such as folder/checkpoint-7"
        );
        assert_eq!(
            error(&[("notes.txt", "")]),
            "folder: not an adapter: expected adapter.json of reft or adapter_config.json of PEFT, found notes.txt"
        );
        assert_eq!(error(&[]).split("found").last(), Some(" an empty folder"));
    }

    #[test]
    fn a_path_that_is_no_folder_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("adapter.safetensors");
        let message = |path: &Path| {
            let message = AdapterFiles::find(path).expect_err("no folder").to_string();
            message.replace(&folder.path().display().to_string(), "folder")
        };
        assert_eq!(message(&file), "folder/adapter.safetensors: no such folder");
        fs::write(&file, "").expect("written");
        assert_eq!(
            message(&file),
            "folder/adapter.safetensors: a file, expected the adapter's folder: folder"
        );
    }
}
