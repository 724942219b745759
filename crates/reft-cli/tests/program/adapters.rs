//! Adapters that do not belong to the model, or whose files were changed.

use super::{classify, support::*};
use serde_json::{Value, json};
use std::{fs, path::Path};

#[test]
fn an_adapter_of_another_model_is_refused() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &[]));
    let model = model_folder(folder.path());
    let mut said = Transcript::new(folder.path());
    let mut generate = |what: &str| {
        let args = ["generate", "--model", "model", "--adapter", ADAPTER, "--device", "cpu", "--prompt", "x"];
        said.add(what, &refusal(&reft(folder.path(), &args)));
    };
    change_tensors(&model.join("model.safetensors"), |name, _, data| {
        if name == "model.embed_tokens.weight" {
            data[..64].fill(0);
        }
        true
    });
    generate("other weights");
    let args =
        ["generate", "--model", "model", "--adapter", ADAPTER, "--device", "cpu", "--prompt", "x", "--force"];
    let forced = reft(folder.path(), &args);
    assert!(!stdout(&forced).trim().is_empty());
    said.add("other weights with --force", &String::from_utf8_lossy(&forced.stderr));
    let mut generate = |what: &str| said.add(what, &refusal(&reft(folder.path(), &args[..9])));
    let file = folder.path().join(ADAPTER).join("adapter.json");
    change_json(&file, |config| config["sites"][5]["layer"] = 6.into());
    generate("a layer without tensors, and tensors without a layer");
    said.check("refused_adapters_of_other_models", &[]);
}

/// Changes `adapter.json`, and runs a verb with it.
fn refused(folder: &Path, args: &[&str], change: impl FnOnce(&mut Value)) -> String {
    let file = folder.join("runs/r/adapter/adapter.json");
    let original = fs::read(&file).expect("readable");
    change_json(&file, change);
    let message = refusal(&reft(folder, args));
    fs::write(&file, original).expect("written");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn malformed_adapters_of_language_models_are_refused() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &["run.name=r"]));
    let args = ["generate", "--adapter", "runs/r/adapter", "--device", "cpu", "--prompt", "x"];
    stdout(&reft(folder.path(), &args));
    let mut said = Transcript::new(folder.path());
    let mut with = |what: &str, change: fn(&mut Value)| {
        said.add(what, &refused(folder.path(), &args, change));
    };
    with("a site twice", |config| config["sites"][1] = config["sites"][0].clone());
    with("rank 0", |config| config["rank"] = 0.into());
    with("dropout 2", |config| config["dropout"] = 2.0.into());
    with("a newer format", |config| config["format_version"] = 2.into());
    with("an unknown method", |config| config["method"] = "diagonal".into());
    with("an unknown baseline", |config| config["trained"] = "everything".into());
    with("a template that is not text", |config| config["template"] = 3.into());
    with("no sites", |config| drop(config.as_object_mut().expect("an object").remove("sites")));
    with("a quantization that does not exist", |config| config["base_model"]["quant"] = "int5".into());
    let file = folder.path().join("runs/r/adapter/adapter.json");
    fs::write(&file, "{").expect("written");
    said.add("not JSON", &refusal(&reft(folder.path(), &args)));
    fs::remove_file(&file).expect("removed");
    said.add("no adapter.json", &refusal(&reft(folder.path(), &args)));
    said.check("refused_malformed_adapters", &[]);
}

#[test]
fn malformed_classifiers_are_refused() {
    let folder = classify::prepared();
    stdout(&classify::train(folder.path(), &["train.epochs=1"]));
    let predict = ["predict", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "dev.csv"];
    let eval = ["eval", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "dev.csv"];
    stdout(&reft(folder.path(), &predict));
    let mut said = Transcript::new(folder.path());
    let mut with = |what: &str, change: fn(&mut Value)| {
        let message = refused(folder.path(), &predict, change);
        assert_eq!(refused(folder.path(), &eval, change), message);
        assert_eq!(refused(folder.path(), &["inspect", "runs/r/adapter"], change), message);
        said.add(what, &message);
    };
    with("fewer labels than outputs", |config| config["task"]["labels"] = json!(["praise"]));
    with("more labels than outputs", |config| config["task"]["labels"] = json!(["a", "b", "c"]));
    with("no text column", |config| config["task"]["text"] = json!([]));
    with("three text columns", |config| config["task"]["text"] = json!(["a", "b", "c"]));
    with("head dropout 2", |config| config["head"]["input_dropout"] = 2.0.into());
    with("negative head dropout", |config| config["head"]["inner_dropout"] = (-0.1).into());
    with("a site twice", |config| config["sites"][1] = config["sites"][0].clone());
    with("a head without outputs", |config| config["head"]["outputs"] = 0.into());
    said.check("refused_malformed_classifiers", &[]);
}

