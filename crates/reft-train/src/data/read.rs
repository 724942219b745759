//! Reading data files of any supported format, and splitting off held-out rows.

use super::{
    error::DataError,
    rows::{Row, parse_rows},
    table::{Separator, parse_table},
};
use crate::{recipe::DataSection, tiny};
use std::{fs, io, path::Path};

/// Reads a file of JSON Lines, a JSON array or, by its extension, CSV or TSV.
///
/// # Errors
/// If the file cannot be read, is empty or is malformed; the error names the line.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, DataError> {
    let file = path.display().to_string();
    let text = read_text(path)?;
    match Separator::of_file(&file) {
        Some(separator) => parse_table(&text, &file, separator, None),
        None => parse_rows(&text, &file),
    }
}

/// Reads a data file, or an embedded one by its name.
///
/// # Errors
/// As [`read_rows`].
pub fn find_rows(name: &str) -> Result<Vec<Row>, DataError> {
    let Some(embedded) = name.strip_prefix(tiny::PREFIX) else { return read_rows(Path::new(name)) };
    match tiny::data(embedded) {
        Some(text) => parse_rows(text, name),
        None => {
            let error = io::Error::new(io::ErrorKind::NotFound, "no such embedded data");
            Err(DataError::Io { file: name.into(), error })
        }
    }
}

pub(crate) fn read_text(path: &Path) -> Result<String, DataError> {
    fs::read_to_string(path).map_err(|error| DataError::Io { file: path.display().to_string(), error })
}

/// Reads the training rows and the held-out rows of a recipe.
///
/// # Errors
/// If a file cannot be read, or no row would be left to train on.
pub fn read_split(
    data: &DataSection,
    read: impl Fn(&str) -> Result<Vec<Row>, DataError>,
) -> Result<(Vec<Row>, Vec<Row>), DataError> {
    let mut train = read(&data.train)?;
    let mut held_out = match &data.eval {
        Some(file) => read(file)?,
        None => Vec::new(),
    };
    match (data.eval_rows, &data.eval) {
        (Some(n), Some(_)) => held_out.truncate(n),
        (Some(n), None) if n >= train.len() => {
            return Err(DataError::TooFewRows { file: data.train.clone(), rows: train.len(), held_out: n });
        }
        (Some(n), None) => held_out = train.split_off(train.len() - n),
        (None, _) => {}
    }
    if let Some(n) = data.train_rows {
        train.truncate(n);
    }
    Ok((train, held_out))
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
