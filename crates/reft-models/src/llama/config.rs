//! `config.json` of the Llama family, read as transformers reads it.

use super::{
    rope::{MAX_HEAD_DIM, RopeConfig, rope_config},
    windows::Windows,
};
use crate::{
    files::TokenIds,
    footprint::Footprint,
    keys::{Keys, json_object},
    precision::Dtype,
    rope::Rope,
    source::ModelConfig,
};
use serde_json::{Map, Value};

/// `config.json` of a Llama, Mistral, Qwen2 or Qwen3 model.
///
/// Missing keys have the defaults of the model's class in transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Size `d_model` of the hidden state.
    pub hidden_size: usize,
    /// Size of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads.
    pub num_key_value_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// The rotary frequencies.
    pub rope: RopeConfig,
    /// Whether the projections to queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub attention_output_bias: bool,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The sliding windows of the blocks.
    pub windows: Windows,
    /// Ids that end a text.
    pub eos_token_id: Option<TokenIds>,
}

/// The defaults of a model class in transformers.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    /// The number of query heads if `None`.
    num_key_value_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` if `None`.
    head_dim: Option<usize>,
}

const HIDDEN_SIZE: usize = 4096;
const LAYERS: usize = 32;
const HEADS: usize = 32;
const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    intermediate_size: 11_008,
    max_position_embeddings: 2_048,
    num_key_value_heads: None,
    head_dim: None,
};
const MISTRAL: Defaults = Defaults {
    intermediate_size: 14_336,
    max_position_embeddings: 131_072,
    num_key_value_heads: Some(8),
    ..LLAMA
};
const QWEN2: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    max_position_embeddings: 32_768,
    num_key_value_heads: Some(32),
    head_dim: None,
};
const QWEN3: Defaults = Defaults { head_dim: Some(128), ..QWEN2 };

impl LlamaConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that lists every unsupported value.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let values = json_object(json)?;
        let model_type = values.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        let defaults = match model_type {
            "llama" => LLAMA,
            "mistral" => MISTRAL,
            "qwen2" => QWEN2,
            "qwen3" => QWEN3,
            _ => {
                return Err(format!(
                    "model_type is {model_type:?}; supported language models are llama, mistral, qwen2, qwen3"
                ));
            }
        };
        let mut keys = Keys::new(&values, "");
        let config = Self::read(model_type, defaults, &values, &mut keys);
        if keys.problems.is_empty() { Ok(config) } else { Err(keys.problems.join("; ")) }
    }

    fn read(model_type: &str, defaults: Defaults, values: &Map<String, Value>, keys: &mut Keys<'_>) -> Self {
        // A null here means something else than the absence of the key: as many heads as there are queries.
        let null_kv_heads = keys.names("num_key_value_heads") && keys.get("num_key_value_heads").is_none();
        let hidden_size = keys.size("hidden_size").unwrap_or(HIDDEN_SIZE);
        let num_attention_heads = keys.size("num_attention_heads").unwrap_or(HEADS);
        let num_key_value_heads = keys
            .size("num_key_value_heads")
            .or(defaults.num_key_value_heads.filter(|_| !null_kv_heads))
            .unwrap_or(num_attention_heads);
        let head_dim = keys.size("head_dim").or(defaults.head_dim);
        check_heads(keys, [hidden_size, num_attention_heads, num_key_value_heads], head_dim);
        let head_dim = head_dim.unwrap_or(hidden_size / num_attention_heads);
        let num_hidden_layers = keys.size("num_hidden_layers").unwrap_or(LAYERS);
        let vocab_size = keys.size("vocab_size").unwrap_or(defaults.vocab_size);
        let context = keys.size("max_position_embeddings").unwrap_or(defaults.max_position_embeddings);
        if let Some(act) = keys.text("hidden_act").filter(|act| !["silu", "swish"].contains(act)) {
            keys.problems.push(format!("hidden_act is {act:?}; only \"silu\" is supported"));
        }
        let (attention_bias, mlp_bias) = (keys.flag("attention_bias"), keys.flag("mlp_bias"));
        let has_attention_bias = attention_bias && matches!(model_type, "llama" | "qwen3");
        let windows = Windows::read(model_type, num_hidden_layers, context, keys);
        Self {
            model_type: model_type.into(),
            hidden_size,
            intermediate_size: keys.size("intermediate_size").unwrap_or(defaults.intermediate_size),
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            max_position_embeddings: context,
            rms_norm_eps: keys.non_negative("rms_norm_eps").unwrap_or(1e-6),
            rope: rope_config(values, context, head_dim, &mut keys.problems),
            qkv_bias: has_attention_bias || model_type == "qwen2",
            attention_output_bias: has_attention_bias,
            mlp_bias: mlp_bias && model_type == "llama",
            tie_word_embeddings: keys.flag("tie_word_embeddings"),
            windows,
            eos_token_id: keys.token_ids("eos_token_id", vocab_size),
        }
    }

    /// Number of tokens that a query in a block attends to, if that is fewer than the context.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.of(layer).filter(|window| *window < self.max_position_embeddings)
    }

    /// The rotary embedding.
    pub fn rope(&self) -> Rope {
        Rope { head_dim: self.head_dim, theta: self.rope.theta, scaling: self.rope.scaling }
    }

    /// The memory of one block in a training pass over a padded batch. `has_scores` says whether attention has all its scores in
    /// memory at once, as it does on backends without a kernel for it.
    ///
    /// The tape keeps the inputs of both norms; queries, keys, values and the output of attention with a number per head; and
    /// the two inputs of the gated activation.
    pub fn footprint(&self, batch: usize, seq: usize, dtype: Dtype, has_scores: bool) -> Footprint {
        let (tokens, e) = (batch * seq, dtype.size());
        let (d, inner, heads) = (self.hidden_size, self.intermediate_size, self.num_attention_heads);
        let (d_q, d_kv) = (heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let scores = if has_scores { 4 * batch * heads * seq * seq } else { 0 };
        Footprint {
            input: tokens * d * e,
            kept: tokens * (2 * d * e + 2 * (d_q + d_kv) * e + heads * 4 + 2 * inner * e),
            forward: (tokens * (3 * inner + d) * e).max(3 * scores),
            backward: (tokens * (inner + 3 * d) * e).max(4 * scores),
            largest: (tokens * inner * e).max(scores),
        }
    }

    /// Ids that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        self.eos_token_id.as_ref().map_or(&[], TokenIds::as_slice)
    }
}

impl ModelConfig for LlamaConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn n_layers(&self) -> usize {
        self.num_hidden_layers
    }

    fn context(&self) -> usize {
        self.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn function(&self) -> String {
        let windows: Vec<Option<usize>> =
            (0..self.num_hidden_layers).map(|layer| self.window(layer)).collect();
        let windows = if windows.iter().all(Option::is_none) { Vec::new() } else { windows };
        format!(
            "llama heads {} {} {} eps {:?} rope {:?} windows {windows:?}",
            self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.rms_norm_eps, self.rope,
        )
    }
}

fn check_heads(keys: &mut Keys<'_>, [hidden_size, heads, kv_heads]: [usize; 3], head_dim: Option<usize>) {
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a multiple of num_key_value_heads, {kv_heads}");
        keys.refuse("num_attention_heads", heads, &expected);
    }
    match head_dim {
        None if !hidden_size.is_multiple_of(heads) => {
            keys.refuse("hidden_size", hidden_size, &format!("a multiple of {heads} heads"));
        }
        _ => {
            let dim = head_dim.unwrap_or(hidden_size / heads);
            if !dim.is_multiple_of(2) || dim == 0 || dim > MAX_HEAD_DIM {
                keys.refuse("head_dim", dim, &format!("an even number from 2 to {MAX_HEAD_DIM}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a small configuration with changed keys.
    fn parse(change: &str) -> Result<LlamaConfig, String> {
        let mut config = serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 32, "max_position_embeddings": 64
        });
        let change: Value = serde_json::from_str(change).expect("valid JSON");
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        LlamaConfig::parse(config.to_string().as_bytes())
    }

    #[test]
    fn unsupported_values_are_named() {
        assert!(parse("{}").is_ok());
        for (change, message) in [
            (
                r#"{"model_type": "gpt2"}"#,
                r#"model_type is "gpt2"; supported language models are llama, mistral, qwen2, qwen3"#,
            ),
            (r#"{"hidden_act": "gelu"}"#, r#"hidden_act is "gelu"; only "silu" is supported"#),
            (
                r#"{"num_key_value_heads": 3}"#,
                "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3",
            ),
            (r#"{"hidden_size": 10}"#, "hidden_size is 10, expected a multiple of 4 heads"),
            (r#"{"head_dim": 131072}"#, "head_dim is 131072, expected an even number from 2 to 65536"),
            (
                r#"{"vocab_size": "many"}"#,
                r#"vocab_size is "many", expected a whole number from 1 to 2147483647"#,
            ),
            (
                r#"{"hidden_size": 4096.0}"#,
                "hidden_size is 4096.0, expected a whole number from 1 to 2147483647",
            ),
            (
                r#"{"hidden_size": 1e12}"#,
                "hidden_size is 1000000000000.0, expected a whole number from 1 to 2147483647",
            ),
            (r#"{"rms_norm_eps": -1e-6}"#, "rms_norm_eps is -1e-6, expected a number from 0"),
            (r#"{"attention_bias": 1}"#, "attention_bias is 1, expected true or false"),
            (r#"{"rope_theta": 0}"#, "rope_theta is 0, expected a number above 0"),
            (
                r#"{"eos_token_id": 32}"#,
                "eos_token_id is 32, expected a token id from 0 to 31, or a list of them",
            ),
            (
                r#"{"partial_rotary_factor": 0.5}"#,
                "partial_rotary_factor is 0.5, expected 1: all of a head is rotated",
            ),
        ] {
            assert_eq!(parse(change).expect_err(change), message);
        }
        assert_eq!(LlamaConfig::parse(b"[1]"), Err("is [1], expected an object".into()));
        assert!(
            LlamaConfig::parse(br#"{"rms_norm_eps": NaN}"#).is_err_and(|e| e.starts_with("invalid JSON: "))
        );
    }

    #[test]
    fn sizes_of_0_are_refused() {
        for key in [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ] {
            let message = parse(&format!(r#"{{"{key}": 0}}"#)).expect_err(key);
            let expected = format!("{key} is 0, expected a whole number from 1 to 2147483647");
            assert!(message.contains(&expected), "{message}");
        }
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        assert_eq!(
            parse(r#"{"rope_scaling": {"rope_type": "su"}, "hidden_act": "gelu", "head_dim": 3}"#),
            Err("head_dim is 3, expected an even number from 2 to 65536; \
                 hidden_act is \"gelu\"; only \"silu\" is supported; \
                 rope_scaling.rope_type is \"su\", supported are default, linear, dynamic, yarn, llama3"
                .into())
        );
    }

    #[test]
    fn null_is_the_absence_of_a_key() {
        let keys = [
            "head_dim",
            "num_key_value_heads",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "attention_bias",
            "mlp_bias",
            "tie_word_embeddings",
            "eos_token_id",
            "layer_types",
            "partial_rotary_factor",
            "quantization_config",
        ];
        let nulls = keys.map(|key| format!(r#""{key}": null"#)).join(", ");
        assert_eq!(parse(&format!("{{{nulls}}}")), parse("{}"));
    }

    /// `LlamaConfig()`, `MistralConfig()`, `Qwen2Config()` and `Qwen3Config()` of transformers.
    #[test]
    fn missing_keys_have_the_defaults_of_the_class() {
        for (model_type, [vocab, inner, context, kv_heads, head_dim], window) in [
            ("llama", [32_000, 11_008, 2_048, 32, 128], None),
            ("mistral", [32_000, 14_336, 131_072, 8, 128], Some(4_096)),
            ("qwen2", [151_936, 22_016, 32_768, 32, 128], None),
            ("qwen3", [151_936, 22_016, 32_768, 32, 128], None),
        ] {
            let json = format!(r#"{{"model_type": "{model_type}"}}"#);
            let config = LlamaConfig::parse(json.as_bytes()).expect(model_type);
            assert_eq!(
                [config.hidden_size, config.num_hidden_layers, config.num_attention_heads],
                [4_096, 32, 32]
            );
            assert_eq!(config.vocab_size, vocab, "{model_type}");
            assert_eq!(config.intermediate_size, inner, "{model_type}");
            assert_eq!(config.max_position_embeddings, context, "{model_type}");
            assert_eq!((config.num_key_value_heads, config.head_dim), (kv_heads, head_dim), "{model_type}");
            assert_eq!(config.window(0), window, "{model_type}");
            assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 1e4), "{model_type}");
            assert!(!config.tie_word_embeddings, "{model_type}");
            assert_eq!((config.qkv_bias, config.attention_output_bias), (model_type == "qwen2", false));
        }
    }

    #[test]
    fn a_window_from_the_context_on_is_none() {
        let window = |change: &str| parse(change).expect(change).window(1);
        assert_eq!(window(r#"{"model_type": "mistral", "sliding_window": 63}"#), Some(63));
        assert_eq!(window(r#"{"model_type": "mistral", "sliding_window": 64}"#), None);
        assert_eq!(window(r#"{"model_type": "mistral"}"#), None);
    }

    #[test]
    fn end_of_text_is_one_id_or_a_list() {
        let ids = |change: &str| parse(change).expect(change).eos_ids().to_vec();
        assert_eq!(ids(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ids(r#"{"eos_token_id": [1, 2, null]}"#), [1, 2]);
        for none in ["{}", r#"{"eos_token_id": -1}"#, r#"{"eos_token_id": []}"#] {
            assert!(ids(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn only_values_that_change_the_result_change_the_function() {
        let function = |change: &str| parse(change).expect("valid").function();
        let plain = function("{}");
        for same in [
            r#"{"mlp_bias": false, "rope_scaling": null, "attention_dropout": 0.1, "architectures": ["X"]}"#,
            r#"{"rope_theta": 10000, "eos_token_id": [1, 2], "pad_token_id": 0, "initializer_range": 1}"#,
            r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}"#,
            r#"{"model_type": "mistral", "sliding_window": 64, "num_key_value_heads": 4}"#,
        ] {
            assert_eq!(function(same), plain, "{same}");
        }
        for other in [
            r#"{"num_key_value_heads": 2}"#,
            r#"{"head_dim": 4}"#,
            r#"{"rms_norm_eps": 1e-5}"#,
            r#"{"rope_theta": 500000}"#,
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 2}}"#,
            r#"{"model_type": "mistral", "sliding_window": 32, "num_key_value_heads": 4}"#,
        ] {
            assert_ne!(function(other), plain, "{other}");
        }
    }
}