/// A head whose tensors agree with its configuration, but not with the model.
#[test]
fn a_head_of_another_size_is_refused() {
    let folder = classify::prepared();
    stdout(&classify::train(folder.path(), &["train.epochs=1"]));
    let adapter = folder.path().join("runs/r/adapter");
    change_json(&adapter.join("adapter.json"), |config| config["head"]["hidden_size"] = 8.into());
    change_tensors(&adapter.join("adapter.safetensors"), |name, shape, data| {
        if name.starts_with("classifier.") {
            let halved = |n: &mut usize| *n = if *n == 16 { 8 } else { *n };
            shape.iter_mut().for_each(halved);
            data.truncate(4 * shape.iter().product::<usize>());
        }
        true
    });
    let args = ["predict", "--adapter", "runs/r/adapter", "--device", "cpu", "--data", "dev.csv"];
    let message = refusal(&reft(folder.path(), &args));
    assert_snapshot("refused_head_of_another_size", folder.path(), &message, &[]);
}

/// The likelihood of the answers in `data.jsonl`, and what is said on standard error.
fn evaluated(folder: &Path, model: &str, adapter: &str, more: &[&str]) -> (f64, String) {
    let args =
        ["eval", "--model", model, "--adapter", adapter, "--data", "data.jsonl", "--device", "cpu", "--json"];
    let output = reft(folder, &[&args[..], more].concat());
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    (report["nll"].as_f64().expect("a number"), String::from_utf8(output.stderr).expect("UTF-8"))
}

fn data(folder: &Path) {
    let rows = "{\"instruction\": \"the old queen\", \"output\": \"sings\"}\n{\"instruction\": \"a fox\", \"output\": \"reads\"}\n";
    fs::write(folder.join("data.jsonl"), rows).expect("written");
}

#[test]
fn an_adapter_works_on_every_model_that_computes_the_same() {
    let folder = workplace();
    let model = model_folder(folder.path());
    data(folder.path());
    stdout(&short_run(folder.path(), &["model=model", "run.name=r"]));
    let adapter = "runs/r/adapter";
    let (nll, said) = evaluated(folder.path(), "model", adapter, &[]);
    assert_eq!(said, "");
    // As other versions of transformers write it, and with other end tokens.
    let config = model.join("config.json");
    change_json(&config, |config| {
        config["architectures"] = json!(["Other"]);
        config["initializer_range"] = json!(0.5);
        config["eos_token_id"] = json!([1, 2]);
        config["pad_token_id"] = json!(0);
        config["attention_dropout"] = json!(0.1);
        config["mlp_bias"] = json!(false);
        let theta = config.as_object_mut().expect("an object").remove("rope_theta").unwrap_or(json!(10000.0));
        config["rope_parameters"] = json!({"rope_theta": theta, "rope_type": "default"});
        config["transformers_version"] = json!("5.0.0");
    });
    assert_eq!(evaluated(folder.path(), "model", adapter, &[]), (nll, String::new()));
    // The run's folder stands for its adapter.
    assert_eq!(evaluated(folder.path(), "model", "runs/r", &[]), (nll, String::new()));
    change_json(&config, |config| config["rms_norm_eps"] = json!(0.1));
    let args = ["eval", "--model", "model", "--adapter", adapter, "--data", "data.jsonl", "--device", "cpu"];
    assert!(refusal(&reft(folder.path(), &args)).contains("model has other weights or settings"));
}

