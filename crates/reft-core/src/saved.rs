//! The tensors of an intervention in safetensors files, and files with a single intervention.

use crate::{
    files::{
        FileError, StrictTensors, TensorList, plain_words, safetensors_bytes, safetensors_metadata,
        write_atomic,
    },
    intervention::{Intervention, InterventionConfig, InterventionError, Projection},
    orthogonal::Orthonormal,
    record::config_text,
    tensor::host_values,
};
use burn::{
    module::Param,
    tensor::{Tensor, TensorData, backend::Backend},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The key of the configuration in the metadata of a file with a single intervention.
const CONFIG_KEY: &str = "reft_intervention";

/// A file of an intervention that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The values do not form an intervention.
    #[error("{}: {reason}", path.display())]
    Values {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: InterventionError,
    },
}

/// Adds the tensors of an intervention to a list, with `prefix` before their names.
pub(crate) fn put<B: Backend>(intervention: &Intervention<B>, prefix: &str, out: &mut TensorList) {
    let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
        out.insert(format!("{prefix}{name}"), (shape.to_vec(), values));
    };
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

/// Names and shapes of the tensors of an intervention.
pub(crate) fn shapes(config: &InterventionConfig, prefix: &str) -> Vec<(String, Vec<usize>)> {
    let (d, r) = (config.hidden_size, config.rank);
    let mut shapes = Vec::new();
    if config.method.has_weight() {
        shapes.push(("weight", vec![r, d]));
    }
    shapes.push(("bias", vec![r]));
    if config.method.orthonormal() {
        shapes.extend([("reflectors", vec![d, r]), ("signs", vec![r])]);
    } else {
        shapes.push(("projection", vec![r, d]));
    }
    shapes.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

/// Takes the tensors of an intervention from a file.
pub(crate) fn take<B: Backend>(
    config: &InterventionConfig,
    prefix: &str,
    tensors: &mut StrictTensors<'_>,
    device: &B::Device,
) -> Result<Intervention<B>, InterventionError> {
    let (d, r) = (config.hidden_size, config.rank);
    let mut take = |name: &str, shape: &[usize]| tensors.take(&format!("{prefix}{name}"), shape);
    let weight = config.method.has_weight().then(|| take("weight", &[r, d]));
    let bias = take("bias", &[r]);
    let projection = if config.method.orthonormal() {
        let (reflectors, signs) = (take("reflectors", &[d, r]), take("signs", &[r]));
        Projection::Orthonormal(Orthonormal::from_reflectors(reflectors, signs, d, device))
    } else {
        let values = TensorData::new(take("projection", &[r, d]), [r, d]);
        Projection::Free(Param::from_tensor(Tensor::from_data(values, device)))
    };
    config.with_projection(projection, weight, bias, device)
}

impl<B: Backend> Intervention<B> {
    /// The content of a safetensors file with the values and the configuration.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut tensors = TensorList::new();
        put(self, "", &mut tensors);
        safetensors_bytes(tensors, &[(CONFIG_KEY, config_text(self.config()))])
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. The values are the same bit for bit.
    ///
    /// # Errors
    /// If the bytes are damaged or hold something else.
    pub fn from_bytes(bytes: &[u8], device: &B::Device) -> Result<Self, SavedError> {
        read(Path::new("the bytes of an intervention"), bytes, device)
    }

    /// Saves the intervention to a safetensors file, atomically.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SavedError> {
        let path = path.as_ref();
        Ok(write_atomic(path, &self.to_bytes()).map_err(FileError::io(path))?)
    }

    /// Loads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If the file is missing, damaged, or holds something else.
    pub fn load(path: impl AsRef<Path>, device: &B::Device) -> Result<Self, SavedError> {
        let path = path.as_ref();
        read(path, &fs::read(path).map_err(FileError::io(path))?, device)
    }
}

fn read<B: Backend>(path: &Path, bytes: &[u8], device: &B::Device) -> Result<Intervention<B>, SavedError> {
    let mut tensors = StrictTensors::new(path, bytes)?;
    let invalid = |reason: String| FileError::Invalid { path: path.into(), reason };
    let config = safetensors_metadata(bytes, CONFIG_KEY)
        .ok_or_else(|| invalid("not an intervention of reft: no reft_intervention in its metadata".into()))?;
    let config: InterventionConfig = serde_json::from_str(&config).map_err(|error| {
        invalid(format!("reft_intervention in its metadata: {}", plain_words(&error.to_string())))
    })?;
    config.check().map_err(|reason| SavedError::Values { path: path.into(), reason })?;
    tensors.expect(shapes(&config, ""))?;
    let taken = take(&config, "", &mut tensors, device);
    tensors.finish()?;
    taken.map_err(|reason| SavedError::Values { path: path.into(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::Method;
    use burn_flex::Flex;

    fn edit(method: Method) -> Intervention<Flex> {
        InterventionConfig::new(6, 2).with_method(method).with_seed(3).init(&Default::default())
    }

    #[test]
    fn an_intervention_is_the_same_bit_for_bit_in_bytes_and_files() {
        let folder = tempfile::tempdir().expect("a folder");
        for method in Method::ALL {
            let (saved, path) = (edit(method), folder.path().join(method.name()));
            saved.save(&path).expect("saved");
            let from_file = Intervention::<Flex>::load(&path, &Default::default()).expect("loaded");
            let from_bytes = Intervention::<Flex>::from_bytes(&saved.to_bytes(), &Default::default());
            for loaded in [from_file, from_bytes.expect("read")] {
                assert_eq!((loaded.config(), loaded.values()), (saved.config(), saved.values()));
            }
        }
    }

    #[test]
    fn other_files_are_errors_that_say_what_was_found() {
        let error = |bytes: &[u8]| {
            Intervention::<Flex>::from_bytes(bytes, &Default::default()).expect_err("refused").to_string()
        };
        let with = |metadata: &[(&str, String)]| {
            let mut tensors = TensorList::new();
            put(&edit(Method::Loreft), "", &mut tensors);
            safetensors_bytes(tensors, metadata)
        };
        let config = config_text(edit(Method::Loreft).config());
        assert_eq!(
            error(b"no"),
            "the bytes of an intervention: not a complete safetensors file: header too small; download it again"
        );
        assert_eq!(
            error(&with(&[])),
            "the bytes of an intervention: not an intervention of reft: no reft_intervention in its metadata"
        );
        let changed = |from: &str, to: &str| error(&with(&[(CONFIG_KEY, config.replace(from, to))]));
        assert_eq!(
            changed("loreft", "direft"),
            "the bytes of an intervention: the tensors do not match the configuration:\n  \
             missing: projection [2, 6]\n  unexpected: reflectors\n  unexpected: signs"
        );
        assert_eq!(
            changed("\"rank\":2", "\"rank\":0"),
            "the bytes of an intervention: rank is 0; expected at least 1"
        );
    }
}
