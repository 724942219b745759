//! Model folders in Hugging Face's layout: `config.json`, `tokenizer.json`, and safetensors in one file or in shards.

#[cfg(not(target_arch = "wasm32"))]
use crate::hub::HubError;
use crate::{
    linear::Linear,
    llama::{self, Llama},
    precision::{Dtype, Precision},
    tokenizer::{Tokenizer, TokenizerError},
    tuned::NamedTensors,
};
use burn::tensor::{Tensor, TensorData, backend::Backend};
#[cfg(not(target_arch = "wasm32"))]
use memmap2::Mmap;
use reft_core::{BaseModel, HeadConfig, head::HeadValues};
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Where a model's files are.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder.
    Folder(PathBuf),
    /// Files compiled into the program: name and content.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A folder without weights.
    #[error(
        "{place}: no weights: expected model.safetensors or model.safetensors.index.json, found {found}; \
         other formats can be converted with transformers' save_pretrained"
    )]
    NoWeights {
        /// The folder.
        place: String,
        /// What is there.
        found: String,
    },
    /// `config.json` is not supported.
    #[error("config.json: {0}")]
    Config(String),
    /// A damaged file.
    #[error("{file}: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// Tensors that do not fit the configuration, all of them.
    #[error("{place}: the weights do not fit config.json:\n  {}", problems.join("\n  "))]
    Tensors {
        /// The folder.
        place: String,
        /// One line each.
        problems: Vec<String>,
    },
    /// The tokenizer cannot be loaded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model cannot be had by its name.
    #[cfg(not(target_arch = "wasm32"))]
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// A kind of model that can be loaded from a folder.
pub trait Pretrained<B: Backend>: Sized {
    /// Its `config.json`.
    type Config;

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that names every value that is missing or not supported.
    fn parse(json: &[u8]) -> Result<Self::Config, String>;

    /// Tells a checkpoint which of its tensors the model has no use for, and how names are written there.
    fn prepare(config: &Self::Config, weights: &mut Weights);

    /// Builds the model from any source of tensors, asked for by Hugging Face's names.
    fn from_source<S: TensorSource<B>>(config: &Self::Config, source: &mut S) -> Self;

    /// Token ids that end a text.
    fn stop_ids(config: &Self::Config) -> Vec<u32>;
}

/// A frozen model with everything that belongs to it.
#[derive(Debug)]
pub struct LoadedModel<B: Backend, M = Llama<B>> {
    /// The model.
    pub model: M,
    /// The model's tensors by Hugging Face's names; they share their memory with the model.
    pub tensors: NamedTensors<B>,
    /// The classification head that the checkpoint brings, where it has one.
    pub head: Option<HeadValues>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its name and fingerprint.
    pub base: BaseModel,
    /// Token ids that end a generated text.
    pub stop_ids: Vec<u32>,
}

/// A model's files, read but for the weights: enough to know what the model needs.
#[derive(Debug)]
pub struct Unloaded<C> {
    /// Its configuration.
    pub config: C,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its name and fingerprint.
    pub base: BaseModel,
    /// Token ids that end a generated text.
    pub stop_ids: Vec<u32>,
    head: Option<HeadValues>,
    weights: Weights,
}

impl<C> Unloaded<C> {
    /// Opens a model's files; `name` is what its adapters will remember it by.
    ///
    /// # Errors
    /// If a file is missing, damaged or not supported.
    pub fn open<B: Backend, M: Pretrained<B, Config = C>>(
        files: &ModelFiles,
        name: &str,
    ) -> Result<Self, LoadError> {
        let config_json = files.read("config.json")?;
        let config = M::parse(&config_json).map_err(LoadError::Config)?;
        let tokenizer = Tokenizer::load(files)?;
        let mut weights = Weights::open(files)?;
        let fingerprint = fingerprint(&config_json, &weights);
        weights.release();
        let base = BaseModel { name: name.into(), fingerprint, quant: None };
        let mut stop_ids: BTreeSet<u32> = M::stop_ids(&config).into_iter().collect();
        if let Some(json) = files.read_optional("generation_config.json")? {
            let value: Value = serde_json::from_slice(&json).unwrap_or_default();
            stop_ids.extend(llama::ids(value.get("eos_token_id")));
        }
        stop_ids.extend(tokenizer.eos().map(|token| token.id));
        M::prepare(&config, &mut weights);
        let head = weights.head();
        Ok(Self { config, tokenizer, base, stop_ids: stop_ids.into_iter().collect(), head, weights })
    }

