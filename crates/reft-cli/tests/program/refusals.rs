//! Input that cannot be used: each is refused with one error, and nothing is written.

use super::support::*;
use std::{fs, path::Path};

fn generate_with(model: &Path, folder: &Path) -> String {
    refusal(&reft(folder, &["generate", "--model", text_of(model), "--device", "cpu", "--prompt", "x"]))
}

fn nothing_is_written(folder: &Path) {
    assert!(!folder.join("runs").exists(), "a refused run must leave nothing behind");
}

#[test]
fn damaged_models_are_refused() {
    let folder = workplace();
    let at = folder.path();
    let model = model_folder(at);
    let file = model.join("model.safetensors");
    let weights = fs::read(&file).expect("readable");
    let mut said = Transcript::new(at);

    fs::remove_file(&file).expect("removed");
    said.add("no weights", &generate_with(&model, at));
    fs::write(&file, &weights[..weights.len() / 2]).expect("written");
    said.add("half a file of weights", &generate_with(&model, at));
    fs::write(&file, "").expect("written");
    said.add("an empty file of weights", &generate_with(&model, at));

    fs::write(&file, &weights).expect("written");
    change_tensors(&file, |name, shape, data| {
        if name == "model.norm.weight" {
            shape[0] -= 1;
            data.truncate(data.len() - 2);
        }
        if name == "model.layers.1.mlp.up_proj.weight" {
            data[..2].copy_from_slice(&[0x00, 0x7e]);
        }
        name != "model.layers.2.self_attn.q_proj.weight"
    });
    said.add("three wrong tensors", &generate_with(&model, at));

    fs::remove_file(&file).expect("removed");
    let index = serde_json::json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).expect("written");
    said.add("an index that names a missing file", &generate_with(&model, at));
    fs::remove_file(model.join("model.safetensors.index.json")).expect("removed");

    fs::write(&file, &weights).expect("written");
    let config = model.join("config.json");
    let good = fs::read(&config).expect("readable");
    change_json(&config, |config| config["num_hidden_layers"] = 30_000_000.into());
    said.add("more blocks than the files hold", &generate_with(&model, at));
    fs::write(&config, &good).expect("written");
    change_json(&config, |config| config["intermediate_size"] = 1_000_000_000.into());
    said.add("a size beyond the files", &generate_with(&model, at));
    fs::write(&config, &good).expect("written");
    change_json(&config, |config| {
        config["quantization_config"] = serde_json::json!({"quant_method": "awq", "bits": 4});
    });
    said.add("a quantized model", &generate_with(&model, at));
    fs::write(&config, &good).expect("written");
    for (what, json) in
        [("a broken generation_config.json", "{"), ("an impossible end", r#"{"eos_token_id": 1e9}"#)]
    {
        fs::write(model.join("generation_config.json"), json).expect("written");
        said.add(what, &generate_with(&model, at));
    }
    fs::remove_file(model.join("generation_config.json")).expect("removed");
    fs::write(&config, "").expect("written");
    said.add("an empty config.json", &generate_with(&model, at));
    fs::remove_file(&config).expect("removed");
    fs::write(model.join("adapter_config.json"), r#"{"base_model_name_or_path": "some/base"}"#)
        .expect("written");
    said.add("an adapter in place of a model", &generate_with(&model, at));
    fs::remove_file(model.join("adapter_config.json")).expect("removed");
    said.add("an address", &generate_with(Path::new("https://huggingface.co/some/model/tree/v1"), at));
    fs::write(&config, &good).expect("written");
    change_json(&config, |config| config["hidden_act"] = "gelu".into());
    said.add("another activation", &generate_with(&model, at));
    said.add("a file instead of a folder", &generate_with(&file, at));
    said.add("no such folder", &generate_with(Path::new("no/such/folder"), at));
    said.check("refused_models", &[(r"found [^;]*config\.json[^;]*;", "found [files];")]);
}

#[test]
fn unusable_data_are_refused_with_file_and_line() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    let mut with_data = |what: &str, text: &str, extra: &[&str]| {
        fs::write(folder.path().join("d.jsonl"), text).expect("written");
        said.add(what, &refusal(&short_run(folder.path(), &[&["data.train=d.jsonl"], extra].concat())));
    };
    let good = "{\"instruction\": \"a\", \"output\": \"b\"}\n";
    with_data("an empty file", "", &[]);
    with_data("a line that ends too soon", &format!("{good}{good}{{\"instruction\": "), &[]);
    with_data("a row without an answer", &format!("{good}{{\"instruction\": \"a\"}}"), &[]);
    with_data("a row without a prompt", &format!("{good}{{\"output\": \"a\"}}"), &[]);
    for extra in ["data.max_length=2", "data.max_length=999", "data.template=nonsense", "data.template=chat"]
    {
        with_data(extra, good, &[extra]);
    }
    with_data("a missing file", good, &["data.train=missing.json"]);
    let recipe =
        "model = \"embedded:tiny\"\nrun.name = \"r\"\ndata.train = \"d.jsonl\"\ndata.eval_rows = 1\n";
    fs::write(folder.path().join("r.toml"), recipe).expect("written");
    said.add("one row, which is held out", &refusal(&reft(folder.path(), &["train", "r.toml"])));
    said.check("refused_data", &[]);
    nothing_is_written(folder.path());
}

#[test]
fn impossible_recipes_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    for change in [
        "reft.rank=129",
        "reft.layers=6",
        "reft.positions=m3",
        "reft.method=lorft",
        "reft.dropout=1.5",
        "train.learning_rate=1",
        "train.epoch=1",
        "train.lr=-1",
        "train.batch_size=0",
        "train.lr",
        "run.name=../x",
        "device=tpu",
        "model=nobody",
    ] {
        said.add(change, &refusal(&short_run(folder.path(), &[change])));
    }
    fs::write(folder.path().join("bad.toml"), "model = \"m\"\n[train]\nbatchsize = 1\n").expect("written");
    said.add("a misspelled key in the file", &refusal(&reft(folder.path(), &["train", "bad.toml"])));
    fs::write(folder.path().join("bad.toml"), "model = \n").expect("written");
    said.add("a file that is not TOML", &refusal(&reft(folder.path(), &["train", "bad.toml"])));
    said.add("a missing file", &refusal(&reft(folder.path(), &["train", "missing.toml"])));
    said.check("refused_recipes", &[]);
    nothing_is_written(folder.path());
}

