//! Everything that fixes a run, as TOML.

use crate::metrics::Metric;
use reft_core::{Activation, Component, Layers, Positions, intervention::Init};
use reft_models::{Dtype, Quant};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _, IntoDeserializer},
};
use std::{fs, io, path::Path};
use toml::{Table, Value};

/// A recipe: model, edits, data, training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A folder, a name on the Hugging Face hub, or `embedded:tiny`.
    pub model: String,
    /// Branch, tag or commit on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `auto`, `cpu`, `ndarray`, `wgpu`, `vulkan`, `metal` or `cuda`, or one of several as in `cuda:1`.
    #[serde(default = "auto")]
    pub device: String,
    /// Type of the frozen model's numbers: `f32`, `f16` or `bf16`. If absent, or `auto`: on a GPU the files' own type if
    /// it computes with it, else f32.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "dtype")]
    pub dtype: Option<Dtype>,
    /// Blockwise quantisation of the frozen model's weights: `int8` or `int4`; `none` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quant")]
    pub quant: Option<Quant>,
    /// Where results go.
    pub run: RunSection,
    /// What is learned.
    #[serde(default)]
    pub reft: ReftSection,
    /// LoRA, where `reft.method` asks for it.
    #[serde(default)]
    pub lora: LoraSection,
    /// The head of a classifier.
    #[serde(default)]
    pub head: HeadSection,
    /// What it is learned from.
    pub data: DataSection,
    /// How.
    #[serde(default)]
    pub train: TrainSection,
    /// How it is judged.
    #[serde(default)]
    pub eval: EvalSection,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run's folder.
    pub name: String,
    /// Folder of all runs.
    #[serde(default = "runs")]
    pub folder: String,
    /// Whether a run of the same name may be replaced.
    #[serde(default)]
    pub overwrite: bool,
}

/// `[reft]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReftSection {
    /// An intervention, or a baseline to compare with.
    pub method: Method,
    /// Rank of every edit, or of LoRA's changes.
    pub rank: usize,
    /// `"all"`, `"0,3,8-11"`, `"-1"`, or a list of numbers.
    #[serde(deserialize_with = "layers", serialize_with = "layers_text")]
    pub layers: Layers,
    /// `block_output`, `block_input`, `attention_output` or `mlp_output`.
    pub component: Component,
    /// `fN+lM`, `fN`, `lN` or `all`.
    pub positions: Positions,
    /// Whether prefix and suffix share one edit.
    pub tied: bool,
    /// Activation of `Wh + b`.
    pub activation: Activation,
    /// Dropout of the edited hidden state.
    pub dropout: f64,
    /// `paper` or `identity`.
    pub init: Init,
}

impl Default for ReftSection {
    fn default() -> Self {
        Self {
            method: Method::Loreft,
            rank: 8,
            layers: Layers::all(),
            component: Component::BlockOutput,
            positions: Positions::Ends { first: 7, last: 7 },
            tied: true,
            activation: Activation::Linear,
            dropout: 0.0,
            init: Init::Paper,
        }
    }
}

/// What is trained: an intervention, or a baseline to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// `h + Rᵀ(Wh + b − Rh)`, `R` orthonormal.
    Loreft,
    /// `h + W₂ᵀ(W₁h + b)`.
    Direft,
    /// `h + W₂ᵀ(W₁h + b − W₂h)`.
    Noreft,
    /// `h + Rᵀ(Wh + b)`, `R` orthonormal.
    Orthodireft,
    /// `h + Rᵀ(b − Rh)`, `R` orthonormal.
    Consreft,
    /// `h + Rᵀb`, `R` orthonormal.
    Lobireft,
    /// A classifier's head alone.
    HeadOnly,
    /// The model's biases.
    Bitfit,
    /// All of the model's weights.
    Full,
    /// Low-rank changes of the model's linear maps.
    Lora,
}

impl Method {
    /// The name used in recipes.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.as_ref().and_then(|name| name.as_str()).unwrap_or_default().into()
    }

    /// The intervention, if it is one.
    pub fn intervention(self) -> Option<reft_core::Method> {
        match self {
            Method::Loreft => Some(reft_core::Method::Loreft),
            Method::Direft => Some(reft_core::Method::Direft),
            Method::Noreft => Some(reft_core::Method::Noreft),
            Method::Orthodireft => Some(reft_core::Method::Orthodireft),
            Method::Consreft => Some(reft_core::Method::Consreft),
            Method::Lobireft => Some(reft_core::Method::Lobireft),
            Method::HeadOnly | Method::Bitfit | Method::Full | Method::Lora => None,
        }
    }
}

/// `[lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSection {
    /// Changes are multiplied by `alpha / reft.rank`; twice the rank if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Last parts of the changed maps' names; every map of attention and MLP if absent.
    pub targets: Vec<String>,
    /// Dropout of a change's input, in training.
    pub dropout: f64,
}

