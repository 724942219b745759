//! Types, quantisation, checkpointing, and what a run needs of memory.

use super::*;

/// A model folder whose weights are a hole in the disk: as large as one likes, and never read.
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
    let model = format!("model={}", model.display());
    let message = refusal(&short_run(folder.path(), &[&model, "device=cpu"]));
    assert_says(&message, &["the run needs", "on cpu, which has", "any of these would help", "quant=int8"]);
    let remedies: Vec<&str> =
        message.lines().filter(|line| line.contains("=") && line.contains(" needs ")).collect();
    assert_eq!(remedies.len(), 3, "{message}");
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
    let message = generate_with(&folder.path().join("model"), folder.path());
    assert_says(&message, &["the run needs", "weights", "--quant int8"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_tells_the_memory_that_is_then_measured() {
    let folder = workplace();
    let settings =
        ["device=cpu", "data.eval_rows=8", "train.batch_size=200", "train.steps=3", "eval.exact_match=false"];
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
    assert_says(
        &text,
        &["would train 6,168 parameters", "weights", "activations", "at the peak", "nothing was"],
    );
}

/// A system that is out of memory may end a process without a word; what was learned is on disk by then.
#[cfg(unix)]
#[test]
fn a_run_that_is_killed_leaves_its_adapter() {
    let folder = workplace();
    let (mut child, _lines) = endless_run(folder.path(), 6);
    child.kill().expect("killed");
    assert!(!child.wait().expect("ended").success());
    let text = stdout(&reft(folder.path(), &["inspect", "runs/quickstart/adapter"]));
    assert_says(&text, &["6168 in 6 interventions"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_allocation_that_fails_is_an_error() {
    let folder = workplace();
    let model = model_folder(folder.path());
    let mut config = json(&model.join("config.json"));
    config["max_position_embeddings"] = (1u64 << 40).into();
    fs::write(model.join("config.json"), config.to_string()).expect("written");
    let args = [
        "generate",
        "--model",
        "model",
        "--prompt",
        "x",
        "--device",
        "cpu",
        "--max-new-tokens",
        "100000000000",
    ];
    assert_says(&refusal(&reft(folder.path(), &args)), &["out of memory", "--quant int8"]);
}

#[test]
fn an_adapter_of_a_quantised_model_remembers_it() {
    let folder = workplace();
    let text = stdout(&short_run(folder.path(), &["device=cpu", "quant=int8"]));
    assert_says(&text, &["int8 weights, f32"]);
    let recipe = fs::read_to_string(folder.path().join("runs/quickstart/recipe.toml")).expect("readable");
    assert_says(&recipe, &["quant = \"int8\"", "dtype = \"f32\"", "checkpointing = true"]);
    let adapter = "runs/quickstart/adapter";
    let eval = |extra: &[&str]| {
        let args =
            ["eval", "--adapter", adapter, "--data", "embedded:french-eval", "--json", "--device", "cpu"];
        let output = stdout(&reft(folder.path(), &[&args[..], extra].concat()));
        let value: Value = serde_json::from_str(&output).expect("JSON");
        value["nll"].as_f64().expect("a number")
    };
    let own = eval(&[]);
    assert_eq!(own, eval(&["--quant", "int8"]));
    assert_ne!(own, eval(&["--quant", "none"]));
    assert_ne!(own, eval(&["--quant", "none", "--dtype", "bf16"]));
    assert_says(&stdout(&reft(folder.path(), &["inspect", adapter])), &["int8 weights"]);
}

#[test]
fn impossible_precisions_are_refused() {
    let folder = workplace();
    let with = |changes: &[&str]| refusal(&short_run(folder.path(), changes));
    assert_says(&with(&["quant=int5"]), &["int5", "int8", "int4", "none"]);
    assert_says(&with(&["dtype=f64"]), &["f64", "bf16", "auto"]);
    assert_says(&with(&["reft.method=lora", "quant=int8"]), &["quant is int8 with reft.method=lora"]);
    let message = with(&["reft.method=full", "train.checkpointing=true"]);
    assert_says(&message, &["train.checkpointing is true with reft.method=full"]);
    // Without that backend, it is the backend that is missed.
    if cfg!(feature = "ndarray") {
        let message = with(&["device=ndarray", "dtype=bf16"]);
        assert_says(&message, &["dtype bf16", "ndarray does not compute with it", "f32"]);
        assert_says(&with(&["device=ndarray", "quant=int4"]), &["quant int4", "use int8"]);
    }
    assert!(!folder.path().join("runs").exists(), "a refused run must leave nothing behind");
}
