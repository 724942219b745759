//! Arithmetic, comparisons, indices and slices.

use super::{
    ast::{Comparison, Operator},
    error::{Error, Result},
    format::percent_format,
    limits,
    text::{escape_html, repr, to_text},
    value::{Range, Seq, Str, Value},
};
use std::{cmp::Ordering, rc::Rc};

fn unsupported(symbol: &str, left: &Value, right: &Value) -> Error {
    if let Some(error) = undefined_error(left).or_else(|| undefined_error(right)) {
        return error;
    }
    let (left, right) = (left.type_name(), right.type_name());
    Error::new(format!("unsupported operand type(s) for {symbol}: '{left}' and '{right}'"))
}

/// The error of using a missing value.
pub(super) fn undefined_error(value: &Value) -> Option<Error> {
    match value {
        Value::Undefined(message) => Some(Error::new(&**message)),
        _ => None,
    }
}

/// A number, to compute with.
enum Number {
    Int(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Float(value) => Some(Number::Float(*value)),
        _ => value.as_int().map(Number::Int),
    }
}

fn float(number: &Number) -> f64 {
    match number {
        Number::Int(value) => *value as f64,
        Number::Float(value) => *value,
    }
}

/// `left operator right`
///
/// # Errors
/// If the values do not support it.
pub(super) fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Result<Value> {
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
pub(super) fn negative(value: &Value) -> Result<Value> {
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
pub(super) fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Float(_) => Ok(value.clone()),
        _ => value.as_int().map(Value::Int).ok_or_else(|| bad_operand("+", value)),
    }
}

fn bad_operand(symbol: &str, value: &Value) -> Error {
    let message = || Error::new(format!("bad operand type for unary {symbol}: '{}'", value.type_name()));
    undefined_error(value).unwrap_or_else(message)
}

/// Whether two values are equal.
///
/// # Errors
/// If the comparison takes too long.
pub(super) fn equal(left: &Value, right: &Value) -> Result<bool> {
    limits::step(1)?;
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return Ok(match (a, b) {
            (Number::Int(a), Number::Int(b)) => a == b,
            (a, b) => float(&a) == float(&b),
        });
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => a.text == b.text,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            Rc::ptr_eq(a, b) || all_equal(&a.items, &b.items)?
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if Rc::ptr_eq(a, b) {
                return Ok(true);
            }
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, value) in &a.entries {
                match dict_get(&b.entries, key)? {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a), Value::Range(b)) => {
            let items = |range: &Range| {
                (
                    range.len(),
                    (range.len() > 0).then_some(range.start),
                    (range.len() > 1).then_some(range.step),
                )
            };
            items(a) == items(b)
        }
        (Value::View(a, x), Value::View(b, y)) if a == b && *a != "dict_values" => {
            x.items.len() == y.items.len() && all_contained(&x.items, &y.items)?
        }
        (Value::View(_, a), Value::View(_, b)) => Rc::ptr_eq(a, b),
        (Value::Iterator(a), Value::Iterator(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (Value::Cycler(_, a), Value::Cycler(_, b)) | (Value::Joiner(_, a), Value::Joiner(_, b)) => a == b,
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => false,
    })
}