    /// Names and shapes of the tensors that the model has a use for.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.weights.used().map(|(name, info)| (name, info.shape.as_slice()))
    }

    /// The type that most of the numbers have in the files.
    pub fn dtype(&self) -> Dtype {
        let largest = self.weights.used().max_by_key(|(_, info)| info.shape.iter().product::<usize>());
        largest.and_then(|(_, info)| dtype(info)).unwrap_or_default()
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of another shape, or not finite: the error lists all of them.
    pub fn load<B: Backend, M: Pretrained<B, Config = C>>(
        self,
        precision: Precision,
        device: &B::Device,
    ) -> Result<LoadedModel<B, M>, LoadError> {
        let Self { config, tokenizer, mut base, stop_ids, head, mut weights } = self;
        base.quant = precision.quant.map(|quant| quant.name().into());
        let mut tensors = NamedTensors::default();
        let model = M::from_source(&config, &mut tensors.record(weights.on::<B>(precision, device)));
        weights.finish()?;
        Ok(LoadedModel { model, tensors, head, tokenizer, base, stop_ids })
    }
}

impl<B: Backend, M: Pretrained<B>> LoadedModel<B, M> {
    /// Opens and loads a model at once, see [`Unloaded`].
    ///
    /// # Errors
    /// As [`Unloaded::open`] and [`Unloaded::load`].
    pub fn load(
        files: &ModelFiles,
        name: &str,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self, LoadError> {
        Unloaded::open::<B, M>(files, name)?.load(precision, device)
    }
}

impl ModelFiles {
    /// How messages name the place.
    pub fn place(&self) -> String {
        match self {
            ModelFiles::Folder(folder) => folder.display().to_string(),
            ModelFiles::Embedded(_) => "embedded model".into(),
        }
    }

    fn file_name(&self, name: &str) -> String {
        match self {
            ModelFiles::Folder(folder) => folder.join(name).display().to_string(),
            ModelFiles::Embedded(_) => format!("embedded {name}"),
        }
    }

    /// The content of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, LoadError> {
        self.read_optional(name)?.ok_or_else(|| LoadError::Io {
            file: self.file_name(name),
            source: io::Error::new(io::ErrorKind::NotFound, "no such file in the model's folder"),
        })
    }

    /// The content of a file, if it exists.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub fn read_optional(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        match self {
            ModelFiles::Folder(folder) => match fs::read(folder.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(LoadError::Io { file: self.file_name(name), source }),
            },
            ModelFiles::Embedded(files) => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
        }
    }

    fn listing(&self) -> String {
        let names: Vec<String> = match self {
            ModelFiles::Folder(folder) => match fs::read_dir(folder) {
                Ok(entries) => {
                    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
                }
                Err(_) => return "no such folder".into(),
            },
            ModelFiles::Embedded(files) => files.iter().map(|(name, _)| name.to_string()).collect(),
        };
        if names.is_empty() { "an empty folder".into() } else { names.join(", ") }
    }
}

/// The bytes of a safetensors file.
#[derive(Debug)]
enum Bytes {
    #[cfg(not(target_arch = "wasm32"))]
    Mapped(Mmap),
    #[cfg(target_arch = "wasm32")]
    Read(Vec<u8>),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Bytes::Mapped(map) => map,
            #[cfg(target_arch = "wasm32")]
            Bytes::Read(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Tells the system that these mapped pages are no longer needed, so that a model's file and its tensors
    /// are never both in memory.
    fn release(&self, _range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            const PAGE: usize = 4096;
            let start = _range.start.div_ceil(PAGE) * PAGE;
            if start < _range.end {
                // Sound for a read-only mapping of a file: dropped pages are read again if touched again.
                let advice = memmap2::UncheckedAdvice::DontNeed;
                let _ = unsafe { map.unchecked_advise_range(advice, start, _range.end - start) };
            }
        }
    }
}

