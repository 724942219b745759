//! The Llama family: Llama 1 to 3.2, TinyLlama, SmolLM, and, by a switch or two, Mistral, Qwen2, Qwen2.5 and Qwen3.
//!
//! Mirrors Hugging Face's `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py` and `modeling_qwen3.py`.

use crate::{
    attention::attention,
    batch::TokenBatch,
    cache::{self, KvCache},
    footprint::Footprint,
    linear::Linear,
    load::{Pretrained, TensorSource, Weights},
    norm::RmsNorm,
    pass::{Blocks, Pass},
    precision::Dtype,
    rope::{RopeScaling, Rotation, frequencies},
};
use burn::{
    module::{AutodiffModule, Module},
    tensor::{
        DType, Int, Tensor, TensorData,
        activation::silu,
        backend::{AutodiffBackend, Backend},
    },
};
use reft_core::{Component, Hook, NoHook, Site};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;

/// `config.json` of a Llama, Mistral, Qwen2 or Qwen3 model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Size `d_model` of the hidden state.
    pub hidden_size: usize,
    /// Size of the MLP's inner state.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; as many as query heads if absent.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Size of a head; `hidden_size / num_attention_heads` if absent.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Activation of the MLP; only `silu` is supported.
    #[serde(default = "silu_name")]
    pub hidden_act: String,
    /// ε of the norms.
    #[serde(default = "default_epsilon")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies: `default`, `linear` or `llama3`.
    #[serde(default)]
    pub rope_scaling: Option<Value>,
    /// The same as newer versions of transformers write it, with `rope_theta` inside.
    #[serde(default)]
    pub rope_parameters: Option<Value>,
    /// Whether the projections of attention have a bias.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the projections of the MLP have a bias.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Tokens that a query sees, itself included (Mistral).
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// Whether Qwen applies `sliding_window` (to its upper layers, which is not supported).
    #[serde(default)]
    pub use_sliding_window: bool,
    /// End-of-text ids: a number or a list.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
}

fn silu_name() -> String {
    "silu".into()
}

fn default_epsilon() -> f64 {
    1e-6
}

fn default_theta() -> f64 {
    10_000.0
}

