//! Rows of CSV and TSV files.

use super::{bad_rows::all_readable, compression::extension, error::DataError, rows::Row};
use crate::count::count;
use serde_json::{Map, Value};

/// How the fields of a line are separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// CSV, with optional quotes around a field (RFC 4180).
    Comma,
    /// CSV with semicolons, as spreadsheets write it where the comma is in numbers.
    Semicolon,
    /// CSV with tabs, and with optional quotes.
    QuotedTab,
    /// CSV with vertical bars.
    Bar,
    /// TSV without quoting: GLUE's files have unbalanced quotes.
    Tab,
}

impl Separator {
    /// The separator that a file's extension stands for, if any.
    pub fn of_file(file: &str) -> Option<Self> {
        match extension(file).as_str() {
            "csv" => Some(Separator::Comma),
            "tsv" | "tab" => Some(Separator::Tab),
            _ => None,
        }
    }

    /// The separator that occurs in a line of column names, which overrides that of the file's extension.
    pub(super) fn of_header(file: &str, header: &str) -> Self {
        let by_name = Separator::of_file(file);
        let tab = if by_name == Some(Separator::Comma) { Separator::QuotedTab } else { Separator::Tab };
        if by_name == Some(Separator::Tab) && header.contains('\t') {
            return Separator::Tab;
        }
        let mut is_quoted = false;
        let mut counts = [0; 4];
        for char in header.chars() {
            is_quoted ^= char == '"';
            if let Some(idx) = [',', '\t', ';', '|'].iter().position(|other| *other == char && !is_quoted) {
                counts[idx] += 1;
            }
        }
        let separators = [Separator::Comma, tab, Separator::Semicolon, Separator::Bar];
        let most = counts.iter().copied().max().unwrap_or(0);
        let first = counts.iter().position(|count| *count == most).filter(|_| most > 0);
        first.map_or(by_name.unwrap_or(Separator::Tab), |idx| separators[idx])
    }

    /// TSV is quoted if a CSV writer wrote it: every quote belongs to a quoted field, and some were needed.
    pub(super) fn of_tsv(text: &str) -> Self {
        let mut needed = false;
        for (idx, line) in text.lines().enumerate() {
            let mut is_all_quoted = true;
            for field in line.split('\t') {
                if !field.contains('"') {
                    is_all_quoted = false;
                    continue;
                }
                let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
                let Some(inner) = inner else { return Separator::Tab };
                let pairs = inner.matches("\"\"").count();
                if 2 * pairs != inner.matches('"').count() {
                    return Separator::Tab;
                }
                needed |= pairs > 0;
            }
            needed |= idx == 0 && is_all_quoted;
        }
        if needed { Separator::QuotedTab } else { Separator::Tab }
    }

    /// The separator that a table declares in its first line, `sep=;`, as Excel reads and writes it; also the length of that
    /// line.
    pub(super) fn declared(text: &str) -> Option<(Self, usize)> {
        let start = text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len();
        let line = text[start..].split(['\r', '\n']).next().unwrap_or_default();
        let declaration = line.trim_matches(['"', ' ']);
        let (key, char) = declaration.split_at_checked("sep=".len())?;
        let separator = match char {
            "," => Separator::Comma,
            ";" => Separator::Semicolon,
            "|" => Separator::Bar,
            "\t" => Separator::QuotedTab,
            _ => return None,
        };
        key.eq_ignore_ascii_case("sep=").then_some((separator, start + line.len()))
    }

    fn byte(self) -> u8 {
        match self {
            Separator::Comma => b',',
            Separator::Semicolon => b';',
            Separator::QuotedTab | Separator::Tab => b'\t',
            Separator::Bar => b'|',
        }
    }
}

/// Parses a table; `file` names it in errors.
///
/// The first line names the columns, unless `columns` does. With `columns`, surplus fields of a line are ignored.
///
/// # Errors
/// If there are no rows, or lines have too many or too few fields; the error names the lines.
pub fn parse_table(
    text: &str,
    file: &str,
    separator: Separator,
    columns: Option<&[&str]>,
) -> Result<Vec<Row>, DataError> {
    all_readable(table_rows(text, file, separator, columns)?)
}

