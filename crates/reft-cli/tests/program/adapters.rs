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