/// Gives a model its tensors, by name.
pub trait TensorSource<B: Backend> {
    /// The tensor of this name and shape.
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D>;

    /// The matrix of a linear map, `[d_out, d_in]`, which may be quantised.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        self.take(name, shape)
    }

    /// The linear map of this name and shape `[d_out, d_in]`.
    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Linear<B> {
        Linear {
            weight: self.matrix(&format!("{name}.weight"), shape),
            bias: bias.then(|| self.take(&format!("{name}.bias"), [shape[0]])),
            lora: None,
        }
    }
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Bytes,
    /// Where tensor data begin.
    data_start: usize,
    metadata: Metadata,
}

/// The tensors of a checkpoint, memory-mapped, taken out one by one.
///
/// Everything that does not fit is remembered; [`finish`](Self::finish) reports it at once.
#[derive(Debug)]
pub struct Weights {
    place: String,
    shards: Vec<Shard>,
    /// Tensor, by the name that the model asks for → shard, and the name in that file.
    index: BTreeMap<String, (usize, String)>,
    unused: BTreeSet<String>,
    problems: Vec<String>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If there are no weights, or a file is missing or damaged.
    pub fn open(files: &ModelFiles) -> Result<Self, LoadError> {
        const SINGLE: &str = "model.safetensors";
        const INDEX: &str = "model.safetensors.index.json";
        let mut problems = Vec::new();
        let mut promised = BTreeMap::new();
        let shard_names: Vec<String> = if let Some(json) = files.read_optional(INDEX)? {
            promised = weight_map(&json)
                .map_err(|reason| LoadError::Damaged { file: files.file_name(INDEX), reason })?;
            promised.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
        } else {
            vec![SINGLE.to_string()]
        };
        let mut shards = Vec::new();
        for name in shard_names {
            match open_bytes(files, &name)? {
                Some(bytes) => shards.push(open_shard(files.file_name(&name), name, bytes)?),
                None if name == SINGLE && promised.is_empty() => {
                    return Err(LoadError::NoWeights { place: files.place(), found: files.listing() });
                }
                None => problems.push(format!("missing file: {name}, which {INDEX} names")),
            }
        }
        let mut index = BTreeMap::new();
        for (shard_idx, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().keys() {
                index.insert(name.clone(), (shard_idx, name.clone()));
            }
        }
        for (tensor, file) in &promised {
            let shard = shards.iter().find(|shard| shard.name == *file);
            if shard.is_some_and(|shard| shard.metadata.info(tensor).is_none()) {
                problems.push(format!("missing: {tensor} in {file}, where {INDEX} says it is"));
            }
        }
        if !problems.is_empty() {
            return Err(LoadError::Tensors { place: files.place(), problems });
        }
        let unused = index.keys().cloned().collect();
        Ok(Self { place: files.place(), shards, index, unused, problems })
    }

    fn info(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let (shard_idx, name) = self.index.get(name)?;
        let shard = &self.shards[*shard_idx];
        Some((shard, shard.metadata.info(name)?))
    }

    /// Calls tensors by other names than the file does.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let rename = |old: &String| name(old);
        self.unused = self.unused.iter().map(rename).collect();
        self.index = std::mem::take(&mut self.index).into_iter().map(|(old, at)| (name(&old), at)).collect();
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The classification head, `classifier.{dense, out_proj}.{weight, bias}`, taken out where it is whole.
    fn head(&mut self) -> Option<HeadValues> {
        let shape = self.info("classifier.out_proj.weight")?.1.shape.clone();
        let [outputs, hidden_size] = shape[..] else { return None };
        let config = HeadConfig { hidden_size, outputs, input_dropout: 0.0, inner_dropout: 0.0 };
        let names = config.tensors().map(|(name, shape)| (format!("classifier.{name}"), shape));
        let values: Result<Vec<Vec<f32>>, String> =
            names.iter().map(|(name, shape)| self.values(name, shape)).collect();
        let [a, b, c, d] = <[Vec<f32>; 4]>::try_from(values.ok()?).ok()?;
        self.ignore(|name| names.iter().any(|(head, _)| head == name));
        Some(HeadValues::from_list([a, b, c, d]))
    }

