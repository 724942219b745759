//! RoBERTa, and the small variations XLM-RoBERTa, CamemBERT and BERT.
//!
//! Mirrors Hugging Face's `modeling_roberta.py` and `modeling_bert.py`.

mod config;

use crate::{
    batch::TokenBatch,
    frozen::{Frozen, frozen},
    linear::{Linear, dropout},
    names::{is_constant, unwrapped},
    norm::LayerNorm,
    pass::{Blocks, TrainingPass},
    precision::Dtype,
    reuse::{EnteringStates, ReusedStates},
    rows::rows_of,
    source::{Pretrained, TensorSource},
};
use burn::tensor::{Distribution, Tensor, backend::Backend};
use reft_core::{
    BatchLayout, Component, Hook, NoHook, Packing, Place, Site, hook::check_sites, host_values, to_dtype,
};
use reft_kernels::{
    AttentionInputs, AttentionSettings, AutodiffKernels, Dropout, Heads, Kernels, Mask, Segment, Spans,
};
use std::{ops::Range, sync::Arc};

pub use crate::rows::select_rows;
pub use config::{DropoutRates, RobertaConfig};

/// One transformer block: `h ← norm(h + attention(h))`, then `h ← norm(h + mlp(h))`.
#[derive(Debug, Clone)]
pub struct EncoderBlock<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    attention_output: Linear<B>,
    attention_norm: LayerNorm<B>,
    intermediate: Linear<B>,
    output: Linear<B>,
    output_norm: LayerNorm<B>,
    n_heads: usize,
}

frozen!(EncoderBlock { query, key, value, attention_output, attention_norm, intermediate, output, output_norm; n_heads });

/// What all blocks share for one batch.
#[derive(Debug)]
struct EncoderContext<'a, B: Backend> {
    spans: &'a Arc<Spans>,
    layout: &'a BatchLayout<B>,
    rates: DropoutRates,
    /// That of the dropout of attention weights.
    seed: u64,
}

impl<B: Kernels> EncoderBlock<B> {
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn forward<H: Hook<B> + ?Sized>(
        &self,
        layer: usize,
        hidden: Tensor<B, 3>,
        context: &EncoderContext<'_, B>,
        hook: &H,
    ) -> Tensor<B, 3> {
        let EncoderContext { spans, layout, rates, seed } = *context;
        let [batch, seq, d_model] = hidden.dims();
        let at = |component| Place { site: Site { layer, component }, layout };
        let as_batch = |flat: Tensor<B, 2>| flat.reshape([batch, seq, d_model]);
        let hidden = hook.edit(&at(Component::BlockInput), hidden);
        let flat = hidden.clone().reshape([batch * seq, d_model]);
        let inputs = AttentionInputs {
            queries: self.query.forward(flat.clone()),
            keys: self.key.forward(flat.clone()),
            values: self.value.forward(flat),
            past: None,
        };
        let settings = AttentionSettings {
            heads: Heads { queries: self.n_heads, keys: self.n_heads, dim: d_model / self.n_heads },
            spans: spans.clone(),
            dropout: (rates.attention > 0.0)
                .then(|| Dropout { rate: rates.attention, seed: seed.wrapping_add(layer as u64) }),
        };
        let attn_states = self.attention_output.forward(Kernels::attention(inputs, &settings));
        let attn_output = as_batch(dropout(attn_states, rates.hidden));
        let attn_output = hook.edit(&at(Component::AttentionOutput), attn_output);
        let hidden = self.attention_norm.forward(hidden + attn_output);

        let mlp_states =
            Kernels::gelu(self.intermediate.forward(hidden.clone().reshape([batch * seq, d_model])));
        let mlp_output = as_batch(dropout(self.output.forward(mlp_states), rates.hidden));
        let mlp_output = hook.edit(&at(Component::MlpOutput), mlp_output);
        hook.edit(&at(Component::BlockOutput), self.output_norm.forward(hidden + mlp_output))
    }
}

/// A frozen RoBERTa or BERT encoder with intervention points.
///
/// ```text
/// h = norm(word[tokens] + position[…] + type[…]);  for each block: h ← block(h)
/// ```
#[derive(Debug, Clone)]
pub struct Roberta<B: Backend> {
    words: Tensor<B, 2>,
    positions: Tensor<B, 2>,
    types: Tensor<B, 2>,
    norm: LayerNorm<B>,
    blocks: Vec<EncoderBlock<B>>,
    config: RobertaConfig,
}

