//! Filters of texts and numbers.

use crate::{
    access::only_attribute,
    arguments::Args,
    error::{Error, Result},
    filter_names::{OF_SEQUENCES, UNSUPPORTED},
    format::percent_format,
    json::to_json,
    limits,
    methods::call_method,
    number::undefined_error,
    operators::negative,
    sequence,
    str_methods::{pad, replace},
    text::{escape_html, is_space, parse_float, parse_int, repr, to_text},
    value::{Str, Value},
};

/// `value | name(arguments)`
///
/// # Errors
/// If there is no such filter, or it does not fit the value.
pub(crate) fn filter(value: &Value, name: &str, args: Args) -> Result<Value> {
    limits::step(1)?;
    if OF_SEQUENCES.contains(&name) {
        return sequence::filter(value, name, args, filter);
    }
    if UNSUPPORTED.contains(&name) {
        return Err(Error::new(format!("the filter '{name}' is not supported")));
    }
    let soft = || -> Result<Str> {
        match value {
            Value::Str(text) => Ok(text.clone()),
            other => Ok(Str { text: to_text(other)?, is_markup: false }),
        }
    };
    match name {
        "default" | "d" => {
            let args = args.bind(name, ["default_value", "boolean"])?;
            let is_missing = value.is_undefined() || (args.is_true(1) && !value.is_true());
            if !is_missing {
                return Ok(value.clone());
            }
            Ok(args.values[0].clone().unwrap_or_else(|| Value::str("")))
        }
        "tojson" => to_json(value, args),
        "string" => {
            args.bind(name, [])?;
            Ok(Value::Str(soft()?))
        }
        "safe" | "forceescape" | "e" | "escape" => {
            args.bind(name, [])?;
            Ok(match value {
                Value::Str(text) if text.is_markup && name != "forceescape" => value.clone(),
                other if name == "safe" => Value::text(to_text(other)?, true),
                other => Value::text(escape_html(&to_text(other)?), true),
            })
        }
        "upper" | "lower" | "capitalize" => call_method(&Value::Str(soft()?), name, args),
        "title" => {
            args.bind(name, [])?;
            Ok(Value::str(title(&soft()?.text)))
        }
        "trim" => {
            let args = args.bind(name, ["chars"])?;
            let positional = args.values.into_iter().flatten().collect();
            call_method(&Value::Str(soft()?), "strip", Args { positional, named: Vec::new() })
        }
        "center" => {
            let args = args.bind(name, ["width"])?;
            let text = soft()?;
            Ok(Value::text(pad(&text.text, "center", args.count(0)?.unwrap_or(80), ' ')?, text.is_markup))
        }
        "replace" => {
            let args = args.bind(name, ["old", "new", "count"])?;
            args.required(1)?;
            let (old, new) = (args.as_text(0)?.unwrap_or_default(), args.as_text(1)?.unwrap_or_default());
            Ok(Value::str(replace(&to_text(value)?, &old, &new, args.int(2)?)?))
        }
        "indent" => indent(value, args),
        "truncate" => truncate(value, args),
        "wordcount" => {
            args.bind(name, [])?;
            let text = soft()?.text;
            let words =
                text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            Ok(Value::int(words.count()))
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return Err(Error::new("format takes positional or named arguments, not both"));
            }
            let named: Vec<_> =
                args.named.into_iter().map(|(name, value)| (Value::str(name), value)).collect();
            let values = if named.is_empty() { Value::tuple(args.positional)? } else { Value::dict(named)? };
            percent_format(&soft()?, &values)
        }
        "attr" => {
            let args = args.bind(name, ["name"])?;
            args.required(0)?;
            only_attribute(value, &args.as_text(0)?.unwrap_or_default())
        }
        "urlencode" => {
            args.bind(name, [])?;
            url_encode(value)
        }
        "xmlattr" => xml_attributes(value, args),
        "abs" => {
            args.bind(name, [])?;
            match value {
                Value::Float(value) => Ok(Value::Float(value.abs())),
                other => match other.as_int() {
                    Some(int) if int < 0 => negative(value),
                    Some(int) => Ok(Value::Int(int)),
                    None => Err(wrong_type(name, value)),
                },
            }
        }
        "int" => int(value, args),
        "float" => {
            let args = args.bind(name, ["default"])?;
            let default = args.values[0].clone().unwrap_or(Value::Float(0.0));
            Ok(float_of(value)?.map_or(default, Value::Float))
        }
        "round" => round(value, args),
        "filesizeformat" => file_size(value, args),
        other => Err(Error::new(format!("no filter named '{other}'"))),
    }
}

