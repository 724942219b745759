//! `reft generate`: continue a prompt, or every prompt of a data file.

use crate::{
    model_args::{ModelArgs, Ready},
    numbers,
};
use anyhow::Result;
use clap::Args;
use reft_models::{GenerateConfig, Generated, Llama, LoadedModel, generate as continue_prompts};
use reft_train::reft_kernels::{AutodiffKernels, Kernels};
use reft_train::{
    Chosen, OnDevice,
    data::{BadRows, OnBadRow, PromptLimit, Row, Template, TextStream, find_rows},
    eval::generate_all,
    on_device,
};
use serde::Serialize;
use std::{io::Write, ops::ControlFlow, time::Instant};

/// How tokens are chosen.
#[derive(Args)]
pub struct SamplingArgs {
    /// Maximum number of new tokens
    #[arg(long, default_value_t = 256, value_parser = numbers::whole, allow_negative_numbers = true)]
    pub max_new_tokens: usize,
    /// Always choose the most likely token
    #[arg(long)]
    pub greedy: bool,
    /// Sampling temperature
    #[arg(long, default_value_t = 0.7, value_parser = numbers::temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from this many of the most likely tokens; 0 for all
    #[arg(long, default_value_t = 0, value_parser = numbers::whole, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Sample from the smallest set of tokens whose total probability reaches this value
    #[arg(long, default_value_t = 0.95, value_parser = numbers::share, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Values above 1 make repetition less likely [default: the one of the model's generation_config.json, else 1]
    #[arg(long, value_parser = numbers::factor, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
}

impl SamplingArgs {
    pub fn config<B: Kernels>(&self, loaded: &LoadedModel<B, Llama<B>>, seed: u64) -> GenerateConfig {
        loaded
            .generate_config()
            .with_max_new_tokens(self.max_new_tokens)
            .with_temperature(if self.greedy { 0.0 } else { self.temperature })
            .with_top_k(self.top_k)
            .with_top_p(self.top_p)
            .with_repetition_penalty(self.repetition_penalty.unwrap_or(loaded.repetition_penalty))
            .with_seed(seed)
    }
}

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The prompt
    #[arg(long, required_unless_present = "data")]
    prompt: Option<String>,
    /// JSON, JSON Lines, CSV, TSV or Parquet file with prompts
    #[arg(long, conflicts_with = "prompt")]
    data: Option<String>,
    /// Prompts per batch
    #[arg(long, default_value_t = 16, value_parser = numbers::positive, allow_negative_numbers = true)]
    batch_size: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// With --json and --data, print how long the prompts and every step of the decoding took
    #[arg(long, requires_all = ["json", "data"])]
    timing: bool,
}

#[derive(Serialize)]
struct Output {
    rows: Vec<OutputRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timing: Option<Vec<BatchSeconds>>,
}

/// How long one batch of prompts took.
#[derive(Serialize)]
struct BatchSeconds {
    /// Until the first new token of every row.
    prompts: f64,
    /// Every later step, which decodes one token per row.
    steps: Vec<f64>,
}

#[derive(Serialize)]
struct OutputRow {
    tokens: Vec<u32>,
    text: String,
}

impl OnDevice for &GenerateArgs {
    type Output = Result<()>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<()> {
        let ready = self.model.load::<A::InnerBackend>(on)?;
        match (&self.prompt, &self.data) {
            (Some(prompt), _) => self.one(&ready, prompt),
            (None, Some(data)) => self.many(&ready, data),
            (None, None) => unreachable!("the arguments require one of them"),
        }
    }
}

impl GenerateArgs {
    fn config<B: Kernels>(&self, ready: &Ready<B>) -> GenerateConfig {
        self.sampling.config(&ready.loaded, self.model.seed)
    }

    fn one<B: Kernels>(&self, ready: &Ready<B>, prompt: &str) -> Result<()> {
        let template = ready.template(self.model.template.as_deref(), &[])?;
        let row = template.question(prompt);
        let tokens = self.encode(ready, &template, &[row])?.remove(0);
        let config = self.config(ready);
        let mut out = if self.json {
            let no_callback = |_, _| ControlFlow::Continue(());
            continue_prompts(ready.model(), &[tokens], &ready.reft(), &config, no_callback)?
        } else {
            vec![show_generated(ready, tokens, &config)?]
        };
        if !self.json {
            say!();
            return Ok(());
        }
        let tokens = out.pop().map(|row| row.tokens).unwrap_or_default();
        print_json(vec![tokens], None, ready)
    }

