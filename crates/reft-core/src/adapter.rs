//! An adapter on disk: `adapter.json` and `adapter.safetensors`.
//!
//! | tensor, below `layers.{layer}.{component}.{part}.` | shape | methods |
//! |---|---|---|
//! | `weight` | `[r, d]` | those with `W` |
//! | `bias` | `[r]` | all |
//! | `reflectors`, `signs` | `[d, r]`, `[r]` | those with an orthonormal `R` (see [`Orthonormal`](crate::Orthonormal)) |
//! | `projection` | `[r, d]` | the others |
//!
//! A classification head is stored beside them as `classifier.{dense, out_proj}.{weight, bias}`.
//!
//! The parameter of `R` is saved rather than `R` itself, so a loaded adapter is the same edit bit for bit and training
//! can continue exactly.
//!
//! `adapter.json` also has room for [`Metadata`]: keys that this crate does not interpret, such as the prompt
//! template of a language model or the labels of a classifier.

use crate::{
    files::{
        FileError, StrictTensors, TensorList, check_json_text, plain_words, write_atomic, write_tensors,
    },
    head::{Head, HeadConfig, HeadValues},
    hook::{Hook, Place},
    intervention::{Activation, InterventionError, Method},
    position::{Part, Positions},
    reft::{Reft, ReftConfig},
    saved,
    site::Site,
};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The version of the adapter format that this crate writes.
pub const FORMAT_VERSION: u32 = 1;
/// The file of the configuration and the metadata.
pub const CONFIG_FILE: &str = "adapter.json";
const TENSOR_FILE: &str = "adapter.safetensors";
const HEAD_PREFIX: &str = "classifier.";

/// Keys of `adapter.json` that belong to other crates.
pub type Metadata = serde_json::Map<String, Value>;

/// The model that an adapter was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Folder or Hub name, as given by the user.
    pub name: String,
    /// The commit of a model from the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Identifies what the model computes.
    pub fingerprint: String,
    /// The same of copies of the model in half precision; absent in adapters of version 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<RoundedFingerprints>,
    /// Identifies how the tokenizer encodes texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Identifies the chat template, if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// How the weights were held if they were quantized, in the words of the crate that loaded them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
}

/// The fingerprints that copies of a model in half precision have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundedFingerprints {
    /// That of the weights rounded to bf16.
    pub bf16: String,
    /// That of the weights rounded to f16.
    pub f16: String,
}

impl BaseModel {
    /// A model that is not quantized, with nothing but a fingerprint to tell it from others.
    pub fn new(name: impl Into<String>, fingerprint: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            revision: None,
            fingerprint: fingerprint.into(),
            rounded: None,
            tokenizer: None,
            chat_template: None,
            quant: None,
        }
    }
}

/// The content of `adapter.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the library that wrote the adapter.
    pub library_version: String,
    /// The model that it was trained on.
    pub base_model: BaseModel,
    /// The configuration of a classification head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadConfig>,
    /// The configuration of the interventions.
    #[serde(flatten)]
    pub reft: ReftConfig,
    /// All other keys.
    #[serde(flatten)]
    pub metadata: Metadata,
}

/// Trained interventions, with an optional head, and what is needed to use them again.
#[derive(Debug, Clone)]
pub struct Adapter<B: Backend> {
    /// The interventions.
    pub reft: Reft<B>,
    /// A classification head.
    pub head: Option<Head<B>>,
    /// The model that they were trained on.
    pub base_model: BaseModel,
    /// Keys of other crates, see the [module](self).
    pub metadata: Metadata,
}

/// An adapter that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// One of its files.
    #[error(transparent)]
    File(#[from] FileError),
    /// A newer format.
    #[error("{}: format version {found} is newer than this version supports ({FORMAT_VERSION}); update reft", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The values do not form an intervention.
    #[error("{}: {reason}", path.display())]
    Values {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: InterventionError,
    },
}

impl<B: Backend> Adapter<B> {
    /// An adapter without a head or metadata.
    pub fn new(reft: Reft<B>, base_model: BaseModel) -> Self {
        Self { reft, head: None, base_model, metadata: Metadata::new() }
    }

