//! Text generation with a KV cache.

use crate::{
    batch::{Padding, TokenBatch},
    cache::KvCache,
    llama::Llama,
};
use burn::tensor::{Tensor, backend::Backend};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Hook, MissingSite, hook::check_sites};
use std::ops::ControlFlow;

/// Settings of the generation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerateConfig {
    /// The maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0 always takes the most likely token (greedy).
    pub temperature: f64,
    /// Sample from this many most likely tokens only; 0 for all.
    pub top_k: usize,
    /// Sample from the smallest set of most likely tokens with this total probability; 1 for all.
    pub top_p: f64,
    /// Divides positive logits and multiplies negative logits of tokens that are already in the text ([Keskar et al.
    /// 2019](https://arxiv.org/abs/1909.05858)); 1 for no penalty.
    pub repetition_penalty: f64,
    /// Seed for sampling.
    pub seed: u64,
    /// The random stream of each prompt, so that its text does not depend on the batch; the prompt's index if empty.
    pub streams: Vec<u64>,
    /// Ids that end a text.
    pub stop_ids: Vec<u32>,
    /// Side on which prompts are padded; does not affect the result.
    pub padding: Padding,
}

impl Default for GenerateConfig {
    /// Greedy, 64 tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
            streams: Vec::new(),
            stop_ids: Vec::new(),
            padding: Padding::Left,
        }
    }
}

/// One generated text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generated {
    /// The new tokens, including the stop id, if one was generated.
    pub tokens: Vec<u32>,
    /// Whether a stop id was generated.
    pub stopped: bool,
}

/// A prompt or setting that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("prompt {row} has no tokens")]
    EmptyPrompt {
        /// Index of the prompt.
        row: usize,
    },
    /// A prompt that leaves no room in the context.
    #[error(
        "prompt {row} has {tokens} tokens; the model's context of {context} must leave room for at least one new token"
    )]
    PromptTooLong {
        /// Index of the prompt.
        row: usize,
        /// Its number of tokens.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// A token id outside the model's vocabulary.
    #[error(
        "prompt {row}: token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to another model?"
    )]
    UnknownToken {
        /// Index of the prompt.
        row: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A hook for a layer that the model does not have.
    #[error(transparent)]
    MissingSite(#[from] MissingSite),
    /// A setting that is out of range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The valid range.
        expected: &'static str,
    },
}

impl GenerateConfig {
    /// Sets the maximum number of new tokens.
    pub fn with_max_new_tokens(self, max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..self }
    }

    /// Sets the temperature; 0 for greedy.
    pub fn with_temperature(self, temperature: f64) -> Self {
        Self { temperature, ..self }
    }

    /// Sets the number of most likely tokens to sample from; 0 for all.
    pub fn with_top_k(self, top_k: usize) -> Self {
        Self { top_k, ..self }
    }

    /// Sets the total probability of the tokens to sample from; 1 for all.
    pub fn with_top_p(self, top_p: f64) -> Self {
        Self { top_p, ..self }
    }

    /// Sets the repetition penalty; 1 for none.
    pub fn with_repetition_penalty(self, repetition_penalty: f64) -> Self {
        Self { repetition_penalty, ..self }
    }

    /// Sets the seed for sampling.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the random stream of each prompt.
    pub fn with_streams(self, streams: Vec<u64>) -> Self {
        Self { streams, ..self }
    }

    /// Sets the ids that end a text.
    pub fn with_stop_ids(self, stop_ids: Vec<u32>) -> Self {
        Self { stop_ids, ..self }
    }

    /// Sets the side on which prompts are padded.
    pub fn with_padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    fn check(&self) -> Result<(), GenerateError> {
        let out_of_range = |name, value, expected| Err(GenerateError::Setting { name, value, expected });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return out_of_range("temperature", self.temperature, "0 (greedy) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return out_of_range("top_p", self.top_p, "a value above 0 and at most 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return out_of_range("repetition_penalty", self.repetition_penalty, "a value above 0");
        }
        Ok(())
    }
}

