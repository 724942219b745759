//! Reading data files of any supported format, and splitting off held-out rows.

use super::{
    bad_rows::all_readable,
    compression::{decompress, extension},
    encoding::decode,
    error::DataError,
    formats::{foreign_format, shell_word},
    json_rows::json_rows,
    parquet_rows::{is_parquet, parquet_rows},
    rows::Row,
    table::{Separator, table_rows},
};
use crate::tiny;
use serde::de::IgnoredAny;
use std::{fs, io, path::Path};

/// Reads a file of JSON, JSON Lines, CSV, TSV or Parquet, which may be compressed with gzip or Zstandard.
///
/// # Errors
/// If the file cannot be read, is empty, or has malformed rows; the error names the lines.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, DataError> {
    all_readable(load_file(path)?)
}

/// Reads a data file, or an embedded one by its name.
///
/// # Errors
/// As [`read_rows`].
pub fn find_rows(name: &str) -> Result<Vec<Row>, DataError> {
    all_readable(load_rows(name)?)
}

/// Reads a data file, or an embedded one by its name, with malformed rows among the others, see [`Row::readable`].
///
/// # Errors
/// If the file cannot be read, is empty, or is malformed as a whole.
pub fn load_rows(name: &str) -> Result<Vec<Row>, DataError> {
    let Some(embedded) = name.strip_prefix(tiny::PREFIX) else { return load_file(Path::new(name)) };
    match tiny::data(embedded) {
        Some(text) => json_rows(text, name),
        None => {
            let error = io::Error::new(io::ErrorKind::NotFound, "no such embedded data");
            Err(DataError::Io { file: name.into(), error })
        }
    }
}

fn load_file(path: &Path) -> Result<Vec<Row>, DataError> {
    load_bytes(read_bytes(path)?, &path.display().to_string())
}

/// Parses the bytes of a data file, with malformed rows among the others, see [`Row::readable`]; `file` is its name.
///
/// # Errors
/// If the file is empty, of another format, or malformed as a whole.
pub fn load_bytes(bytes: Vec<u8>, file: &str) -> Result<Vec<Row>, DataError> {
    match contents(bytes, file)? {
        Contents::Rows(rows) => Ok(rows),
        Contents::Text(text) => match Syntax::of(&text, file) {
            Syntax::Json => json_rows(&text, file),
            Syntax::Table(separator) => table_rows(&text, file, separator, None),
        },
    }
}

/// What a file has.
pub(crate) enum Contents {
    /// The rows of a Parquet file.
    Rows(Vec<Row>),
    /// The text of another file.
    Text(String),
}

/// Reads a file and finds out what it has.
///
/// # Errors
/// If it cannot be read, or is of another format; the error says which, and how to convert it.
pub(crate) fn read_contents(path: &Path) -> Result<Contents, DataError> {
    contents(read_bytes(path)?, &path.display().to_string())
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let file = path.display().to_string();
    if path.is_dir() {
        return Err(DataError::File { place: file, reason: what_folder(path) });
    }
    if file.contains("://") && !path.exists() {
        let reason =
            format!("is an address, expected a file; download it first: curl -LO {}", shell_word(&file));
        return Err(DataError::File { place: file, reason });
    }
    fs::read(path).map_err(|error| DataError::Io { file, error })
}

fn contents(bytes: Vec<u8>, file: &str) -> Result<Contents, DataError> {
    let bytes = decompress(bytes, file)?;
    if is_parquet(&bytes) {
        return parquet_rows(bytes, file).map(Contents::Rows);
    }
    if let Some(reason) = foreign_format(&bytes, file) {
        return Err(DataError::File { place: file.into(), reason });
    }
    let text = decode(bytes, file)?;
    if text.trim().is_empty() {
        Err(DataError::Empty { file: file.into() })
    } else {
        Ok(Contents::Text(text))
    }
}