    /// Encodes prompts. Without `--max-length`, only those are cut that would fill the model's context.
    fn encode<B: Kernels>(
        &self,
        ready: &Ready<B>,
        template: &Template,
        rows: &[Row],
    ) -> Result<Vec<Vec<u32>>> {
        let config = ready.loaded.model.config();
        let limit = match self.model.max_length {
            Some(max_length) => PromptLimit::of(max_length),
            None => PromptLimit::of_context(config.max_position_embeddings, self.sampling.max_new_tokens),
        };
        let mut n_cut = 0;
        let (mut prompts, mut bad) = (Vec::new(), BadRows::default());
        for row in rows {
            let prompt = template.encode_prompt(row, &ready.loaded.tokenizer, limit);
            let Some(prompt) = bad.keep(prompt)? else { continue };
            row.check_tokens(&prompt.tokens, config.vocab_size)?;
            n_cut += usize::from(prompt.is_cut);
            prompts.push(prompt.tokens);
        }
        bad.finish(OnBadRow::Error, rows.len())?;
        if n_cut > 0 {
            note!(
                "{n_cut} of {} prompt{} cut to {} tokens, in the middle of the longest text",
                rows.len(),
                if rows.len() == 1 { "" } else { "s" },
                limit.cut_to
            );
        }
        Ok(prompts)
    }

    fn many<B: Kernels>(&self, ready: &Ready<B>, data: &str) -> Result<()> {
        let rows = find_rows(data)?;
        let template = ready.template(self.model.template.as_deref(), &rows)?;
        let prompts = self.encode(ready, &template, &rows)?;
        let (config, batch_size) = (self.config(ready), self.batch_size as usize);
        if self.timing {
            let (all, timing) = generate_timed(ready, &prompts, &config, batch_size)?;
            return print_json(all, Some(timing), ready);
        }
        let all = generate_all(ready.model(), &ready.reft(), &prompts, &config, batch_size)?;
        if self.json {
            return print_json(all, None, ready);
        }
        let mut out = std::io::stdout().lock();
        for (idx, tokens) in all.iter().enumerate() {
            writeln!(out, "[{}] {}", idx + 1, ready.loaded.tokenizer.decode(tokens)?.trim())?;
        }
        Ok(())
    }
}

/// Continues prompts in batches, in the order in which they are given, and measures every step.
fn generate_timed<B: Kernels>(
    ready: &Ready<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    batch_size: usize,
) -> Result<(Vec<Vec<u32>>, Vec<BatchSeconds>)> {
    let (mut all, mut timing) = (Vec::new(), Vec::new());
    for batch in prompts.chunks(batch_size) {
        let (mut last, mut last_row, mut seconds) = (Instant::now(), usize::MAX, Vec::new());
        let on_token = |row, _| {
            // Rows come in ascending order, so a step begins where they do not.
            if row <= last_row {
                seconds.push(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
            last_row = row;
            ControlFlow::Continue(())
        };
        let generated = continue_prompts(ready.model(), batch, &ready.reft(), config, on_token)?;
        all.extend(generated.into_iter().map(|row| row.tokens));
        let mut seconds = seconds.into_iter();
        timing.push(BatchSeconds { prompts: seconds.next().unwrap_or_default(), steps: seconds.collect() });
    }
    Ok((all, timing))
}

fn print_json<B: Kernels>(
    all: Vec<Vec<u32>>,
    timing: Option<Vec<BatchSeconds>>,
    ready: &Ready<B>,
) -> Result<()> {
    let rows = all
        .into_iter()
        .map(|tokens| Ok(OutputRow { text: ready.loaded.tokenizer.decode(&tokens)?, tokens }))
        .collect::<Result<Vec<_>>>()?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&Output { rows, timing })?)?;
    Ok(())
}

/// Continues a prompt and prints the text as it is generated.
pub fn show_generated<B: Kernels>(
    ready: &Ready<B>,
    prompt: Vec<u32>,
    config: &GenerateConfig,
) -> Result<Generated> {
    let mut stream = TextStream::default();
    let mut failed = None;
    let tokenizer = &ready.loaded.tokenizer;
    let mut print = |token| write_flushed(stream.push(tokenizer, token)?);
    let mut out =
        continue_prompts(ready.model(), &[prompt], &ready.reft(), config, |_, token| match print(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
    if let Some(error) = failed {
        return Err(error);
    }
    write_flushed(stream.finish(tokenizer)?)?;
    Ok(out.remove(0))
}

fn write_flushed(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

pub fn generate(args: &GenerateArgs) -> Result<()> {
    on_device(&args.model.device, args)?
}
