//! Files that are complete or absent: atomic writes, and safetensors files that are loaded strictly.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
#[cfg(unix)]
use std::fs;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file that cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused to read or write it.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// Its content is not what was expected.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors are missing, unexpected, or have the wrong shape or dtype. Lists all of them.
    #[error("{}: the tensors do not match the configuration:\n  {}", path.display(), problems.join("\n  "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line per problem.
        problems: Vec<String>,
    },
}

impl FileError {
    /// For `map_err` on an I/O operation on `path`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |error| FileError::Io { path: path.into(), error }
    }
}

/// Writes a file under a temporary name, flushes it and renames it, so that it is never half-written.
///
/// # Errors
/// If the folder is not writable or the disk is full; the temporary file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_renamed(path, bytes).map_err(without_path)
}

/// The same error without the path of the temporary file, which is gone by then.
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.split_once(" at path \"") {
        Some((cause, _)) => io::Error::new(error.kind(), cause),
        None => error,
    }
}

fn write_renamed(path: &Path, bytes: &[u8]) -> io::Result<()> {
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

/// f32 tensors: name → (shape, values).
pub type TensorList = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes f32 tensors as a safetensors file, atomically.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If a shape does not match its number of values.
pub fn write_tensors(path: &Path, tensors: TensorList) -> Result<(), FileError> {
    write_atomic(path, &safetensors_bytes(tensors, &[])).map_err(FileError::io(path))
}

/// The content of a safetensors file with these tensors and metadata.
pub(crate) fn safetensors_bytes(tensors: TensorList, metadata: &[(&str, String)]) -> Vec<u8> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape matches its bytes"))
    });
    // transformers and PEFT refuse a file that does not name its framework.
    let framework = ("format".to_string(), "pt".to_string());
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.clone()));
    let metadata = std::iter::once(framework).chain(metadata).collect();
    safetensors::serialize(views, Some(metadata)).expect("f32 tensors serialize")
}

/// A value in the metadata of a safetensors file.
pub(crate) fn safetensors_metadata(bytes: &[u8], key: &str) -> Option<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    metadata.metadata().as_ref()?.get(key).cloned()
}

/// Takes f32 tensors out of a safetensors file and collects every mismatch.
///
/// [`take`](Self::take) never fails: problems are reported all at once by [`finish`](Self::finish).
pub struct StrictTensors<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
    unused: Vec<String>,
    problems: Vec<String>,
}

impl<'a> StrictTensors<'a> {
    /// Parses the content of a safetensors file; `path` names it in errors.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self, FileError> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| FileError::Invalid {
            path: path.into(),
            reason: format!("not a complete safetensors file: {error}"),
        })?;
        let mut unused: Vec<String> = file.names().iter().map(|name| name.to_string()).collect();
        unused.sort();
        Ok(Self { path, file, unused, problems: Vec::new() })
    }

    /// Allows tensors with matching names to stay unused.
    pub fn ignore(&mut self, names: impl Fn(&str) -> bool) {
        self.unused.retain(|name| !names(name));
    }

    /// Checks that the file has exactly these tensors, before anything of their size is allocated.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, or of the wrong shape or dtype.
    pub fn expect(&self, tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<(), FileError> {
        // A file of this many tensors is not meant by a configuration of many more.
        const SHOWN: usize = 1000;
        let (mut problems, mut unused) = (Vec::new(), BTreeSet::from_iter(&self.unused));
        for (name, shape) in tensors {
            unused.remove(&name);
            problems.extend(self.mismatch(&name, &shape));
            if problems.len() == SHOWN {
                problems.push("and more".into());
                return Err(FileError::Tensors { path: self.path.into(), problems });
            }
        }
        problems.extend(unused.iter().map(|name| format!("unexpected: {name}")));
        match problems.is_empty() {
            true => Ok(()),
            false => Err(FileError::Tensors { path: self.path.into(), problems }),
        }
    }

    /// What is wrong with a tensor, apart from its values.
    fn mismatch(&self, name: &str, shape: &[usize]) -> Option<String> {
        match self.file.tensor(name) {
            Err(_) => Some(format!("missing: {name} {shape:?}")),
            Ok(view) if view.dtype() != Dtype::F32 => {
                Some(format!("{name}: dtype {:?}, expected F32", view.dtype()))
            }
            Ok(view) if view.shape() != shape => {
                Some(format!("{name}: shape {:?}, expected {shape:?}", view.shape()))
            }
            Ok(_) => None,
        }
    }

    /// The values of a tensor; zeros, and an entry in the list of problems, if it does not match.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        self.unused.retain(|unused| unused != name);
        match (self.mismatch(name, shape), self.file.tensor(name)) {
            (Some(problem), _) => self.problems.push(problem),
            (None, Err(error)) => self.problems.push(format!("{name}: {error}")),
            (None, Ok(view)) => {
                let values: Vec<f32> = view
                    .data()
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                    .collect();
                if values.iter().all(|x| x.is_finite()) {
                    return values;
                }
                self.problems.push(format!("{name}: contains NaN or infinite values"));
            }
        }
        vec![0.0; shape.iter().product()]
    }

    /// Reports everything that did not match.
    ///
    /// # Errors
    /// If any tensor is missing, unexpected, of the wrong shape or dtype, or not finite.
    pub fn finish(mut self) -> Result<(), FileError> {
        self.problems.extend(self.unused.iter().map(|name| format!("unexpected: {name}")));
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(FileError::Tensors { path: self.path.into(), problems: self.problems })
        }
    }
}
