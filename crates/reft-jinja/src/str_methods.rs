//! Methods of texts.

use crate::{
    arguments::{Args, Bound},
    error::{Error, Result},
    format::brace_format,
    limits,
    text::{capitalize, escape_html, is_printable, is_space, title, to_text},
    value::{Str, Value},
};
use std::sync::Arc;

/// The texts of an argument that may be a text or a tuple of texts.
fn alternatives(value: &Value) -> Result<Vec<Arc<str>>> {
    let text = |value: &Value| match value {
        Value::Str(text) => Ok(text.text.clone()),
        other => Err(Error::new(format!("expected a text or a tuple of texts, not {}", other.type_name()))),
    };
    match value {
        Value::Tuple(seq) => seq.items.iter().map(text).collect(),
        other => Ok(vec![text(other)?]),
    }
}

/// The part of a text between two indices in characters, and the index of its start; nothing if the start is behind
/// the end.
fn window<const N: usize>(text: &str, args: &Bound<N>, first: usize) -> Result<Option<(String, usize)>> {
    if args.given(first).is_none() && args.given(first + 1).is_none() {
        return Ok(Some((text.into(), 0)));
    }
    let length = text.chars().count() as i128;
    let bound = |at: i128| if at < 0 { (at + length).max(0) } else { at };
    let start = bound(args.int(first)?.unwrap_or(0));
    let stop = bound(args.int(first + 1)?.unwrap_or(length)).min(length);
    if start > stop {
        return Ok(None);
    }
    let (start, stop) = (start as usize, stop as usize);
    Ok(Some((text.chars().skip(start).take(stop - start).collect(), start)))
}

fn find(text: &str, name: &str, args: Args) -> Result<Value> {
    let args = args.bind(name, ["sub", "start", "end"])?;
    let part = args.required(0).and_then(|_| args.text(0))?;
    let part = part.ok_or_else(|| Error::new(format!("{name} needs a text")))?.text.clone();
    let found = window(text, &args, 1)?.and_then(|(text, start)| {
        let at = if name.starts_with('r') { text.rfind(&*part) } else { text.find(&*part) };
        at.map(|at| start + text[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::int(at)),
        None if name.ends_with("index") => Err(Error::new("substring not found")),
        None => Ok(Value::Int(-1)),
    }
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase()
}

fn is_title(text: &str) -> bool {
    let (mut after_cased, mut found) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && after_cased) || (c.is_lowercase() && !after_cased) {
            return false;
        }
        after_cased = is_cased(c);
        found |= after_cased;
    }
    found
}

fn holds(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" => all(|c| c.is_ascii_digit() || (c.is_numeric() && !c.is_ascii())),
        "isnumeric" => all(char::is_numeric),
        "isidentifier" => {
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            starts && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        _ => is_title(text),
    }
}

/// Splits a text; at whitespace if there is no separator.
fn split(text: &str, name: &str, args: Args) -> Result<Vec<String>> {
    let args = args.bind(name, ["sep", "maxsplit"])?;
    let from_right = name == "rsplit";
    let limit = args.int(1)?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX - 1);
    limits::text(text.len())?;
    let mut parts: Vec<String> = match args.text(0)? {
        Some(separator) if separator.text.is_empty() => return Err(Error::new("empty separator")),
        Some(separator) if from_right => {
            text.rsplitn(limit + 1, &*separator.text).map(String::from).collect()
        }
        Some(separator) => text.splitn(limit + 1, &*separator.text).map(String::from).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest =
                if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
            while !rest.is_empty() && parts.len() < limit {
                let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = at else { break };
                let (left, right) = rest.split_at(at);
                if from_right {
                    parts.push(right.trim_start_matches(is_space).to_string());
                    rest = left.trim_end_matches(is_space);
                } else {
                    parts.push(left.to_string());
                    rest = right.trim_start_matches(is_space);
                }
            }
            if !rest.is_empty() {
                parts.push(rest.to_string());
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    limits::step(parts.len())?;
    Ok(parts)
}

fn split_lines(text: &str, keeps_ends: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let ends = matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !ends {
            line.push(c);
            continue;
        }
        let second = if c == '\r' { chars.next_if_eq(&'\n') } else { None };
        if keeps_ends {
            line.push(c);
            line.extend(second);
        }
        lines.push(std::mem::take(&mut line));
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

fn strip(text: &str, name: &str, chars: Option<&str>) -> String {
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(is_stripped) };
    if name == "lstrip" { text } else { text.trim_end_matches(is_stripped) }.to_string()
}

/// Replaces parts of a text.
///
/// # Errors
/// If the result is too long.
pub(crate) fn replace(text: &str, old: &str, new: &str, count: Option<i128>) -> Result<String> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(count);
    limits::text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}

/// Pads a text on both sides as Python's `center` does.
///
/// # Errors
/// If the width is too large.
pub(crate) fn pad(text: &str, name: &str, width: usize, fill: char) -> Result<String> {
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    limits::text(missing.saturating_add(text.len()))?;
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let filling = |count| std::iter::repeat_n(fill, count).collect::<String>();
    if name == "zfill" && text.starts_with(['+', '-']) {
        return Ok(text[..1].to_string() + &filling(missing) + &text[1..]);
    }
    Ok(filling(left) + text + &filling(missing - left))
}

