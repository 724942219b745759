//! Comparisons, containment, keys of dicts, and sorting.

use crate::{
    ast::Comparison,
    error::{Error, Result},
    limits,
    number::{Number, float, number, undefined_error},
    value::{Range, Value},
};
use std::{cmp::Ordering, rc::Rc};

/// Whether two values are equal.
///
/// # Errors
/// If the comparison takes too long.
pub(crate) fn equal(left: &Value, right: &Value) -> Result<bool> {
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
pub(crate) fn dict_get<'d>(entries: &'d [(Value, Value)], key: &Value) -> Result<Option<&'d Value>> {
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
pub(crate) fn check_key(key: &Value) -> Result<()> {
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
pub(crate) fn dict_set(entries: &mut Vec<(Value, Value)>, key: Value, value: Value) -> Result<()> {
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
pub(crate) fn order(symbol: &str, left: &Value, right: &Value) -> Result<Option<Ordering>> {
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
pub(crate) fn compare(comparison: Comparison, left: &Value, right: &Value) -> Result<bool> {
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
pub(crate) fn contains(container: &Value, value: &Value) -> Result<bool> {
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

/// Sorts items without changing the order of equal ones.
///
/// # Errors
/// If two items have no order.
pub(crate) fn sort<T: Clone>(items: &mut [T], mut less: impl FnMut(&T, &T) -> Result<bool>) -> Result<()> {
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
