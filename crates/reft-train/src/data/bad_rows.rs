//! Rows that cannot be used: reported together, or skipped and counted.

use super::{error::DataError, rows::Row};
use crate::count::count;
use serde::{Deserialize, Serialize};

/// What happens if a data file has rows that cannot be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// The file is refused, with a report of all such rows.
    #[default]
    Error,
    /// They are skipped and counted.
    Skip,
}

/// Collects the rows of a file that cannot be used.
///
/// ```ignore
/// let mut bad = BadRows::default();
/// for row in rows {
///     let Some(example) = bad.keep(row.readable().and_then(encode))? else { continue };
///     examples.push(example);
/// }
/// let n_skipped = bad.finish(on_bad_row, rows.len())?;
/// ```
#[derive(Debug, Clone, Default)]
pub struct BadRows {
    /// The place and the reason of the first ones.
    shown: Vec<(String, String)>,
    count: usize,
    /// Whether all of them have the same reason.
    is_one_reason: bool,
}

/// Number of rows that a report shows.
const SHOWN: usize = 10;

impl BadRows {
    /// Passes on a row's result, or records the error of the row and returns nothing.
    ///
    /// # Errors
    /// If the error is not about a single row.
    pub fn keep<T>(&mut self, result: Result<T, DataError>) -> Result<Option<T>, DataError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(DataError::Row { place, reason }) => {
                self.add(place, reason);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    fn add(&mut self, place: String, reason: String) {
        self.is_one_reason =
            self.shown.first().is_none_or(|(_, first)| self.is_one_reason && *first == reason);
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push((place, reason));
        }
    }

    /// Number of rows recorded.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of skipped rows, of `n_rows` in the file.
    ///
    /// # Errors
    /// If rows were recorded that are not to be skipped, or no other rows are left.
    pub fn finish(&self, on_bad_row: OnBadRow, n_rows: usize) -> Result<usize, DataError> {
        let is_all = self.count >= n_rows;
        let Some((place, reason)) = self.shown.first() else { return Ok(0) };
        match on_bad_row {
            OnBadRow::Skip if !is_all => Ok(self.count),
            // A single cause, such as a missing column, is not a matter of single rows.
            _ if self.count == 1 || (is_all && self.is_one_reason) => {
                Err(DataError::Row { place: place.clone(), reason: reason.clone() })
            }
            _ => {
                let (file, _) = split_place(place);
                let shown =
                    self.shown.iter().map(|(place, reason)| (split_place(place).1.into(), reason.clone()));
                Err(DataError::BadRows {
                    file: file.into(),
                    shown: shown.collect(),
                    n_bad: self.count,
                    n_rows,
                })
            }
        }
    }

    /// A line for display, if rows were recorded.
    pub fn notice(&self) -> Option<String> {
        let (place, reason) = self.shown.first()?;
        let (file, at) = split_place(place);
        let first = if self.count == 1 { "" } else { "the first is " };
        Some(format!("{file}: {} skipped; {first}{at}: {reason}", count(self.count, "row")))
    }
}

/// File and line of `file, line N`.
fn split_place(place: &str) -> (&str, &str) {
    let at = place.rfind(", line ").or_else(|| place.rfind(", row "));
    at.map_or(("the data", place), |at| (&place[..at], &place[at + 2..]))
}

impl Row {
    /// This row, if it could be read.
    ///
    /// # Errors
    /// If it could not; the error says why.
    pub fn readable(&self) -> Result<&Self, DataError> {
        match &self.problem {
            None => Ok(self),
            Some(problem) => Err(self.error(problem.clone())),
        }
    }
}

/// Checks that every row could be read.
///
/// # Errors
/// If some could not, a report of all of them.
pub fn all_readable(rows: Vec<Row>) -> Result<Vec<Row>, DataError> {
    let mut bad = BadRows::default();
    for row in &rows {
        bad.keep(row.readable())?;
    }
    bad.finish(OnBadRow::Error, rows.len())?;
    Ok(rows)
}
