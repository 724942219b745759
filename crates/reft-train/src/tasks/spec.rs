//! Columns, labels and metrics of a classification or regression task: GLUE's, or those of a custom file.

use super::glue::{self, GLUE, Glue};
use crate::{
    adapter::TaskConfig,
    data::{DataError, LabeledSet, LabeledText, Row, Separator, parse_rows, parse_table, read_text},
    metrics::{self, Metric, argmax},
    score::Score,
};
use reft_models::Tokenizer;
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// How rows of a task are read and scored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// What an adapter stores: name, labels, columns.
    pub config: TaskConfig,
    /// The metrics, in display order.
    pub metrics: Vec<Metric>,
    glue: Option<&'static Glue>,
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

/// Reads the rows of a task's file: JSON, JSON Lines, TSV or CSV; for GLUE also files without a header line.
///
/// # Errors
/// If the file cannot be read or a row is malformed; the error names the line.
pub fn read_task_rows(name: &str, path: &Path) -> Result<Vec<Row>, DataError> {
    let file = path.display().to_string();
    let text = read_text(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim_start().starts_with(['{', '[']) {
        return parse_rows(text, &file);
    }
    let first = text.lines().next().unwrap_or_default();
    let separator = match Separator::of_file(&file) {
        // GLUE's files are TSV whatever their extension says.
        _ if first.contains('\t') => Separator::Tab,
        Some(separator) => separator,
        None if first.contains(',') => Separator::Comma,
        None => Separator::Tab,
    };
    let has_header = |glue: &&Glue| {
        let columns: Vec<&str> = first.split(['\t', ',']).map(str::trim).collect();
        glue.text.iter().any(|text| text.iter().all(|column| columns.contains(column)))
    };
    let columns = glue::find(name).filter(|glue| !has_header(glue)).and_then(|glue| glue.columns);
    parse_table(text, &file, separator, columns)
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
        let Some(first) = rows.first() else { return Err(DataError::Empty { file: name.into() }) };
        let text = pick(first, &candidates, "data.text")?;
        let labels: Vec<Vec<&str>> = label.iter().map(|column| vec![*column]).collect();
        let label = pick(first, &labels, "data.label")?.remove(0);
        let mut spec = TaskSpec {
            config: TaskConfig { name: name.into(), labels: Vec::new(), text, label },
            metrics: Vec::new(),
            glue,
        };
        spec.config.labels = match glue {
            Some(glue) => glue.labels.iter().map(|label| label.to_string()).collect(),
            None if name == "regression" => Vec::new(),
            None => spec.labels_of(rows)?,
        };
        spec.metrics = default_metrics(&spec.config, glue);
        Ok(spec)
    }

    /// The spec of the task that an adapter was trained for.
    pub fn of_adapter(config: TaskConfig) -> Self {
        let glue = glue::find(&config.name);
        TaskSpec { metrics: default_metrics(&config, glue), config, glue }
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

    /// The labels of custom rows: numbers in ascending order, text in alphabetical order.
    fn labels_of(&self, rows: &[Row]) -> Result<Vec<String>, DataError> {
        let labels = rows.iter().map(|row| self.label_text(row)).collect::<Result<BTreeSet<String>, _>>()?;
        let mut labels: Vec<String> = labels.into_iter().collect();
        let numbers: Option<Vec<f64>> = labels.iter().map(|label| label.parse().ok()).collect();
        if numbers.is_some() {
            labels.sort_by(|a, b| {
                let number = |text: &str| text.parse::<f64>().unwrap_or_default();
                number(a).total_cmp(&number(b))
            });
        }
        const MOST: usize = 1000;
        let column = &self.config.label;
        let reason = match labels.len() {
            1 => format!(
                "column {column:?} has a single label, {:?}; classification needs at least two",
                labels[0]
            ),
            n if n > MOST => format!(
                "column {column:?} has {n} different labels, more than {MOST}; for numbers use data.task = \"regression\""
            ),
            _ => return Ok(labels),
        };
        Err(DataError::Task { task: self.config.name.clone(), reason })
    }

    fn label_text(&self, row: &Row) -> Result<String, DataError> {
        let [column] = self.columns(row, std::slice::from_ref(&self.config.label), |glue| {
            glue.label.iter().map(|column| vec![*column]).collect()
        })?[..] else {
            unreachable!("one column was requested");
        };
        let reason = match &row.fields[column] {
            Value::String(text) if !text.trim().is_empty() => return Ok(text.trim().into()),
            Value::Number(number) => return Ok(number.to_string()),
            Value::Bool(value) => return Ok(value.to_string()),
            Value::String(_) | Value::Null => format!("column {column:?} is empty; every row needs a label"),
            _ => format!("column {column:?} is a list or an object, expected a label"),
        };
        Err(row.error(reason))
    }

    /// The index of a row's label, or its number.
    ///
    /// # Errors
    /// If the label is missing, does not occur in the training data, or is not a number although the task is a regression.
    pub fn target(&self, row: &Row) -> Result<f64, DataError> {
        let text = self.label_text(row)?;
        if self.is_regression() {
            return match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => Err(row.error(format!("column {:?} is {text:?}, expected a number", self.config.label))),
            };
        }
        let labels = &self.config.labels;
        let by_name = labels.iter().position(|label| *label == text);
        // Editions of GLUE store labels as names or as indices.
        let by_number = || self.glue.and_then(|_| text.parse::<usize>().ok()).filter(|n| *n < labels.len());
        match by_name.or_else(by_number) {
            Some(idx) => Ok(idx as f64),
            None => {
                let shown: Vec<&str> = labels.iter().take(20).map(String::as_str).collect();
                Err(row.error(format!(
                    "label {text:?} does not occur in the training data; the labels are {}",
                    shown.join(", ")
                )))
            }
        }
    }

    /// The one or two texts of a row.
    ///
    /// # Errors
    /// If a column is missing, not text, or empty.
    pub fn texts<'a>(&self, row: &'a Row) -> Result<Vec<&'a str>, DataError> {
        let columns = self
            .columns(row, &self.config.text, |glue| glue.text.iter().map(|text| text.to_vec()).collect())?;
        let text = |column: &str| match &row.fields[column] {
            Value::String(text) if !text.trim().is_empty() => Ok(text.trim()),
            Value::String(_) | Value::Null => {
                Err(row.error(format!("column {column:?} is empty; remove the row or fill it in")))
            }
            _ => Err(row.error(format!("column {column:?} is not text"))),
        };
        columns.into_iter().map(text).collect()
    }

    /// The given columns if the row has them, else those of another edition of the GLUE task.
    fn columns<'a>(
        &'a self,
        row: &Row,
        columns: &'a [String],
        editions: impl Fn(&'static Glue) -> Vec<Vec<&'static str>>,
    ) -> Result<Vec<&'a str>, DataError> {
        let mut candidates = vec![columns.iter().map(String::as_str).collect::<Vec<&str>>()];
        candidates.extend(self.glue.map(editions).unwrap_or_default());
        let found = candidates.iter().find(|names| names.iter().all(|name| row.fields.contains_key(*name)));
        found.cloned().ok_or_else(|| missing(row, &candidates[..1], "data.text and data.label"))
    }

    /// Encodes rows, truncated to `max_length`. Without `labeled`, targets are 0. `vocab` is the size of the model's
    /// vocabulary.
    ///
    /// # Errors
    /// If a text or a label cannot be used, or the model does not have a token; the error names the line.
    pub fn encode(
        &self,
        rows: &[Row],
        tokenizer: &Tokenizer,
        vocab: usize,
        max_length: usize,
        labeled: bool,
    ) -> Result<LabeledSet, DataError> {
        let mut set = LabeledSet::default();
        for row in rows {
            let texts = self.texts(row)?;
            let target = if labeled { self.target(row)? } else { 0.0 };
            let (tokens, types, cut) = tokenizer.encode_pair(texts[0], texts.get(1).copied(), max_length)?;
            row.check_tokens(&tokens, vocab)?;
            set.n_cut += usize::from(cut);
            set.examples.push(LabeledText { tokens, types, target });
        }
        Ok(set)
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

/// The first candidate whose columns all exist in the row.
fn pick(row: &Row, candidates: &[Vec<&str>], key: &str) -> Result<Vec<String>, DataError> {
    let found = candidates.iter().find(|names| names.iter().all(|name| row.fields.contains_key(*name)));
    match found {
        Some(names) => Ok(names.iter().map(|name| name.to_string()).collect()),
        None => Err(missing(row, candidates, key)),
    }
}

fn missing(row: &Row, candidates: &[Vec<&str>], key: &str) -> DataError {
    let expected: Vec<String> = candidates.iter().map(|names| names.join(" and ")).collect();
    let found: Vec<&str> = row.fields.keys().map(String::as_str).collect();
    row.error(format!(
        "no column named {}; the columns are {}; set {key}",
        expected.join(", or "),
        found.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        parse_rows(text, "d.jsonl").expect("valid")
    }

    fn discover(name: &str, text: &str) -> Result<TaskSpec, String> {
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
            bad("{\"text\":\" \",\"label\":1}"),
            "d.jsonl, line 1: column \"text\" is empty; remove the row or fill it in"
        );
        assert_eq!(
            bad("{\"body\":\"a\",\"label\":1}"),
            "d.jsonl, line 1: no column named text; the columns are body, label; set data.text and data.label"
        );
        assert_eq!(bad("{\"text\":3,\"label\":1}"), "d.jsonl, line 1: column \"text\" is not text");
        assert_eq!(
            bad("{\"text\":\"a\",\"label\":\"\"}"),
            "d.jsonl, line 1: column \"label\" is empty; every row needs a label"
        );
        let spec = discover("regression", "{\"text\":\"a\",\"label\":0.5}").expect("valid");
        let text = &rows("{\"text\":\"a\",\"label\":\"high\"}")[0];
        assert_eq!(
            spec.target(text).expect_err("text").to_string(),
            "d.jsonl, line 1: column \"label\" is \"high\", expected a number"
        );
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
}
