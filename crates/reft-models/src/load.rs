//! Models in Hugging Face's layout: `config.json`, `tokenizer.json`, and safetensors in one file or in shards.

#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
use crate::hub::HubError;
use crate::{
    files::{ModelFiles, TokenIds},
    fingerprint,
    generate::GenerateConfig,
    keys::{Keys, json_object},
    precision::{Dtype, Precision},
    quantized,
    source::{ModelConfig, NamedTensors, Pretrained},
    tokenizer::{Tokenizer, TokenizerError},
    weights::Weights,
};
use burn::tensor::backend::Backend;
use reft_core::{BaseModel, FileError, head::HeadValues};
use reft_kernels::Kernels;
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

const CONFIG: &str = "config.json";

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing, damaged or not supported, or the weights do not match the configuration.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer cannot be loaded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model could not be fetched from the Hub.
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// A frozen model with its tokenizer.
#[derive(Debug)]
pub struct LoadedModel<B: Backend, M> {
    /// The model.
    pub model: M,
    /// The model's tensors by Hugging Face's names; they share memory with the model.
    pub tensors: NamedTensors<B>,
    /// The classification head of the checkpoint, if it has one.
    pub head: Option<HeadValues>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Name and fingerprint.
    pub base: BaseModel,
    /// Token ids that end a generated text.
    pub stop_ids: Vec<u32>,
    /// The penalty for repetition that `generation_config.json` asks for; 1 if it does not.
    pub repetition_penalty: f64,
    /// What a user should know about the files, a line each.
    pub warnings: Vec<String>,
    files: ModelFiles,
}

/// An opened model whose weights are not loaded yet: enough to tell how much memory it needs.
#[derive(Debug)]
pub struct Checkpoint<C> {
    /// The configuration.
    pub config: C,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Name and fingerprint.
    pub base: BaseModel,
    /// Token ids that end a generated text.
    pub stop_ids: Vec<u32>,
    /// The penalty for repetition that `generation_config.json` asks for; 1 if it does not.
    pub repetition_penalty: f64,
    /// What a user should know about the files, a line each.
    pub warnings: Vec<String>,
    head: Option<HeadValues>,
    files: ModelFiles,
    weights: Weights,
}

impl<C: ModelConfig> Checkpoint<C> {
    /// Opens a model's files. Adapters trained on the model refer to it by `name`.
    ///
    /// # Errors
    /// If a file is missing, damaged or not supported.
    pub fn open<B: Backend, M: Pretrained<B, Config = C>>(
        files: &ModelFiles,
        name: &str,
    ) -> Result<Self, LoadError> {
        let Some(config_json) = files.read_optional(CONFIG)? else {
            return Err(FileError::Invalid { path: files.path(CONFIG), reason: no_config(files) }.into());
        };
        let refuse = |reason| FileError::Invalid { path: files.path(CONFIG), reason };
        if let Some(reason) = json_object(&config_json).ok().as_ref().and_then(quantized::by_config) {
            return Err(refuse(reason).into());
        }
        let config = M::parse(&config_json).map_err(refuse)?;
        let mut weights = Weights::open(files)?;
        weights.refuse_quantized()?;
        weights.adopt_names::<B, M>(&config);
        let head = weights.take_head();
        // Only after this is the number of blocks a size that the files hold.
        weights.check_blocks(config.n_layers()).map_err(refuse)?;
        let surplus = weights.check(M::tensors(&config))?;
        let mut warnings: Vec<String> = left_unused(files, &surplus).into_iter().collect();
        let tokenizer = Tokenizer::load(files)?;
        tokenizer.check_end_token(files, config.vocab_size())?;
        let (fingerprint, rounded) = fingerprint::of_model(&weights, &config.function());
        weights.release();
        let base = BaseModel {
            revision: files.revision(),
            rounded: Some(rounded),
            tokenizer: Some(tokenizer.fingerprint()),
            chat_template: tokenizer.chat_template_fingerprint(),
            ..BaseModel::new(name, fingerprint)
        };
        let mut stop_ids: BTreeSet<u32> = M::stop_ids(&config).into_iter().collect();
        let generation = Generation::read(files, config.vocab_size())?;
        let repetition_penalty = generation.repetition_penalty;
        warnings.extend(generation.warning);
        stop_ids.extend(generation.stop_ids);
        stop_ids.extend(tokenizer.eos().map(|token| token.id));
        let (files, stop_ids) = (files.clone(), stop_ids.into_iter().collect());
        Ok(Self { files, config, tokenizer, base, stop_ids, repetition_penalty, warnings, head, weights })
    }

