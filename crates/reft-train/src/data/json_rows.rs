//! Rows of JSON and JSON Lines files.

use super::{
    bad_rows::all_readable,
    error::DataError,
    json::{JsonError, parse, parse_stream},
    rows::Row,
};
use reft_models::files::kind_of;
use serde_json::{Map, Value};

/// Parses JSON Lines, a JSON array, or an object with a list of rows inside; `file` names it in errors.
///
/// # Errors
/// If there are no rows, or some are not JSON objects; the error names the lines.
pub fn parse_rows(text: &str, file: &str) -> Result<Vec<Row>, DataError> {
    all_readable(json_rows(text, file)?)
}

/// The same, with malformed rows among the others, see [`Row::readable`].
///
/// # Errors
/// If there are no rows, or the file as a whole is malformed.
pub(crate) fn json_rows(text: &str, file: &str) -> Result<Vec<Row>, DataError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = if text.trim_start().starts_with('[') {
        match parse(text).map_err(|error| file_error(file, error))? {
            Value::Array(values) => numbered(values, file),
            _ => Vec::new(),
        }
    } else {
        object_rows(text, file)?
    };
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

fn file_error(file: &str, error: JsonError) -> DataError {
    let JsonError { line, column, reason, .. } = error;
    DataError::Json { file: file.into(), line, column, reason }
}

fn numbered(values: impl IntoIterator<Item = Value>, file: &str) -> Vec<Row> {
    let rows = values.into_iter().enumerate();
    rows.map(|(idx, value)| row(value, format!("{file}, row {}", idx + 1))).collect()
}

fn row(value: Value, place: String) -> Row {
    match value {
        Value::Object(fields) => Row::from_fields(fields, place),
        other => {
            let problem = format!("expected an object, found {}", kind_of(&other));
            Row::unreadable(place, problem)
        }
    }
}

/// Objects on a line each, or over several lines.
fn object_rows(text: &str, file: &str) -> Result<Vec<Row>, DataError> {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if parse(first).is_ok() {
        let rows = line_rows(text, file);
        // The next object may begin on the line of another one.
        let is_all = rows.iter().all(|row| row.problem.is_none());
        let rows = if is_all { rows } else { stream_rows(text, file).unwrap_or(rows) };
        return unwrapped(rows, file);
    }
    match stream_rows(text, file) {
        Ok(rows) => unwrapped(rows, file),
        Err(error) => {
            let rows = line_rows(text, file);
            let is_lines = rows.iter().any(|row| row.problem.is_none());
            if is_lines { Ok(rows) } else { Err(file_error(file, first_line_error(text).unwrap_or(error))) }
        }
    }
}

/// The error of the first line, unless it may be continued on the next one.
fn first_line_error(text: &str) -> Option<JsonError> {
    let (idx, first) = text.lines().enumerate().find(|(_, line)| !line.trim().is_empty())?;
    let error = parse(first).err()?;
    (!error.is_end).then_some(JsonError { line: idx + 1, ..error })
}

fn line_rows(text: &str, file: &str) -> Vec<Row> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(idx, line)| match parse(line) {
        Ok(value) => row(value, format!("{file}, line {}", idx + 1)),
        Err(JsonError { column, reason, .. }) => Row::unreadable(
            format!("{file}, line {}, column {column}", idx + 1),
            format!("invalid JSON: {reason}"),
        ),
    });
    rows.collect()
}

fn stream_rows(text: &str, file: &str) -> Result<Vec<Row>, JsonError> {
    let values = parse_stream(text)?;
    Ok(values.into_iter().map(|(line, value)| row(value, format!("{file}, line {line}"))).collect())
}

/// Fields of rows. An object with one of them is a row, whatever else it has.
const ROW_FIELDS: [&str; 19] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "response",
    "text",
    "label",
    "sentence",
    "sentence1",
    "premise",
    "query",
    "system",
    "content",
];

