//! The Llama family: Llama 1 to 3.2, TinyLlama, SmolLM, and the small variations Mistral, Qwen2, Qwen2.5 and Qwen3.
//!
//! Mirrors Hugging Face's `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py` and `modeling_qwen3.py`.

use crate::{
    attention::attention,
    batch::TokenBatch,
    cache::{self, KvCache},
    files::TokenIds,
    footprint::Footprint,
    frozen::{Frozen, frozen},
    linear::Linear,
    norm::RmsNorm,
    pass::{Blocks, TrainingPass},
    precision::Dtype,
    rope::{RopeScaling, Rotation, frequencies},
    source::{ModelConfig, Pretrained, TensorSource},
};
use burn::tensor::{
    DType, Int, Tensor, TensorData,
    activation::silu,
    backend::{AutodiffBackend, Backend},
};
use reft_core::{BatchLayout, Component, Hook, NoHook, Place, Site, hook::check_sites};
use serde::Deserialize;
use serde_json::Value;
use std::ops::Range;

/// `config.json` of a Llama, Mistral, Qwen2 or Qwen3 model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    /// Number of key and value heads; that of query heads if absent.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Size of a head; `hidden_size / num_attention_heads` if absent.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Activation of the MLP; only `silu` is supported.
    #[serde(default = "silu_name")]
    pub hidden_act: String,
    /// ε of the norms.
    #[serde(default = "default_epsilon")]
    pub rms_norm_eps: f64,
    /// The rotary frequencies.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// Whether the projections of attention have a bias.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the projections of the MLP have a bias.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Number of tokens that a query attends to, itself included (Mistral).
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// Whether Qwen applies `sliding_window` to its upper layers; not supported.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// Ids that end a text.
    #[serde(default, deserialize_with = "TokenIds::deserialize_lenient")]
    pub eos_token_id: Option<TokenIds>,
}

/// Base and scaling of the rotary frequencies: `rope_theta` with `rope_scaling`, or `rope_parameters`, which newer
/// versions of transformers write instead.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "RopeKeys")]
pub struct RopeConfig {
    /// Base of the frequencies, 10,000 if absent.
    pub theta: f64,
    /// How they are scaled.
    pub scaling: RopeScaling,
}

/// The keys of `config.json` that hold a [`RopeConfig`].
#[derive(Deserialize)]
struct RopeKeys {
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<RopeParameters>,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_type: Option<String>,
    /// What older versions of transformers call `rope_type`; some files have both.
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    factor: Option<f64>,
    #[serde(default)]
    low_freq_factor: Option<f64>,
    #[serde(default)]
    high_freq_factor: Option<f64>,
    #[serde(default)]
    original_max_position_embeddings: Option<f64>,
}

impl TryFrom<RopeKeys> for RopeConfig {
    type Error = String;

    fn try_from(keys: RopeKeys) -> Result<Self, String> {
        const DEFAULT_THETA: f64 = 10_000.0;
        let theta = keys.rope_theta.unwrap_or(DEFAULT_THETA);
        match (keys.rope_parameters, keys.rope_scaling) {
            (Some(parameters), _) => Ok(Self {
                theta: parameters.rope_theta.unwrap_or(theta),
                scaling: parameters.scaling("rope_parameters")?,
            }),
            (None, Some(parameters)) => Ok(Self {
                theta: parameters.rope_theta.unwrap_or(theta),
                scaling: parameters.scaling("rope_scaling")?,
            }),
            (None, None) => Ok(Self { theta, scaling: RopeScaling::Default }),
        }
    }
}

