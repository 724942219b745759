//! Labels of a classification: which are equal, how they are spelled, and their order.
//!
//! As in pandas, a column of numbers is compared by value (`1`, `1.0` and `01` are one label), and so is a column of
//! booleans (`True`, `true`); among numbers, true is 1. Any other column is text, whose spelling counts.

use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// A label as a file has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Label {
    /// A text, such as the field of a table, which may spell a number or a boolean.
    Text(String),
    /// A number of JSON, as text.
    Number(String),
    /// A boolean of JSON.
    Bool(bool),
}

/// Texts that stand for no value, those of pandas.
const MISSING: [&str; 18] = [
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

impl Label {
    /// The label of a field, without surrounding spaces.
    ///
    /// # Errors
    /// If there is none; the message says what there is.
    pub(super) fn of(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => match text.trim() {
                "" => Err("is empty; every row needs a label".into()),
                missing if MISSING.contains(&missing) => {
                    Err(format!("is {missing:?}, which stands for no label; every row needs a label"))
                }
                text => Ok(Label::Text(text.into())),
            },
            Value::Number(number) => Ok(Label::Number(number.to_string())),
            Value::Bool(value) => Ok(Label::Bool(*value)),
            Value::Null => Err("is empty; every row needs a label".into()),
            Value::Array(_) | Value::Object(_) => Err("is a list or an object, expected a label".into()),
        }
    }

    /// The spelling in a column of texts.
    pub(super) fn text(&self) -> &str {
        match self {
            Label::Text(text) | Label::Number(text) => text,
            Label::Bool(true) => TRUE,
            Label::Bool(false) => FALSE,
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self {
            Label::Bool(value) => Some(*value),
            Label::Text(text) => boolean(text),
            Label::Number(_) => None,
        }
    }
}

const TRUE: &str = "True";
const FALSE: &str = "False";

fn boolean(text: &str) -> Option<bool> {
    match text {
        "True" | "true" | "TRUE" => Some(true),
        "False" | "false" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The number that a text spells, in its shortest form.
pub(super) fn canonical_number(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let value: f64 = text.parse().ok().filter(|value: &f64| is_number && value.is_finite())?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    // Digits are kept as they are, because ids can have more of them than a float holds.
    if whole.bytes().all(|byte| byte.is_ascii_digit()) && fraction.bytes().all(|byte| byte == b'0') {
        let whole = whole.trim_start_matches('0');
        let sign = if text.starts_with('-') && !whole.is_empty() { "-" } else { "" };
        return Some(format!("{sign}{}", if whole.is_empty() { "0" } else { whole }));
    }
    // Without a sign for -0.
    Some((value + 0.0).to_string())
}

/// The number that a text spells, where true is 1.
fn numeric(text: &str) -> Option<String> {
    canonical_number(text).or_else(|| boolean(text).map(|value| u8::from(value).to_string()))
}

/// The labels of a column, spelled alike and in order: numbers ascending, texts alphabetically.
pub(super) fn distinct(column: &HashSet<Label>) -> Vec<String> {
    let booleans: Option<HashSet<bool>> = column.iter().map(Label::boolean).collect();
    if let Some(booleans) = booleans {
        return [(false, FALSE), (true, TRUE)]
            .into_iter()
            .filter(|(value, _)| booleans.contains(value))
            .map(|(_, text)| text.into())
            .collect();
    }
    let numbers: Option<HashSet<String>> = column.iter().map(|label| numeric(label.text())).collect();
    let is_numeric = numbers.is_some();
    let texts = || column.iter().map(|label| label.text().to_string()).collect();
    let mut labels: Vec<String> = numbers.unwrap_or_else(texts).into_iter().collect();
    labels.sort_unstable();
    if is_numeric {
        let value = |text: &String| text.parse::<f64>().unwrap_or_default();
        labels.sort_by(|a, b| value(a).total_cmp(&value(b)));
    }
    labels
}

/// Finds labels by their spelling or value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LabelIndex {
    by_text: HashMap<String, usize>,
    /// By the shortest form of the number; empty if a label is neither a number nor a boolean.
    by_number: HashMap<String, usize>,
}

impl LabelIndex {
    pub(super) fn new(labels: &[String]) -> Self {
        let mut index = LabelIndex::default();
        for (idx, label) in labels.iter().enumerate() {
            index.by_text.entry(label.clone()).or_insert(idx);
        }
        let numbers: Option<Vec<String>> = labels.iter().map(|label| numeric(label)).collect();
        for (idx, number) in numbers.into_iter().flatten().enumerate() {
            index.by_number.entry(number).or_insert(idx);
        }
        index
    }

    pub(super) fn find(&self, label: &Label) -> Option<usize> {
        let text = label.text();
        let by_text = self.by_text.get(text).copied();
        let by_number = || numeric(text).and_then(|number| self.by_number.get(&number).copied());
        // A column of texts may spell the booleans and numbers of JSON in another way.
        let respelled = || match label {
            Label::Text(_) => None,
            Label::Bool(value) => {
                let spellings = if *value { ["true", "TRUE"] } else { ["false", "FALSE"] };
                spellings.iter().find_map(|text| self.by_text.get(*text).copied())
            }
            Label::Number(text) => self.by_text.get(&canonical_number(text)?).copied(),
        };
        by_text.or_else(by_number).or_else(respelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn column(values: Value) -> HashSet<Label> {
        let values = values.as_array().expect("a list");
        values.iter().map(|value| Label::of(value).expect("a label")).collect()
    }

    #[test]
    fn numbers_and_booleans_are_compared_by_value() {
        // As `sorted(pandas.read_csv(…).label.unique())`.
        assert_eq!(distinct(&column(json!(["1", "0", "1.0", "0.0", " 01", "1e0"]))), ["0", "1"]);
        assert_eq!(distinct(&column(json!(["True", "False", "true", "FALSE", true]))), ["False", "True"]);
        assert_eq!(
            distinct(&column(json!(["10", "9", "-1", "0.5", "2e3"]))),
            ["-1", "0.5", "9", "10", "2000"]
        );
        assert_eq!(distinct(&column(json!([1, "0", true, false, 1.0]))), ["0", "1"]);
        // A single text makes a column of texts.
        assert_eq!(distinct(&column(json!(["1", "1.0", "one"]))), ["1", "1.0", "one"]);
        assert_eq!(distinct(&column(json!(["True", "true", "maybe"]))), ["True", "maybe", "true"]);
        assert_eq!(distinct(&column(json!(["inf", "1"]))), ["1", "inf"]);
        let ids = ["12345678901234567890123", "12345678901234567890124"];
        assert_eq!(distinct(&column(json!(ids))), ids);
    }

    #[test]
    fn labels_of_another_file_are_found_by_value() {
        let find = |labels: &[&str], value: Value| {
            let labels: Vec<String> = labels.iter().map(|label| label.to_string()).collect();
            LabelIndex::new(&labels).find(&Label::of(&value).expect("a label"))
        };
        for value in [json!(1), json!(1.0), json!("1.0"), json!("1"), json!(true), json!("True")] {
            assert_eq!(find(&["0", "1"], value.clone()), Some(1), "{value}");
            assert_eq!(find(&["False", "True"], value.clone()), Some(1), "{value}");
            // Adapters of earlier versions.
            assert_eq!(find(&["false", "true"], value.clone()), Some(1), "{value}");
            assert_eq!(find(&["0.0", "1.0"], value), Some(1));
        }
        assert_eq!(find(&["0", "0.0", "1", "1.0"], json!("1.0")), Some(3));
        assert_eq!(find(&["0", "1"], json!(2)), None);
        assert_eq!(find(&["0", "1"], json!("one")), None);
        assert_eq!(find(&["1", "one"], json!("1.0")), None);
        assert_eq!(find(&["1", "one"], json!(1.0)), Some(0));
        assert_eq!(find(&["true", "unknown"], json!(true)), Some(0));
        assert_eq!(find(&["yes", "no"], json!(true)), None);
    }

    #[test]
    fn missing_values_are_no_labels() {
        for value in
            [json!(null), json!(""), json!("  "), json!("nan"), json!("NaN"), json!("NA"), json!("null")]
        {
            let reason = Label::of(&value).expect_err("none");
            assert!(reason.ends_with("every row needs a label"), "{reason}");
        }
        assert!(Label::of(&json!([1])).is_err());
        assert_eq!(Label::of(&json!("none")), Ok(Label::Text("none".into())));
    }

    #[test]
    fn numbers_have_one_spelling() {
        for (text, expected) in [
            ("007", "7"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("+1.50", "1.5"),
            (".5", "0.5"),
            ("1.", "1"),
            ("1e3", "1000"),
            ("-2.0", "-2"),
            ("1e-2", "0.01"),
        ] {
            assert_eq!(canonical_number(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", ".", "inf", "nan", "1,5", "1 2", "0x1", "1_000", "e5", "-", "1e999", "١"] {
            assert_eq!(canonical_number(text), None, "{text}");
        }
    }
}