impl LlamaConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that names every value that is missing or not supported.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(json).map_err(|e| format!("invalid JSON: {e}"))?;
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        const KNOWN: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
        if !KNOWN.contains(&model_type) {
            return Err(format!(
                "model_type is {model_type:?}; supported language models are {}",
                KNOWN.join(", ")
            ));
        }
        let config: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let mut problems = Vec::new();
        let heads = config.num_attention_heads;
        let kv_heads = config.kv_heads();
        if config.hidden_act != "silu" {
            problems.push(format!("hidden_act is {:?}, supported is \"silu\"", config.hidden_act));
        }
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            problems.push(format!(
                "num_attention_heads is {heads}, expected a multiple of num_key_value_heads, {kv_heads}"
            ));
        } else if config.head_dim.is_none() && !config.hidden_size.is_multiple_of(heads) {
            problems
                .push(format!("hidden_size is {}, expected a multiple of {heads} heads", config.hidden_size));
        } else if !config.head_dim().is_multiple_of(2) {
            problems.push(format!("head_dim is {}, expected an even number", config.head_dim()));
        }
        if config.use_sliding_window && config.model_type.starts_with("qwen") {
            problems.push("use_sliding_window is true, supported is false".into());
        }
        if let Err(problem) = config.rope() {
            problems.push(problem);
        }
        if problems.is_empty() { Ok(config) } else { Err(problems.join("; ")) }
    }

    /// Size of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Tokens that a query sees, where that is limited.
    pub fn window(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.model_type == "mistral")
    }

    /// What a training pass of `batch` rows of `seq` tokens keeps of a block, counted along `Block::forward`.
    ///
    /// On the tape: the inputs of both norms; scaled queries, keys, values and what they mix; scores before and after
    /// the exponential; gate, its sigmoid, their product, and the second factor of the MLP. Going back, those of the
    /// MLP are gone when the gradients of the scores are there.
    pub fn footprint(&self, batch: usize, seq: usize, dtype: Dtype) -> Footprint {
        let (tokens, e) = (batch * seq, dtype.size());
        let (d, inner, heads) = (self.hidden_size, self.intermediate_size, self.num_attention_heads);
        let (d_q, d_kv) = (heads * self.head_dim(), self.kv_heads() * self.head_dim());
        let scores = batch * heads * seq * seq;
        // In half precision the weights are divided by their sum in f32, which has gradients of its own.
        let (mixed, weights, passing) =
            if dtype == Dtype::F32 { (d_q * e, 0, 3) } else { (0, scores * e, 4) };
        let per_token = 2 * d * 4 + (d_q + 2 * d_kv) * e + mixed + 4 * inner * e;
        Footprint {
            input: tokens * d * e,
            kept: tokens * per_token + 2 * scores * 4 + weights,
            forward: (4 * tokens * inner * e).max(3 * scores * 4),
            backward: (3 * tokens * inner * e)
                .max((passing * scores * 4).saturating_sub(4 * tokens * inner * e))
                + 2 * tokens * d * 4,
            largest: (tokens * inner * e).max(scores * 4),
        }
    }

    /// Base and stretching of the rotary frequencies.
    fn rope(&self) -> Result<(f64, RopeScaling), String> {
        let (key, value) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(value), _) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => return Ok((self.rope_theta, RopeScaling::Default)),
        };
        let number = |name: &str| {
            let found = value.get(name).and_then(Value::as_f64);
            found.ok_or_else(|| format!("{key} lacks the number {name}"))
        };
        let theta = number("rope_theta").unwrap_or(self.rope_theta);
        let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            },
            other => {
                return Err(format!("{key}.rope_type is {other:?}, supported are default, linear, llama3"));
            }
        };
        Ok((theta, scaling))
    }

    /// End-of-text ids.
    pub fn eos_ids(&self) -> Vec<u32> {
        ids(self.eos_token_id.as_ref())
    }
}

/// A token id, or a list of them, as `config.json` and `generation_config.json` hold them.
pub(crate) fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().map(|id| id as u32);
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// One transformer block: attention and MLP, each on its normalised input, each added to the residual stream.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    attention_norm: RmsNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    /// Qwen3 normalises every query and key head.
    qk_norm: Option<(RmsNorm<B>, RmsNorm<B>)>,
    mlp_norm: RmsNorm<B>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    heads: Heads,
}

#[derive(Debug, Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

/// What every block needs to know of the batch.
#[derive(Module, Debug)]
struct Context<B: Backend> {
    rotation: Rotation<B>,
    mask: Option<Tensor<B, 4>>,
}

