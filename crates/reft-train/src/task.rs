//! Classification and regression tasks: GLUE's by name, and those of a user's own files.

use crate::{
    data::{DataError, Row, parse_rows},
    metrics::{self, Metric},
    table::{Separator, parse_table},
};
use reft_core::TaskConfig;
use reft_models::Tokenizer;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

/// What rows of a task are and how they are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What an adapter remembers: name, labels, columns.
    pub config: TaskConfig,
    /// The metrics, in the order in which they are shown.
    pub metrics: Vec<Metric>,
    glue: Option<&'static Glue>,
}

/// One of GLUE's tasks.
#[derive(Debug, PartialEq)]
struct Glue {
    name: &'static str,
    /// The columns of the text, by the names that different editions of the files use.
    text: &'static [&'static [&'static str]],
    label: &'static [&'static str],
    /// In the order of GLUE's numbers; empty for the regression.
    labels: &'static [&'static str],
    /// The columns of files without a line of names.
    columns: Option<&'static [&'static str]>,
    metrics: &'static [Metric],
}

const PAIR: &[&str] = &["sentence1", "sentence2"];

const GLUE: [Glue; 9] = [
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

/// Where the text of one's own files may stand if the recipe does not say.
const OWN_TEXT: [&[&str]; 6] = [
    &["text"],
    &["sentence1", "sentence2"],
    &["text1", "text2"],
    &["premise", "hypothesis"],
    &["question", "sentence"],
    &["sentence"],
];

/// A text or a pair of texts as tokens, with its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Token types.
    pub types: Vec<u32>,
    /// Index of the label, or the value of a regression.
    pub target: f64,
}

/// The rows of a file as tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabelledSet {
    /// The rows.
    pub examples: Vec<Labelled>,
    /// Rows that were cut.
    pub n_cut: usize,
}

/// Whether a task's name stands for a task at all, and not for language modelling.
///
/// # Errors
/// If there is no such task.
pub fn check_name(name: &str) -> Result<(), DataError> {
    let known = ["classification", "regression"];
    if known.contains(&name) || glue(name).is_some() {
        return Ok(());
    }
    let mut all: Vec<String> = GLUE.iter().map(|g| format!("glue/{}", g.name)).collect();
    all.extend(known.map(String::from));
    let nearest = all.iter().min_by_key(|known| strsim::damerau_levenshtein(name, known));
    let reason =
        format!("expected one of {}; did you mean {:?}?", all.join(", "), nearest.expect("not empty"));
    Err(DataError::Task { task: name.into(), reason })
}

fn glue(name: &str) -> Option<&'static Glue> {
    let name = name.strip_prefix("glue/")?;
    GLUE.iter().find(|glue| glue.name == name)
}

/// The rows of a task's file: JSON, JSON Lines, TSV or CSV; for GLUE also files without a line of names.
///
/// # Errors
/// If the file cannot be read or a row is malformed; the error names the line.
pub fn read_task_rows(name: &str, path: &Path) -> Result<Vec<Row>, DataError> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| DataError::Io { file: file.clone(), source })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim_start().starts_with(['{', '[']) {
        return parse_rows(text, &file);
    }
    let first = text.lines().next().unwrap_or_default();
    let separator = match Separator::of_file(&file) {
        // GLUE's files are TSV whatever their name says.
        _ if first.contains('\t') => Separator::Tab,
        Some(separator) => separator,
        None if first.contains(',') => Separator::Comma,
        None => Separator::Tab,
    };
    let glue = glue(name);
    let named = |glue: &Glue| {
        let columns: Vec<&str> = first.split(['\t', ',']).map(str::trim).collect();
        glue.text.iter().any(|text| text.iter().all(|column| columns.contains(column)))
    };
    let columns = glue.filter(|glue| !named(glue)).and_then(|glue| glue.columns);
    parse_table(text, &file, separator, columns)
}