#[test]
fn copies_in_other_precision_and_other_tokenizers_are_warned_about() {
    let folder = workplace();
    let model = model_folder(folder.path());
    data(folder.path());
    stdout(&short_run(folder.path(), &["run.name=r"]));
    let mut said = Transcript::new(folder.path());
    let (nll, _) = evaluated(folder.path(), "model", "runs/r/adapter", &[]);
    let file = model.join("model.safetensors");
    let original = fs::read(&file).expect("readable");
    for (what, dtype) in [("f32", safetensors::Dtype::F32), ("bf16", safetensors::Dtype::BF16)] {
        fs::write(&file, &original).expect("written");
        convert(&file, dtype);
        let (other, warning) = evaluated(folder.path(), "model", "runs/r/adapter", &[]);
        assert!((other - nll).abs() < 0.05, "{other} {nll}");
        said.add(what, &warning);
    }
    fs::write(&file, &original).expect("written");
    change_json(&model.join("tokenizer.json"), |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().expect("tokens");
        let names: Vec<String> = vocab
            .iter()
            .filter(|(_, id)| [40, 41].iter().any(|n| *id == n))
            .map(|(name, _)| name.clone())
            .collect();
        vocab[&names[0]] = json!(41);
        vocab[&names[1]] = json!(40);
    });
    said.add("another tokenizer", &evaluated(folder.path(), "model", "runs/r/adapter", &[]).1);
    said.check("warnings_about_models", &[]);
}

#[test]
fn another_chat_template_is_warned_about_where_it_is_used() {
    let folder = workplace();
    let model = model_folder(folder.path());
    data(folder.path());
    let chat_template = |marker: &str| {
        let text = format!(
            "{{% for m in messages %}}{{% if m.role == 'user' %}}{marker}{{% else %}}>{{% endif %}}{{{{ m.content }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}>{{% endif %}}"
        );
        change_json(&model.join("tokenizer_config.json"), |config| config["chat_template"] = text.into());
    };
    chat_template("-");
    for (run, template) in [("chat", "data.template=chat"), ("plain", "data.template={{ instruction }}>")] {
        stdout(&short_run(folder.path(), &["model=model", &format!("run.name={run}"), template]));
    }
    chat_template("*");
    let (_, said) = evaluated(folder.path(), "model", "runs/chat/adapter", &[]);
    assert_eq!(
        said,
        "warning: the chat template of model is not that of model, with which the adapter was trained\n"
    );
    assert_eq!(evaluated(folder.path(), "model", "runs/plain/adapter", &[]).1, "");
}

/// Rewrites f16 tensors in another dtype.
fn convert(path: &Path, dtype: safetensors::Dtype) {
    let bytes = fs::read(path).expect("readable");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let convert = |x: f32| match dtype {
        safetensors::Dtype::BF16 => burn::tensor::bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), safetensors::Dtype::F16);
        let values = view.data().chunks_exact(2).map(|b| burn::tensor::f16::from_le_bytes([b[0], b[1]]));
        tensors.push((name, view.shape().to_vec(), values.flat_map(|x| convert(x.to_f32())).collect()));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data).expect("fits");
        (name.clone(), view)
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialized")).expect("written");
}