impl Default for LoraSection {
    fn default() -> Self {
        Self { alpha: None, targets: Vec::new(), dropout: 0.0 }
    }
}

/// `[head]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadSection {
    /// Peak learning rate; `train.lr` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// `glue/<name>`, `classification` or `regression`; language modelling if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// JSON, JSON Lines, CSV or TSV.
    pub train: String,
    /// Held-out rows, in a file of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// Further files that a task is judged by once, at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// The column of a task's text, or the two columns of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Vec<String>>,
    /// The column of a task's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Use only the first rows of `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_rows: Option<usize>,
    /// Hold out this many rows: the last of `train`, or the first of `eval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_rows: Option<usize>,
    /// `auto`, `alpaca`, `chat`, `plain`, or a Jinja template over the row's fields.
    #[serde(default = "auto")]
    pub template: String,
    /// Longest row in tokens; longer ones are cut from the right. The smaller of 512 and the model's context if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Passes over the data.
    pub epochs: usize,
    /// Updates; overrides `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Rows in a forward pass.
    pub batch_size: usize,
    /// Forward passes in an update.
    pub accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// `linear`, `cosine` or `constant`, after the warm-up.
    pub schedule: crate::optim::ScheduleKind,
    /// Share of all updates over which the learning rate rises.
    pub warmup: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no limit.
    pub clip: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Whether rows are shuffled in every epoch; otherwise they keep the file's order.
    pub shuffle: bool,
    /// Updates between lines of the log.
    pub log_every: usize,
    /// Updates between evaluations; 0 for one at the end.
    pub eval_every: usize,
    /// Whether there is an evaluation after every epoch, in the place of `eval_every`.
    pub eval_each_epoch: bool,
    /// Whether the adapter that does best on the held-out rows is kept, rather than the last.
    pub keep_best: bool,
    /// Evaluations without a better one after which training ends; 0 for never.
    pub patience: usize,
    /// Whether the activations of one block at a time are kept (gradient checkpointing): less memory, about half more
    /// time. If absent, as `quant` asks for it: a block's quantised weights are numbers as long as it is on the tape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointing: Option<bool>,
    /// Dropout within a task's model and head; as the model was pretrained with if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dropout: Option<f64>,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: 3,
            steps: None,
            batch_size: 16,
            accumulation: 1,
            lr: 9e-4,
            schedule: crate::optim::ScheduleKind::Linear,
            warmup: 0.1,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 42,
            shuffle: true,
            log_every: 10,
            eval_every: 0,
            eval_each_epoch: false,
            keep_best: true,
            patience: 0,
            checkpointing: None,
            model_dropout: None,
        }
    }
}

impl TrainSection {
    /// Updates of an epoch, and of the whole run, over that many rows.
    pub fn updates(&self, rows: usize) -> (usize, usize) {
        let of_epoch = rows.div_ceil(self.batch_size * self.accumulation);
        (of_epoch, self.steps.unwrap_or(self.epochs * of_epoch))
    }
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// Rows in a forward pass.
    pub batch_size: usize,
    /// Whether answers are also generated, greedily, and compared with the expected ones.
    pub exact_match: bool,
    /// Most tokens of a generated answer.
    pub max_new_tokens: usize,
    /// The metric by which a task's adapter is chosen; the task's main one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// How a task's held-out rows are used.
    pub protocol: Protocol,
}

/// How a task's held-out rows are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All of them choose the adapter and judge it.
    #[default]
    Same,
    /// As in the paper, a random half of them chooses the adapter and the other half judges it; of more than 5,000 rows,
    /// 1,000 choose.
    ReftPaper,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            batch_size: 16,
            exact_match: false,
            max_new_tokens: 64,
            metric: None,
            protocol: Protocol::Same,
        }
    }
}

fn auto() -> String {
    "auto".into()
}

fn runs() -> String {
    "runs".into()
}

/// A type of numbers; none for `auto`.
///
/// # Errors
/// If it is none of them.
pub fn parse_dtype(text: &str) -> Result<Option<Dtype>, String> {
    choice(text, "auto")
}

/// A quantisation; none for `none`.
///
/// # Errors
/// If it is none of them.
pub fn parse_quant(text: &str) -> Result<Option<Quant>, String> {
    choice(text, "none")
}

