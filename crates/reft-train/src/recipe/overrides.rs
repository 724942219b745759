//! `key=value` overrides of a recipe, and suggestions for mistyped keys.

use super::error::RecipeError;
use toml::{Table, Value};

/// Other names for keys, as transformers' `TrainingArguments` spells them, and the name in a recipe.
const ALIASES: [(&str, &str); 2] =
    [("train.gradient_accumulation_steps", "train.accumulation"), ("train.max_grad_norm", "train.clip")];

/// Sets `a.b=value` in a table. A value that is not TOML is taken as a string.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let malformed = || RecipeError::Override(text.into());
    let (key, value) = text.split_once('=').ok_or_else(malformed)?;
    let key = key.trim();
    let parsed = toml::from_str::<Table>(&format!("x = {value}")).ok().and_then(|mut t| t.remove("x"));
    let value = parsed.unwrap_or_else(|| Value::String(value.into()));
    let alias = ALIASES.iter().find(|names| names.0 == key || names.1 == key);
    if let Some((alias, name)) = alias {
        // The file may use either name; only one of them may remain.
        remove(table, alias);
        return insert(table, name, value).ok_or_else(malformed);
    }
    insert(table, key, value).ok_or_else(malformed)
}

fn insert(table: &mut Table, key: &str, value: Value) -> Option<()> {
    let mut path: Vec<&str> = key.split('.').collect();
    let last = path.pop().filter(|key| !key.is_empty())?;
    let mut table = table;
    for part in path {
        let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut()?;
    }
    table.insert(last.into(), value);
    Some(())
}

fn remove(table: &mut Table, key: &str) {
    if let Some((section, key)) = key.split_once('.')
        && let Some(section) = table.get_mut(section).and_then(Value::as_table_mut)
    {
        section.remove(key);
    }
}

/// Adds "did you mean" to serde's message about an unknown key or value, which lists the known ones in backticks.
pub(super) fn with_suggestion(message: &str) -> String {
    let message = message.trim_end();
    let Some(at) = message.find("unknown field `").or_else(|| message.find("unknown variant `")) else {
        return message.into();
    };
    let mut quoted = message[at..].split('`').skip(1).step_by(2);
    let found = quoted.next().unwrap_or_default();
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(found, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(found.len()) / 2);
    match nearest {
        Some((_, known)) => format!("{message}\ndid you mean `{known}`?"),
        None => message.into(),
    }
}
