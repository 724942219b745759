//! The rows of a task's files, and the columns that a task reads.

use super::glue;
use crate::data::{
    Contents, DataError, Row, Separator, Syntax, all_readable, json_rows, read_contents, table_rows,
};
use std::path::Path;

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

/// The first candidate whose columns all exist in a row.
pub(super) fn pick(
    rows: &[Row],
    candidates: &[Vec<&str>],
    key: &str,
    task: &str,
) -> Result<Vec<String>, DataError> {
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

pub(super) fn missing(row: &Row, candidates: &[Vec<&str>], advice: &str) -> DataError {
    let expected: Vec<String> = candidates.iter().map(|names| names.join(" and ")).collect();
    let found: Vec<&str> = row.fields.keys().take(20).map(String::as_str).collect();
    row.error(format!(
        "no column named {}; the columns are {}; {advice}",
        expected.join(", or "),
        found.join(", ")
    ))
}