impl<B: Kernels> Pretrained<B> for Roberta<B> {
    type Config = RobertaConfig;

    fn parse(json: &[u8]) -> Result<RobertaConfig, String> {
        RobertaConfig::parse(json)
    }

    /// Removes what a checkpoint puts before the names, and maps the names of BERT to those of RoBERTa: pooler and classifier are the two
    /// layers of the head, and the oldest checkpoints call the parameters of norms gamma and beta.
    fn tensor_name(config: &RobertaConfig, name: &str) -> String {
        const PREFIXES: [&str; 5] = ["model", "base_model", "auto_model", "roberta", "bert"];
        const ROOTS: [&str; 7] =
            ["embeddings", "encoder", "pooler", "classifier", "lm_head", "cls", "qa_outputs"];
        let name = unwrapped(name, &PREFIXES, &ROOTS).unwrap_or_else(|| name.into());
        let name = name.replace("LayerNorm.gamma", "LayerNorm.weight");
        let name = name.replace("LayerNorm.beta", "LayerNorm.bias");
        if config.is_bert() {
            if let Some(part @ ("weight" | "bias")) = name.strip_prefix("classifier.") {
                return format!("classifier.out_proj.{part}");
            }
            if let Some(part) = name.strip_prefix("pooler.dense.") {
                return format!("classifier.dense.{part}");
            }
        }
        name
    }

    fn ignores(_config: &RobertaConfig, name: &str, exists: &dyn Fn(&str) -> bool) -> bool {
        // BERT's pooler without a classifier is half a head.
        let half_head = !exists("classifier.out_proj.weight");
        let other_heads = ["pooler.", "lm_head.", "cls.", "qa_outputs."];
        other_heads.iter().any(|head| name.starts_with(head))
            || is_constant(name)
            || (half_head && name.starts_with("classifier."))
    }

    fn tensors(config: &RobertaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let tables = [
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", config.max_position_embeddings),
            ("token_type_embeddings", config.type_vocab_size),
        ];
        let tables = tables.map(|(name, rows)| (format!("embeddings.{name}.weight"), vec![rows, d]));
        let linear = [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", inner, d),
            ("output.dense", d, inner),
        ];
        let norm = move |name: String| {
            ["weight", "bias"].map(move |part| (format!("{name}.LayerNorm.{part}"), vec![d]))
        };
        let blocks = (0..config.num_hidden_layers).flat_map(move |layer| {
            let name = move |part: &str| format!("encoder.layer.{layer}.{part}");
            let linear = linear.into_iter().flat_map(move |(part, rows, columns)| {
                let name = name(part);
                [(format!("{name}.weight"), vec![rows, columns]), (format!("{name}.bias"), vec![rows])]
            });
            linear.chain(norm(name("attention.output"))).chain(norm(name("output")))
        });
        tables.into_iter().chain(norm("embeddings".into())).chain(blocks)
    }

    fn from_source<S: TensorSource<B>>(config: &RobertaConfig, source: &mut S) -> Self {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |source: &mut S, name: &str| LayerNorm {
            weight: source.take(&format!("{name}.weight"), [d]),
            bias: source.take(&format!("{name}.bias"), [d]),
            epsilon: config.layer_norm_eps,
        };
        let mut table =
            |name: &str, rows: usize| source.take(&format!("embeddings.{name}_embeddings.weight"), [rows, d]);
        let words = table("word", config.vocab_size);
        let positions = table("position", config.max_position_embeddings);
        let types = table("token_type", config.type_vocab_size);
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |part: &str| format!("encoder.layer.{layer}.{part}");
                let mut linear =
                    |part: &str, d_out: usize, d_in: usize| source.linear(&name(part), [d_out, d_in], true);
                EncoderBlock {
                    query: linear("attention.self.query", d, d),
                    key: linear("attention.self.key", d, d),
                    value: linear("attention.self.value", d, d),
                    attention_output: linear("attention.output.dense", d, d),
                    intermediate: linear("intermediate.dense", inner, d),
                    output: linear("output.dense", d, inner),
                    attention_norm: norm(source, &name("attention.output.LayerNorm")),
                    output_norm: norm(source, &name("output.LayerNorm")),
                    n_heads: config.num_attention_heads,
                }
            })
            .collect();
        let norm = norm(source, "embeddings.LayerNorm");
        Self { words, positions, types, norm, blocks, config: config.clone() }
    }

    fn stop_ids(_: &RobertaConfig) -> Vec<u32> {
        Vec::new()
    }
}

