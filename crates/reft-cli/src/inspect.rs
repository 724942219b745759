//! `reft inspect`: the contents of an adapter.

use anyhow::Result;
use burn::{module::Module, tensor::backend::AutodiffBackend};
use clap::Args;
use reft_core::{Adapter, AdapterConfig};
use reft_train::{
    OnDevice,
    adapter::{AdapterMetadata, read_adapter},
    device::{Chosen, cpu, on_chosen},
};
use serde::Serialize;
use std::{io::Write, path::PathBuf};

#[derive(Args)]
pub struct InspectArgs {
    /// The adapter's folder
    adapter: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub struct Edit {
    site: String,
    part: &'static str,
    parameters: usize,
    weight_norm: Option<f64>,
    bias_norm: f64,
}

#[derive(Serialize)]
pub struct Output {
    #[serde(flatten)]
    config: AdapterConfig,
    parameters: usize,
    edits: Vec<Edit>,
    /// The typed metadata, which `config` has too.
    #[serde(skip)]
    metadata: AdapterMetadata,
}

impl OnDevice for &InspectArgs {
    type Output = Result<Output>;

    fn run<A: AutodiffBackend>(self, on: &Chosen<A::Device>) -> Result<Output> {
        let (config, metadata) = read_adapter(&self.adapter)?;
        let adapter = Adapter::<A::InnerBackend>::load(&self.adapter, &on.device)?;
        let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let edits = adapter.reft.edits().map(|edit| {
            let values = edit.intervention.values();
            Edit {
                site: edit.site.to_string(),
                part: edit.part.name(),
                parameters: edit.intervention.num_params(),
                weight_norm: values.weight.as_deref().map(norm),
                bias_norm: norm(&values.bias),
            }
        });
        Ok(Output { config, parameters: adapter.reft.num_params(), edits: edits.collect(), metadata })
    }
}

pub fn inspect(args: &InspectArgs) -> Result<()> {
    let output = on_chosen(&cpu()?, args)??;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&output)?)?;
        return Ok(());
    }
    let Output { config, parameters, edits, metadata } = output;
    let reft = &config.reft;
    if let (Some(task), Some(head)) = (&metadata.task, &config.head) {
        writeln!(out, "task         {} on {}", task.name, task.text.join(", "))?;
        if !task.labels.is_empty() {
            writeln!(out, "labels       {}", task.labels.join(", "))?;
        }
        writeln!(out, "head         {} parameters", head.num_params())?;
    }
    let is_edited = metadata.baseline.is_none();
    if is_edited {
        writeln!(out, "method       {}, rank {}, hidden size {}", reft.method, reft.rank, reft.hidden_size)?;
        let tied = match (reft.positions.has_two_sides(), reft.tied) {
            (false, _) => "",
            (true, true) => ", tied",
            (true, false) => ", untied",
        };
        writeln!(out, "positions    {}{tied}", reft.positions)?;
        writeln!(out, "activation   {}, dropout {}", reft.activation, reft.dropout)?;
    } else {
        let baseline = metadata.baseline.map_or("", |baseline| baseline.name());
        writeln!(out, "trained      {baseline}, no interventions")?;
    }
    let quant = config.base_model.quant.as_ref().map_or(String::new(), |quant| format!(", {quant} weights"));
    let base = &config.base_model;
    writeln!(out, "base model   {} (fingerprint {}){quant}", base.name, base.fingerprint)?;
    if is_edited && metadata.task.is_none() {
        writeln!(out, "template     {}", metadata.template.replace('\n', "\\n"))?;
    }
    writeln!(out, "written by   reft {}, format {}", config.library_version, config.format_version)?;
    if !is_edited {
        return Ok(());
    }
    writeln!(out, "parameters   {parameters} in {} interventions", edits.len())?;
    writeln!(out, "\n{:<32} {:<7} {:>10} {:>9} {:>9}", "site", "part", "parameters", "|W|", "|b|")?;
    for edit in &edits {
        let weight = edit.weight_norm.map_or("-".into(), |norm| format!("{norm:.4}"));
        writeln!(
            out,
            "{:<32} {:<7} {:>10} {weight:>9} {:>9.4}",
            edit.site, edit.part, edit.parameters, edit.bias_norm
        )?;
    }
    Ok(())
}
