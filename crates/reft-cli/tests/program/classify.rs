//! Classification and regression as a user meets them, on a small encoder with random weights.

use super::{assert_says, json, reft, refusal, repository, stdout, workplace};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::{fs, path::Path, process::Output};
use tempfile::TempDir;

const GOOD: [&str; 4] = ["good", "great", "fine", "happy"];
const BAD: [&str; 4] = ["bad", "awful", "poor", "sad"];
const NEUTRAL: [&str; 12] =
    ["the", "a", "cat", "dog", "horse", "garden", "river", "sleeps", "eats", "under", "near", "house"];

/// Short texts with one word that tells the label.
fn texts(n: usize, seed: u64) -> Vec<(String, &'static str)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = || {
        let good = rng.random_bool(0.5);
        let word = if good { GOOD } else { BAD }[rng.random_range(0..4)];
        let neutral = NEUTRAL[rng.random_range(0..12)];
        let other = NEUTRAL[rng.random_range(0..12)];
        (format!("{neutral} {word} {other}"), if good { "praise" } else { "blame" })
    };
    (0..n).map(|_| text()).collect()
}

fn csv(rows: &[(String, &str)]) -> String {
    rows.iter().fold("id,text,label\n".into(), |csv, (text, label)| format!("{csv}7,\"{text}\",{label}\n"))
}

/// A folder with `model`, `train.csv`, `dev.csv` and `recipe.toml`.
fn prepared() -> TempDir {
    let folder = workplace();
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("created");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(repository("tests/fixtures/encoders/roberta").join(file), model.join(file)).expect("copied");
    }
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
    write("train.csv", csv(&texts(200, 1)));
    write("dev.csv", csv(&texts(60, 2)));
    let recipe = "model = \"model\"\nrun.name = \"r\"\nrun.overwrite = true\nreft.rank = 8\nreft.positions = \"all\"\n\
                  train.epochs = 40\ntrain.batch_size = 20\ntrain.lr = 2e-2\ntrain.eval_each_epoch = true\n\
                  train.model_dropout = 0.0\n\
                  data.task = \"classification\"\ndata.train = \"train.csv\"\ndata.eval = \"dev.csv\"\n";
    write("recipe.toml", recipe.into());
    folder
}

fn train(folder: &Path, overrides: &[&str]) -> Output {
    reft(folder, &[&["train", "recipe.toml"], overrides].concat())
}

#[test]
fn a_classifier_is_trained_judged_and_used() {
    let folder = prepared();
    let path = folder.path();
    let text = stdout(&train(path, &[]));
    assert_says(
        &text,
        &["labels     2 (blame, praise)", "trainable head params: 306", "accuracy", "reft predict"],
    );
    let summary = json(&path.join("runs/r/summary.json"));
    let accuracy = summary["after"]["accuracy"].as_f64().expect("a number");
    assert!(accuracy >= 0.9, "{accuracy}");

    // The same numbers from the saved adapter.
    let eval = ["eval", "--adapter", "runs/r/adapter", "--data", "dev.csv"];
    let report: Value =
        serde_json::from_str(&stdout(&reft(path, &[&eval[..], &["--json"]].concat()))).expect("JSON");
    assert_eq!(report["metrics"], summary["after"]);
    assert_eq!(report["labels"], serde_json::json!(["blame", "praise"]));
    let confusion: Vec<Vec<usize>> = serde_json::from_value(report["confusion"].clone()).expect("a table");
    assert_eq!(confusion.iter().flatten().sum::<usize>(), 60);
    assert_eq!(
        ((confusion[0][0] + confusion[1][1]) as f64 / 60.0, report["rows"].as_u64()),
        (accuracy, Some(60))
    );
    assert_says(&stdout(&reft(path, &eval)), &["accuracy", "f1", "matthews", "blame", "praise"]);

    // Labels and probabilities, for rows without labels.
    fs::write(path.join("new.jsonl"), "{\"text\": \"a great dog\"}\n{\"text\": \"the awful river\"}\n")
        .expect("written");
    let predict = ["predict", "--adapter", "runs/r/adapter", "--data", "new.jsonl"];
    let lines = stdout(&reft(path, &predict));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        let [blame, praise] =
            ["blame", "praise"].map(|l| line["probabilities"][l].as_f64().expect("a number"));
        assert!((blame + praise - 1.0).abs() < 1e-6);
        assert_eq!(line["label"], if praise > blame { "praise" } else { "blame" });
    }
    stdout(&reft(path, &[&predict[..], &["--output", "out.csv"]].concat()));
    let table = fs::read_to_string(path.join("out.csv")).expect("written");
    assert!(table.starts_with("label,p(blame),p(praise)\n") && table.lines().count() == 3, "{table}");
    assert_says(&stdout(&reft(path, &["inspect", "runs/r/adapter"])), &["classification", "blame, praise"]);

    // What a classifier cannot do is refused.
    let message = refusal(&reft(path, &["generate", "--adapter", "runs/r/adapter", "--prompt", "x"]));
    assert_says(&message, &["runs/r/adapter"]);
}

