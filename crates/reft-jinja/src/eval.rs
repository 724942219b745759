//! Evaluates expressions.

use crate::{
    access::{get_attribute, get_item},
    arguments::Args,
    ast::{Arguments, Comparison, Expr, FilterCall, Operator},
    compare::{compare, dict_get, dict_set, equal},
    error::{Error, Result},
    filters,
    index::slice,
    limits::{self, Level},
    number::undefined_error,
    operators::{arithmetic, concatenate, negative, positive},
    predicates,
    render::Renderer,
    undefined::Missing,
    value::{Function, Range, Str, Value},
};
use crate::{methods::call_method, text::to_text, value::Loop};
use std::sync::Arc;

/// The most items of a range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

impl Renderer<'_> {
    /// The value of an expression.
    ///
    /// # Errors
    /// If it cannot be computed, or a limit is reached.
    pub fn eval(&mut self, expr: &Expr) -> Result<Value> {
        limits::step(1)?;
        match expr {
            Expr::Constant(constant) => Ok(constant.into()),
            Expr::Name(symbol) => self.lookup(*symbol),
            _ => {
                let _level = Level::enter()?;
                self.eval_nested(expr)
            }
        }
    }

    #[inline(never)]
    fn eval_all(&mut self, items: &[Expr]) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item)).collect()
    }

    /// Each kind of expression is a function of its own, so that nested expressions need little stack.
    fn eval_nested(&mut self, expr: &Expr) -> Result<Value> {
        match expr {
            Expr::Constant(constant) => Ok(constant.into()),
            Expr::Name(symbol) => self.lookup(*symbol),
            Expr::Attribute(value, name) => self.eval_attribute(value, name),
            Expr::Item(value, index) => self.item(value, index),
            Expr::Call(..) => self.eval_call(expr, None),
            Expr::Filter(value, call) => self.filter(value, call),
            Expr::Test(value, call) => self.test(value, call),
            Expr::Not(value) => self.eval(value).map(|value| Value::Bool(!value.is_true())),
            Expr::And(left, right) => self.logical(left, right, true),
            Expr::Or(left, right) => self.logical(left, right, false),
            Expr::If(condition, value, other) => self.conditional(condition, value, other.as_deref()),
            Expr::Compare(left, comparisons) => self.compare(left, comparisons),
            Expr::Arithmetic(operator, left, right) => self.arithmetic(*operator, left, right),
            Expr::Concat(parts) => self.eval_all(parts).and_then(|parts| concatenate(&parts)),
            Expr::Tuple(items) => self.eval_all(items).and_then(Value::tuple),
            Expr::List(items) => self.eval_all(items).and_then(Value::list),
            Expr::Dict(items) => self.dict(items),
            Expr::Slice(value, bounds) => self.slice(value, bounds),
            Expr::Negative(value) => self.eval(value).and_then(|value| negative(&value)),
            Expr::Positive(value) => self.eval(value).and_then(|value| positive(&value)),
        }
    }

    #[inline(never)]
    fn eval_attribute(&mut self, value: &Expr, name: &Arc<str>) -> Result<Value> {
        let value = self.eval(value)?;
        self.attribute(&value, name)
    }

    #[inline(never)]
    fn item(&mut self, value: &Expr, index: &Expr) -> Result<Value> {
        let (value, index) = (self.eval(value)?, self.eval(index)?);
        match (&value, &index) {
            (Value::Namespace(_), Value::Str(name)) => self.attribute(&value, &name.text),
            _ => get_item(&value, &index),
        }
    }

    #[inline(never)]
    fn filter(&mut self, value: &Expr, call: &FilterCall) -> Result<Value> {
        let value = self.eval(value)?;
        let args = self.arguments(&call.arguments)?;
        filters::filter(&value, &call.name, args)
    }

    /// `left and right` if `is_and`, `left or right` otherwise.
    #[inline(never)]
    fn logical(&mut self, left: &Expr, right: &Expr, is_and: bool) -> Result<Value> {
        let left = self.eval(left)?;
        if left.is_true() == is_and { self.eval(right) } else { Ok(left) }
    }

    #[inline(never)]
    fn conditional(&mut self, condition: &Expr, value: &Expr, other: Option<&Expr>) -> Result<Value> {
        if self.eval(condition)?.is_true() {
            return self.eval(value);
        }
        other.map_or_else(|| Ok(Value::Undefined(Missing::without_else())), |other| self.eval(other))
    }

    #[inline(never)]
    fn arithmetic(&mut self, operator: Operator, left: &Expr, right: &Expr) -> Result<Value> {
        let (left, right) = (self.eval(left)?, self.eval(right)?);
        arithmetic(operator, &left, &right)
    }

    #[inline(never)]
    fn test(&mut self, value: &Expr, call: &FilterCall) -> Result<Value> {
        let value = self.eval(value)?;
        let args = self.arguments(&call.arguments)?;
        Ok(Value::Bool(predicates::test(&value, &call.name, args)?))
    }

    #[inline(never)]
    fn dict(&mut self, items: &[(Expr, Expr)]) -> Result<Value> {
        let mut entries = Vec::with_capacity(items.len());
        for (key, value) in items {
            let (key, value) = (self.eval(key)?, self.eval(value)?);
            dict_set(&mut entries, key, value)?;
        }
        Value::dict(entries)
    }

    #[inline(never)]
    fn slice(&mut self, value: &Expr, bounds: &[Option<Expr>; 3]) -> Result<Value> {
        let value = self.eval(value)?;
        let mut values = [Value::None, Value::None, Value::None];
        for (slot, bound) in values.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                *slot = self.eval(bound)?;
            }
        }
        slice(&value, &values)
    }

    #[inline(never)]
    fn compare(&mut self, left: &Expr, comparisons: &[(Comparison, Expr)]) -> Result<Value> {
        let mut left = self.eval(left)?;
        for (comparison, right) in comparisons {
            let right = self.eval(right)?;
            if !compare(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value> {
        match value {
            Value::Namespace(index) => {
                let found = dict_get(&self.namespaces[*index], &Value::str(name.clone()))?.cloned();
                let missing = || Value::undefined(format!("namespace has no attribute '{name}'"));
                Ok(found.unwrap_or_else(missing))
            }
            Value::Cycler(items, cell) if &**name == "current" => Ok(items.items[self.cells[*cell]].clone()),
            _ => get_attribute(value, name),
        }
    }

    /// The values of arguments.
    #[inline(never)]
    pub fn arguments(&mut self, arguments: &Arguments) -> Result<Args> {
        let mut args = Args { positional: self.eval_all(&arguments.positional)?, named: Vec::new() };
        for (name, value) in &arguments.named {
            args.named.push((name.clone(), self.eval(value)?));
        }
        if let Some(spread) = &arguments.spread {
            args.positional.extend(self.eval(spread)?.items()?);
        }
        if let Some(spread) = &arguments.spread_named {
            let Value::Dict(dict) = self.eval(spread)? else {
                return Err(Error::new("argument after ** must be a mapping"));
            };
            for (name, value) in &dict.entries {
                args.named.push((to_text(name)?, value.clone()));
            }
        }
        Ok(args)
    }

    /// The value of a call, with the `caller` of a `call` block.
    ///
    /// # Errors
    /// If it fails, or is no call.
    #[inline(never)]
    pub fn eval_call(&mut self, expr: &Expr, caller: Option<Value>) -> Result<Value> {
        let Expr::Call(function, arguments) = expr else { return Err(Error::new("expected a call")) };
        let function = self.eval(function)?;
        let mut args = self.arguments(arguments)?;
        if let Some(caller) = caller {
            args.named.push(("caller".into(), caller));
        }
        self.call(&function, args)
    }

    #[inline(never)]
    fn call(&mut self, function: &Value, args: Args) -> Result<Value> {
        match function {
            Value::Macro(value) => self.call_macro(value, args),
            Value::Function(function) => self.call_function(*function, args),
            Value::Method(method) => match &method.0 {
                Value::Loop(state) => loop_method(state, &method.1, args),
                Value::Cycler(items, cell) => {
                    args.bind(&method.1, [])?;
                    let at = self.cells[*cell];
                    if &*method.1 == "reset" {
                        self.cells[*cell] = 0;
                        return Ok(Value::None);
                    }
                    self.cells[*cell] = (at + 1) % items.items.len();
                    Ok(items.items[at].clone())
                }
                value => call_method(value, &method.1, args),
            },
            Value::Joiner(separator, cell) => {
                args.bind("joiner", [])?;
                let was_used = std::mem::replace(&mut self.cells[*cell], 1) == 1;
                Ok(if was_used { Value::Str(separator.clone()) } else { Value::str("") })
            }
            Value::Loop(state) => self.call_loop(state, args),
            other => {
                let message = || Error::new(format!("'{}' object is not callable", other.type_name()));
                Err(undefined_error(other).unwrap_or_else(message))
            }
        }
    }

    #[inline(never)]
    fn call_loop(&mut self, state: &Loop, args: Args) -> Result<Value> {
        let _level = Level::enter_call()?;
        let args = args.bind("loop", ["iterable"])?;
        let Some((node, scope)) = &state.recursion else {
            return Err(Error::new("The loop must have the 'recursive' marker to be called recursively."));
        };
        let items = args.required(0)?.items()?;
        let run = |this: &mut Self| this.for_loop(node, items, state.level + 1);
        Ok(Value::str(self.capture(|this| this.in_scope(*scope, run))?))
    }

    #[inline(never)]
    fn call_function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::RaiseException => {
                let args = args.bind("raise_exception", ["message"])?;
                args.required(0)?;
                Err(Error::new(&*args.as_text(0)?.unwrap_or_default()))
            }
            Function::StrftimeNow => {
                let args = args.bind("strftime_now", ["format"])?;
                args.required(0)?;
                let format = args.text(0)?.map_or("", |format| &format.text);
                let now = self.now.ok_or_else(|| Error::new("strftime_now: there is no clock here"))?;
                Ok(Value::str(now.format(format)?))
            }
            Function::Range => range(args),
            Function::Dict => Value::dict(dict_entries("dict", args)?),
            Function::Namespace => {
                let entries = dict_entries("namespace", args)?;
                self.namespaces.push(entries);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            Function::Cycler => {
                if args.positional.is_empty() {
                    return Err(Error::new("at least one item has to be provided"));
                }
                let Value::List(items) = Value::list(args.positional)? else { return Ok(Value::None) };
                self.cells.push(0);
                Ok(Value::Cycler(items, self.cells.len() - 1))
            }
            Function::Joiner => {
                let args = args.bind("joiner", ["sep"])?;
                let separator = args.as_text(0)?.unwrap_or_else(|| ", ".into());
                self.cells.push(0);
                Ok(Value::Joiner(Str { text: separator, is_markup: false }, self.cells.len() - 1))
            }
            Function::Lipsum => Err(Error::new("`lipsum` writes random text and is not supported")),
        }
    }
}

fn loop_method(state: &Loop, name: &str, args: Args) -> Result<Value> {
    if name == "cycle" {
        if args.positional.is_empty() {
            return Err(Error::new("no items for cycling given"));
        }
        let index = state.index.get() % args.positional.len();
        return Ok(args.positional[index].clone());
    }
    let values = Value::tuple(args.positional.clone())?;
    let last = state.last_changed.borrow().clone();
    let is_same = match last {
        Some(last) => equal(&Value::tuple(last)?, &values)?,
        None => false,
    };
    *state.last_changed.borrow_mut() = Some(args.positional);
    Ok(Value::Bool(!is_same))
}

fn range(args: Args) -> Result<Value> {
    let count = args.positional.len();
    let args = args.bind("range", ["start", "stop", "step"])?;
    let mut bounds = [0, 0, 1];
    for (index, bound) in bounds.iter_mut().enumerate().take(count) {
        let value = args.required(index)?;
        let message =
            || Error::new(format!("'{}' object cannot be interpreted as an integer", value.type_name()));
        let int = value.as_int().ok_or_else(|| undefined_error(value).unwrap_or_else(message))?;
        *bound = i64::try_from(int).map_err(|_| Error::new("range: the number is too large"))?;
    }
    let [start, stop, step] = match count {
        0 => return Err(Error::new("range expected at least 1 argument, got 0")),
        1 => [0, bounds[0], 1],
        _ => bounds,
    };
    if step == 0 {
        return Err(Error::new("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        return Err(Error::new(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )));
    }
    Ok(Value::Range(range))
}

/// The entries of `dict(…)` and `namespace(…)`.
fn dict_entries(function: &str, args: Args) -> Result<Vec<(Value, Value)>> {
    let Args { positional, named } = args;
    let args = Args { positional, named: Vec::new() }.bind(function, ["mapping"])?;
    let mut entries = match &args.values[0] {
        None => Vec::new(),
        Some(Value::Dict(dict)) => dict.entries.clone(),
        Some(other) => {
            let mut entries = Vec::new();
            for pair in other.items()? {
                let [key, value] = &pair.items()?[..] else {
                    return Err(Error::new(format!("{function} needs pairs of key and value")));
                };
                dict_set(&mut entries, key.clone(), value.clone())?;
            }
            entries
        }
    };
    for (name, value) in named {
        dict_set(&mut entries, Value::str(name), value)?;
    }
    Ok(entries)
}