    /// Adds the keys of a struct or map to the metadata.
    ///
    /// # Panics
    /// If `metadata` does not serialize to a JSON object.
    pub fn with_metadata(mut self, metadata: &impl Serialize) -> Self {
        match serde_json::to_value(metadata) {
            Ok(Value::Object(keys)) => self.metadata.extend(keys),
            _ => panic!("adapter metadata must serialize to a JSON object"),
        }
        self
    }

    /// Saves the adapter to a folder, which is created if it does not exist.
    ///
    /// # Errors
    /// If a file cannot be written, or the metadata have a key of the configuration. Each file is replaced atomically.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        let path = folder.join(CONFIG_FILE);
        let mut config = AdapterConfig {
            format_version: FORMAT_VERSION,
            library_version: env!("CARGO_PKG_VERSION").into(),
            base_model: self.base_model.clone(),
            head: self.head.as_ref().map(|head| *head.config()),
            reft: self.reft.config().clone(),
            metadata: Metadata::new(),
        };
        let own = serde_json::to_value(&config).expect("plain data serializes");
        if let Some(key) = self.metadata.keys().find(|key| own.get(key.as_str()).is_some() || *key == "head")
        {
            let reason = format!("the metadata key {key:?} belongs to the configuration of the adapter");
            return Err(FileError::Invalid { path, reason }.into());
        }
        config.metadata = self.metadata.clone();
        let json = serde_json::to_string_pretty(&config).expect("plain data serializes") + "\n";
        fs::create_dir_all(folder).map_err(FileError::io(folder))?;
        write_tensors(&folder.join(TENSOR_FILE), self.tensors())?;
        Ok(write_atomic(&path, json.as_bytes()).map_err(FileError::io(&path))?)
    }

    /// Name → (shape, values) of every tensor.
    fn tensors(&self) -> TensorList {
        let mut out = TensorList::new();
        for edit in self.reft.edits() {
            saved::put(edit.intervention, &prefix(edit.site, edit.part), &mut out);
        }
        if let Some(head) = &self.head {
            for (name, shape, values) in head.tensors() {
                out.insert(format!("{HEAD_PREFIX}{name}"), (shape, values));
            }
        }
        out
    }

    /// Loads an adapter.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if any tensor is missing, unexpected, or has the wrong shape or dtype: the
    /// error lists all of them.
    pub fn load(folder: &Path, device: &B::Device) -> Result<Self, AdapterError> {
        let AdapterConfig { base_model, head, reft: config, metadata, .. } = read_config(folder)?;
        let path = folder.join(TENSOR_FILE);
        let bytes = fs::read(&path).map_err(FileError::io(&path))?;
        let mut tensors = StrictTensors::new(&path, &bytes)?;
        let of_edits = config.places().into_iter();
        let of_edits =
            of_edits.flat_map(|(site, part)| saved::shapes(&config.intervention(), &prefix(site, part)));
        let of_head = head.iter().flat_map(HeadConfig::tensors);
        let of_head = of_head.map(|(name, shape)| (format!("{HEAD_PREFIX}{name}"), shape));
        tensors.expect(of_edits.chain(of_head))?;
        let reft = config
            .build(|site, part| {
                saved::take(&config.intervention(), &prefix(site, part), &mut tensors, device)
            })
            .map_err(|reason| AdapterError::Values { path: path.clone(), reason })?;
        let head = head.map(|config| {
            let values =
                config.tensors().map(|(name, shape)| tensors.take(&format!("{HEAD_PREFIX}{name}"), &shape));
            config.with_values(HeadValues::from_list(values), device)
        });
        tensors.finish()?;
        Ok(Adapter { reft, head, base_model, metadata })
    }
}

impl<B: Backend> Hook<B> for Adapter<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.reft.edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        self.reft.sites()
    }
}

