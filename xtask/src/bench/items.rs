//! What is measured.

use crate::{
    bench::{
        context::Bench,
        models::Shape,
        options::Options,
        work::{Generate, Place, Task, Train, Work},
    },
    tools::root,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// An item of `--only`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Item {
    /// stories3m, prefix and suffix of 7, all layers, rank 8, batch 16.
    A,
    /// The shape of SmolLM-135M, the last prompt token at layer 15, rank 4, batch 8, two epochs.
    B,
    /// The shape of SmolLM-135M, prefix and suffix of 7, all layers, rank 8, batch 8.
    C,
    /// SST-2 on an encoder of 6 layers, the first three tokens, all layers, rank 4, batch 32.
    Sst2,
    /// stories3m, batches of 1 and 8.
    DecodeStories3m,
    /// The shape of SmolLM-135M, in f32 and in bfloat16, which the real one is stored in, batches of 1 and 8.
    DecodeSmollm,
    /// The shape of Llama-2-7B in 8 bits: 10 GiB, and 27 GB on the disk and in the memory of the others.
    Decode7b,
    /// The benchmarks of single operations.
    Kernels,
    /// A tiny model, for tests.
    Smoke,
}

/// All items, with their names.
const ITEMS: [(&str, Item); 9] = [
    ("a", Item::A),
    ("b", Item::B),
    ("c", Item::C),
    ("sst2", Item::Sst2),
    ("decode-stories3m", Item::DecodeStories3m),
    ("decode-smollm", Item::DecodeSmollm),
    ("decode-7b", Item::Decode7b),
    ("kernels", Item::Kernels),
    ("smoke", Item::Smoke),
];

/// The rows of Alpaca with more characters have no room for an answer in 256 tokens. There is none among the first 158 rows.
const MAX_PROMPT_CHARS: usize = 420;

/// The items that were asked for.
///
/// # Errors
/// If one of the names is unknown.
pub fn chosen(options: &Options) -> Result<Vec<Item>, String> {
    if options.is_smoke {
        return Ok(vec![Item::Smoke]);
    }
    let names = || ITEMS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    for wanted in &options.only {
        if !ITEMS.iter().any(|(name, _)| name.starts_with(wanted.as_str())) {
            return Err(format!("no item is named {wanted}; there are {names}", names = names()));
        }
    }
    let is_chosen = |name: &str, item: Item| match (options.only.as_slice(), item) {
        // They take more memory, or are of no interest.
        (_, Item::Decode7b | Item::Smoke) => options.only.iter().any(|wanted| wanted == name),
        ([], _) => true,
        (only, _) => only.iter().any(|wanted| name.starts_with(wanted.as_str())),
    };
    Ok(ITEMS.iter().filter(|(name, item)| is_chosen(name, *item)).map(|(_, item)| *item).collect())
}

impl Item {
    pub fn name(self) -> &'static str {
        ITEMS.iter().find(|(_, item)| *item == self).map_or("", |(name, _)| name)
    }

    /// The pieces of work of this item, with their names. Makes the models and files that they need.
    ///
    /// # Errors
    /// What is missing.
    pub fn work(self, bench: &Bench) -> Result<Vec<(String, Work)>, String> {
        let steps = |usual: usize| bench.options.steps.unwrap_or(usual);
        let ends = |model: PathBuf, batch_size: usize, steps: usize| -> Result<Train, String> {
            Ok(Train {
                task: Task::Instruct,
                data: alpaca(bench, "alpaca", batch_size * steps)?,
                model,
                template: "alpaca",
                layers: "all",
                rank: 8,
                positions: "f7+l7",
                batch_size,
                max_length: 256,
                steps_per_epoch: steps,
                epochs: 1,
            })
        };
        let single = |train: Train| vec![(self.name().to_string(), Work::Train(train))];
        match self {
            Item::A => Ok(single(ends(stories3m(bench)?, 16, steps(8))?)),
            Item::B => {
                let train = ends(shaped(bench, &Shape::smollm_135m())?, 8, steps(4))?;
                Ok(single(Train { layers: "15", rank: 4, positions: "l1", epochs: 2, ..train }))
            }
            Item::C => Ok(single(ends(shaped(bench, &Shape::smollm_135m())?, 8, steps(4))?)),
            Item::Sst2 => Ok(single(Train {
                task: Task::Sst2,
                model: there(bench.shared.join("models/minilm-roberta"))?,
                data: there(bench.shared.join("data/glue/SST-2/train.tsv"))?,
                template: "auto",
                rank: 4,
                positions: "f3",
                batch_size: 32,
                max_length: 128,
                steps_per_epoch: steps(20),
                layers: "all",
                epochs: 1,
            })),
            Item::DecodeStories3m => decode(self.name(), bench, stories3m(bench)?),
            Item::DecodeSmollm => {
                let shape = Shape::smollm_135m();
                let mut work = decode(self.name(), bench, shaped(bench, &shape)?)?;
                let half = shaped(bench, &shape.in_bf16())?;
                work.extend(decode(&format!("{}-bf16", self.name()), bench, half)?);
                Ok(work)
            }
            Item::Decode7b => {
                let model = shaped(bench, &Shape::llama_7b())?;
                let (quant, dtype) = (Some("int8"), "bfloat16");
                let generate = Generate { quant, dtype, new_tokens: steps(8), ..greedy(bench, model, 1)? };
                Ok(vec![(self.name().into(), Work::Generate(generate))])
            }
            Item::Smoke => {
                let fixture = root().join("tests/fixtures/golden/stories260k");
                let rows = read_rows(&fixture.join("data.jsonl"))?;
                let train = Train {
                    data: write_rows(bench, "smoke", &rows[..6.min(rows.len())])?,
                    model: there(fixture.join("model"))?,
                    batch_size: 2,
                    steps_per_epoch: 3,
                    // Such a small vocabulary needs many tokens for the prompt.
                    max_length: 500,
                    task: Task::Instruct,
                    template: "alpaca",
                    layers: "all",
                    rank: 2,
                    positions: "f2+l2",
                    epochs: 2,
                };
                let generate = Generate {
                    model: train.model.clone(),
                    data: write_rows(bench, "smoke-prompts", &rows[..2.min(rows.len())])?,
                    template: "alpaca",
                    batch_size: 2,
                    new_tokens: 4,
                    quant: None,
                    dtype: "float32",
                    adapter: None,
                };
                Ok(vec![
                    ("smoke".into(), Work::Train(train)),
                    ("smoke-decode".into(), Work::Generate(generate)),
                ])
            }
            Item::Kernels => Ok(Vec::new()),
        }
    }
}

