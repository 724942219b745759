//! `value.name` and `value[index]`.

use crate::{
    error::{Error, Result},
    index::{described, item, no_item},
    methods::method,
    number::undefined_error,
    value::{Loop, Value},
};
use std::sync::Arc;

/// An attribute, other than one of a namespace.
fn attribute(value: &Value, name: &Arc<str>) -> Result<Option<Value>> {
    let found = match value {
        Value::Undefined(_) if !name.starts_with("__") => {
            return undefined_error(value).map_or(Ok(None), Err);
        }
        Value::Namespace(_) => {
            return Err(Error::new("attributes of a namespace in a filter are not supported"));
        }
        Value::Loop(state) => loop_attribute(state, name)?,
        Value::Tuple(seq) if seq.is_group => match &**name {
            "grouper" => Some(seq.items[0].clone()),
            "list" => Some(seq.items[1].clone()),
            _ => None,
        },
        Value::Macro(state) if &**name == "name" => Some(Value::str(state.definition.name.clone())),
        _ => None,
    };
    if found.is_some() {
        return Ok(found);
    }
    if name.starts_with("__") {
        let kind = value.type_name();
        let message = format!("access to attribute '{name}' of '{kind}' object is unsafe.");
        return Ok(item(value, &Value::str(name.clone()))?.or(Some(Value::undefined(message))));
    }
    Ok(method(value, name))
}

fn loop_attribute(state: &Loop, name: &str) -> Result<Option<Value>> {
    let (index, length) = (state.index.get(), state.items.len());
    let neighbor = |at: Option<usize>, which: &str| {
        let found = at.and_then(|at| state.items.get(at)).cloned();
        found.unwrap_or_else(|| Value::undefined(format!("there is no {which} item")))
    };
    Ok(Some(match name {
        "index" => Value::int(index + 1),
        "index0" => Value::int(index),
        "revindex" => Value::int(length - index),
        "revindex0" => Value::int(length - index - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == length),
        "length" => Value::int(length),
        "depth" => Value::int(state.level + 1),
        "depth0" => Value::int(state.level),
        "previtem" => neighbor(index.checked_sub(1), "previous"),
        "nextitem" => neighbor(Some(index + 1), "next"),
        _ => return Ok(None),
    }))
}

/// `value.name`: an attribute, an item, or undefined.
///
/// # Errors
/// If the value is undefined.
pub(crate) fn get_attribute(value: &Value, name: &Arc<str>) -> Result<Value> {
    if let Some(found) = attribute(value, name)? {
        return Ok(found);
    }
    if let Value::Dict(_) = value
        && let Some(found) = item(value, &Value::str(name.clone()))?
    {
        return Ok(found);
    }
    Ok(Value::undefined(format!("{} has no attribute '{name}'", described(value))))
}

/// The filter `attr`: an attribute, or undefined.
///
/// # Errors
/// If the value is undefined.
pub(crate) fn only_attribute(value: &Value, name: &Arc<str>) -> Result<Value> {
    let missing = || Value::undefined(format!("{} has no attribute '{name}'", described(value)));
    Ok(attribute(value, name)?.unwrap_or_else(missing))
}

/// `value[index]`: an item, an attribute, or undefined.
///
/// # Errors
/// If the value is undefined.
pub(crate) fn get_item(value: &Value, index: &Value) -> Result<Value> {
    if let Some(error) = undefined_error(value) {
        return Err(error);
    }
    if let Some(found) = item(value, index)? {
        return Ok(found);
    }
    if let Value::Str(name) = index
        && let Some(found) = attribute(value, &name.text)?
    {
        return Ok(found);
    }
    no_item(value, index)
}
