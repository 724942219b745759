//! Small models and tokenizers.

use burn_flex::Flex;
use reft_core::burn::tensor::{Tensor, TensorData};
use reft_models::{LlamaConfig, Pretrained, Roberta, RobertaConfig, TensorSource, llama::Llama};
use serde_json::{Map, Value, json};

/// The `config.json` of a small Llama.
pub const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 12, "max_position_embeddings": 16,
 "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 1}"#;

/// A `tokenizer.json` with 12 ids.
pub const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
 {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
 {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
 "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
 "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "?": 2, "the": 3, "old": 4, "fox": 5, "sings": 6,
 "user": 7, "assistant": 8, "yes": 9, "no": 10, "a": 11}, "unk_token": "?"}}"#;

/// A safetensors file with this header. The values of its tensors are small numbers, as many as the header asks for, up to
/// 64 KiB.
pub fn safetensors(header: &[u8]) -> Vec<u8> {
    let json: Value = serde_json::from_slice(header).unwrap_or_default();
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let ends = json.as_object().into_iter().flat_map(|tensors| tensors.values().filter_map(end));
    let n_bytes = ends.max().unwrap_or(0).min(64 << 10) as usize;
    let values = (0..n_bytes.div_ceil(4)).flat_map(|i| value(i).to_le_bytes());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(values.take(n_bytes));
    file
}

/// Small numbers around 0, with a few around 1.
fn value(idx: usize) -> f32 {
    (idx % 7) as f32 / 8.0 - 0.3
}

/// The header of a safetensors file of f32 tensors with these shapes.
pub fn header(shapes: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut start = 0;
    let entry = |(name, shape): &(String, Vec<usize>)| {
        let end = start + 4 * shape.iter().product::<usize>();
        let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        start = end;
        (name.clone(), tensor)
    };
    let tensors: Map<String, Value> = shapes.iter().map(entry).collect();
    Value::Object(tensors).to_string().into_bytes()
}

/// Names and shapes of the tensors that a model with this `config.json` needs, if it is a small model.
pub fn tensors_of(config: &[u8]) -> Option<Vec<(String, Vec<usize>)>> {
    let mut shapes = Shapes(Vec::new());
    if let Ok(config) = LlamaConfig::parse(config) {
        let heads = config.num_attention_heads.checked_mul(config.head_dim)?;
        let kv = config.num_key_value_heads.checked_mul(config.head_dim)?;
        let sizes = [config.hidden_size, config.intermediate_size, config.vocab_size, heads, kv];
        if sizes.iter().any(|size| *size > 64) || config.num_hidden_layers > 3 {
            return None;
        }
        let _: Llama<Flex> = Llama::from_source(&config, &mut shapes);
        return Some(shapes.0);
    }
    let config = RobertaConfig::parse(config).ok()?;
    let sizes = [
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        config.max_position_embeddings,
        config.type_vocab_size,
    ];
    if sizes.iter().any(|size| *size > 64) || config.num_hidden_layers > 3 {
        return None;
    }
    let _ = <Roberta<Flex> as Pretrained<Flex>>::from_source(&config, &mut shapes);
    Some(shapes.0)
}

/// Records names and shapes.
struct Shapes(Vec<(String, Vec<usize>)>);

impl TensorSource<Flex> for Shapes {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<Flex, D> {
        self.0.push((name.into(), shape.to_vec()));
        let n: usize = shape.iter().product();
        Tensor::from_data(TensorData::new((0..n).map(value).collect(), shape), &Default::default())
    }
}
