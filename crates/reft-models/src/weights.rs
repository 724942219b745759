//! The tensors of a model's safetensors files.

use crate::{
    files::ModelFiles,
    hash, names,
    precision::{Dtype, Precision},
    quantized,
    shards::{Shard, shorten},
    source::{Pretrained, TensorSource},
};
use burn::tensor::{Element, Tensor, TensorData, backend::Backend, bf16, f16};
use reft_core::{FileError, HeadConfig, head::HeadValues};
use reft_kernels::Kernels;
use safetensors::tensor::TensorInfo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Range,
    path::PathBuf,
};

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

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If there are no weights, or a file is missing or damaged.
    pub fn open(files: &ModelFiles) -> Result<Self, FileError> {
        let place = PathBuf::from(files.place());
        let shards = Shard::open_all(files)?;
        let (mut index, mut problems) = (BTreeMap::new(), Vec::new());
        for (shard_idx, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                insert(&shards, &mut index, name.clone(), (shard_idx, name), &mut problems);
            }
        }
        let unused = index.keys().cloned().collect();
        Ok(Self { place, shards, index, unused, problems })
    }

    /// Changes the names by which tensors are taken. Two tensors must not get the same name, unless they are equal.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let mut index = BTreeMap::new();
        for (old, place) in std::mem::take(&mut self.index) {
            insert(&self.shards, &mut index, name(&old), place, &mut self.problems);
        }
        self.unused = self.unused.iter().map(|old| name(old)).collect();
        self.index = index;
    }

    /// Changes the names to those by which a model asks for its tensors, and allows what it ignores to stay unused.
    pub(crate) fn adopt_names<B: Backend, M: Pretrained<B>>(&mut self, config: &M::Config) {
        if let Some(prefix) = self.outer_prefix(|name| M::tensor_name(config, name)) {
            self.rename(|name| names::without_outer(name, &prefix).into());
        }
        self.rename(|name| M::tensor_name(config, name));
        if let Some((present, absent)) = M::stands_for(config)
            && !self.contains(absent)
        {
            self.rename(|name| if name == present { absent.into() } else { name.into() });
        }
        self.ignore(|name, weights| M::ignores(config, name, &|other| weights.contains(other)));
    }

    /// What precedes the names of the model in a file of a larger one, such as `language_model.model.` or `0.auto_model.`;
    /// none if the model knows the names as they are.
    fn outer_prefix(&self, known: impl Fn(&str) -> String) -> Option<String> {
        names::EMBEDDINGS.iter().find_map(|(end, model_name)| {
            let is_end = |name: &&String| {
                name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let mut found = self.index.keys().filter(is_end);
            // Of two models in one file, none is meant.
            let (name, None) = (found.next()?, found.next()) else { return None };
            (known(name) != *model_name).then(|| name[..name.len() - end.len()].to_string())
        })
    }

    /// Refuses files that some other program has quantized.
    ///
    /// # Errors
    /// If the names or dtypes of tensors show it.
    pub(crate) fn refuse_quantized(&self) -> Result<(), FileError> {
        let tensors = self.index.keys().filter_map(|name| Some((name.as_str(), self.info(name)?.1.dtype)));
        match quantized::by_tensors(tensors) {
            Some(reason) => Err(FileError::Invalid { path: self.place.clone(), reason }),
            None => Ok(()),
        }
    }

    /// Checks that the files hold at least this number of blocks.
    ///
    /// # Errors
    /// If they hold fewer.
    pub(crate) fn check_blocks(&self, expected: usize) -> Result<(), String> {
        let blocks: BTreeSet<usize> = self.unused.iter().filter_map(|name| names::block_of(name)).collect();
        match (blocks.len(), self.unused.first()) {
            (found, _) if found >= expected => Ok(()),
            (0, Some(name)) => Err(format!(
                "num_hidden_layers is {expected}, but no tensor of the weights belongs to a block; the first is {name}"
            )),
            (found, _) => Err(format!(
                "num_hidden_layers is {expected}, but the weights have the tensors of {found} blocks"
            )),
        }
    }

    /// Checks the names, shapes and dtypes of the tensors, before any of them is read. Returns the names of those of other
    /// parts, such as a second head or further blocks, which are left unused, as transformers does.
    ///
    /// # Errors
    /// If any is missing, unexpected in a part that the model has, or of the wrong shape or dtype: the error lists all of
    /// them.
    pub(crate) fn check(
        &mut self,
        expected: impl Iterator<Item = (String, Vec<usize>)>,
    ) -> Result<Vec<String>, FileError> {
        let expected: Vec<(String, Vec<usize>)> = expected.collect();
        let mut unexpected = self.unused.clone();
        let mut parts = BTreeSet::new();
        for (name, _) in &expected {
            unexpected.remove(name);
            parts.insert(names::part_of(name));
        }
        let is_of_model = |name: &String| {
            let ends = name.match_indices('.').map(|(at, _)| at);
            ends.into_iter().any(|end| parts.contains(&name[..end]))
        };
        let matches = expected.iter().all(|(name, shape)| self.check_tensor(name, shape).is_ok());
        if matches && self.problems.is_empty() && !unexpected.iter().any(is_of_model) {
            self.unused.retain(|name| !unexpected.contains(name));
            return Ok(unexpected.into_iter().collect());
        }
        // Only for a list of all problems are the values looked at here, too.
        let mut problems = self.problems.clone();
        problems.extend(expected.iter().filter_map(|(name, shape)| self.values(name, shape).err()));
        problems.extend(unexpected.iter().map(|name| format!("unexpected: {name}")));
        self.report(problems).map(|()| Vec::new())
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

    /// The fingerprint that version 0.1 gave to a model: a hash of its configuration, of the name, dtype and shape of every
    /// tensor, and of samples of their values.
    pub(crate) fn earlier_fingerprint(&self, config_json: &[u8]) -> String {
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
            let data = shard.data(info);
            for sample in 0..SAMPLES {
                let at = data.len().saturating_sub(SAMPLE_BYTES) * sample / (SAMPLES - 1);
                hash.update(&data[at..(at + SAMPLE_BYTES).min(data.len())]);
            }
        }
        hash::text_of(hash)
    }

    /// Some of a tensor's values, of those that models can be loaded from; without checks.
    pub(crate) fn values_at(&self, name: &str, range: Range<usize>) -> Vec<f32> {
        let Some((shard, info)) = self.info(name) else { return Vec::new() };
        let Some(dtype) = model_dtype(info) else { return Vec::new() };
        floats(&shard.data(info)[range.start * dtype.size()..range.end * dtype.size()], dtype)
    }

    /// Tells the system that pages read so far are no longer needed.
    pub(crate) fn release(&self) {
        for shard in &self.shards {
            shard.release_all();
        }
    }

    /// A source that puts the tensors on a device.
    pub fn on<'a, B: Kernels>(
        &'a mut self,
        precision: Precision,
        device: &'a B::Device,
    ) -> impl TensorSource<B> + 'a {
        DeviceSource { weights: self, precision, device }
    }

    fn info(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let (shard_idx, name) = self.index.get(name)?;
        let shard = &self.shards[*shard_idx];
        Some((shard, shard.info(name)?))
    }

    fn check_tensor(&self, name: &str, shape: &[usize]) -> Result<(&Shard, &TensorInfo, Dtype), String> {
        let (shard, info) = self.info(name).ok_or_else(|| {
            let hint = match name {
                "lm_head.weight" => {
                    "; if the output shares the embeddings, set tie_word_embeddings to true in config.json"
                }
                _ => "",
            };
            format!("missing: {name} {shape:?}{hint}")
        })?;
        if info.shape != shape {
            return Err(format!("{name}: shape {:?}, expected {shape:?}", info.shape));
        }
        match model_dtype(info) {
            Some(dtype) => Ok((shard, info, dtype)),
            None => Err(format!("{name}: dtype {:?}, expected F32, F16 or BF16", info.dtype)),
        }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let (shard, info, dtype) = self.check_tensor(name, shape)?;
        let values = floats(shard.data(info), dtype);
        shard.release(info);
        check_finite(name, values.iter().filter(|x| !x.is_finite()).count())?;
        Ok(values)
    }

    /// A tensor in the given dtype, without a detour through f32 if it is stored in it.
    fn data<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: Dtype,
    ) -> Result<TensorData, String> {
        let (shard, info, stored) = self.check_tensor(name, &shape)?;
        if stored == dtype && dtype != Dtype::F32 {
            let bytes = shard.data(info);
            let (data, n_not_finite) = match dtype {
                Dtype::F16 => halves(bytes, shape, f16::from_bits, f16::is_finite),
                _ => halves(bytes, shape, bf16::from_bits, bf16::is_finite),
            };
            shard.release(info);
            return check_finite(name, n_not_finite).map(|()| data);
        }
        let values = self.values(name, &shape)?;
        let too_large = values.iter().filter(|x| dtype == Dtype::F16 && x.abs() > 65504.0).count();
        if too_large > 0 {
            return Err(format!(
                "{name}: {too_large} values are out of range for f16; use dtype bf16 or f32"
            ));
        }
        Ok(TensorData::new(values, shape).convert_dtype(dtype.burn()))
    }

    /// Reports everything that did not match.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of the wrong shape or dtype, or not finite.
    pub fn finish(self) -> Result<(), FileError> {
        let unexpected = self.unused.iter().map(|name| format!("unexpected: {name}"));
        self.report(self.problems.iter().cloned().chain(unexpected).collect())
    }

    fn report(&self, problems: Vec<String>) -> Result<(), FileError> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(FileError::Tensors { path: self.place.clone(), problems: shorten(problems) })
        }
    }
}

