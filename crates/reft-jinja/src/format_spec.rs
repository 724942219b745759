//! How one value is formatted.

use crate::{
    error::{Error, Result},
    limits,
    number::undefined_error,
    text::{float_text, to_text},
    value::Value,
};

/// How a value is formatted: `[[fill]align][sign][#][0][width][,][.precision][type]`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Spec {
    pub fill: Option<char>,
    pub align: Option<char>,
    pub sign: Option<char>,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

/// Checks a width or a precision.
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn checked(width: u128) -> Result<usize> {
    let width = usize::try_from(width).unwrap_or(usize::MAX);
    limits::text(width)?;
    Ok(width)
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

/// `format(value, spec)`
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn format_value(value: &Value, spec: &str) -> Result<String> {
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

/// An integer by a spec.
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn format_int(value: i128, spec: &Spec) -> Result<String> {
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

/// A float by a spec.
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn format_float(value: f64, spec: &Spec) -> Result<String> {
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

/// A number with its sign, padded to the width.
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn pad_number(is_negative: bool, digits: &str, prefix: &str, spec: &Spec) -> Result<String> {
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

/// A text, cut to the precision and padded to the width.
///
/// # Errors
/// If the spec does not fit, or the text is too long.
pub(crate) fn pad_text(text: &str, spec: &Spec) -> Result<String> {
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
