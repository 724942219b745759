//! Python's `text % values` and `text.format(…)`.

use super::{
    arguments::Args,
    error::{Error, Result},
    limits,
    operators::{dict_get, item, undefined_error},
    text::{capitalize, escape_html, float_text, repr, to_text},
    value::{Str, Value},
};

/// How a value is formatted: `[[fill]align][sign][#][0][width][,][.precision][type]`.
#[derive(Debug, Default, Clone)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `text % values`
///
/// # Errors
/// If the values do not fit the text.
pub(super) fn percent_format(text: &Str, values: &Value) -> Result<Value> {
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

fn checked(width: u128) -> Result<usize> {
    let width = usize::try_from(width).unwrap_or(usize::MAX);
    limits::text(width)?;
    Ok(width)
}

/// `text.format(…)`
///
/// # Errors
/// If the arguments do not fit the text.
pub(super) fn brace_format(text: &Str, arguments: &Args) -> Result<Value> {
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

fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut chars = text.chars().peekable();
    let is_align = |c: char| "<>=^".contains(c);
    let mut ahead = text.chars();
    match (ahead.next(), ahead.next()) {
        (Some(fill), Some(align)) if is_align(align) => {
            (spec.fill, spec.align) = (Some(fill), Some(align));
            chars.nth(1);
        }
        (Some(align), _) if is_align(align) => {
            spec.align = Some(align);
            chars.next();
        }
        _ => {}
    }
    spec.sign = chars.next_if(|c| "+- ".contains(*c));
    spec.alternate = chars.next_if_eq(&'#').is_some();
    spec.zero = chars.next_if_eq(&'0').is_some();
    let digits = |chars: &mut std::iter::Peekable<std::str::Chars>| {
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        digits.parse::<u128>().ok()
    };
    spec.width = checked(digits(&mut chars).unwrap_or(0))?;
    spec.grouping = chars.next_if(|c| *c == ',' || *c == '_');
    if chars.next_if_eq(&'.').is_some() {
        let precision = digits(&mut chars).ok_or_else(|| Error::new("format specifier missing precision"))?;
        spec.precision = Some(checked(precision)?);
    }
    spec.kind = chars.next();
    if chars.next().is_some() {
        return Err(Error::new(format!("invalid format specifier '{text}'")));
    }
    Ok(spec)
}

fn format_value(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return Ok(to_text(value)?.to_string());
    }
    let mut spec = parse_spec(spec)?;
    match (value, spec.kind) {
        (Value::Str(text), None | Some('s')) => {
            if spec.align == Some('=') || spec.sign.is_some() {
                return Err(Error::new("'=' alignment and signs are not allowed in string format specifier"));
            }
            spec.align = spec.align.or(Some('<'));
            spec.fill = spec.fill.or(spec.zero.then_some('0'));
            pad_text(&text.text, &spec)
        }
        (Value::Float(value), _) => format_float(*value, &spec),
        (Value::Int(_) | Value::Bool(_), kind) => {
            let int = value.as_int().unwrap_or(0);
            match kind {
                Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => format_float(int as f64, &spec),
                Some('c') => {
                    let c = u32::try_from(int).ok().and_then(char::from_u32);
                    pad_text(
                        &c.map(String::from).ok_or_else(|| Error::new("%c arg not in range(0x110000)"))?,
                        &spec,
                    )
                }
                _ => format_int(int, &spec),
            }
        }
        (other, _) => Err(undefined_error(other).unwrap_or_else(|| {
            Error::new(format!("unsupported format string passed to {}.__format__", other.type_name()))
        })),
    }
}

fn format_int(value: i128, spec: &Spec) -> Result<String> {
    let magnitude = value.unsigned_abs();
    let (prefix, digits) = match spec.kind {
        None | Some('d' | 'n') => ("", magnitude.to_string()),
        Some('x') => ("0x", format!("{magnitude:x}")),
        Some('X') => ("0X", format!("{magnitude:X}")),
        Some('o') => ("0o", format!("{magnitude:o}")),
        Some('b') => ("0b", format!("{magnitude:b}")),
        Some(other) => {
            return Err(Error::new(format!("unknown format code '{other}' for object of type 'int'")));
        }
    };
    pad_number(value < 0, &digits, if spec.alternate { prefix } else { "" }, spec)
}

