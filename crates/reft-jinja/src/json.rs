//! JSON → values, and values → JSON as Python's `json.dumps` writes it.

use crate::{
    arguments::Args,
    compare::{order, sort},
    error::{Error, Result},
    limits,
    text::float_text,
    value::Value,
};
use serde_json::{Map, Number};
use std::cmp::Ordering;

/// A value from JSON.
///
/// # Errors
/// If it is nested too deeply.
pub(crate) fn from_json(json: &serde_json::Value) -> Result<Value> {
    Ok(match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => from_number(number),
        serde_json::Value::String(text) => Value::str(text.as_str()),
        serde_json::Value::Array(items) => Value::list(items.iter().map(from_json).collect::<Result<_>>()?)?,
        serde_json::Value::Object(map) => from_map(map)?,
    })
}

/// A dict from JSON.
///
/// # Errors
/// As [`from_json`].
pub(crate) fn from_map(map: &Map<String, serde_json::Value>) -> Result<Value> {
    let entry =
        |(key, value): (&String, &serde_json::Value)| Ok((Value::str(key.as_str()), from_json(value)?));
    Value::dict(map.iter().map(entry).collect::<Result<_>>()?)
}

fn from_number(number: &Number) -> Value {
    if let Some(value) = number.as_i64() {
        return Value::Int(value.into());
    }
    if let Some(value) = number.as_u64() {
        return Value::Int(value.into());
    }
    Value::Float(number.as_f64().unwrap_or(f64::NAN))
}

/// How JSON is written.
struct Style {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson`, as transformers defines it.
///
/// # Errors
/// If a value has no JSON.
pub(crate) fn to_json(value: &Value, arguments: Args) -> Result<Value> {
    let arguments = arguments.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match arguments.given(1) {
        Some(Value::Str(text)) => Some(text.text.to_string()),
        _ => arguments.count(1)?.map(|width| limits::text(width).map(|()| " ".repeat(width))).transpose()?,
    };
    let mut style = Style {
        ascii: arguments.is_true(0),
        item_separator: if indent.is_some() { "," } else { ", " }.into(),
        key_separator: ": ".into(),
        indent,
        sort_keys: arguments.is_true(3),
    };
    if let Some(separators) = arguments.given(2) {
        let separators = separators.items()?;
        let [Value::Str(item), Value::Str(key)] = &separators[..] else {
            return Err(Error::new("tojson: 'separators' must be two texts"));
        };
        (style.item_separator, style.key_separator) = (item.text.to_string(), key.text.to_string());
    }
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    limits::text(out.len())?;
    Ok(Value::str(out))
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<()> {
        limits::step(1)?;
        limits::length(out.len())?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&float_json(*value)),
            Value::Str(text) => self.write_text(out, &text.text),
            Value::List(seq) | Value::Tuple(seq) => {
                self.write_items(out, ['[', ']'], &seq.items, level, |out, item| {
                    self.write(out, item, level + 1)
                })?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if self.sort_keys {
                    sort(&mut entries, |a, b| Ok(order("<", &a.0, &b.0)? == Some(Ordering::Less)))?;
                }
                self.write_items(out, ['{', '}'], &entries, level, |out, (key, value)| {
                    self.write_text(out, &key_text(key)?);
                    out.push_str(&self.key_separator);
                    self.write(out, value, level + 1)
                })?;
            }
            other => {
                let kind = other.type_name();
                return Err(Error::new(format!("Object of type {kind} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn write_items<T>(
        &self,
        out: &mut String,
        brackets: [char; 2],
        items: &[T],
        level: usize,
        mut write: impl FnMut(&mut String, &T) -> Result<()>,
    ) -> Result<()> {
        out.push(brackets[0]);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.write_line(out, level + 1)?;
            write(out, item)?;
        }
        if !items.is_empty() {
            self.write_line(out, level)?;
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn write_line(&self, out: &mut String, level: usize) -> Result<()> {
        if let Some(indent) = &self.indent {
            limits::length(out.len().saturating_add(indent.len().saturating_mul(level)))?;
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn float_json(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".into(),
        value if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        value => float_text(value),
    }
}

fn key_text(key: &Value) -> Result<String> {
    Ok(match key {
        Value::Str(text) => text.text.to_string(),
        Value::None => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => float_json(*value),
        other => {
            let kind = other.type_name();
            return Err(Error::new(format!("keys must be str, int, float, bool or None, not {kind}")));
        }
    })
}
