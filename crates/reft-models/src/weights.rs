//! The tensors of a model's safetensors files.

use crate::{
    files::ModelFiles,
    precision::{Dtype, Precision},
    source::TensorSource,
};
use burn::tensor::{Tensor, TensorData, backend::Backend};
#[cfg(not(target_arch = "wasm32"))]
use memmap2::Mmap;
use reft_core::{FileError, HeadConfig, head::HeadValues};
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
#[cfg(target_arch = "wasm32")]
use std::io::Read;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::PathBuf,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, memory-mapped and read one at a time.
///
/// Mismatches do not stop the loading of a model: [`finish`](Self::finish) reports all of them at once.
#[derive(Debug)]
pub struct Weights {
    place: PathBuf,
    shards: Vec<Shard>,
    /// The model's name for a tensor → index of its shard, and its name in that file.
    index: BTreeMap<String, (usize, String)>,
    unused: BTreeSet<String>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Bytes,
    /// Offset of the tensor data in the file.
    data_start: usize,
    metadata: Metadata,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If there are no weights, or a file is missing or damaged.
    pub fn open(files: &ModelFiles) -> Result<Self, FileError> {
        let place = PathBuf::from(files.place());
        let mut promised = BTreeMap::new();
        let shard_names: Vec<String> = if let Some(json) = files.read_optional(INDEX)? {
            promised =
                weight_map(&json).map_err(|reason| FileError::Invalid { path: files.path(INDEX), reason })?;
            promised.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
        } else {
            vec![SINGLE.to_string()]
        };
        let mut problems = Vec::new();
        let mut shards = Vec::new();
        for name in shard_names {
            match Bytes::open(files, &name)? {
                Some(bytes) => shards.push(open_shard(files, name, bytes)?),
                None if name == SINGLE && promised.is_empty() => {
                    let reason = format!(
                        "no weights: expected {SINGLE} or {INDEX}, found {}; convert other formats with \
                         transformers' save_pretrained",
                        files.listing()
                    );
                    return Err(FileError::Invalid { path: place, reason });
                }
                None => problems.push(format!("missing file: {name}, named in {INDEX}")),
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
                problems.push(format!("missing: {tensor} in {file}, where {INDEX} places it"));
            }
        }
        if !problems.is_empty() {
            return Err(FileError::Tensors { path: place, problems });
        }
        let unused = index.keys().cloned().collect();
        Ok(Self { place, shards, index, unused, problems })
    }

