//! An adapter on disk: `adapter.json` and `adapter.safetensors`.
//!
//! | tensor of `layers.{layer}.{component}.{part}.` | shape | method |
//! |---|---|---|
//! | `weight` | `[r, d]` | those with `W` |
//! | `bias` | `[r]` | all |
//! | `reflectors`, `signs` | `[d, r]`, `[r]` | those with an orthonormal `R` (see [`Orthonormal`]) |
//! | `projection` | `[r, d]` | the others |
//!
//! A classifier's head lies beside them as `classifier.{dense, out_proj}.{weight, bias}`.
//!
//! Saving the parameter of `R` instead of `R` makes a loaded adapter the same edit bit for bit, and lets training
//! continue exactly.

use crate::{
    head::{Head, HeadConfig, HeadValues},
    intervention::{InterventionError, Projection, host_values},
    orthogonal::Orthonormal,
    reft::{Reft, ReftConfig},
};
use burn::{
    module::Param,
    tensor::{Tensor, TensorData, backend::Backend},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Version of the format that this crate writes.
pub const FORMAT_VERSION: u32 = 1;
const CONFIG_FILE: &str = "adapter.json";
const TENSOR_FILE: &str = "adapter.safetensors";
const HEAD_PREFIX: &str = "classifier.";

/// The model that an adapter was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Folder or hub name, as the user gave it.
    pub name: String,
    /// Identifies the configuration and the weights; an adapter works on no others.
    pub fingerprint: String,
    /// How the weights were quantised when the adapter was trained, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
}

/// What a classifier was trained for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskConfig {
    /// Name of the task, such as `glue/sst2`, `classification` or `regression`.
    pub name: String,
    /// The label of each output; empty for a regression.
    pub labels: Vec<String>,
    /// Names of the columns that hold the text, one or two.
    pub text: Vec<String>,
    /// Name of the column that holds the label.
    pub label: String,
}

/// What was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trained {
    /// Interventions, and the head if there is one.
    #[default]
    Interventions,
    /// The head alone.
    HeadOnly,
    /// The model's biases, kept in a file of their own.
    Bitfit,
    /// All of the model's weights, kept in a file of their own.
    Full,
    /// LoRA's factors, kept in PEFT's files.
    Lora,
}

/// What `adapter.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the library that wrote the adapter.
    pub library_version: String,
    /// The model that it was trained on.
    pub base_model: BaseModel,
    /// Name or text of the prompt template that it was trained with.
    pub template: String,
    /// What was trained; with baselines the interventions below are none.
    #[serde(default)]
    pub trained: Trained,
    /// What a classifier was trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskConfig>,
    /// A classifier's head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadConfig>,
    /// Everything that fixes the interventions but their values.
    #[serde(flatten)]
    pub reft: ReftConfig,
}

/// Trained interventions and what is needed to use them.
#[derive(Debug, Clone)]
pub struct Adapter<B: Backend> {
    /// The interventions.
    pub reft: Reft<B>,
    /// The model that they were trained on.
    pub base_model: BaseModel,
    /// Name or text of the prompt template that they were trained with.
    pub template: String,
    /// What was trained. The values of baselines lie in files beside the adapter's own.
    pub trained: Trained,
    /// What a classifier was trained for.
    pub task: Option<TaskConfig>,
    /// A classifier's head.
    pub head: Option<Head<B>>,
}

/// An adapter that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `adapter.json` is not an adapter's.
    #[error("{}: not an adapter of this library: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A newer format.
    #[error("{}: format version {found}, this version reads up to {FORMAT_VERSION}; update reft", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Tensors that are missing, unexpected or of another shape or dtype, all of them.
    #[error("{}: does not fit adapter.json:\n  {}", path.display(), problems.join("\n  "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line each.
        problems: Vec<String>,
    },
    /// The values make no intervention.
    #[error("{}: {source}", path.display())]
    Values {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InterventionError,
    },
}