#[test]
fn every_baseline_runs_in_the_same_loop() {
    let folder = prepared();
    let path = folder.path();
    for (method, file) in [
        ("head-only", "adapter.safetensors"),
        ("bitfit", "tuned.safetensors"),
        ("full", "tuned.safetensors"),
        ("lora", "adapter_model.safetensors"),
    ] {
        let method = format!("reft.method={method}");
        stdout(&train(path, &[&method, "train.epochs=4", "train.lr=1e-2", "head.lr=5e-3"]));
        let adapter = path.join("runs/r/adapter");
        assert!(adapter.join(file).is_file(), "{method}: no {file}");
        let summary = json(&path.join("runs/r/summary.json"));
        let losses = summary["losses"].as_array().expect("a list");
        assert!(losses[losses.len() - 1].as_f64() < losses[0].as_f64(), "{method}: {losses:?}");
        let eval = ["eval", "--adapter", "runs/r/adapter", "--data", "dev.csv", "--json"];
        let report: Value = serde_json::from_str(&stdout(&reft(path, &eval))).expect("JSON");
        assert_eq!(report["metrics"], summary["after"], "{method}");
    }
}

/// LoRA of a language model: trained, saved, and used by the other verbs.
#[test]
fn lora_serves_a_language_model_as_well() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let args =
        ["train", recipe.to_str().expect("UTF-8"), "reft.method=lora", "reft.rank=4", "train.steps=30"];
    let more = ["data.eval_rows=8", "eval.exact_match=false", "train.eval_every=0"];
    let text = stdout(&reft(folder.path(), &[&args[..], &more].concat()));
    assert_says(&text, &["trainable%"]);
    let summary = json(&folder.path().join("runs/quickstart/summary.json"));
    let nll = |when: &str| summary[when]["nll"].as_f64().expect("a number");
    assert!(nll("after") < 0.9 * nll("before"), "{} against {}", nll("after"), nll("before"));
    let generate = |extra: &[&str]| {
        let args = ["generate", "--prompt", "the hungry duck", "--max-new-tokens", "8"];
        stdout(&reft(folder.path(), &[&args[..], extra].concat()))
    };
    let tuned = generate(&["--adapter", "runs/quickstart/adapter"]);
    assert_ne!(tuned, generate(&["--model", "embedded:tiny"]));
}

#[test]
fn a_regression_learns_a_number() {
    let folder = prepared();
    let path = folder.path();
    let rows = |n, seed| {
        let number = |label| if label == "praise" { "0.9" } else { "0.1" };
        let lines = texts(n, seed).into_iter().map(|(text, label)| format!("{text}\t{}\n", number(label)));
        lines.fold(String::from("text\tscore\n"), |all, line| all + &line)
    };
    fs::write(path.join("train.tsv"), rows(200, 3)).expect("written");
    fs::write(path.join("dev.tsv"), rows(60, 4)).expect("written");
    let data = ["data.task=regression", "data.train=train.tsv", "data.eval=dev.tsv", "data.label=score"];
    stdout(&train(path, &[&data[..], &["eval.protocol=reft-paper", "eval.metric=spearman"]].concat()));
    let summary = json(&path.join("runs/r/summary.json"));
    assert!(summary["after"]["pearson"].as_f64().expect("a number") > 0.8, "{}", summary["after"]);
    assert!(summary["selection"]["spearman"].is_number());
    let line = stdout(&reft(path, &["predict", "--adapter", "runs/r/adapter", "--data", "dev.tsv"]));
    assert!(line.starts_with("{\"value\":"), "{line}");
    fs::write(path.join("dev.tsv"), "text\tscore\na good cat\thigh\n").expect("written");
    let message = refusal(&train(path, &data));
    assert_says(&message, &["dev.tsv, line 2", "\"score\" is \"high\", expected a number"]);
}