fn wrong_type(name: &str, value: &Value) -> Error {
    let kind = value.type_name();
    undefined_error(value)
        .unwrap_or_else(|| Error::new(format!("the filter '{name}' does not take a value of type '{kind}'")))
}

/// Jinja2's `title`: a capital after whitespace, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars() {
        if is_space(c) || "-({[<".contains(c) {
            push_word(&mut out, &mut word);
            out.push(c);
        } else {
            word.push(c);
        }
    }
    push_word(&mut out, &mut word);
    out
}

fn push_word(out: &mut String, word: &mut String) {
    let mut chars = word.chars();
    if let Some(first) = chars.next() {
        out.extend(first.to_uppercase());
        out.push_str(&chars.as_str().to_lowercase());
    }
    word.clear();
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("indent", ["width", "first", "blank"])?;
    let Value::Str(text) = value else { return Err(wrong_type("indent", value)) };
    let indention = match args.given(0) {
        Some(Value::Str(width)) => width.text.to_string(),
        _ => {
            let width = args.count(0)?.unwrap_or(4);
            limits::text(width)?;
            " ".repeat(width)
        }
    };
    let lines = Value::str([&*text.text, "\n"].concat());
    let lines = call_method(&lines, "splitlines", Args::default())?.items()?;
    limits::text(text.text.len().saturating_add(indention.len().saturating_mul(lines.len())))?;
    let (first, blank) = (args.is_true(1), args.is_true(2));
    let mut out = if first { indention.clone() } else { String::new() };
    for (index, line) in lines.iter().filter_map(Value::as_str).enumerate() {
        if index > 0 {
            out.push('\n');
            out.push_str(if blank || !line.is_empty() { &indention } else { "" });
        }
        out.push_str(line);
    }
    Ok(Value::text(out, text.is_markup))
}

fn truncate(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = args.count(0)?.unwrap_or(255);
    let end = args.text(2)?.map_or("...", |end| &end.text);
    let end_length = end.chars().count();
    if length < end_length {
        return Err(Error::new(format!("truncate: expected length >= {end_length}, got {length}")));
    }
    let leeway = args.count(3)?.unwrap_or(5);
    if value.len()? <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let Value::Str(text) = value else { return Err(wrong_type("truncate", value)) };
    let kept: String = text.text.chars().take(length - end_length).collect();
    let kept = if args.is_true(1) { &kept } else { kept.rsplit_once(' ').map_or(&*kept, |(left, _)| left) };
    Ok(Value::text([kept, end].concat(), text.is_markup))
}

fn float_of(value: &Value) -> Result<Option<f64>> {
    Ok(match value {
        Value::Undefined(_) => return Err(wrong_type("float", value)),
        Value::Float(value) => Some(*value),
        Value::Str(text) => parse_float(&text.text),
        other => other.as_int().map(|value| value as f64),
    })
}

