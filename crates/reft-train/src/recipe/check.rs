//! Values of a recipe that parse but make no sense.

use super::sections::{Protocol, Recipe};
use crate::{
    count::count,
    method::{Baseline, TrainMethod},
};
use std::fmt::Display;

/// Lists every impossible value of a recipe, one per line.
pub(super) fn check(recipe: &Recipe) -> Result<(), String> {
    let mut problems: Vec<String> = recipe.train.check().err().into_iter().collect();
    let mut expect = |good: bool, key: &str, found: &dyn Display, expected: &str| {
        if !good {
            problems.push(format!("{key} is {found}, expected {expected}"));
        }
    };
    let (train, eval) = (&recipe.train, &recipe.eval);
    let is_rate = |rate: f64| (0.0..1.0).contains(&rate);
    expect(eval.batch_size > 0, "eval.batch_size", &eval.batch_size, "at least 1");
    let head_lr = recipe.head.lr.unwrap_or(1.0);
    expect(head_lr > 0.0 && head_lr.is_finite(), "head.lr", &head_lr, "a number above 0");
    expect(is_rate(recipe.lora.dropout), "lora.dropout", &recipe.lora.dropout, "a share below 1");
    let alpha = recipe.lora.alpha.unwrap_or(1.0);
    expect(alpha > 0.0 && alpha.is_finite(), "lora.alpha", &alpha, "a number above 0");
    expect(is_rate(recipe.reft.dropout), "reft.dropout", &recipe.reft.dropout, "a share below 1");
    let n_columns = recipe.data.text.as_ref().map_or(1, Vec::len);
    let found = format!("a list of {}", count(n_columns, "column"));
    expect((1..=2).contains(&n_columns), "data.text", &found, "1 or 2");

    let data = &recipe.data;
    let only_tasks = [
        ("data.test", !data.test.is_empty(), "a list of files"),
        ("data.text", data.text.is_some(), "set"),
        ("data.label", data.label.is_some(), "set"),
        ("eval.metric", eval.metric.is_some(), "set"),
        ("eval.protocol", eval.protocol == Protocol::ReftPaper, "\"reft-paper\""),
    ];
    for (key, is_set, found) in only_tasks {
        expect(
            data.task.is_some() || !is_set,
            key,
            &found,
            "absent without data.task, which makes a classifier",
        );
    }
    let (is_language_model, method) = (recipe.data.task.is_none(), recipe.reft.method);
    expect(
        !(is_language_model && method == TrainMethod::Baseline(Baseline::HeadOnly)),
        "reft.method",
        &"head-only",
        "another method: a language model has no head to train",
    );
    expect(
        !(method.trains_weights() && train.checkpointing == Some(true)),
        "train.checkpointing",
        &format!("true with reft.method={method}"),
        "false: baselines that train weights keep every block on the tape",
    );
    let quant = recipe.quant.map_or(String::new(), |quant| format!("{quant} with reft.method={method}"));
    expect(
        !(method.trains_weights() && recipe.quant.is_some()),
        "quant",
        &quant,
        "none; this baseline trains the weights themselves, which cannot be quantized",
    );
    let has_held_out = match recipe.data.eval_rows {
        Some(n) => n > 0,
        None => recipe.data.eval.is_some(),
    };
    let without = "without held-out rows; set data.eval or data.eval_rows";
    expect(
        has_held_out || train.eval_every == 0,
        "train.eval_every",
        &train.eval_every,
        &format!("0 {without}"),
    );
    expect(
        has_held_out || !train.eval_each_epoch,
        "train.eval_each_epoch",
        &true,
        &format!("false {without}"),
    );
    expect(has_held_out || !eval.exact_match, "eval.exact_match", &true, &format!("false {without}"));
    expect(has_held_out || train.patience == 0, "train.patience", &train.patience, &format!("0 {without}"));
    let is_evaluated = train.eval_every > 0 || train.eval_each_epoch;
    expect(
        !has_held_out || is_evaluated || train.patience == 0,
        "train.patience",
        &train.patience,
        "0, or train.eval_every or train.eval_each_epoch, without which there is one evaluation, at the end",
    );
    expect(
        is_language_model || has_held_out || eval.protocol != Protocol::ReftPaper,
        "data.eval",
        &"absent",
        "held-out rows, which eval.protocol splits",
    );
    expect(recipe.reft.rank > 0, "reft.rank", &recipe.reft.rank, "at least 1");
    let max_length = recipe.data.max_length.unwrap_or(usize::MAX);
    expect(max_length > 1, "data.max_length", &max_length, "at least 2");
    expect(recipe.data.train_rows != Some(0), "data.train_rows", &0, "at least 1");
    let name = &recipe.run.name;
    let is_plain = !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != "..";
    expect(
        is_plain,
        "run.name",
        &format!("{name:?}"),
        "a folder name without path separators; run.folder sets the parent folder",
    );
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}