impl Task {
    /// The task of that name; its columns and labels are those of the training rows where they are not known already.
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
        let glue = glue(name);
        let label: Vec<&str> = match (label, glue) {
            (Some(label), _) => vec![label],
            (None, Some(glue)) => glue.label.to_vec(),
            (None, None) => vec!["label"],
        };
        let candidates: Vec<Vec<&str>> = match (text, glue) {
            (Some(columns), _) => vec![columns.iter().map(String::as_str).collect()],
            (None, Some(glue)) => glue.text.iter().map(|text| text.to_vec()).collect(),
            (None, None) => OWN_TEXT.iter().map(|text| text.to_vec()).collect(),
        };
        let Some(first) = rows.first() else { return Err(DataError::Empty { file: name.into() }) };
        let text = pick(first, &candidates, "data.text")?;
        let labels: Vec<Vec<&str>> = label.iter().map(|column| vec![*column]).collect();
        let label = pick(first, &labels, "data.label")?.remove(0);
        let mut task = Task {
            config: TaskConfig { name: name.into(), labels: Vec::new(), text, label },
            metrics: Vec::new(),
            glue,
        };
        task.config.labels = match glue {
            Some(glue) => glue.labels.iter().map(|label| label.to_string()).collect(),
            None if name == "regression" => Vec::new(),
            None => task.labels_of(rows)?,
        };
        task.metrics = default_metrics(&task.config, glue);
        Ok(task)
    }

    /// The task that an adapter was trained for.
    pub fn of_adapter(config: TaskConfig) -> Self {
        let glue = glue(&config.name);
        Task { metrics: default_metrics(&config, glue), config, glue }
    }

    /// Whether the target is a number.
    pub fn is_regression(&self) -> bool {
        self.config.labels.is_empty()
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.config.labels.len().max(1)
    }

    /// The metric by which adapters are chosen.
    pub fn selection(&self, asked: Option<Metric>) -> Result<Metric, DataError> {
        let Some(asked) = asked else {
            let combined = self.metrics.contains(&Metric::Combined);
            return Ok(if combined { Metric::Combined } else { self.metrics[0] });
        };
        if self.metrics.contains(&asked) {
            return Ok(asked);
        }
        let known: Vec<&str> = self.metrics.iter().map(|metric| metric.name()).collect();
        let reason = format!("eval.metric is {:?}, the task has {}", asked.name(), known.join(", "));
        Err(DataError::Task { task: self.config.name.clone(), reason })
    }

    /// The labels of one's own rows: numbers in their order, texts by the alphabet.
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
            1 => format!("column {column:?} holds only the label {:?}; two or more are needed", labels[0]),
            n if n > MOST => format!(
                "column {column:?} holds {n} different labels, more than {MOST}; for numbers use data.task = \"regression\""
            ),
            _ => return Ok(labels),
        };
        Err(DataError::Task { task: self.config.name.clone(), reason })
    }

    fn label_text(&self, row: &Row) -> Result<String, DataError> {
        let [column] = self.columns(row, std::slice::from_ref(&self.config.label), |glue| {
            glue.label.iter().map(|column| vec![*column]).collect()
        })?[..] else {
            unreachable!("one name in, one out");
        };
        let reason = match &row.fields[column] {
            Value::String(text) if !text.trim().is_empty() => return Ok(text.trim().into()),
            Value::Number(number) => return Ok(number.to_string()),
            Value::Bool(value) => return Ok(value.to_string()),
            Value::String(_) | Value::Null => format!("column {column:?} is empty; every row needs a label"),
            _ => format!("column {column:?} holds a list or an object, expected a label"),
        };
        Err(DataError::Row { place: row.place.clone(), reason })
    }

    /// The index of a row's label, or its number.
    ///
    /// # Errors
    /// If there is no label, it was not seen in training, or it is not a number where one is needed.
    pub fn target(&self, row: &Row) -> Result<f64, DataError> {
        let text = self.label_text(row)?;
        let fail = |reason| Err(DataError::Row { place: row.place.clone(), reason });
        if self.is_regression() {
            return match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => fail(format!("column {:?} is {text:?}, expected a number", self.config.label)),
            };
        }
        let labels = &self.config.labels;
        let by_name = labels.iter().position(|label| *label == text);
        // GLUE's editions write labels as names or as numbers.
        let by_number = || self.glue.and_then(|_| text.parse::<usize>().ok()).filter(|n| *n < labels.len());
        match by_name.or_else(by_number) {
            Some(idx) => Ok(idx as f64),
            None => {
                let shown: Vec<&str> = labels.iter().take(20).map(String::as_str).collect();
                fail(format!("label {text:?} was not seen in training; known are {}", shown.join(", ")))
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
                let reason = format!("column {column:?} is empty; remove the row or fill it in");
                Err(DataError::Row { place: row.place.clone(), reason })
            }
            _ => {
                let reason = format!("column {column:?} is not text");
                Err(DataError::Row { place: row.place.clone(), reason })
            }
        };
        columns.into_iter().map(text).collect()
    }

    /// The given columns if the row has them, else those of another edition of GLUE's files.
    fn columns<'a>(
        &'a self,
        row: &Row,
        own: &'a [String],
        editions: impl Fn(&'static Glue) -> Vec<Vec<&'static str>>,
    ) -> Result<Vec<&'a str>, DataError> {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let mut candidates = vec![own];
        candidates.extend(self.glue.map(editions).unwrap_or_default());
        let found = candidates.iter().find(|names| names.iter().all(|name| row.fields.contains_key(*name)));
        found.cloned().ok_or_else(|| missing(row, &candidates[..1], "data.text and data.label"))
    }

    /// Rows as tokens, cut to `max_length`. Without `labelled`, targets are left at 0.
    ///
    /// # Errors
    /// If a text or a label cannot be used; the error names the line.
    pub fn encode(
        &self,
        rows: &[Row],
        tokenizer: &Tokenizer,
        max_length: usize,
        labelled: bool,
    ) -> Result<LabelledSet, DataError> {
        let mut set = LabelledSet::default();
        for row in rows {
            let texts = self.texts(row)?;
            let target = if labelled { self.target(row)? } else { 0.0 };
            let (tokens, types, cut) = tokenizer.encode_pair(texts[0], texts.get(1).copied(), max_length)?;
            set.n_cut += usize::from(cut);
            set.examples.push(Labelled { tokens, types, target });
        }
        Ok(set)
    }

    /// The metrics of outputs, one row of numbers for each example.
    pub fn score(&self, examples: &[Labelled], outputs: &[Vec<f32>]) -> Vec<(String, f64)> {
        let expected: Vec<f64> = examples.iter().map(|e| e.target).collect();
        let value = |metric: Metric| match metric {
            Metric::Pearson | Metric::Spearman => {
                let found: Vec<f64> = outputs.iter().map(|row| f64::from(row[0])).collect();
                let of = if metric == Metric::Pearson { metrics::pearson } else { metrics::spearman };
                of(&expected, &found)
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
        score.into_iter().map(|(metric, value)| (metric.name().to_string(), value)).collect()
    }
}

fn default_metrics(config: &TaskConfig, glue: Option<&Glue>) -> Vec<Metric> {
    match glue {
        Some(glue) => glue.metrics.to_vec(),
        None if config.labels.is_empty() => vec![Metric::Pearson, Metric::Spearman, Metric::Combined],
        None => vec![Metric::Accuracy, Metric::F1, Metric::Matthews],
    }
}

/// The index of the largest number.
pub fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(idx, _)| idx)
}