/// Training ends when the held-out rows no longer get better, and the best is kept.
#[test]
fn patience_ends_training() {
    let folder = prepared();
    let text = stdout(&train(folder.path(), &["train.epochs=200", "train.patience=3"]));
    assert_says(&text, &["no better for 3 evaluations"]);
    let summary = json(&folder.path().join("runs/r/summary.json"));
    assert!(summary["steps"].as_u64() < Some(2000), "{}", summary["steps"]);
}

#[test]
fn unusable_tables_are_refused_with_file_and_line() {
    let folder = prepared();
    let path = folder.path();
    let refused = |file: &str, text: &str, overrides: &[&str]| {
        fs::write(path.join(file), text).expect("written");
        refusal(&train(path, overrides))
    };
    let says = |message: String, parts: &[&str]| {
        assert_says(&message, parts);
        assert!(!path.join("runs").exists(), "nothing may be written: {message}");
    };
    let eval = |file: &str| format!("data.eval={file}");
    says(
        refused("new.csv", "text,label\na cat,praise\na dog,envy\n", &[&eval("new.csv")]),
        &["new.csv, line 3: label \"envy\" was not seen in training; known are blame, praise"],
    );
    says(
        refused("body.csv", "body,label\na cat,praise\n", &["data.train=body.csv"]),
        &["body.csv, line 2", "there are body, label", "data.text"],
    );
    says(
        refused("gap.csv", "text,label\n  ,praise\n", &[&eval("gap.csv")]),
        &["gap.csv, line 2", "\"text\" is empty"],
    );
    says(
        refused("short.tsv", "text\tlabel\na cat\tpraise\na dog\n", &[&eval("short.tsv")]),
        &["short.tsv, line 3: 1 fields, expected 2: text, label"],
    );
    says(
        refused("one.csv", "text,label\na cat,praise\na dog,praise\n", &["data.train=one.csv"]),
        &["only the label \"praise\""],
    );
    says(refused("x", "", &["data.task=glue/sst3"]), &["did you mean \"glue/sst2\"?"]);
    says(refused("x", "", &["data.eval=nowhere.tsv"]), &["nowhere.tsv"]);
    says(
        refused("x", "", &["reft.method=lora", "lora.targets=[\"q_proj\"]"]),
        &["\"q_proj\"", "attention.self.query"],
    );
    says(refused("x", "", &["model=embedded:tiny"]), &["model_type is \"llama\"", "roberta"]);
    says(refused("x", "", &["data.max_length=1000"]), &["data.max_length is 1000", "38"]);
    // A bare quote is a character like any other in GLUE's files.
    let quoted = "sentence\tlabel\n\" a good cat\t1\nthe \"bad\" dog\t0\n\"fine\t1\n";
    fs::write(path.join("quoted.tsv"), quoted).expect("written");
    let glue = ["data.task=glue/sst2", "data.train=quoted.tsv", "data.eval=quoted.tsv", "train.epochs=1"];
    assert_says(&stdout(&train(path, &glue)), &["train      3 rows", "labels     2 (negative, positive)"]);
}

#[test]
fn an_encoder_without_a_padding_token_is_refused() {
    let folder = prepared();
    let config = folder.path().join("model/config.json");
    let mut value = json(&config);
    value["pad_token_id"] = Value::Null;
    fs::write(&config, value.to_string()).expect("written");
    assert_says(&refusal(&train(folder.path(), &[])), &["config.json", "pad_token_id is absent"]);
}