/// Generates continuations of a batch of prompts.
///
/// The hook is called in every forward pass: that of the prompts, then one for each new token. Interventions edit only the
/// prompts, so they do not slow down the tokens after them. `on_token` is called with the row and id of each new token,
/// and may end that row. Rows that have ended are still computed, with the token 0, until all have.
///
/// # Errors
/// If a prompt is empty or does not fit the model, a setting is out of range, or the hook needs a layer that the model does
/// not have.
pub fn generate<B: Backend, H: Hook<B> + ?Sized>(
    model: &Llama<B>,
    prompts: &[Vec<u32>],
    hook: &H,
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generated>, GenerateError> {
    config.check()?;
    check_sites(hook, model.config().num_hidden_layers)?;
    let (context, vocab) = (model.config().max_position_embeddings, model.config().vocab_size);
    for (row, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt { row });
        }
        if prompt.len() >= context {
            return Err(GenerateError::PromptTooLong { row, tokens: prompt.len(), context });
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(GenerateError::UnknownToken { row, id: *id, vocab });
        }
    }
    let mut rows: Vec<Sequence> =
        prompts.iter().enumerate().map(|(idx, prompt)| Sequence::new(idx, prompt, config)).collect();
    if rows.is_empty() || config.max_new_tokens == 0 {
        return Ok(rows.into_iter().map(|row| row.out).collect());
    }
    let tokens = TokenBatch::new(prompts, config.padding);
    let lens: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let spans = tokens.prompt_spans(&lens);
    // A row ends when it fills the context, the shortest prompt last.
    let most_new = context - lens.iter().min().copied().unwrap_or(0);
    let capacity = tokens.seq + config.max_new_tokens.min(most_new);
    let mut cache = KvCache::new(model.config().num_hidden_layers, capacity);
    let hidden = model.forward(&tokens, Some(&mut cache), hook);
    let last_tokens: Vec<usize> =
        spans.iter().enumerate().map(|(idx, span)| idx * tokens.seq + span.start + span.len - 1).collect();
    let mut logits = model.logits(hidden, &last_tokens);
    let all_rows: Vec<usize> = (0..rows.len()).collect();
    for step in 0..config.max_new_tokens {
        let next = choose(logits, &mut rows, config);
        let mut inputs = Vec::with_capacity(rows.len());
        for (idx, (row, token)) in rows.iter_mut().zip(next).enumerate() {
            inputs.push(token.unwrap_or_default());
            let Some(token) = token else { continue };
            row.push(token);
            row.out.stopped = config.stop_ids.contains(&token);
            let ended_by_caller = on_token(idx, token).is_break();
            row.done = row.out.stopped || ended_by_caller || row.text.len() >= context;
        }
        if rows.iter().all(|row| row.done) || step + 1 == config.max_new_tokens {
            break;
        }
        let positions: Vec<usize> = lens.iter().map(|len| (len + step).min(context - 1)).collect();
        let hidden = model.forward(&TokenBatch::step(&inputs, &positions), Some(&mut cache), hook);
        logits = model.logits(hidden, &all_rows);
    }
    Ok(rows.into_iter().map(|row| row.out).collect())
}

/// A text that is being generated.
struct Sequence {
    /// Prompt and new tokens.
    text: Vec<u32>,
    out: Generated,
    done: bool,
    rng: ChaCha8Rng,
}

impl Sequence {
    fn new(idx: usize, prompt: &[u32], config: &GenerateConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(config.streams.get(idx).copied().unwrap_or(idx as u64));
        Self { text: prompt.to_vec(), out: Generated::default(), done: false, rng }
    }

    fn push(&mut self, token: u32) {
        self.text.push(token);
        self.out.tokens.push(token);
    }
}

