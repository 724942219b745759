//! Rows of CSV and TSV files.

use super::{error::DataError, rows::Row};
use crate::count::count;
use serde_json::{Map, Value};

/// How the fields of a line are separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// CSV, with optional quotes around a field (RFC 4180).
    Comma,
    /// TSV without quoting: GLUE's files have unbalanced quotes.
    Tab,
}

impl Separator {
    /// The separator that a file's extension stands for, if any.
    pub fn of_file(file: &str) -> Option<Self> {
        let extension = file.rsplit_once('.')?.1.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Some(Separator::Comma),
            "tsv" | "tab" => Some(Separator::Tab),
            _ => None,
        }
    }
}

/// Parses a table; `file` names it in errors.
///
/// The first line names the columns, unless `columns` does. With `columns`, surplus fields of a line are ignored.
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
    let allows_surplus = columns.is_some();
    let names: Vec<String> = match columns {
        Some(columns) => columns.iter().map(|name| name.to_string()).collect(),
        None if records.is_empty() => return Err(DataError::Empty { file: file.into() }),
        None => records.remove(0).1.iter().map(|name| name.trim().to_string()).collect(),
    };
    if let Some((idx, twice)) = names.iter().enumerate().find(|(idx, name)| names[..*idx].contains(name)) {
        let reason = format!("column {} has the same name as an earlier one, {twice:?}; rename it", idx + 1);
        return Err(DataError::Row { place: format!("{file}, line 1"), reason });
    }
    let rows = records
        .into_iter()
        .map(|(line, fields)| {
            let place = format!("{file}, line {line}");
            let fits = fields.len() == names.len() || (allows_surplus && fields.len() > names.len());
            if !fits {
                let reason = format!(
                    "{}, expected {}: {}",
                    count(fields.len(), "field"),
                    names.len(),
                    names.join(", ")
                );
                return Err(DataError::Row { place, reason });
            }
            let values = fields.into_iter().map(Value::String);
            Ok(Row::from_fields(names.iter().cloned().zip(values).collect::<Map<_, _>>(), place))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

/// Line numbers and fields, without empty lines.
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
    fn quotes_in_a_tsv_are_plain_characters() {
        let text = "sentence\tlabel\n\" bare quote\t1\r\nit 's \"fine\"\t0\n";
        let rows = parse_table(text, "d.tsv", Separator::Tab, None).expect("read");
        assert_eq!(field(&rows[0], "sentence"), "\" bare quote");
        assert_eq!(field(&rows[1], "sentence"), "it 's \"fine\"");
        assert_eq!(rows[1].place, "d.tsv, line 3");
    }

    #[test]
    fn a_quoted_csv_field_may_contain_anything() {
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
        assert_eq!(error("a\tb\n1\n", Separator::Tab), "d, line 2: 1 field, expected 2: a, b");
        assert_eq!(error("a,b\n1,2\n1,2,3\n", Separator::Comma), "d, line 3: 3 fields, expected 2: a, b");
        assert_eq!(error("a,b\n\"1,2\n3,4\n", Separator::Comma), "d, line 2: 1 field, expected 2: a, b");
        let no_rows = "d: no rows; expected JSON Lines or a JSON array of objects";
        assert_eq!(error("a,b\n", Separator::Comma), no_rows);
        assert_eq!(error("", Separator::Tab), no_rows);
        assert_eq!(
            error("a,a\n1,2\n", Separator::Comma),
            "d, line 1: column 2 has the same name as an earlier one, \"a\"; rename it"
        );
    }

    #[test]
    fn columns_can_be_named_by_the_caller() {
        let rows = parse_table("x\t1\t*\ty\n", "d", Separator::Tab, Some(&["source", "label", "star"]));
        assert_eq!(field(&rows.expect("read")[0], "label"), "1");
    }
}