impl<B: Kernels> Roberta<B> {
    /// The configuration.
    pub fn config(&self) -> &RobertaConfig {
        &self.config
    }

    /// The dtype of the hidden states.
    pub fn dtype(&self) -> Dtype {
        Dtype::of(self.norm.weight.dtype())
    }

    /// The device of the weights.
    pub fn device(&self) -> B::Device {
        self.words.device()
    }

    /// The hidden states after the last block.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    ///
    /// # Panics
    /// If the hook needs a layer that the model does not have, see [`check_sites`].
    pub fn forward<H: Hook<B> + ?Sized>(
        &self,
        tokens: &TokenBatch,
        rates: DropoutRates,
        hook: &H,
    ) -> Tensor<B, 3> {
        check_sites(hook, self.blocks.len()).unwrap_or_else(|error| panic!("{error}"));
        self.run_all(&Arranged::grid(tokens), tokens, rates, hook)
    }

    /// The hidden states of the first token of every row, after the last block.
    ///
    /// Does no work for padding, where the backend and the hook allow it.
    ///
    /// # Shapes
    /// - output `[batch, d_model]`
    ///
    /// # Panics
    /// If the hook needs a layer that the model does not have, see [`check_sites`].
    pub fn first_tokens<H: Hook<B> + ?Sized>(
        &self,
        tokens: &TokenBatch,
        rates: DropoutRates,
        hook: &H,
    ) -> Tensor<B, 2> {
        check_sites(hook, self.blocks.len()).unwrap_or_else(|error| panic!("{error}"));
        let arranged = self.arrange(tokens, hook.packing());
        let hidden = self.run_all(&arranged, tokens, rates, hook);
        select_rows(hidden, &arranged.rows(&tokens.first_columns()))
    }

