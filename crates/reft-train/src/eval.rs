//! Likelihood and exact match of a data set.

use crate::{
    data::{DataError, Example, Row, Template, answer},
    loss::{Batch, nll},
};
use burn::tensor::backend::Backend;
use reft_core::{NoHook, Reft};
use reft_models::{GenerateConfig, GenerateError, Llama, Tokenizer, generate};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::ControlFlow;

/// Likelihood of one row's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RowNll {
    /// Mean negative log-likelihood of the answer's tokens, in nats; none for a row without answer tokens.
    pub nll: Option<f64>,
    /// The answer's tokens.
    pub tokens: usize,
}

/// Likelihood of a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Likelihood {
    /// Mean negative log-likelihood over all answer tokens, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Each row.
    pub rows: Vec<RowNll>,
}

/// Metrics by name, in the order in which they are shown. In files an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score(pub Vec<(String, f64)>);

impl Score {
    /// The value of a metric.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for Score {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::deserialize(deserializer)?;
        Ok(Self(map.into_iter().map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN))).collect()))
    }
}

/// How held-out rows judge an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// All metrics.
    pub score: Score,
    /// The one that decides.
    pub key: &'static str,
    /// Whether more of it is better.
    pub higher_is_better: bool,
}

impl Verdict {
    /// The value that decides.
    pub fn value(&self) -> f64 {
        self.score.get(self.key).unwrap_or(f64::NAN)
    }

    /// Whether this verdict is better than another.
    pub fn beats(&self, other: &Verdict) -> bool {
        if self.higher_is_better { self.value() > other.value() } else { self.value() < other.value() }
    }
}

/// Likelihood of the answers of examples, in batches of like length.
pub fn likelihood<B: Backend>(
    model: &Llama<B>,
    reft: Option<&Reft<B>>,
    examples: &[Example],
    batch_size: usize,
) -> Likelihood {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|idx| examples[*idx].tokens.len());
    let mut sums = vec![0f64; examples.len()];
    let bases = reft.map(Reft::bases);
    for chunk in order.chunks(batch_size) {
        let members: Vec<&Example> = chunk.iter().map(|idx| &examples[*idx]).collect();
        let batch = Batch::new(&members, reft.map(|r| r.config().positions));
        let values = match (reft, &bases) {
            (Some(reft), Some(bases)) => nll(model, &batch, &reft.hook(bases, &batch.edited)),
            _ => nll(model, &batch, &NoHook),
        };
        for (value, member) in values.iter().zip(&batch.example_of) {
            sums[chunk[*member]] += f64::from(*value);
        }
    }
    let tokens: usize = examples.iter().map(Example::label_tokens).sum();
    let nll = sums.iter().sum::<f64>() / tokens as f64;
    let rows = sums.iter().zip(examples);
    let rows =
        rows.map(|(sum, e)| RowNll { nll: Some(sum / e.label_tokens() as f64), tokens: e.label_tokens() });
    Likelihood { nll, perplexity: nll.exp(), rows: rows.collect() }
}

/// A generated answer beside the expected one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The row's prompt, before the template.
    pub prompt: String,
    /// What the model says.
    pub found: String,
    /// What the data say.
    pub expected: String,
}

/// Share of answers that are right to the letter.
pub fn exact_match(answers: &[Answer]) -> f64 {
    answers.iter().filter(|answer| answer.is_exact()).count() as f64 / answers.len() as f64
}

impl Answer {
    /// Whether both are the same but for white space around them.
    pub fn is_exact(&self) -> bool {
        self.found.trim() == self.expected.trim()
    }
}

/// An evaluation that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A prompt.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// Generates the answers of rows greedily, in batches of like length.
///
/// # Errors
/// If a row has no prompt or answer, or a prompt does not fit the model.
#[allow(clippy::too_many_arguments)]
pub fn answers<B: Backend>(
    model: &Llama<B>,
    (tokenizer, stop_ids): (&Tokenizer, &[u32]),
    reft: Option<&Reft<B>>,
    rows: &[Row],
    template: &Template,
    max_length: usize,
    batch_size: usize,
    max_new_tokens: usize,
) -> Result<Vec<Answer>, EvalError> {
    let prompts = rows
        .iter()
        .map(|row| template.encode_prompt(row, tokenizer, max_length))
        .collect::<Result<Vec<_>, _>>()?;
    let config = GenerateConfig { max_new_tokens, stop_ids: stop_ids.to_vec(), ..GenerateConfig::default() };
    let generated = generate_all(model, reft, &prompts, &config, batch_size)?;
    rows.iter()
        .zip(generated)
        .map(|(row, tokens)| {
            let found = tokenizer.decode(&tokens).map_err(DataError::from)?;
            let shown = ["instruction", "prompt"].iter().find_map(|key| row.fields.get(*key)?.as_str());
            let prompt = match shown {
                Some(text) => text.trim().to_string(),
                None => template.prompt(row, tokenizer)?,
            };
            Ok(Answer { prompt, found, expected: answer(row)? })
        })
        .collect()
}

/// Continues many prompts, in batches of like length, in the order given.
///
/// # Errors
/// If a prompt does not fit the model; the error counts prompts from 0 as given.
pub fn generate_all<B: Backend>(
    model: &Llama<B>,
    reft: Option<&Reft<B>>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    batch_size: usize,
) -> Result<Vec<Vec<u32>>, GenerateError> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|idx| prompts[*idx].len());
    let mut out = vec![Vec::new(); prompts.len()];
    for chunk in order.chunks(batch_size) {
        let members: Vec<Vec<u32>> = chunk.iter().map(|idx| prompts[*idx].clone()).collect();
        let generated = generate(model, &members, reft, config, |_, _| ControlFlow::Continue(()))
            .map_err(|error| with_row(error, chunk))?;
        for (idx, row) in chunk.iter().zip(generated) {
            out[*idx] = row.tokens;
        }
    }
    Ok(out)
}

/// Counts the row of an error among all prompts instead of within its batch.
fn with_row(error: GenerateError, chunk: &[usize]) -> GenerateError {
    match error {
        GenerateError::EmptyPrompt { row } => GenerateError::EmptyPrompt { row: chunk[row] },
        GenerateError::PromptTooLong { row, tokens, context } => {
            GenerateError::PromptTooLong { row: chunk[row], tokens, context }
        }
        GenerateError::UnknownToken { row, id, vocab } => {
            GenerateError::UnknownToken { row: chunk[row], id, vocab }
        }
        other => other,
    }
}
