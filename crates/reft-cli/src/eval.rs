//! `reft eval`: likelihood of the answers in a data file, or the metrics of a classifier.

use crate::{
    model_args::{ModelArgs, Ready},
    numbers,
    predict::{Classified, classify},
};
use anyhow::{Result, bail};
use clap::Args;
use reft_core::Reft;
use reft_train::reft_kernels::{AutodiffKernels, Kernels};
use reft_train::{
    Chosen, DataSet, OnDevice,
    adapter_files::AdapterFiles,
    data::{Encoding, OnBadRow, Row, Template, TrainOn, load_rows},
    eval::{AnswerConfig, Likelihood, RowNll, answers, exact_match, likelihood},
    on_device,
    tasks::Report,
};
use serde::Serialize;
use std::io::Write;

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON, JSON Lines, CSV, TSV or Parquet with prompts and answers, or with a classifier's texts and labels
    #[arg(long)]
    data: String,
    /// Rows per forward pass
    #[arg(long, default_value_t = 16, value_parser = numbers::positive, allow_negative_numbers = true)]
    batch_size: u32,
    /// Also generate answers greedily and count those that match exactly
    #[arg(long)]
    exact_match: bool,
    /// Maximum tokens of a generated answer
    #[arg(long, default_value_t = 64, value_parser = numbers::whole, allow_negative_numbers = true)]
    max_new_tokens: usize,
    /// Messages of a chat's assistant to judge: `last` or `all`
    #[arg(long, default_value = "last", value_parser = <TrainOn as std::str::FromStr>::from_str)]
    train_on: TrainOn,
    /// Skip and count rows that cannot be used, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Output {
    LanguageModel(LanguageModel),
    Classifier(Report),
}

#[derive(Serialize)]
pub struct LanguageModel {
    #[serde(flatten)]
    likelihood: Likelihood,
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_match: Option<f64>,
    cut: usize,
    dropped: usize,
    skipped: usize,
}

impl OnDevice for &EvalArgs {
    type Output = Result<Output>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<Output> {
        let adapter = self.model.adapter.as_deref().map(AdapterFiles::find).transpose()?;
        match adapter.is_some_and(|files| files.is_classifier()) {
            true => Ok(Output::Classifier(self.classifier::<A::InnerBackend>(on)?)),
            false => Ok(Output::LanguageModel(self.language_model::<A::InnerBackend>(on)?)),
        }
    }
}

impl EvalArgs {
    fn classifier<B: Kernels>(&self, on: &Chosen<B::Device>) -> Result<Report> {
        let (batch_size, skips) = (self.batch_size as usize, self.skip_bad_rows);
        let classified = classify::<B>(&self.model, &self.data, batch_size, true, skips, on)?;
        let Classified { spec, set, outputs } = classified;
        Ok(Report::new(&spec, &set, &outputs))
    }

    fn language_model<B: Kernels>(&self, on: &Chosen<B::Device>) -> Result<LanguageModel> {
        let rows = load_rows(&self.data)?;
        let ready = self.model.load::<B>(on)?;
        let template = ready.template(self.model.template.as_deref(), &rows)?;
        let loaded = &ready.loaded;
        let vocab = loaded.model.config().vocab_size;
        let encoding = Encoding::new(&template, &loaded.tokenizer, vocab, ready.max_length)
            .with_train_on(self.train_on)
            .with_on_bad_row(if self.skip_bad_rows { OnBadRow::Skip } else { OnBadRow::Error });
        let set = DataSet::encode(&rows, encoding, &self.data)?;
        let mut likelihood =
            likelihood(ready.model(), &ready.reft().map(Reft::hook), &set.examples, self.batch_size as usize);
        if likelihood.nll.is_nan() {
            bail!(
                "the likelihood is NaN; use another dtype (bf16 or f32 instead of f16), and check the adapter and, on a GPU, \
                 the device with `reft doctor`"
            );
        }
        likelihood.rows = by_row(&likelihood.rows, &set);
        set.notices.iter().for_each(|notice| note!("{notice}"));
        let answers = || self.exact_match(&ready, &set.answered(&rows, &template), &template);
        let exact_match = self.exact_match.then(answers).transpose()?;
        Ok(LanguageModel {
            likelihood,
            exact_match,
            cut: set.n_cut,
            dropped: set.n_dropped,
            skipped: set.skipped_rows.len(),
        })
    }

    fn exact_match<B: Kernels>(&self, ready: &Ready<B>, rows: &[Row], template: &Template) -> Result<f64> {
        let config = AnswerConfig {
            template,
            max_length: ready.max_length,
            batch_size: self.batch_size as usize,
            max_new_tokens: self.max_new_tokens,
        };
        let loaded = &ready.loaded;
        Ok(exact_match(&answers(ready.model(), loaded, ready.reft(), rows, config)?))
    }
}

/// The likelihood of every row of the file. A row may have several examples; one whose examples were all dropped keeps its
/// place, without a likelihood.
fn by_row(examples: &[RowNll], set: &DataSet) -> Vec<RowNll> {
    let mut rows = vec![RowNll { nll: None, tokens: 0 }; set.n_rows];
    for (example, idx) in examples.iter().zip(&set.row_of) {
        let row = &mut rows[*idx];
        let sum = |of: &RowNll| of.nll.unwrap_or(0.0) * of.tokens as f64;
        let (total, tokens) = (sum(row) + sum(example), row.tokens + example.tokens);
        *row = if row.tokens == 0 { *example } else { RowNll { nll: Some(total / tokens as f64), tokens } };
    }
    rows
}

pub fn eval(args: &EvalArgs) -> Result<()> {
    let output = on_device(&args.model.device, args)??;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&output)?)?;
        return Ok(());
    }
    match &output {
        Output::LanguageModel(output) => show_language_model(&mut out, output),
        Output::Classifier(report) => show_report(&mut out, report),
    }
}

fn show_language_model(out: &mut impl Write, output: &LanguageModel) -> Result<()> {
    let LanguageModel { likelihood, exact_match, cut, dropped, skipped } = output;
    let tokens: usize = likelihood.rows.iter().map(|row| row.tokens).sum();
    writeln!(
        out,
        "rows         {} ({cut} truncated, {dropped} dropped because no answer token was left{})",
        likelihood.rows.len(),
        if *skipped > 0 { format!(", {skipped} skipped") } else { String::new() }
    )?;
    writeln!(out, "tokens       {tokens}")?;
    writeln!(out, "nll          {:.4}", likelihood.nll)?;
    writeln!(out, "perplexity   {:.3}", likelihood.perplexity)?;
    if let Some(share) = exact_match {
        writeln!(out, "exact match  {:.1} %", 100.0 * share)?;
    }
    Ok(())
}

fn show_report(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(out, "task         {}", report.task)?;
    let skipped = if report.skipped > 0 { format!(", {} skipped", report.skipped) } else { String::new() };
    writeln!(out, "rows         {} ({} truncated{skipped})", report.rows, report.cut)?;
    for (name, value) in &report.metrics.0 {
        writeln!(out, "{name:<12} {value:.4}")?;
    }
    if report.labels.is_empty() {
        return Ok(());
    }
    let width = report.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(8);
    writeln!(out, "\nconfusion matrix: true labels in rows, predicted labels in columns")?;
    write!(out, "{:<width$}", "")?;
    for label in &report.labels {
        write!(out, "  {label:>width$}")?;
    }
    writeln!(out)?;
    for (label, counts) in report.labels.iter().zip(&report.confusion) {
        write!(out, "{label:<width$}")?;
        for count in counts {
            write!(out, "  {count:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