/// Adds a tensor to an index. One that is there already under that name must be equal.
fn insert(
    shards: &[Shard],
    index: &mut BTreeMap<String, (usize, String)>,
    name: String,
    place: (usize, String),
    problems: &mut Vec<String>,
) {
    let content = |(shard_idx, name): &(usize, String)| {
        let shard = &shards[*shard_idx];
        shard.info(name).map(|info| (info.dtype, &info.shape, shard.data(info)))
    };
    match index.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(place);
        }
        Entry::Occupied(entry) => {
            if content(entry.get()) != content(&place) {
                let (name, first, second) = (entry.key(), &entry.get().1, &place.1);
                problems.push(format!("{name} is there twice with different values: {first} and {second}"));
            }
        }
    }
}

struct DeviceSource<'a, B: Backend> {
    weights: &'a mut Weights,
    precision: Precision,
    device: &'a B::Device,
}

impl<B: Kernels> DeviceSource<'_, B> {
    /// Reads a tensor with `read`.
    fn load<const D: usize>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Weights, &B::Device) -> Result<Tensor<B, D>, String>,
    ) -> Tensor<B, D> {
        self.weights.unused.remove(name);
        read(self.weights, self.device).unwrap_or_else(|problem| {
            self.weights.problems.push(problem);
            // The placeholder has one element, so that a wrong configuration cannot make us allocate absurd sizes.
            Tensor::zeros([1; D], self.device)
        })
    }
}