#[test]
fn unusable_prompts_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    let mut generate = |what: &str, args: &[&str]| {
        let output = reft(folder.path(), &[&["generate", "--device", "cpu"], args].concat());
        said.add(what, &refusal(&output));
    };
    let model = ["--model", "embedded:tiny"];
    generate("no model", &["--prompt", "x"]);
    generate("a missing file", &[&model[..], &["--data", "missing.jsonl"]].concat());
    generate("an adapter that does not exist", &["--adapter", "nowhere", "--prompt", "x"]);
    generate(
        "a template without the field",
        &[&model[..], &["--template", "{{ question }}", "--prompt", "x"]].concat(),
    );
    said.check("refused_prompts", &[]);
}

/// A tokenizer with more tokens than the model has embeddings.
#[test]
fn tokens_that_the_model_does_not_have_are_refused_with_file_and_line() {
    let folder = workplace();
    let model = model_folder(folder.path());
    cut_vocabulary(&model, 100);
    // Single characters are among the first tokens, whole words are not.
    let rows =
        "{\"instruction\": \"z\", \"output\": \"z\"}\n{\"instruction\": \"the river\", \"output\": \"z\"}\n";
    fs::write(folder.path().join("d.jsonl"), rows).expect("written");
    fs::write(folder.path().join("d.json"), format!("[{}]", rows.trim().replace('\n', ",")))
        .expect("written");
    fs::write(folder.path().join("good.jsonl"), rows.lines().next().expect("a line")).expect("written");
    let mut said = Transcript::new(folder.path());
    for [train, eval] in [["d.jsonl", "good.jsonl"], ["d.json", "good.jsonl"], ["good.jsonl", "d.jsonl"]] {
        let (train, eval) = (format!("data.train={train}"), format!("data.eval={eval}"));
        let changes = ["model=model", "data.template={{ instruction }}", &train, &eval];
        said.add(&format!("train {train} {eval}"), &refusal(&short_run(folder.path(), &changes)));
    }
    nothing_is_written(folder.path());
    for verb in ["eval", "generate"] {
        let args = [
            verb,
            "--model",
            "model",
            "--device",
            "cpu",
            "--template",
            "{{ instruction }}",
            "--data",
            "d.jsonl",
        ];
        said.add(verb, &refusal(&reft(folder.path(), &args)));
    }
    let args = ["generate", "--model", "model", "--device", "cpu", "--prompt", "the river"];
    said.add("generate a prompt", &refusal(&reft(folder.path(), &args)));
    said.check("refused_tokens", &[]);
}

