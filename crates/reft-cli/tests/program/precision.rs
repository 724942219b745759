//! Dtypes, quantization, checkpointing, and the memory that a run needs.

use super::support::*;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A model folder with a sparse file of weights: hundreds of gigabytes on paper, and never read.
fn huge_model(at: &Path) -> PathBuf {
    let folder = model_folder(at);
    let mut config = json(&folder.join("config.json"));
    let (layers, d, inner, vocab) = (4, 1 << 16, 1 << 17, config["vocab_size"].as_u64().expect("a number"));
    for (key, value) in [("hidden_size", d), ("intermediate_size", inner), ("num_hidden_layers", layers)] {
        config[key] = value.into();
    }
    for key in ["num_attention_heads", "num_key_value_heads"] {
        config[key] = 32.into();
    }
    config.as_object_mut().expect("an object").remove("head_dim");
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![vocab, d])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[d]);
        add("post_attention_layernorm", &[d]);
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{part}"), &[d, d]);
        }
        add("mlp.gate_proj", &[inner, d]);
        add("mlp.up_proj", &[inner, d]);
        add("mlp.down_proj", &[d, inner]);
    }
    tensors.push(("model.norm.weight".into(), vec![d]));
    let mut header = serde_json::Map::new();
    let mut end = 0u64;
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<u64>();
        let info = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name, info);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = fs::File::create(folder.join("model.safetensors")).expect("created");
    std::io::Write::write_all(&mut file, &(header.len() as u64).to_le_bytes()).expect("written");
    std::io::Write::write_all(&mut file, &header).expect("written");
    file.set_len(8 + header.len() as u64 + end).expect("a sparse file");
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    folder
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_larger_than_the_memory_is_refused_before_it_is_loaded() {
    let folder = workplace();
    let model = huge_model(folder.path());
    let mut said = Transcript::new(folder.path());
    said.add("train", &refusal(&short_run(folder.path(), &["model=model"])));
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
    let args = ["generate", "--model", text_of(&model), "--device", "cpu", "--prompt", "x"];
    said.add("generate", &refusal(&reft(folder.path(), &args)));
    // What the program itself needs is measured, and varies.
    let filters = [(r"which has [^:]+:", "which has [memory]:"), (r"needs +[\d.]+ GiB", "needs [size]")];
    said.check("refused_memory", &filters);
}

#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_tells_the_memory_that_is_then_measured() {
    let folder = workplace();
    let settings = ["data.eval_rows=8", "train.batch_size=200", "train.steps=3", "eval.exact_match=false"];
    let plan = stdout(&short_run(folder.path(), &[&settings[..], &["--dry-run", "--json"]].concat()));
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    assert!(!folder.path().join("runs").exists(), "a dry run writes nothing");
    stdout(&short_run(folder.path(), &settings));
    let summary = json(&folder.path().join("runs/quickstart/summary.json"));
    assert_eq!((&plan["trainable"], &plan["steps"]), (&summary["trainable"], &summary["steps"]));
    let planned = plan["memory"]["total"].as_f64().expect("a number") / f64::from(1 << 20);
    let measured = summary["peak_mb"].as_f64().expect("a number");
    assert!((planned / measured - 1.0).abs() < 0.15, "planned {planned}, measured {measured}");
    let text = stdout(&short_run(folder.path(), &["run.name=other", "--dry-run"]));
    let machine = [
        (r"(?m)^(program and data|logits|evaluation|peak) +[\d.]+ \w+$", "$1 [size]"),
        (r"cpu has [\d.]+ \w+, [\d.]+ \w+ free now", "cpu has [size], [size] free now"),
    ];
    assert_snapshot("train_dry_run", folder.path(), &text, &machine);
}

