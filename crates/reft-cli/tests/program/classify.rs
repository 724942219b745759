//! Classification and regression as a user meets them, on a small encoder with random weights.

use super::support::*;
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
pub fn prepared() -> TempDir {
    let folder = workplace();
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("created");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(repository("tests/fixtures/encoders/roberta").join(file), model.join(file)).expect("copied");
    }
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
    write("train.csv", csv(&texts(200, 1)));
    write("dev.csv", csv(&texts(60, 2)));
    let recipe = "model = \"model\"\ndevice = \"cpu\"\nrun.name = \"r\"\nrun.overwrite = true\nreft.rank = 8\nreft.positions = \"all\"\n\
                  train.epochs = 40\ntrain.batch_size = 20\ntrain.lr = 2e-2\ntrain.eval_each_epoch = true\n\
                  train.model_dropout = 0.0\n\
                  data.task = \"classification\"\ndata.train = \"train.csv\"\ndata.eval = \"dev.csv\"\n";
    write("recipe.toml", recipe.into());
    folder
}

pub fn train(folder: &Path, overrides: &[&str]) -> Output {
    reft(folder, &[&["train", "recipe.toml"], overrides].concat())
}

/// Numbers of what training prints that differ between machines or runs, and the lines that do.
const MEASURED: [(&str, &str); 4] = [
    (r"(?m)^(step|eval ) .*\n", ""),
    (r"(?m)^(\w+) +-?\d[\d.]*%?$", "$1  [after]"),
    (r"in [\d.]+ s, \d+ tokens/s(, peak memory [^;]+)?", "in [time, speed and memory]"),
    (r"(?m)^(after +)\w.*$", "$1[metrics]"),
];

#[test]
fn a_classifier_is_trained_evaluated_and_used() {
    let folder = prepared();
    let path = folder.path();
    assert_snapshot("train_classifier", path, &stdout(&train(path, &[])), &MEASURED);
    let summary = json(&path.join("runs/r/summary.json"));
    let accuracy = summary["after"]["accuracy"].as_f64().expect("a number");
    assert!(accuracy >= 0.9, "{accuracy}");

    // The same numbers from the saved adapter.
    let eval = ["eval", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "dev.csv"];
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
    let filters = [(r"(?m)^(\w+) +-?\d\.\d{4}$", "$1  [value]"), (r"(?m)^(\w+) +\d+ +\d+$", "$1  [n]  [n]")];
    assert_snapshot("eval_classifier", path, &stdout(&reft(path, &eval)), &filters);

    // Labels and probabilities, for rows without labels.
    fs::write(path.join("new.jsonl"), "{\"text\": \"a great dog\"}\n{\"text\": \"the awful river\"}\n")
        .expect("written");
    let predict = ["predict", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "new.jsonl"];
    let lines = stdout(&reft(path, &predict));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        let [blame, praise] =
            ["blame", "praise"].map(|l| line["probabilities"][l].as_f64().expect("a number"));
        assert!((blame + praise - 1.0).abs() < 1e-6);
        assert_eq!(line["label"], if praise > blame { "praise" } else { "blame" });
    }
    let own = fs::read(path.join("new.jsonl")).expect("readable");
    let message = refusal(&reft(path, &[&predict[..], &["--output", "./new.jsonl"]].concat()));
    assert_eq!(message, "error: --output new.jsonl is the file of --data; give another name\n");
    assert_eq!(fs::read(path.join("new.jsonl")).expect("readable"), own);
    let text = stdout(&reft(path, &[&predict[..], &["--output", "out.csv"]].concat()));
    assert_eq!(text, "2 rows written to out.csv\n");
    let table = fs::read_to_string(path.join("out.csv")).expect("written");
    assert!(table.starts_with("label,p(blame),p(praise)\n") && table.lines().count() == 3, "{table}");
    let text = stdout(&reft(path, &["inspect", "runs/r/adapter"]));
    let filters = [(r"\d+\.\d{4}", "[norm]"), WRITTEN_BY];
    assert_snapshot("inspect_classifier", path, &text, &filters);
}

