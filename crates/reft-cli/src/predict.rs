//! `reft predict`: labels and probabilities, or numbers, for every row of a data file.

use crate::{
    model_args::{ModelArgs, Request},
    numbers,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use reft_core::NoHook;
use reft_core::files::write_atomic;
use reft_models::ModelConfig;
use reft_train::reft_kernels::{AutodiffKernels, Kernels};
use reft_train::{
    Chosen, OnDevice, TaskSpec,
    adapter_files::AdapterFiles,
    data::{LabeledSet, OnBadRow, max_length},
    metrics::argmax,
    on_device,
    open::load_classifier,
    tasks::{predict as outputs_of, probabilities, read_task_rows},
};
use serde_json::{Map, Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

#[derive(Args)]
pub struct PredictArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON, JSON Lines, CSV, TSV or Parquet with the texts; labels are not needed
    #[arg(long)]
    data: String,
    /// Output file: CSV if its name ends in .csv, else JSON Lines [default: standard output]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Rows per forward pass
    #[arg(long, default_value_t = 32, value_parser = numbers::positive, allow_negative_numbers = true)]
    batch_size: u32,
    /// Predict nothing for rows that cannot be used, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
}

/// A classifier's outputs for the rows of a file.
pub struct Classified {
    pub spec: TaskSpec,
    pub set: LabeledSet,
    pub outputs: Vec<Vec<f32>>,
}

/// Runs a classifier over a file.
pub fn classify<B: Kernels>(
    model: &ModelArgs,
    data: &str,
    batch_size: usize,
    labeled: bool,
    skips_bad_rows: bool,
    on: &Chosen<B::Device>,
) -> Result<Classified> {
    let Some(folder) = &model.adapter else { bail!("no classifier given: pass --adapter") };
    let request = model.request(Some(&AdapterFiles::find(folder)?))?;
    model.announce_download(&request);
    let Request { name, revision, precision } = request;
    let other_weights = model.other_weights();
    let classifier = load_classifier::<B>(folder, &name, revision.as_deref(), precision, other_weights, on)
        .map_err(|error| model.where_named(error))?;
    for warning in classifier.loaded.warnings.iter().chain(&classifier.warnings) {
        warning!("{warning}");
    }
    let (loaded, spec) = (&classifier.loaded, classifier.spec);
    let rows = read_task_rows(&spec.config.name, Path::new(data))?;
    if let Some(notice) = spec.unused_fields(data, &rows) {
        note!("{notice}");
    }
    let config = loaded.model.config();
    let max_length = max_length(model.max_length, config.context())?;
    let on_bad_row = if skips_bad_rows { OnBadRow::Skip } else { OnBadRow::Error };
    let set = spec.encode(&rows, &loaded.tokenizer, config.vocab_size, max_length, labeled, on_bad_row)?;
    for notice in set.notices(data) {
        note!("{notice}");
    }
    let outputs =
        outputs_of(&loaded.model, &loaded.tensors, &classifier.trainable, &set.examples, batch_size, &NoHook);
    Ok(Classified { spec, set, outputs })
}

impl OnDevice for &PredictArgs {
    type Output = Result<Classified>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<Classified> {
        let batch_size = self.batch_size as usize;
        classify::<A::InnerBackend>(&self.model, &self.data, batch_size, false, self.skip_bad_rows, on)
    }
}

pub fn predict(args: &PredictArgs) -> Result<()> {
    if let Some(output) = &args.output
        && let (Ok(output), Ok(data)) = (output.canonicalize(), Path::new(&args.data).canonicalize())
        && output == data
    {
        bail!("--output {} is the file of --data; give another name", args.data);
    }
    let Classified { spec, set, outputs } = on_device(&args.model.device, args)??;
    if set.n_cut > 0 {
        note!("{}: {} of {} texts truncated to the longest length", args.data, set.n_cut, set.examples.len());
    }
    let mut rows = vec![None; set.n_rows];
    for (idx, output) in set.row_of.iter().zip(outputs) {
        rows[*idx] = Some(output);
    }
    let as_csv = |path: &&PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let bytes = match args.output.as_ref().filter(as_csv) {
        Some(_) => csv_lines(&spec, &rows)?,
        None => json_lines(&spec, &rows)?,
    };
    match &args.output {
        Some(path) => {
            write_atomic(path, &bytes).with_context(|| path.display().to_string())?;
            say!("{} rows written to {}", rows.len(), path.display());
        }
        None => std::io::stdout().lock().write_all(&bytes)?,
    }
    Ok(())
}

/// The outputs for each row of the file; none for a row that cannot be used.
type Outputs = [Option<Vec<f32>>];

fn json_lines(spec: &TaskSpec, outputs: &Outputs) -> Result<Vec<u8>> {
    let labels = &spec.config.labels;
    let mut out = Vec::new();
    for row in outputs {
        let line = match row {
            None if spec.is_regression() => json!({ "value": null }),
            None => json!({ "label": null }),
            Some(row) if spec.is_regression() => json!({ "value": row[0] }),
            Some(row) => {
                let each = labels.iter().cloned().zip(probabilities(row).into_iter().map(Value::from));
                json!({ "label": labels[argmax(row)], "probabilities": each.collect::<Map<_, _>>() })
            }
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(out)
}

fn csv_lines(spec: &TaskSpec, outputs: &Outputs) -> Result<Vec<u8>> {
    let labels = &spec.config.labels;
    let mut out = csv::Writer::from_writer(Vec::new());
    let columns: Vec<String> = if spec.is_regression() {
        vec!["value".into()]
    } else {
        ["label".to_string()].into_iter().chain(labels.iter().map(|l| format!("p({l})"))).collect()
    };
    out.write_record(&columns)?;
    for row in outputs {
        match row {
            None => out.write_record(vec![""; columns.len()])?,
            Some(row) if spec.is_regression() => out.write_record([row[0].to_string()])?,
            Some(row) => {
                let each = probabilities(row).into_iter().map(|p| format!("{p:.6}"));
                out.write_record([labels[argmax(row)].clone()].into_iter().chain(each))?;
            }
        }
    }
    Ok(out.into_inner()?)
}
