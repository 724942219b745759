//! Rows of CSV and TSV files.

use crate::data::{DataError, Row};
use serde_json::{Map, Value};

/// How the fields of a line are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// CSV: quotes may surround a field (RFC 4180).
    Comma,
    /// TSV: no quoting, a quote is a character like any other (GLUE's files have bare quotes).
    Tab,
}

impl Separator {
    /// The separator that goes with a file's name, where it says so.
    pub fn of_file(file: &str) -> Option<Self> {
        let extension = file.rsplit_once('.')?.1.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Some(Separator::Comma),
            "tsv" | "tab" => Some(Separator::Tab),
            _ => None,
        }
    }
}

/// Rows from text; `file` names it in errors.
///
/// The first line names the columns, unless `columns` does. With `columns`, further fields of a line are left out.
///
/// # Errors
/// If there are no rows, or a line has too many or too few fields; the error names the line.
pub fn parse_table(
    text: &str,
    file: &str,
    separator: Separator,
    columns: Option<&[&str]>,
) -> Result<Vec<Row>, DataError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = match separator {
        Separator::Tab => tab_records(text),
        Separator::Comma => comma_records(text, file)?,
    };
    let open = columns.is_some();
    let names: Vec<String> = match columns {
        Some(columns) => columns.iter().map(|name| name.to_string()).collect(),
        None if records.is_empty() => return Err(DataError::Empty { file: file.into() }),
        None => records.remove(0).1.iter().map(|name| name.trim().to_string()).collect(),
    };
    if let Some((idx, twice)) = names.iter().enumerate().find(|(idx, name)| names[..*idx].contains(name)) {
        let reason = format!("column {} is called {twice:?}, like one before it; rename it", idx + 1);
        return Err(DataError::Row { place: format!("{file}, line 1"), reason });
    }
    let rows = records
        .into_iter()
        .map(|(line, fields)| {
            let place = format!("{file}, line {line}");
            let fits = fields.len() == names.len() || (open && fields.len() > names.len());
            if !fits {
                let reason =
                    format!("{} fields, expected {}: {}", fields.len(), names.len(), names.join(", "));
                return Err(DataError::Row { place, reason });
            }
            let values = fields.into_iter().map(Value::String);
            Ok(Row { fields: names.iter().cloned().zip(values).collect::<Map<_, _>>(), place })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

/// Line numbers and fields. Empty lines are left out.
fn tab_records(text: &str) -> Vec<(usize, Vec<String>)> {
    text.split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(idx, line)| (idx + 1, line.split('\t').map(str::to_string).collect()))
        .collect()
}

fn comma_records(text: &str, file: &str) -> Result<Vec<(usize, Vec<String>)>, DataError> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    reader
        .records()
        .map(|record| {
            let record = record.map_err(|error| DataError::Row {
                place: format!("{file}, line {}", error.position().map_or(0, |at| at.line())),
                reason: error.to_string(),
            })?;
            let line = record.position().map_or(0, |at| at.line() as usize);
            Ok((line, record.iter().map(str::to_string).collect()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(row: &Row, name: &str) -> String {
        row.fields[name].as_str().expect("text").into()
    }

    #[test]
    fn a_quote_in_a_tsv_is_a_character() {
        let text = "sentence\tlabel\n\" bare quote\t1\r\nit 's \"fine\"\t0\n";
        let rows = parse_table(text, "d.tsv", Separator::Tab, None).expect("read");
        assert_eq!(field(&rows[0], "sentence"), "\" bare quote");
        assert_eq!(field(&rows[1], "sentence"), "it 's \"fine\"");
        assert_eq!(rows[1].place, "d.tsv, line 3");
    }

    #[test]
    fn a_quoted_csv_field_may_hold_anything() {
        let text = "text,label\n\"a, \"\"b\"\"\nc\",1\nd,0\n";
        let rows = parse_table(text, "d.csv", Separator::Comma, None).expect("read");
        assert_eq!(field(&rows[0], "text"), "a, \"b\"\nc");
        assert_eq!(rows[1].place, "d.csv, line 4");
    }

    #[test]
    fn malformed_lines_are_errors_that_say_where() {
        let error = |text: &str, separator| {
            parse_table(text, "d", separator, None).expect_err("malformed").to_string()
        };
        assert_eq!(error("a\tb\n1\n", Separator::Tab), "d, line 2: 1 fields, expected 2: a, b");
        assert!(error("a,b\n1,2\n1,2,3\n", Separator::Comma).contains("line 3: 3 fields"));
        assert!(error("a,b\n\"1,2\n3,4\n", Separator::Comma).contains("line 2: 1 fields"));
        assert!(error("a,b\n", Separator::Comma).contains("no rows"));
        assert!(error("", Separator::Tab).contains("no rows"));
        assert!(error("a,a\n1,2\n", Separator::Comma).contains("called \"a\""));
    }

    #[test]
    fn a_file_without_names_gets_them() {
        let rows = parse_table("x\t1\t*\ty\n", "d", Separator::Tab, Some(&["source", "label", "star"]));
        assert_eq!(field(&rows.expect("read")[0], "label"), "1");
    }
}
