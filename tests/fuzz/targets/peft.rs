//! A LoRA folder in PEFT's format: `adapter_config.json`, with `adapter_model.safetensors` as bytes or by the JSON of its
//! header (the part `adapter_model.safetensors.header`); without either, it has the tensors that the configuration asks for.
//!
//! Weights that load belong to the model, and the model with them is finite.

use crate::support::{
    model,
    parts::{Parts, write},
};
use burn_flex::Flex;
use reft_models::{
    LoraConfig, ModelFiles, NamedTensors, Tuned, Tuning,
    load::LoadedModel,
    llama::Llama,
    peft::{self, PeftNames},
};
use std::{path::Path, sync::LazyLock};

const TENSORS: &str = "adapter_model.safetensors";

/// The tensors of the model that every folder is loaded for.
static BASE: LazyLock<NamedTensors<Flex>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let config = model::LLAMA.as_bytes();
    let shapes = model::tensors_of(config).expect("a small model");
    write(folder.path(), "config.json", config);
    write(folder.path(), "tokenizer.json", model::TOKENIZER.as_bytes());
    write(folder.path(), "model.safetensors", &model::safetensors(&model::header(&shapes)));
    let files = ModelFiles::Folder(folder.path().into());
    let loaded: LoadedModel<Flex, Llama<Flex>> =
        LoadedModel::load(&files, "model", Default::default(), &Default::default()).expect("a valid model");
    loaded.tensors
});

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let folder = parts.folder(&["adapter_config.json", TENSORS]);
    let lora = match peft::read_lora_config(folder.path()) {
        Ok(lora) => lora,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    if let Some(header) = parts.get("adapter_model.safetensors.header") {
        write(folder.path(), TENSORS, &model::safetensors(header));
    } else if parts.get(TENSORS).is_none() {
        let Some(header) = expected_header(&lora) else { return };
        write(folder.path(), TENSORS, &model::safetensors(&header));
    }
    match load(folder.path(), lora) {
        Ok(tuned) => {
            for (_, values) in tuned.values() {
                assert!(values.iter().all(|value| value.is_finite()));
            }
        }
        Err(error) => assert!(!error.is_empty()),
    }
}

fn load(folder: &Path, lora: LoraConfig) -> Result<Tuned<Flex>, String> {
    let (tuning, names) = (Tuning::Lora(lora), PeftNames::LANGUAGE_MODEL);
    peft::load(folder, &tuning, &BASE, names, &Default::default()).map_err(|error| error.to_string())
}

/// The header of a file with every tensor that the configuration asks for.
fn expected_header(lora: &LoraConfig) -> Option<Vec<u8>> {
    if lora.rank > 8 {
        return None;
    }
    let shapes: Vec<(&str, &[usize])> = BASE.shapes().collect();
    let names = Tuning::Lora(lora.clone()).names(&shapes).ok()?;
    let named = names.iter().map(|name| (format!("base_model.model.{}", name.name), name.shape.clone()));
    Some(model::header(&named.collect::<Vec<_>>()))
}