    /// Changes the names by which tensors are taken.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let rename = |old: &String| name(old);
        self.unused = self.unused.iter().map(rename).collect();
        self.index = std::mem::take(&mut self.index).into_iter().map(|(old, at)| (name(&old), at)).collect();
    }

    /// Whether a tensor with this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Allows tensors with matching names to stay unused; the condition also sees all tensors.
    pub fn ignore(&mut self, names: impl Fn(&str, &Self) -> bool) {
        let mut unused = std::mem::take(&mut self.unused);
        unused.retain(|name| !names(name, self));
        self.unused = unused;
    }

    /// Takes the classification head, `classifier.{dense, out_proj}.{weight, bias}`, if it is complete.
    pub(crate) fn take_head(&mut self) -> Option<HeadValues> {
        let shape = self.info("classifier.out_proj.weight")?.1.shape.clone();
        let [outputs, hidden_size] = shape[..] else { return None };
        let config = HeadConfig { hidden_size, outputs, input_dropout: 0.0, inner_dropout: 0.0 };
        let names = config.tensors().map(|(name, shape)| (format!("classifier.{name}"), shape));
        let values: Result<Vec<Vec<f32>>, String> =
            names.iter().map(|(name, shape)| self.values(name, shape)).collect();
        let values = <[Vec<f32>; 4]>::try_from(values.ok()?).ok()?;
        self.ignore(|name, _| names.iter().any(|(head, _)| head == name));
        Some(HeadValues::from_list(values))
    }

    /// Names and shapes of the tensors that are neither taken nor ignored.
    pub(crate) fn unused(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.unused_infos().map(|(name, info)| (name, info.shape.as_slice()))
    }

    fn unused_infos(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.unused.iter().filter_map(|name| Some((name.as_str(), self.info(name)?.1)))
    }

    /// The dtype of the largest unused tensor, hence of most numbers in the files.
    pub(crate) fn dtype(&self) -> Dtype {
        let largest = self.unused_infos().max_by_key(|(_, info)| info.shape.iter().product::<usize>());
        largest.and_then(|(_, info)| model_dtype(info)).unwrap_or_default()
    }

    /// Identifies a model: a hash of its configuration, of the name, dtype and shape of every tensor, and of samples
    /// of their values.
    pub(crate) fn fingerprint(&self, config_json: &[u8]) -> String {
        // These keys do not affect what the model computes.
        const VOLATILE: [&str; 5] =
            ["transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"];
        const SAMPLES: usize = 16;
        const SAMPLE_BYTES: usize = 64;
        let mut hash = Sha256::new();
        let config: BTreeMap<String, Value> = serde_json::from_slice(config_json).unwrap_or_default();
        for (key, value) in config.iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str())) {
            hash.update(format!("{key}={value}\n"));
        }
        for name in self.index.keys() {
            let Some((shard, info)) = self.info(name) else { continue };
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

    /// Tells the system that pages read so far are no longer needed.
    pub(crate) fn release(&self) {
        for shard in &self.shards {
            shard.bytes.release(0..shard.bytes.get().len());
        }
    }

    /// A source that puts the tensors on a device.
    pub fn on<'a, B: Backend>(
        &'a mut self,
        precision: Precision,
        device: &'a B::Device,
    ) -> impl TensorSource<B> + 'a {
        DeviceSource { weights: self, precision, device }
    }

    fn info(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let (shard_idx, name) = self.index.get(name)?;
        let shard = &self.shards[*shard_idx];
        Some((shard, shard.metadata.info(name)?))
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let (shard, info) = self.info(name).ok_or_else(|| format!("missing: {name} {shape:?}"))?;
        if info.shape != shape {
            return Err(format!("{name}: shape {:?}, expected {shape:?}", info.shape));
        }
        let (start, end) = (shard.data_start + info.data_offsets.0, shard.data_start + info.data_offsets.1);
        let bytes = &shard.bytes.get()[start..end];
        let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let values: Vec<f32> = match model_dtype(info) {
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
            1 => Err(format!("{name}: 1 value is NaN or infinite")),
            n => Err(format!("{name}: {n} values are NaN or infinite")),
        }
    }

    /// Reports everything that did not match.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of the wrong shape or dtype, or not finite.
    pub fn finish(mut self) -> Result<(), FileError> {
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
            Err(FileError::Tensors { path: self.place, problems: self.problems })
        }
    }
}

struct DeviceSource<'a, B: Backend> {
    weights: &'a mut Weights,
    precision: Precision,
    device: &'a B::Device,
}

impl<B: Backend> DeviceSource<'_, B> {
    /// Reads a tensor and uploads it with `upload`.
    fn load<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        upload: impl FnOnce(Vec<f32>, Precision, &B::Device) -> Result<Tensor<B, D>, String>,
    ) -> Tensor<B, D> {
        self.weights.unused.remove(name);
        let values = self.weights.values(name, &shape);
        values.and_then(|values| upload(values, self.precision, self.device)).unwrap_or_else(|problem| {
            self.weights.problems.push(problem);
            // The placeholder has one element, so that a wrong configuration cannot make us allocate absurd sizes.
            Tensor::zeros([1; D], self.device)
        })
    }
}

impl<B: Backend> TensorSource<B> for DeviceSource<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        self.load(name, shape, |values, Precision { dtype, .. }, device| {
            let too_large = values.iter().filter(|x| dtype == Dtype::F16 && x.abs() > 65504.0).count();
            if too_large > 0 {
                return Err(format!(
                    "{name}: {too_large} values are out of range for f16; use dtype bf16 or f32"
                ));
            }
            let data = TensorData::new(values, shape).convert_dtype(dtype.burn());
            Ok(Tensor::from_data(data, (device, dtype.burn())))
        })
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        match self.precision.quant_of(name, &shape) {
            Some(quant) => {
                self.load(name, shape, |values, _, device| Ok(quant.quantize::<B>(&values, shape, device)))
            }
            None => self.take(name, shape),
        }
    }
}

