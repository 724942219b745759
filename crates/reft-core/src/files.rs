//! Files that are complete or absent: atomic writes, and safetensors files that are loaded strictly.

use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
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

/// Whether a file is a pointer of Git LFS in place of the file itself.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// What is wrong with a file that is no safetensors file, and what to do.
pub fn safetensors_damage(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.is_empty() {
        return "is empty; download it again".into();
    }
    if is_lfs_pointer(bytes) {
        return "is a Git LFS pointer and not the file itself; run `git lfs pull` in the folder, or download the file"
            .into();
    }
    if bytes.starts_with(b"<") {
        return "is a web page and not a safetensors file; download it again".into();
    }
    if bytes.starts_with(b"PK") || bytes.starts_with(b"\x80") {
        return "is a pickle file of PyTorch and not a safetensors file; convert it with transformers' save_pretrained"
            .into();
    }
    let cause = match error {
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            format!("its header claims to be longer than the file, {} bytes, or than 100 MB", bytes.len())
        }
        error => error.to_string(),
    };
    format!("not a complete safetensors file: {cause}; download it again")
}

/// Parses the content of a safetensors file.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn parse_safetensors(bytes: &[u8]) -> Result<SafeTensors<'_>, String> {
    SafeTensors::deserialize(bytes).map_err(|error| safetensors_damage(bytes, &error))
}

/// Says what a file is in place of JSON in UTF-8, if its first bytes show that.
///
/// # Errors
/// What it is, and what to do.
pub fn check_json_text(bytes: &[u8]) -> Result<(), String> {
    let found = match bytes {
        _ if is_lfs_pointer(bytes) => {
            "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
        }
        [0xef, 0xbb, 0xbf, ..] => "starts with a byte order mark; save it as UTF-8 without one",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16; save it as UTF-8",
        _ => match bytes.trim_ascii_start() {
            [] => "is empty; copy or download it again",
            [b'<', ..] => "is a web page, not the file itself; download it again",
            _ => return Ok(()),
        },
    };
    Err(format!("the file {found}"))
}

/// The message of a parser of JSON or TOML in words that do not come from Rust: `a whole number from 0` for `usize`.
pub fn plain_words(message: &str) -> String {
    const EXPECTED: &str = "expected ";
    let mut parts = message.split(EXPECTED);
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |plain, part| {
        let (word, rest) = plain_start(part);
        plain + EXPECTED + &word + rest
    })
}

/// The plain words for the type that a text begins with, and the rest of the text.
fn plain_start(text: &str) -> (String, &str) {
    let word_end =
        |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, rest) = text.split_at(word_end(text));
    let from_0 = |largest: u64| format!("a whole number from 0 to {largest}");
    let plain = match word {
        "u8" => from_0(u8::MAX.into()),
        "u16" => from_0(u16::MAX.into()),
        "u32" => from_0(u32::MAX.into()),
        "u64" | "u128" | "usize" => "a whole number from 0".into(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "struct" | "enum" => {
            let name = rest.trim_start();
            let plain = if word == "struct" { "a group of keys" } else { "text" };
            return (plain.into(), &name[word_end(name)..]);
        }
        "a" => {
            let known = [(" sequence", "a list"), (" boolean", "true or false"), (" map", "a group of keys")];
            let known = known.iter().find_map(|(rust, plain)| Some((*plain, rest.strip_prefix(rust)?)));
            return known.map_or((word.into(), rest), |(plain, rest)| (plain.into(), rest));
        }
        _ => word.into(),
    };
    (plain, rest)
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
///
/// # Errors
/// If a number is NaN or infinite, for such a file cannot be loaded again; or if the file cannot be written.
pub fn write_tensors(path: &Path, tensors: TensorList) -> Result<(), FileError> {
    let is_finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
    if let Some((name, _)) = tensors.iter().find(|(_, (_, values))| !is_finite(values)) {
        let reason = format!(
            "not written: {name} has NaN or infinite values; with a lower learning rate they may stay finite"
        );
        return Err(FileError::Invalid { path: path.into(), reason });
    }
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
        let file =
            parse_safetensors(bytes).map_err(|reason| FileError::Invalid { path: path.into(), reason })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_names_of_rust_types() {
        for (message, plain) in [
            (
                "invalid type: string \"3\", expected usize",
                "invalid type: string \"3\", expected a whole number from 0",
            ),
            (
                "integer `-1`, expected u8 at line 2",
                "integer `-1`, expected a whole number from 0 to 255 at line 2",
            ),
            ("expected f64\n", "expected a number\n"),
            ("expected i64, expected a sequence", "expected a whole number, expected a list"),
            ("null, expected struct BaseModel at line 1", "null, expected a group of keys at line 1"),
            ("expected a boolean", "expected true or false"),
            ("expected struct", "expected a group of keys"),
            ("expected usizes or `,`", "expected usizes or `,`"),
            ("expected a string", "expected a string"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(plain_words(message), plain);
        }
        assert!(plain_words(&"expected struct é".repeat(100_000)).len() > 100_000);
    }

    #[test]
    fn files_that_are_no_json_are_named() {
        for (bytes, reason) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], "is a pointer of Git LFS"),
            (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
            (b"\xff\xfe{\0}\0", "is UTF-16"),
            (b" \n", "is empty"),
            (b"<!DOCTYPE html>", "is a web page"),
        ] {
            let found = check_json_text(bytes).expect_err("not JSON");
            assert!(found.starts_with(&format!("the file {reason}")), "{found}");
        }
        check_json_text(b"{}").expect("JSON");
    }
}