    /// Names and shapes of the tensors that the model will load.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.weights.unused()
    }

    /// The dtype of most numbers in the files.
    pub fn dtype(&self) -> Dtype {
        self.weights.dtype()
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of the wrong shape or dtype, or not finite: the error lists all of them.
    pub fn load<B: Kernels, M: Pretrained<B, Config = C>>(
        self,
        precision: Precision,
        device: &B::Device,
    ) -> Result<LoadedModel<B, M>, LoadError> {
        let Self {
            config,
            tokenizer,
            mut base,
            stop_ids,
            repetition_penalty,
            warnings,
            head,
            files,
            mut weights,
        } = self;
        base.quant = precision.quant.map(|quant| quant.name().into());
        let mut tensors = NamedTensors::default();
        let model = M::from_source(&config, &mut tensors.record(weights.on::<B>(precision, device)));
        weights.finish()?;
        Ok(LoadedModel {
            model,
            tensors,
            head,
            tokenizer,
            base,
            stop_ids,
            repetition_penalty,
            warnings,
            files,
        })
    }
}

impl<B: Backend, M> LoadedModel<B, M> {
    /// Greedy generation with the ends and the penalty that the model's files ask for.
    pub fn generate_config(&self) -> GenerateConfig {
        GenerateConfig::default()
            .with_stop_ids(self.stop_ids.clone())
            .with_repetition_penalty(self.repetition_penalty)
    }

    /// The model's `config.json`, read again.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config_json(&self) -> Result<Vec<u8>, FileError> {
        Ok(self.files.read(CONFIG)?.into_owned())
    }

    /// The fingerprint that version 0.1 stored in adapters of this model. Opens the files again.
    ///
    /// # Errors
    /// If a file is missing or damaged by now.
    pub fn earlier_fingerprint(&self) -> Result<String, FileError> {
        let weights = Weights::open(&self.files)?;
        let fingerprint = weights.earlier_fingerprint(&self.files.read(CONFIG)?);
        weights.release();
        Ok(fingerprint)
    }
}