fn int(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("int", ["default", "base"])?;
    let default = args.values[0].clone().unwrap_or(Value::Int(0));
    let base = args.int(1)?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let truncated = |value: f64| value.is_finite().then_some(Value::Int(value as i128));
    Ok(match value {
        Value::Undefined(_) => return Err(wrong_type("int", value)),
        Value::Float(value) if value.is_infinite() => {
            return Err(Error::new("cannot convert float infinity to integer"));
        }
        Value::Float(value) => truncated(*value).unwrap_or(default),
        Value::Str(text) => {
            let whole = parse_int(&text.text, base).map(Value::Int);
            whole.or_else(|| parse_float(&text.text).and_then(truncated)).unwrap_or(default)
        }
        other => other.as_int().map_or(default, Value::Int),
    })
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("round", ["precision", "method"])?;
    let precision = args.int(0)?.unwrap_or(0);
    let method = args.text(1)?.map_or("common", |method| &method.text);
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::new("method must be common, ceil or floor"));
    }
    let is_int = value.as_int().is_some();
    let Some(number) = float_of(value)?.filter(|_| value.as_str().is_none()) else {
        return Err(wrong_type("round", value));
    };
    if precision.abs() > 300 {
        return Err(Error::new(format!("round: a precision of {precision} is not supported")));
    }
    let scale = 10f64.powi(precision as i32);
    if method == "common" {
        if is_int && precision >= 0 {
            return Ok(value.as_int().map_or(Value::None, Value::Int));
        }
        if precision < 0 {
            let rounded = (number * scale).round_ties_even() / scale;
            return Ok(if is_int { Value::Int(rounded as i128) } else { Value::Float(rounded) });
        }
        let digits = precision as usize;
        return Ok(Value::Float(format!("{number:.digits$}").parse().unwrap_or(number)));
    }
    let scaled = number * scale;
    Ok(Value::Float(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / scale))
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("filesizeformat", ["binary"])?;
    let bytes = float_of(value)?.ok_or_else(|| wrong_type("filesizeformat", value))?;
    let is_binary = args.is_true(0);
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::str("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::str(format!("{} Bytes", bytes as i128)));
    }
    let mut unit = base * base;
    let mut names = if is_binary { "KMGTPEZY" } else { "kMGTPEZY" }.chars().peekable();
    while let Some(name) = names.next() {
        if bytes < unit || names.peek().is_none() {
            let suffix = if is_binary { "iB" } else { "B" };
            return Ok(Value::str(format!("{:.1} {name}{suffix}", base * bytes / unit)));
        }
        unit *= base;
    }
    Ok(Value::None)
}

fn percent_encode(text: &str, is_query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !is_query => out.push('/'),
            b' ' if is_query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn url_encode(value: &Value) -> Result<Value> {
    let pairs: Vec<(Value, Value)> = match value {
        Value::Dict(dict) => dict.entries.clone(),
        Value::Str(_) => return Ok(Value::str(percent_encode(&to_text(value)?, false))),
        other if !other.is_iterable() => return Ok(Value::str(percent_encode(&to_text(other)?, false))),
        other => {
            let pair = |item: Value| match &item.items()?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => Err(Error::new("urlencode needs pairs")),
            };
            other.items()?.into_iter().map(pair).collect::<Result<_>>()?
        }
    };
    let encode = |value: &Value| Ok(percent_encode(&to_text(value)?, true));
    let parts = pairs.iter().map(|(key, value)| Ok(format!("{}={}", encode(key)?, encode(value)?)));
    Ok(Value::str(parts.collect::<Result<Vec<_>>>()?.join("&")))
}

fn xml_attributes(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("xmlattr", ["autospace"])?;
    let Value::Dict(dict) = value else { return Err(wrong_type("xmlattr", value)) };
    let mut parts = Vec::new();
    for (key, value) in &dict.entries {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let name = to_text(key)?;
        if name.contains(|c: char| c.is_ascii_whitespace() || "/>=\u{b}".contains(c)) {
            return Err(Error::new(format!("invalid character in attribute name: {}", repr(key)?)));
        }
        let text = match value {
            Value::Str(text) if text.is_markup => text.text.to_string(),
            other => escape_html(&to_text(other)?),
        };
        parts.push(format!("{}=\"{text}\"", escape_html(&name)));
    }
    let has_space = !parts.is_empty() && (args.values[0].is_none() || args.is_true(0));
    Ok(Value::str(if has_space { " " } else { "" }.to_string() + &parts.join(" ")))
}
