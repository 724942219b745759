//! `reft inspect`: the contents of an adapter.

use anyhow::Result;
use burn::module::Module;
use clap::Args;
use reft_core::{Adapter, AdapterConfig};
use reft_models::peft::{PEFT_CONFIG, PeftConfig};
use reft_train::reft_kernels::AutodiffKernels;
use reft_train::{
    OnDevice,
    adapter::AdapterMetadata,
    adapter_files::{AdapterFiles, AdapterKind},
    device::{Chosen, cpu, on_chosen},
};
use serde::Serialize;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

#[derive(Args)]
pub struct InspectArgs {
    /// The adapter's folder: one of reft, the run it belongs to, or LoRA of PEFT
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

/// An adapter of this library.
struct Contents {
    folder: PathBuf,
    config: AdapterConfig,
    metadata: AdapterMetadata,
}

impl OnDevice for Contents {
    type Output = Result<Output>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<Output> {
        let Contents { folder, config, metadata } = self;
        let adapter = Adapter::<A::InnerBackend>::load(&folder, &on.device)?;
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
    let AdapterFiles { folder, kind } = AdapterFiles::find(&args.adapter)?;
    let (config, metadata) = match kind {
        AdapterKind::Reft(config, metadata) => (*config, metadata),
        AdapterKind::Peft(settings) => return inspect_peft(&folder, &settings, args.json),
    };
    let output = on_chosen(&cpu()?, Contents { folder, config, metadata })??;
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

/// Shows the settings of a PEFT adapter, whose weights mean nothing without the model.
fn inspect_peft(folder: &Path, settings: &PeftConfig, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let text = fs::read_to_string(folder.join(PEFT_CONFIG))?;
        writeln!(out, "{}", text.trim_end())?;
        return Ok(());
    }
    let scaling = if settings.use_rslora { ", scaled by alpha / sqrt(rank)" } else { "" };
    let dora = if settings.use_dora { ", DoRA" } else { "" };
    writeln!(
        out,
        "method       LoRA of PEFT, rank {}, alpha {}{scaling}{dora}",
        settings.rank, settings.alpha
    )?;
    writeln!(out, "modules      {}", settings.targets())?;
    if let Some(task) = &settings.task_type {
        writeln!(out, "task         {task}")?;
    }
    let revision =
        settings.revision.as_ref().map_or(String::new(), |revision| format!(" (revision {revision})"));
    writeln!(out, "base model   {}{revision}", settings.base_model.as_deref().unwrap_or("not named"))?;
    Ok(())
}
