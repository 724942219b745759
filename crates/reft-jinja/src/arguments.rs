//! The arguments of a call, bound to parameters as Python binds them.

use crate::{
    error::{Error, Result},
    number::undefined_error,
    text::to_text,
    value::{Str, Value},
};
use std::sync::Arc;

/// The values of a call's arguments.
#[derive(Debug, Default, Clone)]
pub(crate) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The arguments of the parameters `names`, in their order.
    ///
    /// # Errors
    /// If there are more arguments, or others.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<Bound<N>> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Error::new(format!("{function} takes at most {N} arguments, {given} given")));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(index) = names.iter().position(|known| **known == *name) else {
                return Err(Error::new(format!("{function} got an unexpected argument '{name}'")));
            };
            if values[index].replace(value).is_some() {
                return Err(Error::new(format!("{function} got several values for argument '{name}'")));
            }
        }
        Ok(Bound { function: function.into(), names: names.map(String::from), values })
    }
}

/// Arguments in the order of the parameters.
pub(crate) struct Bound<const N: usize> {
    function: String,
    names: [String; N],
    pub values: [Option<Value>; N],
}

impl<const N: usize> Bound<N> {
    /// An argument that must be there.
    pub fn required(&self, index: usize) -> Result<&Value> {
        let missing = || Error::new(format!("{} needs the argument '{}'", self.function, self.names[index]));
        self.values[index].as_ref().ok_or_else(missing)
    }

    /// An argument that is there and not `None`.
    pub fn given(&self, index: usize) -> Option<&Value> {
        self.values[index].as_ref().filter(|value| !matches!(value, Value::None))
    }

    fn wrong(&self, index: usize, expected: &str, value: &Value) -> Error {
        let (function, name) = (&self.function, &self.names[index]);
        let found = value.type_name();
        undefined_error(value).unwrap_or_else(|| {
            Error::new(format!("{function}: '{name}' is of type '{found}', expected {expected}"))
        })
    }

    /// An optional integer.
    pub fn int(&self, index: usize) -> Result<Option<i128>> {
        let int = |value: &Value| value.as_int().ok_or_else(|| self.wrong(index, "an integer", value));
        self.given(index).map(int).transpose()
    }

    /// An optional count: an integer, where negative ones are 0.
    pub fn count(&self, index: usize) -> Result<Option<usize>> {
        Ok(self.int(index)?.map(|value| usize::try_from(value.max(0)).unwrap_or(usize::MAX)))
    }

    /// An optional text.
    pub fn text(&self, index: usize) -> Result<Option<&Str>> {
        match self.given(index) {
            None => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(index, "a text", other)),
        }
    }

    /// An optional value as text.
    pub fn as_text(&self, index: usize) -> Result<Option<Arc<str>>> {
        self.values[index].as_ref().map(to_text).transpose()
    }

    /// Whether an optional value is true.
    pub fn is_true(&self, index: usize) -> bool {
        self.values[index].as_ref().is_some_and(Value::is_true)
    }
}