impl RopeParameters {
    /// `key` names the parameters in errors.
    fn scaling(&self, key: &str) -> Result<RopeScaling, String> {
        let number =
            |name: &str, value: Option<f64>| value.ok_or_else(|| format!("{key} lacks the number {name}"));
        let kind = self.rope_type.as_ref().or(self.r#type.as_ref());
        match kind.map_or("default", String::as_str) {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor", self.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor", self.factor)?,
                low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                original_context: number(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            other => Err(format!("{key}.rope_type is {other:?}, supported are default, linear, llama3")),
        }
    }
}

fn silu_name() -> String {
    "silu".into()
}

fn default_epsilon() -> f64 {
    1e-6
}

impl LlamaConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A message that lists every missing or unsupported value.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let mut value: Value =
            serde_json::from_slice(json).map_err(|error| format!("invalid JSON: {error}"))?;
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        const KNOWN: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
        if !KNOWN.contains(&model_type) {
            return Err(format!(
                "model_type is {model_type:?}; supported language models are {}",
                KNOWN.join(", ")
            ));
        }
        let mut problems = Vec::new();
        if let Err(error) = RopeConfig::deserialize(&value) {
            problems.push(error.to_string());
            // Without these keys, the other values can still be checked.
            for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
                value[key] = Value::Null;
            }
        }
        let config: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let heads = config.num_attention_heads;
        let kv_heads = config.kv_heads();
        if config.hidden_act != "silu" {
            problems.push(format!("hidden_act is {:?}; only \"silu\" is supported", config.hidden_act));
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
            problems.push("use_sliding_window is true; only false is supported".into());
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

    /// Number of tokens that a query attends to, if limited.
    pub fn window(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.model_type == "mistral")
    }

    /// The memory that one block needs in a training pass of `batch` rows of `seq` tokens, counted along
    /// `Block::forward`.
    ///
    /// The tape keeps the inputs of both norms; scaled queries, keys, values and the attention output; scores before
    /// and after the exponential; and of the MLP the gate, its sigmoid, their product, and the second factor. In the
    /// backward pass, the tensors of the MLP are freed before the gradients of the scores are allocated.
    pub fn footprint(&self, batch: usize, seq: usize, dtype: Dtype) -> Footprint {
        let (tokens, e) = (batch * seq, dtype.size());
        let (d, inner, heads) = (self.hidden_size, self.intermediate_size, self.num_attention_heads);
        let (d_q, d_kv) = (heads * self.head_dim(), self.kv_heads() * self.head_dim());
        let scores = batch * heads * seq * seq;
        // In half precision, the attention weights are divided by their sum in f32, and the tape keeps that division.
        let (attn_output, attn_weights, score_grads) =
            if dtype == Dtype::F32 { (d_q * e, 0, 3) } else { (0, scores * e, 4) };
        let per_token = 2 * d * 4 + (d_q + 2 * d_kv) * e + attn_output + 4 * inner * e;
        Footprint {
            input: tokens * d * e,
            kept: tokens * per_token + 2 * scores * 4 + attn_weights,
            forward: (4 * tokens * inner * e).max(3 * scores * 4),
            backward: (3 * tokens * inner * e)
                .max((score_grads * scores * 4).saturating_sub(4 * tokens * inner * e))
                + 2 * tokens * d * 4,
            largest: (tokens * inner * e).max(scores * 4),
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
}

/// One transformer block: `h ← h + attention(norm(h))`, then `h ← h + mlp(norm(h))`.
#[derive(Debug, Clone)]
pub struct Block<B: Backend> {
    attention_norm: RmsNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    /// Qwen3 normalizes every query and key head.
    qk_norm: Option<(RmsNorm<B>, RmsNorm<B>)>,
    mlp_norm: RmsNorm<B>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
    heads: Heads,
}

frozen!(Block { attention_norm, q, k, v, o, qk_norm, mlp_norm, gate, up, down; heads });

#[derive(Debug, Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

/// What all blocks share for one batch.
#[derive(Debug)]
struct BatchContext<B: Backend> {
    rotation: Rotation<B>,
    mask: Option<Tensor<B, 4>>,
    layout: BatchLayout<B>,
}

impl<B: Backend> Block<B> {
    /// The same block with dequantized weights.
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
    fn forward<H: Hook<B> + ?Sized>(
        &self,
        layer: usize,
        hidden: Tensor<B, 3>,
        context: &BatchContext<B>,
        cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        let [batch, seq, d_model] = hidden.dims();
        let at = |component| Place { site: Site { layer, component }, layout: &context.layout };
        let as_batch = |flat: Tensor<B, 2>| flat.reshape([batch, seq, d_model]);
        let hidden = hook.edit(&at(Component::BlockInput), hidden);

        let attn_input = self.attention_norm.forward(hidden.clone()).reshape([batch * seq, d_model]);
        let split = |flat: Tensor<B, 2>, heads: usize| flat.reshape([batch, seq, heads, self.heads.dim]);
        let mut queries = split(self.q.forward(attn_input.clone()), self.heads.queries);
        let mut keys = split(self.k.forward(attn_input.clone()), self.heads.keys);
        let values = split(self.v.forward(attn_input), self.heads.keys).swap_dims(1, 2);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (queries, keys) = (q_norm.forward(queries), k_norm.forward(keys));
        }
        let queries = context.rotation.apply(queries.swap_dims(1, 2));
        let keys = context.rotation.apply(keys.swap_dims(1, 2));
        let (keys, values) = match cache {
            Some(cache) => cache.append(layer, keys, values),
            None => (keys, values),
        };
        let attn_output = self.o.forward(attention(queries, keys, values, context.mask.as_ref(), 0.0));
        let hidden = hidden + hook.edit(&at(Component::AttentionOutput), as_batch(attn_output));

        let mlp_input = self.mlp_norm.forward(hidden.clone()).reshape([batch * seq, d_model]);
        let gated = silu(self.gate.forward(mlp_input.clone())) * self.up.forward(mlp_input);
        let mlp_output = as_batch(self.down.forward(gated));
        let hidden = hidden + hook.edit(&at(Component::MlpOutput), mlp_output);
        hook.edit(&at(Component::BlockOutput), hidden)
    }
}

