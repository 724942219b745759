//! The `reft` program as a user meets it: a whole run, and everything that can be wrong with the input.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};
use tempfile::TempDir;

mod classify;
mod devices;
mod precision;

const REFT: &str = env!("CARGO_BIN_EXE_reft");

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn reft(folder: &Path, args: &[&str]) -> Output {
    Command::new(REFT).args(args).current_dir(folder).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The message of a refusal: one error, no panic.
fn refusal(output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "must be refused: {message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn workplace() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// A short run of the quick start.
fn short_run(folder: &Path, extra: &[&str]) -> Output {
    let recipe = repository("recipes/quickstart.toml");
    let mut args = vec!["train", recipe.to_str().expect("UTF-8"), "train.steps=2", "train.log_every=1"];
    args.extend(["data.eval_rows=4", "eval.max_new_tokens=4", "run.overwrite=false"]);
    args.extend(extra);
    reft(folder, &args)
}

/// A copy of the embedded model as a folder.
fn model_folder(at: &Path) -> PathBuf {
    let folder = at.join("model");
    fs::create_dir_all(&folder).expect("created");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(repository("crates/reft-train/assets/tiny").join(file), folder.join(file)).expect("copied");
    }
    folder
}

/// Rewrites a model's tensors.
fn change_tensors(folder: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if change(&name, &mut shape, &mut data) {
            tensors.push((name, shape, data));
        }
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(Dtype::F16, shape.clone(), data).expect("fits"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("written");
}

fn generate_with(model: &Path, folder: &Path) -> String {
    refusal(&reft(folder, &["generate", "--model", model.to_str().expect("UTF-8"), "--prompt", "x"]))
}

#[test]
fn the_quickstart_teaches_what_it_promises() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let output = reft(folder.path(), &["train", recipe.to_str().expect("UTF-8")]);
    let text = stdout(&output);
    assert_says(&text, &["trainable%", "exact match", "adapter: runs/quickstart/adapter", "next:"]);
    let run = folder.path().join("runs/quickstart");
    let summary = json(&run.join("summary.json"));
    let exact = |when: &str| summary[when]["exact_match"].as_f64().expect("a number");
    assert!(exact("before") <= 0.2, "{}", exact("before"));
    assert!(exact("after") >= 0.9, "{}", exact("after"));
    assert!(summary["share"].as_f64().expect("a number") <= 0.005);
    assert!(summary["after"]["nll"].as_f64() < summary["before"]["nll"].as_f64());
    assert_eq!(
        summary["losses"].as_array().expect("a list").len() as u64,
        summary["steps"].as_u64().expect("a number")
    );

    // The resolved recipe gives the same run again, bit for bit.
    let adapter = fs::read(run.join("adapter/adapter.safetensors")).expect("readable");
    let again = reft(folder.path(), &["train", "runs/quickstart/recipe.toml", "run.name=again"]);
    stdout(&again);
    assert_eq!(
        fs::read(folder.path().join("runs/again/adapter/adapter.safetensors")).expect("readable"),
        adapter
    );

    // What the next commands print.
    let prompt = "the small red fox runs in the garden";
    let text = stdout(&reft(
        folder.path(),
        &[
            "generate",
            "--adapter",
            "runs/quickstart/adapter",
            "--greedy",
            "--prompt",
            "the old queen sings on the bridge",
        ],
    ));
    assert_eq!(text.trim(), "la vieille reine chante sur le pont");
    let base = stdout(&reft(
        folder.path(),
        &[
            "generate",
            "--model",
            "embedded:tiny",
            "--greedy",
            "--template",
            "{{ instruction }}\n",
            "--prompt",
            prompt,
        ],
    ));
    assert_says(&base, &["Yes, the"]);
    let text = stdout(&reft(folder.path(), &["inspect", "runs/quickstart/adapter"]));
    assert_says(&text, &["Loreft", "embedded:tiny", "layers.0.block_output"]);
    let text = stdout(&reft(
        folder.path(),
        &["eval", "--adapter", "runs/quickstart/adapter", "--data", "embedded:french-eval", "--json"],
    ));
    let eval: Value = serde_json::from_str(&text).expect("JSON");
    let difference =
        eval["nll"].as_f64().expect("a number") - summary["after"]["nll"].as_f64().expect("a number");
    assert!(difference.abs() < 1e-6);
    assert_eq!(eval["rows"].as_array().expect("rows").len(), 200);
    let mut chat = Command::new(REFT)
        .args(["chat", "--adapter", "runs/quickstart/adapter", "--greedy"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut questions = chat.stdin.take().expect("piped");
    std::io::Write::write_all(&mut questions, b"the old queen sings on the bridge\n\n").expect("written");
    drop(questions);
    let answer = chat.wait_with_output().expect("ended");
    assert_eq!(stdout(&answer).trim(), "la vieille reine chante sur le pont");
}

#[test]
fn a_run_folder_is_never_overwritten_unasked() {
    let folder = workplace();
    let text = stdout(&short_run(folder.path(), &[]));
    assert_says(&text, &["step     1/2", "held-out rows"]);
    let run = folder.path().join("runs/quickstart");
    for file in [
        "recipe.toml",
        "metrics.jsonl",
        "summary.json",
        "adapter/adapter.json",
        "adapter/adapter.safetensors",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let before = fs::read(run.join("summary.json")).expect("readable");
    assert_says(
        &refusal(&short_run(folder.path(), &[])),
        &["runs/quickstart", "run.name", "run.overwrite=true"],
    );
    assert_eq!(fs::read(run.join("summary.json")).expect("readable"), before);
    stdout(&short_run(folder.path(), &["run.overwrite=true"]));
    fs::create_dir_all(folder.path().join("runs/mine")).expect("created");
    fs::write(folder.path().join("runs/mine/thesis.tex"), "mine").expect("written");
    assert_says(
        &refusal(&short_run(folder.path(), &["run.name=mine", "run.overwrite=true"])),
        &["not the folder of a run"],
    );
}

#[test]
fn damaged_models_are_refused() {
    let folder = workplace();
    let at = folder.path();
    let model = model_folder(at);
    let weights = fs::read(model.join("model.safetensors")).expect("readable");

    fs::remove_file(model.join("model.safetensors")).expect("removed");
    assert_says(&generate_with(&model, at), &["no weights", "model.safetensors", "tokenizer.json"]);

    fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).expect("written");
    assert_says(&generate_with(&model, at), &["model.safetensors", "download it again"]);
    fs::write(model.join("model.safetensors"), "").expect("written");
    assert_says(&generate_with(&model, at), &["not a complete safetensors file"]);

    fs::write(model.join("model.safetensors"), &weights).expect("written");
    change_tensors(&model, |name, shape, data| {
        if name == "model.norm.weight" {
            shape[0] -= 1;
            data.truncate(data.len() - 2);
        }
        if name == "model.layers.1.mlp.up_proj.weight" {
            data[..2].copy_from_slice(&[0x00, 0x7e]);
        }
        name != "model.layers.2.self_attn.q_proj.weight"
    });
    let message = generate_with(&model, at);
    assert_says(
        &message,
        &[
            "missing: model.layers.2.self_attn.q_proj.weight",
            "model.norm.weight: shape [127], expected [128]",
            "model.layers.1.mlp.up_proj.weight: 1 values are NaN or infinite",
        ],
    );

    fs::write(model.join("model.safetensors"), &weights).expect("written");
    let index = serde_json::json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).expect("written");
    assert_says(&generate_with(&model, at), &["missing file: model-00001-of-00002.safetensors"]);
    fs::remove_file(model.join("model.safetensors.index.json")).expect("removed");

    let config = fs::read_to_string(model.join("config.json")).expect("readable");
    fs::write(model.join("config.json"), config.replace("\"silu\"", "\"gelu\"")).expect("written");
    assert_says(&generate_with(&model, at), &["config.json", "hidden_act is \"gelu\""]);
    assert_says(&generate_with(Path::new("nowhere"), at), &["nowhere", "no such folder"]);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &[]));
    let adapter = "runs/quickstart/adapter";
    let model = model_folder(folder.path());
    let with_model = || {
        refusal(&reft(
            folder.path(),
            &["generate", "--model", model.to_str().expect("UTF-8"), "--adapter", adapter, "--prompt", "x"],
        ))
    };
    change_tensors(&model, |name, _, data| {
        if name == "model.embed_tokens.weight" {
            data[..64].fill(0);
        }
        true
    });
    assert_says(&with_model(), &[adapter, "fingerprint", "embedded:tiny"]);
    let file = folder.path().join(adapter).join("adapter.json");
    let text = fs::read_to_string(&file).expect("readable");
    fs::write(&file, text.replace("\"layer\": 5", "\"layer\": 6")).expect("written");
    assert_says(&with_model(), &["missing: layers.6", "unexpected: layers.5"]);
}