impl<B: Kernels> TensorSource<B> for DeviceSource<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let stored = self.weights.info(name).and_then(|(_, info)| model_dtype(info));
        let Precision { dtype, matrices, .. } = self.precision;
        let dtype = if D == 2 && stored == Some(matrices) { matrices } else { dtype };
        self.load(name, |weights, device| {
            Ok(Tensor::from_data(weights.data(name, shape, dtype)?, (device, dtype.burn())))
        })
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        match self.precision.quant_of(name, &shape) {
            Some(quant) => self.load(name, |weights, device| {
                Ok(quant.quantize::<B>(&weights.values(name, &shape)?, shape, device))
            }),
            None => self.take(name, shape),
        }
    }
}

fn check_finite(name: &str, n_not_finite: usize) -> Result<(), String> {
    match n_not_finite {
        0 => Ok(()),
        1 => Err(format!("{name}: 1 value is NaN or infinite")),
        n => Err(format!("{name}: {n} values are NaN or infinite")),
    }
}

fn half(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

/// The numbers of a tensor's bytes in half precision, and how many of them are not finite.
fn halves<E: Element, const D: usize>(
    bytes: &[u8],
    shape: [usize; D],
    from_bits: fn(u16) -> E,
    is_finite: fn(E) -> bool,
) -> (TensorData, usize) {
    let values: Vec<E> = bytes.chunks_exact(2).map(|b| from_bits(half(b))).collect();
    let n_not_finite = values.iter().filter(|x| !is_finite(**x)).count();
    (TensorData::new(values, shape), n_not_finite)
}

/// The numbers of a tensor's bytes.
pub(crate) fn floats(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::Bf16 => bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(half(b)) << 16)).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(half(b)).to_f32()).collect(),
    }
}

/// The numbers of a tensor in a file, if models can be loaded from its dtype.
pub(crate) fn floats_of(dtype: safetensors::Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    known_dtype(dtype).map(|dtype| floats(bytes, dtype))
}

/// The dtype of a tensor in a file, if models can be loaded from it.
fn model_dtype(info: &TensorInfo) -> Option<Dtype> {
    known_dtype(info.dtype)
}