/// The dtype of a tensor in a file, if models can be loaded from it.
fn model_dtype(info: &TensorInfo) -> Option<Dtype> {
    match info.dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Tensor → file, from an index of shards.
fn weight_map(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let value: Value = serde_json::from_slice(json).map_err(|error| format!("invalid JSON: {error}"))?;
    let map = value.get("weight_map").ok_or("has no weight_map")?;
    let map: BTreeMap<String, String> =
        serde_json::from_value(map.clone()).map_err(|error| format!("weight_map: {error}"))?;
    // An index must not make us read files outside the model's folder.
    match map.values().find(|file| file.contains(['/', '\\']) || file.starts_with("..")) {
        Some(file) => Err(format!("weight_map names {file:?}, expected a file in the folder of the index")),
        None if map.is_empty() => Err("weight_map is empty".into()),
        None => Ok(map),
    }
}

fn open_shard(files: &ModelFiles, name: String, bytes: Bytes) -> Result<Shard, FileError> {
    // This also checks that the tensors fill the file exactly.
    let (header_len, metadata) = SafeTensors::read_metadata(bytes.get()).map_err(|error| {
        let reason = format!("not a complete safetensors file: {error}; download it again");
        FileError::Invalid { path: files.path(&name), reason }
    })?;
    Ok(Shard { name, bytes, data_start: header_len + 8, metadata })
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
    /// `None` if the file does not exist.
    fn open(files: &ModelFiles, name: &str) -> Result<Option<Self>, FileError> {
        let folder = match files {
            ModelFiles::Folder(folder) => folder,
            ModelFiles::Embedded(embedded) => {
                let found = embedded.iter().find(|(file, _)| *file == name);
                return Ok(found.map(|(_, bytes)| Bytes::Static(bytes)));
            }
        };
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::Io { path, error }),
        };
        match Self::read(file) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(FileError::Io { path, error }),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn read(file: File) -> io::Result<Self> {
        // An empty file cannot be mapped.
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::Static(&[]));
        }
        // SAFETY: sound as long as no other process truncates the file meanwhile, which no file format can prevent.
        Ok(Bytes::Mapped(unsafe { Mmap::map(&file) }?))
    }

    #[cfg(target_arch = "wasm32")]
    fn read(mut file: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Bytes::Read(bytes))
    }

    fn get(&self) -> &[u8] {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Bytes::Mapped(map) => map,
            #[cfg(target_arch = "wasm32")]
            Bytes::Read(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Tells the system that mapped pages are no longer needed, so that a model's file and its tensors are never both
    /// in memory.
    fn release(&self, _range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            const PAGE: usize = 4096;
            let start = _range.start.div_ceil(PAGE) * PAGE;
            if start < _range.end {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                // SAFETY: the mapping is read-only and backed by a file, so dropped pages are read again on access.
                let _ = unsafe { map.unchecked_advise_range(advice, start, _range.end - start) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;
    use reft_core::files::write_tensors;
    use std::{fs, path::Path};

    fn write(folder: &Path, file: &str, tensors: &[(&str, &[usize], Vec<f32>)]) {
        let named =
            tensors.iter().map(|(name, shape, values)| (name.to_string(), (shape.to_vec(), values.clone())));
        write_tensors(&folder.join(file), named.collect()).expect("written");
    }

    fn open(folder: &Path) -> Result<Weights, FileError> {
        Weights::open(&ModelFiles::Folder(folder.into()))
    }

    /// The message of an error, with the folder's name replaced.
    fn message<T>(result: Result<T, FileError>, folder: &Path) -> String {
        let Err(error) = result else { panic!("must be an error") };
        error.to_string().replace(&folder.display().to_string(), "folder")
    }

    fn small_model(folder: &Path) {
        let weight = (0..80).map(|i| i as f32 / 8.0).collect();
        write(folder, SINGLE, &[("a.weight", &[2, 40], weight), ("b.bias", &[2], vec![1.0, -2.0])]);
    }

    #[test]
    fn fingerprints_stay_the_same_between_versions() {
        let folder = tempfile::tempdir().expect("a folder");
        small_model(folder.path());
        let weights = open(folder.path()).expect("opened");
        // Computed with Python's hashlib.
        let expected = "a6455fe4b0a1a64811d49f86091c8d97";
        for config in [
            r#"{"model_type": "llama", "hidden_size": 2}"#,
            r#"{"hidden_size": 2, "torch_dtype": "float32", "model_type": "llama"}"#,
        ] {
            assert_eq!(weights.fingerprint(config.as_bytes()), expected);
        }
        assert_ne!(weights.fingerprint(br#"{"hidden_size": 3, "model_type": "llama"}"#), expected);
    }

    #[test]
    fn all_mismatches_are_listed_in_one_error() {
        let folder = tempfile::tempdir().expect("a folder");
        small_model(folder.path());
        let mut weights = open(folder.path()).expect("opened");
        {
            let device = Default::default();
            let mut source = weights.on::<Flex>(Precision::default(), &device);
            source.take("a.weight", [40, 2]);
            source.take("c.weight", [3]);
        }
        assert_eq!(
            message(weights.finish(), folder.path()),
            "folder: the tensors do not match the configuration:\n  \
             a.weight: shape [2, 40], expected [40, 2]\n  \
             missing: c.weight [3]\n  \
             unexpected: b.bias"
        );
    }

    #[test]
    fn values_outside_the_range_of_f16_are_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), SINGLE, &[("a", &[3], vec![1.0, 7e4, -7e4])]);
        let mut weights = open(folder.path()).expect("opened");
        let precision = Precision { dtype: Dtype::F16, quant: None };
        weights.on::<Flex>(precision, &Default::default()).take("a", [3]);
        assert_eq!(
            message(weights.finish(), folder.path()),
            "folder: the tensors do not match the configuration:\n  \
             a: 2 values are out of range for f16; use dtype bf16 or f32"
        );
    }

    #[test]
    fn folders_without_usable_weights_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = |json: &str| {
            fs::write(folder.path().join(INDEX), json).expect("written");
            message(open(folder.path()), folder.path())
        };
        fs::write(folder.path().join("pytorch_model.bin"), "").expect("written");
        assert_eq!(
            message(open(folder.path()), folder.path()),
            "folder: no weights: expected model.safetensors or model.safetensors.index.json, found \
             pytorch_model.bin; convert other formats with transformers' save_pretrained"
        );
        write(folder.path(), "one.safetensors", &[("a", &[1], vec![0.0])]);
        assert_eq!(
            index(
                r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}"#
            ),
            "folder: the tensors do not match the configuration:\n  \
             missing file: two.safetensors, named in model.safetensors.index.json\n  \
             missing: b in one.safetensors, where model.safetensors.index.json places it"
        );
        assert_eq!(
            index(r#"{"weight_map": {"a": "../one.safetensors"}}"#),
            "folder/model.safetensors.index.json: weight_map names \"../one.safetensors\", expected a file in the \
             folder of the index"
        );
        assert_eq!(index("{}"), "folder/model.safetensors.index.json: has no weight_map");
        assert_eq!(
            index(r#"{"weight_map": {}}"#),
            "folder/model.safetensors.index.json: weight_map is empty"
        );
        let mut bytes = fs::read(folder.path().join("one.safetensors")).expect("read");
        bytes.push(0);
        fs::write(folder.path().join("one.safetensors"), &bytes).expect("written");
        assert_eq!(
            index(r#"{"weight_map": {"a": "one.safetensors"}}"#),
            "folder/one.safetensors: not a complete safetensors file: incomplete metadata, file not fully covered; \
             download it again"
        );
    }
}