/// A frozen Llama with intervention points.
///
/// ```text
/// h = embedding[tokens];  for each block: h ← block(h);  logits = head(norm(h))
/// ```
#[derive(Debug, Clone)]
pub struct Llama<B: Backend> {
    embedding: Tensor<B, 2>,
    blocks: Vec<Block<B>>,
    norm: RmsNorm<B>,
    head: Option<Linear<B>>,
    config: LlamaConfig,
    frequencies: Vec<f64>,
}

impl<B: Backend> Llama<B> {
    /// Builds the model from its tensors.
    ///
    /// `config` must come from [`LlamaConfig::parse`].
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
        let frequencies = frequencies(heads.dim, config.rope.theta, config.rope.scaling);
        Self { embedding, blocks, norm, head, config: config.clone(), frequencies }
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The dtype of the hidden states.
    pub fn dtype(&self) -> Dtype {
        Dtype::of(self.embedding.dtype())
    }

    /// The device of the weights.
    pub fn device(&self) -> B::Device {
        self.embedding.device()
    }

    /// The hidden states after the last block.
    ///
    /// With a cache, the batch continues the tokens that the cache holds.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    ///
    /// # Panics
    /// If the hook needs a layer that the model does not have, see [`check_sites`].
    pub fn forward<H: Hook<B> + ?Sized>(
        &self,
        tokens: &TokenBatch,
        mut cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        check_sites(hook, self.blocks.len()).unwrap_or_else(|error| panic!("{error}"));
        let context = self.batch_context(tokens, cache.as_deref_mut());
        self.run(0..self.blocks.len(), self.embed(tokens), &context, cache, hook)
    }

    /// The logits of some rows of the flattened batch.
    ///
    /// # Shapes
    /// - hidden `[batch, seq, d_model]`, rows `n` of `batch · seq`; output `[n, vocab]`
    pub fn logits(&self, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
        self.head(self.final_states(hidden, rows))
    }

    /// The normalized final states of some rows of the flattened batch: the input of the output head.
    ///
    /// # Shapes
    /// - hidden `[batch, seq, d_model]`, rows `n` of `batch · seq`; output `[n, d_model]`
    pub fn final_states(&self, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
        normalized_rows(&self.norm, hidden, rows)
    }

    /// The logits of normalized final states.
    ///
    /// # Shapes
    /// - states `[n, d_model]`, output `[n, vocab]`
    pub fn head(&self, states: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.head {
            Some(head) => head.forward(states),
            None => states.matmul(self.embedding.clone().transpose()),
        }
    }

    /// The matrix of the output head, `[vocab, d_model]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        self.head.as_ref().map_or_else(|| self.embedding.clone(), |head| head.weight.clone())
    }

    fn embed(&self, tokens: &TokenBatch) -> Tensor<B, 3> {
        let ids: Vec<i64> = tokens.ids.iter().map(|id| i64::from(*id)).collect();
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens.ids.len()]), &self.device());
        self.embedding.clone().select(0, index).reshape([tokens.batch, tokens.seq, self.config.hidden_size])
    }

    fn batch_context(&self, tokens: &TokenBatch, cache: Option<&mut KvCache<B>>) -> BatchContext<B> {
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
                // No token attends to padding on its right, so one causal mask serves all rows.
                let right_padded = rows == 1;
                let slots: Vec<Vec<Option<usize>>> = if right_padded {
                    vec![positions.into_iter().map(Some).collect()]
                } else {
                    tokens.positions.chunks(tokens.seq).map(<[_]>::to_vec).collect()
                };
                cache::mask(&slots, tokens.seq, window, &device)
            }
        };
        BatchContext { rotation, mask, layout: tokens.layout(&device) }
    }

    fn run<H: Hook<B> + ?Sized>(
        &self,
        layers: Range<usize>,
        mut hidden: Tensor<B, 3>,
        context: &BatchContext<B>,
        mut cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 3> {
        for layer in layers {
            hidden = self.blocks[layer].forward(layer, hidden, context, cache.as_deref_mut(), hook);
        }
        hidden
    }

    /// A training pass for a batch.
    ///
    /// Blocks below `first_layer` (all blocks if `None`) run here, on the inner backend; the others run in the pass,
    /// whose result is differentiable with respect to the parameters of the hook. `seed` is that of dropout.
    pub fn training_pass<A>(
        &self,
        tokens: &TokenBatch,
        first_layer: Option<usize>,
        seed: u64,
    ) -> TrainingPass<A, LlamaBlocks<'_, A>>
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        let first_layer = first_layer.unwrap_or(self.blocks.len());
        let context = self.batch_context(tokens, None);
        let entering = self.run(0..first_layer, self.embed(tokens), &context, None, &NoHook);
        let BatchContext { rotation, mask, .. } = context;
        let layout = tokens.layout(&Tensor::<A, 3>::from_inner(entering.clone()).device());
        let context = BatchContext { rotation: rotation.on_tape(), mask: mask.on_tape(), layout };
        let blocks = LlamaBlocks { model: self, context };
        TrainingPass::new(blocks, first_layer, entering, seed)
    }

    /// [`final_states`](Self::final_states) of hidden states on the tape.
    pub fn final_states_tracked<A>(&self, hidden: Tensor<A, 3>, rows: &[usize]) -> Tensor<A, 2>
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        normalized_rows(&self.norm.on_tape(), hidden, rows)
    }
}

