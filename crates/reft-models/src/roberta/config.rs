//! `config.json` of the BERT family, read as transformers reads it.

use crate::{
    footprint::Footprint,
    keys::{Keys, json_object},
    precision::Dtype,
    source::ModelConfig,
};
use reft_core::HeadConfig;
use serde_json::Value;

/// `config.json` of a RoBERTa, XLM-RoBERTa, CamemBERT or BERT model.
///
/// Missing keys have the defaults of the model's class in transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct RobertaConfig {
    /// `roberta`, `xlm-roberta`, `camembert` or `bert`.
    pub model_type: String,
    /// Size `d_model` of the hidden state.
    pub hidden_size: usize,
    /// Size of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Rows of the position embedding.
    pub max_position_embeddings: usize,
    /// Rows of the token type embedding.
    pub type_vocab_size: usize,
    /// ε of the norms.
    pub layer_norm_eps: f64,
    /// The id of the padding token.
    pub pad_token_id: u32,
    /// Dropout on hidden states, during training.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention weights, during training.
    pub attention_probs_dropout_prob: f64,
    /// Dropout in the classification head; that of hidden states if absent.
    pub classifier_dropout: Option<f64>,
}

impl RobertaConfig {
    /// The supported values of `model_type`.
    pub const KNOWN: [&str; 4] = ["roberta", "xlm-roberta", "camembert", "bert"];

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that lists every unsupported value.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let values = json_object(json)?;
        let model_type = values.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        if !Self::KNOWN.contains(&model_type) {
            return Err(format!(
                "model_type is {model_type:?}; classification and regression need an encoder: {}",
                Self::KNOWN.join(", ")
            ));
        }
        let mut keys = Keys::new(&values, "");
        let config = Self::read(model_type, &mut keys);
        config.check(&mut keys);
        if keys.problems.is_empty() { Ok(config) } else { Err(keys.problems.join("; ")) }
    }

    fn read(model_type: &str, keys: &mut Keys<'_>) -> Self {
        let (vocab_size, pad) = match model_type {
            "bert" => (30_522, 0),
            "roberta" => (50_265, 1),
            _ => (30_522, 1),
        };
        Self {
            model_type: model_type.into(),
            hidden_size: keys.size("hidden_size").unwrap_or(768),
            intermediate_size: keys.size("intermediate_size").unwrap_or(3_072),
            num_hidden_layers: keys.size("num_hidden_layers").unwrap_or(12),
            num_attention_heads: keys.size("num_attention_heads").unwrap_or(12),
            vocab_size: keys.size("vocab_size").unwrap_or(vocab_size),
            max_position_embeddings: keys.size("max_position_embeddings").unwrap_or(512),
            type_vocab_size: keys.size("type_vocab_size").unwrap_or(2),
            layer_norm_eps: keys.non_negative("layer_norm_eps").unwrap_or(1e-12),
            pad_token_id: keys.count("pad_token_id").unwrap_or(pad) as u32,
            hidden_dropout_prob: keys.rate("hidden_dropout_prob").unwrap_or(0.1),
            attention_probs_dropout_prob: keys.rate("attention_probs_dropout_prob").unwrap_or(0.1),
            classifier_dropout: keys.rate("classifier_dropout"),
        }
    }

    fn check(&self, keys: &mut Keys<'_>) {
        let (d, heads, pad) = (self.hidden_size, self.num_attention_heads, self.pad_token_id as usize);
        if !d.is_multiple_of(heads) {
            keys.refuse("hidden_size", d, &format!("a multiple of num_attention_heads, {heads}"));
        }
        if let Some(act) = keys.text("hidden_act").filter(|act| !["gelu", "gelu_python"].contains(act)) {
            keys.problems.push(format!("hidden_act is {act:?}; only \"gelu\" is supported"));
        }
        if let Some(kind) = keys.text("position_embedding_type").filter(|kind| *kind != "absolute") {
            keys.problems
                .push(format!("position_embedding_type is {kind:?}; only \"absolute\" is supported"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if keys.flag(key) {
                keys.problems.push(format!("{key} is true; only false is supported"));
            }
        }
        if pad >= self.vocab_size {
            keys.refuse("pad_token_id", pad, &format!("an id below vocab_size, {}", self.vocab_size));
        } else if self.first_position() >= self.max_position_embeddings {
            keys.problems.push(format!(
                "max_position_embeddings is {}, which leaves no position above pad_token_id, {pad}",
                self.max_position_embeddings
            ));
        }
    }

    pub(super) fn is_bert(&self) -> bool {
        self.model_type == "bert"
    }

    /// Prefix of the encoder's tensors in checkpoints that also have a head.
    pub fn prefix(&self) -> &'static str {
        if self.is_bert() { "bert." } else { "roberta." }
    }

    pub(super) fn first_position(&self) -> usize {
        if self.is_bert() { 0 } else { self.pad_token_id as usize + 1 }
    }

    /// The dropout rates used in pretraining.
    pub fn dropout(&self) -> DropoutRates {
        DropoutRates { hidden: self.hidden_dropout_prob, attention: self.attention_probs_dropout_prob }
    }

    /// The memory of one block in a training pass over a padded batch. `has_scores` says whether attention has all its scores in
    /// memory at once, as it does on backends without a kernel for it.
    ///
    /// The tape keeps the inputs of both norms; queries, keys, values and the output of attention with a number per head; the
    /// input of the activation; and the masks of dropout.
    pub fn footprint(
        &self,
        batch: usize,
        seq: usize,
        rates: DropoutRates,
        dtype: Dtype,
        has_scores: bool,
    ) -> Footprint {
        let (tokens, e) = (batch * seq, dtype.size());
        let (d, inner, heads) = (self.hidden_size, self.intermediate_size, self.num_attention_heads);
        let scores = if has_scores { 4 * batch * heads * seq * seq } else { 0 };
        let dropped = if rates.hidden > 0.0 { 2 * d * e } else { 0 };
        Footprint {
            input: tokens * d * e,
            kept: tokens * (6 * d * e + heads * 4 + inner * e + dropped),
            forward: (tokens * (2 * inner + d) * 4).max(3 * scores),
            backward: (tokens * (2 * inner + 2 * d) * 4).max(4 * scores),
            largest: (tokens * inner * 4).max(scores),
        }
    }

    /// The model's classification head with `outputs` outputs.
    ///
    /// `dropout` overrides the model's own rate. BERT has dropout only after the first layer of the head, the pooler.
    pub fn head(&self, outputs: usize, dropout: Option<f64>) -> HeadConfig {
        let rate = dropout.or(self.classifier_dropout).unwrap_or(self.hidden_dropout_prob);
        HeadConfig {
            hidden_size: self.hidden_size,
            outputs,
            input_dropout: if self.is_bert() { 0.0 } else { rate },
            inner_dropout: rate,
        }
    }
}