    /// A training pass for a batch.
    ///
    /// Blocks below `first_layer` (all blocks if `None`) run here, on the inner backend; the others run in the pass,
    /// whose result is differentiable with respect to the parameters of the hook. `seed` is that of dropout. There is no
    /// padding in the pass where the backend and the hook's `packing` allow it.
    pub fn training_pass<A>(
        &self,
        tokens: &TokenBatch,
        rates: DropoutRates,
        first_layer: Option<usize>,
        packing: Packing,
        seed: u64,
    ) -> TrainingPass<A, RobertaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let first_layer = first_layer.unwrap_or(self.blocks.len());
        B::seed(&self.device(), seed);
        let arranged = self.arrange(tokens, packing);
        let entering = self.entering(tokens, &arranged, rates, first_layer, seed);
        self.pass_from(tokens, arranged, first_layer, entering, rates, seed)
    }

    /// [`training_pass`](Self::training_pass) without dropout, with what `reused` has kept of earlier passes over the same
    /// texts. What it does not have yet is computed, and kept if there is room. Above the last block, that is the state of
    /// the first token alone.
    ///
    /// `first_layer` and `packing` must be those of the earlier passes.
    pub fn training_pass_reusing<A>(
        &self,
        tokens: &TokenBatch,
        first_layer: Option<usize>,
        packing: Packing,
        reused: &mut ReusedStates<B>,
        seed: u64,
    ) -> TrainingPass<A, RobertaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let mut arranged = self.arrange(tokens, packing);
        if arranged.places.is_none() {
            return self.training_pass(tokens, DropoutRates::OFF, first_layer, packing, seed);
        }
        let first_layer = first_layer.unwrap_or(self.blocks.len());
        let only_first_tokens = first_layer == self.blocks.len();
        let states = reused.states_of(tokens, &self.device(), |missing| {
            let arranged = self.arrange(missing, packing);
            let entering = self.entering(missing, &arranged, DropoutRates::OFF, first_layer, seed);
            let of_text = |text: usize| {
                let cells = (text * missing.seq..(text + 1) * missing.seq)
                    .filter(|cell| missing.positions[*cell].is_some())
                    .take(if only_first_tokens { 1 } else { missing.seq });
                let rows = arranged.rows(&cells.collect::<Vec<_>>());
                EnteringStates { active: select_rows(entering.clone(), &rows), constant: Vec::new() }
            };
            (0..missing.batch).map(of_text).collect()
        });
        // What follows the states that are kept, such as a head, may have dropout.
        B::seed(&self.device(), seed);
        if only_first_tokens {
            let mut places = vec![None; tokens.ids.len()];
            tokens.first_columns().into_iter().enumerate().for_each(|(row, cell)| places[cell] = Some(row));
            arranged.places = Some(places);
        }
        self.pass_from(tokens, arranged, first_layer, states.active.unsqueeze(), DropoutRates::OFF, seed)
    }

    /// The states that enter a block.
    fn entering(
        &self,
        tokens: &TokenBatch,
        arranged: &Arranged,
        rates: DropoutRates,
        layer: usize,
        seed: u64,
    ) -> Tensor<B, 3> {
        let layout = arranged.layout(tokens, &self.device());
        let context = EncoderContext { spans: &arranged.spans, layout: &layout, rates, seed };
        self.run(0..layer, self.embed(arranged, tokens, rates), &context, &NoHook)
    }

    fn pass_from<A>(
        &self,
        tokens: &TokenBatch,
        arranged: Arranged,
        first_layer: usize,
        entering: Tensor<B, 3>,
        rates: DropoutRates,
        seed: u64,
    ) -> TrainingPass<A, RobertaBlocks<'_, A>>
    where
        A: AutodiffKernels<InnerBackend = B>,
    {
        let layout = arranged.layout(tokens, &Tensor::<A, 3>::from_inner(entering.clone()).device());
        let blocks = RobertaBlocks { model: self, spans: arranged.spans, layout, rates, seed };
        let pass = TrainingPass::new(blocks, first_layer, entering, seed);
        match arranged.places {
            Some(places) => pass.with_places(places),
            None => pass,
        }
    }

    fn arrange(&self, tokens: &TokenBatch, packing: Packing) -> Arranged {
        let is_packed = packing != Packing::Grid && B::packs_rows(self.norm.weight.dtype());
        if is_packed { Arranged::packed(tokens) } else { Arranged::grid(tokens) }
    }

    fn run_all<H: Hook<B> + ?Sized>(
        &self,
        arranged: &Arranged,
        tokens: &TokenBatch,
        rates: DropoutRates,
        hook: &H,
    ) -> Tensor<B, 3> {
        let hidden = self.embed(arranged, tokens, rates);
        let layout = arranged.layout(tokens, &self.device());
        let seed = self.attention_seed(rates);
        let context = EncoderContext { spans: &arranged.spans, layout: &layout, rates, seed };
        self.run(0..self.blocks.len(), hidden, &context, hook)
    }

    /// A seed for the dropout of attention weights, from the backend's random numbers.
    fn attention_seed(&self, rates: DropoutRates) -> u64 {
        if rates.attention == 0.0 {
            return 0;
        }
        let drawn = Tensor::<B, 1>::random([2], Distribution::Uniform(0.0, 1.0), &self.device());
        host_values(drawn).into_iter().fold(0, |seed, x| (seed << 32) | u64::from(x.to_bits()))
    }

    fn run<H: Hook<B> + ?Sized>(
        &self,
        layers: Range<usize>,
        mut hidden: Tensor<B, 3>,
        context: &EncoderContext<'_, B>,
        hook: &H,
    ) -> Tensor<B, 3> {
        for layer in layers {
            hidden = self.blocks[layer].forward(layer, hidden, context, hook);
        }
        hidden
    }

    /// # Shapes
    /// - output `[batch, seq, d_model]`, or `[1, tokens, d_model]` of packed tokens
    fn embed(&self, arranged: &Arranged, tokens: &TokenBatch, rates: DropoutRates) -> Tensor<B, 3> {
        let Arranged { cells, shape: [batch, seq], .. } = arranged;
        let look_up = |table: &Tensor<B, 2>, row_of: &dyn Fn(usize) -> usize| {
            let rows = rows_of(table.clone(), cells.iter().map(|cell| row_of(*cell)));
            to_dtype(rows, self.norm.weight.dtype())
        };
        let words = look_up(&self.words, &|cell| tokens.ids[cell] as usize);
        let position_ids = self.position_ids(tokens);
        let positions = look_up(&self.positions, &|cell| position_ids[cell]);
        // A pair's second text has type 1, which RoBERTa's embedding does not have.
        let n_types = self.config.type_vocab_size as u32;
        let type_of = |cell: usize| tokens.types.get(cell).copied().filter(|t| *t < n_types).unwrap_or(0);
        let types = look_up(&self.types, &|cell| type_of(cell) as usize);
        let hidden = self.norm.forward(words + positions + types);
        dropout(hidden, rates.hidden).reshape([*batch, *seq, self.config.hidden_size])
    }

    /// BERT counts positions from 0. RoBERTa counts them from `pad_token_id + 1` and skips padding, which has the
    /// position `pad_token_id` (Hugging Face's `create_position_ids_from_input_ids`).
    fn position_ids(&self, tokens: &TokenBatch) -> Vec<usize> {
        let pad = (!self.config.is_bert()).then_some(self.config.pad_token_id);
        let mut ids = Vec::with_capacity(tokens.ids.len());
        for row in 0..tokens.batch {
            let mut next = self.config.first_position();
            for idx in row * tokens.seq..(row + 1) * tokens.seq {
                let counts = tokens.positions[idx].is_some() && pad != Some(tokens.ids[idx]);
                ids.push(if counts { next } else { pad.unwrap_or(0) as usize });
                next += usize::from(counts);
            }
        }
        ids
    }
}