impl<B: Backend> Block<B> {
    /// The same with weights that are not quantised.
    fn dense(&self, dtype: DType) -> Self {
        Self {
            attention_norm: self.attention_norm.clone(),
            q: self.q.dense(dtype),
            k: self.k.dense(dtype),
            v: self.v.dense(dtype),
            o: self.o.dense(dtype),
            qk_norm: self.qk_norm.clone(),
            mlp_norm: self.mlp_norm.clone(),
            gate: self.gate.dense(dtype),
            up: self.up.dense(dtype),
            down: self.down.dense(dtype),
            heads: self.heads,
        }
    }

    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn forward<H: Hook<B>>(
        &self,
        layer: usize,
        hidden: Tensor<B, 3>,
        context: &Context<B>,
        cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        let [batch, seq, d_model] = hidden.dims();
        let site = |component| Site { layer, component };
        let as_batch = |flat: Tensor<B, 2>| flat.reshape([batch, seq, d_model]);
        let hidden = hook.edit(site(Component::BlockInput), hidden);

        let normed = self.attention_norm.forward(hidden.clone()).reshape([batch * seq, d_model]);
        let split = |flat: Tensor<B, 2>, heads: usize| flat.reshape([batch, seq, heads, self.heads.dim]);
        let mut q = split(self.q.forward(normed.clone()), self.heads.queries);
        let mut k = split(self.k.forward(normed.clone()), self.heads.keys);
        let v = split(self.v.forward(normed), self.heads.keys).swap_dims(1, 2);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(q), k_norm.forward(k));
        }
        let q = context.rotation.apply(q.swap_dims(1, 2));
        let k = context.rotation.apply(k.swap_dims(1, 2));
        let (k, v) = match cache {
            Some(cache) => cache.append(layer, k, v),
            None => (k, v),
        };
        let mixed = self.o.forward(attention(q, k, v, context.mask.as_ref(), 0.0));
        let hidden = hidden + hook.edit(site(Component::AttentionOutput), as_batch(mixed));

        let normed = self.mlp_norm.forward(hidden.clone()).reshape([batch * seq, d_model]);
        let inner = silu(self.gate.forward(normed.clone())) * self.up.forward(normed);
        let mlp = as_batch(self.down.forward(inner));
        let hidden = hidden + hook.edit(site(Component::MlpOutput), mlp);
        hook.edit(site(Component::BlockOutput), hidden)
    }
}

/// A frozen Llama with intervention points.
///
/// ```text
/// h = embedding[tokens];  for each block: h ← block(h);  logits = head(norm(h))
/// ```
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    embedding: Tensor<B, 2>,
    blocks: Vec<Block<B>>,
    norm: RmsNorm<B>,
    head: Option<Linear<B>>,
    #[module(skip)]
    config: LlamaConfig,
    #[module(skip)]
    frequencies: Vec<f64>,
}

