//! `adapter_config.json` of PEFT: the settings of LoRA, with the meaning that PEFT gives them.

use fancy_regex::{Regex, RegexBuilder};
use reft_core::{
    FileError,
    files::{check_json_text, plain_words},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{fs, path::Path};

/// The tensors of an adapter that PEFT wrote.
pub(super) const PEFT_TENSORS: &str = "adapter_model.safetensors";
/// Prefix of all tensors in PEFT's files.
pub(super) const ROOT: &str = "base_model.model.";
/// The file.
pub const PEFT_CONFIG: &str = "adapter_config.json";

/// Keys that do not affect what a trained adapter computes.
///
/// `fan_in_fan_out` describes the layers of GPT-2, which no supported model has; PEFT ignores it on others. The
/// configurations of initializations matter only with `init_lora_weights`, which is checked.
const INFORMATIVE: [&str; 13] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "velora_config",
];

/// Initializations that leave the weights of the model as they are.
const INITIALIZATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// A LoRA adapter of PEFT, as its `adapter_config.json` describes it.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    /// The model that it was trained on: a folder or a name on the Hub.
    pub base_model: Option<String>,
    /// The revision of the model on the Hub.
    pub revision: Option<String>,
    /// `CAUSAL_LM`, `SEQ_CLS` or another task.
    pub task_type: Option<String>,
    /// Rank of the updates that `rank_pattern` does not name.
    pub rank: usize,
    /// Alpha of the updates that `alpha_pattern` does not name.
    pub alpha: f64,
    /// Whether updates are scaled by `alpha / √rank` instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Whether the rows of updated weights have learned lengths ([DoRA](https://arxiv.org/abs/2402.09353)).
    pub use_dora: bool,
    /// Whether the file holds biases of the model.
    pub(super) has_biases: bool,
    /// Modules whose weights are in the file, by the last parts of their names.
    pub(super) modules_to_save: Vec<String>,
    targets: Targets,
    exclude: Option<Targets>,
    layers: Vec<usize>,
    layers_pattern: Vec<Regex>,
    rank_pattern: Vec<Pattern<usize>>,
    alpha_pattern: Vec<Pattern<f64>>,
    /// Whether one key decides rank and alpha, as in PEFT before 0.14.
    is_one_key: bool,
}

/// A number for the modules whose names end as a regular expression says.
#[derive(Debug, Clone)]
struct Pattern<T> {
    text: String,
    regex: Regex,
    value: T,
}

/// The modules that a setting names.
#[derive(Debug, Clone)]
enum Targets {
    /// By whole names or by the last parts of names.
    Names(Vec<String>),
    /// By a regular expression for the whole name.
    Pattern(Box<Regex>),
    /// Every linear map within the blocks.
    AllLinear,
}

/// Collects what cannot be used.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl Keys<'_> {
    /// The value of a key; none if it is absent, null or of the wrong type, which is a problem.
    fn get<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        let parsed = serde_json::from_value(value.clone()).ok();
        if parsed.is_none() {
            self.refuse(key, expected);
        }
        parsed
    }

    fn flag(&mut self, key: &str) -> bool {
        self.get(key, "true or false").unwrap_or(false)
    }

    fn refuse(&mut self, key: &str, expected: &str) {
        let value = self.map.get(key).map_or("absent".into(), Value::to_string);
        self.problems.push(format!("{key} is {value}, expected {expected}"));
    }

    /// A regular expression, with `before` and `after` around the pattern.
    fn regex(&mut self, key: &str, before: &str, pattern: &str, after: &str) -> Option<Regex> {
        self.compiled(key, pattern, &format!(r"\A{before}(?:{pattern}){after}"))
    }

    /// The regular expression `text`, which is made of a pattern of the file.
    fn compiled(&mut self, key: &str, pattern: &str, text: &str) -> Option<Regex> {
        // Expressions come from files, so the work for one is bounded.
        const STEPS: usize = 100_000;
        match RegexBuilder::new(text).backtrack_limit(STEPS).build() {
            Ok(regex) => Some(regex),
            Err(error) => {
                self.problems.push(format!("{key}: {pattern:?} is not a regular expression: {error}"));
                None
            }
        }
    }

    fn targets(&mut self, key: &str) -> Option<Targets> {
        match self.map.get(key)? {
            Value::Null => None,
            Value::String(text) if text == "all-linear" => Some(Targets::AllLinear),
            Value::String(text) => Some(Targets::Pattern(Box::new(self.regex(key, "", text, r"\z")?))),
            _ => Some(Targets::Names(self.get(key, "a list of names or a regular expression")?)),
        }
    }

    /// A number or name, or a list of them.
    fn list<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Vec<T> {
        match self.map.get(key) {
            Some(Value::Array(_)) => self.get(key, expected).unwrap_or_default(),
            _ => self.get(key, expected).into_iter().collect(),
        }
    }

    /// An object of numbers by patterns, in the order of the file.
    ///
    /// PEFT before 0.15 looks for `.*\.PATTERN$` without parentheses, so of several alternatives the first one may end
    /// anywhere in a name.
    fn patterns<T: DeserializeOwned>(
        &mut self,
        key: &str,
        has_parentheses: bool,
        expected: &str,
    ) -> Vec<Pattern<T>> {
        const MOST: usize = 10_000;
        let map: Map<String, Value> = self.get(key, expected).unwrap_or_default();
        if map.len() > MOST {
            self.problems.push(format!("{key} has {} entries, expected at most {MOST}", map.len()));
            return Vec::new();
        }
        let mut patterns = Vec::new();
        for (text, value) in map {
            let regex = match has_parentheses {
                true => self.regex(key, r"(.*\.)?", &text, r"\z"),
                false => self.compiled(key, &text, &format!(r"\A(?:.*\.{text}\z)")),
            };
            let Some(regex) = regex else { continue };
            match serde_json::from_value(value.clone()) {
                Ok(value) => patterns.push(Pattern { text, regex, value }),
                Err(_) => self.problems.push(format!("{key}.{text} is {value}, expected {expected}")),
            }
        }
        patterns
    }
}

