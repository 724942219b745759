//! Columns, labels and metrics of a classification or regression task: GLUE's, or those of a custom file.

use super::{
    columns::pick,
    glue::{self, GLUE, Glue},
    labels::{LabelIndex, canonical_number, distinct},
};
use crate::{
    adapter::TaskConfig,
    count::count,
    data::{BadRows, DataError, LabeledText, OnBadRow, Row, unused_fields},
    metrics::{self, Metric, argmax},
    score::Score,
};
use std::collections::{HashMap, HashSet};

/// How rows of a task are read and scored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// What an adapter stores: name, labels, columns.
    pub config: TaskConfig,
    /// The metrics, in display order.
    pub metrics: Vec<Metric>,
    pub(super) glue: Option<&'static Glue>,
    pub(super) index: LabelIndex,
    /// Whether the columns are those of an adapter.
    pub(super) is_of_adapter: bool,
}

/// Text columns that are tried for custom files, in this order.
const CUSTOM_TEXT: [&[&str]; 6] = [
    &["text"],
    &["sentence1", "sentence2"],
    &["text1", "text2"],
    &["premise", "hypothesis"],
    &["question", "sentence"],
    &["sentence"],
];

/// Checks that a task name is known.
///
/// # Errors
/// If it is not; the error suggests the nearest name.
pub fn check_name(name: &str) -> Result<(), DataError> {
    let known = ["classification", "regression"];
    if known.contains(&name) || glue::find(name).is_some() {
        return Ok(());
    }
    let mut all: Vec<String> = GLUE.iter().map(|g| format!("glue/{}", g.name)).collect();
    all.extend(known.map(String::from));
    let nearest = all.iter().min_by_key(|known| strsim::damerau_levenshtein(name, known));
    let reason =
        format!("expected one of {}; did you mean {:?}?", all.join(", "), nearest.expect("not empty"));
    Err(DataError::Task { task: name.into(), reason })
}

impl TaskSpec {
    /// The spec of a task; unknown columns and labels are found in the training rows.
    ///
    /// # Errors
    /// If there is no such task, a column is missing, or a label cannot be used.
    pub fn discover(
        name: &str,
        text: Option<&[String]>,
        label: Option<&str>,
        rows: &[Row],
    ) -> Result<Self, DataError> {
        check_name(name)?;
        let glue = glue::find(name);
        let label: Vec<&str> = match (label, glue) {
            (Some(label), _) => vec![label],
            (None, Some(glue)) => glue.label.to_vec(),
            (None, None) => vec!["label"],
        };
        let candidates: Vec<Vec<&str>> = match (text, glue) {
            (Some(columns), _) => vec![columns.iter().map(String::as_str).collect()],
            (None, Some(glue)) => glue.text.iter().map(|text| text.to_vec()).collect(),
            (None, None) => CUSTOM_TEXT.iter().map(|text| text.to_vec()).collect(),
        };
        let text = pick(rows, &candidates, "data.text", name)?;
        let labels: Vec<Vec<&str>> = label.iter().map(|column| vec![*column]).collect();
        let label = pick(rows, &labels, "data.label", name)?.remove(0);
        let mut spec = TaskSpec {
            config: TaskConfig { name: name.into(), labels: Vec::new(), text, label },
            metrics: Vec::new(),
            glue,
            index: LabelIndex::default(),
            is_of_adapter: false,
        };
        spec.config.labels = match glue {
            Some(glue) => glue.labels.iter().map(|label| label.to_string()).collect(),
            None if name == "regression" => Vec::new(),
            None => spec.labels_of(rows)?,
        };
        spec.index = LabelIndex::new(&spec.config.labels);
        spec.metrics = default_metrics(&spec.config, glue);
        Ok(spec)
    }

    /// The spec of the task that an adapter was trained for.
    pub fn of_adapter(config: TaskConfig) -> Self {
        let glue = glue::find(&config.name);
        TaskSpec {
            metrics: default_metrics(&config, glue),
            index: LabelIndex::new(&config.labels),
            config,
            glue,
            is_of_adapter: true,
        }
    }

