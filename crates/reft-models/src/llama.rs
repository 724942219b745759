//! The Llama family: Llama 1 to 3.2, TinyLlama, SmolLM, and the small variations Mistral, Qwen2, Qwen2.5 and Qwen3.
//!
//! Mirrors Hugging Face's `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py` and `modeling_qwen3.py`.

mod config;
mod rope;
mod windows;

use crate::{
    batch::TokenBatch,
    cache::{KeysValues, KvCache},
    frozen::{Frozen, frozen},
    linear::Linear,
    names::{is_constant, unwrapped},
    norm::RmsNorm,
    packed::{Constants, PackedTokens},
    pass::{Blocks, TrainingPass},
    precision::Dtype,
    reuse::{EnteringStates, ReusedStates},
    rope::Rope,
    rows::{rows_of, select_rows},
    source::{Pretrained, TensorSource},
};
use burn::tensor::{Tensor, backend::Backend};
use reft_core::{BatchLayout, Component, Hook, NoHook, Packing, Place, Site, hook::check_sites, to_dtype};
use reft_kernels::{
    AttentionInputs, AttentionSettings, AutodiffKernels, Heads, Kernels, Mask, RotaryTable, Spans,
};
use std::{ops::Range, sync::Arc};

const EMBEDDING: &str = "model.embed_tokens.weight";

pub use config::LlamaConfig;
pub use rope::RopeConfig;
pub use windows::{WindowedBlocks, Windows};

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
    /// Whether the attention is limited to a sliding window.
    windowed: bool,
}

frozen!(Block { attention_norm, q, k, v, o, qk_norm, mlp_norm, gate, up, down; heads, windowed });

/// What all blocks share for one batch.
#[derive(Debug)]
struct BatchContext<B: Backend> {
    rotary: RotaryTable<B>,
    spans: Arc<Spans>,
    /// Those of blocks with a sliding window.
    window_spans: Arc<Spans>,
    layout: BatchLayout<B>,
    /// Keys and values of constant tokens in each block, if there are any.
    constant: Vec<Option<KeysValues<B>>>,
}

impl<B: Kernels> BatchContext<B> {
    /// The same on the tape, where the layout is this one.
    fn on_tape<A: AutodiffKernels<InnerBackend = B>>(self, layout: BatchLayout<A>) -> BatchContext<A> {
        let Self { spans, window_spans, .. } = self;
        BatchContext { rotary: self.rotary.on_tape(), spans, window_spans, layout, constant: Vec::new() }
    }
}

impl<B: Kernels> Block<B> {
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
        let queries = self.queries(attn_input.clone(), &context.rotary);
        let (keys, values) = self.keys_values(attn_input, &context.rotary);
        let ((keys, values), past) = match cache {
            Some(cache) => cache.append(layer, keys, values),
            None => ((keys, values), context.constant.get(layer).cloned().flatten()),
        };
        let spans = if self.windowed { &context.window_spans } else { &context.spans };
        let settings = AttentionSettings { heads: self.heads, spans: spans.clone(), dropout: None };
        let attended = Kernels::attention(AttentionInputs { queries, keys, values, past }, &settings);
        let attn_output = as_batch(self.o.forward(attended));
        let hidden = hidden + hook.edit(&at(Component::AttentionOutput), attn_output);

        let mlp_input = self.mlp_norm.forward(hidden.clone()).reshape([batch * seq, d_model]);
        let gated = Kernels::swiglu(self.gate.forward(mlp_input.clone()), self.up.forward(mlp_input));
        let mlp_output = as_batch(self.down.forward(gated));
        let hidden = hidden + hook.edit(&at(Component::MlpOutput), mlp_output);
        hook.edit(&at(Component::BlockOutput), hidden)
    }

    /// # Shapes
    /// - input `[n, d_model]`, normalized; output `[n, heads · head_dim]`
    fn queries(&self, input: Tensor<B, 2>, rotary: &RotaryTable<B>) -> Tensor<B, 2> {
        let queries = self.q.forward(input);
        let queries = match &self.qk_norm {
            Some((norm, _)) => self.per_head(norm, queries),
            None => queries,
        };
        Kernels::rotary(queries, rotary, false)
    }

    /// # Shapes
    /// - input `[n, d_model]`, normalized; output `[n, d_kv]` each
    fn keys_values(&self, input: Tensor<B, 2>, rotary: &RotaryTable<B>) -> KeysValues<B> {
        let keys = self.k.forward(input.clone());
        let keys = match &self.qk_norm {
            Some((_, norm)) => self.per_head(norm, keys),
            None => keys,
        };
        (Kernels::rotary(keys, rotary, false), self.v.forward(input))
    }

    /// Normalizes every head.
    fn per_head(&self, norm: &RmsNorm<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [n, width] = x.dims();
        let heads = x.reshape([n * width / self.heads.dim, self.heads.dim]);
        norm.forward(heads).reshape([n, width])
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
    rope: Rope,
}

