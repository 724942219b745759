//! Indices and slices.

use crate::{
    compare::{check_key, dict_get},
    error::{Error, Result},
    limits,
    number::undefined_error,
    text::repr,
    value::{Range, Value},
};

/// `value[index]` of a sequence or a dict; nothing if there is no such item.
///
/// # Errors
/// If the index cannot be one.
pub(crate) fn item(value: &Value, index: &Value) -> Result<Option<Value>> {
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
pub(crate) fn slice(value: &Value, bounds: &[Value; 3]) -> Result<Value> {
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
        Value::Undefined(missing) => Err(missing.error()),
        other => Err(Error::new(format!("slices of a '{}' are not supported", other.type_name()))),
    }
}

/// A value in the messages about missing attributes.
pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        other => format!("'{} object'", other.type_name()),
    }
}

/// The message about an item that is not there.
pub(crate) fn no_item(value: &Value, index: &Value) -> Result<Value> {
    Ok(Value::undefined(match index {
        Value::Str(name) => format!("{} has no attribute '{}'", described(value), name.text),
        index => format!("{} has no element {}", described(value), repr(index)?),
    }))
}
