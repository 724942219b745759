//! Values as numbers, and the error where a value is missing.

use crate::{error::Error, value::Value};

/// The error of using a missing value.
pub(crate) fn undefined_error(value: &Value) -> Option<Error> {
    match value {
        Value::Undefined(missing) => Some(missing.error()),
        _ => None,
    }
}

/// A number, to compute with.
pub(crate) enum Number {
    Int(i128),
    Float(f64),
}

/// The number, if the value is one; `True` and `False` are 1 and 0.
pub(crate) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Float(value) => Some(Number::Float(*value)),
        _ => value.as_int().map(Number::Int),
    }
}

/// The number as a float.
pub(crate) fn float(number: &Number) -> f64 {
    match number {
        Number::Int(value) => *value as f64,
        Number::Float(value) => *value,
    }
}