impl ModelConfig for RobertaConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn n_layers(&self) -> usize {
        self.num_hidden_layers
    }

    /// RoBERTa's position embedding starts after the row of `pad_token_id`.
    fn context(&self) -> usize {
        self.max_position_embeddings - self.first_position()
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn function(&self) -> String {
        let (heads, first) = (self.num_attention_heads, self.first_position());
        format!("roberta heads {heads} eps {:?} first position {first}", self.layer_norm_eps)
    }
}

/// Dropout rates within the model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DropoutRates {
    /// For the embeddings and the outputs of attention and MLP.
    pub hidden: f64,
    /// For attention weights.
    pub attention: f64,
}

impl DropoutRates {
    /// No dropout.
    pub const OFF: Self = Self { hidden: 0.0, attention: 0.0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: &str) -> Result<RobertaConfig, String> {
        let mut config = serde_json::json!({
            "model_type": "roberta", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 32, "max_position_embeddings": 16
        });
        let change: Value = serde_json::from_str(change).expect("valid JSON");
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        RobertaConfig::parse(config.to_string().as_bytes())
    }

    #[test]
    fn unsupported_values_are_named() {
        for (change, message) in [
            (
                r#"{"model_type": "albert"}"#,
                "model_type is \"albert\"; classification and regression need an encoder: roberta, xlm-roberta, camembert, bert",
            ),
            (r#"{"hidden_act": "gelu_new"}"#, "hidden_act is \"gelu_new\"; only \"gelu\" is supported"),
            (
                r#"{"position_embedding_type": "relative_key"}"#,
                "position_embedding_type is \"relative_key\"; only \"absolute\" is supported",
            ),
            (r#"{"is_decoder": true}"#, "is_decoder is true; only false is supported"),
            (r#"{"add_cross_attention": true}"#, "add_cross_attention is true; only false is supported"),
            (r#"{"hidden_size": 9}"#, "hidden_size is 9, expected a multiple of num_attention_heads, 2"),
            (
                r#"{"num_attention_heads": 0}"#,
                "num_attention_heads is 0, expected a whole number from 1 to 2147483647; \
                 hidden_size is 8, expected a multiple of num_attention_heads, 12",
            ),
            (
                r#"{"type_vocab_size": 0}"#,
                "type_vocab_size is 0, expected a whole number from 1 to 2147483647",
            ),
            (r#"{"layer_norm_eps": -1}"#, "layer_norm_eps is -1, expected a number from 0"),
            (
                r#"{"hidden_dropout_prob": 1}"#,
                "hidden_dropout_prob is 1, expected a number from 0 and below 1",
            ),
            (r#"{"pad_token_id": 32}"#, "pad_token_id is 32, expected an id below vocab_size, 32"),
            (
                r#"{"pad_token_id": 15}"#,
                "max_position_embeddings is 16, which leaves no position above pad_token_id, 15",
            ),
        ] {
            assert_eq!(parse(change).expect_err(change), message);
        }
    }

    /// `BertConfig()`, `RobertaConfig()`, `XLMRobertaConfig()` and `CamembertConfig()` of transformers.
    #[test]
    fn missing_and_null_keys_have_the_defaults_of_the_class() {
        for (model_type, vocab_size, pad) in [
            ("bert", 30_522, 0),
            ("roberta", 50_265, 1),
            ("xlm-roberta", 30_522, 1),
            ("camembert", 30_522, 1),
        ] {
            let missing = format!(r#"{{"model_type": "{model_type}"}}"#);
            let null = format!(
                r#"{{"model_type": "{model_type}", "vocab_size": null, "pad_token_id": null, "hidden_act": null,
                    "classifier_dropout": null, "position_embedding_type": null, "layer_norm_eps": null}}"#
            );
            let config = RobertaConfig::parse(missing.as_bytes()).expect(model_type);
            assert_eq!(RobertaConfig::parse(null.as_bytes()), Ok(config.clone()));
            assert_eq!((config.vocab_size, config.pad_token_id), (vocab_size, pad), "{model_type}");
            assert_eq!([config.hidden_size, config.intermediate_size], [768, 3_072]);
            assert_eq!(
                [config.num_hidden_layers, config.num_attention_heads, config.type_vocab_size],
                [12, 12, 2]
            );
            assert_eq!((config.max_position_embeddings, config.layer_norm_eps), (512, 1e-12));
            assert_eq!((config.hidden_dropout_prob, config.attention_probs_dropout_prob), (0.1, 0.1));
        }
    }
}