/// Writes a file under a temporary name and renames it, so that it is never half-written.
///
/// # Errors
/// If the folder is not writable or the disk is full; the temporary file is then removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".reft-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Writes f32 tensors, name → shape and values, as a safetensors file: whole, or not at all.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If a shape does not fit its values.
pub fn write_tensors(
    path: &Path,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) -> Result<(), AdapterError> {
    let bytes = tensors.into_iter().map(|(name, (shape, values))| {
        (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    });
    let bytes: Vec<_> = bytes.collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape matches its bytes"))
    });
    // transformers and PEFT refuse a file that does not name its framework.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let file = safetensors::serialize(views, Some(metadata)).expect("f32 tensors serialise");
    write_atomic(path, &file).map_err(|source| AdapterError::Io { path: path.into(), source })
}

impl<B: Backend> Adapter<B> {
    /// Interventions of a language model.
    pub fn new(reft: Reft<B>, base_model: BaseModel, template: impl Into<String>) -> Self {
        let trained = Trained::Interventions;
        Self { reft, base_model, template: template.into(), trained, task: None, head: None }
    }

    /// Writes the adapter to a folder, which is created if it does not exist.
    ///
    /// # Errors
    /// If a file cannot be written. Each file is replaced as a whole or not at all.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        let config = AdapterConfig {
            format_version: FORMAT_VERSION,
            library_version: env!("CARGO_PKG_VERSION").into(),
            base_model: self.base_model.clone(),
            template: self.template.clone(),
            trained: self.trained,
            task: self.task.clone(),
            head: self.head.as_ref().map(|head| *head.config()),
            reft: self.reft.config().clone(),
        };
        let json = serde_json::to_string_pretty(&config).expect("plain data serialises") + "\n";
        fs::create_dir_all(folder).map_err(|source| AdapterError::Io { path: folder.into(), source })?;
        write_tensors(&folder.join(TENSOR_FILE), self.tensors())?;
        let path = folder.join(CONFIG_FILE);
        write_atomic(&path, json.as_bytes()).map_err(|source| AdapterError::Io { path, source })
    }

    /// Name → shape and values of every tensor.
    fn tensors(&self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let mut out = BTreeMap::new();
        for edit in self.reft.edits() {
            let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
                out.insert(tensor_name(edit.site(), edit.part(), name), (shape.to_vec(), values));
            };
            let intervention = edit.intervention();
            if let Some(weight) = intervention.weight() {
                put("weight", &weight.dims(), host_values(weight.val()));
            }
            put("bias", &intervention.bias().dims(), host_values(intervention.bias().val()));
            match intervention.projection() {
                Projection::Orthonormal(r) => {
                    put("reflectors", &r.reflectors().dims(), host_values(r.reflectors().val()));
                    put("signs", &r.signs().dims(), host_values(r.signs()));
                }
                Projection::Free(p) => put("projection", &p.dims(), host_values(p.val())),
            }
        }
        if let Some(head) = &self.head {
            for (name, shape, values) in head.tensors() {
                out.insert(format!("{HEAD_PREFIX}{name}"), (shape, values));
            }
        }
        out
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if any tensor is missing, unexpected, or of another shape or dtype: the
    /// error lists all of them.
    pub fn load(folder: &Path, device: &B::Device) -> Result<Self, AdapterError> {
        let AdapterConfig { base_model, template, trained, task, head, reft: config, .. } =
            read_config(folder)?;
        let path = folder.join(TENSOR_FILE);
        let bytes = fs::read(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
        let mut tensors = StrictTensors::new(&path, &bytes)?;
        let (d, r) = (config.hidden_size, config.rank);
        let reft = config
            .build(|site, part| {
                let mut take =
                    |name: &str, shape: &[usize]| tensors.take(&tensor_name(site, part, name), shape);
                let weight = config.method.has_weight().then(|| take("weight", &[r, d]));
                let bias = take("bias", &[r]);
                let projection = if config.method.orthonormal() {
                    let (reflectors, signs) = (take("reflectors", &[d, r]), take("signs", &[r]));
                    Projection::Orthonormal(Orthonormal::from_reflectors(reflectors, signs, d, device))
                } else {
                    let values = TensorData::new(take("projection", &[r, d]), [r, d]);
                    Projection::Free(Param::from_tensor(Tensor::from_data(values, device)))
                };
                config.intervention().with_projection(projection, weight, bias, device)
            })
            .map_err(|source| AdapterError::Values { path: path.clone(), source })?;
        let head = head.map(|config| {
            let values =
                config.tensors().map(|(name, shape)| tensors.take(&format!("{HEAD_PREFIX}{name}"), &shape));
            config.with_values(HeadValues::from_list(values), device)
        });
        tensors.finish()?;
        Ok(Adapter { reft, base_model, template, trained, task, head })
    }
}

