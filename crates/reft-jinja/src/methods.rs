//! Methods of values.

use crate::{
    arguments::Args,
    compare::{dict_get, dict_set, equal},
    error::{Error, Result},
    str_methods::call_str,
    value::{Dict, Value},
};
use std::sync::Arc;

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

const MARKUP: &[&str] = &["escape", "striptags", "unescape"];

const LIST: &[&str] = &["copy", "count", "index"];

const CHANGES_LIST: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];

const CHANGES_DICT: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];

/// The method of a value, if it has one of that name.
pub(crate) fn method(value: &Value, name: &Arc<str>) -> Option<Value> {
    let name_of = |names: &[&str]| names.contains(&&**name);
    let changes = match value {
        Value::List(_) => name_of(CHANGES_LIST),
        Value::Dict(_) => name_of(CHANGES_DICT),
        _ => false,
    };
    if changes {
        let kind = value.type_name();
        return Some(Value::undefined(format!("access to attribute '{name}' of '{kind}' object is unsafe.")));
    }
    let exists = match value {
        Value::Str(text) => name_of(STR) || (text.is_markup && name_of(MARKUP)),
        Value::List(_) => name_of(LIST),
        Value::Tuple(_) | Value::Range(_) => name_of(&["count", "index"]),
        Value::Dict(_) => name_of(DICT),
        Value::Int(_) | Value::Bool(_) => name_of(&["bit_length"]),
        Value::Float(_) => name_of(&["is_integer"]),
        Value::Loop(_) => name_of(&["cycle", "changed"]),
        Value::Cycler(..) => name_of(&["next", "reset"]),
        _ => false,
    };
    exists.then(|| Value::Method(std::rc::Rc::new((value.clone(), name.clone()))))
}

/// Calls a method of a value that has it.
///
/// # Errors
/// If the arguments do not fit, or the method fails.
pub(crate) fn call_method(value: &Value, name: &str, args: Args) -> Result<Value> {
    match value {
        Value::Str(text) => call_str(text, name, args),
        Value::Dict(dict) => call_dict(dict, name, args),
        Value::List(seq) if name == "copy" => {
            args.bind(name, [])?;
            Value::list(seq.items.clone())
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(_) => call_sequence(value, name, args),
        Value::Float(float) if name == "is_integer" => Ok(Value::Bool(float.fract() == 0.0)),
        _ => match value.as_int() {
            Some(int) if name == "bit_length" => {
                Ok(Value::Int((128 - int.unsigned_abs().leading_zeros()).into()))
            }
            _ => Err(Error::new(format!("'{}' object has no method '{name}'", value.type_name()))),
        },
    }
}

fn call_sequence(value: &Value, name: &str, args: Args) -> Result<Value> {
    let args = args.bind(name, ["value", "start", "stop"])?;
    let wanted = args.required(0)?;
    let items = value.items()?;
    let mut count = 0;
    let (start, stop) = (args.count(1)?.unwrap_or(0), args.count(2)?.unwrap_or(usize::MAX));
    for (index, item) in items.iter().enumerate() {
        if equal(item, wanted)? && (name == "count" || (start..stop).contains(&index)) {
            if name == "index" {
                return Ok(Value::int(index));
            }
            count += 1;
        }
    }
    match name {
        "count" => Ok(Value::int(count)),
        _ => Err(Error::new("the value is not in the list")),
    }
}

fn call_dict(dict: &Dict, name: &str, args: Args) -> Result<Value> {
    if name == "get" {
        let args = args.bind(name, ["key", "default"])?;
        let found = dict_get(&dict.entries, args.required(0)?)?;
        return Ok(found.or(args.values[1].as_ref()).cloned().unwrap_or(Value::None));
    }
    if name == "fromkeys" {
        let args = args.bind(name, ["iterable", "value"])?;
        let value = args.values[1].clone().unwrap_or(Value::None);
        let mut entries = Vec::new();
        for key in args.required(0)?.items()? {
            dict_set(&mut entries, key, value.clone())?;
        }
        return Value::dict(entries);
    }
    args.bind(name, [])?;
    let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
    let (kind, items) = match name {
        "items" => ("dict_items", dict.entries.iter().map(pair).collect::<Result<_>>()?),
        "keys" => ("dict_keys", dict.entries.iter().map(|(key, _)| key.clone()).collect()),
        "values" => ("dict_values", dict.entries.iter().map(|(_, value)| value.clone()).collect()),
        _ => return Value::dict(dict.entries.clone()),
    };
    let Value::List(items) = Value::list(items)? else { return Err(Error::new("no list")) };
    Ok(Value::View(kind, items))
}
