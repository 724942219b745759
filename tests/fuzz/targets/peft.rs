//! A LoRA folder in PEFT's format: `adapter_config.json`, with `adapter_model.safetensors` as bytes or by the JSON of its
//! header (the part `adapter_model.safetensors.header`); without either, it has the tensors that the configuration asks for.
//!
//! It is loaded as a folder of PEFT, and as the weights of an adapter of ours. A model with loaded weights generates.

use crate::support::{
    model,
    parts::{Parts, write},
};
use burn_flex::Flex;
use reft_core::NoHook;
use reft_models::{
    GenerateConfig, Llama, LoadedModel, ModelFiles, Tuning, generate,
    peft::{self, PeftConfig, PeftNames, PeftWeights},
};
use std::{ops::ControlFlow, path::Path, sync::LazyLock};

const TENSORS: &str = "adapter_model.safetensors";
const ROOT: &str = "base_model.model.";

/// The model that every folder is loaded for.
static BASE: LazyLock<LoadedModel<Flex, Llama<Flex>>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let config = model::LLAMA.as_bytes();
    let shapes = model::tensors_of(config).expect("a small model");
    write(folder.path(), "config.json", config);
    write(folder.path(), "tokenizer.json", model::TOKENIZER.as_bytes());
    write(folder.path(), "model.safetensors", &model::safetensors(&model::header(&shapes)));
    let files = ModelFiles::Folder(folder.path().into());
    LoadedModel::load(&files, "model", Default::default(), &Default::default()).expect("a valid model")
});

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let folder = parts.folder(&["adapter_config.json", TENSORS]);
    if let Some(header) = parts.get("adapter_model.safetensors.header") {
        write(folder.path(), TENSORS, &model::safetensors(header));
    }
    let is_given = folder.path().join(TENSORS).exists();
    foreign(folder.path(), is_given).unwrap_or_else(|error| assert!(!error.is_empty()));
    own(folder.path(), is_given).unwrap_or_else(|error| assert!(!error.is_empty()));
}

/// As a folder of PEFT.
fn foreign(folder: &Path, is_given: bool) -> Result<(), String> {
    let settings = PeftConfig::read(folder).map_err(|error| error.to_string())?;
    if !is_given && settings.rank <= 8 {
        let mut shapes = Vec::new();
        for (name, shape) in BASE.tensors.shapes() {
            let Some(module) = name.strip_suffix(".weight").filter(|module| settings.updates(module)) else { continue };
            let [outputs, inputs] = *shape else { continue };
            shapes.push((format!("{ROOT}{module}.lora_A.weight"), vec![settings.rank, inputs]));
            shapes.push((format!("{ROOT}{module}.lora_B.weight"), vec![outputs, settings.rank]));
        }
        write(folder, TENSORS, &model::safetensors(&model::header(&shapes)));
    }
    let config = BASE.model.config();
    let weights =
        PeftWeights::read::<Llama<Flex>>(folder, &settings, config, &BASE.tensors, "", &Default::default());
    run(&weights.map_err(|error| error.to_string())?.model(config, &BASE.tensors));
    Ok(())
}

/// As the weights of an adapter of ours.
fn own(folder: &Path, is_given: bool) -> Result<(), String> {
    let lora = peft::read_lora_config(folder).map_err(|error| error.to_string())?;
    let tuning = Tuning::Lora(lora.clone());
    if !is_given && lora.rank <= 8 {
        let shapes: Vec<(&str, &[usize])> = BASE.tensors.shapes().collect();
        let names = tuning.names(&shapes).map_err(|error| error.to_string())?;
        let named = names.iter().map(|name| (format!("{ROOT}{}", name.name), name.shape.clone()));
        write(folder, TENSORS, &model::safetensors(&model::header(&named.collect::<Vec<_>>())));
    }
    let tuned =
        peft::load(folder, &tuning, &BASE.tensors, PeftNames::LANGUAGE_MODEL, &Default::default());
    run(&tuned.map_err(|error| error.to_string())?.model(BASE.model.config(), &BASE.tensors));
    Ok(())
}

fn run(model: &Llama<Flex>) {
    let config = GenerateConfig::default().with_max_new_tokens(1);
    let _ = generate(model, &[vec![0, 3, 4]], &NoHook, &config, |_, _| ControlFlow::Continue(()));
}
