//! Python's `text % values` and `text.format(…)`.

use crate::{
    arguments::Args,
    compare::dict_get,
    error::{Error, Result},
    format_spec::{Spec, checked, format_float, format_int, format_value, pad_number, pad_text},
    index::item,
    limits,
    number::undefined_error,
    text::{escape_html, repr, to_text},
    value::{Str, Value},
};

/// `text % values`
///
/// # Errors
/// If the values do not fit the text.
pub(crate) fn percent_format(text: &Str, values: &Value) -> Result<Value> {
    let mut positional = match values {
        Value::Tuple(seq) => seq.items.clone(),
        other => vec![other.clone()],
    }
    .into_iter();
    let mut used_names = false;
    let mut out = String::new();
    let mut chars = text.text.chars().peekable();
    let missing = || Error::new("not enough arguments for format string");
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.peek() == Some(&'(') {
            chars.next();
            let name: String = chars.by_ref().take_while(|c| *c != ')').collect();
            let Value::Dict(dict) = values else { return Err(Error::new("format requires a mapping")) };
            let found = dict_get(&dict.entries, &Value::str(name.as_str()))?;
            named = Some(found.cloned().ok_or_else(|| Error::new(format!("KeyError: '{name}'")))?);
            used_names = true;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                sign => spec.sign = spec.sign.filter(|old| *old == '+').or(Some(sign)),
            }
        }
        let mut size = |chars: &mut std::iter::Peekable<std::str::Chars>| -> Result<Option<i128>> {
            if chars.next_if_eq(&'*').is_some() {
                let value = positional.next().ok_or_else(missing)?;
                return value.as_int().map(Some).ok_or_else(|| Error::new("* wants int"));
            }
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            Ok(digits.parse().ok())
        };
        if let Some(width) = size(&mut chars)? {
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = checked(width.unsigned_abs())?;
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(checked(size(&mut chars)?.unwrap_or(0).max(0).unsigned_abs())?);
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let kind = chars.next().ok_or_else(|| Error::new("incomplete format"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => positional.next().ok_or_else(missing)?,
        };
        spec.align = spec.align.or(if spec.zero && kind != 's' && kind != 'r' { None } else { Some('>') });
        if spec.align == Some('<') {
            spec.zero = false;
        }
        let part = percent_value(&value, &mut spec, kind)?;
        let is_plain = text.is_markup && !matches!(&value, Value::Str(text) if text.is_markup);
        out += &if is_plain { escape_html(&part) } else { part };
        limits::length(out.len())?;
    }
    let takes_all = used_names
        || matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
    if !takes_all && positional.next().is_some() {
        return Err(Error::new("not all arguments converted during string formatting"));
    }
    Ok(Value::text(out, text.is_markup))
}

fn percent_value(value: &Value, spec: &mut Spec, kind: char) -> Result<String> {
    let needs_number = |value: &Value| {
        undefined_error(value).unwrap_or_else(|| {
            Error::new(format!("%{kind} format: a real number is required, not {}", value.type_name()))
        })
    };
    match kind {
        's' => pad_text(&to_text(value)?, spec),
        'r' | 'a' => pad_text(&repr(value)?, spec),
        'c' => match value {
            Value::Int(code) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| Error::new("%c arg not in range(0x110000)"))?;
                pad_text(c.encode_utf8(&mut [0; 4]), spec)
            }
            other => pad_text(&to_text(other)?, spec),
        },
        'd' | 'i' | 'u' => {
            let value = match value {
                Value::Float(value) => *value as i128,
                other => other.as_int().ok_or_else(|| needs_number(other))?,
            };
            spec.kind = Some('d');
            // The precision of an integer is its least number of digits.
            let digits = format!("{:0>1$}", value.unsigned_abs().to_string(), spec.precision.unwrap_or(0));
            pad_number(value < 0, &digits, "", spec)
        }
        'x' | 'X' | 'o' => {
            let value = value.as_int().ok_or_else(|| needs_number(value))?;
            spec.kind = Some(kind);
            format_int(value, spec)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let value = match value {
                Value::Float(value) => *value,
                other => other.as_int().ok_or_else(|| needs_number(other))? as f64,
            };
            spec.kind = Some(kind);
            format_float(value, spec)
        }
        other => Err(Error::new(format!("unsupported format character '{other}'"))),
    }
}

/// `text.format(…)`
///
/// # Errors
/// If the arguments do not fit the text.
pub(crate) fn brace_format(text: &Str, arguments: &Args) -> Result<Value> {
    let mut next = 0;
    let out = braces(&text.text, arguments, &mut next, text.is_markup, 0)?;
    Ok(Value::text(out, text.is_markup))
}

fn braces(text: &str, arguments: &Args, next: &mut usize, is_markup: bool, depth: usize) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(Error::new("single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.find(|c| {
            open += i32::from(c == '{') - i32::from(c == '}');
            open == 0
        });
        let Some(end) = end else { return Err(Error::new("expected '}' before end of string")) };
        out += &field(&rest[..end], arguments, next, is_markup, depth)?;
        limits::length(out.len())?;
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn field(field: &str, arguments: &Args, next: &mut usize, is_markup: bool, depth: usize) -> Result<String> {
    if depth > 1 {
        return Err(Error::new("max string recursion exceeded"));
    }
    let mut bracketed = false;
    let name_end = field.find(|c| {
        bracketed = (bracketed || c == '[') && c != ']';
        !bracketed && (c == '!' || c == ':')
    });
    let (path, rest) = field.split_at(name_end.unwrap_or(field.len()));
    let (conversion, spec) = match rest.strip_prefix('!') {
        Some(rest) => (rest.chars().next(), rest.get(1..).unwrap_or_default()),
        None => (None, rest),
    };
    let value = field_value(path, arguments, next)?;
    let spec = braces(spec.strip_prefix(':').unwrap_or_default(), arguments, next, false, depth + 1)?;
    let value = match conversion {
        None => value,
        Some('s') => Value::str(to_text(&value)?),
        Some('r' | 'a') => Value::str(repr(&value)?),
        Some(other) => return Err(Error::new(format!("unknown conversion specifier '{other}'"))),
    };
    let text = format_value(&value, &spec)?;
    let is_plain = is_markup && !matches!(&value, Value::Str(text) if text.is_markup);
    Ok(if is_plain { escape_html(&text) } else { text })
}

fn field_value(path: &str, arguments: &Args, next: &mut usize) -> Result<Value> {
    let first_end = path.find(['.', '[']).unwrap_or(path.len());
    let (first, mut rest) = path.split_at(first_end);
    let index = if first.is_empty() {
        *next += 1;
        Some(*next - 1)
    } else {
        first.parse().ok()
    };
    let found = match index {
        Some(index) => arguments.positional.get(index),
        None => arguments.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value),
    };
    let missing = || match index {
        Some(index) => Error::new(format!("replacement index {index} out of range for positional args")),
        None => Error::new(format!("KeyError: '{first}'")),
    };
    let mut value = found.cloned().ok_or_else(missing)?;
    while !rest.is_empty() {
        let Some(inner) = rest.strip_prefix('[') else {
            return Err(Error::new("attributes in a format string are not supported"));
        };
        let (key, after) = inner.split_once(']').ok_or_else(|| Error::new("missing ']' in format string"))?;
        let key_value = key.parse().map_or_else(|_| Value::str(key), Value::Int);
        value = item(&value, &key_value)?.ok_or_else(|| Error::new(format!("KeyError: '{key}'")))?;
        rest = after;
    }
    Ok(value)
}