#[test]
fn a_dry_run_counts_the_cache_of_the_answers_that_an_evaluation_generates() {
    let folder = workplace();
    let planned = |exact_match: bool| {
        let compared = format!("eval.exact_match={exact_match}");
        let changes = ["eval.batch_size=600", "data.eval_rows=200", &compared, "--dry-run", "--json"];
        let plan: Value = serde_json::from_str(&stdout(&short_run(folder.path(), &changes))).expect("JSON");
        plan["memory"]["evaluation"].as_u64().expect("a number of bytes")
    };
    assert!(planned(true) > planned(false), "{} {}", planned(true), planned(false));
}

#[test]
fn only_runs_that_train_interventions_plan_to_keep_states() {
    let folder = workplace();
    let planned = |method: &str| {
        let changes = [method, "reft.positions=l1", "train.epochs=3", "--dry-run", "--json"];
        let plan: Value = serde_json::from_str(&stdout(&short_run(folder.path(), &changes))).expect("JSON");
        plan["memory"]["reused"].as_u64().expect("a number of bytes")
    };
    assert!(planned("reft.method=loreft") > 0);
    for baseline in ["lora", "full"] {
        assert_eq!(planned(&format!("reft.method={baseline}")), 0, "{baseline}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_allocation_that_fails_is_an_error() {
    let folder = workplace();
    let model = model_folder(folder.path());
    change_json(&model.join("config.json"), |config| config["max_position_embeddings"] = i32::MAX.into());
    let args = ["generate", "--model", "model", "--prompt", "x", "--device", "cpu"];
    let output = reft(folder.path(), &[&args[..], &["--max-new-tokens", "100000000000"]].concat());
    assert_eq!(output.status.code(), Some(1));
    // Rust's own message comes first.
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    let at = message.find("error: ").unwrap_or_else(|| panic!("no error in {message}"));
    assert_snapshot("failed_allocation", folder.path(), &message[at..], &[]);
}

#[test]
fn an_adapter_of_a_quantized_model_remembers_it() {
    let folder = workplace();
    let text = stdout(&short_run(folder.path(), &["quant=int8"]));
    let first = text.lines().next().expect("a line");
    assert!(first.ends_with(", int8 weights, f32) on cpu"), "{text}");
    let recipe = fs::read_to_string(folder.path().join("runs/quickstart/recipe.toml")).expect("readable");
    for line in ["quant = \"int8\"", "dtype = \"f32\"", "checkpointing = true"] {
        assert!(recipe.lines().any(|found| found == line), "{line} is not in {recipe}");
    }
    let eval = |extra: &[&str]| {
        let args =
            ["eval", "--adapter", ADAPTER, "--data", "embedded:french-eval", "--json", "--device", "cpu"];
        let output = stdout(&reft(folder.path(), &[&args[..], extra].concat()));
        let value: Value = serde_json::from_str(&output).expect("JSON");
        value["nll"].as_f64().expect("a number")
    };
    let own = eval(&[]);
    assert_eq!(own, eval(&["--quant", "int8"]));
    let dense = eval(&["--quant", "none"]);
    assert_ne!(own, dense);
    assert_ne!(dense, eval(&["--quant", "none", "--dtype", "bf16"]));
    let text = stdout(&reft(folder.path(), &["inspect", ADAPTER]));
    let base = text.lines().find(|line| line.starts_with("base model ")).expect("a line");
    assert!(base.ends_with("), int8 weights"), "{text}");
}

#[test]
fn impossible_precisions_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    for changes in [
        &["quant=int5"][..],
        &["dtype=f64"],
        &["reft.method=lora", "quant=int8"],
        &["reft.method=full", "train.checkpointing=true"],
    ] {
        said.add(&changes.join(" "), &refusal(&short_run(folder.path(), changes)));
    }
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
    said.check("refused_precisions", &[]);
}

/// `ndarray` computes in f32 only.
#[test]
fn precisions_that_a_backend_does_not_support_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    for change in ["dtype=bf16", "quant=int4"] {
        said.add(change, &refusal(&short_run(folder.path(), &["device=ndarray", change])));
    }
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
    said.check("refused_precisions_of_ndarray", &[]);
}
