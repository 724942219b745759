//! Rotary frequencies and logits beside those of transformers; the script that computed them is fixtures/rope.py.

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use reft_core::{NoHook, host_values};
use reft_models::{KvCache, Llama, LlamaConfig, Padding, TensorSource, TokenBatch, rope::Rope};
use serde_json::Value;
use std::collections::BTreeMap;

fn fixture(text: &str) -> Value {
    serde_json::from_str(text).expect("valid JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn frequencies_equal_those_of_transformers() {
    let fixture = fixture(include_str!("fixtures/rope.json"));
    for case in fixture["cases"].as_array().expect("a list") {
        let head_dim = case["head_dim"].as_u64().expect("a size");
        let seq = case["rope_scaling"]["seq"].as_u64().unwrap_or(1) as usize;
        let mut config =
            serde_json::json!({"model_type": "llama", "hidden_size": head_dim * 2, "num_attention_heads": 2});
        for key in ["rope_theta", "max_position_embeddings", "rope_scaling"] {
            config[key] = case[key].clone();
        }
        let rope: Rope =
            LlamaConfig::parse(config.to_string().as_bytes()).expect("a valid configuration").rope();
        let expected = numbers(&case["frequencies"]);
        let found = rope.frequencies(seq);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            // Transformers computes them in f32.
            assert!(
                (found / expected - 1.0).abs() < 2e-6,
                "{}: {found}, expected {expected}",
                case["rope_scaling"]
            );
        }
        let factor = case["attention_factor"].as_f64().expect("a number");
        assert!((rope.attention_factor() - factor).abs() < 1e-12, "{}", case["rope_scaling"]);
    }
}

/// Weights that are a function of their place, as `fill` of the script computes them.
struct Filled(BTreeMap<String, usize>);

impl TensorSource<Flex> for Filled {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<Flex, D> {
        let n = self.0[name] as f64;
        let center = if name.contains("norm") { 1.0 } else { 0.0 };
        let value = |k: usize| ((0.7 * k as f64 + 0.3 * n).sin() / 4.0 + center) as f32;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }
}

/// The names of a model's tensors, numbered in alphabetical order.
#[derive(Default)]
struct Names(Vec<String>);

impl TensorSource<Flex> for Names {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<Flex, D> {
        self.0.push(name.into());
        Tensor::zeros(shape, &Default::default())
    }
}

#[test]
fn logits_equal_those_of_transformers_with_and_without_a_cache() {
    let fixture = fixture(include_str!("fixtures/windows.json"));
    let tokens: Vec<u32> = numbers(&fixture["tokens"]).iter().map(|id| *id as u32).collect();
    let last = tokens.len() - 1;
    for case in fixture["cases"].as_array().expect("a list") {
        let config =
            LlamaConfig::parse(case["config"].to_string().as_bytes()).expect("a valid configuration");
        let mut names = Names::default();
        Llama::from_source(&config, &mut names);
        names.0.sort();
        let numbered = names.0.into_iter().enumerate().map(|(n, name)| (name, n)).collect();
        let model = Llama::from_source(&config, &mut Filled(numbered));
        let expected = numbers(&case["logits"]);
        let check = |logits: Vec<f32>, way: &str| {
            for (found, expected) in logits.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-5, "{}, {way}: {found}, expected {expected}", case["config"]);
            }
        };
        let batch = |tokens: &[u32]| TokenBatch::new(&[tokens.to_vec()], Padding::Right);
        let hidden = model.forward(&batch(&tokens), None, &NoHook);
        check(host_values(model.logits(hidden, &[last])), "without a cache");
        let mut cache = KvCache::new(config.num_hidden_layers, tokens.len());
        let mut logits = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let step = TokenBatch::step(&[*token], &[position]);
            let hidden = model.forward(&step, Some(&mut cache), &NoHook);
            logits = host_values(model.logits(hidden, &[0]));
        }
        check(logits, "with a cache");
    }
}