/// The same, with malformed rows among the others, see [`Row::readable`].
///
/// # Errors
/// If there are no rows, or two columns have the same name.
pub(crate) fn table_rows(
    text: &str,
    file: &str,
    separator: Separator,
    columns: Option<&[&str]>,
) -> Result<Vec<Row>, DataError> {
    // What is left of such a line is an empty one, so that the numbers of the others stay.
    let text = Separator::declared(text).map_or(text, |(_, end)| &text[end..]);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = match separator {
        Separator::Tab => tab_records(text),
        quoted => quoted_records(text, file, quoted.byte())?,
    };
    let names: Vec<String> = match columns {
        Some(columns) => columns.iter().map(|name| name.to_string()).collect(),
        None if records.is_empty() => return Err(DataError::Empty { file: file.into() }),
        None => column_names(records.remove(0), file)?,
    };
    let allows_surplus = columns.is_some();
    let rows: Vec<Row> =
        records.into_iter().map(|record| table_row(record, &names, allows_surplus, file)).collect();
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

/// A line of a table.
struct Record {
    /// The line on which it begins, from 1.
    line: usize,
    fields: Vec<String>,
    /// Whether it ends within quotes.
    is_open: bool,
}

/// The names of the columns. As pandas does, one without a name is called by its number.
fn column_names(header: Record, file: &str) -> Result<Vec<String>, DataError> {
    let name = |(idx, name): (usize, &String)| match name.trim() {
        "" => format!("Unnamed: {idx}"),
        name => name.to_string(),
    };
    let names: Vec<String> = header.fields.iter().enumerate().map(name).collect();
    match names.iter().enumerate().find(|(idx, name)| names[..*idx].contains(name)) {
        None => Ok(names),
        Some((idx, twice)) => {
            let reason =
                format!("column {} has the same name as an earlier one, {twice:?}; rename it", idx + 1);
            Err(DataError::File { place: format!("{file}, line {}", header.line), reason })
        }
    }
}

fn table_row(record: Record, names: &[String], allows_surplus: bool, file: &str) -> Row {
    let Record { line, mut fields, is_open } = record;
    let place = format!("{file}, line {line}");
    if is_open {
        return Row::unreadable(place, "a quote that is opened on this line is never closed");
    }
    let surplus = fields.get(names.len()..).unwrap_or_default();
    if allows_surplus || surplus.iter().all(|field| field.trim().is_empty()) {
        fields.truncate(names.len());
    }
    if fields.len() != names.len() {
        let shown: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
        let found = count(fields.len(), "field");
        return Row::unreadable(place, format!("{found}, expected {}: {}", names.len(), shown.join(", ")));
    }
    let values = fields.into_iter().map(Value::String);
    Row::from_fields(names.iter().cloned().zip(values).collect::<Map<_, _>>(), place)
}

/// The lines that are not empty.
fn tab_records(text: &str) -> Vec<Record> {
    text.split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(idx, line)| {
            let fields = line.split('\t').map(str::to_string).collect();
            Record { line: idx + 1, fields, is_open: false }
        })
        .collect()
}