impl<B: Kernels> Llama<B> {
    /// Builds the model from its tensors.
    ///
    /// `config` must come from [`LlamaConfig::parse`].
    pub fn from_source<S: TensorSource<B>>(config: &LlamaConfig, source: &mut S) -> Self {
        let (d, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let heads = Heads {
            queries: config.num_attention_heads,
            keys: config.num_key_value_heads,
            dim: config.head_dim,
        };
        let embedding = source.take(EMBEDDING, [vocab, d]);
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |part: &str| format!("model.layers.{layer}.{part}");
                let mut linear = |part: &str, d_out: usize, d_in: usize, bias: bool| {
                    source.linear(&name(part), [d_out, d_in], bias)
                };
                let (qkv_bias, output_bias) = (config.qkv_bias, config.attention_output_bias);
                let (d_q, d_kv) = (heads.queries * heads.dim, heads.keys * heads.dim);
                let q = linear("self_attn.q_proj", d_q, d, qkv_bias);
                let k = linear("self_attn.k_proj", d_kv, d, qkv_bias);
                let v = linear("self_attn.v_proj", d_kv, d, qkv_bias);
                let o = linear("self_attn.o_proj", d, d_q, output_bias);
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
                let windowed = config.window(layer).is_some();
                Block { attention_norm, q, k, v, o, qk_norm, mlp_norm, gate, up, down, heads, windowed }
            })
            .collect();
        let norm = RmsNorm { weight: source.take("model.norm.weight", [d]), epsilon: config.rms_norm_eps };
        let head = (!config.tie_word_embeddings).then(|| source.linear("lm_head", [vocab, d], false));
        Self { embedding, blocks, norm, head, config: config.clone(), rope: config.rope() }
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The dtype of the hidden states.
    pub fn dtype(&self) -> Dtype {
        Dtype::of(self.norm.weight.dtype())
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
        let hidden = self.embed(&tokens.ids).reshape([tokens.batch, tokens.seq, self.config.hidden_size]);
        self.run(0..self.blocks.len(), hidden, &context, cache, hook)
    }

    /// The normalized final states of some rows of the flattened batch, as [`final_states`](Self::final_states) of
    /// [`forward`](Self::forward).
    ///
    /// Does no work for padding, and computes equal beginnings of texts once, where backend and hook allow it.
    ///
    /// # Shapes
    /// - rows `n` of `batch · seq`; output `[n, d_model]`
    ///
    /// # Panics
    /// If the hook needs a layer that the model does not have, see [`check_sites`].
    pub fn states_of<H: Hook<B> + ?Sized>(
        &self,
        tokens: &TokenBatch,
        rows: &[usize],
        hook: &H,
    ) -> Tensor<B, 2> {
        check_sites(hook, self.blocks.len()).unwrap_or_else(|error| panic!("{error}"));
        let Some(packed) = self.pack(tokens, hook.packing(), Constants::None) else {
            return self.final_states(self.forward(tokens, None, hook), rows);
        };
        self.packed_states(tokens, &packed, rows, None, hook)
    }

    /// Reads prompts into an empty cache and returns the normalized final state of the last token of each.
    ///
    /// Does no work for padding, and computes and holds equal beginnings of prompts once, where backend and hook allow it.
    ///
    /// # Shapes
    /// - output `[batch, d_model]`
    ///
    /// # Panics
    /// If the hook needs a layer that the model does not have, see [`check_sites`], or a prompt is empty.
    pub fn read_prompts<H: Hook<B> + ?Sized>(
        &self,
        prompts: &TokenBatch,
        cache: &mut KvCache<B>,
        hook: &H,
    ) -> Tensor<B, 2> {
        check_sites(hook, self.blocks.len()).unwrap_or_else(|error| panic!("{error}"));
        let last = |row: usize| {
            (row * prompts.seq..(row + 1) * prompts.seq).rfind(|at| prompts.positions[*at].is_some())
        };
        let last_tokens: Vec<usize> =
            (0..prompts.batch).map(|row| last(row).expect("a prompt has tokens")).collect();
        let Some(packed) = self.pack(prompts, hook.packing(), Constants::None) else {
            return self.final_states(self.forward(prompts, Some(cache), hook), &last_tokens);
        };
        cache.enter_packed(prompts, &packed);
        self.packed_states(prompts, &packed, &last_tokens, Some(cache), hook)
    }

