//! Tests: `value is name`.

use crate::ast::Operator;
use crate::{
    arguments::Args,
    ast::Comparison,
    compare::{check_key, compare, contains, equal},
    error::{Error, Result},
    filter_names,
    operators::arithmetic,
    text::to_text,
    value::Value,
};
use std::rc::Rc;

const NAMES: &[&str] = &[
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether `value is name(arguments)`.
///
/// # Errors
/// If there is no such test, or it does not fit the value.
pub(crate) fn test(value: &Value, name: &str, args: Args) -> Result<bool> {
    let comparison = match name {
        "==" | "eq" | "equalto" => Some(Comparison::Eq),
        "!=" | "ne" => Some(Comparison::Ne),
        ">" | "gt" | "greaterthan" => Some(Comparison::Gt),
        ">=" | "ge" => Some(Comparison::Ge),
        "<" | "lt" | "lessthan" => Some(Comparison::Lt),
        "<=" | "le" => Some(Comparison::Le),
        _ => None,
    };
    if let Some(comparison) = comparison {
        return compare(comparison, value, args.bind(name, ["other"])?.required(0)?);
    }
    if matches!(name, "divisibleby" | "sameas" | "in") {
        let args = args.bind(name, ["other"])?;
        let other = args.required(0)?;
        return match name {
            "in" => contains(other, value),
            "sameas" => is_same(value, other),
            _ => equal(&arithmetic(Operator::Mod, value, other)?, &Value::Int(0)),
        };
    }
    if !NAMES.contains(&name) {
        return Err(Error::new(format!("no test named '{name}'")));
    }
    args.bind(name, [])?;
    if matches!(name, "filter" | "test") {
        check_key(value)?;
    }
    let rest = |rest| equal(&arithmetic(Operator::Mod, value, &Value::Int(2))?, &Value::Int(rest));
    Ok(match name {
        "odd" => rest(1)?,
        "even" => rest(0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(filter_names::exists),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        "iterable" => value.is_iterable(),
        // A missing value has a method that raises an error when it is called.
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Joiner(..)
                | Value::Loop(_)
        ),
        "escaped" => matches!(value, Value::Str(text) if text.is_markup),
        "lower" => is_case(&to_text(value)?, char::is_lowercase, char::is_uppercase),
        _ => is_case(&to_text(value)?, char::is_uppercase, char::is_lowercase),
    })
}

fn is_case(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}

/// Whether two values are one object.
fn is_same(left: &Value, right: &Value) -> Result<bool> {
    Ok(match (left, right) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (a, b) => a.type_name() == b.type_name() && equal(a, b)?,
    })
}
