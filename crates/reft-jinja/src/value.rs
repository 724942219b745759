//! The values of a template: Python's.

use crate::{
    ast::{Constant, For, Macro},
    error::{Error, Result},
    limits::{self, MAX_NESTING},
    undefined::Missing,
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Undefined(Missing),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Str),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    /// `dict_keys`, `dict_values` or `dict_items`.
    View(&'static str, Rc<Seq>),
    Range(Range),
    /// What can be iterated once: the result of `map`, `select`, ….
    Iterator(Rc<Once>),
    /// An index into the renderer's namespaces.
    Namespace(usize),
    /// An index into the renderer's cells.
    Cycler(Rc<Seq>, usize),
    /// An index into the renderer's cells.
    Joiner(Str, usize),
    Loop(Rc<Loop>),
    Macro(Rc<MacroValue>),
    Function(Function),
    /// A method that is not called yet.
    Method(Rc<(Value, Arc<str>)>),
}

/// A function that every template can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    RaiseException,
    StrftimeNow,
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
}

/// A text.
#[derive(Debug, Clone)]
pub(crate) struct Str {
    pub text: Arc<str>,
    /// Whether it is HTML that was escaped (`Markup`): texts that are added to it are escaped.
    pub is_markup: bool,
}

/// The items of a list or a tuple.
#[derive(Debug)]
pub(crate) struct Seq {
    pub items: Vec<Value>,
    depth: u16,
    /// Whether it is a group of `groupby`, which has names for its two items.
    pub is_group: bool,
}

/// A dict, in the order of insertion.
#[derive(Debug)]
pub(crate) struct Dict {
    pub entries: Vec<(Value, Value)>,
    depth: u16,
}

/// `range(start, stop, step)`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

impl Range {
    /// The number of items.
    pub fn len(self) -> usize {
        let (span, step) = if self.step > 0 {
            (self.stop as i128 - self.start as i128, self.step as i128)
        } else {
            (self.start as i128 - self.stop as i128, -(self.step as i128))
        };
        if span <= 0 { 0 } else { ((span + step - 1) / step) as usize }
    }

    /// The item at an index.
    pub fn get(self, index: usize) -> i128 {
        self.start as i128 + self.step as i128 * index as i128
    }
}

/// An iterator.
#[derive(Debug)]
pub(crate) struct Once {
    pub items: RefCell<std::vec::IntoIter<Value>>,
    depth: u16,
}

/// The `loop` of a `for` loop.
#[derive(Debug)]
pub(crate) struct Loop {
    pub items: Vec<Value>,
    pub index: Cell<usize>,
    pub level: usize,
    /// The statement and its scope, to run it again for `loop(items)`.
    pub recursion: Option<(Arc<For>, usize)>,
    pub last_changed: RefCell<Option<Vec<Value>>>,
    depth: u16,
}

/// A macro, or the `caller` of a `call` block.
#[derive(Debug)]
pub(crate) struct MacroValue {
    pub definition: Arc<Macro>,
    /// The scope that its body sees.
    pub scope: usize,
}

fn deeper<'v>(values: impl Iterator<Item = &'v Value>) -> Result<u16> {
    let depth = values.map(Value::depth).max().unwrap_or(0) + 1;
    if depth > MAX_NESTING {
        return Err(Error::new(format!("the template nests lists more than {MAX_NESTING} levels deep")));
    }
    Ok(depth)
}

impl Value {
    /// A text.
    pub fn str(text: impl Into<Arc<str>>) -> Self {
        Value::Str(Str { text: text.into(), is_markup: false })
    }

    /// A text that is markup or not.
    pub fn text(text: impl Into<Arc<str>>, is_markup: bool) -> Self {
        Value::Str(Str { text: text.into(), is_markup })
    }

    /// A missing value.
    pub fn undefined(message: impl Into<Arc<str>>) -> Self {
        Value::Undefined(Missing::new(message))
    }

    /// An integer.
    pub fn int(value: usize) -> Self {
        Value::Int(value as i128)
    }

    /// A list.
    pub fn list(items: Vec<Value>) -> Result<Self> {
        Ok(Value::List(Rc::new(Seq::new(items)?)))
    }

    /// A tuple.
    pub fn tuple(items: Vec<Value>) -> Result<Self> {
        Ok(Value::Tuple(Rc::new(Seq::new(items)?)))
    }

    /// A group of `groupby`.
    pub fn group(key: Value, items: Vec<Value>) -> Result<Self> {
        let seq = Seq::new(vec![key, Value::list(items)?])?;
        Ok(Value::Tuple(Rc::new(Seq { is_group: true, ..seq })))
    }

