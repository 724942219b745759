//! Arithmetic.

use crate::{
    ast::Operator,
    error::{Error, Result},
    format::percent_format,
    limits,
    number::{Number, float, number, undefined_error},
    text::{escape_html, to_text},
    value::{Seq, Str, Value},
};

fn unsupported(symbol: &str, left: &Value, right: &Value) -> Error {
    if let Some(error) = undefined_error(left).or_else(|| undefined_error(right)) {
        return error;
    }
    let (left, right) = (left.type_name(), right.type_name());
    Error::new(format!("unsupported operand type(s) for {symbol}: '{left}' and '{right}'"))
}

/// `left operator right`
///
/// # Errors
/// If the values do not support it.
pub(crate) fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return match (a, b) {
            (Number::Int(a), Number::Int(b)) => int_arithmetic(operator, a, b),
            (a, b) => float_arithmetic(operator, float(&a), float(&b)),
        };
    }
    match operator {
        Operator::Add => add(left, right),
        Operator::Mul => match (left, right) {
            (value, times) | (times, value) if times.as_int().is_some() && is_sequence(value) => {
                repeat(value, times.as_int().unwrap_or(0))
            }
            _ => Err(unsupported("*", left, right)),
        },
        Operator::Mod => match left {
            Value::Str(text) => percent_format(text, right),
            _ => Err(unsupported("%", left, right)),
        },
        Operator::Sub => Err(unsupported("-", left, right)),
        Operator::Div => Err(unsupported("/", left, right)),
        Operator::FloorDiv => Err(unsupported("//", left, right)),
        Operator::Pow => Err(unsupported("** or pow()", left, right)),
    }
}

fn is_sequence(value: &Value) -> bool {
    matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_))
}

fn add(left: &Value, right: &Value) -> Result<Value> {
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            let is_markup = a.is_markup || b.is_markup;
            let part = |text: &Str| {
                if is_markup && !text.is_markup { escape_html(&text.text).into() } else { text.text.clone() }
            };
            limits::text(a.text.len() + b.text.len())?;
            Ok(Value::text([&*part(a), &*part(b)].concat(), is_markup))
        }
        (Value::List(a), Value::List(b)) => Value::list([&a.items[..], &b.items[..]].concat()),
        (Value::Tuple(a), Value::Tuple(b)) => Value::tuple([&a.items[..], &b.items[..]].concat()),
        (Value::Str(_) | Value::List(_) | Value::Tuple(_), other) if !other.is_undefined() => {
            let kind = left.type_name();
            Err(Error::new(format!("can only concatenate {kind} (not \"{}\") to {kind}", other.type_name())))
        }
        _ => Err(unsupported("+", left, right)),
    }
}

fn repeat(value: &Value, times: i128) -> Result<Value> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let items = |seq: &Seq| -> Result<Vec<Value>> {
        limits::step(seq.items.len().saturating_mul(times).min(1 << 40))?;
        Ok((0..times).flat_map(|_| seq.items.iter().cloned()).collect())
    };
    match value {
        Value::Str(text) => {
            limits::text(text.text.len().saturating_mul(times))?;
            Ok(Value::text(text.text.repeat(if text.text.is_empty() { 0 } else { times }), text.is_markup))
        }
        Value::List(seq) if seq.items.is_empty() => Value::list(Vec::new()),
        Value::List(seq) => Value::list(items(seq)?),
        Value::Tuple(seq) if seq.items.is_empty() => Value::tuple(Vec::new()),
        Value::Tuple(seq) => Value::tuple(items(seq)?),
        _ => Err(unsupported("*", value, &Value::Int(0))),
    }
}

fn int_arithmetic(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let too_large = || Error::new("an integer has more than 127 bits");
    let by_zero = || Error::new("division by zero");
    Ok(match operator {
        Operator::Add => Value::Int(a.checked_add(b).ok_or_else(too_large)?),
        Operator::Sub => Value::Int(a.checked_sub(b).ok_or_else(too_large)?),
        Operator::Mul => Value::Int(a.checked_mul(b).ok_or_else(too_large)?),
        Operator::Div | Operator::FloorDiv | Operator::Mod if b == 0 => return Err(by_zero()),
        Operator::Div => Value::Float(a as f64 / b as f64),
        Operator::FloorDiv => {
            let quotient = a.checked_div(b).ok_or_else(too_large)?;
            Value::Int(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        Operator::Mod => {
            let rest = a.checked_rem(b).ok_or_else(too_large)?;
            Value::Int(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        Operator::Pow if b < 0 && a == 0 => return Err(by_zero()),
        Operator::Pow if b < 0 => Value::Float((a as f64).powf(b as f64)),
        Operator::Pow => {
            let exponent = u32::try_from(b).map_err(|_| too_large())?;
            Value::Int(a.checked_pow(exponent).ok_or_else(too_large)?)
        }
    })
}

fn float_arithmetic(operator: Operator, a: f64, b: f64) -> Result<Value> {
    let divides = matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if divides && b == 0.0 {
        return Err(Error::new("float division by zero"));
    }
    let modulo = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div => a / b,
        Operator::FloorDiv => ((a - modulo()) / b).round(),
        Operator::Mod => modulo(),
        Operator::Pow if a < 0.0 && b.fract() != 0.0 => {
            return Err(Error::new("complex numbers are not supported"));
        }
        Operator::Pow => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Error::new("the result of ** is too large"));
            }
            power
        }
    }))
}

/// `-value`
///
/// # Errors
/// If the value is no number.
pub(crate) fn negative(value: &Value) -> Result<Value> {
    match number(value) {
        Some(Number::Int(value)) => arithmetic(Operator::Sub, &Value::Int(0), &Value::Int(value)),
        Some(Number::Float(value)) => Ok(Value::Float(-value)),
        None => Err(bad_operand("-", value)),
    }
}

/// `+value`
///
/// # Errors
/// If the value is no number.
pub(crate) fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Float(_) => Ok(value.clone()),
        _ => value.as_int().map(Value::Int).ok_or_else(|| bad_operand("+", value)),
    }
}

fn bad_operand(symbol: &str, value: &Value) -> Error {
    let message = || Error::new(format!("bad operand type for unary {symbol}: '{}'", value.type_name()));
    undefined_error(value).unwrap_or_else(message)
}

/// `left ~ right ~ …`
///
/// # Errors
/// If a value has no text, or the text is too long.
pub(crate) fn concatenate(values: &[Value]) -> Result<Value> {
    let texts = values.iter().map(to_text).collect::<Result<Vec<_>>>()?;
    limits::text(texts.iter().map(|text| text.len()).sum())?;
    Ok(Value::str(texts.concat()))
}