#[test]
fn unusable_data_are_refused_with_file_and_line() {
    let folder = workplace();
    let with_data = |text: &str, extra: &[&str]| {
        fs::write(folder.path().join("d.jsonl"), text).expect("written");
        let mut args = vec!["data.train=d.jsonl"];
        args.extend(extra);
        refusal(&short_run(folder.path(), &args))
    };
    assert_says(&with_data("", &[]), &["d.jsonl: no rows"]);
    let good = "{\"instruction\": \"a\", \"output\": \"b\"}\n";
    assert_says(
        &with_data(&format!("{good}{good}{{\"instruction\": "), &[]),
        &["d.jsonl, line 3", "invalid JSON"],
    );
    assert_says(
        &with_data(&format!("{good}{{\"instruction\": \"a\"}}"), &[]),
        &["d.jsonl, line 2", "no answer"],
    );
    assert_says(&with_data(&format!("{good}{{\"output\": \"a\"}}"), &[]), &["line 2"]);
    assert_says(&with_data(good, &["data.max_length=2"]), &["none of the 1 rows", "data.max_length"]);
    assert_says(&with_data(good, &["data.max_length=999"]), &["context holds 128"]);
    assert_says(&with_data(good, &["data.template=nonsense"]), &["nonsense", "alpaca"]);
    assert_says(&with_data(good, &["data.template=chat"]), &["chat_template"]);
    assert_says(&refusal(&short_run(folder.path(), &["data.train=missing.json"])), &["missing.json"]);
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
}

