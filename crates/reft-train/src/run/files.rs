//! Which files in a folder belong to a run, and the replacement of an earlier run by a new one.

use crate::error::RunError;
use reft_core::FileError;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

pub(super) const RECIPE_FILE: &str = "recipe.toml";
pub(super) const METRICS_FILE: &str = "metrics.jsonl";
pub(super) const SUMMARY_FILE: &str = "summary.json";
pub(super) const ADAPTER_FOLDER: &str = "adapter";
/// Marks a folder as that of a run. A run locks it as long as it goes on; the system unlocks it when the process ends.
const MARKER_FILE: &str = ".reft-run";
/// Where the files of a replaced run are until the new one has succeeded.
const REPLACED_FOLDER: &str = ".reft-replaced";
/// The files of an adapter, of this library and in PEFT's format.
const ADAPTER_FILES: [&str; 5] = [
    "adapter.json",
    "adapter.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tuned.safetensors",
];

/// The files that runs write, by their paths within the folder.
fn run_files() -> impl Iterator<Item = PathBuf> {
    let own = [RECIPE_FILE, METRICS_FILE, SUMMARY_FILE].map(PathBuf::from);
    own.into_iter().chain(ADAPTER_FILES.map(|file| Path::new(ADAPTER_FOLDER).join(file)))
}

/// Whether a folder is that of a run: it has the marker, or, of version 0.1, the recipe and the log.
fn is_run(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    has(MARKER_FILE) || (has(RECIPE_FILE) && has(METRICS_FILE))
}

/// Checks that a run folder does not exist, is empty, or may be replaced.
///
/// # Errors
/// If it is none of these, or another process writes to it.
pub(super) fn check_free(folder: &Path, overwrite: bool) -> Result<(), RunError> {
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::io(folder)(error).into()),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    match (is_run(folder), overwrite) {
        (true, true) => {
            let marker = folder.join(MARKER_FILE);
            // The lock is released at once: the run takes it when it writes.
            if marker.is_file() { lock(folder, &marker).map(drop) } else { Ok(()) }
        }
        (false, true) => Err(RunError::NotARun(folder.into())),
        (_, false) => Err(RunError::Exists(folder.into())),
    }
}