    /// Does not report unused tensors of these names.
    pub fn ignore(&mut self, names: impl Fn(&str) -> bool) {
        self.unused.retain(|name| !names(name));
    }

    /// Gives back the memory of pages that were looked at.
    fn release(&self) {
        for shard in &self.shards {
            shard.bytes.release(0..shard.bytes.get().len());
        }
    }

    /// The tensors that are not ignored.
    fn used(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.unused.iter().filter_map(|name| Some((name.as_str(), self.info(name)?.1)))
    }

    /// The tensors on a device.
    pub fn on<'a, B: Backend>(
        &'a mut self,
        precision: Precision,
        device: &'a B::Device,
    ) -> impl TensorSource<B> + 'a {
        OnDevice { weights: self, precision, device }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let (shard, info) = self.info(name).ok_or_else(|| format!("missing: {name} {shape:?}"))?;
        if info.shape != shape {
            return Err(format!("{name}: shape {:?}, expected {shape:?}", info.shape));
        }
        let (start, end) = (shard.data_start + info.data_offsets.0, shard.data_start + info.data_offsets.1);
        let bytes = &shard.bytes.get()[start..end];
        let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let values: Vec<f32> = match dtype(info) {
            Some(Dtype::F32) => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Some(Dtype::Bf16) => {
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(half(b)) << 16)).collect()
            }
            Some(Dtype::F16) => {
                bytes.chunks_exact(2).map(|b| burn::tensor::f16::from_bits(half(b)).to_f32()).collect()
            }
            None => return Err(format!("{name}: dtype {:?}, expected F32, F16 or BF16", info.dtype)),
        };
        shard.bytes.release(start..end);
        match values.iter().filter(|x| !x.is_finite()).count() {
            0 => Ok(values),
            n => Err(format!("{name}: {n} values are NaN or infinite")),
        }
    }

    /// Reports everything that did not fit.
    ///
    /// # Errors
    /// If anything is missing, unexpected, of another shape or dtype, or not finite.
    pub fn finish(mut self) -> Result<(), LoadError> {
        let problems = &mut self.problems;
        problems.extend(self.unused.iter().map(|name| format!("unexpected: {name}")));
        const SHOWN: usize = 20;
        if problems.len() > SHOWN {
            let more = problems.len() - SHOWN;
            problems.truncate(SHOWN);
            problems.push(format!("and {more} more"));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(LoadError::Tensors { place: self.place, problems: self.problems })
        }
    }
}

struct OnDevice<'a, B: Backend> {
    weights: &'a mut Weights,
    precision: Precision,
    device: &'a B::Device,
}

impl<B: Backend> OnDevice<'_, B> {
    fn hold<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        hold: impl FnOnce(Vec<f32>, Precision, &B::Device) -> Result<Tensor<B, D>, String>,
    ) -> Tensor<B, D> {
        self.weights.unused.remove(name);
        let values = self.weights.values(name, &shape);
        values.and_then(|values| hold(values, self.precision, self.device)).unwrap_or_else(|problem| {
            self.weights.problems.push(problem);
            // A scalar stands in, so that a wrong configuration cannot ask for absurd memory.
            Tensor::zeros([1; D], self.device)
        })
    }
}

impl<B: Backend> TensorSource<B> for OnDevice<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        self.hold(name, shape, |values, Precision { dtype, .. }, device| {
            let too_large = values.iter().filter(|x| dtype == Dtype::F16 && x.abs() > 65504.0).count();
            if too_large > 0 {
                return Err(format!("{name}: {too_large} values do not fit f16; use dtype bf16 or f32"));
            }
            let data = TensorData::new(values, shape).convert_dtype(dtype.burn());
            Ok(Tensor::from_data(data, (device, dtype.burn())))
        })
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        match self.precision.quant_of(name, &shape) {
            Some(quant) => {
                self.hold(name, shape, |values, _, device| Ok(quant.hold::<B>(&values, shape, device)))
            }
            None => self.take(name, shape),
        }
    }
}

