//! `key=value` overrides of a recipe, and suggestions for mistyped keys.

use super::error::RecipeError;
use reft_core::files::plain_words;
use toml::{Table, Value};

/// Other names for keys, as transformers' `TrainingArguments` spells them, and the name in a recipe.
const ALIASES: [(&str, &str); 2] =
    [("train.gradient_accumulation_steps", "train.accumulation"), ("train.max_grad_norm", "train.clip")];

/// Keys whose values are text, whatever they look like.
const TEXTS: [&str; 23] = [
    "model",
    "revision",
    "device",
    "dtype",
    "quant",
    "run.name",
    "run.folder",
    "reft.method",
    "reft.component",
    "reft.positions",
    "reft.activation",
    "reft.init",
    "data.task",
    "data.train",
    "data.eval",
    "data.label",
    "data.template",
    "data.train_on",
    "data.on_bad_row",
    "train.schedule",
    "eval.metric",
    "eval.protocol",
    "eval.template",
];

/// Keys whose values are lists of texts; a single text is a list of one.
const LISTS: [&str; 3] = ["data.text", "data.test", "lora.targets"];

/// Sets `a.b=value` in a table. The value has the type of its key; of other keys, one that is not TOML is text.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let malformed = || RecipeError::Override(text.into());
    let (key, value) = text.split_once('=').ok_or_else(malformed)?;
    let key = key.trim();
    let value = typed(key, value);
    let alias = ALIASES.iter().find(|names| names.0 == key || names.1 == key);
    if let Some((alias, name)) = alias {
        // The file may use either name; only one of them may remain.
        remove(table, alias);
        return insert(table, name, value).ok_or_else(malformed);
    }
    insert(table, key, value).ok_or_else(malformed)
}

fn typed(key: &str, text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("x = {text}")).ok().and_then(|mut t| t.remove("x"));
    let as_text = || Value::String(text.into());
    if TEXTS.contains(&key) {
        // Quotes are TOML's, the rest is as it is.
        return parsed.filter(Value::is_str).unwrap_or_else(as_text);
    }
    if LISTS.contains(&key) {
        return match parsed {
            Some(Value::Array(values)) => {
                // Numbers among them are texts, too.
                let text =
                    |value: Value| Value::String(value.as_str().map_or(value.to_string(), str::to_string));
                Value::Array(values.into_iter().map(text).collect())
            }
            Some(Value::String(text)) => Value::Array(vec![Value::String(text)]),
            _ => match text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                Some(list) => {
                    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
                    Value::Array(
                        names.map(|name| Value::String(name.trim_matches(['"', '\'']).into())).collect(),
                    )
                }
                None => Value::Array(vec![as_text()]),
            },
        };
    }
    // TOML has fewer forms of numbers, such as no `.5`.
    let is_number_like = text.starts_with(|c: char| c.is_ascii_digit() || ".+-".contains(c));
    let number = || text.trim().parse().ok().filter(|_| is_number_like).map(Value::Float);
    parsed.or_else(number).unwrap_or_else(as_text)
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
    let message = &plain_words(message.trim_end());
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
