//! Evaluation of a language model: likelihood of reference answers, and generated answers.

use crate::{
    data::{DataError, Example, LanguageModelBatch, PromptLimit, Row, Template, Tokenized, without_end},
    loss::nll,
};
use reft_core::{Hook, Reft};
use reft_kernels::Kernels;
use reft_models::{GenerateConfig, GenerateError, Llama, LoadedModel, generate};
use serde::Serialize;
use std::ops::ControlFlow;

/// Likelihood of one row's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RowNll {
    /// Mean negative log-likelihood of the answer's tokens, in nats; none for a row without answer tokens.
    pub nll: Option<f64>,
    /// Number of answer tokens.
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

/// Likelihood of the examples' answers, computed in batches of similar length.
pub fn likelihood<B: Kernels, H: Hook<B> + ?Sized>(
    model: &Llama<B>,
    hook: &H,
    examples: &[Example],
    batch_size: usize,
) -> Likelihood {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|idx| examples[*idx].tokens.len());
    let mut sums = vec![0f64; examples.len()];
    for chunk in order.chunks(batch_size) {
        let members: Vec<&Example> = chunk.iter().map(|idx| &examples[*idx]).collect();
        let batch = LanguageModelBatch::new(&members);
        let values = nll(model, &batch, hook);
        for (value, member) in values.iter().zip(&batch.example_of) {
            sums[chunk[*member]] += f64::from(*value);
        }
    }
    let tokens: usize = examples.iter().map(Example::n_labels).sum();
    let nll = sums.iter().sum::<f64>() / tokens as f64;
    let rows = sums.iter().zip(examples);
    let rows = rows.map(|(sum, e)| RowNll { nll: Some(sum / e.n_labels() as f64), tokens: e.n_labels() });
    Likelihood { nll, perplexity: nll.exp(), rows: rows.collect() }
}

/// A generated answer and the reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The row's prompt, before the template.
    pub prompt: String,
    /// The generated answer.
    pub found: String,
    /// The reference answer.
    pub expected: String,
}

impl Answer {
    /// Whether both are equal, apart from surrounding whitespace.
    pub fn is_exact(&self) -> bool {
        self.found.trim() == self.expected.trim()
    }
}

/// Share of answers that equal the reference.
pub fn exact_match(answers: &[Answer]) -> f64 {
    answers.iter().filter(|answer| answer.is_exact()).count() as f64 / answers.len() as f64
}

/// An evaluation that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A prompt.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// How answers are generated and compared.
#[derive(Debug, Clone, Copy)]
pub struct AnswerConfig<'a> {
    /// The prompt template.
    pub template: &'a Template,
    /// Maximum tokens of a prompt.
    pub max_length: usize,
    /// Prompts per batch.
    pub batch_size: usize,
    /// Maximum tokens of an answer.
    pub max_new_tokens: usize,
}

/// Generates the answer of every row greedily.
///
/// `model` is the loaded model, or the same with the weights of a baseline.
///
/// # Errors
/// If a row has no prompt or answer, or a prompt does not fit the model.
pub fn answers<B: Kernels>(
    model: &Llama<B>,
    loaded: &LoadedModel<B, Llama<B>>,
    reft: Option<&Reft<B>>,
    rows: &[Row],
    config: AnswerConfig,
) -> Result<Vec<Answer>, EvalError> {
    let AnswerConfig { template, max_length, batch_size, max_new_tokens } = config;
    let tokenizer = &loaded.tokenizer;
    let context = model.config().max_position_embeddings;
    // An answer needs room in the context.
    let limit = match max_length < context {
        true => PromptLimit::of(max_length),
        false => PromptLimit::of_context(context, max_new_tokens),
    };
    let prompts = rows
        .iter()
        .map(|row| Ok(template.encode_prompt(row, tokenizer, limit)?.tokens))
        .collect::<Result<Vec<_>, DataError>>()?;
    let greedy = loaded.generate_config().with_max_new_tokens(max_new_tokens);
    let generated = generate_all(model, &reft, &prompts, &greedy, batch_size)?;
    rows.iter()
        .zip(generated)
        .map(|(row, tokens)| {
            let found = tokenizer.decode(&tokens).map_err(DataError::from)?;
            let shown = ["instruction", "prompt"].iter().find_map(|key| row.fields.get(*key)?.as_str());
            let prompt = match shown {
                Some(text) => text.trim().to_string(),
                None => template.prompt(row, tokenizer)?,
            };
            let expected = template.answer(row)?;
            let end = tokenizer.eos().map_or("", |token| token.text.as_str());
            Ok(Answer { prompt, found, expected: without_end(&expected, end).into() })
        })
        .collect()
}

/// Continues many prompts, in batches of similar length. The results are in the order of the prompts.
///
/// # Errors
/// If a prompt does not fit the model; the error counts prompts from 0.
pub fn generate_all<B: Kernels, H: Hook<B> + ?Sized>(
    model: &Llama<B>,
    hook: &H,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    batch_size: usize,
) -> Result<Vec<Vec<u32>>, GenerateError> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|idx| prompts[*idx].len());
    let mut out = vec![Vec::new(); prompts.len()];
    for chunk in order.chunks(batch_size) {
        let members: Vec<Vec<u32>> = chunk.iter().map(|idx| prompts[*idx].clone()).collect();
        // Sampling must not depend on how prompts are batched.
        let streams = chunk.iter().map(|idx| *idx as u64).collect();
        let config = config.clone().with_streams(streams);
        let generated = generate(model, &members, hook, &config, |_, _| ControlFlow::Continue(()))
            .map_err(|error| with_row_of(error, chunk))?;
        for (idx, row) in chunk.iter().zip(generated) {
            out[*idx] = row.tokens;
        }
    }
    Ok(out)
}

/// The same error with the row's index among all prompts instead of within its batch.
fn with_row_of(error: GenerateError, chunk: &[usize]) -> GenerateError {
    match error {
        GenerateError::EmptyPrompt { row } => GenerateError::EmptyPrompt { row: chunk[row] },
        GenerateError::PromptTooLong { row, tokens, context } => {
            GenerateError::PromptTooLong { row: chunk[row], tokens, context }
        }
        GenerateError::NotANumber { row } => GenerateError::NotANumber { row: chunk[row] },
        GenerateError::UnknownToken { row, id, vocab } => {
            GenerateError::UnknownToken { row: chunk[row], id, vocab }
        }
        other => other,
    }
}