impl<B: Kernels, M: Pretrained<B>> LoadedModel<B, M> {
    /// Opens and loads a model, see [`Checkpoint`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Checkpoint::load`].
    pub fn load(
        files: &ModelFiles,
        name: &str,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self, LoadError> {
        Checkpoint::open::<B, M>(files, name)?.load(precision, device)
    }
}

/// A warning about tensors that the model does not use, if there are any.
fn left_unused(files: &ModelFiles, names: &[String]) -> Option<String> {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    let place = files.place();
    (!names.is_empty()).then(|| format!("{place}: the model does not use these tensors: {shown}{more}"))
}

/// Why a folder has no configuration of a model, and what to do.
fn no_config(files: &ModelFiles) -> String {
    let names = files.names();
    let has = |name: &str| names.iter().any(|found| found == name);
    // The model of an adapter, by the keys of its own file.
    let base = |file: &str, keys: &[&str]| {
        let json = files.read_optional(file).ok().flatten()?;
        let json: Value = serde_json::from_slice(&json).ok()?;
        let value = keys.iter().try_fold(&json, |value, key| value.get(key))?;
        value.as_str().map(str::to_string)
    };
    let adapter = |of: &str, base: Option<String>| {
        let base = base.map_or("its base model".into(), |name| format!("its base model, {name},"));
        format!(
            "no such file; the folder is an adapter of {of}: give {base} as the model and this folder as the adapter"
        )
    };
    if has("adapter_config.json") {
        return adapter("PEFT", base("adapter_config.json", &["base_model_name_or_path"]));
    }
    if has(reft_core::adapter::CONFIG_FILE) {
        return adapter("reft", base(reft_core::adapter::CONFIG_FILE, &["base_model", "name"]));
    }
    if has("recipe.toml") {
        return "no such file; the folder is a run of reft: give its base model as the model and this folder as the adapter"
            .into();
    }
    if let Some(last) = names.iter().rfind(|name| name.starts_with("checkpoint-")) {
        return format!(
            "no such file; the folder has checkpoints of a trainer: give one of them, such as {last}"
        );
    }
    format!("no such file in the model's folder; found {}", files.listing())
}

/// What `generation_config.json` says, if there is one. As elsewhere, null is the absence of a key.
struct Generation {
    stop_ids: Vec<u32>,
    repetition_penalty: f64,
    /// A warning about settings that have an effect in transformers and none here.
    warning: Option<String>,
}

/// Settings of transformers that change which tokens are generated, also the most likely ones, and are not applied here.
const NOT_APPLIED: [&str; 20] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "constraints",
    "dola_layers",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "penalty_alpha",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
];

/// Whether a setting has no effect in transformers.
fn has_no_effect(key: &str, value: &Value) -> bool {
    let neutral = match key {
        "encoder_repetition_penalty" | "guidance_scale" | "num_beam_groups" | "num_beams" => 1.0,
        _ => 0.0,
    };
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(neutral) && !key.ends_with("_id"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Generation {
    fn read(files: &ModelFiles, vocab_size: usize) -> Result<Self, FileError> {
        const FILE: &str = "generation_config.json";
        let Some(json) = files.read_optional(FILE)? else {
            return Ok(Self { stop_ids: Vec::new(), repetition_penalty: 1.0, warning: None });
        };
        let read = json_object(&json).and_then(|values| {
            let mut keys = Keys::new(&values, "");
            let ids = keys.token_ids("eos_token_id", vocab_size);
            let repetition_penalty = keys.positive("repetition_penalty").unwrap_or(1.0);
            let stop_ids = ids.as_ref().map(TokenIds::as_slice).unwrap_or_default().to_vec();
            let value = |key: &&str| values.get(*key).filter(|value| !has_no_effect(key, value));
            let ignored: Vec<&str> = NOT_APPLIED.into_iter().filter(|key| value(key).is_some()).collect();
            let warning = (!ignored.is_empty()).then(|| {
                let (file, keys) = (files.path(FILE), ignored.join(", "));
                format!(
                    "{}: not applied here, so transformers may generate other texts: {keys}",
                    file.display()
                )
            });
            if keys.problems.is_empty() {
                Ok(Self { stop_ids, repetition_penalty, warning })
            } else {
                Err(keys.problems.join("; "))
            }
        });
        read.map_err(|reason| FileError::Invalid { path: files.path(FILE), reason })
    }
}

/// Finds a model by the path of its folder or by its name on the Hub, from which it is downloaded if necessary.
///
/// # Errors
/// If there is no such folder and the Hub does not have the model either.
pub fn find(name: &str, revision: Option<&str>) -> Result<ModelFiles, LoadError> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return Ok(ModelFiles::Folder(folder.into()));
    }
    if folder.exists() {
        let reason = "is a file; give the folder that holds it".into();
        return Err(FileError::Invalid { path: folder.into(), reason }.into());
    }
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    return Ok(ModelFiles::Folder(crate::hub::download(name, revision)?));
    #[cfg(not(all(feature = "hub", not(target_arch = "wasm32"))))]
    {
        let revision = revision.map_or(String::new(), |revision| format!(" ({revision})"));
        let reason = "no such folder; names on the Hugging Face Hub need the feature `hub`, which browsers do not have".into();
        Err(FileError::Invalid { path: format!("{name}{revision}").into(), reason }.into())
    }
}