/// Empty texts and numbers are texts, labels are compared by value, and every row keeps its place.
#[test]
fn files_of_all_sorts_are_trained_on_and_predicted() {
    let folder = prepared();
    let path = folder.path();
    let write = |name: &str, text: &str| fs::write(path.join(name), text).expect("written");
    write("train.csv", "text;label\na good cat;1.0\na bad dog;0\n;1\na sad horse;nan\n");
    let trained = train(path, &["data.eval=train.csv", "train.epochs=1", "data.on_bad_row=skip"]);
    let text = stdout(&trained);
    for line in [
        "\nlabels     2 (0, 1)\n",
        "\ntrain      3 rows, 1 skipped because they cannot be used\n",
        "\nnote       train.csv: 1 row skipped; line 5: column \"label\" is \"nan\", which stands for no label; every row",
        "\nnote       train: 1 row with an empty text\n",
        "\nnote       3 of 3 held-out rows also occur in the training rows\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    write("new.jsonl", "{\"text\": 5}\n{\"text\": \"\"}\n{oops}\n{\"text\": \"a cat\", \"label\": true}\n");
    let predict = ["predict", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "new.jsonl"];
    assert_eq!(
        refusal(&reft(path, &predict)),
        "error: new.jsonl, line 3, column 2: invalid JSON: key must be a string\n"
    );
    let lines = stdout(&reft(path, &[&predict[..], &["--skip-bad-rows"]].concat()));
    let labels: Vec<bool> = lines.lines().map(|line| line.contains("\"probabilities\"")).collect();
    assert_eq!(labels, [true, true, false, true]);
    let eval = [
        "eval",
        "--adapter",
        "runs/r/adapter",
        "--device",
        "cpu",
        "--data",
        "new.jsonl",
        "--skip-bad-rows",
        "--json",
    ];
    let report: Value = serde_json::from_str(&stdout(&reft(path, &eval))).expect("JSON");
    assert_eq!((report["rows"].as_u64(), report["skipped"].as_u64()), (Some(1), Some(3)));
}

/// What only a classifier can do, and what it cannot do.
#[test]
fn the_other_kind_of_adapter_is_refused() {
    let folder = prepared();
    let path = folder.path();
    stdout(&train(path, &["train.epochs=1"]));
    stdout(&short_run(path, &[]));
    let mut said = Transcript::new(path);
    for args in [
        ["generate", "--adapter", "runs/r/adapter", "--prompt", "x"],
        ["chat", "--adapter", "runs/r/adapter", "--greedy", "--quant=none"],
        ["predict", "--adapter", ADAPTER, "--data", "dev.csv"],
        ["predict", "--model", "model", "--data", "dev.csv"],
    ] {
        said.add(&args.join(" "), &refusal(&reft(path, &args)));
    }
    said.check("refused_adapter_kinds", &[]);
}

#[test]
fn every_baseline_runs_in_the_same_loop() {
    let folder = prepared();
    let path = folder.path();
    let mut inspected = Transcript::new(path);
    for (method, file) in [
        ("head-only", "adapter.safetensors"),
        ("bitfit", "tuned.safetensors"),
        ("full", "tuned.safetensors"),
        ("lora", "adapter_model.safetensors"),
    ] {
        let changed = format!("reft.method={method}");
        stdout(&train(path, &[&changed, "train.epochs=4", "train.lr=1e-2", "head.lr=5e-3"]));
        let adapter = path.join("runs/r/adapter");
        assert!(adapter.join(file).is_file(), "{method}: no {file}");
        let summary = json(&path.join("runs/r/summary.json"));
        let losses = summary["losses"].as_array().expect("a list");
        assert!(losses[losses.len() - 1].as_f64() < losses[0].as_f64(), "{method}: {losses:?}");
        let eval = ["eval", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "dev.csv", "--json"];
        let report: Value = serde_json::from_str(&stdout(&reft(path, &eval))).expect("JSON");
        assert_eq!(report["metrics"], summary["after"], "{method}");
        inspected.add(method, &stdout(&reft(path, &["inspect", "runs/r/adapter"])));
    }
    inspected.check("inspect_baselines", &[WRITTEN_BY]);
}

/// LoRA of a language model: trained, saved, and used by the other verbs.
#[test]
fn lora_serves_a_language_model_as_well() {
    let folder = workplace();
    let lora = ["reft.method=lora", "reft.rank=4", "train.steps=30", "train.log_every=30"];
    let more = ["data.eval_rows=8", "eval.exact_match=false", "train.eval_every=0"];
    let text = stdout(&short_run(folder.path(), &[&lora[..], &more].concat()));
    let counts = "\ntrainable lora params: 58,368 || trainable head params: 0\nmodel params: ";
    assert!(text.contains(counts), "{text}");
    let summary = json(&folder.path().join("runs/quickstart/summary.json"));
    let nll = |when: &str| summary[when]["nll"].as_f64().expect("a number");
    assert!(nll("after") < 0.9 * nll("before"), "{} against {}", nll("after"), nll("before"));
    let generate = |extra: &[&str]| {
        let args = [
            "generate",
            "--device",
            "cpu",
            "--greedy",
            "--prompt",
            "the hungry duck",
            "--max-new-tokens",
            "8",
        ];
        stdout(&reft(folder.path(), &[&args[..], extra].concat()))
    };
    let tuned = generate(&["--adapter", ADAPTER]);
    assert_ne!(tuned, generate(&["--model", "embedded:tiny", "--template", "{{ instruction }}\n"]));
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
    for line in line.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["value"].as_f64().is_some_and(|value| (-1.0..2.0).contains(&value)), "{line}");
    }
    fs::write(path.join("dev.tsv"), "text\tscore\na good cat\thigh\n").expect("written");
    assert_snapshot("refused_regression_target", path, &refusal(&train(path, &data)), &[]);
}