/// A message about a folder in place of a file.
fn what_folder(path: &Path) -> String {
    const KNOWN: [&str; 8] = ["csv", "tsv", "tab", "json", "jsonl", "ndjson", "parquet", "txt"];
    const SHOWN: usize = 10;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut names: Vec<String> =
        files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| KNOWN.contains(&extension(name).as_str()));
    names.sort();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    match names.len() {
        0 => "is a folder without data files; name a file".into(),
        _ => {
            names.truncate(SHOWN);
            format!("is a folder; name one of its files: {}{more}", names.join(", "))
        }
    }
}

/// How a text is read.
pub(crate) enum Syntax {
    /// JSON or JSON Lines.
    Json,
    /// CSV or TSV.
    Table(Separator),
}

impl Syntax {
    /// The syntax that a text begins with; the file's extension decides where that leaves a choice.
    pub(crate) fn of(text: &str, file: &str) -> Self {
        if let Some((separator, _)) = Separator::declared(text) {
            return Syntax::Table(separator);
        }
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let begins_as_json = text.trim_start().starts_with(['{', '[']);
        let is_json = match extension(file).as_str() {
            "json" | "jsonl" | "ndjson" => {
                begins_as_json || first.trim().starts_with('"') || !first.contains([',', ';', '\t'])
            }
            "csv" | "tsv" | "tab" => {
                // A name in brackets would be possible.
                begins_as_json
                    && (serde_json::from_str::<IgnoredAny>(first).is_ok()
                        || matches!(first.trim(), "{" | "[" | "[{"))
            }
            _ => begins_as_json,
        };
        if is_json {
            return Syntax::Json;
        }
        Syntax::Table(match Separator::of_header(file, first) {
            Separator::Tab => Separator::of_tsv(text),
            other => other,
        })
    }
}

