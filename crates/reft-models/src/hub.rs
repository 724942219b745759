//! Models from the Hugging Face Hub, in the cache folder that huggingface_hub uses.
//!
//! | variable | meaning |
//! |---|---|
//! | `TRANSFORMERS_CACHE`, else `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE` | the cache; `hub` in the folder of `HF_HOME` if unset |
//! | `HF_HOME` | `huggingface` in the folder of `XDG_CACHE_HOME` if unset, which is `~/.cache` if unset |
//! | `HF_HUB_OFFLINE`, else `TRANSFORMERS_OFFLINE` | `1`, `on`, `yes` or `true`: use only the cache |
//! | `HF_ENDPOINT` | URL of another server |
//! | `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN` | token for gated and private models |
//! | `HF_TOKEN_PATH` | file with the token; `token` in the folder of `HF_HOME` if unset |
//!
//! What a server says becomes the name of a file only if it is a plain name: letters, digits, `.`, `_` and `-`, and no dot at
//! the start. This is checked before anything is written. The token goes to the server alone, not to those to which it
//! redirects.

mod cache;
mod env;
mod request;

use crate::{
    files::ModelFiles,
    names::is_plain,
    tokenizer::missing::{self, OTHER_FILES},
};
use cache::{Blob, RepoCache};
use request::{Answer, Client};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A model that could not be fetched from the Hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a name on the Hub.
    #[error(
        "{name}: no such folder, and not a name on the Hub, which has the form `owner/model` or `model`{}",
        hint.as_ref().map_or(String::new(), |hint| format!("; {hint}"))
    )]
    NotFound {
        /// The name.
        name: String,
        /// What to write instead, if that can be told.
        hint: Option<String>,
    },
    /// A file is not in the cache, and the Hub must not be used.
    #[error(
        "{name}: no such folder, and {file} (revision {revision}) is not in the cache {}; {reason}: unset it to \
         download the file, or give the path of a folder", cache.display()
    )]
    Offline {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
        /// Why, as in [`Hub::offline`].
        reason: String,
    },
    /// A download failed.
    #[error("{name}: cannot download {file} (revision {revision}): {reason}; {hint}")]
    Download {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// The revision.
        revision: String,
        /// The cause.
        reason: String,
        /// What to do next.
        hint: &'static str,
    },
    /// A name that would become the name of a file is not safe.
    #[error(
        "{name}: {what} {found:?}; expected a name of letters, digits, `.`, `_` and `-` that does not start with a dot"
    )]
    Unsafe {
        /// The model.
        name: String,
        /// Where the name is from: `model.safetensors.index.json names the file`.
        what: String,
        /// The name.
        found: String,
    },
}

/// How to access the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The cache folder.
    pub cache: PathBuf,
    /// Why only the cache is used, such as `HF_HUB_OFFLINE is "1"`; none if it is not so.
    pub offline: Option<String>,
    /// URL of another server than huggingface.co.
    pub endpoint: Option<String>,
    /// Token for gated and private models.
    pub token: Option<String>,
}

/// Downloads the files of a model that are not in the cache, and returns their folder.
///
/// # Errors
/// If the model does not exist, or the network or the server fails.
pub fn download(name: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
    Hub::from_env().download(name, revision.unwrap_or("main"))
}

impl Hub {
    /// Downloads the files of a model that are not in the cache, and returns their folder.
    ///
    /// # Errors
    /// If the model does not exist, the server or an index of shards gives names that are not safe, or the network or the
    /// server fails.
    pub fn download(&self, name: &str, revision: &str) -> Result<PathBuf, HubError> {
        let mut fetch = self.fetch(name, revision)?;
        let config = match fetch.optional("config.json")? {
            Some(config) => config,
            None => return Err(fetch.no_config()),
        };
        for file in [
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
        ] {
            fetch.optional(file)?;
        }
        let folder = config.parent().unwrap_or(Path::new(""));
        fetch.tokenizer(folder)?;
        const INDEX: &str = "model.safetensors.index.json";
        if fetch.optional("model.safetensors")?.is_none() {
            let shards = shards(&fetch.required(INDEX)?);
            // All names are checked before the first download.
            if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
                return Err(fetch.refuse(&format!("{INDEX} names the file"), shard));
            }
            for shard in &shards {
                fetch.required(shard)?;
            }
        }
        Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
    }

    /// Whether the cache has a model, maybe without some of its files.
    pub fn has(&self, name: &str, revision: &str) -> bool {
        let found = self.fetch(name, revision).ok().and_then(|fetch| {
            let commit = fetch.commit.as_ref()?;
            fetch.cache.file(commit, "config.json")
        });
        found.is_some()
    }

    fn fetch<'a>(&'a self, name: &'a str, revision: &'a str) -> Result<Fetch<'a>, HubError> {
        if !is_repository(name) {
            return Err(HubError::NotFound { name: name.into(), hint: instead(name) });
        }
        if !revision.split('/').all(is_plain) {
            let (what, found) = ("has no revision".into(), revision.into());
            return Err(HubError::Unsafe { name: name.into(), what, found });
        }
        let cache = RepoCache::new(&self.cache, name);
        let commit = cache.commit(revision);
        let client = Client::new(self.endpoint.as_deref(), self.token.as_deref());
        Ok(Fetch {
            hub: self,
            name,
            revision,
            cache,
            client,
            is_cached: commit.is_some(),
            commit,
            unreachable: None,
        })
    }
}

