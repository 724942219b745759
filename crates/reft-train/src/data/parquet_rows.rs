//! Rows of Parquet files.

use super::{
    compression::{expansion_limit, too_large},
    error::DataError,
    rows::Row,
};
use crate::{device::catch_panic, memory::format_bytes};
use bytes::Bytes;
use parquet::{
    basic::{LogicalType, TimeUnit},
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row as Record},
};
use serde_json::{Map, Number, Value};
use std::{collections::HashSet, panic::AssertUnwindSafe, thread};

/// Whether a file begins as Parquet does.
pub(super) fn is_parquet(bytes: &[u8]) -> bool {
    // The name of a column may begin like this, but a control character does not follow there.
    bytes.starts_with(b"PAR1") && bytes.get(4).is_none_or(|byte| *byte < b' ' && !byte.is_ascii_whitespace())
}

/// The rows of a Parquet file; `file` names it in errors.
///
/// # Errors
/// If the file is incomplete or damaged, has no rows, or has a column of bytes that are not text.
pub(super) fn parquet_rows(bytes: Vec<u8>, file: &str) -> Result<Vec<Row>, DataError> {
    if bytes.len() < 12 || !bytes.ends_with(b"PAR1") {
        return Err(unreadable(
            file,
            "the Parquet data has no end, so the file is incomplete; copy or download it again",
        ));
    }
    let stack = stack_size(&bytes);
    // The crate panics on some damaged files.
    let read = || catch_panic(AssertUnwindSafe(|| read(Bytes::from(bytes), file, MAX_TEXT)));
    let rows = thread::scope(|scope| {
        let reader = thread::Builder::new().stack_size(stack).spawn_scoped(scope, read);
        reader.map(|thread| thread.join().unwrap_or_else(|_| Err("no message".into())))
    });
    match rows {
        Ok(Ok(Ok(rows))) if rows.is_empty() => Err(DataError::Empty { file: file.into() }),
        Ok(Ok(rows)) => rows,
        Ok(Err(panic)) => Err(damaged(file, &panic)),
        Err(error) => Err(damaged(file, &error.to_string())),
    }
}

/// The crate recurses once per level of the schema, each of which takes at least 8 bytes at the end of the file.
fn stack_size(bytes: &[u8]) -> usize {
    const BYTES_PER_BYTE: usize = 512;
    let metadata = bytes.len().checked_sub(8).and_then(|at| bytes.get(at..at + 4)?.try_into().ok());
    let metadata = metadata.map_or(0, u32::from_le_bytes) as usize;
    (8 << 20) + metadata.min(bytes.len()).saturating_mul(BYTES_PER_BYTE)
}

/// Limit of the texts of a file in bytes. A repeated text is stored once, so the file's own size says little.
const MAX_TEXT: u64 = 16 << 30;
/// Limit of the levels of lists and structs, that of JSON.
const MAX_DEPTH: usize = 127;

fn unreadable(file: &str, reason: impl Into<String>) -> DataError {
    DataError::File { place: file.into(), reason: reason.into() }
}

fn damaged(file: &str, reason: &str) -> DataError {
    let reason = reason.lines().next().unwrap_or_default();
    unreadable(
        file,
        format!(
            "the Parquet data is damaged or of an unsupported kind ({reason}); write it again, for example with pandas"
        ),
    )
}

fn read(bytes: Bytes, file: &str, max_text: u64) -> Result<Vec<Row>, DataError> {
    let n_bytes = bytes.len() as u64;
    let failed = |error: ParquetError| damaged(file, &error.to_string());
    let reader = SerializedFileReader::new(bytes).map_err(failed)?;
    let sizes = reader.metadata().row_groups().iter().map(|group| group.total_byte_size());
    let size = sizes.fold(0_u64, |sum, size| sum.saturating_add(u64::try_from(size).unwrap_or(u64::MAX)));
    let limit = expansion_limit(n_bytes);
    if size > limit {
        return Err(unreadable(file, too_large(n_bytes, limit)));
    }
    let schema = reader.metadata().file_metadata().schema_descr().root_schema();
    let mut names = HashSet::new();
    if let Some(twice) = schema.get_fields().iter().find(|column| !names.insert(column.name())) {
        let reason = format!("the column {:?} appears twice; rename one of them", twice.name());
        return Err(unreadable(file, reason));
    }
    let nanoseconds: HashSet<String> = schema
        .get_fields()
        .iter()
        .filter(|column| is_in_nanoseconds(column.get_basic_info().logical_type_ref()))
        .map(|column| column.name().to_string())
        .collect();
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    if columns.iter().any(|column| column.path().parts().len() > MAX_DEPTH) {
        return Err(unreadable(
            file,
            format!("lists and structs are nested more than {MAX_DEPTH} levels deep"),
        ));
    }
    let records = reader.get_row_iter(None).map_err(failed)?;
    let mut n_text = 0;
    records
        .enumerate()
        .map(|(idx, record)| {
            let place = format!("{file}, row {}", idx + 1);
            match fields(record.map_err(failed)?, &nanoseconds) {
                Ok(fields) => {
                    n_text += fields.values().map(text_size).sum::<u64>();
                    if n_text > max_text {
                        let limit = format_bytes(max_text);
                        return Err(unreadable(
                            file,
                            format!("has texts of more than {limit}; split the file"),
                        ));
                    }
                    Ok(Row::from_fields(fields, place))
                }
                Err(column) => Err(DataError::File {
                    place,
                    reason: format!("column {column:?} has bytes that are not UTF-8 text; leave it out"),
                }),
            }
        })
        .collect()
}

