//! `reft eval`: likelihood of the answers of a data file.

use crate::model_args::ModelArgs;
use anyhow::Result;
use burn::tensor::backend::{AutodiffBackend, Backend};
use clap::Args;
use reft_train::{
    DataSet, OnDevice,
    data::{Row, Template},
    eval::{Likelihood, RowNll, answers, likelihood},
    on_device,
    run::find_rows,
};
use serde::Serialize;
use std::io::Write;

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON or JSON Lines with prompts and answers
    #[arg(long)]
    data: String,
    /// Rows in a forward pass
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Also generate answers greedily and count those that equal the expected ones
    #[arg(long)]
    exact_match: bool,
    /// Most tokens of a generated answer
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub struct Output {
    #[serde(flatten)]
    likelihood: Likelihood,
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_match: Option<f64>,
    cut: usize,
    dropped: usize,
}

impl OnDevice for &EvalArgs {
    type Output = Result<Output>;

    fn run<A: AutodiffBackend>(self, device: A::Device) -> Result<Output> {
        self.judge::<A::InnerBackend>(&device)
    }
}

impl EvalArgs {
    fn judge<B: Backend>(&self, device: &B::Device) -> Result<Output> {
        let rows = find_rows(&self.data)?;
        let ready = self.model.load::<B>(device)?;
        let template = ready.template(self.model.template.as_deref(), &rows)?;
        let loaded = &ready.loaded;
        let set = DataSet::encode(&rows, &template, &loaded.tokenizer, ready.max_length, &self.data)?;
        let reft = ready.adapter.as_ref().map(|adapter| &adapter.reft);
        let batch_size = self.batch_size as usize;
        let mut likelihood = likelihood(&loaded.model, reft, &set.examples, batch_size);
        // Rows that were dropped stand in their place, without a likelihood.
        let mut all = vec![RowNll { nll: None, tokens: 0 }; rows.len()];
        for (row, idx) in likelihood.rows.iter().zip(&set.row_of) {
            all[*idx] = *row;
        }
        likelihood.rows = all;
        let exact_match = self.exact_match.then(|| self.exact_match(&ready, &rows, &template)).transpose()?;
        Ok(Output { likelihood, exact_match, cut: set.n_cut, dropped: set.n_dropped() })
    }

    fn exact_match<B: Backend>(
        &self,
        ready: &crate::model_args::Ready<B>,
        rows: &[Row],
        template: &Template,
    ) -> Result<f64> {
        let reft = ready.adapter.as_ref().map(|adapter| &adapter.reft);
        let (batch_size, new) = (self.batch_size as usize, self.max_new_tokens);
        let answers = answers(&ready.loaded, reft, rows, template, ready.max_length, batch_size, new)?;
        Ok(answers.iter().filter(|a| a.is_exact()).count() as f64 / answers.len() as f64)
    }
}

pub fn eval(args: &EvalArgs) -> Result<()> {
    let output = on_device(&args.model.device, args)??;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&output)?)?;
        return Ok(());
    }
    let Output { likelihood, exact_match, cut, dropped } = &output;
    let tokens: usize = likelihood.rows.iter().map(|row| row.tokens).sum();
    writeln!(out, "rows         {} ({cut} cut, {dropped} without an answer token)", likelihood.rows.len())?;
    writeln!(out, "tokens       {tokens}")?;
    writeln!(out, "nll          {:.4}", likelihood.nll)?;
    writeln!(out, "perplexity   {:.3}", likelihood.perplexity)?;
    if let Some(share) = exact_match {
        writeln!(out, "exact match  {:.1} %", 100.0 * share)?;
    }
    Ok(())
}