/// The rows within an object that is all of a file, or the rows as they are.
fn unwrapped(mut rows: Vec<Row>, file: &str) -> Result<Vec<Row>, DataError> {
    let [only] = &mut rows[..] else { return Ok(rows) };
    if let Some(columns) = transposed(&only.fields) {
        return Ok(numbered(columns, file));
    }
    if only.fields.keys().any(|name| ROW_FIELDS.contains(&name.as_str())) {
        return Ok(rows);
    }
    let lists: Vec<String> = only
        .fields
        .iter()
        .filter(|(_, value)| is_list_of_rows(value))
        .map(|(name, _)| name.clone())
        .collect();
    // The answer of the Hub's data set viewer.
    let viewer = lists.iter().find(|name| *name == "rows" && is_viewer_list(&only.fields["rows"]));
    let name = match (viewer, &lists[..]) {
        (Some(name), _) | (None, [name]) => name,
        (None, []) => {
            let has_scalar = only.fields.values().any(|value| !value.is_array() && !value.is_object());
            return if has_scalar || only.fields.is_empty() || only.fields.values().any(is_chat) {
                Ok(rows)
            } else {
                Err(wrong_object(file, &only.fields))
            };
        }
        (None, names) => {
            let reason =
                format!("an object with several lists of rows: {}; save each as a file", names.join(", "));
            return Err(DataError::File { place: file.into(), reason });
        }
    };
    let values = match only.fields.swap_remove(name.as_str()) {
        Some(Value::Array(values)) => values,
        _ => Vec::new(),
    };
    let inner = |value| match value {
        Value::Object(mut fields) if viewer.is_some() => fields.swap_remove("row").unwrap_or_default(),
        other => other,
    };
    Ok(numbered(values.into_iter().map(inner), file))
}

/// The rows of an object of columns, each a list or, as pandas writes it, an object with the rows' numbers as keys.
fn transposed(columns: &Map<String, Value>) -> Option<Vec<Value>> {
    let is_split = columns.contains_key("columns") && columns.contains_key("data");
    if columns.len() < 2
        || is_split
        || columns.values().any(|column| is_chat(column) || is_list_of_rows(column))
    {
        return None;
    }
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let numbers = columns.values().next()?.as_object().map(|column| column.keys().collect::<Vec<_>>());
    let numbers = numbers.filter(|keys| keys.iter().all(|key| key.parse::<u64>().is_ok()));
    for (idx, (name, column)) in columns.iter().enumerate() {
        let values: Vec<&Value> = match column {
            Value::Array(list) => list.iter().collect(),
            // The columns may have the rows in different orders.
            Value::Object(object) if object.len() == numbers.as_ref()?.len() => {
                numbers.iter().flatten().map(|key| object.get(*key)).collect::<Option<_>>()?
            }
            _ => return None,
        };
        if idx == 0 {
            rows.resize(values.len(), Map::new());
        }
        if values.len() != rows.len() || values.is_empty() {
            return None;
        }
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value.clone());
        }
    }
    Some(rows.into_iter().map(Value::Object).collect())
}

/// A list of objects that are not the messages of a chat.
fn is_list_of_rows(value: &Value) -> bool {
    let objects = value.as_array().filter(|list| !list.is_empty() && list.iter().all(Value::is_object));
    objects.is_some() && !is_chat(value)
}

fn is_chat(value: &Value) -> bool {
    let is_message = |item: &Value| {
        let has = |name| item.get(name).is_some();
        (has("role") || has("from")) && ["content", "value", "tool_calls"].into_iter().any(has)
    };
    value.as_array().is_some_and(|list| list.iter().any(is_message))
}

fn is_viewer_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|item| item.get("row").is_some_and(Value::is_object)))
}

