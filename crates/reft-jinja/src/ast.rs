//! The syntax tree of a template.

use std::{collections::HashMap, sync::Arc};

/// A name, as an index into [`Names`].
pub(crate) type Symbol = u32;

/// The names that a template uses.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: Vec<Arc<str>>,
    symbols: HashMap<Arc<str>, Symbol>,
}

impl Names {
    /// The symbol of a name, added if it is new.
    pub fn intern(&mut self, name: &str) -> Symbol {
        let found = self.find(name);
        found.unwrap_or_else(|| {
            let (name, symbol) = (Arc::<str>::from(name), self.names.len() as Symbol);
            self.names.push(name.clone());
            self.symbols.insert(name, symbol);
            symbol
        })
    }

    /// The symbol of a name that the template uses.
    pub fn find(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }

    /// The names in the order of their symbols.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// The name of a symbol.
    pub fn name(&self, symbol: Symbol) -> &Arc<str> {
        &self.names[symbol as usize]
    }
}

/// Statements in order.
pub(crate) type Block = Vec<Node>;

/// A statement and its line.
#[derive(Debug)]
pub(crate) struct Node {
    pub line: u32,
    pub statement: Statement,
}

/// A statement.
#[derive(Debug)]
pub(crate) enum Statement {
    /// Text outside of tags.
    Data(Arc<str>),
    /// `{{ expression }}`, or `{% print expression, expression %}`
    Print(Vec<Expr>),
    /// The conditions of `if` and `elif` with their blocks, and the block of `else`.
    If(Vec<(Expr, Block)>, Block),
    For(Arc<For>),
    Set(Target, Expr),
    /// `{% set name | filters %}…{% endset %}`
    SetBlock(Target, Vec<FilterCall>, Block),
    With(Vec<(Target, Expr)>, Block),
    Macro(Symbol, Arc<Macro>),
    /// `{% call(parameters) expression %}…{% endcall %}`
    CallBlock(Expr, Arc<Macro>),
    FilterBlock(Vec<FilterCall>, Block),
    /// `{% generation %}…{% endgeneration %}`
    Generation(Block),
    /// `{% block name %}…{% endblock %}`
    Block(Block),
    Break,
    Continue,
}

/// A `for` loop.
#[derive(Debug)]
pub(crate) struct For {
    pub target: Target,
    pub iterable: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    /// Whether the body uses `loop`.
    pub uses_loop: bool,
    pub body: Block,
    pub or_else: Block,
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub(crate) struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<(Symbol, Option<Expr>)>,
    /// Whether the body uses `caller`, `varargs` and `kwargs`.
    pub uses: [bool; 3],
    pub body: Block,
}

/// What is assigned to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Symbol),
    Tuple(Vec<Target>),
    /// `namespace.attribute`
    Attribute(Symbol, Arc<str>),
}

/// A filter without its input.
#[derive(Debug)]
pub(crate) struct FilterCall {
    pub name: Arc<str>,
    pub arguments: Arguments,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    /// `*arguments`
    pub spread: Option<Box<Expr>>,
    /// `**arguments`
    pub spread_named: Option<Box<Expr>>,
}

/// A constant.
#[derive(Debug, Clone)]
pub(crate) enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// An expression.
#[derive(Debug)]
pub(crate) enum Expr {
    Constant(Constant),
    Name(Symbol),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Arguments>),
    Filter(Box<Expr>, Box<FilterCall>),
    Test(Box<Expr>, Box<FilterCall>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Arithmetic(Operator, Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    /// `value if condition else other`: condition, value, other.
    If(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}