fn choice<T: DeserializeOwned>(text: &str, none: &str) -> Result<Option<T>, String> {
    if text == none {
        return Ok(None);
    }
    let value = T::deserialize(text.into_deserializer());
    value.map(Some).map_err(|e: serde::de::value::Error| format!("{e}, or `{none}`"))
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dtype>, D::Error> {
    parse_dtype(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn quant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Quant>, D::Error> {
    parse_quant(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn layers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Layers, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => text.parse().map_err(D::Error::custom),
        Value::Integer(layer) => Ok(Layers::list(&[layer])),
        Value::Array(list) => {
            let layers: Option<Vec<i64>> = list.iter().map(Value::as_integer).collect();
            layers.map(|l| Layers::list(&l)).ok_or_else(|| D::Error::custom("layers: expected whole numbers"))
        }
        other => {
            Err(D::Error::custom(format!("layers: found {other}, expected \"all\", \"0,3,8-11\" or [0, 3]")))
        }
    }
}

fn layers_text<S: serde::Serializer>(layers: &Layers, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&layers.to_string())
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or not a recipe.
    #[error("{file}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// Not `key=value`.
    #[error("{0:?} is not of the form key=value, for example train.lr=4e-4")]
    Override(String),
}

impl Recipe {
    /// Reads a recipe file and applies `key=value` overrides.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has an unknown key or an impossible value.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let file = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|source| RecipeError::Io { file: file.clone(), source })?;
        Self::parse(&text, &file, overrides)
    }

    /// Reads a recipe from text; `file` names it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(text: &str, file: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let invalid = |reason: String| RecipeError::Invalid { file: file.into(), reason };
        // Parsed as a recipe first where nothing is overridden, because that error shows the line.
        let recipe = if overrides.is_empty() {
            toml::from_str::<Recipe>(text).map_err(|e| invalid(with_suggestion(&e.to_string())))?
        } else {
            let mut table: Table = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
            for text in overrides {
                apply(&mut table, text)?;
            }
            table.try_into().map_err(|e: toml::de::Error| invalid(with_suggestion(&e.to_string())))?
        };
        recipe.check().map_err(invalid)?;
        Ok(recipe)
    }

    /// Whether one block of the model is on the tape at a time.
    pub fn checkpointing(&self) -> bool {
        self.train.checkpointing.unwrap_or(self.quant.is_some())
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain data")
    }

    fn check(&self) -> Result<(), String> {
        let mut problems = Vec::new();
        let mut expect = |good: bool, key: &str, found: &dyn std::fmt::Display, expected: &str| {
            if !good {
                problems.push(format!("{key} is {found}, expected {expected}"));
            }
        };
        let (train, eval) = (&self.train, &self.eval);
        expect(train.batch_size > 0, "train.batch_size", &train.batch_size, "at least 1");
        expect(train.accumulation > 0, "train.accumulation", &train.accumulation, "at least 1");
        expect(train.log_every > 0, "train.log_every", &train.log_every, "at least 1");
        expect(train.epochs > 0 || train.steps.is_some(), "train.epochs", &train.epochs, "at least 1");
        expect(train.steps != Some(0), "train.steps", &0, "at least 1");
        expect(train.lr > 0.0 && train.lr.is_finite(), "train.lr", &train.lr, "a number above 0");
        expect((0.0..=1.0).contains(&train.warmup), "train.warmup", &train.warmup, "a share from 0 to 1");
        expect(train.weight_decay >= 0.0, "train.weight_decay", &train.weight_decay, "0 or more");
        expect(train.clip >= 0.0, "train.clip", &train.clip, "0 or more");
        expect(eval.batch_size > 0, "eval.batch_size", &eval.batch_size, "at least 1");
        let rate = |rate: f64| (0.0..1.0).contains(&rate);
        let head_lr = self.head.lr.unwrap_or(1.0);
        expect(head_lr > 0.0 && head_lr.is_finite(), "head.lr", &head_lr, "a number above 0");
        expect(rate(self.lora.dropout), "lora.dropout", &self.lora.dropout, "a share below 1");
        let dropout = train.model_dropout.unwrap_or(0.0);
        expect(rate(dropout), "train.model_dropout", &dropout, "a share below 1");
        let columns = self.data.text.as_ref().map_or(1, Vec::len);
        expect(
            (1..=2).contains(&columns),
            "data.text",
            &format!("a list of {columns}"),
            "one or two columns",
        );
        let (task, method) = (&self.data.task, self.reft.method);
        let headless = task.is_none() && method == Method::HeadOnly;
        expect(
            !headless,
            "reft.method",
            &"head-only",
            "another method: a language model has no head to train",
        );
        let trains_weights = matches!(method, Method::Bitfit | Method::Full | Method::Lora);
        let found = format!("true with reft.method={}", method.name());
        let needless = trains_weights && train.checkpointing == Some(true);
        expect(!needless, "train.checkpointing", &found, "false: baselines keep all blocks on the tape");
        let quantised =
            self.quant.map_or(String::new(), |q| format!("{q} with reft.method={}", method.name()));
        let trained = trains_weights && self.quant.is_some();
        expect(!trained, "quant", &quantised, "none: a baseline trains the weights themselves");
        let paper = task.is_some() && self.data.eval.is_none() && self.data.eval_rows.is_none();
        let paper = paper && eval.protocol == Protocol::ReftPaper;
        expect(!paper, "data.eval", &"absent", "held-out rows, which eval.protocol divides");
        expect(self.reft.rank > 0, "reft.rank", &self.reft.rank, "at least 1");
        expect(self.data.max_length.is_none_or(|n| n > 1), "data.max_length", &1, "at least 2");
        expect(self.data.train_rows != Some(0), "data.train_rows", &0, "at least 1");
        let name = &self.run.name;
        let plain = !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != "..";
        expect(plain, "run.name", &format!("{name:?}"), "the name of a folder; its parent is run.folder");
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
    }
}

