//! LoRA adapters of PEFT against PEFT's logits (made by `fixtures/peft_lora.py`), and files that do not fit.

use burn_flex::Flex;
use reft_core::{NoHook, host_values};
use reft_models::{
    Llama, LoadedModel, ModelFiles, Padding, Precision, TokenBatch,
    peft::{PeftConfig, PeftWeights, TunedFileError},
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const TOLERANCE: f32 = 1e-4;
type Loaded = LoadedModel<Flex, Llama<Flex>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft_lora").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn base(name: &str) -> Loaded {
    let files = ModelFiles::Folder(fixture(name));
    LoadedModel::load(&files, name, Precision::default(), &Default::default()).expect("loaded")
}

fn read(folder: &Path, loaded: &Loaded) -> Result<PeftWeights<Flex>, TunedFileError> {
    let (settings, device) = (PeftConfig::read(folder)?, Default::default());
    PeftWeights::read::<Llama<Flex>>(folder, &settings, loaded.model.config(), &loaded.tensors, "", &device)
}

#[test]
fn adapters_give_the_logits_of_peft() {
    for name in [
        "rslora",
        "patterns",
        "bias-all",
        "bias-lora-only",
        "dora",
        "layers",
        "regex",
        "head",
        "tied-head",
        "tied-saved-head",
        "tied-saved-embedding",
        "embedding",
        "tied-embedding",
    ] {
        let folder = fixture(name);
        let config = json_of(&folder.join("adapter_config.json"));
        let loaded = base(config["base_model_name_or_path"].as_str().expect("a name"));
        let weights = read(&folder, &loaded).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut config = loaded.model.config().clone();
        config.tie_word_embeddings &= !weights.unties;
        let model: Llama<Flex> = weights.model(&config, &loaded.tensors);
        let expected = json_of(&folder.join("expected.json"));
        let rows: Vec<Vec<u32>> = serde_json::from_value(expected["rows"].clone()).expect("rows");
        let wanted: Vec<Vec<f32>> = serde_json::from_value(expected["logits"].clone()).expect("logits");
        for (row, wanted) in rows.iter().zip(&wanted) {
            let hidden = model.forward(&TokenBatch::new(&[row], Padding::Right), None, &NoHook);
            let found = host_values(model.logits(hidden, &[row.len() - 1]));
            let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < TOLERANCE, "{name}: {worst}");
        }
    }
}

/// A copy of an adapter whose tensors are kept, renamed or left out.
fn changed(name: &str, rename: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(fixture(name).join("adapter_config.json"), folder.path().join("adapter_config.json"))
        .expect("copied");
    let bytes = fs::read(fixture(name).join("adapter_model.safetensors")).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.iter().filter_map(|(name, view)| Some((rename(name)?, view)));
    let tensors: Vec<(String, TensorView)> = tensors.collect();
    let bytes = safetensors::serialize(tensors, None).expect("serialized");
    fs::write(folder.path().join("adapter_model.safetensors"), bytes).expect("written");
    folder
}

#[test]
fn updates_that_the_configuration_does_not_name_are_refused() {
    let folder = changed("rslora", |name| Some(name.into()));
    let path = folder.path().join("adapter_config.json");
    let mut config = json_of(&path);
    let loaded = base(config["base_model_name_or_path"].as_str().expect("a name"));
    read(folder.path(), &loaded).expect("as it was");
    config["layers_to_transform"] = json!([0]);
    fs::write(&path, config.to_string()).expect("written");
    let error = read(folder.path(), &loaded).expect_err("another layer").to_string();
    assert!(error.contains("which target_modules and layers_to_transform do not name"), "{error}");
}

#[test]
fn the_names_of_other_versions_of_peft_are_known() {
    let loaded = base("untied");
    for rename in [
        |name: &str| {
            name.replace("lora_A.weight", "lora_A.default.weight")
                .replace("lora_B.weight", "lora_B.default.weight")
        },
        |name: &str| name.strip_prefix("base_model.model.").unwrap_or(name).to_string(),
    ] {
        let folder = changed("rslora", |name| Some(rename(name)));
        read(folder.path(), &loaded).expect("the same adapter");
    }
    let folder =
        changed("dora", |name| Some(name.replace("magnitude_vector", "magnitude_vector.default.weight")));
    read(folder.path(), &loaded).expect("the same adapter");
}

#[test]
fn what_does_not_fit_is_listed() {
    let loaded = base("untied");
    let error = |folder: &Path| {
        let message = read(folder, &loaded).expect_err("refused").to_string();
        message.lines().skip(1).map(str::trim).collect::<Vec<_>>().join("\n")
    };
    let q0 = "model.layers.0.self_attn.q_proj.lora_A.weight";
    let folder = changed("rslora", |name| (!name.ends_with(q0)).then(|| name.into()));
    assert_eq!(error(folder.path()), format!("missing: {q0} [4, 16]"));
    let folder = changed("rslora", |name| {
        Some(if name.ends_with(q0) { name.replace("q_proj", "x_proj") } else { name.into() })
    });
    assert_eq!(
        error(folder.path()),
        format!(
            "missing: {q0} [4, 16]\nunexpected: the update of model.layers.0.self_attn.x_proj, which the model does not have"
        )
    );
    let folder = changed("rslora", |name| {
        Some(if name.ends_with(q0) { "base_model.model.extra".into() } else { name.into() })
    });
    assert_eq!(error(folder.path()), format!("unexpected: base_model.model.extra\nmissing: {q0} [4, 16]"));
    // Both tensors of a map are missing.
    let folder = changed("layers", |name| (!name.contains("k_proj")).then(|| name.into()));
    assert_eq!(error(folder.path()), "missing: model.layers.1.self_attn.k_proj.lora_A.weight [2, 16]");

    let folder = changed("rslora", |name| Some(name.into()));
    let path = folder.path().join("adapter_config.json");
    let mut config = json_of(&path);
    config["r"] = json!(3);
    fs::write(&path, config.to_string()).expect("written");
    assert!(error(folder.path()).contains("q_proj.lora_A.weight: shape [4, 16], expected [3, 16]"));
}