/// Whether a name has the form `owner/model` or `model`.
fn is_repository(name: &str) -> bool {
    const LONGEST: usize = 96;
    let mut parts = name.split('/');
    let safe = parts.by_ref().take(2).all(is_plain) && parts.next().is_none();
    // The cache writes `--` in place of `/`.
    safe && name.len() <= LONGEST && !name.contains("--") && !name.contains("..")
}

/// What to write in place of the address of a model on the Hub, or of a name with a revision.
fn instead(name: &str) -> Option<String> {
    let with = |model: &str, revision: Option<&str>| {
        let revision = revision.filter(|revision| *revision != "main" && revision.split('/').all(is_plain));
        let revision = revision.map_or(String::new(), |revision| format!(", with the revision `{revision}`"));
        is_repository(model).then(|| format!("give `{model}`{revision}"))
    };
    if let Some((model, revision)) = name.split_once('@') {
        return with(model, Some(revision));
    }
    let address = ["https://", "http://", "hf://"].into_iter().find_map(|scheme| name.strip_prefix(scheme));
    let path = address.unwrap_or(name);
    let path = ["huggingface.co/", "www.huggingface.co/", "hf.co/"]
        .into_iter()
        .find_map(|host| path.strip_prefix(host));
    let path = path.or(name.strip_prefix("hf://"))?;
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    // A page of a model: owner/model/tree/revision/…
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        [owner, model, "tree" | "blob" | "resolve" | "commit", revision, ..] => {
            with(&format!("{owner}/{model}"), Some(revision))
        }
        _ => with(path, None),
    }
}

/// The files that an index names; none if it is damaged, which is reported when the model is loaded.
fn shards(index: &Path) -> BTreeSet<String> {
    let json = fs::read(index).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let map = value.get("weight_map").and_then(|map| map.as_object().cloned()).unwrap_or_default();
    map.values().filter_map(|file| file.as_str().map(str::to_string)).collect()
}

struct Fetch<'a> {
    hub: &'a Hub,
    name: &'a str,
    revision: &'a str,
    cache: RepoCache,
    client: Client,
    /// The commit of the files so far: all files of a model are of one commit.
    commit: Option<String>,
    /// Whether the cache had files of this commit before.
    is_cached: bool,
    /// Why the server could not be reached, if the cache has files to go on with.
    unreachable: Option<String>,
}

