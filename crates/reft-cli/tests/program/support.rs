//! What the tests share: running the program, preparing models and data, and comparing whole texts.

use regex::Regex;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};
use tempfile::TempDir;

pub const REFT: &str = env!("CARGO_BIN_EXE_reft");

/// What differs between machines, whatever the program was asked for.
const ALWAYS_FILTERED: [(&str, &str); 2] = [
    // The operating system's words for a missing file.
    (
        r"(No such file or directory|The system cannot find the (file|path) specified\.) \(os error \d+\)",
        "[no such file]",
    ),
    (r"reft\.exe", "reft"),
];

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    root().join(path)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

pub fn workplace() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

pub fn reft(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("the program starts")
}

pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(REFT);
    command.args(args).current_dir(folder);
    // Names of models are looked for in an empty cache, and nowhere else.
    command
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", folder.join("hub"))
        .env_remove("TRANSFORMERS_CACHE");
    command
}

/// Runs the program with this text as its standard input.
pub fn reft_with_input(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = command(folder, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("ended")
}

/// The standard output of a success.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The standard error of a refusal: one error, no panic.
pub fn refusal(output: &Output) -> String {
    let message = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "must be refused: {message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// The path as an argument.
pub fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Every file below a folder, by its path from there.
pub fn files_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        let name = PathBuf::from(path.file_name().expect("has a name"));
        if path.is_dir() {
            files.extend(files_of(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else {
            files.insert(name, fs::read(&path).expect("readable"));
        }
    }
    files
}

/// The version that an adapter names as its writer, for adapters that this program has just written.
pub const WRITTEN_BY: (&str, &str) = (r"written by   reft \d\S+,", "written by   reft [version],");

/// Compares a whole text with `snapshots/{name}.snap`, after the replacement of `filters` (regex, replacement) and of the
/// paths of `folder`, the program and the repository.
pub fn assert_snapshot(name: &str, folder: &Path, text: &str, filters: &[(&str, &str)]) {
    let mut text = text.to_string();
    let canonical = folder.canonicalize().expect("a folder");
    for (path, shown) in [
        (canonical.as_path(), "[folder]"),
        (folder, "[folder]"),
        (Path::new(REFT), "[reft]"),
        (&root(), "[repository]"),
    ] {
        text = text.replace(text_of(path), shown);
    }
    for (found, shown) in ALWAYS_FILTERED.iter().chain(filters) {
        text = Regex::new(found).expect("a regex").replace_all(&text, *shown).into_owned();
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Several things that were done and what the program said to each, as one snapshot.
pub struct Transcript<'a> {
    folder: &'a Path,
    text: String,
}

impl<'a> Transcript<'a> {
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, text: String::new() }
    }

    pub fn add(&mut self, what: &str, message: &str) {
        self.text += &format!("## {what}\n{}\n\n", message.trim_end());
    }

    pub fn check(self, name: &str, filters: &[(&str, &str)]) {
        assert_snapshot(name, self.folder, &self.text, filters);
    }
}

/// A short run of the quick start on the CPU.
pub fn short_run(folder: &Path, extra: &[&str]) -> Output {
    let recipe = repository("recipes/quickstart.toml");
    let mut args = vec!["train", text_of(&recipe), "device=cpu", "train.steps=2", "train.log_every=1"];
    args.extend(["data.eval_rows=4", "eval.max_new_tokens=4", "run.overwrite=false"]);
    args.extend(extra);
    reft(folder, &args)
}

/// The adapter of [`short_run`].
pub const ADAPTER: &str = "runs/quickstart/adapter";

/// A run that would take hours, once the log has the line of that step, and the rest of what it prints.
pub fn endless_run(folder: &Path, step: usize) -> (Child, Lines<BufReader<ChildStdout>>) {
    let recipe = repository("recipes/quickstart.toml");
    let args = ["train", text_of(&recipe), "device=cpu", "train.steps=100000", "train.log_every=1"];
    let more = ["eval.exact_match=false", "data.eval_rows=4"];
    started_run(folder, &[&args[..], &more].concat(), &format!("step {step:>5}"))
}

/// A run that has just printed a line with this beginning, and the rest of what it prints.
pub fn started_run(folder: &Path, args: &[&str], begins: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command(folder, args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(begins)));
    assert!(line.is_some(), "no line begins with {begins:?}");
    (child, lines)
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
pub fn interrupt(child: &Child) {
    let signaled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(signaled.success());
}

/// A copy of the embedded model as a folder.
pub fn model_folder(at: &Path) -> PathBuf {
    let folder = at.join("model");
    fs::create_dir_all(&folder).expect("created");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(repository("crates/reft-train/assets/tiny").join(file), folder.join(file)).expect("copied");
    }
    folder
}

/// Changes the value of a JSON file.
pub fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = json(path);
    change(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

/// Rewrites the tensors of a file: each is kept if `change` returns true.
pub fn change_tensors(path: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    let bytes = fs::read(path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in file.tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if change(&name, &mut shape, &mut data) {
            tensors.push((name, view.dtype(), shape, data));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).expect("fits"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialized")).expect("written");
}

/// Cuts the vocabulary of a model to its first `size` tokens.
pub fn cut_vocabulary(model: &Path, size: usize) {
    change_json(&model.join("config.json"), |config| config["vocab_size"] = size.into());
    change_tensors(&model.join("model.safetensors"), |name, shape, data| {
        if name.ends_with("embed_tokens.weight") || name.ends_with("word_embeddings.weight") {
            data.truncate(data.len() / shape[0] * size);
            shape[0] = size;
        }
        true
    });
}