    /// The normalized final states of some rows of the flattened batch, whose tokens are packed.
    fn packed_states<H: Hook<B> + ?Sized>(
        &self,
        tokens: &TokenBatch,
        packed: &PackedTokens,
        rows: &[usize],
        cache: Option<&mut KvCache<B>>,
        hook: &H,
    ) -> Tensor<B, 2> {
        let context = self.packed_context(tokens, packed);
        let hidden = self.run(0..self.blocks.len(), self.embed_packed(packed), &context, cache, hook);
        let places = packed.places_from(0);
        self.final_states(hidden, &rows.iter().filter_map(|row| places[*row]).collect::<Vec<_>>())
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
            None => Kernels::linear(states, self.embedding.clone(), None),
        }
    }

    /// The matrix of the output head, `[vocab, d_model]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        self.head.as_ref().map_or_else(|| self.embedding.clone(), |head| head.weight.clone())
    }

    /// # Shapes
    /// - output `[n, d_model]`
    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        to_dtype(rows_of(self.embedding.clone(), ids.iter().map(|id| *id as usize)), self.norm.weight.dtype())
    }

    /// # Shapes
    /// - output `[1, tokens, d_model]`
    fn embed_packed(&self, packed: &PackedTokens) -> Tensor<B, 3> {
        self.embed(&packed.ids).unsqueeze()
    }

    fn pack(&self, tokens: &TokenBatch, packing: Packing, constants: Constants) -> Option<PackedTokens> {
        if B::packs_rows(self.norm.weight.dtype()) {
            PackedTokens::new(tokens, packing, constants)
        } else {
            None
        }
    }

    /// The spans of blocks without and with a sliding window: the same if no block has one.
    fn spans(&self, of: impl Fn(Mask) -> Arc<Spans>) -> [Arc<Spans>; 2] {
        let spans = of(Mask::CAUSAL);
        let windowed = self.blocks.iter().position(|block| block.windowed);
        let window_spans = match windowed.and_then(|layer| self.config.window(layer)) {
            Some(window) => of(Mask { window: Some(window), ..Mask::CAUSAL }),
            None => spans.clone(),
        };
        [spans, window_spans]
    }

    fn rotary(&self, positions: &[usize]) -> RotaryTable<B> {
        self.rope.table(positions, self.norm.weight.dtype(), &self.device())
    }

    fn packed_context(&self, tokens: &TokenBatch, packed: &PackedTokens) -> BatchContext<B> {
        let [spans, window_spans] = self.spans(|mask| packed.spans(mask));
        let layout = packed.layout(tokens, 0, &self.device());
        BatchContext {
            rotary: self.rotary(&packed.positions),
            spans,
            window_spans,
            layout,
            constant: Vec::new(),
        }
    }

    fn batch_context(&self, tokens: &TokenBatch, cache: Option<&mut KvCache<B>>) -> BatchContext<B> {
        let [spans, window_spans] = match cache {
            Some(cache) => {
                cache.enter(tokens);
                self.spans(|mask| cache.spans(tokens.seq, mask))
            }
            None => self.spans(|mask| tokens.spans(mask)),
        };
        let rotary = self.rotary(&tokens.rotary_positions());
        let layout = tokens.layout(&self.device());
        BatchContext { rotary, spans, window_spans, layout, constant: Vec::new() }
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
    ///
    /// Where the backend and the hook's `packing` allow it, equal beginnings of texts are computed once, and tokens that
    /// no edit can change run on the inner backend through all blocks.
    pub fn training_pass<A>(
        &self,
        tokens: &TokenBatch,
        first_layer: Option<usize>,
        packing: Packing,
        seed: u64,
    ) -> TrainingPass<A, LlamaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let first_layer = first_layer.unwrap_or(self.blocks.len());
        let Some(packed) = self.pack(tokens, packing, Constants::Shared) else {
            let context = self.batch_context(tokens, None);
            let hidden = self.embed(&tokens.ids).reshape([tokens.batch, tokens.seq, self.config.hidden_size]);
            let entering = self.run(0..first_layer, hidden, &context, None, &NoHook);
            let layout = tokens.layout(&Tensor::<A, 3>::from_inner(entering.clone()).device());
            let blocks = LlamaBlocks { model: self, context: context.on_tape(layout) };
            return TrainingPass::new(blocks, first_layer, entering, seed);
        };
        let states = self.entering_states(tokens, &packed, first_layer);
        self.packed_pass(tokens, &packed, first_layer, states, seed)
    }

    /// [`training_pass`](Self::training_pass) with what `reused` has kept of earlier passes over the same texts. What it does
    /// not have yet is computed, and kept if there is room.
    ///
    /// `first_layer` and `packing` must be those of the earlier passes.
    pub fn training_pass_reusing<A>(
        &self,
        tokens: &TokenBatch,
        first_layer: Option<usize>,
        packing: Packing,
        reused: &mut ReusedStates<B>,
        seed: u64,
    ) -> TrainingPass<A, LlamaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let Some(packed) = self.pack(tokens, packing, Constants::OfEachText) else {
            return self.training_pass(tokens, first_layer, packing, seed);
        };
        let first_layer = first_layer.unwrap_or(self.blocks.len());
        let states = reused.states_of(tokens, &self.device(), |missing| {
            let packed =
                self.pack(missing, packing, Constants::Shared).expect("the whole batch can be packed");
            let states = self.entering_states(missing, &packed, first_layer);
            (0..missing.batch).map(|text| states.of_text(&packed, text, missing.seq)).collect()
        });
        self.packed_pass(tokens, &packed, first_layer, states, seed)
    }

    /// What a training pass of packed tokens starts from.
    fn entering_states(
        &self,
        tokens: &TokenBatch,
        packed: &PackedTokens,
        first_layer: usize,
    ) -> EnteringStates<B> {
        let context = self.packed_context(tokens, packed);
        let entering = self.run(0..first_layer, self.embed_packed(packed), &context, None, &NoHook);
        let (n_constant, n_active) = (packed.n_constant, packed.len() - packed.n_constant);
        let constant = self.constant_keys_values(packed, first_layer, entering.clone());
        let active = entering.narrow(1, n_constant, n_active).reshape([n_active, self.config.hidden_size]);
        EnteringStates { active, constant }
    }

    fn packed_pass<A>(
        &self,
        tokens: &TokenBatch,
        packed: &PackedTokens,
        first_layer: usize,
        states: EnteringStates<B>,
        seed: u64,
    ) -> TrainingPass<A, LlamaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let EnteringStates { active, constant } = states;
        let active: Tensor<B, 3> = active.unsqueeze();
        let device = Tensor::<A, 3>::from_inner(active.clone()).device();
        let [spans, window_spans] = self.spans(|mask| packed.active_spans(mask));
        let context = BatchContext {
            rotary: self.rotary(&packed.positions[packed.n_constant..]).on_tape(),
            spans,
            window_spans,
            layout: packed.layout(tokens, packed.n_constant, &device),
            constant: (0..first_layer)
                .map(|_| None)
                .chain(constant.iter().map(|states| Some(Frozen::<A>::on_tape(states))))
                .collect(),
        };
        let blocks = LlamaBlocks { model: self, context };
        let places = packed.places_from(packed.n_constant);
        TrainingPass::new(blocks, first_layer, active, seed).with_places(places)
    }

    /// The keys and values of the constant tokens in every block from `first_layer` on; empty if there are none.
    ///
    /// # Shapes
    /// - entering `[1, tokens, d_model]`, the input of block `first_layer`
    fn constant_keys_values(
        &self,
        packed: &PackedTokens,
        first_layer: usize,
        entering: Tensor<B, 3>,
    ) -> Vec<KeysValues<B>> {
        let n = packed.n_constant;
        if n == 0 {
            return Vec::new();
        }
        let mut hidden = entering.narrow(1, 0, n);
        let [spans, window_spans] = self.spans(|mask| packed.constant_spans(mask));
        let rotary = self.rotary(&packed.positions[..n]);
        let layout = BatchLayout::unpadded(1, n, &self.device());
        let context = BatchContext { rotary, spans, window_spans, layout, constant: Vec::new() };
        let mut all = Vec::new();
        for layer in first_layer..self.blocks.len() {
            let block = &self.blocks[layer];
            let input = block.attention_norm.forward(hidden.clone()).reshape([n, self.config.hidden_size]);
            all.push(block.keys_values(input, &context.rotary));
            // Nobody reads the output of the last block.
            if layer + 1 < self.blocks.len() {
                hidden = block.forward(layer, hidden, &context, None, &NoHook);
            }
        }
        all
    }

    /// [`final_states`](Self::final_states) of hidden states on the tape.
    pub fn final_states_tracked<A>(&self, hidden: Tensor<A, 3>, rows: &[usize]) -> Tensor<A, 2>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        normalized_rows(&self.norm.on_tape(), hidden, rows)
    }
}