/// Sets `a.b=value` in a table. A value that is not TOML is taken as text.
fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let bad = || RecipeError::Override(text.into());
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    let parsed = toml::from_str::<Table>(&format!("x = {value}")).ok().and_then(|mut t| t.remove("x"));
    let value = parsed.unwrap_or_else(|| Value::String(value.into()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().filter(|k| !k.is_empty()).ok_or_else(bad)?;
    let mut table = table;
    for part in path {
        let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(bad)?;
    }
    table.insert(last.into(), value);
    Ok(())
}

/// Adds "did you mean" to serde's message on an unknown key or value, which lists the known ones in backticks.
fn with_suggestion(message: &str) -> String {
    let Some(at) = message.find("unknown field `").or_else(|| message.find("unknown variant `")) else {
        return message.trim_end().into();
    };
    let mut quoted = message[at..].split('`').skip(1).step_by(2);
    let found = quoted.next().unwrap_or_default();
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(found, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(found.len()) / 2);
    match nearest {
        Some((_, known)) => format!("{}\ndid you mean `{known}`?", message.trim_end()),
        None => message.trim_end().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "model = \"m\"\n[run]\nname = \"r\"\n[data]\ntrain = \"d.json\"\n";

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Recipe::parse(text, "r.toml", &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        let error = parse(&format!("{SMALL}[train]\nlearning_rat = 1\nlt = 2"), &[]).expect_err("unknown");
        assert!(error.contains("r.toml") && error.contains("learning_rat"), "{error}");
        let error = parse(&format!("{SMALL}[train]\nbatchsize = 1"), &[]).expect_err("unknown");
        assert!(error.contains("did you mean `batch_size`?") && error.contains("line 7"), "{error}");
        let error = parse(SMALL, &["reft.method=lorft"]).expect_err("unknown");
        assert!(error.contains("did you mean `loreft`?"), "{error}");
    }

    #[test]
    fn any_key_can_be_overridden() {
        let recipe = parse(
            SMALL,
            &["train.lr=4e-4", "reft.layers=[1,-1]", "data.template=plain", "reft.positions=l1"],
        )
        .expect("valid");
        assert_eq!(recipe.train.lr, 4e-4);
        assert_eq!(recipe.reft.layers.to_string(), "1,-1");
        assert_eq!(recipe.data.template, "plain");
        assert_eq!(recipe.reft.positions.to_string(), "l1");
        assert!(parse(SMALL, &["train.lr"]).expect_err("no value").contains("key=value"));
        assert!(parse(SMALL, &["model.x=1"]).is_err());
    }

    #[test]
    fn a_resolved_recipe_reads_back() {
        let recipe = parse(SMALL, &["train.steps=7", "reft.layers=0-2"]).expect("valid");
        assert_eq!(parse(&recipe.to_toml(), &[]).expect("valid"), recipe);
    }

    #[test]
    fn every_recipe_of_the_repository_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let mut files: Vec<_> = [folder.clone(), folder.join("glue")]
            .iter()
            .flat_map(|folder| fs::read_dir(folder).expect("a folder").flatten())
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .collect();
        files.sort();
        assert!(files.len() >= 18, "{files:?}");
        for path in files {
            let recipe = Recipe::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            let name = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8");
            assert_eq!(recipe.run.name, name);
            if let Some(task) = &recipe.data.task {
                crate::task::check_name(task).expect("known");
            }
        }
    }

    #[test]
    fn impossible_values_are_all_listed() {
        let error =
            parse(SMALL, &["train.lr=-1", "train.batch_size=0", "run.name=../x"]).expect_err("impossible");
        for part in ["train.lr is -1", "train.batch_size is 0", "run.name is"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(parse(SMALL, &["reft.positions=x7"]).expect_err("positions").contains("f7+l7"));
        assert!(parse(SMALL, &["reft.layers=top"]).expect_err("layers").contains("top"));
    }
}