fn all_equal(left: &[Value], right: &[Value]) -> Result<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (a, b) in left.iter().zip(right) {
        if !equal(a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn all_contained(left: &[Value], right: &[Value]) -> Result<bool> {
    for value in left {
        if !is_in(value, right)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_in(value: &Value, items: &[Value]) -> Result<bool> {
    for item in items {
        if equal(item, value)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The value of a key.
///
/// # Errors
/// If the key cannot be one.
pub(super) fn dict_get<'d>(entries: &'d [(Value, Value)], key: &Value) -> Result<Option<&'d Value>> {
    if let Some(text) = key.as_str() {
        limits::step(entries.len() / 8)?;
        return Ok(entries.iter().find(|(found, _)| found.as_str() == Some(text)).map(|(_, value)| value));
    }
    check_key(key)?;
    for (found, value) in entries {
        if equal(found, key)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Checks that a value can be a key.
///
/// # Errors
/// If it cannot.
pub(super) fn check_key(key: &Value) -> Result<()> {
    match key {
        Value::List(_) | Value::Dict(_) | Value::View("dict_keys" | "dict_items", _) => {
            Err(Error::new(format!("unhashable type: '{}'", key.type_name())))
        }
        Value::Tuple(seq) => seq.items.iter().try_for_each(check_key),
        _ => Ok(()),
    }
}

/// Sets the value of a key.
///
/// # Errors
/// If the key cannot be one.
pub(super) fn dict_set(entries: &mut Vec<(Value, Value)>, key: Value, value: Value) -> Result<()> {
    check_key(&key)?;
    limits::step(1 + entries.len() / 8)?;
    for (found, old) in entries.iter_mut() {
        let is_same = match (found.as_str(), key.as_str()) {
            (Some(a), Some(b)) => a == b,
            (None, None) => equal(found, &key)?,
            _ => false,
        };
        if is_same {
            *old = value;
            return Ok(());
        }
    }
    entries.push((key, value));
    Ok(())
}

/// The order of two values.
///
/// # Errors
/// If they have none.
pub(super) fn order(symbol: &str, left: &Value, right: &Value) -> Result<Option<Ordering>> {
    limits::step(1)?;
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return Ok(match (a, b) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (a, b) => float(&a).partial_cmp(&float(&b)),
        });
    }
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => Ok(Some(a.text.cmp(&b.text))),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (x, y) in a.items.iter().zip(&b.items) {
                if !equal(x, y)? {
                    return order(symbol, x, y);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        _ => {
            if let Some(error) = undefined_error(left).or_else(|| undefined_error(right)) {
                return Err(error);
            }
            let (left, right) = (left.type_name(), right.type_name());
            Err(Error::new(format!("'{symbol}' not supported between instances of '{left}' and '{right}'")))
        }
    }
}

/// `left comparison right`
///
/// # Errors
/// If the values do not support it.
pub(super) fn compare(comparison: Comparison, left: &Value, right: &Value) -> Result<bool> {
    Ok(match comparison {
        Comparison::Eq => equal(left, right)?,
        Comparison::Ne => !equal(left, right)?,
        Comparison::Lt => order("<", left, right)? == Some(Ordering::Less),
        Comparison::Le => order("<=", left, right)?.is_some_and(Ordering::is_le),
        Comparison::Gt => order(">", left, right)? == Some(Ordering::Greater),
        Comparison::Ge => order(">=", left, right)?.is_some_and(Ordering::is_ge),
        Comparison::In => contains(right, left)?,
        Comparison::NotIn => !contains(right, left)?,
    })
}

/// `value in container`
///
/// # Errors
/// If the container has no items.
pub(super) fn contains(container: &Value, value: &Value) -> Result<bool> {
    match container {
        Value::Str(text) => match value {
            Value::Str(part) => {
                limits::step(text.text.len() / 64)?;
                Ok(text.text.contains(&*part.text))
            }
            _ => Err(undefined_error(value).unwrap_or_else(|| {
                Error::new(format!(
                    "'in <string>' requires string as left operand, not {}",
                    value.type_name()
                ))
            })),
        },
        Value::Dict(dict) => Ok(dict_get(&dict.entries, value)?.is_some()),
        Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => is_in(value, &seq.items),
        other if other.is_iterable() => is_in(value, &other.items()?),
        other => Err(Error::new(format!("argument of type '{}' is not iterable", other.type_name()))),
    }
}

/// `value[index]` of a sequence or a dict; nothing if there is no such item.
///
/// # Errors
/// If the index cannot be one.
pub(super) fn item(value: &Value, index: &Value) -> Result<Option<Value>> {
    if let Value::Dict(dict) = value {
        // A key that cannot be one is an item that is not there.
        return match check_key(index) {
            Ok(()) => Ok(dict_get(&dict.entries, index)?.cloned()),
            Err(_) => Ok(None),
        };
    }
    let Some(index) = index.as_int() else { return Ok(None) };
    let position = |length: usize| {
        let index = if index < 0 { index + length as i128 } else { index };
        usize::try_from(index).ok().filter(|index| *index < length)
    };
    Ok(match value {
        Value::List(seq) | Value::Tuple(seq) => position(seq.items.len()).map(|at| seq.items[at].clone()),
        Value::Range(range) => position(range.len()).map(|at| Value::Int(range.get(at))),
        Value::Str(text) if text.text.is_ascii() => {
            position(text.text.len()).map(|at| Value::text(&text.text[at..=at], text.is_markup))
        }
        Value::Str(text) => position(value.len()?)
            .and_then(|at| text.text.chars().nth(at))
            .map(|c| Value::text(c.to_string(), text.is_markup)),
        _ => None,
    })
}

/// Start, stop and step of `[start:stop:step]` of a sequence.
fn slice_bounds(length: usize, bounds: [Option<i128>; 3]) -> Result<[i128; 3]> {
    let length = length as i128;
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return Err(Error::new("slice step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(at) if at < 0 => (at.saturating_add(length)).max(low),
        Some(at) => at.min(high),
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    Ok([bound(bounds[0], first), bound(bounds[1], last), step])
}

/// The indices of `[start:stop:step]` of a sequence.
fn slice_indices(length: usize, bounds: [Option<i128>; 3]) -> Result<Vec<usize>> {
    let [start, stop, step] = slice_bounds(length, bounds)?;
    let mut indices = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        indices.push(at as usize);
        at = at.saturating_add(step);
    }
    limits::step(indices.len() / 8)?;
    Ok(indices)
}

/// `range(…)[start:stop:step]`
fn slice_range(range: Range, bounds: [Option<i128>; 3]) -> Result<Value> {
    let [start, stop, step] = slice_bounds(range.len(), bounds)?;
    let scaled = |at: i128| i64::try_from(range.start as i128 + at * range.step as i128);
    let step = step.checked_mul(range.step as i128).and_then(|step| i64::try_from(step).ok());
    match (scaled(start), scaled(stop), step) {
        (Ok(start), Ok(stop), Some(step)) => Ok(Value::Range(Range { start, stop, step })),
        _ => Err(Error::new("the slice of a range is too large")),
    }
}

/// `value[start:stop:step]`
///
/// # Errors
/// If the value is no sequence, or a bound no integer.
pub(super) fn slice(value: &Value, bounds: &[Value; 3]) -> Result<Value> {
    let mut ints = [None; 3];
    for (int, bound) in ints.iter_mut().zip(bounds) {
        if !matches!(bound, Value::None) {
            let message = || Error::new("slice indices must be integers or None or have an __index__ method");
            *int = Some(bound.as_int().ok_or_else(|| undefined_error(bound).unwrap_or_else(message))?);
        }
    }
    let pick = |items: &[Value]| -> Result<Vec<Value>> {
        Ok(slice_indices(items.len(), ints)?.into_iter().map(|at| items[at].clone()).collect())
    };
    match value {
        Value::List(seq) => Value::list(pick(&seq.items)?),
        Value::Tuple(seq) => Value::tuple(pick(&seq.items)?),
        Value::Range(range) => slice_range(*range, ints),
        Value::Str(text) => {
            limits::text(text.text.len())?;
            let part: String = if text.text.is_ascii() {
                let bytes = text.text.as_bytes();
                slice_indices(bytes.len(), ints)?.into_iter().map(|at| char::from(bytes[at])).collect()
            } else {
                let chars: Vec<char> = text.text.chars().collect();
                slice_indices(chars.len(), ints)?.into_iter().map(|at| chars[at]).collect()
            };
            Ok(Value::text(part, text.is_markup))
        }
        Value::Undefined(message) => Err(Error::new(&**message)),
        other => Err(Error::new(format!("slices of a '{}' are not supported", other.type_name()))),
    }
}

/// A value in the messages about missing attributes.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        other => format!("'{} object'", other.type_name()),
    }
}

/// The message about an item that is not there.
pub(super) fn no_item(value: &Value, index: &Value) -> Result<Value> {
    Ok(Value::undefined(match index {
        Value::Str(name) => format!("{} has no attribute '{}'", described(value), name.text),
        index => format!("{} has no element {}", described(value), repr(index)?),
    }))
}

/// `left ~ right ~ …`
///
/// # Errors
/// If a value has no text, or the text is too long.
pub(super) fn concatenate(values: &[Value]) -> Result<Value> {
    let texts = values.iter().map(to_text).collect::<Result<Vec<_>>>()?;
    limits::text(texts.iter().map(|text| text.len()).sum())?;
    Ok(Value::str(texts.concat()))
}

/// Sorts items without changing the order of equal ones.
///
/// # Errors
/// If two items have no order.
pub(super) fn sort<T: Clone>(items: &mut [T], mut less: impl FnMut(&T, &T) -> Result<bool>) -> Result<()> {
    let mut width = 1;
    let mut merged = Vec::with_capacity(items.len());
    while width < items.len() {
        for run in items.chunks(2 * width) {
            let (mut left, mut right) = run.split_at(width.min(run.len()));
            while let ([a, rest @ ..], [b, others @ ..]) = (left, right) {
                if less(b, a)? {
                    merged.push(b.clone());
                    right = others;
                } else {
                    merged.push(a.clone());
                    left = rest;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        items.clone_from_slice(&merged);
        merged.clear();
        width *= 2;
    }
    Ok(())
}