impl AdapterConfig {
    /// Checks what parses but makes no sense.
    fn check(&self) -> Result<(), String> {
        self.reft.check().map_err(|error| error.to_string())?;
        let Some(head) = &self.head else { return Ok(()) };
        for (key, rate) in [("input_dropout", head.input_dropout), ("inner_dropout", head.inner_dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(format!(
                    "head.{key} is {rate}, expected a probability of at least 0 and below 1"
                ));
            }
        }
        if head.outputs == 0 {
            return Err("head.outputs is 0, expected at least 1".into());
        }
        let (found, expected) = (head.hidden_size, self.reft.hidden_size);
        if found != expected {
            return Err(format!("head.hidden_size is {found}, expected hidden_size, {expected}"));
        }
        Ok(())
    }
}

/// Reads [`Metadata`] as a type of the crate that wrote it; `folder` names the adapter in errors.
///
/// # Errors
/// If the metadata do not have that type's keys.
pub fn parse_metadata<T: DeserializeOwned>(metadata: &Metadata, folder: &Path) -> Result<T, FileError> {
    typed(metadata.clone()).map_err(|reason| FileError::Invalid { path: folder.join(CONFIG_FILE), reason })
}

/// Types an object; an error names the key whose value is to blame, which serde does not.
fn typed<T: DeserializeOwned>(object: Metadata) -> Result<T, String> {
    let parse = |object: Metadata| serde_json::from_value::<T>(Value::Object(object));
    let error = match parse(object.clone()) {
        Ok(value) => return Ok(value),
        Err(error) => error.to_string(),
    };
    // Without the value that is to blame there is no error, or another one.
    let is_to_blame = |key: &&String| {
        let mut rest = object.clone();
        rest.remove(key.as_str());
        parse(rest).map_err(|other| other.to_string()).err().is_none_or(|other| other != error)
    };
    Err(match object.keys().find(is_to_blame) {
        Some(key) => format!("{key}: {}", plain_words(&error)),
        None => plain_words(&error),
    })
}

/// Reads `adapter.json` alone.
///
/// # Errors
/// If it is missing, damaged or of a newer format.
pub fn read_config(folder: &Path) -> Result<AdapterConfig, AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let json = fs::read(&path).map_err(FileError::io(&path))?;
    check_json_text(&json).map_err(|reason| FileError::Invalid { path: path.clone(), reason })?;
    let invalid = |reason: String| FileError::Invalid {
        path: path.clone(),
        reason: format!("not an adapter of this library: {reason}"),
    };
    let object: Metadata =
        serde_json::from_slice(&json).map_err(|error| invalid(plain_words(&error.to_string())))?;
    // The version is checked first: a newer format may lack keys that this version expects.
    let version = object.get("format_version").and_then(Value::as_u64);
    if let Some(found) = version.filter(|version| *version > u64::from(FORMAT_VERSION)) {
        return Err(AdapterError::Version { path, found });
    }
    check_types(&object).map_err(invalid)?;
    let config: AdapterConfig = serde_json::from_value(Value::Object(object))
        .map_err(|error| invalid(plain_words(&error.to_string())))?;
    config.check().map_err(|reason| FileError::Invalid { path: path.clone(), reason })?;
    Ok(config)
}

/// Checks each value of `adapter.json` by itself, so that an error names its key, which serde does not.
fn check_types(object: &Metadata) -> Result<(), String> {
    fn check<T: DeserializeOwned>(value: &Value) -> Result<(), serde_json::Error> {
        T::deserialize(value).map(drop)
    }
    type Check = fn(&Value) -> Result<(), serde_json::Error>;
    let keys: [(&str, Check); 12] = [
        ("format_version", check::<u32>),
        ("library_version", check::<String>),
        ("base_model", check::<BaseModel>),
        ("head", check::<Option<HeadConfig>>),
        ("method", check::<Method>),
        ("rank", check::<usize>),
        ("hidden_size", check::<usize>),
        ("sites", check::<Vec<Site>>),
        ("positions", check::<Positions>),
        ("tied", check::<bool>),
        ("activation", check::<Activation>),
        ("dropout", check::<f64>),
    ];
    for (key, check) in keys {
        if let Some(value) = object.get(key) {
            check(value).map_err(|error| format!("{key}: {}", plain_words(&error.to_string())))?;
        }
    }
    Ok(())
}