fn lock(folder: &Path, marker: &Path) -> Result<File, RunError> {
    let file = File::options().create(true).append(true).open(marker).map_err(FileError::io(marker))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(RunError::Busy(folder.into())),
        // Some file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// A run folder that this process writes to.
///
/// The files of an earlier run are moved aside. They are deleted when the new run has succeeded, and moved back if it ends
/// before it has an adapter. Other files in the folder stay as they are.
#[derive(Debug)]
pub(super) struct Claim {
    folder: PathBuf,
    has_succeeded: bool,
    /// Whether the folder did not exist before.
    is_new: bool,
    lock: Option<File>,
}

impl Claim {
    /// Creates the folder or, if `overwrite` allows it, replaces a run.
    pub(super) fn new(folder: &Path, overwrite: bool) -> Result<Self, RunError> {
        check_free(folder, overwrite)?;
        let is_new = !folder.exists();
        fs::create_dir_all(folder).map_err(FileError::io(folder))?;
        let lock = Some(lock(folder, &folder.join(MARKER_FILE))?);
        let claim = Self { folder: folder.into(), has_succeeded: false, is_new, lock };
        let replaced = folder.join(REPLACED_FOLDER);
        if claim.has_files() {
            // Of a run that failed and the one that it was to replace, the latter is kept. Else what an earlier run had moved
            // aside is older than what is there now.
            if replaced.join(SUMMARY_FILE).is_file() && !folder.join(SUMMARY_FILE).is_file() {
                remove_files(folder)?;
            } else {
                remove_files(&replaced)?;
                move_files(folder, &replaced)?;
            }
        }
        Ok(claim)
    }

    fn has_files(&self) -> bool {
        run_files().any(|file| self.folder.join(file).is_file())
    }

    /// Deletes the files of the replaced run.
    pub(super) fn succeed(&mut self) -> Result<(), FileError> {
        self.has_succeeded = true;
        remove_files(&self.folder.join(REPLACED_FOLDER))
    }

    /// Where the files of the replaced run are, if there was one.
    pub(super) fn replaced(&self) -> Option<PathBuf> {
        Some(self.folder.join(REPLACED_FOLDER)).filter(|folder| folder.is_dir())
    }

    /// Whether the run has saved an adapter.
    pub(super) fn has_adapter(&self) -> bool {
        self.folder.join(ADAPTER_FOLDER).join(ADAPTER_FILES[0]).is_file()
    }

    /// Removes what the run wrote, and moves the files of the replaced run back.
    fn undo(&mut self) -> Result<(), FileError> {
        let replaced = self.folder.join(REPLACED_FOLDER);
        remove_files(&self.folder)?;
        if replaced.is_dir() {
            return move_files(&replaced, &self.folder).and_then(|()| remove_files(&replaced));
        }
        self.lock = None;
        let marker = self.folder.join(MARKER_FILE);
        fs::remove_file(&marker).map_err(FileError::io(&marker))?;
        if self.is_new {
            // Only if nothing else is in it; the same for the parent of all runs.
            if fs::remove_dir(&self.folder).is_ok()
                && let Some(parent) = self.folder.parent().filter(|parent| !parent.as_os_str().is_empty())
            {
                let _ = fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.has_succeeded && !self.has_adapter() {
            // The error that ended the run is the one to report.
            let _ = self.undo();
        }
    }
}

/// Moves the files of a run from one folder to another.
fn move_files(from: &Path, to: &Path) -> Result<(), FileError> {
    let adapter = to.join(ADAPTER_FOLDER);
    fs::create_dir_all(&adapter).map_err(FileError::io(&adapter))?;
    for file in run_files() {
        let path = from.join(&file);
        match fs::rename(&path, to.join(&file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FileError::io(&path)(error)),
            _ => {}
        }
    }
    let _ = fs::remove_dir(from.join(ADAPTER_FOLDER));
    let _ = fs::remove_dir(adapter);
    Ok(())
}

/// Deletes the files of a run, and its folders if nothing else is in them.
fn remove_files(folder: &Path) -> Result<(), FileError> {
    for file in run_files() {
        let path = folder.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FileError::io(&path)(error)),
            _ => {}
        }
    }
    let _ = fs::remove_dir(folder.join(ADAPTER_FOLDER));
    let _ = fs::remove_dir(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            fs::write(path, text).expect("written");
        }
    }

    const OLD: [(&str, &str); 4] = [
        ("recipe.toml", "old"),
        ("metrics.jsonl", "old"),
        ("adapter/adapter.json", "old"),
        ("adapter/adapter.safetensors", "old"),
    ];
    const FOREIGN: [(&str, &str); 3] =
        [("notes.txt", "mine"), ("adapter/README.md", "mine"), ("checkpoints/a/b.bin", "mine")];

    /// The files of a folder, except the marker.
    fn files(folder: &Path) -> BTreeMap<String, String> {
        fn add(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    add(root, &path, found);
                } else if !path.ends_with(MARKER_FILE) {
                    let name = path.strip_prefix(root).expect("within").display().to_string();
                    found.insert(name.replace('\\', "/"), fs::read_to_string(&path).expect("text"));
                }
            }
        }
        let mut found = BTreeMap::new();
        add(folder, folder, &mut found);
        found
    }

    fn expected(lists: &[&[(&str, &str)]]) -> BTreeMap<String, String> {
        lists.concat().into_iter().map(|(name, text)| (name.into(), text.into())).collect()
    }

    #[test]
    fn a_successful_run_replaces_an_earlier_one_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("runs/r");
        write(&run, &OLD);
        write(&run, &FOREIGN);
        let mut claim = Claim::new(&run, true).expect("a run");
        assert!(!run.join(RECIPE_FILE).exists() && run.join(REPLACED_FOLDER).join(RECIPE_FILE).exists());
        let new = [("recipe.toml", "new"), ("adapter/adapter.json", "new")];
        write(&run, &new);
        claim.succeed().expect("deleted");
        drop(claim);
        assert_eq!(files(&run), expected(&[&new, &FOREIGN]));
        assert!(!run.join(REPLACED_FOLDER).exists());
    }

    #[test]
    fn a_run_without_an_adapter_brings_the_earlier_one_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("runs/r");
        write(&run, &OLD);
        write(&run, &FOREIGN);
        let claim = Claim::new(&run, true).expect("a run");
        write(&run, &[("recipe.toml", "new"), ("metrics.jsonl", "new")]);
        drop(claim);
        assert_eq!(files(&run), expected(&[&OLD, &FOREIGN]));
        // A killed process leaves the earlier run aside, and with an adapter of its own that is newer.
        let claim = Claim::new(&run, true).expect("a run");
        write(&run, &[("adapter/adapter.json", "new")]);
        drop(claim);
        assert_eq!(files(&run)["adapter/adapter.json"], "new");
        assert_eq!(files(&run)[".reft-replaced/adapter/adapter.json"], "old");
        let mut claim = Claim::new(&run, true).expect("a run");
        write(&run, &[("adapter/adapter.json", "newest")]);
        claim.succeed().expect("deleted");
        assert_eq!(files(&run), expected(&[&[("adapter/adapter.json", "newest")], &FOREIGN]));
    }

    #[test]
    fn runs_that_fail_one_after_the_other_keep_the_one_that_succeeded() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("r");
        let good = [("recipe.toml", "good"), ("adapter/adapter.json", "good"), ("summary.json", "good")];
        write(&run, &[&good[..], &[("metrics.jsonl", "good")]].concat());
        for _ in 0..3 {
            let claim = Claim::new(&run, true).expect("a run");
            write(&run, &[("recipe.toml", "bad"), ("adapter/adapter.json", "bad")]);
            drop(claim);
            assert_eq!(files(&run)["adapter/adapter.json"], "bad");
            assert_eq!(files(&run)[".reft-replaced/adapter/adapter.json"], "good");
        }
    }

    #[test]
    fn a_new_folder_without_an_adapter_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let runs = folder.path().join("runs");
        let claim = Claim::new(&runs.join("r"), false).expect("free");
        write(&runs.join("r"), &[("recipe.toml", "new")]);
        drop(claim);
        assert!(!runs.exists());
        // An empty folder that was there before is as empty afterwards.
        drop(Claim::new(folder.path(), false).expect("empty"));
        Claim::new(folder.path(), false).expect("still empty");
    }

    #[test]
    fn other_folders_and_runs_under_way_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        // A recipe alone does not make a run: somebody may have put it there.
        write(folder.path(), &[("recipe.toml", "mine"), ("thesis.tex", "mine")]);
        assert!(matches!(Claim::new(folder.path(), true), Err(RunError::NotARun(_))));
        assert!(matches!(Claim::new(folder.path(), false), Err(RunError::Exists(_))));
        let run = folder.path().join("r");
        let claim = Claim::new(&run, true).expect("free");
        write(&run, &[("recipe.toml", "new")]);
        assert!(matches!(check_free(&run, true), Err(RunError::Busy(_))));
        assert!(matches!(Claim::new(&run, true), Err(RunError::Busy(_))));
        assert_eq!(files(&run), expected(&[&[("recipe.toml", "new")]]), "the run under way is untouched");
        write(&run, &[("adapter/adapter.json", "new")]);
        drop(claim);
        check_free(&run, true).expect("the lock of a process that has ended is no lock");
    }
}
