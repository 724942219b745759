//! Runs the statements of a template.

use crate::{
    arguments::Args,
    ast::{Block, Expr, FilterCall, For, Macro, Names, Node, Statement, Symbol, Target},
    compare::dict_set,
    error::{Error, Result},
    filters,
    limits::{self, Level, MAX_TEXT},
    strftime::DateTime,
    text::to_text,
    value::{Function, Loop, MacroValue, Value},
};
use std::{ops::Range, rc::Rc, sync::Arc};

/// How a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Break,
    Continue,
}

/// Variables that are seen by the statements of a block.
#[derive(Debug, Default)]
struct Scope {
    parent: Option<usize>,
    variables: Vec<(Symbol, Value)>,
}

/// The state of a rendering.
pub(crate) struct Renderer<'t> {
    pub names: &'t Names,
    /// The functions that the template names, by symbol.
    pub functions: &'t [Option<Function>],
    pub now: Option<DateTime>,
    scopes: Vec<Scope>,
    scope: usize,
    /// Scopes below this index are seen by macros, so that they are kept.
    kept: usize,
    pub out: String,
    /// How many texts are being captured: of macros, `set` blocks and filters.
    captures: usize,
    /// The ranges of `generation` blocks in the rendered text.
    pub generated: Vec<Range<usize>>,
    pub namespaces: Vec<Vec<(Value, Value)>>,
    /// Positions of cyclers, and whether joiners were used.
    pub cells: Vec<usize>,
}

impl<'t> Renderer<'t> {
    /// A renderer with the template's variables.
    pub fn new(
        names: &'t Names,
        functions: &'t [Option<Function>],
        now: Option<DateTime>,
        variables: Vec<(Symbol, Value)>,
    ) -> Self {
        Self {
            names,
            functions,
            now,
            scopes: vec![Scope { parent: None, variables }],
            scope: 0,
            kept: 1,
            out: String::new(),
            captures: 0,
            generated: Vec::new(),
            namespaces: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// The value of a name: a variable, a function, or undefined.
    ///
    /// # Errors
    /// If a limit is reached.
    pub fn lookup(&self, symbol: Symbol) -> Result<Value> {
        let mut scope = Some(self.scope);
        while let Some(index) = scope {
            let Scope { parent, variables } = &self.scopes[index];
            limits::step(variables.len() / 16)?;
            if let Some((_, value)) = variables.iter().find(|(name, _)| *name == symbol) {
                return Ok(value.clone());
            }
            scope = *parent;
        }
        Ok(match self.functions[symbol as usize] {
            Some(function) => Value::Function(function),
            None => Value::undefined(format!("'{}' is undefined", self.names.name(symbol))),
        })
    }

    fn define(&mut self, symbol: Symbol, value: Value) -> Result<()> {
        let variables = &mut self.scopes[self.scope].variables;
        limits::step(variables.len() / 16)?;
        match variables.iter_mut().find(|(name, _)| *name == symbol) {
            Some((_, old)) => *old = value,
            None => variables.push((symbol, value)),
        }
        Ok(())
    }

    /// Runs `run` in a new scope within the scope `parent`.
    fn scoped<T>(&mut self, parent: usize, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.scope, self.scopes.len());
        self.scopes.push(Scope { parent: Some(parent), variables: Vec::new() });
        let result = run(self);
        if self.scope >= self.kept {
            self.scopes.truncate(self.scope);
        }
        self.scope = outer;
        result
    }

    /// Runs `run` in an existing scope.
    pub fn in_scope<T>(&mut self, scope: usize, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.scope, scope);
        let result = run(self);
        self.scope = outer;
        result
    }

    /// The text that `run` writes.
    pub fn capture(&mut self, run: impl FnOnce(&mut Self) -> Result<Flow>) -> Result<String> {
        let outer = std::mem::take(&mut self.out);
        self.captures += 1;
        let result = run(self);
        self.captures -= 1;
        let text = std::mem::replace(&mut self.out, outer);
        result?;
        Ok(text)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        limits::text(text.len())?;
        if self.out.len() + text.len() > MAX_TEXT {
            return Err(Error::new(format!("the template writes more than {} MiB", MAX_TEXT >> 20)));
        }
        self.out.push_str(text);
        Ok(())
    }