/// An object whose values are lists or objects, none of which is a list of rows.
fn wrong_object(file: &str, fields: &Map<String, Value>) -> DataError {
    let names: Vec<&str> = fields.keys().take(10).map(String::as_str).collect();
    let more = if fields.len() > names.len() { ", …" } else { "" };
    let reason = format!(
        "one object with the keys {}{more}, expected a list of rows [{{…}}, {{…}}] or a row {{…}} per line; with pandas: \
         to_json(\"rows.jsonl\", orient=\"records\", lines=True)",
        names.join(", ")
    );
    DataError::File { place: file.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        parse_rows(text, "d").expect("valid")
    }

    fn error(text: &str) -> String {
        parse_rows(text, "d.json").expect_err("unusable").to_string()
    }

    #[test]
    fn rows_come_as_lines_or_as_an_array() {
        let lines = rows("{\"a\": 1}\n\n{\"a\": 2}\r\n");
        let array = rows(" [{\"a\": 1},\n {\"a\": 2}]");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].fields, array[1].fields);
        assert_eq!((lines[1].place.as_str(), array[1].place.as_str()), ("d, line 3", "d, row 2"));
    }

    #[test]
    fn objects_may_take_several_lines_or_share_one() {
        let several = rows("{\n \"a\": 1\n}\n\n{\n \"a\": 2\n}\n");
        assert_eq!(several[1].place, "d, line 5");
        assert_eq!(several[1].fields["a"], 2);
        assert_eq!(rows("{\"a\": 1}{\"a\": 2}\n{\"a\":\n3}").len(), 3);
    }

    #[test]
    fn rows_within_an_object_are_found() {
        for text in [
            "{\"data\": [{\"a\": 1}, {\"a\": 2}]}",
            "{\n\"version\": \"1\",\n\"data\": [\n{\"a\": 1},\n{\"a\": 2}\n]\n}\n",
            "{\"features\": [{\"name\": \"a\"}], \"rows\": [{\"row_idx\": 0, \"row\": {\"a\": 1}}, {\"row\": {\"a\": 2}}]}",
        ] {
            let found = rows(text);
            assert_eq!((found.len(), &found[1].fields["a"]), (2, &2.into()), "{text}");
            assert_eq!(found[1].place, "d, row 2");
        }
        // A single row stays a row.
        for text in [
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            "{\"turns\": [{\"from\": \"human\", \"value\": \"x\"}]}",
            "{\"prompt\": \"p\", \"completion\": \"c\", \"notes\": [{\"a\": 1}]}",
            "{\"a\": 1}",
        ] {
            assert_eq!(rows(text).len(), 1, "{text}");
        }
        for columns in [
            "{\"text\": {\"0\": \"a\", \"1\": \"b\"}, \"label\": {\"0\": 1, \"1\": 2}}",
            "{\"text\": [\"a\", \"b\"],\n\"label\": [1, 2]}",
        ] {
            let found = rows(columns);
            assert_eq!(
                (found.len(), &found[1].fields["text"], &found[1].fields["label"]),
                (2, &"b".into(), &2.into())
            );
        }
        assert_eq!(
            error("{\"a\": [1, 2], \"b\": [3]}"),
            "d.json: one object with the keys a, b, expected a list of rows [{…}, {…}] or a row {…} per line; with pandas: \
             to_json(\"rows.jsonl\", orient=\"records\", lines=True)"
        );
        assert!(error("{\"data\": []}").contains("the keys data"));
        assert_eq!(
            error("{\"train\": [{\"a\": 1}], \"test\": [{\"a\": 1}]}"),
            "d.json: an object with several lists of rows: train, test; save each as a file"
        );
    }

    #[test]
    fn columns_of_numbered_values_are_joined_by_the_numbers() {
        let text = r#"{"a": {"0": "x", "1": "y", "10": "z"}, "b": {"10": "Z", "1": "Y", "0": "X"}}"#;
        let found = rows(text);
        let pairs: Vec<_> =
            found.iter().map(|row| (row.fields["a"].as_str(), row.fields["b"].as_str())).collect();
        assert_eq!(pairs, [(Some("x"), Some("X")), (Some("y"), Some("Y")), (Some("z"), Some("Z"))]);
        let other_numbers = r#"{"a": {"0": "x", "1": "y"}, "b": {"1": "Y", "2": "Z"}}"#;
        assert!(parse_rows(other_numbers, "d.json").map_or(true, |rows| rows.len() != 2));
    }

    #[test]
    fn unusable_files_are_errors_that_say_where() {
        let no_rows = "d.json: no rows; expected JSON Lines, a JSON array of objects, or a table with a line of column names";
        assert_eq!(error(""), no_rows);
        assert_eq!(error("[]"), no_rows);
        assert_eq!(
            error("{\"a\": 1}\n{oops}"),
            "d.json, line 2, column 2: invalid JSON: key must be a string"
        );
        assert_eq!(error("{\"a\": 1}\n3"), "d.json, line 2: expected an object, found a number");
        assert_eq!(error("[{\"a\": 1},]"), "d.json, line 1, column 11: invalid JSON: trailing comma");
        assert_eq!(error("[{\"a\": 1}, 2]"), "d.json, row 2: expected an object, found a number");
        let open = error("{\n \"a\": 1\n");
        assert!(open.starts_with("d.json, line 3, column 0: invalid JSON: EOF"), "{open}");
        assert!(
            error("{\"a\": 1},\n{\"a\": 2},\n")
                .contains("line 1, column 9: invalid JSON: trailing characters")
        );
        assert!(error("text,label\na,1\n").starts_with("d.json, line 1, column 2: invalid JSON"));
    }

    #[test]
    fn all_malformed_lines_are_reported_together() {
        let text: String = (0..30).map(|n| if n % 2 == 0 { "{\"a\": 1}\n" } else { "{\"a\": }\n" }).collect();
        let error = error(&text);
        assert!(
            error.starts_with("d.json: 15 of 30 rows cannot be used: line 2, column 7: invalid JSON"),
            "{error}"
        );
        assert!(error.contains("\n  and 5 more\n") && error.lines().count() == 12, "{error}");
    }
}
