//! `reft predict`: labels and probabilities, or numbers, for every row of a data file.

use crate::model_args::ModelArgs;
use anyhow::{Context, Result, bail};
use burn::tensor::backend::{AutodiffBackend, Backend};
use clap::Args;
use reft_core::adapter::write_atomic;
use reft_train::{
    Chosen, OnDevice, Task,
    classify::{predict as outputs_of, probabilities},
    on_device,
    run::{load_classifier, max_length},
    task::{LabelledSet, argmax, read_task_rows},
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
    /// JSON, JSON Lines, CSV or TSV with the texts; labels are not needed
    #[arg(long)]
    data: String,
    /// Where to write: CSV if the name ends in .csv, else JSON Lines; the screen if absent
    #[arg(long)]
    output: Option<PathBuf>,
    /// Rows in a forward pass
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
}

/// What a classifier says of a file's rows.
pub struct Classified {
    pub task: Task,
    pub set: LabelledSet,
    pub outputs: Vec<Vec<f32>>,
}

/// Runs a classifier over a file.
pub fn classify<B: Backend>(
    model: &ModelArgs,
    data: &str,
    batch_size: usize,
    labelled: bool,
    on: &Chosen<B::Device>,
) -> Result<Classified> {
    let Some(folder) = &model.adapter else { bail!("which classifier? give --adapter") };
    let revision = model.revision.as_deref();
    let classifier = load_classifier::<B>(folder, &model.name()?, revision, model.wish()?, on)?;
    let (loaded, task) = (&classifier.loaded, classifier.task);
    let rows = read_task_rows(&task.config.name, Path::new(data))?;
    let max_length = max_length(model.max_length, loaded.model.config().context())?;
    let set = task.encode(&rows, &loaded.tokenizer, max_length, labelled)?;
    let outputs = outputs_of(&loaded.model, &loaded.tensors, &classifier.learned, &set.examples, batch_size);
    Ok(Classified { task, set, outputs })
}

impl OnDevice for &PredictArgs {
    type Output = Result<Classified>;

    fn run<A: AutodiffBackend>(self, on: &Chosen<A::Device>) -> Result<Classified> {
        classify::<A::InnerBackend>(&self.model, &self.data, self.batch_size as usize, false, on)
    }
}

pub fn predict(args: &PredictArgs) -> Result<()> {
    let Classified { task, outputs, .. } = on_device(&args.model.device, args)??;
    let as_csv = |path: &&PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let bytes = match args.output.as_ref().filter(as_csv) {
        Some(_) => csv_lines(&task, &outputs)?,
        None => json_lines(&task, &outputs)?,
    };
    match &args.output {
        Some(path) => {
            write_atomic(path, &bytes).with_context(|| path.display().to_string())?;
            println!("{} rows in {}", outputs.len(), path.display());
        }
        None => std::io::stdout().lock().write_all(&bytes)?,
    }
    Ok(())
}

fn json_lines(task: &Task, outputs: &[Vec<f32>]) -> Result<Vec<u8>> {
    let labels = &task.config.labels;
    let mut out = Vec::new();
    for row in outputs {
        let line = if task.is_regression() {
            json!({ "value": row[0] })
        } else {
            let each = labels.iter().cloned().zip(probabilities(row).into_iter().map(Value::from));
            json!({ "label": labels[argmax(row)], "probabilities": each.collect::<Map<_, _>>() })
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(out)
}

fn csv_lines(task: &Task, outputs: &[Vec<f32>]) -> Result<Vec<u8>> {
    let labels = &task.config.labels;
    let mut out = csv::Writer::from_writer(Vec::new());
    if task.is_regression() {
        out.write_record(["value"])?;
    } else {
        out.write_record(["label".to_string()].into_iter().chain(labels.iter().map(|l| format!("p({l})"))))?;
    }
    for row in outputs {
        if task.is_regression() {
            out.write_record([row[0].to_string()])?;
        } else {
            let each = probabilities(row).into_iter().map(|p| format!("{p:.6}"));
            out.write_record([labels[argmax(row)].clone()].into_iter().chain(each))?;
        }
    }
    Ok(out.into_inner()?)
}
