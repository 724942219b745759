//! Models in Hugging Face's layout: `config.json`, `tokenizer.json`, and safetensors in one file or in shards.

#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
use crate::hub::HubError;
use crate::{
    files::{ModelFiles, TokenIds},
    fingerprint,
    keys::{Keys, json_object},
    precision::{Dtype, Precision},
    quantized,
    source::{ModelConfig, NamedTensors, Pretrained},
    tokenizer::{Tokenizer, TokenizerError},
    weights::Weights,
};
use burn::tensor::backend::Backend;
use reft_core::{BaseModel, FileError, head::HeadValues};
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
        let config_json = files.read(CONFIG)?;
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
        weights.check(M::tensors(&config))?;
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
        stop_ids.extend(generation_stop_ids(files, config.vocab_size())?);
        stop_ids.extend(tokenizer.eos().map(|token| token.id));
        let (files, stop_ids) = (files.clone(), stop_ids.into_iter().collect());
        Ok(Self { files, config, tokenizer, base, stop_ids, head, weights })
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
    pub fn load<B: Backend, M: Pretrained<B, Config = C>>(
        self,
        precision: Precision,
        device: &B::Device,
    ) -> Result<LoadedModel<B, M>, LoadError> {
        let Self { config, tokenizer, mut base, stop_ids, head, files, mut weights } = self;
        base.quant = precision.quant.map(|quant| quant.name().into());
        let mut tensors = NamedTensors::default();
        let model = M::from_source(&config, &mut tensors.record(weights.on::<B>(precision, device)));
        weights.finish()?;
        Ok(LoadedModel { model, tensors, head, tokenizer, base, stop_ids, files })
    }
}

impl<B: Backend, M> LoadedModel<B, M> {
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

impl<B: Backend, M: Pretrained<B>> LoadedModel<B, M> {
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

/// The ids that end a text, from `generation_config.json`, if there is one.
fn generation_stop_ids(files: &ModelFiles, vocab_size: usize) -> Result<Vec<u32>, FileError> {
    const GENERATION: &str = "generation_config.json";
    let Some(json) = files.read_optional(GENERATION)? else { return Ok(Vec::new()) };
    let ids = json_object(&json).and_then(|values| {
        let mut keys = Keys::new(&values, "");
        let ids = keys.token_ids("eos_token_id", vocab_size);
        if keys.problems.is_empty() { Ok(ids) } else { Err(keys.problems.join("; ")) }
    });
    match ids {
        Ok(ids) => Ok(ids.as_ref().map(TokenIds::as_slice).unwrap_or_default().to_vec()),
        Err(reason) => Err(FileError::Invalid { path: files.path(GENERATION), reason }),
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
        !Path::new(name).exists() && !hub.offline && !hub.has(name, revision.unwrap_or("main"))
    }
    #[cfg(not(all(feature = "hub", not(target_arch = "wasm32"))))]
    {
        let _ = (name, revision);
        false
    }
}
