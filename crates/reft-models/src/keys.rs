//! The values of a model's configuration, read by key; every problem is collected.

use crate::files::TokenIds;
use reft_core::files::check_json_text;
use serde_json::{Map, Value};

/// The largest size in a configuration, so that the product of two fits `u64`.
const MAX_SIZE: u64 = i32::MAX as u64;

/// Parses a JSON object.
///
/// # Errors
/// If it is damaged or another kind of value.
pub(crate) fn json_object(json: &[u8]) -> Result<Map<String, Value>, String> {
    check_json_text(json)?;
    match serde_json::from_slice(json) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(other) => Err(format!("is {}, expected an object", shown(&other))),
        Err(error) => Err(format!("invalid JSON: {error}")),
    }
}

/// Reads the keys of a JSON object. A key whose value is null counts as absent.
///
/// A value that cannot be used is remembered as a problem and replaced, so that the other values are still read.
pub(crate) struct Keys<'a> {
    values: &'a Map<String, Value>,
    /// Where the object is, as a prefix of its keys in messages: empty, or `rope_scaling.`.
    place: String,
    /// What is wrong, one sentence for each value.
    pub(crate) problems: Vec<String>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(values: &'a Map<String, Value>, place: &str) -> Self {
        Self { values, place: place.into(), problems: Vec::new() }
    }

    /// The value of a key, unless it is null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key exists, even if its value is null.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Adds `{key} is {found}, expected {expected}` to the problems.
    pub(crate) fn refuse(&mut self, key: &str, found: impl std::fmt::Display, expected: &str) {
        self.problems.push(format!("{}{key} is {found}, expected {expected}", self.place));
    }

    /// Adds `{place} lacks the number {key}` to the problems.
    pub(crate) fn lacks(&mut self, key: &str) {
        self.problems.push(format!("{} lacks the number {key}", self.place.trim_end_matches('.')));
    }

    /// Reads a value with `read`, for which `expected` is the description in the message.
    fn read<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.get(key)?;
        let found = read(value);
        if found.is_none() {
            self.refuse(key, shown(value), expected);
        }
        found
    }

    /// A size: a whole number from 1.
    pub(crate) fn size(&mut self, key: &str) -> Option<usize> {
        let expected = format!("a whole number from 1 to {MAX_SIZE}");
        let in_range = |size: &u64| (1..=MAX_SIZE).contains(size);
        let size = self.read(key, &expected, |value| value.as_u64().filter(in_range));
        size.map(|size| size as usize)
    }

    /// A whole number from 0.
    pub(crate) fn count(&mut self, key: &str) -> Option<usize> {
        let expected = format!("a whole number from 0 to {MAX_SIZE}");
        let count = self.read(key, &expected, |value| value.as_u64().filter(|count| *count <= MAX_SIZE));
        count.map(|count| count as usize)
    }

    /// A number for which `accept` holds, as `expected` says.
    pub(crate) fn number(&mut self, key: &str, expected: &str, accept: fn(f64) -> bool) -> Option<f64> {
        self.read(key, expected, |value| value.as_f64().filter(|x| x.is_finite() && accept(*x)))
    }

    /// A number above 0.
    pub(crate) fn positive(&mut self, key: &str) -> Option<f64> {
        self.number(key, "a number above 0", |x| x > 0.0)
    }

    /// A number from 0.
    pub(crate) fn non_negative(&mut self, key: &str) -> Option<f64> {
        self.number(key, "a number from 0", |x| x >= 0.0)
    }

    /// A probability below 1.
    pub(crate) fn rate(&mut self, key: &str) -> Option<f64> {
        self.number(key, "a number from 0 and below 1", |x| (0.0..1.0).contains(&x))
    }

    /// A truth value, false if absent.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        self.read(key, "true or false", Value::as_bool).unwrap_or(false)
    }

    /// A text.
    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        self.read(key, "a text", Value::as_str)
    }

    /// An object.
    pub(crate) fn object(&mut self, key: &str) -> Option<&'a Map<String, Value>> {
        self.read(key, "an object", Value::as_object)
    }

    /// A list.
    pub(crate) fn list(&mut self, key: &str) -> Option<&'a Vec<Value>> {
        self.read(key, "a list", Value::as_array)
    }

    /// Token ids below `vocab_size`: a number, or a list of them. -1 means that there is none.
    pub(crate) fn token_ids(&mut self, key: &str, vocab_size: usize) -> Option<TokenIds> {
        let expected = format!("a token id from 0 to {}, or a list of them", vocab_size.saturating_sub(1));
        let id = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size)
        };
        let none = |value: &Value| value.is_null() || value.as_i64() == Some(-1);
        self.read(key, &expected, |value| match value {
            Value::Array(list) => {
                let ids: Option<Vec<u32>> = list.iter().filter(|value| !none(value)).map(id).collect();
                ids.map(TokenIds::Many)
            }
            value if none(value) => Some(TokenIds::Many(Vec::new())),
            value => id(value).map(TokenIds::One),
        })
    }
}

/// A value as a message shows it, without its end if it is long.
pub(crate) fn shown(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