fn format_float(value: f64, spec: &Spec) -> Result<String> {
    let magnitude = value.abs();
    let precision = spec.precision.unwrap_or(6);
    let kind = spec.kind.unwrap_or(' ');
    let digits = if !value.is_finite() {
        float_text(magnitude)
    } else {
        match kind.to_ascii_lowercase() {
            'f' => format!("{magnitude:.precision$}"),
            '%' => format!("{:.precision$}%", magnitude * 100.0),
            'e' => exponent_text(&format!("{magnitude:.precision$e}")),
            'g' | 'n' => general(magnitude, precision.max(1), spec.alternate, false),
            ' ' if spec.precision.is_some() => general(magnitude, precision.max(1), false, true),
            ' ' => float_text(magnitude),
            other => {
                return Err(Error::new(format!("unknown format code '{other}' for object of type 'float'")));
            }
        }
    };
    let digits = if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
    pad_number(value.is_sign_negative() && !value.is_nan(), &digits, "", spec)
}

/// `1e5` → `1e+05`
fn exponent_text(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn general(value: f64, precision: usize, keeps_zeros: bool, needs_point: bool) -> String {
    let scientific = format!("{value:.*e}", precision - 1);
    let exponent: i64 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let without_zeros = |text: &str| {
        let is_short = keeps_zeros || !text.contains('.');
        if is_short { text.to_string() } else { text.trim_end_matches('0').trim_end_matches('.').to_string() }
    };
    let last = precision as i64 - i64::from(needs_point);
    if exponent < -4 || exponent >= last {
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent_text(&format!("{}e{exponent}", without_zeros(digits)));
    }
    let decimals = (precision as i64 - 1 - exponent).max(0) as usize;
    let text = without_zeros(&format!("{value:.decimals$}"));
    if needs_point && !text.contains('.') { text + ".0" } else { text }
}

fn pad_number(is_negative: bool, digits: &str, prefix: &str, spec: &Spec) -> Result<String> {
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let digits = match spec.grouping {
        Some(separator) => {
            let (whole, rest) =
                digits.split_at(digits.find(|c: char| !c.is_alphanumeric()).unwrap_or(digits.len()));
            let size = if matches!(spec.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
            let mut grouped = String::new();
            for (index, c) in whole.chars().enumerate() {
                if index > 0 && (whole.len() - index).is_multiple_of(size) {
                    grouped.push(separator);
                }
                grouped.push(c);
            }
            grouped + rest
        }
        None => digits.to_string(),
    };
    let align = spec.align.unwrap_or(if spec.zero { '=' } else { '>' });
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    if align == '=' || (spec.zero && spec.align == Some('>') && spec.fill.is_none()) {
        let missing = spec.width.saturating_sub(sign.len() + prefix.len() + digits.chars().count());
        let filling: String = std::iter::repeat_n(fill, missing).collect();
        return Ok(format!("{sign}{prefix}{filling}{digits}"));
    }
    let unlimited = Spec { precision: None, align: Some(align), fill: Some(fill), ..spec.clone() };
    pad_text(&format!("{sign}{prefix}{digits}"), &unlimited)
}

fn pad_text(text: &str, spec: &Spec) -> Result<String> {
    let text: String = match spec.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.into(),
    };
    let missing = spec.width.saturating_sub(text.chars().count());
    let left = match spec.align {
        Some('<') => 0,
        Some('^') => missing / 2,
        _ => missing,
    };
    let fill = spec.fill.unwrap_or(' ');
    let filling = |count| std::iter::repeat_n(fill, count).collect::<String>();
    limits::text(text.len() + missing)?;
    Ok(filling(left) + &text + &filling(missing - left))
}

/// Python's `str.title`: a capital after every character that is no letter.
pub(super) fn title(text: &str) -> String {
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
