//! JSON values without silent changes.

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, map::Entry};
use std::fmt;

/// A JSON value. With duplicate keys, or a whole number that `f64` cannot hold unless `ROUND`, it is an error.
struct Checked<const ROUND: bool>(Value);

/// Where a text is not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonError {
    pub line: usize,
    pub column: usize,
    pub reason: String,
    /// Whether the text ends too early.
    pub is_end: bool,
}

/// Parses a text. `NaN` and infinities, which Python writes, are null; whole numbers of more than 64 bits are text.
///
/// # Errors
/// If it is not JSON, or an object has a key twice.
pub(super) fn parse(text: &str) -> Result<Value, JsonError> {
    match serde_json::from_str::<Checked<false>>(text) {
        Ok(Checked(value)) => Ok(value),
        Err(_) => match serde_json::from_str::<Checked<true>>(&rewritten(text)) {
            Ok(Checked(value)) => Ok(value),
            Err(error) => Err(json_error(&error)),
        },
    }
}

/// Parses values that follow each other, each with the line on which it begins.
///
/// # Errors
/// As [`parse`].
pub(super) fn parse_stream(text: &str) -> Result<Vec<(usize, Value)>, JsonError> {
    let text = rewritten(text);
    let mut stream = serde_json::Deserializer::from_str(&text).into_iter::<Checked<true>>();
    let mut values = Vec::new();
    let (mut line, mut counted) = (1, 0);
    loop {
        let rest = &text[stream.byte_offset()..];
        let start = text.len() - rest.trim_start().len();
        line += text[counted..start].bytes().filter(|byte| *byte == b'\n').count();
        counted = start;
        match stream.next() {
            None => return Ok(values),
            Some(Ok(Checked(value))) => values.push((line, value)),
            Some(Err(error)) => return Err(json_error(&error)),
        }
    }
}

fn json_error(error: &serde_json::Error) -> JsonError {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = message.strip_suffix(&place).unwrap_or(&message);
    let reason = match reason {
        "recursion limit exceeded" => "lists and objects are nested more than 127 levels deep",
        other => other,
    };
    JsonError { line: error.line(), column: error.column(), reason: reason.into(), is_end: error.is_eof() }
}

/// The text with null for `NaN` and infinities, and with whole numbers of more than 64 bits in quotes.
fn rewritten(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let (mut at, mut copied) = (0, 0);
    let word_end = |from: usize, is_part: fn(&u8) -> bool| {
        from + bytes[from..].iter().take_while(|byte| is_part(byte)).count()
    };
    while at < bytes.len() {
        let end = match bytes[at] {
            b'"' => string_end(bytes, at),
            b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                word_end(at, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
            }
            _ => at + 1,
        };
        let word = &bytes[at..end];
        let digits = word.strip_prefix(b"-").unwrap_or(word);
        let new = match digits {
            b"NaN" | b"Infinity" => Some("null".to_string()),
            [b'1'..=b'9', rest @ ..] if rest.len() >= 18 && rest.iter().all(u8::is_ascii_digit) => {
                let number = &text[at..end];
                let fits = number.parse::<u64>().is_ok() || number.parse::<i64>().is_ok();
                (!fits).then(|| format!("\"{number}\""))
            }
            _ => None,
        };
        if let Some(new) = new {
            out.push_str(&text[copied..at]);
            out.push_str(&new);
            copied = end;
        }
        at = end;
    }
    out.push_str(&text[copied..]);
    out
}

/// The end of the string that begins here.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

impl<'de, const ROUND: bool> Deserialize<'de> for Checked<ROUND> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor::<ROUND>).map(Self)
    }
}

struct CheckedVisitor<const ROUND: bool>;

impl<'de, const ROUND: bool> Visitor<'de> for CheckedVisitor<ROUND> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        const EXACT: f64 = 9.2e18;
        if !ROUND && value.abs() > EXACT {
            return Err(E::custom("a whole number of more than 64 bits"));
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Checked::<ROUND>(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Checked::<ROUND>(value))) = object.next_entry::<String, _>()? {
            match fields.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format!("the key {:?} occurs twice", entry.key())));
                }
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_those_of_python() {
        let text = r#"{"a": NaN, "b": [-Infinity, 1, 1.5, 1e300], "c": "NaN \"12345678901234567890123\"",
            "d": 18446744073709551615, "e": -9223372036854775808, "f": 123456789012345678901234567890, "g": null}"#;
        let expected = json!({
            "a": null, "b": [null, 1, 1.5, 1e300], "c": "NaN \"12345678901234567890123\"",
            "d": u64::MAX, "e": i64::MIN, "f": "123456789012345678901234567890", "g": null
        });
        assert_eq!(parse(text), Ok(expected.clone()));
        assert_eq!(parse_stream(text), Ok(vec![(1, expected)]));
        assert_eq!(parse("-123456789012345678901"), Ok(json!("-123456789012345678901")));
    }

    #[test]
    fn malformed_texts_are_errors() {
        let reason = |text: &str| parse(text).expect_err("malformed").reason;
        assert_eq!(reason("{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}"), "the key \"c\" occurs twice");
        assert_eq!(reason("{\"a\": nan}"), "expected ident");
        let deep = "[".repeat(100_000);
        assert_eq!(reason(&deep), "lists and objects are nested more than 127 levels deep");
        let error = parse("{\"a\":\n 1,}").expect_err("malformed");
        assert_eq!((error.line, error.column, error.is_end), (2, 4, false));
        assert!(parse("{\"a\":").expect_err("malformed").is_end);
        assert!(parse("\"\\").is_err() && parse("\"a\\\"").is_err());
    }
}
