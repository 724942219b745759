//! The safetensors files of a model, memory-mapped.

use crate::files::ModelFiles;
#[cfg(not(target_arch = "wasm32"))]
use memmap2::Mmap;
use reft_core::{
    FileError,
    files::{check_json_text, plain_words, safetensors_damage},
};
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde_json::Value;
#[cfg(target_arch = "wasm32")]
use std::io::Read;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// One safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    name: String,
    bytes: Bytes,
    /// Offset of the tensor data in the file.
    data_start: usize,
    metadata: Metadata,
}

impl Shard {
    /// Opens `model.safetensors`, or, if there is none, the shards that `model.safetensors.index.json` names.
    ///
    /// Transformers also takes the single file first: an index beside it is left over from an earlier model.
    pub(crate) fn open_all(files: &ModelFiles) -> Result<Vec<Self>, FileError> {
        if let Some(bytes) = Bytes::open(files, SINGLE)? {
            return Ok(vec![Self::open(files, SINGLE.into(), bytes)?]);
        }
        let Some(json) = files.read_optional(INDEX)? else {
            return Err(FileError::Invalid { path: files.place().into(), reason: no_weights(files) });
        };
        let promised =
            weight_map(&json).map_err(|reason| FileError::Invalid { path: files.path(INDEX), reason })?;
        let (mut shards, mut problems) = (Vec::new(), Vec::new());
        for name in promised.values().collect::<BTreeSet<_>>() {
            match Bytes::open(files, name)? {
                Some(bytes) => shards.push(Self::open(files, name.clone(), bytes)?),
                None => problems.push(format!("missing file: {name}, named in {INDEX}")),
            }
        }
        for (tensor, file) in &promised {
            let shard = shards.iter().find(|shard| shard.name == *file);
            if shard.is_some_and(|shard| shard.metadata.info(tensor).is_none()) {
                problems.push(format!("missing: {tensor} in {file}, where {INDEX} places it"));
            }
        }
        if problems.is_empty() {
            Ok(shards)
        } else {
            Err(FileError::Tensors { path: files.place().into(), problems: shorten(problems) })
        }
    }

    fn open(files: &ModelFiles, name: String, bytes: Bytes) -> Result<Self, FileError> {
        // This also checks that the tensors fill the file exactly.
        match SafeTensors::read_metadata(bytes.get()) {
            Ok((header_len, metadata)) => Ok(Self { name, bytes, data_start: header_len + 8, metadata }),
            Err(error) => {
                let reason = safetensors_damage(bytes.get(), &error);
                Err(FileError::Invalid { path: files.path(&name), reason })
            }
        }
    }

    /// The names of its tensors, in alphabetical order.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.metadata.tensors().into_keys().collect()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// The bytes of a tensor.
    pub(crate) fn data(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.bytes.get()[self.data_start + start..self.data_start + end]
    }

    /// Tells the system that the bytes of a tensor are no longer needed.
    pub(crate) fn release(&self, info: &TensorInfo) {
        let (start, end) = info.data_offsets;
        self.bytes.release(self.data_start + start..self.data_start + end);
    }

    /// Tells the system that all pages read so far are no longer needed.
    pub(crate) fn release_all(&self) {
        self.bytes.release(0..self.bytes.get().len());
    }
}

/// The first problems and the number of the others.
pub(crate) fn shorten(mut problems: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 20;
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more"));
    }
    problems
}