/// The blocks of a Llama, bound to one batch.
#[derive(Debug)]
pub struct LlamaBlocks<'a, A: AutodiffKernels> {
    model: &'a Llama<A::InnerBackend>,
    context: BatchContext<A>,
}

impl<A: AutodiffKernels> Blocks<A> for LlamaBlocks<'_, A> {
    fn count(&self) -> usize {
        self.model.blocks.len()
    }

    fn forward<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        let block = self.model.blocks[layer].on_tape();
        block.forward(layer, hidden, &self.context, None, hook)
    }
}

impl<B: Kernels> Pretrained<B> for Llama<B> {
    type Config = LlamaConfig;

    fn parse(json: &[u8]) -> Result<LlamaConfig, String> {
        LlamaConfig::parse(json)
    }

    /// Names begin with `model.` or `lm_head.`, whatever a checkpoint adds or leaves out. The embedding of a model with tied
    /// embeddings may be saved as the output head.
    fn tensor_name(_config: &LlamaConfig, name: &str) -> String {
        const PREFIXES: [&str; 2] = ["model", "base_model"];
        const ROOTS: [&str; 5] = ["embed_tokens", "layers", "norm", "rotary_emb", "lm_head"];
        match unwrapped(name, &PREFIXES, &ROOTS) {
            Some(name) if name.starts_with("lm_head.") => name,
            Some(name) => format!("model.{name}"),
            None => name.into(),
        }
    }

