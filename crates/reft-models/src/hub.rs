//! Models by their name on the Hugging Face hub.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | where the cache is, `~/.cache/huggingface` if unset |
//! | `HF_HUB_OFFLINE` | `1`: only what is in the cache |
//! | `HF_ENDPOINT` | another server |
//! | `HF_TOKEN` | access to gated and private models |

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

/// A model that cannot be had by its name.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a hub name.
    #[error("{name}: no such folder, and not a name on the hub, which has the form `owner/model`")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Offline and not in the cache.
    #[error(
        "{name}: {file} (revision {revision}) is not in the cache {}; unset HF_HUB_OFFLINE to download it, \
         or give a folder", cache.display()
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
    /// The server or the network failed.
    #[error("{name}: cannot download {file} (revision {revision}): {reason}{hint}")]
    Download {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// The revision.
        revision: String,
        /// Why.
        reason: String,
        /// What to do next.
        hint: &'static str,
    },
}

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The folder of downloaded models.
    pub cache: PathBuf,
    /// Use only the cache.
    pub offline: bool,
    /// Another server than the hub itself.
    pub endpoint: Option<String>,
    /// Access to gated and private models.
    pub token: Option<String>,
}

/// Downloads a model's files unless the cache has them; returns the folder that holds them.
///
/// # Errors
/// If the model does not exist, or the network or the server fails.
pub fn download(name: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
    Hub::from_env().download(name, revision.unwrap_or("main"))
}

impl Hub {
    /// As the environment says; see the [module](self).
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

    /// Downloads a model's files unless the cache has them; returns the folder that holds them.
    ///
    /// # Errors
    /// If the model does not exist, or the network or the server fails.
    pub fn download(&self, name: &str, revision: &str) -> Result<PathBuf, HubError> {
        let is_hub_name = match name.split_once('/') {
            Some((owner, model)) => {
                let plain = |s: &str| {
                    !s.is_empty()
                        && !s.starts_with('.')
                        && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                };
                plain(owner) && plain(model)
            }
            None => false,
        };
        if !is_hub_name {
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
            for shard in shards(&fetch.required(INDEX)?) {
                fetch.required(&shard)?;
            }
        }
        Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
    }
}

/// The files that an index names. A damaged index is reported when the folder is loaded.
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

    /// None if the file does not exist.
    fn optional(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let repo = Repo::with_revision(self.name.into(), RepoType::Model, self.revision.into());
        let cache = Cache::new(self.hub.cache.clone());
        if let Some(path) = cache.repo(repo.clone()).get(file) {
            return Ok(Some(path));
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
            "; accept the model's licence on its page and set HF_TOKEN"
        } else {
            "; check the name and the network, or give a folder"
        };
        let (name, revision) = (self.name.into(), self.revision.into());
        HubError::Download { name, file: file.into(), revision, reason, hint }
    }
}

/// The HTTP status of a refused request.
fn status(error: &dyn std::error::Error) -> Option<u16> {
    // The error's type belongs to the HTTP library, which is not ours to depend on; its text is `URL: status code N`.
    let text = error.to_string();
    let at = text.find("status code ")?;
    text[at + 12..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}