    /// Whether the targets are numbers.
    pub fn is_regression(&self) -> bool {
        self.config.labels.is_empty()
    }

    /// Number of outputs of the head.
    pub fn outputs(&self) -> usize {
        self.config.labels.len().max(1)
    }

    /// The metric that selects the adapter: the requested one, or the main metric of the task.
    ///
    /// # Errors
    /// If the task does not have the requested metric.
    pub fn selection_metric(&self, requested: Option<Metric>) -> Result<Metric, DataError> {
        let Some(requested) = requested else {
            let combined = self.metrics.contains(&Metric::Combined);
            return Ok(if combined { Metric::Combined } else { self.metrics[0] });
        };
        if self.metrics.contains(&requested) {
            return Ok(requested);
        }
        let known: Vec<&str> = self.metrics.iter().map(|metric| metric.name()).collect();
        let reason =
            format!("eval.metric is {:?}; this task supports {}", requested.name(), known.join(", "));
        Err(DataError::Task { task: self.config.name.clone(), reason })
    }

    /// The labels of custom rows. Rows without one are left out, unless too few labels remain.
    fn labels_of(&self, rows: &[Row]) -> Result<Vec<String>, DataError> {
        let mut found = HashSet::new();
        let mut bad = BadRows::default();
        for row in rows {
            found.extend(bad.keep(row.readable().and_then(|row| self.label(row)))?);
        }
        let labels = distinct(&found);
        if labels.len() < 2 {
            bad.finish(OnBadRow::Error, rows.len())?;
        }
        const MOST: usize = 1000;
        let column = &self.config.label;
        let reason = match &labels[..] {
            [] => format!("column {column:?} has no label; classification needs at least two"),
            [label] => {
                format!("column {column:?} has a single label, {label:?}; classification needs at least two")
            }
            labels if labels.len() > MOST => format!(
                "column {column:?} has {} different labels, more than {MOST}; for numbers use data.task = \"regression\"",
                labels.len()
            ),
            _ => return Ok(labels),
        };
        Err(DataError::Task { task: self.config.name.clone(), reason })
    }

    /// A line for display if the labels of `n_rows` training rows look like numbers or names, or differ only in case.
    pub(super) fn label_notice(&self, n_rows: usize) -> Option<String> {
        const USUAL: usize = 20;
        let (labels, column) = (&self.config.labels, &self.config.label);
        let n_fractions =
            labels.iter().filter(|label| label.parse::<f64>().is_ok_and(|x| x.fract() != 0.0)).count();
        let n = labels.len();
        if n_fractions > 2 || (n > USUAL && 2 * n > n_rows) {
            let is_number = canonical_number(&labels[0]).is_some();
            let advice = if is_number {
                "for numbers use data.task = \"regression\""
            } else {
                "is it the right column?"
            };
            return Some(format!(
                "column {column:?} has {n} different labels in {}; {advice}",
                count(n_rows, "row")
            ));
        }
        let mut seen: HashMap<String, &str> = HashMap::new();
        let twice = labels.iter().find_map(|label| Some((seen.insert(label.to_lowercase(), label)?, label)));
        twice.map(|(a, b)| format!("column {column:?} has labels that differ only in case: {a:?}, {b:?}"))
    }

    /// A line for display if the file has fields that are not used. GLUE's files are known to have them.
    pub fn unused_fields(&self, file: &str, rows: &[Row]) -> Option<String> {
        let is_used = |_: &Row, name: &str| {
            self.config.label == name || self.config.text.iter().any(|text| text == name)
        };
        if self.glue.is_some() { None } else { unused_fields(file, rows, is_used) }
    }