    fn stands_for(config: &LlamaConfig) -> Option<(&'static str, &'static str)> {
        config.tie_word_embeddings.then_some(("lm_head.weight", EMBEDDING))
    }

    fn ignores(config: &LlamaConfig, name: &str, _exists: &dyn Fn(&str) -> bool) -> bool {
        is_constant(name) || (config.tie_word_embeddings && name == "lm_head.weight")
    }

    fn tensors(config: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (d, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (d_q, d_kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
        let (qkv, output, mlp) = (config.qkv_bias, config.attention_output_bias, config.mlp_bias);
        let linear = [
            ("self_attn.q_proj", d_q, d, qkv),
            ("self_attn.k_proj", d_kv, d, qkv),
            ("self_attn.v_proj", d_kv, d, qkv),
            ("self_attn.o_proj", d, d_q, output),
            ("mlp.gate_proj", inner, d, mlp),
            ("mlp.up_proj", inner, d, mlp),
            ("mlp.down_proj", d, inner, mlp),
        ];
        let qk_norm = config.model_type == "qwen3";
        let norms = [
            ("input_layernorm", d, true),
            ("post_attention_layernorm", d, true),
            ("self_attn.q_norm", dim, qk_norm),
            ("self_attn.k_norm", dim, qk_norm),
        ];
        let blocks = (0..config.num_hidden_layers).flat_map(move |layer| {
            let name = move |part: &str, kind: &str| format!("model.layers.{layer}.{part}.{kind}");
            let weights = linear.map(|(part, rows, columns, _)| (name(part, "weight"), vec![rows, columns]));
            let biases = linear.into_iter().filter(|(.., bias)| *bias);
            let biases = biases.map(move |(part, rows, ..)| (name(part, "bias"), vec![rows]));
            let norms = norms.into_iter().filter(|(.., exists)| *exists);
            let norms = norms.map(move |(part, size, _)| (name(part, "weight"), vec![size]));
            weights.into_iter().chain(biases).chain(norms)
        });
        let table = |name: &str| (name.to_string(), vec![config.vocab_size, d]);
        let head = (!config.tie_word_embeddings).then(|| table("lm_head.weight"));
        let norm = ("model.norm.weight".to_string(), vec![d]);
        [table(EMBEDDING)].into_iter().chain(blocks).chain([norm]).chain(head)
    }

    fn from_source<S: TensorSource<B>>(config: &LlamaConfig, source: &mut S) -> Self {
        Llama::from_source(config, source)
    }

    fn stop_ids(config: &LlamaConfig) -> Vec<u32> {
        config.eos_ids().to_vec()
    }
}

/// Some rows of the flattened batch, normalized.
fn normalized_rows<B: Kernels>(norm: &RmsNorm<B>, hidden: Tensor<B, 3>, rows: &[usize]) -> Tensor<B, 2> {
    norm.forward(select_rows(hidden, rows))
}