/// Why a folder has no weights that can be read, and what to do.
fn no_weights(files: &ModelFiles) -> String {
    let names = files.names();
    let found = |test: fn(&str) -> bool| names.iter().find(|name| test(name));
    let other = |name: &String, what: &str| format!("no {SINGLE}, but {name}, {what}");
    if let Some(name) = found(|name| name.ends_with(".gguf")) {
        return other(
            name,
            "a GGUF file; such files are not supported, take the same model in safetensors files and `quant = \"int4\"`",
        );
    }
    if let Some(name) = found(|name| matches!(name, "adapter_model.safetensors" | "adapter_model.bin")) {
        return other(
            name,
            "which is an adapter of PEFT and not a model; name its base model here and the folder as the adapter",
        );
    }
    if let Some(name) = found(|name| name.starts_with("consolidated") && name.ends_with(".safetensors")) {
        return other(
            name,
            "which has the tensor names of Mistral's own programs; download the model's files for transformers",
        );
    }
    if let Some((name, variant)) = names.iter().find_map(|name| Some((name, variant(name)?))) {
        let index = format!("model.safetensors.index.{variant}.json");
        let (from, to) =
            if names.contains(&index) { (index.as_str(), INDEX) } else { (name.as_str(), SINGLE) };
        return other(
            name,
            &format!(
                "the variant {variant:?} of the weights, which is not looked for; rename {from} to {to} to use it"
            ),
        );
    }
    if let Some(name) = found(|name| name.ends_with(".safetensors")) {
        return other(name, &format!("and {INDEX}, which names the shards, is missing; download it"));
    }
    let pickled = |name: &str| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
    if let Some(name) = names.iter().find(|name| pickled(name)) {
        return other(
            name,
            "a pickle file, which could run programs and is not read; convert it in Python: \
             AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)",
        );
    }
    if let Some(name) = found(|name| matches!(name, "tf_model.h5" | "flax_model.msgpack" | "model.onnx")) {
        return other(name, "another format; convert it with transformers' save_pretrained");
    }
    format!(
        "no weights: expected {SINGLE} or {INDEX}, found {}; convert other formats with transformers' save_pretrained",
        files.listing()
    )
}

/// The variant that a file of weights is of, as transformers names them: `fp16` of `model.fp16.safetensors`, and of
/// `model.fp16-00001-of-00002.safetensors`.
fn variant(name: &str) -> Option<&str> {
    let variant = name.strip_prefix("model.")?.strip_suffix(".safetensors")?;
    let variant = variant.split_once('-').map_or(variant, |(variant, _)| variant);
    (!variant.is_empty()).then_some(variant)
}