/// Greedy decoding with batches of 1 and 8, with an adapter that was trained in one step.
fn decode(item: &str, bench: &Bench, model: PathBuf) -> Result<Vec<(String, Work)>, String> {
    let training = Train {
        task: Task::Instruct,
        data: alpaca(bench, "alpaca-1", 1)?,
        model: model.clone(),
        template: "alpaca",
        layers: "all",
        rank: 8,
        positions: "f7+l7",
        batch_size: 1,
        max_length: 128,
        steps_per_epoch: 1,
        epochs: 1,
    };
    let Some(program) = bench.programs.first() else { return Ok(Vec::new()) };
    let place = Place {
        folder: &bench.folder,
        script: &bench.script,
        threads: 2,
        overrides: &bench.options.overrides,
    };
    let name = format!("{item}-adapter");
    Work::Train(training).run(&name, program, &place)?;
    let adapter = bench.folder.join(format!("{name}-run/adapter"));
    let of_batch = |batch_size: usize| {
        let generate =
            Generate { adapter: Some(adapter.clone()), ..greedy(bench, model.clone(), batch_size)? };
        Ok((format!("{item}-batch-{batch_size}"), Work::Generate(generate)))
    };
    [1, 8].map(of_batch).into_iter().collect()
}

fn greedy(bench: &Bench, model: PathBuf, batch_size: usize) -> Result<Generate, String> {
    Ok(Generate {
        model,
        data: alpaca(bench, &format!("prompts-{batch_size}"), batch_size)?,
        template: "alpaca",
        batch_size,
        new_tokens: bench.options.steps.unwrap_or(64),
        quant: None,
        dtype: "float32",
        adapter: None,
    })
}

/// The path, if something is there.
fn there(path: PathBuf) -> Result<PathBuf, String> {
    match path.exists() {
        true => Ok(path),
        false => {
            Err(format!("{} is not there; REFT_SHARED names the folder of models and data", path.display()))
        }
    }
}

fn stories3m(bench: &Bench) -> Result<PathBuf, String> {
    there(bench.shared.join("models/stories3m"))
}

/// A model with random weights and the tokenizer of stories3m.
fn shaped(bench: &Bench, shape: &Shape) -> Result<PathBuf, String> {
    let made = shape.folder(&bench.folder.join("models"), &stories3m(bench)?);
    made.map_err(|error| format!("making {}: {error}", shape.name))
}

/// The first rows of `alpaca_en_demo` that can be used, in the order of the file.
fn alpaca(bench: &Bench, name: &str, n_rows: usize) -> Result<PathBuf, String> {
    let rows = read_rows(&there(bench.shared.join("data/instruct/alpaca_en_demo.json"))?)?;
    let chars = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().chars().count();
    let fits = |row: &Value| chars(row, "instruction") + chars(row, "input") <= MAX_PROMPT_CHARS;
    let rows: Vec<Value> = rows.into_iter().filter(fits).take(n_rows).collect();
    write_rows(bench, &format!("{name}-{n_rows}"), &rows)
}

/// Rows of a file, as a list or one per line.
fn read_rows(path: &Path) -> Result<Vec<Value>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let rows = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text),
        false => text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect(),
    };
    rows.map_err(|error| format!("{}: {error}", path.display()))
}

pub fn write_rows(bench: &Bench, name: &str, rows: &[Value]) -> Result<PathBuf, String> {
    let path = bench.folder.join(format!("{name}.rows.json"));
    let text = format!("{:#}\n", Value::Array(rows.to_vec()));
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Result<Vec<&'static str>, String> {
        let only = only.iter().map(ToString::to_string).collect();
        let options = Options { only, ..Options::default() };
        Ok(chosen(&options)?.iter().map(|item| item.name()).collect())
    }

    #[test]
    fn large_items_run_only_if_they_are_named() {
        let usual = ["a", "b", "c", "sst2", "decode-stories3m", "decode-smollm", "kernels"];
        assert_eq!(names(&[]).expect("known"), usual);
        assert_eq!(names(&["decode"]).expect("known"), ["decode-stories3m", "decode-smollm"]);
        assert_eq!(names(&["decode-7b", "a"]).expect("known"), ["a", "decode-7b"]);
        assert!(names(&["x"]).expect_err("unknown").starts_with("no item is named x; there are a, b, c"));
        let smoke = Options { is_smoke: true, ..Options::default() };
        assert_eq!(chosen(&smoke), Ok(vec![Item::Smoke]));
    }
}