/// Whether [`find`] would download a model, because there is no such folder and the cache does not have it.
pub fn needs_download(name: &str, revision: Option<&str>) -> bool {
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    {
        let hub = crate::hub::Hub::from_env();
        !Path::new(name).exists() && hub.offline.is_none() && !hub.has(name, revision.unwrap_or("main"))
    }
    #[cfg(not(all(feature = "hub", not(target_arch = "wasm32"))))]
    {
        let _ = (name, revision);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Llama;
    use burn_flex::Flex;
    use reft_core::files::write_tensors;
    use std::fs;

    const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 5, "tie_word_embeddings": true, "eos_token_id": 2}"#;
    const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}, "unk_token": "a"}}"#;

    /// Writes a small model and other files, which may replace its own.
    fn write_model(folder: &Path, files: &[(&str, &str)], extra: &[&str]) {
        let config = <Llama<Flex> as Pretrained<Flex>>::parse(LLAMA.as_bytes()).expect("valid");
        let shapes = <Llama<Flex> as Pretrained<Flex>>::tensors(&config);
        let shapes = shapes.chain(extra.iter().map(|name| (name.to_string(), vec![3])));
        let tensors = shapes.map(|(name, shape)| (name, (shape.clone(), vec![0.5; shape.iter().product()])));
        write_tensors(&folder.join("model.safetensors"), tensors.collect()).expect("written");
        for (name, text) in [("config.json", LLAMA), ("tokenizer.json", TOKENIZER)].iter().chain(files) {
            fs::write(folder.join(name), text).expect("written");
        }
    }

    fn open(files: &[(&str, &str)], extra: &[&str]) -> Result<LoadedModel<Flex, Llama<Flex>>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        write_model(folder.path(), files, extra);
        let loaded = LoadedModel::load(
            &ModelFiles::Folder(folder.path().into()),
            "model",
            Precision::default(),
            &Default::default(),
        );
        let shown = folder.path().display().to_string();
        let loaded = loaded.map_err(|error| error.to_string().replace(&shown, "folder"));
        loaded.map(|mut loaded| {
            loaded.warnings.iter_mut().for_each(|warning| *warning = warning.replace(&shown, "folder"));
            loaded
        })
    }

    #[test]
    fn settings_of_the_generation_are_those_of_the_files() {
        let settings = |json: &str| {
            let loaded = open(&[("generation_config.json", json)], &[]).expect("loaded");
            let config = loaded.generate_config();
            (config.stop_ids, config.repetition_penalty)
        };
        for null in ["{}", r#"{"eos_token_id": null, "repetition_penalty": null}"#] {
            assert_eq!(settings(null), (vec![2], 1.0), "{null}");
        }
        assert_eq!(settings(r#"{"eos_token_id": [3, null], "repetition_penalty": 1.3}"#), (vec![2, 3], 1.3));
        for (json, reason) in [
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty is 0, expected a number above 0"),
            (r#"{"repetition_penalty": "x"}"#, "repetition_penalty is \"x\", expected a number above 0"),
            ("", "the file is empty; copy or download it again"),
        ] {
            let error = open(&[("generation_config.json", json)], &[]).expect_err("refused");
            assert_eq!(error, format!("folder/generation_config.json: {reason}"));
        }
    }

    #[test]
    fn settings_of_the_generation_that_are_not_applied_are_a_warning() {
        let warnings = |json: &str| open(&[("generation_config.json", json)], &[]).expect("loaded").warnings;
        for neutral in [
            r#"{"num_beams": 1, "no_repeat_ngram_size": 0, "guidance_scale": null, "bad_words_ids": [], "min_length": 0}"#,
            r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "transformers_version": "4.45.1"}"#,
        ] {
            assert_eq!(warnings(neutral), [""; 0], "{neutral}");
        }
        assert_eq!(
            warnings(r#"{"no_repeat_ngram_size": 3, "num_beams": 4, "forced_eos_token_id": 0}"#),
            ["folder/generation_config.json: not applied here, so transformers may generate other texts: \
              forced_eos_token_id, no_repeat_ngram_size, num_beams"]
        );
    }

    #[test]
    fn a_configuration_that_is_no_json_is_named() {
        for (json, reason) in [
            ("", "the file is empty; copy or download it again"),
            ("\u{feff}{}", "the file starts with a byte order mark; save it as UTF-8 without one"),
            (
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "the file is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder",
            ),
            ("<html>", "the file is a web page, not the file itself; download it again"),
        ] {
            let error = open(&[("config.json", json)], &[]).expect_err("refused");
            assert_eq!(error, format!("folder/config.json: {reason}"));
        }
    }

    #[test]
    fn tensors_of_other_parts_are_a_warning() {
        let warnings = |extra: &[&str]| open(&[], extra).expect("loaded").warnings;
        assert_eq!(warnings(&[]), [""; 0]);
        assert_eq!(
            warnings(&["score.weight", "model.layers.1.mlp.up_proj.weight"]),
            ["folder: the model does not use these tensors: model.layers.1.mlp.up_proj.weight, score.weight"]
        );
        let names = ["a.0", "a.1", "a.2", "a.3", "a.4", "a.5", "a.6"];
        assert_eq!(
            warnings(&names),
            ["folder: the model does not use these tensors: a.0, a.1, a.2, a.3, a.4 and 2 more"]
        );
        // They are no part of what the model computes.
        let fingerprint = |extra: &[&str]| open(&[], extra).expect("loaded").base.fingerprint;
        assert_eq!(fingerprint(&["score.weight"]), fingerprint(&[]));
    }

    #[test]
    fn the_commit_of_a_model_is_recorded() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshot = folder.path().join("models--some--model/snapshots/0123abcd");
        fs::create_dir_all(&snapshot).expect("created");
        write_model(&snapshot, &[], &[]);
        let checkpoint = Checkpoint::open::<Flex, Llama<Flex>>(&ModelFiles::Folder(snapshot), "some/model");
        assert_eq!(checkpoint.expect("opened").base.revision.as_deref(), Some("0123abcd"));
    }

    #[test]
    fn a_folder_of_something_else_is_named() {
        for (files, reason) in [
            (
                &[("adapter_config.json", r#"{"base_model_name_or_path": "some/base"}"#)][..],
                "the folder is an adapter of PEFT: give its base model, some/base, as the model and this folder as the adapter",
            ),
            (
                &[("adapter_config.json", "{")],
                "the folder is an adapter of PEFT: give its base model as the model and this folder as the adapter",
            ),
            (
                &[("adapter.json", r#"{"base_model": {"name": "some/base"}}"#)],
                "the folder is an adapter of reft: give its base model, some/base, as the model and this folder as the adapter",
            ),
            (
                &[("recipe.toml", "")],
                "the folder is a run of reft: give its base model as the model and this folder as the adapter",
            ),
            (
                &[("checkpoint-1", ""), ("checkpoint-2", "")],
                "the folder has checkpoints of a trainer: give one of them, such as checkpoint-2",
            ),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            for (name, text) in files {
                fs::write(folder.path().join(name), text).expect("written");
            }
            let files = ModelFiles::Folder(folder.path().into());
            let error =
                Checkpoint::open::<Flex, Llama<Flex>>(&files, "model").expect_err("no model").to_string();
            let error = error.replace(&folder.path().display().to_string(), "folder");
            assert_eq!(error, format!("folder/config.json: no such file; {reason}"));
        }
    }
}