impl PeftConfig {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// If the file is missing or damaged, or describes something that is not supported; the error lists every such key.
    pub fn read(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(PEFT_CONFIG);
        let text = fs::read_to_string(&path).map_err(FileError::io(&path))?;
        let config = check_json_text(text.as_bytes()).and_then(|()| Self::parse(&text));
        config.map_err(|reason| FileError::Invalid { path, reason })
    }

    /// Parses the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// A message that lists every key that cannot be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| format!("not a PEFT adapter: {}", plain_words(&error.to_string())))?;
        let mut keys = Keys { map: &map, problems: Vec::new() };
        let kind: Option<String> = keys.get("peft_type", "a name");
        match kind.as_deref() {
            Some("LORA") => {}
            Some(other) => {
                return Err(format!("peft_type is {other:?}; of PEFT's adapters only \"LORA\" is supported"));
            }
            None => return Err("not a PEFT adapter: it has no peft_type".into()),
        }
        // The keys that PEFT added in 0.15 or later, and in 0.14.
        let has = |names: &[&str]| names.iter().any(|name| map.contains_key(*name));
        let is_since_15 = has(&["corda_config", "peft_version"]);
        let is_since_14 = is_since_15 || has(&["exclude_modules", "eva_config", "lora_bias"]);
        let layers_pattern: Vec<String> = keys.list("layers_pattern", "names");
        let layers_pattern = if layers_pattern.is_empty() { vec!["[^.]*".into()] } else { layers_pattern };
        let layer_regex = |text: &String| keys.regex("layers_pattern", r".*\.", text, r"\.(\d+)\.");
        let layers_pattern = layers_pattern.iter().filter_map(layer_regex).collect();
        let config = Self {
            base_model: keys.get("base_model_name_or_path", "a name"),
            revision: keys.get("revision", "a name"),
            task_type: keys.get("task_type", "a name"),
            rank: keys.get("r", "a whole number").unwrap_or(8),
            alpha: keys.get("lora_alpha", "a number").unwrap_or(8.0),
            use_rslora: keys.flag("use_rslora"),
            use_dora: keys.flag("use_dora"),
            has_biases: keys.get("bias", "a name").is_some_and(|bias: String| bias != "none"),
            modules_to_save: keys.get("modules_to_save", "a list of names").unwrap_or_default(),
            targets: keys.targets("target_modules").unwrap_or(Targets::Names(Vec::new())),
            exclude: keys.targets("exclude_modules"),
            layers: keys.list("layers_to_transform", "whole numbers"),
            layers_pattern,
            rank_pattern: keys.patterns("rank_pattern", is_since_15, "whole numbers by names"),
            alpha_pattern: keys.patterns("alpha_pattern", is_since_15, "numbers by names"),
            is_one_key: !is_since_14,
        };
        config.check(&mut keys);
        if keys.problems.is_empty() { Ok(config) } else { Err(keys.problems.join("; ")) }
    }

    fn check(&self, keys: &mut Keys) {
        const READ: [&str; 16] = [
            "peft_type",
            "base_model_name_or_path",
            "revision",
            "task_type",
            "r",
            "lora_alpha",
            "use_rslora",
            "use_dora",
            "bias",
            "modules_to_save",
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
        ];
        if keys.map.get("bias").is_some_and(|bias| !["none", "all", "lora_only"].iter().any(|b| bias == b)) {
            keys.refuse("bias", "\"none\", \"all\" or \"lora_only\"");
        }
        if !self.alpha.is_finite() {
            keys.refuse("lora_alpha", "a finite number");
        }
        if self.rank == 0 {
            keys.refuse("r", "at least 1");
        }
        if keys.flag("lora_bias") && self.use_dora {
            keys.refuse("lora_bias", "false with use_dora");
        }
        match keys.map.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(name)) if INITIALIZATIONS.contains(&name.as_str()) => {}
            Some(_) => keys.refuse(
                "init_lora_weights",
                "true, false or \"gaussian\"; others change the weights of the model itself, so convert the adapter with \
                 PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)",
            ),
        }
        let names = keys.map.iter().filter(|(key, value)| {
            let key = key.as_str();
            let is_known = READ.contains(&key) || INFORMATIVE.contains(&key);
            !is_known && !["lora_bias", "init_lora_weights"].contains(&key) && !is_off(value)
        });
        let names: Vec<String> = names.map(|(key, _)| key.clone()).collect();
        for name in names {
            let value = keys.map[&name].to_string();
            let shown: String = value.chars().take(60).collect();
            keys.problems.push(format!("{name} is {shown}, which is not supported"));
        }
    }

    /// Whether the module with this name is updated (PEFT's `check_target_module_exists`).
    pub fn updates(&self, module: &str) -> bool {
        if self.exclude.as_ref().is_some_and(|targets| targets.name(module)) || !self.targets.name(module) {
            return false;
        }
        if self.layers.is_empty() || !matches!(self.targets, Targets::Names(_)) {
            return true;
        }
        if let Targets::Names(names) = &self.targets
            && names.iter().any(|name| name == module)
        {
            return true;
        }
        self.layer_of(module).is_some_and(|layer| self.layers.contains(&layer))
    }

    /// The index of a module's layer, as `layers_pattern` finds it.
    fn layer_of(&self, module: &str) -> Option<usize> {
        let layer = |regex: &Regex| regex.captures(module).ok()??.get(1)?.as_str().parse().ok();
        self.layers_pattern.iter().find_map(layer)
    }

    /// Rank and factor of a module's update.
    pub(super) fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        // PEFT takes the name itself where no pattern matches.
        let of_rank = matching(&self.rank_pattern, module);
        let of_alpha = matching(&self.alpha_pattern, module);
        let (of_rank, of_alpha) =
            if self.is_one_key { (of_rank.or(of_alpha), of_rank.or(of_alpha)) } else { (of_rank, of_alpha) };
        let rank = value_of(&self.rank_pattern, of_rank.unwrap_or(module));
        let alpha = value_of(&self.alpha_pattern, of_alpha.unwrap_or(module));
        let (rank, alpha) = (rank.unwrap_or(self.rank), alpha.unwrap_or(self.alpha));
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / divisor)
    }

    /// Whether a module, or one that contains it, is among `modules_to_save`.
    pub(super) fn saves(&self, module: &str) -> bool {
        let parents = module.match_indices('.').map(|(at, _)| &module[..at]);
        let mut modules = parents.chain([module]);
        modules.any(|module| self.modules_to_save.iter().any(|name| module.ends_with(name.as_str())))
    }

    /// The updated modules, for display.
    pub fn targets(&self) -> String {
        match &self.targets {
            Targets::Names(names) => names.join(", "),
            Targets::Pattern(regex) => {
                let text = regex.as_str();
                text.strip_prefix(r"\A(?:").and_then(|t| t.strip_suffix(r")\z")).unwrap_or(text).into()
            }
            Targets::AllLinear => "all-linear".into(),
        }
    }

    /// Whether a module outside the blocks is a target, which `all-linear` does not include.
    pub(super) fn updates_by_name(&self, module: &str) -> bool {
        !matches!(self.targets, Targets::AllLinear) && self.updates(module)
    }
}

