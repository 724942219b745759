//! The environment variables of huggingface_hub.

use super::Hub;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The cache folder. Those of transformers come first: transformers 4 passes them on to huggingface_hub.
const CACHES: [&str; 5] = [
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
];

/// Use only the cache.
const OFFLINE: [&str; 2] = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];

impl Hub {
    /// Reads the environment variables, see the [module](super).
    pub fn from_env() -> Self {
        Self::from_variables(&|name| env::var(name).ok(), env::home_dir().as_deref())
    }

    /// Reads the variables that `get` returns. A variable that is empty counts as unset.
    fn from_variables(get: &dyn Fn(&str) -> Option<String>, user_home: Option<&Path>) -> Self {
        let first =
            |names: &[&str]| names.iter().find_map(|name| get(name).filter(|value| !value.trim().is_empty()));
        let folder = |names: &[&str]| first(names).map(|value| expand_home(value.trim(), user_home));
        let home = folder(&["HF_HOME"]).unwrap_or_else(|| {
            let cache = folder(&["XDG_CACHE_HOME"]);
            cache.unwrap_or_else(|| user_home.unwrap_or(Path::new(".")).join(".cache")).join("huggingface")
        });
        let token_file = folder(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
        let token = token.or_else(|| fs::read_to_string(token_file).ok());
        // The first variable that is set decides.
        let offline = OFFLINE.iter().find_map(|name| Some((*name, first(&[name])?)));
        // An unknown word counts as true, so that nothing is downloaded against somebody's will.
        let is_true =
            |value: &str| !matches!(value.trim().to_lowercase().as_str(), "0" | "false" | "no" | "off");
        let offline = offline.filter(|(_, value)| is_true(value));
        let offline = offline.map(|(name, value)| format!("{name} is {:?}", value.trim()));
        Self {
            cache: folder(&CACHES).unwrap_or_else(|| home.join("hub")),
            offline,
            endpoint: first(&["HF_ENDPOINT"]).map(|url| url.trim().trim_end_matches('/').to_string()),
            token: token
                .map(|token| token.split_whitespace().collect())
                .filter(|token: &String| !token.is_empty()),
        }
    }
}

/// Replaces `~` at the start of a path.
fn expand_home(path: &str, user_home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), user_home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let get = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.to_string())
        };
        Hub::from_variables(&get, Some(Path::new("/home/me")))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let steps = [
            ("XDG_CACHE_HOME", "/xdg", "/xdg/huggingface/hub"),
            ("HF_HOME", "~/hf", "/home/me/hf/hub"),
            ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
            ("HF_HUB_CACHE", "/new", "/new"),
            ("PYTORCH_PRETRAINED_BERT_CACHE", "/bert", "/bert"),
            ("PYTORCH_TRANSFORMERS_CACHE", "/pytorch", "/pytorch"),
            ("TRANSFORMERS_CACHE", "/transformers", "/transformers"),
        ];
        let mut variables = vec![("HF_HUB_CACHE", " ")];
        assert_eq!(hub(&variables).cache, Path::new("/home/me/.cache/huggingface/hub"));
        for (name, value, cache) in steps {
            variables.insert(0, (name, value));
            assert_eq!(hub(&variables).cache, Path::new(cache), "{name}");
        }
    }

    #[test]
    fn offline_has_several_spellings() {
        for value in ["1", "ON", "on", "YES", "True"] {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                assert_eq!(hub(&[(name, value)]).offline, Some(format!("{name} is {value:?}")));
            }
        }
        for value in ["0", "no", "FALSE", "off", ""] {
            assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).offline, None, "{value}");
        }
        assert_eq!(hub(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline, None);
    }

    #[test]
    fn tokens_are_read_from_variables_and_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().display().to_string();
        let file = folder.path().join("elsewhere").display().to_string();
        assert_eq!(hub(&[("HF_HOME", &home)]).token, None);
        fs::write(folder.path().join("token"), "\n hf_home \r\n").expect("written");
        fs::write(folder.path().join("elsewhere"), "hf_file\n").expect("written");
        let mut variables = vec![("HF_HOME", home.as_str())];
        for (name, value, token) in [
            ("HF_HOME", home.as_str(), "hf_home"),
            ("HF_TOKEN_PATH", &file, "hf_file"),
            ("HUGGING_FACE_HUB_TOKEN", "hf_old", "hf_old"),
            ("HF_TOKEN", " hf_new\n", "hf_new"),
        ] {
            variables.push((name, value));
            assert_eq!(hub(&variables).token.as_deref(), Some(token), "{name}");
        }
    }

    #[test]
    fn an_endpoint_has_no_slash_at_the_end() {
        let endpoint = hub(&[("HF_ENDPOINT", "https://mirror.example/hf/")]).endpoint;
        assert_eq!(endpoint.as_deref(), Some("https://mirror.example/hf"));
    }
}