/// The maximum tokens per row: the requested number, or the smaller of 512 and the model's context.
///
/// # Errors
/// If more is requested than the context holds.
pub fn max_length(requested: Option<usize>, context: usize) -> Result<usize, DataError> {
    match requested {
        Some(max_length) if max_length > context => Err(DataError::MaxLength { max_length, context }),
        Some(max_length) => Ok(max_length),
        None => Ok(context.min(512)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::io::Write;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().expect("created");
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        let shown = folder.path().display().to_string() + "/";
        read_rows(&path).map_err(|error| error.to_string().replace(&shown, ""))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    #[test]
    fn the_content_tells_how_a_file_is_read() {
        let table = b"prompt,completion\na,b\n";
        let line = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n";
        let array = b"[{\"prompt\": \"a\", \"completion\": \"b\"}]";
        let utf16: Vec<u8> =
            [0xff, 0xfe].into_iter().chain(table.iter().flat_map(|byte| [*byte, 0])).collect();
        let expected = read("d.jsonl", line).expect("read").remove(0).fields;
        for (name, bytes) in [
            ("d.json", &line[..]),
            ("d.jsonl", array),
            ("d", line),
            ("d.csv", line),
            ("d.txt", table),
            ("d", table),
            ("d.json", table),
            ("d.csv", b"prompt;completion\na;b\n"),
            ("d.csv", b"sep=;\r\nprompt;completion\r\na;b\r\n"),
            ("d.csv", b"\xef\xbb\xbf\"sep=|\"\nprompt|completion\na|b\n"),
            ("d.tsv", b"SEP=,\nprompt,completion\na,b\n"),
            ("d.csv", b"sep=\t\nprompt\tcompletion\na\tb\n"),
            ("d.csv", b"prompt\tcompletion\r\na\tb\r\n"),
            ("d.csv", b"prompt,completion\ra,b\r"),
            ("d.csv", b"\xef\xbb\xbfprompt,completion\na,b\n"),
            ("d.csv", &utf16),
            ("d.csv.gz", &gzip(table)),
            ("d.gz", &gzip(line)),
            ("d.jsonl.zst", &zstd::encode_all(&line[..], 1).expect("in memory")),
        ] {
            let rows = read(name, bytes).expect(name);
            assert_eq!((rows.len(), &rows[0].fields), (1, &expected), "{name}");
        }
        let parquet = include_bytes!("../../tests/fixtures/parquet/none.parquet");
        assert_eq!(read("d.csv", parquet).expect("read")[0].fields["text"], "good café");
        assert_eq!(read("d", &gzip(parquet)).expect("read").len(), 3);
    }

    #[test]
    fn files_that_are_no_data_are_named() {
        let no_rows =
            "no rows; expected JSON Lines, a JSON array of objects, or a table with a line of column names";
        for (name, bytes) in
            [("d.csv", &b""[..]), ("d.jsonl", b"\n\n"), ("d.csv", b"a,b\n"), ("d.json", b"[]")]
        {
            assert_eq!(read(name, bytes).expect_err(name), format!("{name}: {no_rows}"));
        }
        let address = find_rows("https://example.org/d.csv").expect_err("no file").to_string();
        assert_eq!(
            address,
            "https://example.org/d.csv: is an address, expected a file; download it first: curl -LO \
             https://example.org/d.csv"
        );
        assert!(read("d.json", b"oops").expect_err("no JSON").contains("invalid JSON"));
        assert_eq!(
            read("PAR1.csv", b"PAR1,b\n1,2\n").expect("a table")[0].fields["PAR1"],
            "1",
            "only a name of a column"
        );
        let folder = tempfile::tempdir().expect("created");
        let error = || read_rows(folder.path()).expect_err("a folder").to_string();
        assert!(error().ends_with(": is a folder without data files; name a file"));
        for name in ["b.csv.gz", "a.parquet", "notes.md"] {
            fs::write(folder.path().join(name), "").expect("written");
        }
        assert!(
            error().ends_with(": is a folder; name one of its files: a.parquet, b.csv.gz"),
            "{}",
            error()
        );
    }

    #[test]
    fn no_bytes_lead_to_a_panic() {
        let samples: [&[u8]; 7] = [
            b"{\"a\": [1, NaN, \"\\u00e9\\\\\"]}\n{\"b\": 123456789012345678901}\n\n{\"c\": {\"d\": null}}",
            b"[{\"a\": 1}, {\"b\": \"x\"}]",
            b"{\"data\": [{\"row\": {\"a\": 1}}], \"rows\": []}",
            b"{\"a\": [1, 2], \"b\": {\"0\": 1}}",
            b"a,\"b \"\"c\"\"\"\r\n\"x\ny\",1\n\n  \n\"\",\xc3\xa9\n",
            b"\xff\xfea\0,\0b\0\n\x001\0,\x002\0",
            b"a\tb\r1\t2\r",
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for sample in samples {
            for _ in 0..3000 {
                let mut bytes = sample.to_vec();
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bytes.len());
                    match rng.random_range(0..3) {
                        0 => bytes[at] = rng.random(),
                        1 => bytes.insert(at, sample[rng.random_range(0..sample.len())]),
                        _ => bytes.truncate(at.max(1)),
                    }
                }
                for name in ["d.csv", "d.json", "d.tsv", "d"] {
                    let _ = load_bytes(bytes.clone(), name);
                }
            }
        }
    }

    /// Fails with the numbers of rows per second.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_reading_50_000_rows() {
        let folder = tempfile::tempdir().expect("created");
        let text = "the quick brown fox jumps over the lazy dog, ".repeat(4);
        let mut lines = String::new();
        let mut table = String::from("id,instruction,output\n");
        for n in 0..50_000 {
            lines += &format!(
                "{{\"id\": {n}, \"instruction\": \"{text}\", \"output\": \"{text}\", \"score\": 0.5}}\n"
            );
            table += &format!("{n},\"{text}\",\"{text}\"\n");
        }
        let mut report = Vec::new();
        for (name, text) in [("d.jsonl", lines), ("d.csv", table)] {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            let times = (0..5).map(|_| {
                let begun = std::time::Instant::now();
                assert_eq!(read_rows(&path).expect("read").len(), 50_000);
                begun.elapsed().as_secs_f64()
            });
            let best = times.fold(f64::INFINITY, f64::min);
            report.push(format!("{name}: {:.0} rows/s", 50_000.0 / best));
        }
        panic!("{}", report.join(", "));
    }
}