/// The blocks of an encoder, bound to one batch.
#[derive(Debug)]
pub struct RobertaBlocks<'a, A: AutodiffKernels> {
    model: &'a Roberta<A::InnerBackend>,
    spans: Arc<Spans>,
    layout: BatchLayout<A>,
    rates: DropoutRates,
    seed: u64,
}

impl<A: AutodiffKernels> Blocks<A> for RobertaBlocks<'_, A> {
    fn count(&self) -> usize {
        self.model.blocks.len()
    }

    fn forward<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        let block = self.model.blocks[layer].on_tape();
        let Self { spans, layout, rates, seed, .. } = self;
        block.forward(layer, hidden, &EncoderContext { spans, layout, rates: *rates, seed: *seed }, hook)
    }
}

/// Where the tokens of a batch are in its states.
#[derive(Debug)]
struct Arranged {
    /// The token of the padded batch that each row of the states belongs to.
    cells: Vec<usize>,
    /// The first two dimensions of the states.
    shape: [usize; 2],
    spans: Arc<Spans>,
    /// The row of each token of the padded batch, if the states are packed.
    places: Option<Vec<Option<usize>>>,
}

impl Arranged {
    fn grid(tokens: &TokenBatch) -> Self {
        Self {
            cells: (0..tokens.ids.len()).collect(),
            shape: [tokens.batch, tokens.seq],
            spans: tokens.spans(Mask::NONE),
            places: None,
        }
    }

    fn packed(tokens: &TokenBatch) -> Self {
        let present = |cell: &usize| tokens.positions[*cell].is_some();
        let cells: Vec<usize> = (0..tokens.ids.len()).filter(present).collect();
        let mut places = vec![None; tokens.ids.len()];
        cells.iter().enumerate().for_each(|(row, cell)| places[*cell] = Some(row));
        let mut end = 0;
        let segments = tokens.positions.chunks(tokens.seq.max(1)).map(|text| {
            let rows = end..end + text.iter().flatten().count();
            end = rows.end;
            Segment { queries: rows.clone(), keys: vec![rows], offset: 0 }
        });
        let segments = segments.filter(|segment| !segment.queries.is_empty()).collect();
        let spans = Spans::packed(segments, cells.len(), Mask::NONE);
        Self { shape: [1, cells.len()], cells, spans, places: Some(places) }
    }

    fn layout<B: Backend>(&self, tokens: &TokenBatch, device: &B::Device) -> BatchLayout<B> {
        match &self.places {
            Some(places) => tokens.layout(device).packed(places.clone()),
            None => tokens.layout(device),
        }
    }

    /// The rows of the flattened states that belong to tokens of the padded batch.
    fn rows(&self, cells: &[usize]) -> Vec<usize> {
        match &self.places {
            Some(places) => cells.iter().map(|cell| places[*cell].expect("no padding")).collect(),
            None => cells.to_vec(),
        }
    }
}
