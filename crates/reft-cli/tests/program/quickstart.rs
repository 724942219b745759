//! The quick start, from training to chat.

use super::support::*;
use serde_json::Value;
use std::fs;

/// Numbers of the whole output that differ between machines or runs.
const MEASURED: [(&str, &str); 8] = [
    (r"loss \d+\.\d{4}", "loss [loss]"),
    (r"nll \d+\.\d{4}", "nll [nll]"),
    (r"perplexity \d+\.\d{2}", "perplexity [perplexity]"),
    (r"exact match \d+\.\d%", "exact match [share]"),
    (r"(?m)^(nll|perplexity|exact match) +[\d.%]+ +[\d.%]+$", "$1  [before]  [after]"),
    // Toward the end, the likelihood hardly changes.
    (r"(?m)^(eval +15\d  nll [^ ]+)(  \(best so far, saved\))?$", "$1  [best or not]"),
    (r"\d+ tokens/s(  \d+ MiB)?(  [\d.]+ s left)?", "[speed and memory]"),
    (r"steps in [^,]+, \[speed and memory\](, peak memory [^;]+)?", "steps in [time, speed and memory]"),
];

#[test]
fn the_quickstart_teaches_what_it_promises() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let text = stdout(&reft(folder.path(), &["train", text_of(&recipe), "device=cpu"]));
    assert_snapshot("train_quickstart", folder.path(), &text, &MEASURED);
    let run = folder.path().join("runs/quickstart");
    let summary = json(&run.join("summary.json"));
    let exact = |when: &str| summary[when]["exact_match"].as_f64().expect("a number");
    assert!(exact("before") <= 0.2, "{}", exact("before"));
    assert!(exact("after") >= 0.9, "{}", exact("after"));
    assert!(summary["share"].as_f64().expect("a number") <= 0.005);
    let nll = |when: &str| summary[when]["nll"].as_f64().expect("a number");
    assert!(nll("after") < nll("before"), "{} after, {} before", nll("after"), nll("before"));
    let losses = summary["losses"].as_array().expect("a list").len() as u64;
    assert_eq!(Some(losses), summary["steps"].as_u64());

    // The resolved recipe gives the same run again, bit for bit.
    let adapter = fs::read(run.join("adapter/adapter.safetensors")).expect("readable");
    stdout(&reft(folder.path(), &["train", "runs/quickstart/recipe.toml", "run.name=again"]));
    let again = folder.path().join("runs/again/adapter/adapter.safetensors");
    assert_eq!(fs::read(again).expect("readable"), adapter);

    // What the next commands print.
    let generate = |args: &[&str]| {
        let output = reft(folder.path(), &[&["generate", "--device", "cpu", "--greedy"], args].concat());
        stdout(&output).trim().to_string()
    };
    let answer = generate(&["--adapter", ADAPTER, "--prompt", "the old queen sings on the bridge"]);
    assert_eq!(answer, "la vieille reine chante sur le pont");
    let base = ["--model", "embedded:tiny", "--template", "{{ instruction }}\n"];
    let answer = generate(&[&base[..], &["--prompt", "the small red fox runs in the garden"]].concat());
    assert!(answer.starts_with("Yes, the small "), "{answer}");
    let text = stdout(&reft(folder.path(), &["inspect", ADAPTER]));
    let filters = [(r"\d+\.\d{4}", "[norm]"), WRITTEN_BY];
    assert_snapshot("inspect", folder.path(), &text, &filters);
    let eval = ["eval", "--adapter", ADAPTER, "--device", "cpu", "--data", "embedded:french-eval"];
    let text = stdout(&reft(folder.path(), &[&eval[..], &["--json"]].concat()));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let difference = report["nll"].as_f64().expect("a number") - nll("after");
    assert!(difference.abs() < 1e-6, "{difference}");
    assert_eq!(report["rows"].as_array().expect("rows").len(), 200);
    let text = stdout(&reft(folder.path(), &[&eval[..], &["--exact-match", "--batch-size", "50"]].concat()));
    assert!(text.contains(&format!("exact match  {:.1} %", 100.0 * exact("after"))), "{text}");
    let filters = [(r"(nll|perplexity|exact match)( +)[\d.]+", "$1$2[value]")];
    assert_snapshot("eval_language_model", folder.path(), &text, &filters);

    // Without a chat template, each question is independent.
    let chat = ["chat", "--device", "cpu", "--adapter", ADAPTER, "--greedy"];
    let question = "the old queen sings on the bridge\n";
    let answers = reft_with_input(folder.path(), &chat, &format!("{question}{question}\n"));
    let answer = "la vieille reine chante sur le pont\n";
    assert_eq!(stdout(&answers), format!("{answer}{answer}"));
}

#[test]
fn the_device_is_chosen_and_named_unless_the_recipe_does() {
    let folder = workplace();
    let text = stdout(&short_run(folder.path(), &["device=auto", "--dry-run"]));
    let first = text.lines().next().expect("a line");
    assert!(first.starts_with("device     "), "{text}");
    let text = stdout(&short_run(folder.path(), &["--dry-run"]));
    assert!(!text.contains("device   "), "{text}");
}

#[test]
fn a_run_folder_is_never_overwritten_unasked() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &[]));
    let run = folder.path().join("runs/quickstart");
    let before = files_of(&run);
    let names: Vec<&str> = before.keys().map(|name| text_of(name)).collect();
    let expected = [
        ".reft-run",
        "adapter/adapter.json",
        "adapter/adapter.safetensors",
        "metrics.jsonl",
        "recipe.toml",
        "summary.json",
    ];
    assert_eq!(names, expected);
    let mut said = Transcript::new(folder.path());
    said.add("the same run again", &refusal(&short_run(folder.path(), &[])));
    assert_eq!(files_of(&run), before);
    stdout(&short_run(folder.path(), &["run.overwrite=true", "train.seed=7"]));
    assert_ne!(files_of(&run), before);
    fs::create_dir_all(folder.path().join("runs/mine")).expect("created");
    fs::write(folder.path().join("runs/mine/thesis.tex"), "mine").expect("written");
    let other = short_run(folder.path(), &["run.name=mine", "run.overwrite=true"]);
    said.add("overwriting a folder that is not a run", &refusal(&other));
    assert_eq!(fs::read(folder.path().join("runs/mine/thesis.tex")).expect("readable"), b"mine");
    said.check("refused_run_folders", &[]);
}

#[test]
fn a_run_that_learns_nothing_says_so() {
    let folder = workplace();
    let text = stdout(&short_run(folder.path(), &["train.steps=1", "run.name=one"]));
    let warning =
        "\nwarning: nothing will be learned: the learning rate of 1 update is 0, because train.warmup=0.1";
    assert!(text.contains(warning), "{text}");
    let text = stdout(&short_run(folder.path(), &["train.steps=1", "run.name=two", "train.warmup=0"]));
    assert!(!text.contains("warning"), "{text}");
}

#[test]
fn parameters_that_are_not_finite_are_never_saved() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &["run.name=r"]));
    let good = files_of(&folder.path().join("runs/r/adapter"));
    let changes = ["run.name=r", "run.overwrite=true", "train.lr=1e40", "train.warmup=0", "train.steps=1"];
    let message = refusal(&short_run(folder.path(), &changes));
    assert!(message.contains("has NaN or infinite values"), "{message}");
    assert_eq!(files_of(&folder.path().join("runs/r/adapter")), good, "the earlier run is back");
}
