//! Jinja2 templates, rendered as Python renders them.
//!
//! Templates for Jinja2 depend on what Python does: `{{ none }}` writes `None`, `1 == true`, `'a' in 'abc'`, `x.items()`,
//! `'%.2f' % x`. This is that language, for chat templates and prompts. What is not supported is an error.
//!
//! ```
//! use reft_jinja::{Settings, Template, Variable, serde_json::json};
//!
//! let template = Template::compile(
//!     "{% for m in messages %}{{ m.role }}: {{ m.content.strip() }} {% endfor %}",
//!     Settings::default(),
//! )?;
//! let messages = json!([{"role": "user", "content": " Hi "}]);
//! let rendered = template.render([("messages", Variable::Json(&messages))], None)?;
//! assert_eq!(rendered.text, "user: Hi ");
//! assert!(template.variables().contains("messages"));
//! # Ok::<(), reft_jinja::Error>(())
//! ```
//!
//! # What is supported
//! - Every statement except those below, loop controls (`break`, `continue`), and the `generation` blocks of transformers, whose
//!   places in the text are part of the result.
//! - Python's `None`, booleans, integers of 127 bits, floats, texts, lists, tuples, dicts and ranges, with their operators,
//!   slices, the methods of texts and dicts that change nothing, `%` and `format`, `str` and `repr`.
//! - Jinja2's functions, filters and tests, with `loop`, macros and `call` blocks.
//! - The functions `raise_exception` and `strftime_now` and the filter `tojson` as transformers defines them: `tojson` does not
//!   escape HTML.
//!
//! # What is not
//! - Other templates: `extends`, `include`, `import`. A template cannot read files.
//! - `autoescape`, `do`, line statements, translations, async.
//! - The filters `pprint`, `random`, `striptags`, `urlize` and `wordwrap`, the function `lipsum`, the escape `\N{…}`.
//! - Methods that change a list or a dict: the sandbox is immutable.
//! - Texts that hold memory addresses in Python, such as that of a function.
//!
//! # Limits
//! A template has no access to anything but its variables and the date. Its steps, its depth, the size of each text and of all
//! texts together are limited (`limits.rs`), so that a template of unknown origin can be rendered: beyond a limit is an error.
//!
//! # Files
//! | file | contents |
//! |---|---|
//! | `lexer`, `parser`, `expression`, `ast` | text → syntax tree |
//! | `render`, `eval` | statements, expressions |
//! | `value`, `number`, `text`, `operators`, `compare`, `index`, `access` | Python's values, their texts, operators and attributes |
//! | `methods`, `str_methods`, `format`, `format_spec`, `filters`, `filter_names`, `sequence`, `predicates`, `json`, `strftime` | what templates call |
//! | `variables` | what a template reads |
//! | `settings`, `undefined` | whitespace, missing values |
//! | `limits` | what one rendering may use |

mod access;
mod arguments;
mod ast;
mod compare;
mod error;
mod eval;
mod expression;
mod filter_names;
mod filters;
mod format;
mod format_spec;
mod index;
mod json;
mod lexer;
mod limits;
mod methods;
mod number;
mod operators;
mod parser;
mod predicates;
mod render;
mod sequence;
mod settings;
mod str_methods;
mod strftime;
mod text;
mod undefined;
mod value;
mod variables;

pub use error::Error;
pub use serde_json;
pub use settings::{Settings, Undefined};
pub use strftime::DateTime;

use ast::{Block, Names};
use render::Renderer;
use serde_json::Map;
use std::{collections::BTreeSet, ops::Range};
use value::{Function, Value};

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    body: Block,
    names: Names,
    functions: Vec<Option<Function>>,
    undefined: Undefined,
}

/// A variable of a template.
#[derive(Debug, Clone, Copy)]
pub enum Variable<'v> {
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The byte ranges of its `generation` blocks, in order. Blocks within macros and captured texts are not among them.
    pub generated: Vec<Range<usize>>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not a template.
    pub fn compile(source: &str, settings: Settings) -> Result<Self, Error> {
        let (body, names) = parser::parse(source, settings)?;
        let functions = names.iter().map(function).collect();
        Ok(Self { body, names, functions, undefined: settings.undefined })
    }

    /// The variables that the template reads: the names that it uses where it has not set them, as in `set`, `for` and
    /// macros. Functions that it calls are not among them, such as `range`.
    pub fn variables(&self) -> BTreeSet<&str> {
        variables::variables(&self.body, &self.names, &self.functions)
    }

    /// Renders the template with variables. Later variables of a name replace earlier ones. `now` is what `strftime_now`
    /// formats; without it, that is an error.
    ///
    /// # Errors
    /// If the template fails or reaches a limit.
    pub fn render<'v>(
        &self,
        variables: impl IntoIterator<Item = (&'v str, Variable<'v>)>,
        now: Option<DateTime>,
    ) -> Result<Rendered, Error> {
        limits::reset();
        undefined::set(self.undefined);
        let mut values: Vec<Option<Value>> = vec![None; self.functions.len()];
        for (name, variable) in variables {
            let Some(symbol) = self.names.find(name) else { continue };
            values[symbol as usize] = Some(match variable {
                Variable::Json(value) => json::from_json(value)?,
                Variable::Dicts(maps) => {
                    Value::list(maps.iter().map(json::from_map).collect::<Result<_, _>>()?)?
                }
                Variable::Bool(value) => Value::Bool(value),
                Variable::None => Value::None,
            });
        }
        let values = values.into_iter().enumerate();
        let values = values.filter_map(|(symbol, value)| Some((symbol as ast::Symbol, value?))).collect();
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
