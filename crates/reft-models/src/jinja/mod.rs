//! Jinja2's templates, rendered as Python renders them.
//!
//! Chat templates are written for Jinja2 and depend on what Python does: `{{ none }}` writes `None`, `1 == true`,
//! `'a' in 'abc'`, `x.items()`, `'%.2f' % x`. This is that language, with the settings of transformers:
//! `trim_blocks`, `lstrip_blocks`, loop controls, an immutable sandbox without access to files, and its functions
//! `raise_exception`, `strftime_now` and `tojson`. What is not supported is an error.
//!
//! A template comes from whoever made the model. It has no access to anything but its variables and the date, and what
//! it may use of time, memory and stack is limited (`limits.rs`).
//!
//! | file | contents |
//! |---|---|
//! | `lexer`, `parser`, `expression`, `ast` | text → syntax tree |
//! | `render`, `eval` | statements, expressions |
//! | `value`, `text`, `operators`, `compare`, `index`, `access` | Python's values, their texts, operators and attributes |
//! | `methods`, `str_methods`, `format`, `format_spec`, `filters`, `sequence`, `predicates`, `json`, `strftime` | what templates call |
//! | `limits` | what one rendering may use |

mod access;
mod arguments;
mod ast;
mod compare;
mod error;
mod eval;
mod expression;
mod filters;
mod format;
mod format_spec;
mod index;
mod json;
mod lexer;
mod limits;
mod methods;
mod operators;
mod parser;
mod predicates;
mod render;
mod sequence;
mod str_methods;
mod strftime;
#[cfg(test)]
mod tests;
mod text;
mod value;

pub use error::Error;
pub use strftime::DateTime;

use ast::{Block, Names};
use render::Renderer;
use serde_json::Map;
use std::ops::Range;
use value::{Function, Value};

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    body: Block,
    names: Names,
    functions: Vec<Option<Function>>,
}

/// A variable of a template.
pub(crate) enum Variable<'v> {
    /// A value.
    Json(&'v serde_json::Value),
    /// A list of dicts.
    Dicts(&'v [Map<String, serde_json::Value>]),
    /// `True` or `False`.
    Bool(bool),
    /// `None`
    None,
}

/// A rendered template.
pub(crate) struct Rendered {
    /// The text.
    pub text: String,
    /// The byte ranges of its `generation` blocks.
    pub generated: Vec<Range<usize>>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not a template.
    pub fn compile(source: &str) -> Result<Self, Error> {
        let (body, names) = parser::parse(source)?;
        let functions = names.iter().map(function).collect();
        Ok(Self { body, names, functions })
    }

    /// Renders the template. Later variables of a name replace earlier ones.
    ///
    /// # Errors
    /// If the template fails or reaches a limit.
    pub fn render<'v>(
        &self,
        variables: impl IntoIterator<Item = (&'v str, Variable<'v>)>,
        now: Option<DateTime>,
    ) -> Result<Rendered, Error> {
        limits::reset();
        let mut values: Vec<(ast::Symbol, Value)> = Vec::new();
        for (name, variable) in variables {
            let Some(symbol) = self.names.find(name) else { continue };
            let value = match variable {
                Variable::Json(value) => json::from_json(value)?,
                Variable::Dicts(maps) => {
                    Value::list(maps.iter().map(json::from_map).collect::<Result<_, _>>()?)?
                }
                Variable::Bool(value) => Value::Bool(value),
                Variable::None => Value::None,
            };
            values.retain(|(known, _)| *known != symbol);
            values.push((symbol, value));
        }
        let mut renderer = Renderer::new(&self.names, &self.functions, now, values);
        renderer.block(&self.body)?;
        Ok(Rendered { text: renderer.out, generated: renderer.generated })
    }
}

fn function(name: &str) -> Option<Function> {
    Some(match name {
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "lipsum" => Function::Lipsum,
        _ => return None,
    })
}
