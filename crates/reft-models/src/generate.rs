//! Text generation with a KV cache.

use crate::{
    batch::{Padding, TokenBatch},
    cache::KvCache,
    llama::Llama,
};
use burn::tensor::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Hook, MissingSite, hook::check_sites};
use reft_kernels::Kernels;
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
    /// Logits that are not numbers.
    #[error(
        "prompt {row}: the model's output is NaN; use another dtype (bf16 or f32 instead of f16), and check the adapter and \
         the device"
    )]
    NotANumber {
        /// Index of the prompt.
        row: usize,
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
/// If a prompt is empty or does not fit the model, a setting is out of range, the hook needs a layer that the model does not
/// have, or the model's output is not a number.
pub fn generate<B: Kernels, H: Hook<B> + ?Sized>(
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
    // A row ends when it fills the context, the shortest prompt last.
    let most_new = context - lens.iter().min().copied().unwrap_or(0);
    let capacity = tokens.seq + config.max_new_tokens.min(most_new);
    let mut cache = KvCache::new(model.config().num_hidden_layers, capacity);
    let mut logits = model.head(model.read_prompts(&tokens, &mut cache, hook));
    let all_rows: Vec<usize> = (0..rows.len()).collect();
    for step in 0..config.max_new_tokens {
        let next = choose(logits, &mut rows, config)?;
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
///
/// # Errors
/// If a logit of such a row is NaN.
fn choose<B: Kernels>(
    logits: Tensor<B, 2>,
    rows: &mut [Sequence],
    config: &GenerateConfig,
) -> Result<Vec<Option<u32>>, GenerateError> {
    let [n, vocab] = logits.dims();
    if config.temperature == 0.0 && config.repetition_penalty == 1.0 {
        // Computed on the device, so that only two numbers per row are copied back.
        let n_nan = logits.clone().is_nan().int().sum_dim(1);
        let both: Vec<i64> = Tensor::cat(vec![logits.argmax(1), n_nan], 0)
            .into_data()
            .convert::<i64>()
            .to_vec()
            .expect("integer data");
        let (ids, n_nan) = both.split_at(n);
        let next = rows.iter().zip(ids.iter().zip(n_nan)).enumerate();
        return next
            .map(|(idx, (row, (id, n_nan)))| match (row.done, n_nan) {
                (true, _) => Ok(None),
                (false, 0) => Ok(Some(*id as u32)),
                (false, _) => Err(GenerateError::NotANumber { row: idx }),
            })
            .collect();
    }
    let mut values: Vec<f32> = logits.into_data().convert::<f32>().to_vec().expect("f32 data");
    let next = rows.iter_mut().zip(values.chunks_mut(vocab)).enumerate();
    next.map(|(idx, (row, logits))| match row.done {
        true => Ok(None),
        false if logits.iter().any(|logit| logit.is_nan()) => Err(GenerateError::NotANumber { row: idx }),
        false => Ok(Some(sample(logits, row, config))),
    })
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
    let (ids, weights) = candidates(logits, config);
    let mut draw = row.rng.random::<f64>() * weights.iter().sum::<f64>();
    for (id, weight) in ids.iter().zip(&weights) {
        draw -= weight;
        if draw < 0.0 {
            return *id;
        }
    }
    ids[weights.len() - 1]
}

/// The tokens to sample from, the most likely first, and their weights: those of `top_k`, and of these the smallest set whose
/// total probability reaches `top_p`.
fn candidates(logits: &[f32], config: &GenerateConfig) -> (Vec<u32>, Vec<f64>) {
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if (1..ids.len()).contains(&config.top_k) {
        ids.select_nth_unstable_by(config.top_k - 1, by_logit);
        ids.truncate(config.top_k);
    }
    let top = ids.iter().map(|id| logits[*id as usize]).fold(f32::NEG_INFINITY, f32::max);
    let weight = |id: &u32| ((f64::from(logits[*id as usize]) - f64::from(top)) / config.temperature).exp();
    let total: f64 = ids.iter().map(weight).sum();
    // Most of the probability is in few tokens, so the others need not be sorted.
    let mut n_sorted = if config.top_p < 1.0 { 64 } else { ids.len() };
    loop {
        n_sorted = n_sorted.min(ids.len());
        if n_sorted < ids.len() {
            ids.select_nth_unstable_by(n_sorted - 1, by_logit);
        }
        ids[..n_sorted].sort_unstable_by(by_logit);
        let weights: Vec<f64> = ids[..n_sorted].iter().map(weight).collect();
        let mut sum = 0.0;
        let last = weights.iter().position(|w| {
            sum += w / total;
            sum >= config.top_p
        });
        if last.is_some() || n_sorted == ids.len() {
            let n = last.map_or(n_sorted, |last| last + 1);
            ids.truncate(n);
            return (ids, weights[..n].to_vec());
        }
        n_sorted *= 8;
    }
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
    fn candidates_are_those_of_a_whole_sort() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for case in 0..200 {
            let n = [1, 5, 65, 3000][case % 4];
            // Few values, so that many are equal.
            let logits: Vec<f32> = (0..n).map(|_| rng.random_range(-8..8) as f32 / 4.0).collect();
            let config = GenerateConfig {
                temperature: 0.7,
                top_k: [0, 1, 7, 100, 5000][case % 5],
                top_p: [1.0, 0.99, 0.5, 1e-9][case / 4 % 4],
                ..Default::default()
            };
            let mut ids: Vec<u32> = (0..n as u32).collect();
            ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            if config.top_k > 0 {
                ids.truncate(config.top_k);
            }
            let weights: Vec<f64> =
                ids.iter().map(|id| (f64::from(logits[*id as usize]) / 0.7).exp()).collect();
            let (total, mut sum) = (weights.iter().sum::<f64>(), 0.0);
            let last = weights.iter().position(|w| {
                sum += w / total;
                sum >= config.top_p
            });
            // Sums of other orders may differ in the last bit.
            let found = candidates(&logits, &config).0;
            let n_expected = last.map_or(ids.len(), |last| last + 1);
            assert!(found.len().abs_diff(n_expected) <= 1, "{} {n_expected}", found.len());
            assert_eq!(found[..], ids[..found.len()]);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        type B = burn_flex::Flex;
        for temperature in [0.0, 0.7] {
            for penalty in [1.0, 1.1] {
                let config =
                    GenerateConfig { temperature, repetition_penalty: penalty, ..Default::default() };
                let mut rows: Vec<Sequence> = (0..2).map(|idx| Sequence::new(idx, &[0], &config)).collect();
                let with =
                    |value: f32| Tensor::<B, 2>::from_floats([[1.0, 2.0], [value, 0.0]], &Default::default());
                let error = choose(with(f32::NAN), &mut rows, &config).expect_err("not a number");
                assert_eq!(error, GenerateError::NotANumber { row: 1 });
                assert_eq!(choose(with(1.0), &mut rows, &config).expect("numbers").len(), 2);
                rows[1].done = true;
                assert_eq!(choose(with(f32::NAN), &mut rows, &config).expect("the row has ended")[1], None);
            }
        }
    }

    #[test]
    fn the_first_of_equal_logits_is_chosen() {
        type B = burn_flex::Flex;
        for penalty in [1.0, 1.1] {
            let config = GenerateConfig { repetition_penalty: penalty, ..Default::default() };
            let mut rows = [Sequence::new(0, &[0], &config)];
            let mut logits = vec![0.0f32; 100];
            logits[40..60].fill(2.0);
            let logits = Tensor::<B, 1>::from_floats(&logits[..], &Default::default()).reshape([1, 100]);
            assert_eq!(choose(logits, &mut rows, &config).expect("numbers"), [Some(40)]);
        }
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