#[test]
fn adapters_of_other_programs_are_used_or_named() {
    let folder = workplace();
    let model = model_folder(folder.path());
    data(folder.path());
    let peft = folder.path().join("peft");
    fs::create_dir(&peft).expect("created");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(repository("tests/fixtures/peft/llama").join(file), peft.join(file)).expect("copied");
    }
    // Its model is `embedded:tiny`, as the fixture says.
    let args = ["eval", "--adapter", "peft", "--data", "data.jsonl", "--device", "cpu", "--json"];
    let report: Value = serde_json::from_str(&stdout(&reft(folder.path(), &args))).expect("JSON");
    let (nll, said) = evaluated(folder.path(), "model", "peft", &[]);
    assert_eq!((report["nll"].as_f64(), said.as_str()), (Some(nll), ""));
    let generate =
        ["generate", "--adapter", "peft", "--device", "cpu", "--prompt", "the", "--max-new-tokens", "3"];
    assert!(!stdout(&reft(folder.path(), &generate)).is_empty());

    let mut said = Transcript::new(folder.path());
    said.add("inspect", &stdout(&reft(folder.path(), &["inspect", "peft"])));
    let mut refused = |what: &str, adapter: &str| {
        let args =
            ["eval", "--model", "model", "--adapter", adapter, "--data", "data.jsonl", "--device", "cpu"];
        let message = refusal(&reft(folder.path(), &args));
        assert_eq!(message, refusal(&reft(folder.path(), &["inspect", adapter])));
        said.add(what, &message);
    };
    refused("no such folder", "nowhere");
    refused("a file", "peft/adapter_model.safetensors");
    refused("a model", text_of(Path::new(model.file_name().expect("a name"))));
    change_json(&peft.join("adapter_config.json"), |config| config["init_lora_weights"] = "pissa".into());
    refused("a setting that changes the model", "peft");
    change_json(&peft.join("adapter_config.json"), |config| config["peft_type"] = "PREFIX_TUNING".into());
    refused("another method of PEFT", "peft");
    fs::create_dir(folder.path().join("pyreft")).expect("created");
    fs::write(folder.path().join("pyreft/intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"), "")
        .expect("written");
    refused("pyreft", "pyreft");
    said.check("adapters_of_other_programs", &[]);
}

/// The model of an adapter may have moved, or be on the Hub.
#[test]
fn a_model_that_is_gone_is_named_with_the_adapter() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &["run.name=r"]));
    let mut said = Transcript::new(folder.path());
    for (name, revision) in [("old/place/model", None), ("some/model", Some("0123abcd"))] {
        change_json(&folder.path().join("runs/r/adapter/adapter.json"), |config| {
            config["base_model"]["name"] = name.into();
            config["base_model"]["revision"] = json!(revision);
        });
        let args = ["generate", "--adapter", "runs/r", "--device", "cpu", "--prompt", "x"];
        let mut command = command(folder.path(), &args);
        let command = command.env("HF_HOME", folder.path()).env("HF_HUB_OFFLINE", "1");
        said.add(name, &refusal(&command.output().expect("the program starts")));
    }
    said.check("models_that_are_gone", &[]);
}

#[test]
fn a_download_that_an_adapter_asks_for_is_announced() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &["run.name=r"]));
    change_json(&folder.path().join("runs/r/adapter/adapter.json"), |config| {
        config["base_model"]["name"] = "some/model".into();
        config["base_model"]["revision"] = "0123abcd".into();
    });
    let args = ["generate", "--adapter", "runs/r", "--device", "cpu", "--prompt", "x"];
    let mut command = command(folder.path(), &args);
    // A port where nothing listens.
    let command = command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:1");
    let output = command.output().expect("the program starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let announced = "note: the adapter was trained on some/model (revision 0123abcd), which is downloaded from the Hub now\n";
    assert!(
        said.starts_with(announced) && said.contains("\nerror: some/model: cannot download config.json"),
        "{said}"
    );
}

/// A classifier of PEFT on the encoder on which PEFT trained it.
#[test]
fn a_classifier_of_peft_predicts_with_its_head() {
    let folder = classify::prepared();
    let peft = repository("tests/fixtures/peft/roberta");
    let args = ["--model", "model", "--adapter", text_of(&peft)];
    let expected = json(&peft.join("expected.json"));
    // The words of the fixture's first row; its tokens 2 and 3 are the special ones.
    fs::write(folder.path().join("one.jsonl"), "{\"text\": \"horse tree green sleeps\"}").expect("written");
    let predict = [&["predict", "--data", "one.jsonl", "--device", "cpu"], &args[..]].concat();
    let row: Value = serde_json::from_str(&stdout(&reft(folder.path(), &predict))).expect("JSON");
    let logits: Vec<f64> = serde_json::from_value(expected["logits"][0].clone()).expect("numbers");
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    for (idx, logit) in logits.iter().enumerate() {
        let found = row["probabilities"][format!("LABEL_{idx}")].as_f64().expect("a number");
        assert!((found - logit.exp() / total).abs() < 1e-5, "{row} {logits:?}");
    }
}