/// The type of a file's tensor, if it is one that models are held in.
fn dtype(info: &TensorInfo) -> Option<Dtype> {
    match info.dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

fn weight_map(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let value: Value = serde_json::from_slice(json).map_err(|e| format!("invalid JSON: {e}"))?;
    let map = value.get("weight_map").ok_or("has no weight_map")?;
    let map: BTreeMap<String, String> =
        serde_json::from_value(map.clone()).map_err(|e| format!("weight_map: {e}"))?;
    // Shards lie beside the index; anything else is not a model's folder.
    match map.values().find(|file| file.contains(['/', '\\']) || file.starts_with("..")) {
        Some(file) => Err(format!("weight_map names {file:?}, expected a file beside the index")),
        None if map.is_empty() => Err("weight_map is empty".into()),
        None => Ok(map),
    }
}

fn open_bytes(files: &ModelFiles, name: &str) -> Result<Option<Bytes>, LoadError> {
    match files {
        ModelFiles::Folder(folder) => {
            let io_error = |source| LoadError::Io { file: files.file_name(name), source };
            let file = match File::open(folder.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(io_error(source)),
            };
            if file.metadata().map_err(io_error)?.len() == 0 {
                return Ok(Some(Bytes::Static(&[])));
            }
            #[cfg(not(target_arch = "wasm32"))]
            // Sound as long as nobody truncates the file while it is read, which no format protects from.
            let bytes = Bytes::Mapped(unsafe { Mmap::map(&file) }.map_err(io_error)?);
            #[cfg(target_arch = "wasm32")]
            let bytes = Bytes::Read(fs::read(folder.join(name)).map_err(io_error)?);
            Ok(Some(bytes))
        }
        ModelFiles::Embedded(embedded) => {
            Ok(embedded.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Bytes::Static(bytes)))
        }
    }
}

fn open_shard(file: String, name: String, bytes: Bytes) -> Result<Shard, LoadError> {
    let damaged = |reason: String| LoadError::Damaged { file: file.clone(), reason };
    let (header, metadata) = SafeTensors::read_metadata(bytes.get())
        .map_err(|error| damaged(format!("not a complete safetensors file: {error}; download it again")))?;
    let data_start = header + 8;
    let expected = data_start + metadata.data_len();
    let found = bytes.get().len();
    if found != expected {
        return Err(damaged(format!("holds {found} bytes, expected {expected}; download it again")));
    }
    Ok(Shard { name, bytes, data_start, metadata })
}

/// Identifies a model: a hash of its configuration, of every tensor's name, dtype and shape, and of samples of its
/// values.
fn fingerprint(config_json: &[u8], weights: &Weights) -> String {
    // Keys that say nothing of the function that the model computes.
    const VOLATILE: [&str; 5] =
        ["transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"];
    const SAMPLES: usize = 16;
    const SAMPLE_BYTES: usize = 64;
    let mut hash = Sha256::new();
    let config: BTreeMap<String, Value> = serde_json::from_slice(config_json).unwrap_or_default();
    for (key, value) in config.iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str())) {
        hash.update(format!("{key}={value}\n"));
    }
    for name in weights.index.keys() {
        let Some((shard, info)) = weights.info(name) else { continue };
        hash.update(format!("{name} {:?} {:?}\n", info.dtype, info.shape));
        let (start, end) = info.data_offsets;
        let data = &shard.bytes.get()[shard.data_start + start..shard.data_start + end];
        for sample in 0..SAMPLES {
            let at = data.len().saturating_sub(SAMPLE_BYTES) * sample / (SAMPLES - 1);
            hash.update(&data[at..(at + SAMPLE_BYTES).min(data.len())]);
        }
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Finds a model by a folder's path or by its name on the hub.
///
/// # Errors
/// If there is no such folder and the hub does not have it either.
pub fn find(name: &str, revision: Option<&str>) -> Result<ModelFiles, LoadError> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return Ok(ModelFiles::Folder(folder.into()));
    }
    #[cfg(not(target_arch = "wasm32"))]
    return Ok(ModelFiles::Folder(crate::hub::download(name, revision)?));
    #[cfg(target_arch = "wasm32")]
    Err(LoadError::Io {
        file: format!("{name}{}", revision.map_or(String::new(), |revision| format!(" ({revision})"))),
        source: io::Error::new(io::ErrorKind::NotFound, "no such folder, and no hub on this platform"),
    })
}
