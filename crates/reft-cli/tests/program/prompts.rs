//! Rows of language models: long prompts, empty answers, conversations with several answers.

use super::support::*;
use serde_json::{Value, json};
use std::{fs, path::Path};

fn write_rows(folder: &Path, file: &str, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(folder.join(file), lines.join("\n")).expect("written");
}

fn eval(folder: &Path, args: &[&str]) -> (Value, String) {
    let common = ["eval", "--device", "cpu", "--json", "--data", "d.jsonl"];
    let output = reft(folder, &[&common[..], args].concat());
    let report = serde_json::from_str(&stdout(&output)).expect("JSON");
    (report, text_of_bytes(&output.stderr))
}

fn text_of_bytes(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn prompts_that_fill_the_context_are_cut_and_counted() {
    let folder = workplace();
    let question = |text: &str| json!({ "instruction": text });
    write_rows(folder.path(), "d.jsonl", &[question(&"fox ".repeat(200)), question("the fox")]);
    let args =
        ["generate", "--model", "embedded:tiny", "--device", "cpu", "--greedy", "--max-new-tokens", "4"];
    let template = ["--template", "Q: {{ instruction }}\nA:", "--data", "d.jsonl"];
    let output = reft(folder.path(), &[&args[..], &template].concat());
    assert_eq!(stdout(&output).lines().filter(|line| line.starts_with('[')).count(), 2);
    let expected = "note: 1 of 2 prompts cut to 124 tokens, in the middle of the longest text\n";
    assert_eq!(text_of_bytes(&output.stderr), expected);
    let output = reft(folder.path(), &[&args[..], &template, &["--max-length", "50"]].concat());
    assert_eq!(text_of_bytes(&output.stderr), expected.replace("124", "50"));
    let output = reft(folder.path(), &[&args[..], &["--prompt", &"fox ".repeat(200)]].concat());
    assert_eq!(text_of_bytes(&output.stderr), expected.replace("1 of 2 prompts", "1 of 1 prompt"));
}

#[test]
fn timing_has_every_batch_and_step_and_changes_no_text() {
    let folder = workplace();
    let rows = ["the fox", "the old duck", "the queen"].map(|text| json!({ "instruction": text }));
    write_rows(folder.path(), "d.jsonl", &rows);
    let generate = |more: &[&str]| {
        let args = ["generate", "--model", "embedded:tiny", "--device", "cpu", "--greedy", "--json"];
        let data = ["--max-new-tokens", "3", "--batch-size", "2", "--template", "plain", "--data", "d.jsonl"];
        let output = reft(folder.path(), &[&args[..], &data, more].concat());
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON")
    };
    let (plain, timed) = (generate(&[]), generate(&["--timing"]));
    assert_eq!((&plain["rows"], plain.get("timing")), (&timed["rows"], None));
    let batches = timed["timing"].as_array().expect("batches");
    assert_eq!(batches.len(), 2);
    for (batch, rows) in batches.iter().zip(timed["rows"].as_array().expect("rows").chunks(2)) {
        let longest = rows.iter().map(|row| row["tokens"].as_array().map_or(0, Vec::len)).max();
        assert_eq!(batch["steps"].as_array().map(Vec::len), longest.map(|n| n - 1));
        assert!(batch["prompts"].as_f64().is_some_and(|seconds| seconds > 0.0));
    }
}

#[test]
fn a_long_row_does_not_keep_answers_from_being_compared() {
    let folder = workplace();
    let rows = ["the old fox", &"fox ".repeat(400)].map(|text| json!({"instruction": text, "output": "x"}));
    write_rows(folder.path(), "d.jsonl", &rows);
    let args = ["--model", "embedded:tiny", "--exact-match", "--max-new-tokens", "2"];
    let (report, _) = eval(folder.path(), &[&args[..], &["--template", "Q: {{ instruction }}\nA:"]].concat());
    assert_eq!(
        (report["exact_match"].as_f64(), report["dropped"].as_u64()),
        (Some(0.0), Some(1)),
        "{report}"
    );
}

#[test]
fn of_two_pairs_in_a_row_the_other_is_named() {
    let folder = workplace();
    let two =
        json!({"prompt": "the old", "completion": "fox", "instruction": "a", "output": "the duck sings"});
    write_rows(folder.path(), "d.jsonl", &[two]);
    let likelihood = |args: &[&str]| {
        let (report, notes) = eval(folder.path(), &[&["--model", "embedded:tiny"], args].concat());
        (report["nll"].clone(), notes)
    };
    let (of_prompt, notes) = likelihood(&[]);
    assert_eq!(notes, "note: d.jsonl: not used: instruction, output\n");
    write_rows(folder.path(), "d.jsonl", &[json!({"prompt": "the old", "completion": "fox"})]);
    assert_eq!(likelihood(&[]), (of_prompt, String::new()));
}

#[test]
fn empty_answers_and_merged_tokens_are_counted() {
    let folder = workplace();
    let rows = ["", "the duck"].map(|output| json!({"instruction": "the old fox", "output": output}));
    write_rows(folder.path(), "d.jsonl", &rows);
    let (report, notes) =
        eval(folder.path(), &["--model", "embedded:tiny", "--template", "Q: {{ instruction }}\nA: "]);
    assert_eq!(report["rows"][0]["tokens"], 1);
    assert_eq!(
        notes,
        "note: d.jsonl: 1 row with an empty answer: only the end token is trained\n\
         note: d.jsonl: 1 row where one token holds the end of the prompt and the start of the answer; if the template \
         ends in a space, remove it\n"
    );
}

#[test]
fn all_answers_of_a_conversation_can_be_judged() {
    let folder = workplace();
    let model = model_folder(folder.path());
    change_json(&model.join("tokenizer_config.json"), |config| {
        config["chat_template"] = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
            {% if add_generation_prompt %}<assistant>{% endif %}"
            .into();
    });
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let turns = [turn("human", "one"), turn("gpt", "two"), turn("human", "three"), turn("gpt", "four")];
    write_rows(
        folder.path(),
        "d.jsonl",
        &[
            json!({"conversations": turns}),
            json!({"conversations": &turns[..2]}),
            json!({"conversations": &turns[..3]}),
        ],
    );
    let refused =
        refusal(&reft(folder.path(), &["eval", "--device", "cpu", "--model", "model", "--data", "d.jsonl"]));
    assert!(
        refused.contains("d.jsonl, line 3: no answer: the last message must be the assistant's"),
        "{refused}"
    );
    let (all, _) = eval(folder.path(), &["--model", "model", "--train-on", "all"]);
    let row = |report: &Value, idx: usize| {
        (report["rows"][idx]["nll"].as_f64(), report["rows"][idx]["tokens"].as_u64())
    };
    // The first answer alone is that of the second and the third row.
    assert_eq!(row(&all, 1), row(&all, 2));
    write_rows(folder.path(), "d.jsonl", &[json!({"conversations": turns})]);
    let (last, _) = eval(folder.path(), &["--model", "model"]);
    let sum =
        |(nll, tokens): (Option<f64>, Option<u64>)| nll.expect("judged") * tokens.expect("judged") as f64;
    assert!((sum(row(&all, 0)) - sum(row(&last, 0)) - sum(row(&all, 1))).abs() < 1e-4);
}
