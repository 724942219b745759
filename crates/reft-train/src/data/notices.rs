//! What a user should know about data that can be used.

use super::rows::Row;
use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
};

/// The fields that are ignored, as a line for display such as `data.jsonl: not used: id, source`; `is_used` tells which
/// fields of a row have an effect. Fields without a value in any row are left out.
pub fn unused_fields(file: &str, rows: &[Row], is_used: impl Fn(&Row, &str) -> bool) -> Option<String> {
    const SHOWN: usize = 10;
    // The order in which they are met, which is that of the file's columns.
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        for (name, value) in &row.fields {
            let is_empty = value.is_null() || value.as_str() == Some("");
            if !is_empty && !found.contains_key(name.as_str()) && !is_used(row, name) {
                found.insert(name, found.len());
            }
        }
    }
    // The index column that pandas writes without a name.
    let mut names: Vec<(&str, usize)> =
        found.into_iter().filter(|(name, _)| !name.starts_with("Unnamed: ")).collect();
    names.sort_by_key(|(_, idx)| *idx);
    let shown: Vec<&str> = names.iter().take(SHOWN).map(|(name, _)| *name).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    (!shown.is_empty()).then(|| format!("{file}: not used: {}{more}", shown.join(", ")))
}

/// How many held-out examples also occur in the training data, as a line for display.
pub fn shared_rows<T: Hash + Eq>(
    train: impl IntoIterator<Item = T>,
    held_out: impl IntoIterator<Item = T>,
) -> Option<String> {
    let train: HashSet<T> = train.into_iter().collect();
    let (mut shared, mut all) = (0, 0);
    for example in held_out {
        all += 1;
        shared += usize::from(train.contains(&example));
    }
    (shared > 0).then(|| format!("{shared} of {all} held-out rows also occur in the training rows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_both_sets_are_counted() {
        assert_eq!(
            shared_rows([1, 2, 3], [3, 4, 3]).as_deref(),
            Some("2 of 3 held-out rows also occur in the training rows")
        );
        assert_eq!(shared_rows([1, 2], [3]), None);
    }
}
