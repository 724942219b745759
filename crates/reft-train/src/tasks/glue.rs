//! The tasks of the [GLUE benchmark](https://gluebenchmark.com): columns, labels and metrics.

use crate::metrics::Metric;

/// One of GLUE's tasks.
#[derive(Debug, PartialEq)]
pub(super) struct Glue {
    /// The name after `glue/`.
    pub name: &'static str,
    /// The text columns. Editions of the files name them differently.
    pub text: &'static [&'static [&'static str]],
    /// The label column, likewise.
    pub label: &'static [&'static str],
    /// The labels in the order of GLUE's indices; empty for the regression.
    pub labels: &'static [&'static str],
    /// The columns of files without a header line.
    pub columns: Option<&'static [&'static str]>,
    /// The metrics, in display order.
    pub metrics: &'static [Metric],
}

const PAIR: &[&str] = &["sentence1", "sentence2"];

pub(super) const GLUE: [Glue; 9] = [
    Glue {
        name: "cola",
        text: &[&["sentence"]],
        label: &["label"],
        labels: &["unacceptable", "acceptable"],
        columns: Some(&["source", "label", "star", "sentence"]),
        metrics: &[Metric::Matthews, Metric::Accuracy],
    },
    Glue {
        name: "sst2",
        text: &[&["sentence"]],
        label: &["label"],
        labels: &["negative", "positive"],
        columns: None,
        metrics: &[Metric::Accuracy],
    },
    Glue {
        name: "mrpc",
        text: &[&["#1 String", "#2 String"], PAIR],
        label: &["Quality", "label"],
        labels: &["not_equivalent", "equivalent"],
        columns: None,
        metrics: &[Metric::Accuracy, Metric::F1, Metric::Combined],
    },
    Glue {
        name: "stsb",
        text: &[PAIR],
        label: &["score", "label"],
        labels: &[],
        columns: Some(&["genre", "file", "year", "id", "score", "sentence1", "sentence2"]),
        metrics: &[Metric::Pearson, Metric::Spearman, Metric::Combined],
    },
    Glue {
        name: "qqp",
        text: &[&["question1", "question2"]],
        label: &["is_duplicate", "label"],
        labels: &["not_duplicate", "duplicate"],
        columns: None,
        metrics: &[Metric::Accuracy, Metric::F1, Metric::Combined],
    },
    Glue {
        name: "mnli",
        text: &[PAIR, &["premise", "hypothesis"]],
        label: &["gold_label", "label"],
        labels: &["entailment", "neutral", "contradiction"],
        columns: None,
        metrics: &[Metric::Accuracy],
    },
    Glue {
        name: "qnli",
        text: &[&["question", "sentence"]],
        label: &["label"],
        labels: &["entailment", "not_entailment"],
        columns: None,
        metrics: &[Metric::Accuracy],
    },
    Glue {
        name: "rte",
        text: &[PAIR],
        label: &["label"],
        labels: &["entailment", "not_entailment"],
        columns: None,
        metrics: &[Metric::Accuracy],
    },
    Glue {
        name: "wnli",
        text: &[PAIR],
        label: &["label"],
        labels: &["not_entailment", "entailment"],
        columns: None,
        metrics: &[Metric::Accuracy],
    },
];

/// The task called `glue/{name}`.
pub(super) fn find(name: &str) -> Option<&'static Glue> {
    let name = name.strip_prefix("glue/")?;
    GLUE.iter().find(|glue| glue.name == name)
}