    /// The metrics of the head's outputs, one row per example.
    pub fn score(&self, examples: &[LabeledText], outputs: &[Vec<f32>]) -> Score {
        let expected: Vec<f64> = examples.iter().map(|e| e.target).collect();
        let value = |metric: Metric| match metric {
            Metric::Pearson | Metric::Spearman => {
                let found: Vec<f64> = outputs.iter().map(|row| f64::from(row[0])).collect();
                let correlation =
                    if metric == Metric::Pearson { metrics::pearson } else { metrics::spearman };
                correlation(&expected, &found)
            }
            _ => {
                let labels: Vec<usize> = expected.iter().map(|target| *target as usize).collect();
                let found: Vec<usize> = outputs.iter().map(|row| argmax(row)).collect();
                match metric {
                    Metric::F1 => metrics::f1(&labels, &found, self.outputs()),
                    Metric::Matthews => metrics::matthews(&labels, &found, self.outputs()),
                    _ => metrics::accuracy(&labels, &found),
                }
            }
        };
        let mut score: Vec<(Metric, f64)> = Vec::new();
        for metric in &self.metrics {
            let value = match metric {
                Metric::Combined => score.iter().map(|(_, value)| value).sum::<f64>() / score.len() as f64,
                other => value(*other),
            };
            score.push((*metric, value));
        }
        Score(score.into_iter().map(|(metric, value)| (metric.name().to_string(), value)).collect())
    }
}