impl Fetch<'_> {
    fn required(&mut self, file: &str) -> Result<PathBuf, HubError> {
        match self.optional(file)? {
            Some(path) => Ok(path),
            None => {
                if let Some(reason) = &self.hub.offline {
                    return Err(HubError::Offline {
                        name: self.name.into(),
                        file: file.into(),
                        revision: self.revision.into(),
                        cache: self.hub.cache.clone(),
                        reason: reason.clone(),
                    });
                }
                let absent = "the model, the revision or this file does not exist";
                let reason = self.unreachable.clone().unwrap_or_else(|| absent.into());
                Err(self.failed(file, reason, "check the name and the network, or give the path of a folder"))
            }
        }
    }

    /// Why there is no `config.json`.
    fn no_config(&mut self) -> HubError {
        const FILE: &str = "config.json";
        match self.optional("adapter_config.json") {
            Ok(Some(_)) => self.failed(
                FILE,
                "it is an adapter of PEFT".into(),
                "give its base model as the model, and a folder with the adapter's files as the adapter",
            ),
            _ => match self.required(FILE) {
                Err(error) => error,
                Ok(_) => self.failed(FILE, "the server has it only now".into(), "try again"),
            },
        }
    }

    /// Fetches `tokenizer.json` into the folder of the model's other files.
    fn tokenizer(&mut self, folder: &Path) -> Result<(), HubError> {
        const FILE: &str = "tokenizer.json";
        if self.hub.offline.is_some() || self.optional(FILE)?.is_some() {
            return self.required(FILE).map(drop);
        }
        for file in OTHER_FILES {
            self.optional(file)?;
        }
        let reason = missing::reason(&ModelFiles::Folder(folder.into()), self.name);
        let reason = reason.unwrap_or_else(|error| error.to_string());
        Err(HubError::Download {
            name: self.name.into(),
            file: FILE.into(),
            revision: self.revision.into(),
            reason,
            hint: "put the model's other files into the same folder and give its path",
        })
    }

    /// `None` if the file does not exist.
    fn optional(&mut self, file: &str) -> Result<Option<PathBuf>, HubError> {
        if let Some(commit) = &self.commit {
            if let Some(path) = self.cache.file(commit, file) {
                return Ok(Some(path));
            }
            if self.cache.is_known_absent(commit, file) {
                return Ok(None);
            }
        }
        if self.hub.offline.is_some() || self.unreachable.is_some() {
            return Ok(None);
        }
        const ATTEMPTS: usize = 3;
        let mut result = self.request(file);
        for attempt in 1..ATTEMPTS {
            let Err(Failure::Passing(_)) = &result else { break };
            std::thread::sleep(std::time::Duration::from_millis(300 * attempt as u64));
            result = self.request(file);
        }
        match result {
            Ok(found) => Ok(found),
            Err(Failure::Final(error)) => Err(error),
            // As without a network: what the cache has must do.
            Err(Failure::Passing(reason)) if self.is_cached => {
                self.unreachable = Some(reason);
                Ok(None)
            }
            Err(Failure::Passing(reason)) => {
                Err(self.failed(file, reason, "check the name and the network, or give the path of a folder"))
            }
        }
    }

    fn request(&mut self, file: &str) -> Result<Option<PathBuf>, Failure> {
        let mut answer = self.get(file, self.revision)?;
        // A branch may have moved since the first file.
        if let (Some(ours), Some(theirs)) = (&self.commit, answer.commit())
            && ours != theirs
        {
            let ours = ours.clone();
            answer = self.get(file, &ours)?;
        }
        let (head, body) = match answer {
            Answer::File(head, body) => (head, body),
            Answer::Absent(commit) => {
                let commit = self.commit.clone().or(commit.filter(|commit| is_plain(commit)));
                if let Some(commit) = commit {
                    self.cache.note_absent(&commit, file);
                }
                return Ok(None);
            }
        };
        for (what, found) in [("the server's ETag is", &head.etag), ("the server's commit is", &head.commit)]
        {
            if !is_plain(found) {
                return Err(Failure::Final(self.refuse(what, found)));
            }
        }
        if self.commit.as_ref().is_some_and(|commit| *commit != head.commit) {
            let reason = format!("the server sent a file of the commit {} instead", head.commit);
            return Err(Failure::Final(self.failed(file, reason, "try again later")));
        }
        const MAX_TEXT: u64 = 1 << 30;
        if !file.ends_with(".safetensors") && head.length > MAX_TEXT {
            let reason = format!("it has {} bytes, expected at most {MAX_TEXT}", head.length);
            return Err(Failure::Final(self.failed(file, reason, "give the path of a folder")));
        }
        let blob = Blob { etag: &head.etag, length: head.length, sha256: head.sha256.as_deref() };
        let path = self.cache.store(&head.commit, file, &blob, body).map_err(Failure::Passing)?;
        if self.commit.is_none() {
            self.cache.set_ref(self.revision, &head.commit).map_err(Failure::Passing)?;
            self.commit = Some(head.commit);
        }
        Ok(Some(path))
    }

    fn get(&self, file: &str, revision: &str) -> Result<Answer, Failure> {
        self.client.get(self.name, revision, file).map_err(|error| match error.hint {
            // As transformers: a token that has expired does not make the cache useless.
            Some(_) if error.is_refusal && self.is_cached => Failure::Passing(error.reason),
            Some(hint) => Failure::Final(self.failed(file, error.reason, hint)),
            None => Failure::Passing(error.reason),
        })
    }

    fn refuse(&self, what: &str, found: &str) -> HubError {
        // What a server sends may be long.
        let found = found.chars().take(200).collect();
        HubError::Unsafe { name: self.name.into(), what: what.into(), found }
    }

    fn failed(&self, file: &str, reason: String, hint: &'static str) -> HubError {
        let (name, revision) = (self.name.into(), self.revision.into());
        HubError::Download { name, file: file.into(), revision, reason, hint }
    }
}

