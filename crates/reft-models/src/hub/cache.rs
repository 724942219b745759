//! The cache folder of huggingface_hub: `models--owner--model/{blobs, snapshots, refs}`.
//!
//! Files are written under a temporary name and renamed, which never follows a symbolic link. Folders that lead out of the
//! model's own folder are not written to.

use crate::names::is_plain;
use hf_hub::Repo;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The cache of one model. Its names, revision and commits have been checked.
pub(super) struct RepoCache {
    cache: PathBuf,
    folder: PathBuf,
}

/// The content of a file on the server.
pub(super) struct Blob<'a> {
    pub(super) etag: &'a str,
    pub(super) length: u64,
    pub(super) sha256: Option<&'a str>,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, name: &str) -> Self {
        Self { cache: cache.into(), folder: cache.join(Repo::model(name.into()).folder_name()) }
    }

    /// The commit of a revision: that which its ref names, or the revision itself if there are files of it.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let named = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = named.map_or_else(|| revision.to_string(), |commit| commit.trim().to_string());
        (is_plain(&commit) && self.snapshot(&commit).exists()).then_some(commit)
    }

    /// The folder of a commit.
    fn snapshot(&self, commit: &str) -> PathBuf {
        let folder = self.folder.join("snapshots").join(commit);
        self.link_text(&folder).unwrap_or(folder)
    }

    /// The target of a link that an archive or a version control system without links has stored as a text, if that is a folder
    /// of this cache.
    fn link_text(&self, file: &Path) -> Option<PathBuf> {
        const LONGEST: u64 = 512;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() < LONGEST) {
            return None;
        }
        let text = fs::read_to_string(file).ok()?;
        let mut target = file.parent()?.to_path_buf();
        for part in Path::new(text.trim()).components() {
            match part {
                Component::ParentDir => {
                    target.pop();
                }
                Component::Normal(name) => target.push(name),
                _ => return None,
            }
        }
        (target.starts_with(&self.cache) && target != self.cache && target.is_dir()).then_some(target)
    }

    pub(super) fn file(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(file)).filter(|path| path.exists())
    }

    /// Whether the server has said before that a commit does not have a file.
    pub(super) fn is_known_absent(&self, commit: &str, file: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(file).exists()
    }

    /// Remembers that a commit does not have a file. If that fails, the server is asked again next time.
    pub(super) fn note_absent(&self, commit: &str, file: &str) {
        if let Ok(folder) = self.own_folder(&Path::new(".no_exist").join(commit)) {
            let _ = OpenOptions::new().write(true).create_new(true).open(folder.join(file));
        }
    }

    /// Remembers the commit of a revision.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<(), String> {
        if revision == commit {
            return Ok(());
        }
        let path = Path::new("refs").join(revision);
        let folder = self.own_folder(path.parent().unwrap_or(Path::new("refs")))?;
        let write = || {
            let (temporary, mut file) = temporary(&folder)?;
            file.write_all(commit.as_bytes())?;
            fs::rename(&temporary, self.folder.join(&path))
        };
        write().map_err(|error| format!("{}: {error}", self.folder.join(&path).display()))
    }

    /// Writes a file of a commit, and returns its path.
    pub(super) fn store(
        &self,
        commit: &str,
        file: &str,
        blob: &Blob<'_>,
        body: impl Read,
    ) -> Result<PathBuf, String> {
        let blobs = self.own_folder(Path::new("blobs"))?;
        let snapshot = self.own_folder(&Path::new("snapshots").join(commit))?;
        let path = blobs.join(blob.etag);
        let is_there =
            path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == blob.length);
        if !is_there {
            let (temporary, target) = temporary(&blobs).map_err(|error| in_folder(&blobs, &error))?;
            let written = copy(body, target, blob)
                .and_then(|()| fs::rename(&temporary, &path).map_err(|error| in_folder(&blobs, &error)));
            if let Err(error) = written {
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
        }
        let entry = snapshot.join(file);
        link(&path, blob.etag, &snapshot, &entry).map_err(|error| in_folder(&snapshot, &error))?;
        Ok(entry)
    }

    /// A folder in that of the model, made if necessary. It must not lead out of there.
    fn own_folder(&self, relative: &Path) -> Result<PathBuf, String> {
        let folder = self.folder.join(relative);
        let make = || {
            fs::create_dir_all(&self.folder)?;
            let own = self.folder.canonicalize()?;
            // A link in the way must not be followed while folders are made.
            let mut existing = folder.as_path();
            while !existing.exists() {
                existing = existing.parent().unwrap_or(&self.folder);
            }
            if !existing.canonicalize()?.starts_with(&own) {
                return Err(io::Error::other(
                    "is a link to a folder outside of the model's cache; remove it",
                ));
            }
            fs::create_dir_all(&folder)
        };
        make().map_err(|error| in_folder(&folder, &error))?;
        Ok(folder)
    }
}

fn in_folder(folder: &Path, error: &io::Error) -> String {
    format!("{}: {error}", folder.display())
}

/// A new file with a name of its own.
fn temporary(folder: &Path) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".reft-{}-{count}.incomplete", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies a body of a known length and checks it.
fn copy(body: impl Read, mut target: File, blob: &Blob<'_>) -> Result<(), String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    let mut length = 0;
    // One byte more than expected shows that there are more.
    let mut body = body.take(blob.length.saturating_add(1));
    loop {
        let n = body.read(&mut chunk).map_err(|error| {
            format!("the connection ended after {length} of {} bytes: {error}", blob.length)
        })?;
        if n == 0 {
            break;
        }
        length += n as u64;
        if blob.sha256.is_some() {
            hash.update(&chunk[..n]);
        }
        target.write_all(&chunk[..n]).map_err(|error| format!("cannot write to the cache: {error}"))?;
    }
    if length != blob.length {
        let found = if length > blob.length { "more than".into() } else { format!("{length} of") };
        return Err(format!("the server sent {found} {} bytes", blob.length));
    }
    if let Some(expected) = blob.sha256 {
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != expected {
            return Err(format!("the SHA-256 of what the server sent is {found}, expected {expected}"));
        }
    }
    target.sync_all().map_err(|error| format!("cannot write to the cache: {error}"))
}

/// Puts a link to a blob into a snapshot; a copy, where there are no links.
fn link(blob: &Path, etag: &str, snapshot: &Path, entry: &Path) -> io::Result<()> {
    let (temporary, _) = temporary(snapshot)?;
    #[cfg(unix)]
    let linked = fs::remove_file(&temporary)
        .and_then(|()| std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &temporary));
    #[cfg(not(unix))]
    let linked: io::Result<()> = Err(io::Error::other(etag.to_string()));
    if linked.is_err() {
        fs::copy(blob, &temporary)?;
    }
    fs::rename(&temporary, entry)
}