fn known_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Llama, Roberta, shards::SINGLE};
    use burn_flex::Flex;
    use reft_core::files::write_tensors;
    use std::path::Path;

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
    fn the_fingerprints_of_version_0_1_stay_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        small_model(folder.path());
        let weights = open(folder.path()).expect("opened");
        // Computed with Python's hashlib.
        let expected = "a6455fe4b0a1a64811d49f86091c8d97";
        for config in [
            r#"{"model_type": "llama", "hidden_size": 2}"#,
            r#"{"hidden_size": 2, "torch_dtype": "float32", "model_type": "llama"}"#,
        ] {
            assert_eq!(weights.earlier_fingerprint(config.as_bytes()), expected);
        }
        assert_ne!(weights.earlier_fingerprint(br#"{"hidden_size": 3, "model_type": "llama"}"#), expected);
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
        let precision = Precision::new(Dtype::F16);
        weights.on::<Flex>(precision, &Default::default()).take("a", [3]);
        assert_eq!(
            message(weights.finish(), folder.path()),
            "folder: the tensors do not match the configuration:\n  \
             a: 2 values are out of range for f16; use dtype bf16 or f32"
        );
    }

    /// What loading would say about a folder with these tensors, each of one repeated value.
    fn check<M: Pretrained<Flex>>(config: &str, tensors: &[(String, Vec<usize>, f32)]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let config = M::parse(config.as_bytes()).expect("a valid configuration");
        let named: Vec<_> = tensors
            .iter()
            .map(|(name, shape, value)| {
                (name.as_str(), shape.as_slice(), vec![*value; shape.iter().product()])
            })
            .collect();
        write(folder.path(), SINGLE, &named);
        let mut weights = open(folder.path()).expect("opened");
        weights.adopt_names::<Flex, M>(&config);
        weights.take_head();
        match weights.check(M::tensors(&config)) {
            Ok(ignored) => {
                ignored.iter().map(|name| format!("ignored: {name}")).collect::<Vec<_>>().join("; ")
            }
            Err(error) => error.to_string().lines().skip(1).map(str::trim).collect::<Vec<_>>().join("; "),
        }
    }

    fn tensors_of<M: Pretrained<Flex>>(config: &str) -> Vec<(String, Vec<usize>, f32)> {
        let config = M::parse(config.as_bytes()).expect("a valid configuration");
        M::tensors(&config).map(|(name, shape)| (name, shape, 1.0)).collect()
    }

    fn renamed(
        tensors: &[(String, Vec<usize>, f32)],
        name: impl Fn(&str) -> String,
    ) -> Vec<(String, Vec<usize>, f32)> {
        tensors.iter().map(|(old, shape, value)| (name(old), shape.clone(), *value)).collect()
    }

    const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 5, "tie_word_embeddings": true}"#;

    #[test]
    fn a_decoder_has_any_names_that_programs_give_it() {
        let plain = tensors_of::<Llama<Flex>>(LLAMA);
        let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
        let changes: [fn(&str, &str) -> String; 6] = [
            |name, _| name.into(),
            |_, bare| bare.into(),
            |name, _| format!("module.{name}"),
            |name, _| format!("_orig_mod.module.{name}"),
            |_, bare| format!("base_model.model.model.{bare}"),
            |name, _| name.replace("layers.1.", "layers.1._orig_mod."),
        ];
        for change in changes {
            let mut tensors = renamed(&plain, |name| change(name, &bare(name)));
            tensors.push(("layers.0.self_attn.rotary_emb.inv_freq".into(), vec![1], 0.0));
            tensors.push(("lm_head.weight".into(), vec![5, 4], 2.0));
            assert_eq!(check::<Llama<Flex>>(LLAMA, &tensors), "", "{}", tensors[1].0);
        }
        let others = renamed(&plain, |name| name.replace("embed_tokens", "wte"));
        assert_eq!(
            check::<Llama<Flex>>(LLAMA, &others),
            "missing: model.embed_tokens.weight [5, 4]; unexpected: model.wte.weight"
        );
    }

    #[test]
    fn a_model_within_a_larger_one_is_found() {
        let untied = LLAMA.replace("true", "false");
        let plain = tensors_of::<Llama<Flex>>(&untied);
        for (prefix, head) in [
            ("transformer.", "lm_head"),
            ("transformer.", "transformer.lm_head"),
            ("language_model.model.", "language_model.lm_head"),
            ("model.language_model.", "lm_head"),
        ] {
            let mut tensors = renamed(&plain, |name| match name.strip_prefix("model.") {
                Some(name) => format!("{prefix}{name}"),
                None => name.replace("lm_head", head),
            });
            tensors.push(("vision_tower.layers.0.weight".into(), vec![1], 0.0));
            assert_eq!(
                check::<Llama<Flex>>(&untied, &tensors),
                "ignored: vision_tower.layers.0.weight",
                "{prefix}"
            );
        }
        let config = r#"{"model_type": "bert", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 5, "max_position_embeddings": 8}"#;
        let tensors = renamed(&tensors_of::<Roberta<Flex>>(config), |name| format!("0.auto_model.{name}"));
        assert_eq!(check::<Roberta<Flex>>(config, &tensors), "");
        // Two models: neither is taken.
        let two: Vec<_> = ["a.", "b."]
            .iter()
            .flat_map(|prefix| renamed(&plain, |name| format!("{prefix}{name}")))
            .collect();
        assert!(
            check::<Llama<Flex>>(&untied, &two).starts_with("missing: model.embed_tokens.weight [5, 4]; ")
        );
    }

    #[test]
    fn other_parts_are_left_unused_and_surplus_tensors_of_the_model_are_refused() {
        let plain = tensors_of::<Llama<Flex>>(LLAMA);
        let with = |name: &str| {
            let mut tensors = plain.clone();
            tensors.push((name.into(), vec![4], 1.0));
            check::<Llama<Flex>>(LLAMA, &tensors)
        };
        for name in ["score.weight", "v_head.summary.weight", "model.layers.2.input_layernorm.weight"] {
            assert_eq!(with(name), format!("ignored: {name}"));
        }
        for name in [
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.1.self_attn.q_proj.bias",
            "model.norm.bias",
        ] {
            assert_eq!(with(name), format!("unexpected: {name}"));
        }
    }

    #[test]
    fn a_missing_output_says_how_it_may_be_tied() {
        let untied = LLAMA.replace("true", "false");
        assert_eq!(
            check::<Llama<Flex>>(&untied, &tensors_of::<Llama<Flex>>(LLAMA)),
            "missing: lm_head.weight [5, 4]; if the output shares the embeddings, set tie_word_embeddings to true in \
             config.json"
        );
    }

    #[test]
    fn a_tied_embedding_may_be_saved_as_the_output_head() {
        let tied = renamed(&tensors_of::<Llama<Flex>>(LLAMA), |name| {
            if name == "model.embed_tokens.weight" { "lm_head.weight".into() } else { name.into() }
        });
        assert_eq!(check::<Llama<Flex>>(LLAMA, &tied), "");
        let untied = LLAMA.replace("true", "false");
        assert_eq!(check::<Llama<Flex>>(&untied, &tied), "missing: model.embed_tokens.weight [5, 4]");
    }

    #[test]
    fn a_tensor_that_is_there_twice_must_be_equal() {
        let mut tensors = tensors_of::<Llama<Flex>>(LLAMA);
        tensors.push(("norm.weight".into(), vec![4], 1.0));
        assert_eq!(check::<Llama<Flex>>(LLAMA, &tensors), "");
        tensors.push(("module.norm.weight".into(), vec![4], 3.0));
        assert_eq!(
            check::<Llama<Flex>>(LLAMA, &tensors),
            "model.norm.weight is there twice with different values: model.norm.weight and module.norm.weight"
        );
    }

    #[test]
    fn an_encoder_has_any_names_that_programs_give_it() {
        for model_type in ["bert", "roberta", "xlm-roberta"] {
            let config = format!(
                r#"{{"model_type": "{model_type}", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "vocab_size": 5, "max_position_embeddings": 8}}"#
            );
            let plain = tensors_of::<Roberta<Flex>>(&config);
            for prefix in [
                "",
                "bert.",
                "roberta.",
                "module.roberta.",
                "_orig_mod.bert.",
                "base_model.model.roberta.",
                "model.",
            ] {
                let mut tensors = renamed(&plain, |name| format!("{prefix}{name}"));
                tensors.push((format!("{prefix}embeddings.position_ids"), vec![1, 8], 0.0));
                tensors.push((format!("{prefix}pooler.dense.weight"), vec![4, 4], 0.0));
                assert_eq!(check::<Roberta<Flex>>(&config, &tensors), "", "{model_type}: {prefix}");
            }
        }
    }

    #[test]
    fn a_configuration_with_more_blocks_than_the_files_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let far = "model.layers.30000000.input_layernorm.weight";
        write(folder.path(), SINGLE, &[("model.layers.0.a", &[1], vec![0.0]), (far, &[1], vec![0.0])]);
        let weights = open(folder.path()).expect("opened");
        assert_eq!(weights.check_blocks(2), Ok(()));
        assert_eq!(
            weights.check_blocks(30_000_000),
            Err("num_hidden_layers is 30000000, but the weights have the tensors of 2 blocks".into())
        );
    }
}
