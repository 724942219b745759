//! Filters of lists and dicts.

use crate::{
    access::get_item,
    arguments::Args,
    ast::Operator,
    compare::{check_key, equal, order, sort},
    error::{Error, Result},
    limits,
    operators::arithmetic,
    predicates,
    text::to_text,
    value::Value,
};
use std::{cmp::Ordering, sync::Arc};

/// Applies a filter by its name, for `map`.
type Filter = fn(&Value, &str, Args) -> Result<Value>;

/// `value | name(arguments)`
///
/// # Errors
/// If the filter does not fit the value.
pub(crate) fn filter(value: &Value, name: &str, args: Args, apply: Filter) -> Result<Value> {
    match name {
        "map" => map(value, args, apply),
        "select" | "reject" | "selectattr" | "rejectattr" => select(value, name, args),
        "join" => join(value, args),
        "sort" => {
            let args = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let attributes: Vec<Value> = match args.given(2) {
                None => vec![Value::None],
                Some(Value::Str(names)) => names.text.split(',').map(Value::str).collect(),
                Some(other) => vec![other.clone()],
            };
            let ignores_case = !args.is_true(1);
            let getters =
                attributes.iter().map(|path| Getter::new(path, None, ignores_case)).collect::<Vec<_>>();
            let key = |item: &Value| {
                Value::list(getters.iter().map(|getter| getter.get(item)).collect::<Result<_>>()?)
            };
            Value::list(sorted(value.items()?, key, args.is_true(0))?)
        }
        "dictsort" => dict_sort(value, args),
        "groupby" => group_by(value, args),
        "unique" => {
            let args = args.bind(name, ["case_sensitive", "attribute"])?;
            let getter = Getter::new(args.given(1).unwrap_or(&Value::None), None, !args.is_true(0));
            let (mut seen, mut kept): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
            for item in value.items()? {
                let key = getter.get(&item)?;
                check_key(&key)?;
                if !contains(&seen, &key)? {
                    seen.push(key);
                    kept.push(item);
                }
            }
            Value::iterator(kept)
        }
        "min" | "max" => {
            let args = args.bind(name, ["case_sensitive", "attribute"])?;
            let getter = Getter::new(args.given(1).unwrap_or(&Value::None), None, !args.is_true(0));
            let symbol = if name == "min" { "<" } else { ">" };
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for item in value.items()? {
                let key = getter.get(&item)?;
                let is_better = match &best {
                    Some((best, _)) => order(symbol, &key, best)? == Some(wanted),
                    None => true,
                };
                if is_better {
                    best = Some((key, item));
                }
            }
            let empty = || Value::undefined("No aggregated item, sequence was empty.");
            Ok(best.map_or_else(empty, |(_, item)| item))
        }
        "sum" => {
            let args = args.bind(name, ["attribute", "start"])?;
            let getter = Getter::new(args.given(0).unwrap_or(&Value::None), None, false);
            let mut total = args.values[1].clone().unwrap_or(Value::Int(0));
            if matches!(total, Value::Str(_)) {
                return Err(Error::new("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            for item in value.items()? {
                total = arithmetic(Operator::Add, &total, &getter.get(&item)?)?;
            }
            Ok(total)
        }
        "batch" | "slice" => {
            let args =
                args.bind(name, [if name == "batch" { "linecount" } else { "slices" }, "fill_with"])?;
            args.required(0)?;
            let (count, fill) = (args.count(0)?.unwrap_or(0), args.given(1));
            let parts =
                if name == "batch" { batches(value, count, fill)? } else { slices(value, count, fill)? };
            Value::iterator(parts.into_iter().map(Value::list).collect::<Result<_>>()?)
        }
        _ => {
            args.bind(name, [])?;
            plain(value, name)
        }
    }
}

/// Filters without arguments.
fn plain(value: &Value, name: &str) -> Result<Value> {
    match (name, value) {
        ("length" | "count", _) => Ok(Value::int(value.len()?)),
        ("list", _) => Value::list(value.items()?),
        ("first", Value::Iterator(once)) => {
            let first = once.items.borrow_mut().next();
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        ("first", Value::Str(text)) => Ok(match text.text.chars().next() {
            Some(c) => Value::str(c.to_string()),
            None => Value::undefined("No first item, sequence was empty."),
        }),
        ("first", Value::List(seq) | Value::Tuple(seq)) => {
            let first = seq.items.first().cloned();
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        ("first", _) => {
            let first = value.items()?.into_iter().next();
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        ("last", Value::Iterator(_)) => Err(Error::new("'generator' object is not reversible")),
        ("last", _) => {
            let last = value.items()?.pop();
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        ("reverse", Value::Str(text)) => {
            Ok(Value::text(text.text.chars().rev().collect::<String>(), text.is_markup))
        }
        ("reverse", _) => {
            let mut items = value.items()?;
            items.reverse();
            if matches!(value, Value::Iterator(_)) { Value::list(items) } else { Value::iterator(items) }
        }
        ("items", Value::Undefined(_)) => Value::iterator(value.items()?),
        ("items", Value::Dict(dict)) => {
            let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
            Value::iterator(dict.entries.iter().map(pair).collect::<Result<_>>()?)
        }
        ("items", _) => Err(Error::new("Can only get item pairs from a mapping.")),
        _ => Err(Error::new(format!("no filter named '{name}'"))),
    }
}

/// Reads a part of an item, such as `function.name`.
struct Getter {
    path: Vec<Value>,
    default: Option<Value>,
    ignores_case: bool,
}

impl Getter {
    fn new(path: &Value, default: Option<Value>, ignores_case: bool) -> Self {
        let part = |part: &str| {
            let is_index = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            match part.parse() {
                Ok(index) if is_index => Value::Int(index),
                _ => Value::str(part),
            }
        };
        let path = match path {
            Value::None => Vec::new(),
            Value::Str(text) => text.text.split('.').map(part).collect(),
            other => vec![other.clone()],
        };
        Self { path, default, ignores_case }
    }

    fn get(&self, item: &Value) -> Result<Value> {
        let mut value = item.clone();
        for part in &self.path {
            value = get_item(&value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), &self.default) {
                value = default.clone();
            }
        }
        match &value {
            Value::Str(text) if self.ignores_case => Ok(Value::str(text.text.to_lowercase())),
            _ => Ok(value),
        }
    }
}

fn contains(items: &[Value], value: &Value) -> Result<bool> {
    for item in items {
        if equal(item, value)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn sorted(items: Vec<Value>, key: impl Fn(&Value) -> Result<Value>, is_reversed: bool) -> Result<Vec<Value>> {
    let keyed = |item| Ok((key(&item)?, item));
    let mut items = items.into_iter().map(keyed).collect::<Result<Vec<(Value, Value)>>>()?;
    // Python keeps the order of equal items when it reverses.
    sort(&mut items, |a, b| {
        let (a, b) = if is_reversed { (&b.0, &a.0) } else { (&a.0, &b.0) };
        Ok(order("<", a, b)? == Some(Ordering::Less))
    })?;
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let Value::Dict(dict) = value else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let position = match args.text(1)?.map_or("key", |by| &by.text) {
        "key" => 0,
        "value" => 1,
        _ => return Err(Error::new("You can only sort by either \"key\" or \"value\"")),
    };
    let getter = Getter::new(&Value::Int(position), None, !args.is_true(0));
    let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
    let pairs = dict.entries.iter().map(pair).collect::<Result<_>>()?;
    Value::list(sorted(pairs, |pair| getter.get(pair), args.is_true(2))?)
}

fn group_by(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let path = args.required(0)?;
    let getter = Getter::new(path, args.given(1).cloned(), !args.is_true(2));
    let exact = Getter::new(path, args.given(1).cloned(), false);
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in sorted(value.items()?, |item| getter.get(item), false)? {
        let key = getter.get(&item)?;
        match groups.last_mut() {
            Some((last, items)) if equal(last, &key)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(_, items): (Value, Vec<Value>)| Value::group(exact.get(&items[0])?, items);
    Value::list(groups.into_iter().map(group).collect::<Result<_>>()?)
}

fn map(value: &Value, mut args: Args, apply: Filter) -> Result<Value> {
    if !value.is_true() {
        value.check_empty()?;
        return Value::iterator(Vec::new());
    }
    let attribute = args.named.iter().position(|(name, _)| &**name == "attribute");
    if let (true, Some(index)) = (args.positional.is_empty(), attribute) {
        let (_, path) = args.named.remove(index);
        let args = args.bind("map", ["default"])?;
        let getter = Getter::new(&path, args.given(0).cloned(), false);
        let items = value.items()?;
        return Value::iterator(items.iter().map(|item| getter.get(item)).collect::<Result<_>>()?);
    }
    if args.positional.is_empty() {
        return Err(Error::new("map requires a filter argument"));
    }
    let name = to_text(&args.positional.remove(0))?;
    let items = value.items()?;
    Value::iterator(items.iter().map(|item| apply(item, &name, args.clone())).collect::<Result<_>>()?)
}

fn select(value: &Value, filter: &str, mut args: Args) -> Result<Value> {
    if !value.is_true() {
        value.check_empty()?;
        return Value::iterator(Vec::new());
    }
    let mut getter = Getter::new(&Value::None, None, false);
    if filter.ends_with("attr") {
        if args.positional.is_empty() {
            return Err(Error::new("Missing parameter for attribute name"));
        }
        getter = Getter::new(&args.positional.remove(0), None, false);
    }
    let test: Option<Arc<str>> =
        if args.positional.is_empty() { None } else { Some(to_text(&args.positional.remove(0))?) };
    let wanted = filter.starts_with("select");
    let mut kept = Vec::new();
    for item in value.items()? {
        let part = getter.get(&item)?;
        let holds = match &test {
            Some(test) => predicates::test(&part, test, args.clone())?,
            None => part.is_true(),
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    Value::iterator(kept)
}

fn join(value: &Value, args: Args) -> Result<Value> {
    let args = args.bind("join", ["d", "attribute"])?;
    let separator = args.as_text(0)?.unwrap_or_default();
    let getter = Getter::new(args.given(1).unwrap_or(&Value::None), None, false);
    let texts = value.items()?.iter().map(|item| to_text(&getter.get(item)?)).collect::<Result<Vec<_>>>()?;
    let length: usize = texts.iter().map(|text| text.len()).sum();
    limits::text(length.saturating_add(separator.len().saturating_mul(texts.len())))?;
    Ok(Value::str(texts.join(&*separator)))
}

fn batches(value: &Value, count: usize, fill: Option<&Value>) -> Result<Vec<Vec<Value>>> {
    let items = value.items()?;
    let mut batches: Vec<Vec<Value>> = items.chunks(count.max(1)).map(<[Value]>::to_vec).collect();
    if let (Some(last), Some(fill)) = (batches.last_mut(), fill) {
        limits::step(count)?;
        last.resize(count.max(last.len()), fill.clone());
    }
    Ok(batches)
}

fn slices(value: &Value, count: usize, fill: Option<&Value>) -> Result<Vec<Vec<Value>>> {
    let items = value.items()?;
    if count == 0 {
        return Err(Error::new("integer division or modulo by zero"));
    }
    limits::step(count)?;
    let (size, longer) = (items.len() / count, items.len() % count);
    let mut rest = &items[..];
    let mut slices = Vec::new();
    for index in 0..count {
        let (slice, after) = rest.split_at(size + usize::from(index < longer));
        rest = after;
        let mut slice = slice.to_vec();
        if index >= longer {
            slice.extend(fill.cloned());
        }
        slices.push(slice);
    }
    Ok(slices)
}