/// Calls a method of a text that has it.
///
/// # Errors
/// If the arguments do not fit, or the method fails.
pub(crate) fn call_str(text: &Str, name: &str, args: Args) -> Result<Value> {
    let (source, is_markup) = (&*text.text, text.is_markup);
    let string = |result: String| Ok(Value::text(result, is_markup));
    let list = |parts: Vec<String>| {
        Value::list(parts.into_iter().map(|part| Value::text(part, is_markup)).collect())
    };
    // Texts that are added to markup are escaped.
    let escaped = |text: &Str| {
        if is_markup && !text.is_markup { escape_html(&text.text).into() } else { text.text.clone() }
    };
    limits::step(source.len() / 64)?;
    match name {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.bind(name, [])?;
            limits::text(source.len())?;
            string(match name {
                "capitalize" => capitalize(source),
                "casefold" => source.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
                "lower" => source.to_lowercase(),
                "upper" => source.to_uppercase(),
                "title" => title(source),
                _ => swap_case(source),
            })
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = args.bind(name, ["chars"])?;
            string(strip(source, name, args.text(0)?.map(|chars| &*chars.text)))
        }
        "split" | "rsplit" => list(split(source, name, args)?),
        "splitlines" => {
            let args = args.bind(name, ["keepends"])?;
            list(split_lines(source, args.is_true(0)))
        }
        "partition" | "rpartition" => {
            let args = args.bind(name, ["sep"])?;
            let separator = args.text(0)?.filter(|text| !text.text.is_empty());
            let separator = separator.ok_or_else(|| Error::new("empty separator"))?;
            let found = if name == "partition" {
                source.split_once(&*separator.text)
            } else {
                source.rsplit_once(&*separator.text)
            };
            let parts = match (found, name) {
                (Some((left, right)), _) => [left, &*separator.text, right],
                (None, "partition") => [source, "", ""],
                (None, _) => ["", "", source],
            };
            Value::tuple(parts.into_iter().map(|part| Value::text(part, is_markup)).collect())
        }
        "startswith" | "endswith" => {
            let args = args.bind(name, ["prefix", "start", "end"])?;
            let parts = alternatives(args.required(0)?)?;
            let Some((text, _)) = window(source, &args, 1)? else { return Ok(Value::Bool(false)) };
            let is_start = name == "startswith";
            Ok(Value::Bool(
                parts.iter().any(
                    |part| {
                        if is_start { text.starts_with(&**part) } else { text.ends_with(&**part) }
                    },
                ),
            ))
        }
        "find" | "rfind" | "index" | "rindex" => find(source, name, args),
        "count" => {
            let args = args.bind(name, ["sub", "start", "end"])?;
            let part = args.text(0)?.ok_or_else(|| Error::new("count needs a text"))?.text.clone();
            let text = window(source, &args, 1)?.map(|(text, _)| text);
            Ok(Value::int(text.map_or(0, |text| text.matches(&*part).count())))
        }
        "replace" => {
            let args = args.bind(name, ["old", "new", "count"])?;
            args.required(1)?;
            match (args.text(0)?, args.text(1)?) {
                (Some(old), Some(new)) => string(replace(source, &old.text, &escaped(new), args.int(2)?)?),
                _ => Err(Error::new("replace() arguments must be str, not NoneType")),
            }
        }
        "removeprefix" | "removesuffix" => {
            let args = args.bind(name, ["part"])?;
            let part = args.text(0)?.map_or("", |part| &part.text);
            let cut =
                if name == "removeprefix" { source.strip_prefix(part) } else { source.strip_suffix(part) };
            string(cut.unwrap_or(source).to_string())
        }
        "join" => {
            let args = args.bind(name, ["iterable"])?;
            let mut out = String::new();
            for (index, item) in args.required(0)?.items()?.iter().enumerate() {
                let part = match item {
                    Value::Str(part) => escaped(part),
                    other if is_markup => escape_html(&to_text(other)?).into(),
                    other => {
                        let kind = other.type_name();
                        return Err(Error::new(format!(
                            "sequence item {index}: expected str instance, {kind} found"
                        )));
                    }
                };
                out.push_str(if index > 0 { source } else { "" });
                out.push_str(&part);
                limits::length(out.len())?;
            }
            limits::text(out.len())?;
            string(out)
        }
        "center" | "ljust" | "rjust" => {
            let args = args.bind(name, ["width", "fillchar"])?;
            args.required(0)?;
            let fill = args.text(1)?.map_or(" ", |fill| &fill.text);
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(Error::new("the fill character must be exactly one character long"));
            };
            string(pad(source, name, args.count(0)?.unwrap_or(0), fill)?)
        }
        "zfill" => {
            let args = args.bind(name, ["width"])?;
            args.required(0)?;
            string(pad(source, name, args.count(0)?.unwrap_or(0), '0')?)
        }
        "expandtabs" => {
            let args = args.bind(name, ["tabsize"])?;
            string(expand_tabs(source, args.count(0)?.unwrap_or(8))?)
        }
        "format" => brace_format(text, &args),
        "format_map" => {
            let args = args.bind(name, ["mapping"])?;
            let Value::Dict(dict) = args.required(0)? else {
                return Err(Error::new("format_map needs a dict"));
            };
            let entry = |(key, value): &(Value, Value)| Ok((to_text(key)?, value.clone()));
            let named = dict.entries.iter().map(entry).collect::<Result<_>>()?;
            brace_format(text, &Args { positional: Vec::new(), named })
        }
        "escape" => Ok(Value::text(escape_html(source), true)),
        name if name.starts_with("is") => {
            args.bind(name, [])?;
            Ok(Value::Bool(holds(source, name)))
        }
        name => Err(Error::new(format!("the method '{name}' of texts is not supported"))),
    }
}

fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

fn expand_tabs(text: &str, size: usize) -> Result<String> {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let count = size - column % size;
                limits::length(out.len())?;
                limits::text(count)?;
                out.extend(std::iter::repeat_n(' ', count));
                column += count;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out)
}
