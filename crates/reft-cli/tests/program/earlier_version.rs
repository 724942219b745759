//! The run folder of version 0.1 (`fixtures/run-0.1`, the quick start) is read by this version.

use super::support::*;
use reft_train::Summary;
use serde_json::Value;
use std::{fs, path::PathBuf};

fn earlier_run() -> PathBuf {
    repository("crates/reft-cli/tests/fixtures/run-0.1")
}

fn summary() -> Summary {
    serde_json::from_slice(&fs::read(earlier_run().join("summary.json")).expect("readable"))
        .expect("a summary")
}

#[test]
fn its_summary_has_the_same_fields() {
    let rewritten = serde_json::to_value(summary()).expect("serialized");
    assert_eq!(rewritten, json(&earlier_run().join("summary.json")));
}

#[test]
fn its_adapter_is_inspected() {
    let folder = workplace();
    let adapter = earlier_run().join("adapter");
    let text = stdout(&reft(folder.path(), &["inspect", text_of(&adapter)]));
    assert_snapshot("inspect_version_0_1", folder.path(), &text, &[]);
    let text = stdout(&reft(folder.path(), &["inspect", "--json", text_of(&adapter)]));
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in json(&adapter.join("adapter.json")).as_object().expect("an object") {
        assert_eq!(&shown[key], value, "{key}");
    }
}

#[test]
fn its_adapter_is_evaluated_with_the_same_result() {
    let folder = workplace();
    let adapter = earlier_run().join("adapter");
    let args = ["eval", "--adapter", text_of(&adapter), "--device", "cpu", "--json"];
    let text = stdout(&reft(folder.path(), &[&args[..], &["--data", "embedded:french-eval"]].concat()));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let expected = summary().after.expect("evaluated").get("nll").expect("a likelihood");
    let difference = report["nll"].as_f64().expect("a number") - expected;
    assert!(difference.abs() < 1e-6, "{difference}");
}

/// Its resolved recipe, with which the first updates have the same loss.
#[test]
fn its_recipe_trains_again() {
    let folder = workplace();
    let recipe = earlier_run().join("recipe.toml");
    let args = ["train", text_of(&recipe), "run.name=again", "train.steps=2", "eval.exact_match=false"];
    stdout(&reft(folder.path(), &args));
    let losses: Vec<f64> =
        serde_json::from_value(json(&folder.path().join("runs/again/summary.json"))["losses"].clone())
            .expect("numbers");
    assert_eq!(losses.len(), 2);
    for (loss, earlier) in losses.iter().zip(summary().losses) {
        // The second update has another learning rate, because the schedule is shorter.
        assert!((loss - earlier).abs() < 0.05, "{loss}, once {earlier}");
    }
    assert!((losses[0] - summary().losses[0]).abs() < 1e-5, "{losses:?}");
}