/// Bytes of the texts in a value.
fn text_size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(text_size).sum(),
        Value::Object(fields) => fields.values().map(text_size).sum(),
        _ => 0,
    }
}

/// Whether a column has times that the crate returns as whole numbers.
fn is_in_nanoseconds(kind: Option<&LogicalType>) -> bool {
    matches!(kind, Some(LogicalType::Timestamp(time)) if time.unit == TimeUnit::NANOS)
}

/// The fields of a record, or the name of a column that is not text.
fn fields(record: Record, nanoseconds: &HashSet<String>) -> Result<Map<String, Value>, String> {
    record
        .into_columns()
        .into_iter()
        .map(|(name, field)| {
            let field = match field {
                Field::Long(time) if nanoseconds.contains(&name) => {
                    Field::TimestampMicros(time.div_euclid(1000))
                }
                other => other,
            };
            match value(field) {
                Some(value) => Ok((name, value)),
                None => Err(name),
            }
        })
        .collect()
}

/// A JSON value; none for bytes that are not text.
fn value(field: Field) -> Option<Value> {
    let number = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => number(value.to_f64()),
        // The digits of the f32, not those of its value as f64.
        Field::Float(value) => number(value.to_string().parse().unwrap_or(f64::NAN)),
        Field::Double(value) => number(value),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).ok()?.into(),
        Field::Group(record) => Value::Object(fields(record, &HashSet::new()).ok()?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Option<_>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, entry)| {
                let key = match key {
                    Field::Str(text) => text.clone(),
                    other => other.to_string(),
                };
                Some((key, value(entry.clone())?))
            });
            Value::Object(entries.collect::<Option<_>>()?)
        }
        // Decimals, dates and times.
        other => other.to_string().trim_end_matches(" +00:00").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&[u8]; 6] = [
        include_bytes!("../../tests/fixtures/parquet/none.parquet"),
        include_bytes!("../../tests/fixtures/parquet/snappy.parquet"),
        include_bytes!("../../tests/fixtures/parquet/zstd.parquet"),
        include_bytes!("../../tests/fixtures/parquet/gzip.parquet"),
        include_bytes!("../../tests/fixtures/parquet/lz4.parquet"),
        include_bytes!("../../tests/fixtures/parquet/brotli.parquet"),
    ];

    #[test]
    fn rows_are_those_of_python() {
        let expected = include_str!("../../tests/fixtures/parquet/rows.json");
        let expected: Vec<Map<String, Value>> = serde_json::from_str(expected).expect("valid");
        for file in FILES {
            let rows = parquet_rows(file.to_vec(), "d.parquet").expect("read");
            assert_eq!(rows[2].place, "d.parquet, row 3");
            assert_eq!(rows.len(), expected.len());
            for (row, expected) in rows.iter().zip(&expected) {
                for (name, expected) in expected {
                    let found = &row.fields[name];
                    match expected.as_str().filter(|_| name == "time") {
                        // Milliseconds, which Python shows as microseconds.
                        Some(time) => assert_eq!(found.as_str(), Some(time.trim_end_matches("000"))),
                        None => assert_eq!(found, expected, "{name}"),
                    }
                }
            }
        }
    }

    #[test]
    fn unusable_files_are_errors() {
        let error =
            |bytes: &[u8]| parquet_rows(bytes.to_vec(), "d.parquet").expect_err("unusable").to_string();
        assert_eq!(
            error(include_bytes!("../../tests/fixtures/parquet/bytes.parquet")),
            "d.parquet, row 1: column \"image\" has bytes that are not UTF-8 text; leave it out"
        );
        assert_eq!(
            error(include_bytes!("../../tests/fixtures/parquet/deep.parquet")),
            "d.parquet: lists and structs are nested more than 127 levels deep"
        );
        let read = read(Bytes::from(FILES[0]), "d.parquet", 10).expect_err("too large").to_string();
        assert!(read.ends_with("MiB; split the file"), "{read}");
        let incomplete =
            "d.parquet: the Parquet data has no end, so the file is incomplete; copy or download it again";
        assert_eq!(error(&FILES[0][..3000]), incomplete);
        assert_eq!(error(b"PAR1"), incomplete);
        // No damage leads to a panic.
        for file in FILES {
            for at in (4..file.len() - 4).step_by(7) {
                let mut damaged = file.to_vec();
                damaged[at] ^= 0xff;
                let _ = parquet_rows(damaged, "d.parquet");
            }
        }
    }
}