/// The first candidate whose columns the row has.
fn pick(row: &Row, candidates: &[Vec<&str>], key: &str) -> Result<Vec<String>, DataError> {
    let found = candidates.iter().find(|names| names.iter().all(|name| row.fields.contains_key(*name)));
    match found {
        Some(names) => Ok(names.iter().map(|name| name.to_string()).collect()),
        None => Err(missing(row, candidates, key)),
    }
}

fn missing(row: &Row, candidates: &[Vec<&str>], key: &str) -> DataError {
    let wanted: Vec<String> = candidates.iter().map(|names| names.join(" and ")).collect();
    let there: Vec<&str> = row.fields.keys().map(String::as_str).collect();
    let reason = format!("no column {}; there are {}; set {key}", wanted.join(", or "), there.join(", "));
    DataError::Row { place: row.place.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        parse_rows(text, "d.jsonl").expect("valid")
    }

    fn discover(name: &str, text: &str) -> Result<Task, String> {
        Task::discover(name, None, None, &rows(text)).map_err(|e| e.to_string())
    }

    #[test]
    fn labels_are_discovered_in_a_stable_order() {
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
        assert!(error.contains("only the label \"1\""), "{error}");
    }

    #[test]
    fn unusable_rows_are_errors_that_say_what_there_is() {
        let task = discover("classification", "{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\",\"label\":1}")
            .expect("valid");
        let bad = |json: &str| {
            let row = &rows(json)[0];
            task.texts(row).and_then(|_| task.target(row)).expect_err("unusable").to_string()
        };
        assert!(
            bad("{\"text\":\"a\",\"label\":2}")
                .contains("line 1: label \"2\" was not seen in training; known are 0, 1")
        );
        assert!(bad("{\"text\":\" \",\"label\":1}").contains("\"text\" is empty"));
        assert!(bad("{\"body\":\"a\",\"label\":1}").contains("no column text; there are body, label"));
        assert!(bad("{\"text\":3,\"label\":1}").contains("is not text"));
        assert!(bad("{\"text\":\"a\",\"label\":\"\"}").contains("needs a label"));
        let task = discover("regression", "{\"text\":\"a\",\"label\":0.5}").expect("valid");
        let error =
            task.target(&rows("{\"text\":\"a\",\"label\":\"high\"}")[0]).expect_err("text").to_string();
        assert!(error.contains("\"high\", expected a number"), "{error}");
        assert!(discover("glue/sts-b", "{}").expect_err("unknown").contains("did you mean \"glue/stsb\"?"));
    }

    #[test]
    fn editions_of_glue_agree() {
        let task =
            discover("glue/mnli", "{\"premise\":\"a\",\"hypothesis\":\"b\",\"label\":2}").expect("valid");
        let other = &rows("{\"sentence1\":\"a\",\"sentence2\":\"b\",\"gold_label\":\"contradiction\"}")[0];
        assert_eq!(task.texts(other).expect("texts"), ["a", "b"]);
        assert_eq!(task.target(other).expect("label"), 2.0);
        let unlabelled = &rows("{\"premise\":\"a\",\"hypothesis\":\"b\",\"label\":-1}")[0];
        assert!(task.target(unlabelled).expect_err("hidden").to_string().contains("\"-1\""));
        assert_eq!(task.selection(None).expect("one"), Metric::Accuracy);
        let error = task.selection(Some(Metric::Pearson)).expect_err("other").to_string();
        assert!(error.contains("the task has accuracy"), "{error}");
    }
}