/// The blocks of a Llama, bound to one batch.
#[derive(Debug)]
pub struct LlamaBlocks<'a, A: AutodiffBackend> {
    model: &'a Llama<A::InnerBackend>,
    context: BatchContext<A>,
}

impl<A: AutodiffBackend> Blocks<A> for LlamaBlocks<'_, A> {
    fn count(&self) -> usize {
        self.model.blocks.len()
    }

    fn forward<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        let block = self.model.blocks[layer].dense(hidden.dtype()).on_tape();
        block.forward(layer, hidden, &self.context, None, hook)
    }
}

impl<B: Backend> Pretrained<B> for Llama<B> {
    type Config = LlamaConfig;

    fn parse(json: &[u8]) -> Result<LlamaConfig, String> {
        LlamaConfig::parse(json)
    }

    fn ignores(config: &LlamaConfig, name: &str, _exists: &dyn Fn(&str) -> bool) -> bool {
        name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
    }

    fn from_source<S: TensorSource<B>>(config: &LlamaConfig, source: &mut S) -> Self {
        Llama::from_source(config, source)
    }

    fn stop_ids(config: &LlamaConfig) -> Vec<u32> {
        config.eos_ids().to_vec()
    }
}

/// Some rows of the flattened batch, normalized.
fn normalized_rows<B: Backend>(norm: &RmsNorm<B>, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
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
        for (change, message) in [
            (
                r#"{"model_type": "gpt2"}"#,
                r#"model_type is "gpt2"; supported language models are llama, mistral, qwen2, qwen3"#,
            ),
            (r#"{"hidden_act": "gelu"}"#, r#"hidden_act is "gelu"; only "silu" is supported"#),
            (
                r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2}}"#,
                r#"rope_scaling.rope_type is "yarn", supported are default, linear, llama3"#,
            ),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling lacks the number factor"),
            (
                r#"{"rope_parameters": {"rope_type": "llama3", "factor": 8}}"#,
                "rope_parameters lacks the number low_freq_factor",
            ),
            (
                r#"{"num_key_value_heads": 3}"#,
                "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3",
            ),
            (r#"{"hidden_size": 10}"#, "hidden_size is 10, expected a multiple of 4 heads"),
            (
                r#"{"model_type": "qwen2", "use_sliding_window": true}"#,
                "use_sliding_window is true; only false is supported",
            ),
            (r#"{"vocab_size": "many"}"#, r#"invalid type: string "many", expected usize"#),
        ] {
            assert_eq!(parse(change).expect_err(change), message);
        }
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        assert_eq!(
            parse(r#"{"rope_scaling": {"rope_type": "yarn"}, "hidden_act": "gelu", "head_dim": 3}"#),
            Err("rope_scaling.rope_type is \"yarn\", supported are default, linear, llama3; \
                 hidden_act is \"gelu\"; only \"silu\" is supported; head_dim is 3, expected an even number"
                .into())
        );
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let rope = |change: &str| {
            let RopeConfig { theta, scaling } = parse(change).expect(change).rope;
            (theta, scaling)
        };
        assert_eq!(rope("{}"), (10_000.0, RopeScaling::Default));
        assert_eq!(rope(r#"{"rope_theta": 100, "rope_scaling": null}"#), (100.0, RopeScaling::Default));
        let linear = RopeScaling::Linear { factor: 2.0 };
        for change in [
            r#"{"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}"#,
            r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}"#,
        ] {
            assert_eq!(rope(change), (5e5, linear), "{change}");
        }
        let llama3 = r#"{"rope_theta": 500000.0, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#;
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(rope(llama3), (5e5, scaling));
    }

    #[test]
    fn end_of_text_is_one_id_or_a_list() {
        let ids = |change: &str| parse(change).expect(change).eos_ids().to_vec();
        assert_eq!(ids(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ids(r#"{"eos_token_id": [1, 2]}"#), [1, 2]);
        assert!(ids("{}").is_empty());
    }
}