    /// A dict whose keys differ.
    pub fn dict(entries: Vec<(Value, Value)>) -> Result<Self> {
        let depth = deeper(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Value::Dict(Rc::new(Dict { entries, depth })))
    }

    /// An iterator.
    pub fn iterator(items: Vec<Value>) -> Result<Self> {
        let depth = deeper(items.iter())?;
        limits::step(items.len())?;
        Ok(Value::Iterator(Rc::new(Once { items: RefCell::new(items.into_iter()), depth })))
    }

    fn depth(&self) -> u16 {
        match self {
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) | Value::Cycler(seq, _) => seq.depth,
            Value::Dict(dict) => dict.depth,
            Value::Iterator(once) => once.depth,
            Value::Loop(state) => state.depth,
            Value::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    /// Whether the value is missing.
    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// Checks that the value is not a missing one, if these are errors.
    ///
    /// # Errors
    /// If it is.
    pub fn check_empty(&self) -> Result<()> {
        match self {
            Value::Undefined(missing) => missing.check_empty(),
            _ => Ok(()),
        }
    }

    /// The name of Python's type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(text) if text.is_markup => "Markup",
            Value::Str(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(name, _) => name,
            Value::Range(_) => "range",
            Value::Iterator(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Cycler(..) => "Cycler",
            Value::Joiner(..) => "Joiner",
            Value::Loop(_) => "LoopContext",
            Value::Macro(_) => "Macro",
            Value::Function(_) => "function",
            Value::Method(_) => "builtin_function_or_method",
        }
    }

    /// Whether the value counts as true.
    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.text.is_empty(),
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => !seq.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            Value::Range(range) => range.len() > 0,
            Value::Loop(state) => !state.items.is_empty(),
            _ => true,
        }
    }

    /// The number of items or characters.
    ///
    /// # Errors
    /// If the value has no length.
    pub fn len(&self) -> Result<usize> {
        Ok(match self {
            Value::Undefined(missing) => {
                missing.check_empty()?;
                0
            }
            Value::Str(text) => {
                limits::step(text.text.len() / 64)?;
                text.text.chars().count()
            }
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.len(),
            Value::Dict(dict) => dict.entries.len(),
            Value::Range(range) => range.len(),
            Value::Loop(state) => state.items.len(),
            _ => return Err(Error::new(format!("object of type '{}' has no len()", self.type_name()))),
        })
    }

    /// Whether the value can be iterated.
    pub fn is_iterable(&self) -> bool {
        !matches!(
            self,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Namespace(_)
                | Value::Cycler(..)
                | Value::Joiner(..)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
        )
    }

    /// The items of the value; an iterator is used up.
    ///
    /// # Errors
    /// If the value cannot be iterated.
    pub fn items(&self) -> Result<Vec<Value>> {
        let items: Vec<Value> = match self {
            Value::Undefined(missing) => {
                missing.check_empty()?;
                Vec::new()
            }
            Value::Str(text) => {
                let mut buffer = [0; 4];
                text.text.chars().map(|c| Value::str(&*c.encode_utf8(&mut buffer))).collect()
            }
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.clone(),
            Value::Dict(dict) => dict.entries.iter().map(|(key, _)| key.clone()).collect(),
            Value::Range(range) => (0..range.len()).map(|index| Value::Int(range.get(index))).collect(),
            Value::Iterator(once) => std::mem::take(&mut *once.items.borrow_mut()).collect(),
            Value::Loop(state) => {
                let rest = state.items.iter().skip(state.index.get() + 1).cloned().collect();
                state.index.set(state.items.len().saturating_sub(1));
                rest
            }
            _ => return Err(Error::new(format!("'{}' object is not iterable", self.type_name()))),
        };
        limits::step(items.len())?;
        Ok(items)
    }

    /// The integer, if the value is one; `True` and `False` are 1 and 0.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// The text, if the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(&text.text),
            _ => None,
        }
    }
}

impl Seq {
    fn new(items: Vec<Value>) -> Result<Self> {
        let depth = deeper(items.iter())?;
        limits::step(items.len())?;
        Ok(Self { items, depth, is_group: false })
    }
}

impl Loop {
    /// A loop over items, before the first one.
    pub fn new(items: Vec<Value>, level: usize, recursion: Option<(Arc<For>, usize)>) -> Result<Self> {
        let depth = deeper(items.iter())?;
        Ok(Self { items, index: Cell::new(0), level, recursion, last_changed: RefCell::new(None), depth })
    }
}

impl From<&Constant> for Value {
    fn from(constant: &Constant) -> Self {
        match constant {
            Constant::None => Value::None,
            Constant::Bool(value) => Value::Bool(*value),
            Constant::Int(value) => Value::Int(*value),
            Constant::Float(value) => Value::Float(*value),
            Constant::Str(text) => Value::str(text.clone()),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}