/// Answers that a model is trained on end in its end token, so there must be one.
#[test]
fn tokenizers_without_a_usable_end_token_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    let mut train = |what: &str, change: &dyn Fn(&Path)| {
        let model = model_folder(folder.path());
        change(&model);
        said.add(what, &refusal(&short_run(folder.path(), &["model=model"])));
    };
    train("a name without an id", &|model| {
        change_json(&model.join("tokenizer_config.json"), |config| config["eos_token"] = "<|im_end|>".into());
    });
    train("an id without an embedding", &|model| {
        let token = serde_json::json!({"content": "<|im_end|>", "special": true});
        let n = json(&model.join("config.json"))["vocab_size"].clone();
        change_json(&model.join("tokenizer_config.json"), |config| {
            config["eos_token"] = "<|im_end|>".into();
            config["added_tokens_decoder"] = serde_json::json!({n.to_string(): token});
        });
    });
    train("no name and no id", &|model| {
        change_json(&model.join("tokenizer_config.json"), |config| *config = serde_json::json!({}));
        change_json(&model.join("config.json"), |config| {
            config["eos_token_id"] = serde_json::Value::Null;
            config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
        });
    });
    train("a number instead of a name", &|model| {
        change_json(&model.join("tokenizer_config.json"), |config| config["eos_token"] = 2.into());
    });
    train("no tokenizer.json", &|model| {
        fs::rename(model.join("tokenizer.json"), model.join("tokenizer.model")).expect("renamed");
    });
    said.check("refused_tokenizers", &[]);
    nothing_is_written(folder.path());
}

/// Numbers far beyond any use mean as much as there is, or are refused; none of them may overflow.
#[test]
fn absurd_numbers_do_no_harm() {
    let folder = workplace();
    let trained = |name: &str, changes: &[&str]| {
        let run = format!("run.name={name}");
        let common = [run.as_str(), "data.train_rows=8", "eval.exact_match=false"];
        stdout(&short_run(folder.path(), &[&common[..], changes].concat()));
        let adapter = folder.path().join("runs").join(name).join("adapter/adapter.safetensors");
        fs::read(adapter).expect("readable")
    };
    let all_rows = trained("all", &["train.batch_size=8"]);
    assert_eq!(trained("batch", &["train.batch_size=576460752303423488"]), all_rows);
    let both = ["train.batch_size=4294967296", "train.accumulation=4294967296"];
    assert_eq!(trained("both", &both), all_rows);
    let largest = i64::MAX;
    trained("epochs", &[&format!("train.epochs={largest}")]);
    trained("log", &[&format!("train.log_every={largest}"), &format!("train.eval_every={largest}")]);
    trained("patience", &[&format!("train.patience={largest}")]);
    trained("eval", &[&format!("eval.batch_size={largest}"), &format!("data.eval_rows={largest}")]);

    let generate = |tokens: &str, more: &[&str]| {
        let args = ["generate", "--model", "embedded:tiny", "--device", "cpu", "--greedy"];
        let more = [&["--prompt", "the old queen", "--max-new-tokens", tokens], more].concat();
        stdout(&reft(folder.path(), &[&args[..], &more].concat()))
    };
    let whole_context = generate("128", &[]);
    assert_eq!(generate("18446744073709551615", &[]), whole_context);
    assert_eq!(generate("128", &["--top-k", "18446744073709551615"]), whole_context);
}