enum Failure {
    /// It may work when tried again.
    Passing(String),
    Final(HubError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also if it was downloaded as a branch, so that only the branch names the commit.
    #[test]
    fn a_commit_in_the_cache_is_found_without_a_network() {
        let cache = tempfile::tempdir().expect("a folder");
        let snapshot = cache.path().join("models--some--model/snapshots/0123abcd");
        fs::create_dir_all(&snapshot).expect("created");
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::write(snapshot.join(file), "{}").expect("written");
        }
        let hub = Hub {
            cache: cache.path().into(),
            offline: Some("HF_HUB_OFFLINE is \"1\"".into()),
            endpoint: None,
            token: None,
        };
        assert_eq!(hub.download("some/model", "0123abcd").expect("cached"), snapshot);
        for other in ["main", "../snapshots/0123abcd"] {
            hub.download("some/model", other).expect_err("not in the cache");
        }
    }

    #[test]
    fn addresses_and_revisions_are_answered_with_the_name() {
        let hub = Hub { cache: "cache".into(), offline: None, endpoint: None, token: None };
        let message = |name: &str| hub.download(name, "main").expect_err("no name").to_string();
        let refused =
            "no such folder, and not a name on the Hub, which has the form `owner/model` or `model`";
        for (name, hint) in [
            ("https://huggingface.co/some/model", "; give `some/model`"),
            ("huggingface.co/some/model/", "; give `some/model`"),
            ("http://hf.co/gpt2?x=1", "; give `gpt2`"),
            ("hf://some/model", "; give `some/model`"),
            ("https://huggingface.co/some/model/tree/main", "; give `some/model`"),
            (
                "https://huggingface.co/some/model/blob/v1.0/config.json",
                "; give `some/model`, with the revision `v1.0`",
            ),
            ("some/model@0123abcd", "; give `some/model`, with the revision `0123abcd`"),
            ("some/model@main", "; give `some/model`"),
            ("https://example.com/some/model", ""),
            ("./models/none", ""),
            ("a/b/c", ""),
            ("@", ""),
        ] {
            assert_eq!(message(name), format!("{name}: {refused}{hint}"));
        }
    }

    /// Whoever filled the cache may not have noted which files the model does not have.
    #[test]
    fn a_model_in_the_cache_is_found_though_the_server_is_unreachable() {
        let cache = tempfile::tempdir().expect("a folder");
        let model = cache.path().join("models--some--model");
        let snapshot = model.join("snapshots/0123abcd");
        fs::create_dir_all(&snapshot).expect("created");
        fs::create_dir_all(model.join("refs")).expect("created");
        fs::write(model.join("refs/main"), "0123abcd").expect("written");
        let endpoint = Some("http://127.0.0.1:9".to_string());
        let hub = Hub { cache: cache.path().into(), offline: None, endpoint, token: None };
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            hub.download("some/model", "main").expect_err("incomplete");
            fs::write(snapshot.join(file), "{}").expect("written");
        }
        assert_eq!(hub.download("some/model", "main").expect("cached"), snapshot);
    }

    #[test]
    fn an_index_must_not_name_files_outside_the_cache() {
        let cache = tempfile::tempdir().expect("a folder");
        let snapshot = cache.path().join("models--some--model/snapshots/main-commit");
        fs::create_dir_all(&snapshot).expect("created");
        fs::create_dir_all(cache.path().join("models--some--model/refs")).expect("created");
        fs::write(cache.path().join("models--some--model/refs/main"), "main-commit").expect("written");
        let shard = "../../../../../../pwned/evil.safetensors";
        for (file, text) in [
            ("config.json", "{}".to_string()),
            ("tokenizer.json", "{}".to_string()),
            (
                "model.safetensors.index.json",
                format!(r#"{{"weight_map": {{"a": "good.safetensors", "b": "{shard}"}}}}"#),
            ),
        ] {
            fs::write(snapshot.join(file), text).expect("written");
        }
        // Offline, a name that passes the check is an error of another kind.
        let hub = Hub {
            cache: cache.path().into(),
            offline: Some("HF_HUB_OFFLINE is \"1\"".into()),
            endpoint: None,
            token: None,
        };
        assert_eq!(
            hub.download("some/model", "main").expect_err("unsafe name").to_string(),
            "some/model: model.safetensors.index.json names the file \"../../../../../../pwned/evil.safetensors\"; \
             expected a name of letters, digits, `.`, `_` and `-` that does not start with a dot"
        );
    }
}