impl<B: Backend> Llama<B> {
    /// Builds the model from any source of tensors, asked for by Hugging Face's names.
    ///
    /// The configuration must have passed [`LlamaConfig::parse`].
    pub fn from_source<S: TensorSource<B>>(config: &LlamaConfig, source: &mut S) -> Self {
        let (d, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let heads =
            Heads { queries: config.num_attention_heads, keys: config.kv_heads(), dim: config.head_dim() };
        let qwen2 = config.model_type == "qwen2";
        let embedding = source.take("model.embed_tokens.weight", [vocab, d]);
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |part: &str| format!("model.layers.{layer}.{part}");
                let mut linear = |part: &str, d_out: usize, d_in: usize, bias: bool| {
                    source.linear(&name(part), [d_out, d_in], bias)
                };
                let attention_bias = config.attention_bias;
                let (d_q, d_kv) = (heads.queries * heads.dim, heads.keys * heads.dim);
                let q = linear("self_attn.q_proj", d_q, d, attention_bias || qwen2);
                let k = linear("self_attn.k_proj", d_kv, d, attention_bias || qwen2);
                let v = linear("self_attn.v_proj", d_kv, d, attention_bias || qwen2);
                let o = linear("self_attn.o_proj", d, d_q, attention_bias);
                let gate = linear("mlp.gate_proj", inner, d, config.mlp_bias);
                let up = linear("mlp.up_proj", inner, d, config.mlp_bias);
                let down = linear("mlp.down_proj", d, inner, config.mlp_bias);
                let mut norm = |part: &str, size: usize| RmsNorm {
                    weight: source.take(&name(&format!("{part}.weight")), [size]),
                    epsilon: config.rms_norm_eps,
                };
                let attention_norm = norm("input_layernorm", d);
                let mlp_norm = norm("post_attention_layernorm", d);
                let qk_norm = (config.model_type == "qwen3")
                    .then(|| (norm("self_attn.q_norm", heads.dim), norm("self_attn.k_norm", heads.dim)));
                Block { attention_norm, q, k, v, o, qk_norm, mlp_norm, gate, up, down, heads }
            })
            .collect();
        let norm = RmsNorm { weight: source.take("model.norm.weight", [d]), epsilon: config.rms_norm_eps };
        let head = (!config.tie_word_embeddings).then(|| source.linear("lm_head", [vocab, d], false));
        let (theta, scaling) = config.rope().expect("checked by parse");
        let frequencies = frequencies(heads.dim, theta, scaling);
        Self { embedding, blocks, norm, head, config: config.clone(), frequencies }
    }

    /// The model's `config.json`.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The type of the hidden states.
    pub fn dtype(&self) -> Dtype {
        Dtype::of(self.embedding.dtype())
    }

    /// Where the weights are.
    pub fn device(&self) -> B::Device {
        self.embedding.device()
    }

    /// The residual stream after the last block.
    ///
    /// With a cache, the batch continues what the cache has seen.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    pub fn forward<H: Hook<B>>(
        &self,
        tokens: &TokenBatch,
        mut cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        let context = self.context(tokens, cache.as_deref_mut());
        self.run(0..self.blocks.len(), self.embed(tokens), &context, cache, hook)
    }

    /// Logits of some rows of the flattened batch.
    ///
    /// # Shapes
    /// - hidden `[batch, seq, d_model]`, rows `n` of `batch · seq`; output `[n, vocab]`
    pub fn logits(&self, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
        self.head(self.final_states(hidden, rows))
    }

    /// The normalised final hidden states of some rows of the flattened batch: what the head reads.
    ///
    /// # Shapes
    /// - hidden `[batch, seq, d_model]`, rows `n` of `batch · seq`; output `[n, d_model]`
    pub fn final_states(&self, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
        normalised_rows(&self.norm, hidden, rows)
    }

    /// Logits of normalised final hidden states.
    ///
    /// # Shapes
    /// - states `[n, d_model]`, output `[n, vocab]`
    pub fn head(&self, states: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.head {
            Some(head) => head.forward(states),
            None => states.matmul(self.embedding.clone().transpose()),
        }
    }

    /// The output head's matrix, `[vocab, d_model]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        self.head.as_ref().map_or_else(|| self.embedding.clone(), |head| head.weight.clone())
    }

    fn embed(&self, tokens: &TokenBatch) -> Tensor<B, 3> {
        let ids: Vec<i64> = tokens.ids.iter().map(|id| i64::from(*id)).collect();
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens.ids.len()]), &self.device());
        self.embedding.clone().select(0, index).reshape([tokens.batch, tokens.seq, self.config.hidden_size])
    }

    fn context(&self, tokens: &TokenBatch, cache: Option<&mut KvCache<B>>) -> Context<B> {
        let device = self.device();
        let (positions, rows) = tokens.rotary_positions();
        let rotation = Rotation::new(&self.frequencies, &positions, rows, self.embedding.dtype(), &device);
        let window = self.config.window();
        let mask = match cache {
            Some(cache) => {
                cache.enter(tokens);
                cache.mask(tokens, window, &device)
            }
            None => {
                // Nothing attends to padding on the right, so one causal mask serves all rows.
                let right_padded = rows == 1;
                let slots: Vec<Vec<Option<usize>>> = if right_padded {
                    vec![positions.into_iter().map(Some).collect()]
                } else {
                    tokens.positions.chunks(tokens.seq).map(<[_]>::to_vec).collect()
                };
                cache::mask(&slots, tokens.seq, window, &device)
            }
        };
        Context { rotation, mask }
    }

    fn run<H: Hook<B>>(
        &self,
        layers: Range<usize>,
        mut hidden: Tensor<B, 3>,
        context: &Context<B>,
        mut cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        for layer in layers {
            hidden = self.blocks[layer].forward(layer, hidden, context, cache.as_deref_mut(), hook);
        }
        hidden
    }

    /// A training pass of a batch, differentiable with respect to what a hook brings in from the layer `first` up.
    ///
    /// The blocks below run on the inner backend, outside of the tape. `seed` is that of the pass's dropout.
    pub fn pass<A>(&self, tokens: &TokenBatch, first: Option<usize>, seed: u64) -> Pass<A, LlamaBlocks<'_, A>>
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        let first = first.unwrap_or(self.blocks.len());
        let context = self.context(tokens, None);
        let entering = self.run(0..first, self.embed(tokens), &context, None, &NoHook);
        let blocks = LlamaBlocks { model: self, context: Context::<A>::from_inner(context) };
        Pass::new(blocks, first, entering, seed)
    }

    /// [`final_states`](Self::final_states) of tracked hidden states.
    pub fn final_states_tracked<A>(&self, hidden: Tensor<A, 3>, rows: &[usize]) -> Tensor<A, 2>
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        normalised_rows(&RmsNorm::<A>::from_inner(self.norm.clone()), hidden, rows)
    }
}