/// Tensor → file, from an index of shards.
fn weight_map(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    check_json_text(json)?;
    let value: Value = serde_json::from_slice(json).map_err(|error| format!("invalid JSON: {error}"))?;
    let map = value.get("weight_map").ok_or("has no weight_map")?;
    let map: BTreeMap<String, String> = serde_json::from_value(map.clone())
        .map_err(|error| format!("weight_map: {}", plain_words(&error.to_string())))?;
    // An index must not make us read files outside the model's folder.
    let outside =
        |file: &&String| file.is_empty() || file.contains(['/', '\\', ':']) || file.starts_with("..");
    match map.values().find(outside) {
        Some(file) => Err(format!("weight_map names {file:?}, expected a file in the folder of the index")),
        None if map.is_empty() => Err("weight_map is empty".into()),
        None => Ok(map),
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
    use reft_core::files::write_tensors;
    use std::{fs, path::Path};

    fn write(folder: &Path, file: &str, tensors: &[(&str, Vec<f32>)]) {
        let named =
            tensors.iter().map(|(name, values)| (name.to_string(), (vec![values.len()], values.clone())));
        write_tensors(&folder.join(file), named.collect()).expect("written");
    }

    /// The message of an error, with the folder's name replaced.
    fn message(folder: &Path) -> String {
        let error = Shard::open_all(&ModelFiles::Folder(folder.into())).expect_err("must be an error");
        error.to_string().replace(&folder.display().to_string(), "folder")
    }

    #[test]
    fn indexes_that_cannot_be_used_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "one.safetensors", &[("a", vec![0.0])]);
        let index = |json: &str| {
            fs::write(folder.path().join(INDEX), json).expect("written");
            message(folder.path())
        };
        assert_eq!(
            index(
                r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}"#
            ),
            "folder: the tensors do not match the configuration:\n  \
             missing file: two.safetensors, named in model.safetensors.index.json\n  \
             missing: b in one.safetensors, where model.safetensors.index.json places it"
        );
        for name in ["../one.safetensors", "", "/etc/passwd", "a/b", "C:x"] {
            assert_eq!(
                index(&format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)),
                format!(
                    "folder/model.safetensors.index.json: weight_map names {name:?}, expected a file in the folder of \
                     the index"
                )
            );
        }
        assert_eq!(index("{}"), "folder/model.safetensors.index.json: has no weight_map");
        assert_eq!(
            index(r#"{"weight_map": {}}"#),
            "folder/model.safetensors.index.json: weight_map is empty"
        );
    }

    #[test]
    fn a_single_file_is_used_before_an_index() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), SINGLE, &[("a", vec![1.0])]);
        write(folder.path(), "old.safetensors", &[("a", vec![2.0]), ("b", vec![2.0])]);
        for index in
            [r#"{"weight_map": {"a": "old.safetensors"}}"#, r#"{"weight_map": {"a": "gone.safetensors"}}"#]
        {
            fs::write(folder.path().join(INDEX), index).expect("written");
            let shards = Shard::open_all(&ModelFiles::Folder(folder.path().into())).expect(index);
            assert_eq!(shards.len(), 1);
            let info = shards[0].info("a").expect("present");
            assert_eq!(shards[0].data(info), 1f32.to_le_bytes());
        }
    }

    #[test]
    fn folders_without_weights_say_what_they_have() {
        for (file, reason) in [
            (
                "pytorch_model.bin",
                "a pickle file, which could run programs and is not read; convert it in Python: ",
            ),
            ("pytorch_model-00001-of-00002.bin", "a pickle file, which"),
            (
                "model.Q4_K_M.gguf",
                "a GGUF file; such files are not supported, take the same model in safetensors",
            ),
            (
                "adapter_model.safetensors",
                "which is an adapter of PEFT and not a model; name its base model here",
            ),
            ("consolidated.safetensors", "which has the tensor names of Mistral's own programs; download"),
            (
                "model-00001-of-00002.safetensors",
                "and model.safetensors.index.json, which names the shards, is missing",
            ),
            ("tf_model.h5", "another format; convert it"),
            (
                "model.fp16.safetensors",
                "the variant \"fp16\" of the weights, which is not looked for; rename model.fp16.safetensors to \
                 model.safetensors to use it",
            ),
            ("model.bf16-00001-of-00002.safetensors", "the variant \"bf16\" of the weights, which is not"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            fs::write(folder.path().join(file), "").expect("written");
            let message = message(folder.path());
            let expected = format!("folder: no model.safetensors, but {file}, {reason}");
            assert!(message.starts_with(&expected), "{message}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("README.md"), "").expect("written");
        assert_eq!(
            message(folder.path()),
            "folder: no weights: expected model.safetensors or model.safetensors.index.json, found README.md; convert \
             other formats with transformers' save_pretrained"
        );
    }

    #[test]
    fn damaged_files_are_named_by_their_safetensors_damage() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), SINGLE, &[("a", vec![1.0, 2.0])]);
        let whole = fs::read(folder.path().join(SINGLE)).expect("read");
        let header = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
        let longer = [&whole[..], &[0]].concat();
        let huge_length = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        let overlapping = header(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        );
        let overflowing = header(
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#,
        );
        for (bytes, reason) in [
            (Vec::new(), "is empty; download it again"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(),
                "is a Git LFS pointer and not",
            ),
            (b"<!DOCTYPE html>".to_vec(), "is a web page and not a safetensors file; download it again"),
            (
                b"PK\x03\x04 archive".to_vec(),
                "is a pickle file of PyTorch and not a safetensors file; convert it",
            ),
            (b"short".to_vec(), "not a complete safetensors file: header too small; download it again"),
            (
                whole[..whole.len() - 1].to_vec(),
                "not a complete safetensors file: incomplete metadata, file not fully",
            ),
            (
                longer,
                "not a complete safetensors file: incomplete metadata, file not fully covered; download it again",
            ),
            (
                huge_length,
                "not a complete safetensors file: its header claims to be longer than the file, 10 bytes, or",
            ),
            (
                overlapping,
                "not a complete safetensors file: invalid offset for tensor `b`; download it again",
            ),
            (overflowing, "not a complete safetensors file: overflow computing buffer size"),
        ] {
            fs::write(folder.path().join(SINGLE), &bytes).expect("written");
            let message = message(folder.path());
            assert!(message.starts_with(&format!("folder/model.safetensors: {reason}")), "{message}");
        }
    }
}
