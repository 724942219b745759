//! Columns, labels and metrics of a classification or regression task: GLUE's, or those of a custom file.

use super::{
    glue::{self, GLUE, Glue},
    labels::{Label, LabelIndex, canonical_number, distinct},
};
use crate::{
    adapter::TaskConfig,
    count::count,
    data::{
        BadRows, Contents, DataError, LabeledSet, LabeledText, OnBadRow, Row, Separator, Syntax,
        all_readable, json_rows, read_contents, table_rows, unused_fields,
    },
    metrics::{self, Metric, argmax},
    score::Score,
};
use reft_models::Tokenizer;
use serde_json::Value;
use std::{borrow::Cow, collections::HashSet, path::Path};

/// How rows of a task are read and scored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// What an adapter stores: name, labels, columns.
    pub config: TaskConfig,
    /// The metrics, in display order.
    pub metrics: Vec<Metric>,
    glue: Option<&'static Glue>,
    index: LabelIndex,
    /// Whether the columns are those of an adapter.
    is_of_adapter: bool,
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

/// Reads the rows of a task's file, with malformed rows among the others, see [`Row::readable`]; for GLUE also files without a
/// line of column names.
///
/// # Errors
/// If the file cannot be read, is empty, or is malformed as a whole.
pub fn read_task_rows(name: &str, path: &Path) -> Result<Vec<Row>, DataError> {
    let file = path.display().to_string();
    let text = match read_contents(path)? {
        Contents::Rows(rows) => return Ok(rows),
        Contents::Text(text) => text,
    };
    let separator = match Syntax::of(&text, &file) {
        Syntax::Json => return json_rows(&text, &file),
        Syntax::Table(separator) => separator,
    };
    let Some(glue) = glue::find(name) else { return table_rows(&text, &file, separator, None) };
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    // GLUE's files are TSV whatever their extension says.
    let separator = if first.contains('\t') { Separator::Tab } else { separator };
    let names: Vec<&str> = first.split(['\t', ',']).map(|name| name.trim().trim_matches('"')).collect();
    let has_header = glue.text.iter().any(|text| text.iter().all(|column| names.contains(column)));
    table_rows(&text, &file, separator, glue.columns.filter(|_| !has_header))
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
        for row in rows.iter().filter(|row| row.readable().is_ok()) {
            found.extend(bad.keep(self.label(row))?);
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

    /// A line for display if the labels of `n_rows` training rows look like numbers or names.
    pub(super) fn label_notice(&self, n_rows: usize) -> Option<String> {
        const USUAL: usize = 20;
        let labels = &self.config.labels;
        let n_fractions =
            labels.iter().filter(|label| label.parse::<f64>().is_ok_and(|x| x.fract() != 0.0)).count();
        let (n, column) = (labels.len(), &self.config.label);
        let advice = if n_fractions > 2 || (n > USUAL && canonical_number(&labels[0]).is_some()) {
            "for numbers use data.task = \"regression\""
        } else if n > USUAL && 2 * n > n_rows {
            "is it the right column?"
        } else {
            return None;
        };
        Some(format!("column {column:?} has {n} different labels in {}; {advice}", count(n_rows, "row")))
    }

    /// A line for display if the file has fields that are not used. GLUE's files are known to have them.
    pub fn unused_fields(&self, file: &str, rows: &[Row]) -> Option<String> {
        let is_used =
            |name: &str| self.config.label == name || self.config.text.iter().any(|text| text == name);
        if self.glue.is_some() { None } else { unused_fields(file, rows, is_used) }
    }

    fn label(&self, row: &Row) -> Result<Label, DataError> {
        let [column] = self.columns(row, std::slice::from_ref(&self.config.label), |glue| {
            glue.label.iter().map(|column| vec![*column]).collect()
        })?[..] else {
            unreachable!("one column was requested");
        };
        Label::of(&row.fields[column]).map_err(|reason| row.error(format!("column {column:?} {reason}")))
    }

    /// The index of a row's label, or its number.
    ///
    /// # Errors
    /// If the label is missing, does not occur in the training data, or is not a number although the task is a regression.
    pub fn target(&self, row: &Row) -> Result<f64, DataError> {
        let label = self.label(row)?;
        if self.is_regression() {
            let number = Some(label.text()).filter(|text| canonical_number(text).is_some());
            return number.and_then(|text| text.parse().ok()).ok_or_else(|| {
                let (column, text) = (&self.config.label, label.text());
                row.error(format!("column {column:?} is {text:?}, expected a number such as 3.5"))
            });
        }
        let labels = &self.config.labels;
        // Editions of GLUE store labels as names or as indices.
        let by_index = || {
            let number = self.glue.and_then(|_| canonical_number(label.text()))?;
            number.parse::<usize>().ok().filter(|n| *n < labels.len())
        };
        match self.index.find(&label).or_else(by_index) {
            Some(idx) => Ok(idx as f64),
            None => {
                let shown: Vec<&str> = labels.iter().take(20).map(String::as_str).collect();
                let more = if labels.len() > shown.len() { ", …" } else { "" };
                Err(row.error(format!(
                    "label {:?} does not occur in the training data; the labels are {}{more}",
                    label.text(),
                    shown.join(", ")
                )))
            }
        }
    }

    /// The one or two texts of a row, which may be empty. Numbers and booleans are texts as they are written.
    ///
    /// # Errors
    /// If a column is missing, null, a list or an object.
    pub fn texts<'a>(&self, row: &'a Row) -> Result<Vec<Cow<'a, str>>, DataError> {
        let columns = self
            .columns(row, &self.config.text, |glue| glue.text.iter().map(|text| text.to_vec()).collect())?;
        let text = |column: &str| match &row.fields[column] {
            Value::String(text) => Ok(Cow::Borrowed(text.trim())),
            Value::Number(number) => Ok(Cow::Owned(number.to_string())),
            Value::Bool(value) => Ok(Cow::Owned(value.to_string())),
            Value::Null => Err(row.error(format!("column {column:?} is null, expected text"))),
            _ => Err(row.error(format!("column {column:?} is a list or an object, expected text"))),
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
        let advice = if self.is_of_adapter { "rename the column" } else { "set data.text and data.label" };
        found.cloned().ok_or_else(|| missing(row, &candidates[..1], advice))
    }

    /// Encodes rows, truncated to `max_length`. Without `labeled`, targets are 0. `vocab` is the size of the model's
    /// vocabulary. With labels, malformed lines and empty texts of GLUE's files are skipped, as its usual loaders do.
    ///
    /// # Errors
    /// If texts or labels cannot be used and are not to be skipped, or the model does not have a token; the error names the
    /// lines.
    pub fn encode(
        &self,
        rows: &[Row],
        tokenizer: &Tokenizer,
        vocab: usize,
        max_length: usize,
        labeled: bool,
        on_bad_row: OnBadRow,
    ) -> Result<LabeledSet, DataError> {
        let mut set = LabeledSet { n_rows: rows.len(), ..LabeledSet::default() };
        let mut bad = BadRows::default();
        for (idx, row) in rows.iter().enumerate() {
            let texts = row.readable().and_then(|row| self.texts(row));
            let is_malformed =
                || row.readable().is_err() || texts.iter().flatten().any(|text| text.is_empty());
            if labeled && self.glue.is_some() && is_malformed() {
                set.n_malformed += 1;
                continue;
            }
            let target = |texts| Ok((texts, if labeled { self.target(row)? } else { 0.0 }));
            let Some((texts, target)) = bad.keep(texts.and_then(target))? else { continue };
            let second = texts.get(1).map(Cow::as_ref);
            let (tokens, types, cut) = tokenizer.encode_pair(&texts[0], second, max_length)?;
            row.check_tokens(&tokens, vocab)?;
            set.n_cut += usize::from(cut);
            set.n_empty += usize::from(texts.iter().any(|text| text.is_empty()));
            set.row_of.push(idx);
            set.examples.push(LabeledText { tokens, types, target });
        }
        if let Some(first) = rows.first().filter(|_| set.n_malformed == rows.len()) {
            return Err(first.error("no row of the file has all its texts"));
        }
        set.n_skipped = bad.finish(on_bad_row, rows.len())? + set.n_malformed;
        set.skipped = bad.notice();
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

/// The first candidate whose columns all exist in a row.
fn pick(rows: &[Row], candidates: &[Vec<&str>], key: &str, task: &str) -> Result<Vec<String>, DataError> {
    let mut readable = rows.iter().filter(|row| row.readable().is_ok()).peekable();
    let Some(first) = readable.peek().copied() else {
        all_readable(rows.to_vec())?;
        return Err(DataError::Empty { file: task.into() });
    };
    let has = |row: &Row, names: &[&str]| names.iter().all(|name| row.fields.contains_key(*name));
    // Rows of JSON need not all have the same fields.
    let found = readable.find_map(|row| candidates.iter().find(|names| has(row, names)));
    match found {
        Some(names) => Ok(names.iter().map(|name| name.to_string()).collect()),
        None => Err(missing(first, candidates, &format!("set {key}"))),
    }
}

fn missing(row: &Row, candidates: &[Vec<&str>], advice: &str) -> DataError {
    let expected: Vec<String> = candidates.iter().map(|names| names.join(" and ")).collect();
    let found: Vec<&str> = row.fields.keys().take(20).map(String::as_str).collect();
    row.error(format!(
        "no column named {}; the columns are {}; {advice}",
        expected.join(", or "),
        found.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parse_rows;

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
        for text in ["high", "3,5", "inf", "0x1"] {
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

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&crate::tiny::model()).expect("embedded")
    }

    fn encode(
        spec: &TaskSpec,
        rows: &[Row],
        labeled: bool,
        on_bad_row: OnBadRow,
    ) -> Result<LabeledSet, String> {
        let tokenizer = tokenizer();
        let vocab = tokenizer.vocab_size();
        spec.encode(rows, &tokenizer, vocab, 32, labeled, on_bad_row).map_err(|e| e.to_string())
    }

    #[test]
    fn all_bad_rows_are_reported_or_skipped_together() {
        let text = "text,label\ngood,1\nbad\nbad,0\nmovie,nan\nthe,3\n";
        let rows = table_rows(text, "d.csv", Separator::Comma, None).expect("read");
        let spec = TaskSpec::discover("classification", None, None, &rows[..4]).expect("valid");
        assert_eq!(spec.config.labels, ["0", "1"]);
        assert_eq!(
            encode(&spec, &rows, true, OnBadRow::Error).expect_err("bad rows"),
            "d.csv: 3 of 5 rows cannot be used: line 3: 1 field, expected 2: text, label\n  line 5: column \"label\" is \
             \"nan\", which stands for no label; every row needs a label\n  line 6: label \"3\" does not occur in the \
             training data; the labels are 0, 1\nfix them, or skip them with data.on_bad_row = \"skip\" (--skip-bad-rows)"
        );
        let set = encode(&spec, &rows, true, OnBadRow::Skip).expect("two rows");
        assert_eq!((set.n_skipped, set.n_rows, &set.row_of[..]), (3, 5, &[0, 2][..]));
        assert_eq!(
            set.notices("train"),
            ["d.csv: 3 rows skipped; the first is line 3: 1 field, expected 2: text, label"]
        );
        // One row, or one reason for all rows, is a message of one line.
        assert_eq!(
            encode(&spec, &rows[..2], true, OnBadRow::Error).expect_err("a bad row"),
            "d.csv, line 3: 1 field, expected 2: text, label"
        );
        let other = parse_rows("{\"body\":\"a\"}\n{\"body\":\"b\"}", "d.jsonl").expect("valid");
        for on_bad_row in [OnBadRow::Error, OnBadRow::Skip] {
            assert_eq!(
                encode(&TaskSpec::of_adapter(spec.config.clone()), &other, false, on_bad_row)
                    .expect_err("no text"),
                "d.jsonl, line 1: no column named text; the columns are body; rename the column"
            );
        }
    }

    #[test]
    fn labels_of_other_spellings_are_the_same() {
        let rows = rows(
            "{\"text\":\"a\",\"label\":\"1.0\"}\n{\"text\":\"b\",\"label\":0}\n{\"text\":\"c\",\"label\":1}",
        );
        let spec = TaskSpec::discover("classification", None, None, &rows).expect("valid");
        assert_eq!(spec.config.labels, ["0", "1"]);
        let set = encode(&spec, &rows, true, OnBadRow::Error).expect("usable");
        let targets: Vec<f64> = set.examples.iter().map(|example| example.target).collect();
        assert_eq!(targets, [1.0, 0.0, 1.0]);
        let none = "{\"text\":\"a\",\"label\":null}\n{\"text\":\"a\",\"label\":\"NaN\"}\n{\"text\":\"a\",\"label\":1}";
        let error = discover("classification", none).expect_err("one label");
        assert!(error.starts_with("d.jsonl: 2 of 3 rows cannot be used: "), "{error}");
        let many: String = (0..30).map(|n| format!("{{\"text\":\"a\",\"label\":{n}.5}}\n")).collect();
        let spec = discover("classification", &many).expect("labels");
        assert_eq!(
            spec.label_notice(30).expect("a notice"),
            "column \"label\" has 30 different labels in 30 rows; for numbers use data.task = \"regression\""
        );
        assert_eq!(spec.config.labels[..3], ["0.5", "1.5", "2.5"]);
    }

    #[test]
    fn numbers_and_empty_texts_are_encoded() {
        let labeled = rows("{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\",\"label\":1}");
        let spec = TaskSpec::discover("classification", None, None, &labeled).expect("valid");
        let new = rows("{\"text\":5}\n{\"text\":\"\"}\n{\"text\":\"5\"}\n{\"text\":true}\n{\"text\":1.0}");
        let set = encode(&spec, &new, false, OnBadRow::Error).expect("usable");
        assert_eq!(set.examples[0], set.examples[2]);
        assert_eq!((set.examples.len(), set.n_empty), (5, 1));
        assert_eq!(set.notices("new.jsonl"), ["new.jsonl: 1 row with an empty text"]);
        assert_eq!(spec.texts(&new[3]).expect("text"), ["true"]);
        assert_eq!(spec.texts(&new[4]).expect("text"), ["1.0"]);
    }

    #[test]
    fn malformed_lines_of_glue_are_skipped_and_counted() {
        let text = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta\tb\t0\n2\t3\t4\tc\t\t0\n3\t5\n4\t6\t7\td\te\t1.0\n";
        let rows = table_rows(text, "train.tsv", Separator::Tab, None).expect("read");
        let spec = TaskSpec::discover("glue/qqp", None, None, &rows).expect("valid");
        let set = encode(&spec, &rows, true, OnBadRow::Error).expect("usable");
        assert_eq!((set.examples.len(), set.n_skipped, set.n_malformed), (2, 2, 2));
        assert_eq!(set.examples[1].target, 1.0);
        // Without labels, every row gets its prediction.
        assert!(
            encode(&spec, &rows, false, OnBadRow::Error).expect_err("a bad row").contains("line 4: 2 fields")
        );
        assert!(
            encode(&spec, &rows[1..3], true, OnBadRow::Error)
                .expect_err("none")
                .contains("has all its texts")
        );
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