/// The blocks of a Llama, bound to one batch.
#[derive(Debug)]
pub struct LlamaBlocks<'a, A: AutodiffBackend> {
    model: &'a Llama<A::InnerBackend>,
    context: Context<A>,
}

impl<A: AutodiffBackend> Blocks<A> for LlamaBlocks<'_, A> {
    fn count(&self) -> usize {
        self.model.blocks.len()
    }

    fn forward<H: Hook<A>>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        let block = Block::<A>::from_inner(self.model.blocks[layer].dense(hidden.dtype()));
        block.forward(layer, hidden, &self.context, None, hook)
    }
}

impl<B: Backend> Pretrained<B> for Llama<B> {
    type Config = LlamaConfig;

    fn parse(json: &[u8]) -> Result<LlamaConfig, String> {
        LlamaConfig::parse(json)
    }

    fn prepare(config: &LlamaConfig, weights: &mut Weights) {
        weights.ignore(|name| name.ends_with("rotary_emb.inv_freq"));
        if config.tie_word_embeddings {
            weights.ignore(|name| name == "lm_head.weight");
        }
    }

    fn from_source<S: TensorSource<B>>(config: &LlamaConfig, source: &mut S) -> Self {
        Llama::from_source(config, source)
    }

    fn stop_ids(config: &LlamaConfig) -> Vec<u32> {
        config.eos_ids()
    }
}

/// Some rows of the flattened batch, normalised.
fn normalised_rows<B: Backend>(norm: &RmsNorm<B>, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
    let [batch, seq, d_model] = hidden.dims();
    let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [rows.len()]), &hidden.device());
    norm.forward(hidden.reshape([batch * seq, d_model]).select(0, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: &str) -> Result<LlamaConfig, String> {
        let mut config = serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 32, "max_position_embeddings": 64
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
        let expect = |change: &str, part: &str| {
            let error = parse(change).expect_err(change);
            assert!(error.contains(part), "{error}");
        };
        expect(r#"{"model_type": "gpt2"}"#, "model_type is \"gpt2\"");
        expect(r#"{"hidden_act": "gelu"}"#, "hidden_act is \"gelu\"");
        expect(
            r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2}}"#,
            "rope_scaling.rope_type is \"yarn\"",
        );
        expect(r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling lacks the number factor");
        expect(r#"{"num_key_value_heads": 3}"#, "num_attention_heads is 4");
        expect(r#"{"hidden_size": 10}"#, "hidden_size is 10");
        expect(r#"{"model_type": "qwen2", "use_sliding_window": true}"#, "use_sliding_window");
        expect(r#"{"vocab_size": "many"}"#, "invalid type");
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let config =
            parse(r#"{"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}"#);
        assert_eq!(config.expect("valid").rope(), Ok((5e5, RopeScaling::Linear { factor: 2.0 })));
        let config = parse(r#"{"rope_theta": 100.0, "rope_scaling": null}"#);
        assert_eq!(config.expect("valid").rope(), Ok((100.0, RopeScaling::Default)));
    }
}