fn quoted_records(text: &str, file: &str, separator: u8) -> Result<Vec<Record>, DataError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator)
        .from_reader(text.as_bytes());
    let mut records = Vec::new();
    let mut last_start = 0;
    for record in reader.records() {
        let record = record.map_err(|error| DataError::File {
            place: format!("{file}, line {}", error.position().map_or(0, |at| at.line())),
            reason: error.to_string(),
        })?;
        let (line, start) = record.position().map_or((0, 0), |at| (at.line() as usize, at.byte() as usize));
        // The position is before the empty lines that the reader skips.
        let rest = text.get(start..).unwrap_or_default();
        let n_skipped = rest.len() - rest.trim_start_matches(['\r', '\n']).len();
        let line = line + rest[..n_skipped].matches('\n').count();
        let start = start + n_skipped;
        let fields: Vec<String> = record.iter().map(str::to_string).collect();
        // A line of spaces is an empty line.
        if fields.len() > 1
            || fields.iter().any(|field| !field.trim().is_empty())
            || text.get(start..).is_some_and(|text| text.starts_with('"'))
        {
            last_start = start;
            records.push(Record { line, fields, is_open: false });
        }
    }
    if let Some(last) = records.last_mut() {
        last.is_open = last.fields.last().is_some_and(|field| field.contains('\n'))
            && text.get(last_start..).is_some_and(|text| text.matches('"').count() % 2 == 1);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(row: &Row, name: &str) -> String {
        row.fields[name].as_str().expect("text").into()
    }

    #[test]
    fn a_declared_separator_is_no_row_and_keeps_the_numbers_of_lines() {
        let declared = |text: &str| {
            Separator::declared(text).map(|(separator, end)| (separator, text[end..].to_string()))
        };
        assert_eq!(declared("sep=;\na;b"), Some((Separator::Semicolon, "\na;b".into())));
        for other in ["sep", "sep=", "sep=x\n", "a;b\nsep=;", "separator=;", "é=="] {
            assert_eq!(declared(other), None, "{other}");
        }
        let rows = parse_table("sep=;\na;b\n1;2\n", "d.csv", Separator::Semicolon, None).expect("rows");
        assert_eq!(
            (rows.len(), rows[0].place.as_str(), field(&rows[0], "b")),
            (1, "d.csv, line 3", "2".into())
        );
        let error = parse_table("sep=,\na,b\n1\n", "d.csv", Separator::Comma, None).expect_err("too few");
        assert!(error.to_string().starts_with("d.csv, line 3: 1 field, expected 2"), "{error}");
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
        let text = "text,label\n\"a, \"\"b\"\"\nc\",1\n\n  \nd,0\n";
        let rows = parse_table(text, "d.csv", Separator::Comma, None).expect("read");
        assert_eq!(field(&rows[0], "text"), "a, \"b\"\nc");
        assert_eq!((rows.len(), rows[1].place.as_str()), (2, "d.csv, line 6"));
        let one_column = parse_table("text\n\"\"\na\n", "d.csv", Separator::Comma, None).expect("read");
        assert_eq!((one_column.len(), field(&one_column[0], "text").as_str()), (2, ""));
        for text in ["text\n\n\n\"\"\nb\n", "text\r\n\r\n\r\n\"\"\r\nb\r\n"] {
            let rows = parse_table(text, "d", Separator::Comma, None).expect("read");
            let places: Vec<&str> = rows.iter().map(|row| row.place.as_str()).collect();
            assert_eq!(places, ["d, line 4", "d, line 5"], "{text:?}");
        }
    }

    #[test]
    fn a_tsv_of_a_csv_writer_is_recognized() {
        for (text, expected) in [
            ("text\tlabel\n\"a \"\"b\"\"\"\t1\nc\t0\n", Separator::QuotedTab),
            ("\"text\"\t\"label\"\n\"a\"\t\"1\"\n", Separator::QuotedTab),
            ("text\tlabel\n\"a \"\"b\"\"\"\t1\nit 's \"c\"\t0\n", Separator::Tab),
            ("text\tlabel\n\"a whole quote\"\t1\n", Separator::Tab),
            ("text\tlabel\n\" bare\t1\n", Separator::Tab),
            ("text\tlabel\na\t1\n", Separator::Tab),
            ("text\tlabel\n\"\t1\n", Separator::Tab),
        ] {
            assert_eq!(Separator::of_tsv(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_lines_are_errors_that_say_where() {
        let error = |text: &str, separator| {
            parse_table(text, "d", separator, None).expect_err("malformed").to_string()
        };
        assert_eq!(error("a\tb\n1\n", Separator::Tab), "d, line 2: 1 field, expected 2: a, b");
        assert_eq!(error("a,b\n1,2\n1,2,3\n", Separator::Comma), "d, line 3: 3 fields, expected 2: a, b");
        let open = "d, line 2: a quote that is opened on this line is never closed";
        assert_eq!(error("a,b\n\"1,2\n3,4\n", Separator::Comma), open);
        assert_eq!(error("a,b\n1,\"2\n3,4\n", Separator::Comma), open);
        let no_rows = "d: no rows; expected JSON Lines, a JSON array of objects, or a table with a line of column names";
        assert_eq!(error("a,b\n", Separator::Comma), no_rows);
        assert_eq!(error("", Separator::Tab), no_rows);
        assert_eq!(
            error("a,a\n1,2\n", Separator::Comma),
            "d, line 1: column 2 has the same name as an earlier one, \"a\"; rename it"
        );
        assert_eq!(
            error("a,b\n1\n1,2\n3\n", Separator::Comma),
            "d: 2 of 3 rows cannot be used: line 2: 1 field, expected 2: a, b\n  line 4: 1 field, expected 2: a, b\n\
             fix them, or skip them with data.on_bad_row = \"skip\" (--skip-bad-rows)"
        );
    }

    #[test]
    fn columns_can_be_named_by_the_caller() {
        let rows = parse_table("x\t1\t*\ty\n", "d", Separator::Tab, Some(&["source", "label", "star"]));
        assert_eq!(field(&rows.expect("read")[0], "label"), "1");
    }

    #[test]
    fn empty_names_and_empty_surplus_fields_are_accepted() {
        let rows = parse_table(",text,label,\n0,a,1,,\n", "d", Separator::Comma, None).expect("read");
        let names: Vec<&str> = rows[0].fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["Unnamed: 0", "text", "label", "Unnamed: 3"]);
    }

    #[test]
    fn the_separator_is_the_one_of_the_column_names() {
        let of = Separator::of_header;
        assert_eq!(of("d.csv", "text;label"), Separator::Semicolon);
        assert_eq!(of("d.csv", "text\tlabel"), Separator::QuotedTab);
        assert_eq!(of("d.csv", "text|label"), Separator::Bar);
        assert_eq!(of("d.csv", "\"a;b;c\",label"), Separator::Comma);
        assert_eq!(of("d.csv", "text"), Separator::Comma);
        assert_eq!(of("d.tsv.gz", "a,b\tlabel"), Separator::Tab);
        assert_eq!(of("d.tsv", "text,label"), Separator::Comma);
        assert_eq!(of("d.txt", "text,label"), Separator::Comma);
        assert_eq!(of("d", "text\tlabel"), Separator::Tab);
        let rows = parse_table("text;n\n\"a;b\";1,5\n", "d.csv", Separator::Semicolon, None).expect("read");
        assert_eq!((field(&rows[0], "text"), field(&rows[0], "n")), ("a;b".into(), "1,5".into()));
    }
}
