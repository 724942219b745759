//! Models from the Hugging Face Hub.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | folder of the cache, `~/.cache/huggingface` if unset |
//! | `HF_HUB_OFFLINE` | `1`: use only the cache |
//! | `HF_ENDPOINT` | URL of another server |
//! | `HF_TOKEN` | token for gated and private models |

use crate::names::is_plain;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

/// A model that could not be fetched from the Hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a name on the Hub.
    #[error("{name}: no such folder, and not a name on the Hub, which has the form `owner/model`")]
    NotFound {
        /// The name.
        name: String,
    },
    /// A file is not in the cache, and the Hub must not be used.
    #[error(
        "{name}: {file} (revision {revision}) is not in the cache {}; unset HF_HUB_OFFLINE to download it, \
         or give the path of a folder", cache.display()
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
    },
    /// A download failed.
    #[error("{name}: cannot download {file} (revision {revision}): {reason}{hint}")]
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
    /// An index of shards names a file that is not safe to download.
    #[error(
        "{name}: {index} names the file {shard:?}; expected a name of letters, digits, `.`, `_` and `-` that does not start \
         with a dot"
    )]
    ShardName {
        /// The model.
        name: String,
        /// The index.
        index: &'static str,
        /// The name in the index.
        shard: String,
    },
}

/// How to access the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The cache folder.
    pub cache: PathBuf,
    /// Use only the cache.
    pub offline: bool,
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

/// Whether the files of a model are in the cache.
pub fn is_cached(name: &str, revision: Option<&str>) -> bool {
    let cache_only = Hub { offline: true, ..Hub::from_env() };
    cache_only.download(name, revision.unwrap_or("main")).is_ok()
}

impl Hub {
    /// Reads the environment variables, see the [module](self).
    pub fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = Cache::from_env();
        Self {
            token: set("HF_TOKEN").or_else(|| cache.token()),
            cache: cache.path().clone(),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|v| !matches!(v.to_lowercase().as_str(), "0" | "false" | "no" | "off")),
            endpoint: set("HF_ENDPOINT"),
        }
    }

    /// Downloads the files of a model that are not in the cache, and returns their folder.
    ///
    /// # Errors
    /// If the model does not exist, its index of shards has unsafe file names, or the network or the server fails.
    pub fn download(&self, name: &str, revision: &str) -> Result<PathBuf, HubError> {
        let is_hub_name = |(owner, model)| is_plain(owner) && is_plain(model);
        if !name.split_once('/').is_some_and(is_hub_name) {
            return Err(HubError::NotFound { name: name.into() });
        }
        let fetch = Fetch { hub: self, name, revision };
        let config = fetch.required("config.json")?;
        fetch.required("tokenizer.json")?;
        for file in [
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
            "chat_template.jinja",
        ] {
            fetch.optional(file)?;
        }
        const INDEX: &str = "model.safetensors.index.json";
        if fetch.optional("model.safetensors")?.is_none() {
            let shards = shards(&fetch.required(INDEX)?);
            // File names become paths in the cache, so all of them are checked before the first download.
            if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
                return Err(HubError::ShardName { name: name.into(), index: INDEX, shard: shard.clone() });
            }
            for shard in &shards {
                fetch.required(shard)?;
            }
        }
        Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
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
}

impl Fetch<'_> {
    fn required(&self, file: &str) -> Result<PathBuf, HubError> {
        match self.optional(file)? {
            Some(path) => Ok(path),
            None if self.hub.offline => Err(HubError::Offline {
                name: self.name.into(),
                file: file.into(),
                revision: self.revision.into(),
                cache: self.hub.cache.clone(),
            }),
            None => Err(self.failed(file, "the model or this file does not exist".into())),
        }
    }

    /// `None` if the file does not exist.
    fn optional(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let repo = Repo::with_revision(self.name.into(), RepoType::Model, self.revision.into());
        let cache = Cache::new(self.hub.cache.clone());
        if let Some(path) = cache.repo(repo.clone()).get(file) {
            return Ok(Some(path));
        }
        // A commit is a folder in the cache, whatever branch it was downloaded as.
        let model = format!("models--{}", self.name.replace('/', "--"));
        let commit = self.hub.cache.join(model).join("snapshots").join(self.revision).join(file);
        if is_plain(self.revision) && commit.is_file() {
            return Ok(Some(commit));
        }
        if self.hub.offline {
            return Ok(None);
        }
        let mut builder = ApiBuilder::from_cache(cache)
            .with_token(self.hub.token.clone())
            .with_retries(2)
            .with_progress(false);
        if let Some(endpoint) = &self.hub.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').into());
        }
        let api = builder.build().map_err(|error| self.failed(file, error.to_string()))?;
        match api.repo(repo).download(file) {
            Ok(path) => Ok(Some(path)),
            Err(ApiError::RequestError(error)) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(file, error.to_string())),
        }
    }

    fn failed(&self, file: &str, reason: String) -> HubError {
        let denied = reason.contains("401") || reason.contains("403");
        let hint = if denied {
            "; accept the model's license on its page and set HF_TOKEN"
        } else {
            "; check the name and the network, or give the path of a folder"
        };
        let (name, revision) = (self.name.into(), self.revision.into());
        HubError::Download { name, file: file.into(), revision, reason, hint }
    }
}

/// The HTTP status of a rejected request.
fn status(error: &dyn std::error::Error) -> Option<u16> {
    // The error type belongs to hf-hub's HTTP client, which is not a dependency of ours. Its text is
    // `URL: status code N`.
    let text = error.to_string();
    let at = text.find("status code ")?;
    text[at + 12..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let hub = Hub { cache: cache.path().into(), offline: true, endpoint: None, token: None };
        assert_eq!(
            hub.download("some/model", "main").expect_err("unsafe name").to_string(),
            "some/model: model.safetensors.index.json names the file \"../../../../../../pwned/evil.safetensors\"; \
             expected a name of letters, digits, `.`, `_` and `-` that does not start with a dot"
        );
    }
}