#[test]
fn impossible_recipes_are_refused() {
    let folder = workplace();
    let with = |change: &str| refusal(&short_run(folder.path(), &[change]));
    assert_says(&with("reft.rank=129"), &["rank 129 is larger than the hidden size 128"]);
    assert_says(&with("reft.layers=6"), &["layer 6 does not exist", "6 layers"]);
    assert_says(&with("reft.positions=m3"), &["m3", "f7+l7"]);
    assert_says(&with("train.learning_rate=1"), &["learning_rate"]);
    assert_says(&with("train.epoch=1"), &["did you mean `epochs`?"]);
    assert_says(&with("device=tpu"), &["tpu", "cpu"]);
    assert_says(&with("model=nobody"), &["nobody", "no such folder"]);
    assert_says(&refusal(&reft(folder.path(), &["train", "missing.toml"])), &["missing.toml"]);
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let folder = workplace();
    let long = "fox ".repeat(200);
    let message = refusal(&reft(folder.path(), &["generate", "--model", "embedded:tiny", "--prompt", &long]));
    assert_says(&message, &["prompt 0 has", "context holds 128"]);
    assert_says(&refusal(&reft(folder.path(), &["generate", "--prompt", "x"])), &["--model"]);
}

/// A run that would not end soon, once the log has the line of that step, and the rest of what it prints.
fn endless_run(folder: &Path, step: usize) -> (Child, Lines<BufReader<ChildStdout>>) {
    let recipe = repository("recipes/quickstart.toml");
    let mut child = Command::new(REFT)
        .args(["train", recipe.to_str().expect("UTF-8"), "train.steps=100000", "train.log_every=1"])
        .args(["eval.exact_match=false", "data.eval_rows=4"])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let begins = format!("step {step:>5}");
    let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(&begins)));
    assert!(line.is_some(), "training must begin");
    (child, lines)
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_it_learned() {
    let folder = workplace();
    let (mut child, lines) = endless_run(folder.path(), 3);
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(signalled.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(child.wait().expect("ended").success());
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    let run = folder.path().join("runs/quickstart");
    assert_eq!(json(&run.join("summary.json"))["ended"], "interrupted");
    let text = stdout(&reft(
        folder.path(),
        &["generate", "--adapter", "runs/quickstart/adapter", "--prompt", "x", "--max-new-tokens", "2"],
    ));
    assert!(!text.is_empty());
}

/// A limit on the size of files stands in for a full disk: writes fail in the same way.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_no_broken_file() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{REFT}' train '{}' train.steps=2 data.eval_rows=4 eval.exact_match=false",
        recipe.display()
    );
    // 16 blocks of 512 or 1024 bytes: enough for the recipe, not for the adapter.
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().expect("sh");
    assert_says(&refusal(&output), &["adapter.safetensors"]);
    let left: Vec<String> = fs::read_dir(folder.path().join("runs/quickstart/adapter"))
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "half-written files: {left:?}");
}