/// Reads `adapter.json` alone.
///
/// # Errors
/// If it is missing, damaged or of a newer format.
pub fn read_config(folder: &Path) -> Result<AdapterConfig, AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
    let config_error =
        |error: serde_json::Error| AdapterError::Config { path: path.clone(), reason: error.to_string() };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(config_error)?;
    // The version comes first: a newer file may well lack what this version expects.
    let version = value.get("format_version").and_then(serde_json::Value::as_u64);
    if let Some(found) = version.filter(|v| *v > u64::from(FORMAT_VERSION)) {
        return Err(AdapterError::Version { path, found: found as u32 });
    }
    serde_json::from_value(value).map_err(config_error)
}

fn tensor_name(site: crate::Site, part: crate::Part, name: &str) -> String {
    format!("{site}.{}.{name}", part.name())
}

/// Takes f32 tensors out of a file and remembers everything that did not fit.
pub struct StrictTensors<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
    unused: Vec<String>,
    problems: Vec<String>,
}

impl<'a> StrictTensors<'a> {
    /// Reads the content of a safetensors file; `path` names it in errors.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self, AdapterError> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| AdapterError::Tensors {
            path: path.into(),
            problems: vec![format!("not a complete safetensors file: {error}")],
        })?;
        let mut unused: Vec<String> = file.names().iter().map(|name| name.to_string()).collect();
        unused.sort();
        Ok(Self { path, file, unused, problems: Vec::new() })
    }

    /// Does not report unused tensors of these names.
    pub fn ignore(&mut self, names: impl Fn(&str) -> bool) {
        self.unused.retain(|name| !names(name));
    }

    /// The values, or zeros and an entry in the list of problems.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        self.unused.retain(|unused| unused != name);
        match self.file.tensor(name) {
            Err(_) => self.problems.push(format!("missing: {name} {shape:?}")),
            Ok(view) if view.dtype() != Dtype::F32 => {
                self.problems.push(format!("{name}: dtype {:?}, expected F32", view.dtype()));
            }
            Ok(view) if view.shape() != shape => {
                self.problems.push(format!("{name}: shape {:?}, expected {shape:?}", view.shape()));
            }
            Ok(view) => {
                let values: Vec<f32> = view
                    .data()
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                    .collect();
                if values.iter().all(|x| x.is_finite()) {
                    return values;
                }
                self.problems.push(format!("{name}: holds NaN or infinite values"));
            }
        }
        vec![0.0; shape.iter().product()]
    }

    /// Reports everything that did not fit.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of another shape or dtype, or not finite.
    pub fn finish(mut self) -> Result<(), AdapterError> {
        self.problems.extend(self.unused.iter().map(|name| format!("unexpected: {name}")));
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(AdapterError::Tensors { path: self.path.into(), problems: self.problems })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Component, Method, Site, intervention::Init};
    use burn_flex::Flex;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn adapter(method: Method) -> Adapter<Flex> {
        let config = ReftConfig {
            method,
            rank: 3,
            hidden_size: 12,
            sites: [0, 4].map(|layer| Site { layer, component: Component::BlockOutput }).to_vec(),
            positions: "f2+l1".parse().expect("valid"),
            tied: false,
            activation: Activation::Linear,
            dropout: 0.05,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let base_model = BaseModel { name: "some/model".into(), fingerprint: "abc".into(), quant: None };
        Adapter::new(
            config.init(Init::Paper, &mut rng, &Default::default()).expect("valid"),
            base_model,
            "alpaca",
        )
    }

    #[test]
    fn a_head_and_its_labels_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = HeadConfig { hidden_size: 12, outputs: 2, input_dropout: 0.1, inner_dropout: 0.1 };
        let mut saved = adapter(Method::Loreft);
        saved.head = Some(config.init(&mut ChaCha8Rng::seed_from_u64(1), &Default::default()));
        saved.task = Some(TaskConfig {
            name: "classification".into(),
            labels: vec!["no".into(), "yes".into()],
            text: vec!["text".into()],
            label: "label".into(),
        });
        saved.save(folder.path()).expect("saved");
        let loaded = Adapter::<Flex>::load(folder.path(), &Default::default()).expect("loaded");
        assert_eq!((&loaded.task, loaded.trained), (&saved.task, saved.trained));
        let values = |adapter: &Adapter<Flex>| adapter.head.as_ref().map(|head| head.values());
        assert_eq!(values(&loaded), values(&saved));
    }

    #[test]
    fn what_is_loaded_is_the_same_edit_bit_for_bit() {
        for method in [Method::Loreft, Method::Direft, Method::Consreft] {
            let folder = tempfile::tempdir().expect("a folder");
            let saved = adapter(method);
            saved.save(folder.path()).expect("saved");
            let loaded = Adapter::<Flex>::load(folder.path(), &Default::default()).expect("loaded");
            assert_eq!(loaded.reft.config(), saved.reft.config());
            assert_eq!((&loaded.base_model, &loaded.template), (&saved.base_model, &saved.template));
            for (a, b) in loaded.reft.edits().iter().zip(saved.reft.edits()) {
                assert_eq!(a.intervention().values(), b.intervention().values());
            }
        }
    }

    #[test]
    fn every_problem_is_listed_in_one_error() {
        let folder = tempfile::tempdir().expect("a folder");
        adapter(Method::Loreft).save(folder.path()).expect("saved");
        let file = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text.replace("\"layer\": 4", "\"layer\": 5")).expect("written");
        let error = Adapter::<Flex>::load(folder.path(), &Default::default()).expect_err("must not fit");
        let text = error.to_string();
        assert!(text.contains("missing: layers.5.block_output.prefix.weight [3, 12]"), "{text}");
        assert!(text.contains("unexpected: layers.4.block_output.suffix.bias"), "{text}");
        let text = fs::read_to_string(&file).expect("read").replace("\"layer\": 5", "\"layer\": 4");
        fs::write(&file, text.replace("\"rank\": 3", "\"rank\": 2")).expect("written");
        let error = Adapter::<Flex>::load(folder.path(), &Default::default()).expect_err("must not fit");
        assert!(error.to_string().contains("shape [3, 12], expected [2, 12]"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let load =
            || Adapter::<Flex>::load(folder.path(), &Default::default()).expect_err("damaged").to_string();
        assert!(load().contains(CONFIG_FILE));
        adapter(Method::Direft).save(folder.path()).expect("saved");
        let tensors = fs::read(folder.path().join(TENSOR_FILE)).expect("read");
        fs::write(folder.path().join(TENSOR_FILE), &tensors[..tensors.len() - 5]).expect("written");
        assert!(load().contains("not a complete safetensors file"));
        let json = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&json).expect("read");
        fs::write(&json, text.replace("\"format_version\": 1", "\"format_version\": 9")).expect("written");
        assert!(load().contains("format version 9"));
        fs::write(&json, "{").expect("written");
        assert!(load().contains("not an adapter"));
    }
}