    /// Runs statements.
    ///
    /// # Errors
    /// If one fails, or a limit is reached.
    pub fn block(&mut self, block: &Block) -> Result<Flow> {
        for node in block {
            limits::step(1)?;
            let flow = self.node(node).map_err(|error| error.on_line(node.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn node(&mut self, node: &Node) -> Result<Flow> {
        match &node.statement {
            Statement::Data(text) => self.write(text)?,
            Statement::Print(values) => self.print(values)?,
            Statement::Set(target, value) => self.set(target, value)?,
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
            other => {
                let _level = Level::enter()?;
                return self.compound(other);
            }
        }
        Ok(Flow::Next)
    }

    #[inline(never)]
    fn print(&mut self, values: &[Expr]) -> Result<()> {
        for value in values {
            let value = self.eval(value)?;
            self.write(&to_text(&value)?)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn set(&mut self, target: &Target, value: &Expr) -> Result<()> {
        let value = self.eval(value)?;
        self.assign(target, value)
    }

    /// A statement with a body. Each kind is a function of its own, so that nested statements need little stack.
    fn compound(&mut self, statement: &Statement) -> Result<Flow> {
        match statement {
            Statement::If(branches, or_else) => return self.if_statement(branches, or_else),
            Statement::For(node) => self.for_statement(node)?,
            Statement::SetBlock(target, filters, body) => {
                let value = self.filtered_block(filters, body)?;
                self.assign(target, value)?;
            }
            Statement::FilterBlock(filters, body) => {
                let value = self.filtered_block(filters, body)?;
                self.write(&to_text(&value)?)?;
            }
            Statement::With(values, body) => self.with(values, body)?,
            Statement::Macro(symbol, definition) => {
                let value = self.macro_value(definition);
                self.define(*symbol, value)?;
            }
            Statement::CallBlock(call, definition) => self.call_block(call, definition)?,
            Statement::Generation(body) => self.generation(body)?,
            Statement::Block(body) => {
                self.scoped(0, |this| this.block(body))?;
            }
            Statement::Data(_)
            | Statement::Print(_)
            | Statement::Set(..)
            | Statement::Break
            | Statement::Continue => {}
        }
        Ok(Flow::Next)
    }

    #[inline(never)]
    fn if_statement(&mut self, branches: &[(Expr, Block)], or_else: &Block) -> Result<Flow> {
        for (condition, body) in branches {
            if self.eval(condition)?.is_true() {
                return self.block(body);
            }
        }
        self.block(or_else)
    }

    #[inline(never)]
    fn for_statement(&mut self, node: &Arc<For>) -> Result<()> {
        let items = self.eval(&node.iterable)?.items()?;
        self.for_loop(node, items, 0)?;
        Ok(())
    }

    #[inline(never)]
    fn filtered_block(&mut self, filters: &[FilterCall], body: &Block) -> Result<Value> {
        let scope = self.scope;
        let text = self.capture(|this| this.scoped(scope, |this| this.block(body)))?;
        self.filtered(Value::str(text), filters)
    }

    #[inline(never)]
    fn call_block(&mut self, call: &Expr, definition: &Arc<Macro>) -> Result<()> {
        let caller = self.macro_value(definition);
        let value = self.eval_call(call, Some(caller))?;
        self.write(&to_text(&value)?)
    }

    #[inline(never)]
    fn generation(&mut self, body: &Block) -> Result<()> {
        let start = self.out.len();
        self.scoped(self.scope, |this| this.block(body))?;
        if self.captures == 0 {
            self.generated.push(start..self.out.len());
        }
        Ok(())
    }

    #[inline(never)]
    fn with(&mut self, values: &[(Target, Expr)], body: &Block) -> Result<()> {
        let evaluated = values.iter().map(|(_, value)| self.eval(value)).collect::<Result<Vec<_>>>()?;
        self.scoped(self.scope, |this| {
            for ((target, _), value) in values.iter().zip(evaluated) {
                this.assign(target, value)?;
            }
            this.block(body)
        })?;
        Ok(())
    }

    /// Applies the filters of a block.
    fn filtered(&mut self, value: Value, calls: &[FilterCall]) -> Result<Value> {
        calls.iter().try_fold(value, |value, call| {
            let args = self.arguments(&call.arguments)?;
            filters::filter(&value, &call.name, args)
        })
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(symbol) => self.define(*symbol, value)?,
            Target::Attribute(symbol, name) => {
                let Value::Namespace(index) = self.lookup(*symbol)? else {
                    return Err(Error::new("cannot assign attribute on non-namespace object"));
                };
                dict_set(&mut self.namespaces[index], Value::str(name.clone()), value)?;
            }
            Target::Tuple(targets) => {
                let items = value.items()?;
                if items.len() != targets.len() {
                    let (expected, found) = (targets.len(), items.len());
                    return Err(Error::new(format!("cannot unpack {found} values into {expected} names")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item)?;
                }
            }
        }
        Ok(())
    }

    /// Whether an item passes the condition of a loop.
    fn passes(&mut self, node: &For, item: &Value) -> Result<bool> {
        let Some(condition) = &node.condition else { return Ok(true) };
        self.scoped(self.scope, |this| {
            this.assign(&node.target, item.clone())?;
            Ok(this.eval(condition)?.is_true())
        })
    }

    /// Runs a loop over items.
    #[inline(never)]
    pub fn for_loop(&mut self, node: &Arc<For>, mut items: Vec<Value>, level: usize) -> Result<Flow> {
        let outer = self.scope;
        let mut completes = false;
        let mut state = None;
        if node.uses_loop {
            // The loop knows its length, so the condition is evaluated for all items first.
            let mut passed = Vec::with_capacity(items.len());
            for item in items {
                if self.passes(node, &item)? {
                    passed.push(item);
                }
            }
            items = passed;
            let recursion = node.recursive.then(|| (node.clone(), outer));
            state = Some((self.names.find("loop"), Rc::new(Loop::new(items.clone(), level, recursion)?)));
        }
        for (index, item) in items.into_iter().enumerate() {
            limits::step(1)?;
            if state.is_none() && !self.passes(node, &item)? {
                continue;
            }
            let flow = self.scoped(outer, |this| {
                if let Some((symbol, state)) = &state {
                    state.index.set(index);
                    if let Some(symbol) = symbol {
                        this.define(*symbol, Value::Loop(state.clone()))?;
                    }
                }
                this.assign(&node.target, item)?;
                this.block(&node.body)
            })?;
            if flow == Flow::Break {
                break;
            }
            // As in Jinja2, an iteration that `continue` ends does not count.
            completes |= flow == Flow::Next;
        }
        if !completes {
            self.scoped(outer, |this| this.block(&node.or_else))?;
        }
        Ok(Flow::Next)
    }

    /// A macro that sees the current scope.
    fn macro_value(&mut self, definition: &Arc<Macro>) -> Value {
        self.kept = self.scopes.len();
        Value::Macro(Rc::new(MacroValue { definition: definition.clone(), scope: self.scope }))
    }

    /// Calls a macro.
    ///
    /// # Errors
    /// If the arguments do not fit, or its body fails.
    pub fn call_macro(&mut self, value: &MacroValue, mut args: Args) -> Result<Value> {
        let _level = Level::enter_call()?;
        let Macro { name, parameters, uses, body } = &*value.definition;
        let mut take = |wanted: &str| {
            let index = args.named.iter().position(|(name, _)| **name == *wanted)?;
            Some(args.named.remove(index).1)
        };
        let count = parameters.len();
        let rest = args.positional.split_off(args.positional.len().min(count));
        let mut given: Vec<Option<Value>> = args.positional.drain(..).map(Some).collect();
        for (symbol, _) in &parameters[given.len()..] {
            given.push(take(self.names.name(*symbol)));
        }
        let [uses_caller, uses_rest, uses_named] = *uses;
        let caller = if uses_caller { take("caller") } else { None };
        if let (false, Some((unknown, _))) = (uses_named, args.named.first()) {
            return Err(Error::new(format!("macro '{name}' takes no keyword argument '{unknown}'")));
        }
        if !uses_rest && !rest.is_empty() {
            return Err(Error::new(format!("macro '{name}' takes not more than {count} argument(s)")));
        }
        let text = self.capture(|this| {
            this.scoped(value.scope, |this| {
                if uses_caller {
                    let caller = caller.unwrap_or_else(|| Value::undefined("No caller defined"));
                    this.define_name("caller", caller)?;
                }
                if uses_rest {
                    this.define_name("varargs", Value::tuple(rest)?)?;
                }
                if uses_named {
                    let named =
                        args.named.into_iter().map(|(name, value)| (Value::str(name), value)).collect();
                    this.define_name("kwargs", Value::dict(named)?)?;
                }
                for ((symbol, default), value) in parameters.iter().zip(given) {
                    let value = match (value, default) {
                        (Some(value), _) => value,
                        (None, Some(default)) => this.eval(default)?,
                        (None, None) => {
                            let name = this.names.name(*symbol);
                            Value::undefined(format!("parameter '{name}' was not provided"))
                        }
                    };
                    this.define(*symbol, value)?;
                }
                this.block(body)
            })
        })?;
        Ok(Value::str(text))
    }

    fn define_name(&mut self, name: &str, value: Value) -> Result<()> {
        self.names.find(name).map_or(Ok(()), |symbol| self.define(symbol, value))
    }
}