/// What precedes the names of an intervention's tensors.
fn prefix(site: Site, part: Part) -> String {
    format!("{site}.{}.", part.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::Method;
    use burn_flex::Flex;

    /// Metadata as another crate would type them.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Notes {
        template: String,
        labels: Vec<String>,
    }

    fn notes() -> Notes {
        Notes { template: "alpaca".into(), labels: vec!["no".into(), "yes".into()] }
    }

    fn adapter(method: Method) -> Adapter<Flex> {
        let config = ReftConfig::new(12, [0, 4])
            .with_method(method)
            .with_rank(3)
            .with_positions("f2+l1".parse().expect("valid"))
            .with_tied(false)
            .with_dropout(0.05);
        let base_model = BaseModel::new("some/model", "abc");
        let reft = config.with_seed(4).init(&Default::default());
        Adapter::new(reft, base_model).with_metadata(&notes())
    }

    fn load(folder: &Path) -> Result<Adapter<Flex>, AdapterError> {
        Adapter::load(folder, &Default::default())
    }

    /// The message of the error, with the folder's name replaced.
    fn refusal(folder: &Path) -> String {
        let message = load(folder).expect_err("must be refused").to_string();
        message.replace(&folder.display().to_string(), "folder")
    }

    #[test]
    fn head_and_metadata_survive_a_round_trip() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = HeadConfig { hidden_size: 12, outputs: 2, input_dropout: 0.1, inner_dropout: 0.1 };
        let mut saved = adapter(Method::Loreft);
        saved.head = Some(config.init(1, &Default::default()));
        saved.save(folder.path()).expect("saved");
        let loaded = load(folder.path()).expect("loaded");
        let values = |adapter: &Adapter<Flex>| adapter.head.as_ref().map(|head| head.values());
        assert_eq!(values(&loaded), values(&saved));
        assert_eq!(parse_metadata::<Notes>(&loaded.metadata, folder.path()).expect("typed"), notes());
        assert_eq!(read_config(folder.path()).expect("read").metadata, saved.metadata);
    }

    #[test]
    fn a_loaded_adapter_is_the_same_edit_bit_for_bit() {
        for method in [Method::Loreft, Method::Direft, Method::Consreft] {
            let folder = tempfile::tempdir().expect("a folder");
            let saved = adapter(method);
            saved.save(folder.path()).expect("saved");
            let loaded = load(folder.path()).expect("loaded");
            assert_eq!(loaded.reft.config(), saved.reft.config());
            assert_eq!((&loaded.base_model, &loaded.metadata), (&saved.base_model, &saved.metadata));
            for (a, b) in loaded.reft.edits().zip(saved.reft.edits()) {
                assert_eq!(a.intervention.values(), b.intervention.values());
            }
        }
    }

    #[test]
    fn all_mismatches_are_listed_in_one_error() {
        let folder = tempfile::tempdir().expect("a folder");
        adapter(Method::Consreft).save(folder.path()).expect("saved");
        let file = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text.replace("\"layer\": 4", "\"layer\": 5")).expect("written");
        assert_eq!(
            refusal(folder.path()),
            "folder/adapter.safetensors: the tensors do not match the configuration:\n  \
             missing: layers.5.block_output.prefix.bias [3]\n  \
             missing: layers.5.block_output.prefix.reflectors [12, 3]\n  \
             missing: layers.5.block_output.prefix.signs [3]\n  \
             missing: layers.5.block_output.suffix.bias [3]\n  \
             missing: layers.5.block_output.suffix.reflectors [12, 3]\n  \
             missing: layers.5.block_output.suffix.signs [3]\n  \
             unexpected: layers.4.block_output.prefix.bias\n  \
             unexpected: layers.4.block_output.prefix.reflectors\n  \
             unexpected: layers.4.block_output.prefix.signs\n  \
             unexpected: layers.4.block_output.suffix.bias\n  \
             unexpected: layers.4.block_output.suffix.reflectors\n  \
             unexpected: layers.4.block_output.suffix.signs"
        );
        fs::write(&file, text.replace("\"rank\": 3", "\"rank\": 2")).expect("written");
        assert!(refusal(folder.path()).contains("prefix.bias: shape [3], expected [2]"));
    }

    /// The tensors are compared with the configuration before anything of their size is allocated.
    #[test]
    fn absurd_sizes_are_refused_without_being_allocated() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = HeadConfig { hidden_size: 12, outputs: 2, input_dropout: 0.1, inner_dropout: 0.1 };
        let mut saved = adapter(Method::Loreft);
        saved.head = Some(config.init(1, &Default::default()));
        saved.save(folder.path()).expect("saved");
        let file = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&file).expect("read");
        let huge = "1000000000";
        for change in [
            text.replace("\"rank\": 3", &format!("\"rank\": {huge}"))
                .replace("hidden_size\": 12", &format!("hidden_size\": {huge}")),
            text.replace("hidden_size\": 12", &format!("hidden_size\": {huge}")),
            text.replace("\"outputs\": 2", &format!("\"outputs\": {huge}")),
            text.replace("\"layer\": 4", &format!("\"layer\": {huge}")),
        ] {
            fs::write(&file, change).expect("written");
            let message = refusal(folder.path());
            assert!(
                message.contains("do not match the configuration") && message.contains(huge),
                "{message}"
            );
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_key() {
        let folder = tempfile::tempdir().expect("a folder");
        adapter(Method::Loreft).save(folder.path()).expect("saved");
        let file = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text.replace("\"rank\": 3", "\"rank\": \"3\"")).expect("written");
        assert_eq!(
            refusal(folder.path()),
            "folder/adapter.json: not an adapter of this library: rank: invalid type: string \"3\", expected a whole \
             number from 0"
        );
        fs::write(&file, text.replace("\"alpaca\"", "[1]")).expect("written");
        let metadata = load(folder.path()).expect("other crates' keys").metadata;
        let error = parse_metadata::<Notes>(&metadata, Path::new("folder")).expect_err("not text");
        assert_eq!(
            error.to_string(),
            "folder/adapter.json: template: invalid type: sequence, expected a string"
        );
    }

    #[test]
    fn metadata_cannot_replace_keys_of_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        for key in ["rank", "base_model", "head"] {
            let mut saved = adapter(Method::Loreft);
            saved.metadata.insert(key.into(), 1.into());
            let error = saved.save(folder.path()).expect_err("refused").to_string();
            assert!(
                error.ends_with(&format!(
                    "the metadata key {key:?} belongs to the configuration of the adapter"
                ))
            );
        }
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(refusal(folder.path()), "folder/adapter.json: No such file or directory (os error 2)");
        adapter(Method::Direft).save(folder.path()).expect("saved");
        let tensors = fs::read(folder.path().join(TENSOR_FILE)).expect("read");
        fs::write(folder.path().join(TENSOR_FILE), &tensors[..tensors.len() - 5]).expect("written");
        let message = refusal(folder.path());
        assert!(
            message.starts_with("folder/adapter.safetensors: not a complete safetensors file: "),
            "{message}"
        );
        fs::write(folder.path().join(TENSOR_FILE), "version https://git-lfs.github.com/spec/v1\n")
            .expect("written");
        let message = refusal(folder.path());
        assert!(message.starts_with("folder/adapter.safetensors: is a Git LFS pointer"), "{message}");
        fs::write(folder.path().join(TENSOR_FILE), &tensors).expect("written");
        let json = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&json).expect("read");
        fs::write(&json, text.replace("\"format_version\": 1", "\"format_version\": 9")).expect("written");
        assert_eq!(
            refusal(folder.path()),
            "folder/adapter.json: format version 9 is newer than this version supports (1); update reft"
        );
        fs::write(&json, "{").expect("written");
        let message = refusal(folder.path());
        assert!(message.starts_with("folder/adapter.json: not an adapter of this library: "), "{message}");
    }
}
