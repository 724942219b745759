//! Python's `str` and `repr` of values, and its properties of characters.

use crate::{
    error::{Error, Result},
    limits,
    value::Value,
};
use std::{fmt::Write, sync::Arc};

/// Python's `str.isspace`.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str` of a value.
///
/// # Errors
/// If the text is too long, or differs from one run to the next.
pub(crate) fn to_text(value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) => Ok(text.text.clone()),
        Value::Undefined(missing) => missing.check_empty().map(|()| "".into()),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value)?;
            limits::text(out.len())?;
            Ok(out.into())
        }
    }
}

/// Python's `repr` of a value.
///
/// # Errors
/// As [`to_text`].
pub(crate) fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(&mut out, value)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value) -> Result<()> {
    limits::step(1)?;
    limits::length(out.len())?;
    match value {
        Value::Undefined(missing) => {
            missing.check_empty()?;
            out.push_str("Undefined");
        }
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => write_display(out, value),
        Value::Float(value) => out.push_str(&float_text(*value)),
        Value::Str(text) if text.is_markup => {
            out.push_str("Markup(");
            write_quoted(out, &text.text);
            out.push(')');
        }
        Value::Str(text) => write_quoted(out, &text.text),
        Value::List(seq) => {
            out.push('[');
            write_items(out, &seq.items)?;
            out.push(']');
        }
        Value::Tuple(seq) => {
            out.push('(');
            write_items(out, &seq.items)?;
            out.push_str(if seq.items.len() == 1 { ",)" } else { ")" });
        }
        Value::View(name, seq) => {
            out.push_str(name);
            out.push_str("([");
            write_items(out, &seq.items)?;
            out.push_str("])");
        }
        Value::Dict(dict) => {
            out.push('{');
            for (index, (key, value)) in dict.entries.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, key)?;
                out.push_str(": ");
                write_repr(out, value)?;
            }
            out.push('}');
        }
        Value::Range(range) if range.step == 1 => {
            write_display(out, format_args!("range({}, {})", range.start, range.stop));
        }
        Value::Range(range) => {
            write_display(out, format_args!("range({}, {}, {})", range.start, range.stop, range.step));
        }
        Value::Namespace(_) => return Err(Error::new("the text of a namespace is not supported")),
        other => {
            return Err(Error::new(format!(
                "the template prints a '{}', whose text in Python is a memory address",
                other.type_name()
            )));
        }
    }
    Ok(())
}

fn write_display(out: &mut String, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{value}");
}

fn write_items(out: &mut String, items: &[Value]) -> Result<()> {
    for (index, item) in items.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        write_repr(out, item)?;
    }
    Ok(())
}

/// Whether Python's `repr` shows a character as it is.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // Rust escapes the same characters, and at the start of a text also those that extend the one before.
    let mut text = String::from("a");
    text.push(c);
    text.escape_debug().count() == 2
}

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match c as u32 {
                code @ ..0x100 => write_display(out, format_args!("\\x{code:02x}")),
                code @ ..0x10000 => write_display(out, format_args!("\\u{code:04x}")),
                code => write_display(out, format_args!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// Python's `repr` of a float.
pub(crate) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{value}");
        return if text.contains('.') { text } else { text + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Escapes text for HTML as MarkupSafe does.
pub(crate) fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Python's `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    let mut upper = first.to_uppercase();
    let mut out: String = upper.next().into_iter().collect();
    out.extend(upper.flat_map(char::to_lowercase));
    out + &chars.as_str().to_lowercase()
}

/// Parses a text as Python's `float` does.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let is_number =
        text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-' | '_'));
    if !is_number {
        return match text.to_ascii_lowercase().trim_start_matches(['+', '-']) {
            "inf" | "infinity" if text.starts_with('-') => Some(f64::NEG_INFINITY),
            "inf" | "infinity" => Some(f64::INFINITY),
            "nan" => Some(f64::NAN),
            _ => None,
        };
    }
    without_underscores(text)?.parse().ok()
}

/// Parses a text as Python's `int` does.
pub(crate) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_lowercase();
    let prefixed = |prefix: &str, radix: u32| {
        (base == radix || base == 0).then(|| lower.strip_prefix(prefix).map(|rest| (rest, radix))).flatten()
    };
    let (digits, radix) = prefixed("0x", 16)
        .or_else(|| prefixed("0o", 8))
        .or_else(|| prefixed("0b", 2))
        .unwrap_or((&lower, if base == 0 { 10 } else { base }));
    if !(2..=36).contains(&radix) || digits.starts_with(['+', '-']) {
        return None;
    }
    let digits = without_underscores(digits)?;
    i128::from_str_radix(&digits, radix).ok().map(|value| sign * value)
}

/// Removes single underscores between digits.
fn without_underscores(text: &str) -> Option<String> {
    let is_misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!is_misplaced).then(|| text.replace('_', ""))
}

/// Python's `str.title`: a capital after every character that is no letter.
pub(crate) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars() {
        if c.is_lowercase() || c.is_uppercase() {
            word.push(c);
        } else {
            out += &capitalize(&word);
            word.clear();
            out.push(c);
        }
    }
    out + &capitalize(&word)
}