/// Training ends when the score of the held-out rows no longer improves, and the best adapter is kept.
#[test]
fn patience_ends_training() {
    let folder = prepared();
    let text = stdout(&train(folder.path(), &["train.epochs=200", "train.patience=3"]));
    let summary = json(&folder.path().join("runs/r/summary.json"));
    assert_eq!(summary["ended"], "no-longer-better");
    let steps = summary["steps"].as_u64().expect("a number");
    assert!(steps < 2000, "{steps}");
    let says = format!("\nstopped early after {steps} steps: no improvement for 3 evaluations\n");
    assert!(text.contains(&says), "{text}");
}

#[test]
fn unusable_tables_are_refused_with_file_and_line() {
    let folder = prepared();
    let path = folder.path();
    let mut said = Transcript::new(path);
    let mut refused = |what: &str, file: &str, text: &str, overrides: &[&str]| {
        fs::write(path.join(file), text).expect("written");
        said.add(what, &refusal(&train(path, overrides)));
        assert!(!path.join("runs").exists(), "{what}: nothing may be written");
    };
    let unknown = "text,label\na cat,praise\na dog,envy\n";
    refused("a label that was not trained", "new.csv", unknown, &["data.eval=new.csv"]);
    refused("another text column", "body.csv", "body,label\na cat,praise\n", &["data.train=body.csv"]);
    refused("another label column", "tag.csv", "text,tag\na cat,praise\n", &["data.train=tag.csv"]);
    let null =
        "{\"text\": null, \"label\": \"praise\"}\n{\"text\": \"a\", \"label\": null}\n{\"text\": \"a\"}\n";
    refused("rows without a text or a label", "gap.jsonl", null, &["data.eval=gap.jsonl"]);
    let short = "text\tlabel\na cat\tpraise\na dog\n";
    refused("a short line", "short.tsv", short, &["data.eval=short.tsv"]);
    let one = "text,label\na cat,praise\na dog,praise\n";
    refused("a single label", "one.csv", one, &["data.train=one.csv"]);
    let commas = "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"b\", \"label\": 1},\n{\"text\": \"c\", \"label\": 0}\n";
    refused(
        "a single label in the rows that can be read",
        "commas.jsonl",
        commas,
        &["data.train=commas.jsonl"],
    );
    for change in [
        "data.task=glue/sst3",
        "data.eval=nowhere.tsv",
        "model=embedded:tiny",
        "data.max_length=1000",
        "data.text=[]",
        "eval.metric=pearson",
    ] {
        refused(change, "unused", "", &[change]);
    }
    let target = "lora.targets=[\"q_proj\"]";
    refused(target, "unused", "", &["reft.method=lora", target]);
    said.check("refused_tables", &[]);
}

/// A bare quote is a character like any other in GLUE's files.
#[test]
fn glue_files_may_have_bare_quotes() {
    let folder = prepared();
    let quoted = "sentence\tlabel\n\" a good cat\t1\nthe \"bad\" dog\t0\n\"fine\t1\n";
    fs::write(folder.path().join("quoted.tsv"), quoted).expect("written");
    let glue = ["data.task=glue/sst2", "data.train=quoted.tsv", "data.eval=quoted.tsv", "train.epochs=1"];
    let text = stdout(&train(folder.path(), &glue));
    assert!(
        text.contains("\nlabels     2 (negative, positive)\ntrain      3 rows\nheld out   3 rows\n"),
        "{text}"
    );
}

#[test]
fn an_encoder_with_an_impossible_padding_token_is_refused() {
    let folder = prepared();
    change_json(&folder.path().join("model/config.json"), |config| config["pad_token_id"] = 9_999.into());
    let message = refusal(&train(folder.path(), &[]));
    assert_snapshot("refused_encoder_with_impossible_padding_token", folder.path(), &message, &[]);
}

/// A tokenizer with more tokens than the encoder has embeddings.
#[test]
fn tokens_that_the_encoder_does_not_have_are_refused() {
    let folder = prepared();
    let path = folder.path();
    stdout(&train(path, &["train.epochs=1"]));
    cut_vocabulary(&path.join("model"), 30);
    let mut said = Transcript::new(path);
    said.add("train", &refusal(&train(path, &["run.name=other"])));
    assert!(!path.join("runs/other").exists(), "nothing may be written");
    said.check("refused_tokens_of_an_encoder", &[]);
}