fn default_metrics(config: &TaskConfig, glue: Option<&Glue>) -> Vec<Metric> {
    match glue {
        Some(glue) => glue.metrics.to_vec(),
        None if config.labels.is_empty() => vec![Metric::Pearson, Metric::Spearman, Metric::Combined],
        None => vec![Metric::Accuracy, Metric::F1, Metric::Matthews],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::parse_rows;

    pub fn rows(text: &str) -> Vec<Row> {
        parse_rows(text, "d.jsonl").expect("valid")
    }

    pub fn discover(name: &str, text: &str) -> Result<TaskSpec, String> {
        TaskSpec::discover(name, None, None, &rows(text)).map_err(|e| e.to_string())
    }

    #[test]
    fn labels_are_found_in_a_stable_order() {
        let labels = |text: &str| discover("classification", text).expect("valid").config.labels;
        assert_eq!(
            labels("{\"text\":\"a\",\"label\":\"no\"}\n{\"text\":\"b\",\"label\":\"maybe\"}"),
            ["maybe", "no"]
        );
        assert_eq!(
            labels(
                "{\"text\":\"a\",\"label\":10}\n{\"text\":\"b\",\"label\":9}\n{\"text\":\"b\",\"label\":10}"
            ),
            ["9", "10"]
        );
        let error = discover("classification", "{\"text\":\"a\",\"label\":1}").expect_err("one label");
        assert_eq!(
            error,
            "classification: column \"label\" has a single label, \"1\"; classification needs at least two"
        );
    }

    #[test]
    fn unusable_rows_are_errors_that_say_what_was_found() {
        let spec = discover("classification", "{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\",\"label\":1}")
            .expect("valid");
        let bad = |json: &str| {
            let row = &rows(json)[0];
            spec.texts(row).and_then(|_| spec.target(row)).expect_err("unusable").to_string()
        };
        assert_eq!(
            bad("{\"text\":\"a\",\"label\":2}"),
            "d.jsonl, line 1: label \"2\" does not occur in the training data; the labels are 0, 1"
        );
        assert_eq!(
            bad("{\"body\":\"a\",\"label\":1}"),
            "d.jsonl, line 1: no column named text; the columns are body, label; set data.text and data.label"
        );
        assert_eq!(
            bad("{\"text\":null,\"label\":1}"),
            "d.jsonl, line 1: column \"text\" is null, expected text"
        );
        assert_eq!(
            bad("{\"text\":[3],\"label\":1}"),
            "d.jsonl, line 1: column \"text\" is a list or an object, expected text"
        );
        assert_eq!(
            bad("{\"text\":\"a\",\"label\":\"nan\"}"),
            "d.jsonl, line 1: column \"label\" is \"nan\", which stands for no label; every row needs a label"
        );
        assert_eq!(
            bad("{\"text\":\"a\",\"label\":\"\"}"),
            "d.jsonl, line 1: column \"label\" is empty; every row needs a label"
        );
        let spec = discover("regression", "{\"text\":\"a\",\"label\":0.5}").expect("valid");
        for text in ["high", "3,5", "inf", "0x1", "1e39"] {
            let row = &rows(&format!("{{\"text\":\"a\",\"label\":\"{text}\"}}"))[0];
            assert_eq!(
                spec.target(row).expect_err("text").to_string(),
                format!("d.jsonl, line 1: column \"label\" is {text:?}, expected a number such as 3.5")
            );
        }
        let row = &rows("{\"text\":\"a\",\"label\":\" 1e-1 \"}")[0];
        assert_eq!(spec.target(row).expect("a number"), 0.1);
        let row = &rows("{\"text\":\"a\",\"label\":NaN}")[0];
        assert!(spec.target(row).expect_err("NaN").to_string().ends_with("every row needs a label"));
        assert_eq!(
            discover("glue/sts-b", "{}").expect_err("unknown"),
            "glue/sts-b: expected one of glue/cola, glue/sst2, glue/mrpc, glue/stsb, glue/qqp, glue/mnli, glue/qnli, \
             glue/rte, glue/wnli, classification, regression; did you mean \"glue/stsb\"?"
        );
    }

    #[test]
    fn editions_of_glue_agree() {
        let spec =
            discover("glue/mnli", "{\"premise\":\"a\",\"hypothesis\":\"b\",\"label\":2}").expect("valid");
        let other = &rows("{\"sentence1\":\"a\",\"sentence2\":\"b\",\"gold_label\":\"contradiction\"}")[0];
        assert_eq!(spec.texts(other).expect("texts"), ["a", "b"]);
        assert_eq!(spec.target(other).expect("label"), 2.0);
        let unlabeled = &rows("{\"premise\":\"a\",\"hypothesis\":\"b\",\"label\":-1}")[0];
        assert!(spec.target(unlabeled).expect_err("hidden").to_string().contains("\"-1\""));
        assert_eq!(spec.selection_metric(None).expect("one"), Metric::Accuracy);
        let error = spec.selection_metric(Some(Metric::Pearson)).expect_err("other").to_string();
        assert_eq!(error, "glue/mnli: eval.metric is \"pearson\"; this task supports accuracy");
    }

    #[test]
    fn unusual_labels_are_named() {
        let notice = |labels: &[&str], n_rows| {
            let text: String =
                labels.iter().map(|label| format!("{{\"text\": \"a\", \"label\": {label:?}}}\n")).collect();
            discover("classification", &text).expect("valid").label_notice(n_rows)
        };
        assert_eq!(
            notice(&["Good", "bad", "good"], 3).expect("a notice"),
            "column \"label\" has labels that differ only in case: \"Good\", \"good\""
        );
        assert_eq!(notice(&["good", "bad"], 2), None);
        let names: Vec<String> = (0..30).map(|n| format!("name {n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(notice(&names, 30).expect("a notice").ends_with("in 30 rows; is it the right column?"));
        assert_eq!(notice(&names, 1000), None);
    }

    #[test]
    fn unused_columns_are_named_once() {
        let rows = rows(
            "{\"id\":1,\"text\":\"a\",\"label\":0,\"none\":null}\n{\"text\":\"b\",\"label\":1,\"source\":\"x\"}",
        );
        let spec = TaskSpec::discover("classification", None, None, &rows).expect("valid");
        assert_eq!(spec.unused_fields("d.jsonl", &rows).expect("a line"), "d.jsonl: not used: id, source");
        assert_eq!(spec.unused_fields("d.jsonl", &self::rows("{\"text\":\"a\"}")), None);
    }
}