impl Targets {
    fn name(&self, module: &str) -> bool {
        match self {
            Targets::AllLinear => true,
            Targets::Pattern(regex) => regex.is_match(module).unwrap_or(false),
            Targets::Names(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// The first pattern that matches the end of a module's name.
fn matching<'a, T>(patterns: &'a [Pattern<T>], module: &str) -> Option<&'a str> {
    let first = patterns.iter().find(|pattern| pattern.regex.is_match(module).unwrap_or(false));
    first.map(|pattern| pattern.text.as_str())
}

/// The value of a pattern, by its text.
fn value_of<T: Copy>(patterns: &[Pattern<T>], text: &str) -> Option<T> {
    patterns.iter().find(|pattern| pattern.text == text).map(|pattern| pattern.value)
}

/// Whether a setting is switched off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keys: &str) -> Result<PeftConfig, String> {
        PeftConfig::parse(&format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8{keys}}}"#))
    }

    fn parsed(keys: &str) -> PeftConfig {
        config(keys).expect("usable")
    }

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q11: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn targets_are_names_or_a_pattern_of_the_whole_name() {
        let names = parsed(r#", "target_modules": ["q_proj", "mlp.up_proj"]"#);
        assert!(names.updates(Q0) && names.updates("model.layers.3.mlp.up_proj") && names.updates("q_proj"));
        assert!(
            !names.updates("model.layers.0.self_attn.my_q_proj") && !names.updates("model.layers.3.up_proj")
        );
        let pattern = parsed(r#", "target_modules": "(?!.*layers\\.0\\.).*\\.(q|v)_proj""#);
        assert!(pattern.updates(Q11) && !pattern.updates(Q0) && !pattern.updates(&format!("{Q11}.x")));
        let excluding = parsed(r#", "target_modules": "all-linear", "exclude_modules": ["q_proj"]"#);
        assert!(!excluding.updates(Q0) && excluding.updates("model.layers.0.self_attn.v_proj"));
        let layers = parsed(r#", "target_modules": ["q_proj"], "layers_to_transform": [11]"#);
        assert!(layers.updates(Q11) && !layers.updates(Q0));
        let one =
            parsed(r#", "target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers""#);
        assert!(one.updates(Q0) && !one.updates(Q11));
        let other = parsed(
            r#", "target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": ["blocks"]"#,
        );
        assert!(!other.updates(Q0));
    }

    #[test]
    fn patterns_of_rank_and_alpha_follow_the_version_of_peft() {
        let keys = r#", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 5}"#;
        // In older versions the first pattern that matches decides both.
        assert_eq!(parsed(keys).rank_and_scale(Q0), (2, 4.0));
        assert_eq!(parsed(&format!("{keys}, \"peft_version\": \"0.18.0\"")).rank_and_scale(Q0), (2, 2.5));
        assert_eq!(parsed(&format!("{keys}, \"exclude_modules\": null")).rank_and_scale(Q0), (2, 2.5));
        // A key may be the whole name, which older expressions do not match; and of alternatives, only the last must end the name.
        let whole = parsed(&format!(r#", "alpha_pattern": {{"{Q0}": 30}}"#));
        assert_eq!((whole.rank_and_scale(Q0), whole.rank_and_scale(Q11)), ((4, 7.5), (4, 2.0)));
        let either = r#", "alpha_pattern": {"k_proj|q_proj": 20}"#;
        assert_eq!(parsed(either).rank_and_scale(Q0), (4, 2.0));
        assert_eq!(parsed(either).rank_and_scale("model.layers.0.self_attn.k_proj"), (4, 5.0));
        assert_eq!(parsed(&format!("{either}, \"corda_config\": null")).rank_and_scale(Q0), (4, 5.0));
        assert_eq!(parsed(keys).rank_and_scale("model.layers.0.mlp.up_proj"), (4, 2.0));
        let regex = parsed(r#", "rank_pattern": {"layers\\.1\\d\\..*": 16}, "use_rslora": true"#);
        assert_eq!((regex.rank_and_scale(Q11), regex.rank_and_scale(Q0)), ((16, 2.0), (4, 4.0)));
    }

    #[test]
    fn settings_that_cannot_be_used_are_all_named() {
        let error = |keys: &str| config(keys).expect_err("refused");
        assert_eq!(
            error(
                r#", "trainable_token_indices": [1], "layer_replication": [[0, 2]], "bias": "some", "x": null"#
            ),
            "bias is \"some\", expected \"none\", \"all\" or \"lora_only\"; trainable_token_indices is [1], which is not \
             supported; layer_replication is [[0,2]], which is not supported"
        );
        assert!(
            error(r#", "init_lora_weights": "pissa_niter_4""#)
                .starts_with("init_lora_weights is \"pissa_niter_4\"")
        );
        assert_eq!(error(r#", "use_dora": 1"#), "use_dora is 1, expected true or false");
        assert_eq!(
            error(r#", "rank_pattern": {"(": 1}"#).split(": ").take(2).collect::<Vec<_>>().join(": "),
            "rank_pattern: \"(\" is not a regular expression"
        );
        assert_eq!(
            PeftConfig::parse(r#"{"peft_type": "IA3"}"#).expect_err("refused"),
            "peft_type is \"IA3\"; of PEFT's adapters only \"LORA\" is supported"
        );
        for harmless in [
            "init_lora_weights\": \"gaussian",
            "megatron_core\": \"megatron.core",
            "peft_version\": \"0.17.0",
        ] {
            parsed(&format!(", \"{harmless}\""));
        }
    }
}
