//! The training rows and the held-out rows of a recipe.

use crate::{
    data::{DataError, Row},
    recipe::DataSection,
};

/// Reads the training rows and the held-out rows of a recipe.
///
/// # Errors
/// If a file cannot be read, or no row would be left to train on.
pub(super) fn read_split(
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
    if train.is_empty() {
        return Err(DataError::File {
            place: data.train.clone(),
            reason: "data.train_rows is 0, so no row is left to train on; raise it or leave it out".into(),
        });
    }
    Ok((train, held_out))
}