/// The next token of every unfinished row.
fn choose<B: Backend>(
    logits: Tensor<B, 2>,
    rows: &mut [Sequence],
    config: &GenerateConfig,
) -> Vec<Option<u32>> {
    let [_, vocab] = logits.dims();
    if config.temperature == 0.0 && config.repetition_penalty == 1.0 {
        // Computed on the device, so that only one number per row is copied back.
        let ids: Vec<i64> = logits.argmax(1).into_data().convert::<i64>().to_vec().expect("integer data");
        return rows.iter().zip(ids).map(|(row, id)| (!row.done).then_some(id as u32)).collect();
    }
    let mut values: Vec<f32> = logits.into_data().convert::<f32>().to_vec().expect("f32 data");
    rows.iter_mut()
        .zip(values.chunks_mut(vocab))
        .map(|(row, logits)| (!row.done).then(|| sample(logits, row, config)))
        .collect()
}

fn sample(logits: &mut [f32], row: &mut Sequence, config: &GenerateConfig) -> u32 {
    if config.repetition_penalty != 1.0 {
        let penalty = config.repetition_penalty as f32;
        let mut seen = row.text.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
    if config.temperature == 0.0 {
        let ids = 0..logits.len() as u32;
        let best = ids.max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]).then(b.cmp(a)));
        return best.unwrap_or(0);
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    if config.top_k > 0 {
        ids.truncate(config.top_k);
    }
    let top = f64::from(logits[ids[0] as usize]);
    let mut weights: Vec<f64> =
        ids.iter().map(|id| ((f64::from(logits[*id as usize]) - top) / config.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    // The smallest set of most likely tokens whose total probability reaches top_p.
    let mut sum = 0.0;
    let kept = weights.iter().position(|w| {
        sum += w / total;
        sum >= config.top_p
    });
    weights.truncate(kept.map_or(weights.len(), |last| last + 1));
    let mut draw = row.rng.random::<f64>() * weights.iter().sum::<f64>();
    for (id, weight) in ids.iter().zip(&weights) {
        draw -= weight;
        if draw < 0.0 {
            return *id;
        }
    }
    ids[weights.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(config: &GenerateConfig, logits: &[f32], n: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut row = Sequence::new(0, &[0], config);
        for _ in 0..n {
            counts[sample(&mut logits.to_vec(), &mut row, config) as usize] += 1;
        }
        counts
    }

    #[test]
    fn sampling_follows_the_probabilities() {
        let config = GenerateConfig { temperature: 1.0, ..Default::default() };
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let counts = draws(&config, &logits, 20_000);
        for (count, p) in counts.iter().zip([0.5, 0.3, 0.2]) {
            // Four standard deviations.
            let bound = 4.0 * (20_000.0 * p * (1.0f64 - p)).sqrt();
            assert!((*count as f64 - 20_000.0 * p).abs() < bound, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_exclude_tokens() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let top_k = GenerateConfig { temperature: 2.0, top_k: 2, ..Default::default() };
        assert_eq!(draws(&top_k, &logits, 2000)[2..], [0, 0]);
        let top_p = GenerateConfig { temperature: 1.0, top_p: 0.7, ..Default::default() };
        let counts = draws(&top_p, &logits, 2000);
        assert!(counts[1] > 0 && counts[2..] == [0, 0], "{counts:?}");
    }

    #[test]
    fn repeated_tokens_are_penalized() {
        let config = GenerateConfig { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(draws(&config, &[1.5, 1.0], 1), [0, 1]);
        assert_eq!(draws(&config, &[-0.6, -1.0], 1), [0, 1]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let message = |config: GenerateConfig| config.check().expect_err("out of range").to_string();
        assert_eq!(
            message(GenerateConfig { temperature: -1.0, ..Default::default() }),
            "temperature is -1, expected 0 (greedy) or more"
        );
        assert_eq!(
            message(GenerateConfig { top_p: 0.0, ..Default::default() }),
            "top_p is 0, expected a value above 0 and at most 1"
        );
        assert_eq!(
            message(GenerateConfig { repetition_penalty: f64::NAN, ..Default::default() }),
            "repetition_penalty is NaN, expected a value above 0"
        );
    }
}
