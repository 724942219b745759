//! Rows of a task as texts, targets and tokens.

use super::{
    columns::missing,
    glue::Glue,
    labels::{Label, canonical_number},
    spec::TaskSpec,
};
use crate::data::{BadRows, DataError, LabeledSet, LabeledText, OnBadRow, Row};
use reft_models::Tokenizer;
use serde_json::Value;
use std::borrow::Cow;

impl TaskSpec {
    pub(super) fn label(&self, row: &Row) -> Result<Label, DataError> {
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
            let number = number.and_then(|text| text.parse().ok());
            // Losses are computed in f32.
            return number.filter(|value: &f64| (*value as f32).is_finite()).ok_or_else(|| {
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
        set.skipped_notice = bad.notice();
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::spec::tests::{discover, rows},
        *,
    };
    use crate::data::{Separator, parse_rows, table_rows};

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

    /// Fails with the number of rows per second.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_encoding_50_000_rows() {
        let text = "the quick brown fox jumps over the lazy dog";
        let lines: String =
            (0..50_000).map(|n| format!("{{\"text\": \"{text} {n}\", \"label\": {}}}\n", n % 3)).collect();
        let (rows, tokenizer) = (rows(&lines), tokenizer());
        let times = (0..3).map(|_| {
            let begun = std::time::Instant::now();
            let spec = TaskSpec::discover("classification", None, None, &rows).expect("valid");
            let discovered = begun.elapsed().as_secs_f64();
            let vocab = tokenizer.vocab_size();
            let set = spec.encode(&rows, &tokenizer, vocab, 64, true, OnBadRow::Error).expect("usable");
            assert_eq!(set.examples.len(), 50_000);
            (begun.elapsed().as_secs_f64(), discovered)
        });
        let best = times.fold((f64::INFINITY, 0.0), |a, b| if a.0 < b.0 { a } else { b });
        panic!("{:.0} rows/s, of which columns and labels take {:.3} s", 50_000.0 / best.0, best.1);
    }
}
