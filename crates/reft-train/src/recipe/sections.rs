//! The sections and keys of a recipe.

use crate::{
    data::{OnBadRow, TrainOn},
    method::TrainMethod,
    metrics::Metric,
    train_config::TrainConfig,
};
use reft_core::{Activation, Component, Init, Layers, Method, Positions};
use reft_models::{Dtype, Quant};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error, IntoDeserializer, SeqAccess, Visitor},
};
use std::fmt::{self, Formatter};
use toml::Value;

/// A recipe: the model, what to train, the data, and the settings of the training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A folder, a name on the Hugging Face Hub, or `embedded:tiny`.
    pub model: String,
    /// Branch, tag or commit on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `auto`, `cpu`, `ndarray`, `wgpu`, `vulkan`, `metal` or `cuda`, with an optional index as in `cuda:1`.
    #[serde(default = "auto")]
    pub device: String,
    /// Dtype of the frozen model: `f32`, `f16` or `bf16`. If absent or `auto`: the dtype of the files on a GPU that supports
    /// it, else f32.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "dtype")]
    pub dtype: Option<Dtype>,
    /// Blockwise quantization of the frozen model's weights: `int8` or `int4`; `none` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quant")]
    pub quant: Option<Quant>,
    /// Where the results are written.
    pub run: RunSection,
    /// What is trained.
    #[serde(default)]
    pub reft: ReftSection,
    /// LoRA, if `reft.method` is `lora`.
    #[serde(default)]
    pub lora: LoraSection,
    /// The classification head.
    #[serde(default)]
    pub head: HeadSection,
    /// The data.
    pub data: DataSection,
    /// The training loop.
    #[serde(default)]
    pub train: TrainConfig,
    /// How the result is evaluated.
    #[serde(default)]
    pub eval: EvalSection,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run and of its folder.
    pub name: String,
    /// Parent folder of all runs.
    #[serde(default = "runs")]
    pub folder: String,
    /// Whether an existing run with this name may be replaced.
    #[serde(default)]
    pub overwrite: bool,
}

/// `[reft]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReftSection {
    /// An intervention, or a baseline to compare with.
    pub method: TrainMethod,
    /// Rank of every intervention, or of LoRA.
    pub rank: usize,
    /// `"all"`, `"0,3,8-11"`, `"-1"`, or a list of numbers.
    #[serde(deserialize_with = "layers", serialize_with = "layers_text")]
    pub layers: Layers,
    /// `block_output`, `block_input`, `attention_output` or `mlp_output`.
    pub component: Component,
    /// `fN+lM`, `fN`, `lN` or `all`.
    pub positions: Positions,
    /// Whether prefix and suffix share one intervention.
    pub tied: bool,
    /// Activation of `Wh + b`.
    pub activation: Activation,
    /// Dropout on the edited hidden state.
    pub dropout: f64,
    /// Initialization: `paper` or `identity`.
    pub init: Init,
}

impl Default for ReftSection {
    fn default() -> Self {
        Self {
            method: TrainMethod::Intervention(Method::Loreft),
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

/// `[lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSection {
    /// Updates are scaled by `alpha / reft.rank`; twice the rank if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Name suffixes of the layers to adapt; every linear layer of attention and MLP if empty.
    #[serde(deserialize_with = "texts")]
    pub targets: Vec<String>,
    /// Dropout on the input of an update, during training.
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
    /// `glue/<name>`, `classification` or `regression`; language modeling if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The training rows: JSON, JSON Lines, CSV, TSV or Parquet, also in gzip or Zstandard.
    pub train: String,
    /// A separate file of held-out rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// More files that a task is evaluated on once, at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "texts")]
    pub test: Vec<String>,
    /// The text column of a task, or the two columns of a text pair.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_texts")]
    pub text: Option<Vec<String>>,
    /// The label column of a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Train on the first rows of `train` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_rows: Option<usize>,
    /// Number of held-out rows: the last ones of `train`, or the first ones of `eval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_rows: Option<usize>,
    /// What happens if a file has rows that cannot be used: `error` or `skip`.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
    /// `auto`, `alpaca`, `chat`, `plain`, or a Jinja template over the row's fields.
    #[serde(default = "auto")]
    pub template: String,
    /// Maximum tokens per row; longer rows are truncated on the right. The smaller of 512 and the model's context if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Which messages of a chat's assistant are trained: `last` or `all`.
    #[serde(default)]
    pub train_on: TrainOn,
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// Rows per forward pass.
    pub batch_size: usize,
    /// Whether to also generate answers greedily and count those that match exactly.
    pub exact_match: bool,
    /// Maximum tokens of a generated answer.
    pub max_new_tokens: usize,
    /// The metric that selects a task's adapter; the task's main metric if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// How a task's held-out rows are used.
    pub protocol: Protocol,
}

/// How a task's held-out rows are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All of them select the adapter and score it.
    #[default]
    Same,
    /// As in the paper: a random half of them selects the adapter and the other half scores it. Of more than 5,000 rows,
    /// 1,000 select.
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

/// Parses a dtype; `auto` is none.
///
/// # Errors
/// If the name is unknown.
pub fn parse_dtype(text: &str) -> Result<Option<Dtype>, String> {
    choice(text, "auto")
}

/// Parses a quantization; `none` is none.
///
/// # Errors
/// If the name is unknown.
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

/// A list of texts, or a text for a list of one.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut Formatter) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = list.next_element()? {
                texts.push(text);
            }
            Ok(texts)
        }
    }

    deserializer.deserialize_any(Texts)
}

fn some_texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    texts(deserializer).map(Some)
}

fn layers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Layers, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => text.parse().map_err(D::Error::custom),
        Value::Integer(layer) => Ok(Layers::list(&[layer])),
        Value::Array(list) if list.is_empty() => {
            Err(D::Error::custom("layers: the list is empty, expected at least one layer"))
        }
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
