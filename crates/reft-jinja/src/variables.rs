//! The variables that a template reads.

use crate::{
    ast::{Arguments, Block, Expr, FilterCall, Macro, Names, Node, Statement, Symbol, Target},
    value::Function,
};
use std::collections::BTreeSet;

/// The names that a template reads where it has not set them. Functions that it calls are not among them.
pub(crate) fn variables<'t>(
    body: &'t Block,
    names: &'t Names,
    functions: &'t [Option<Function>],
) -> BTreeSet<&'t str> {
    let mut reader = Reader {
        names,
        functions,
        scopes_with: vec![0; functions.len()],
        set: Vec::new(),
        macros: Vec::new(),
        blocks: Vec::new(),
        read: BTreeSet::new(),
    };
    reader.scoped(|reader| {
        reader.block(body);
        while let Some(block) = reader.blocks.pop() {
            reader.scoped(|reader| reader.block(block));
        }
    });
    reader.read.into_iter().map(|symbol| &**names.name(symbol)).collect()
}

struct Reader<'t> {
    names: &'t Names,
    functions: &'t [Option<Function>],
    /// In how many open scopes a name is set, by symbol.
    scopes_with: Vec<u32>,
    /// The names that are set in open scopes, in order.
    set: Vec<Symbol>,
    /// Macros of open scopes. They are read at the end of their scope, all of whose names they see.
    macros: Vec<&'t Macro>,
    /// The bodies of `block` tags, which see only the names of the outermost scope.
    blocks: Vec<&'t Block>,
    read: BTreeSet<Symbol>,
}

impl<'t> Reader<'t> {
    /// Runs `run` in a scope of its own. Returns the names that it set.
    fn scoped(&mut self, run: impl FnOnce(&mut Self)) -> BTreeSet<Symbol> {
        let (first_set, first_macro) = (self.set.len(), self.macros.len());
        run(self);
        for definition in self.macros.split_off(first_macro) {
            self.macro_body(definition);
        }
        let set = self.set.split_off(first_set);
        for symbol in &set {
            self.scopes_with[*symbol as usize] -= 1;
        }
        set.into_iter().collect()
    }

    fn define(&mut self, symbol: Symbol) {
        self.scopes_with[symbol as usize] += 1;
        self.set.push(symbol);
    }

    fn define_name(&mut self, name: &str) {
        if let Some(symbol) = self.names.find(name) {
            self.define(symbol);
        }
    }

    fn name(&mut self, symbol: Symbol) {
        if self.scopes_with[symbol as usize] == 0 {
            self.read.insert(symbol);
        }
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(symbol) => self.define(*symbol),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
            Target::Attribute(namespace, _) => self.name(*namespace),
        }
    }

    fn block(&mut self, block: &'t Block) {
        block.iter().for_each(|node| self.node(node));
    }

    fn inner_block(&mut self, block: &'t Block) {
        self.scoped(|reader| reader.block(block));
    }

    fn node(&mut self, node: &'t Node) {
        match &node.statement {
            Statement::Data(_) | Statement::Break | Statement::Continue => {}
            Statement::Print(values) => self.exprs(values),
            Statement::If(branches, or_else) => self.if_statement(branches, or_else),
            Statement::For(node) => {
                self.expr(&node.iterable);
                self.scoped(|reader| {
                    reader.target(&node.target);
                    reader.define_name("loop");
                    reader.exprs(&node.condition);
                    reader.block(&node.body);
                });
                self.inner_block(&node.or_else);
            }
            Statement::Set(target, value) => {
                self.expr(value);
                self.target(target);
            }
            Statement::SetBlock(target, filters, body) => {
                self.inner_block(body);
                self.filters(filters);
                self.target(target);
            }
            Statement::With(values, body) => {
                values.iter().for_each(|(_, value)| self.expr(value));
                self.scoped(|reader| {
                    values.iter().for_each(|(target, _)| reader.target(target));
                    reader.block(body);
                });
            }
            Statement::Macro(symbol, definition) => {
                self.define(*symbol);
                self.macros.push(definition);
            }
            Statement::CallBlock(call, definition) => {
                self.expr(call);
                self.macro_body(definition);
            }
            Statement::FilterBlock(filters, body) => {
                self.inner_block(body);
                self.filters(filters);
            }
            Statement::Generation(body) => self.inner_block(body),
            Statement::Block(body) => self.blocks.push(body),
        }
    }

    /// A name is set after the statement if every branch sets it.
    fn if_statement(&mut self, branches: &'t [(Expr, Block)], or_else: &'t Block) {
        let mut common: Option<BTreeSet<Symbol>> = None;
        for (condition, body) in branches {
            self.expr(condition);
            let set = self.scoped(|reader| reader.block(body));
            common = Some(common.map_or_else(|| set.clone(), |common| &common & &set));
        }
        let set = self.scoped(|reader| reader.block(or_else));
        let common = common.unwrap_or_default();
        common.intersection(&set).for_each(|symbol| self.define(*symbol));
    }

    fn macro_body(&mut self, definition: &'t Macro) {
        self.scoped(|reader| {
            for (special, is_used) in ["caller", "varargs", "kwargs"].into_iter().zip(definition.uses) {
                if is_used {
                    reader.define_name(special);
                }
            }
            for (symbol, default) in &definition.parameters {
                reader.exprs(default);
                reader.define(*symbol);
            }
            reader.block(&definition.body);
        });
    }

    fn filters(&mut self, filters: &[FilterCall]) {
        filters.iter().for_each(|filter| self.arguments(&filter.arguments));
    }

    fn arguments(&mut self, arguments: &Arguments) {
        self.exprs(&arguments.positional);
        arguments.named.iter().for_each(|(_, value)| self.expr(value));
        self.exprs(arguments.spread.as_deref());
        self.exprs(arguments.spread_named.as_deref());
    }

    fn exprs<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Expr>) {
        exprs.into_iter().for_each(|expr| self.expr(expr));
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Constant(_) => {}
            Expr::Name(symbol) => self.name(*symbol),
            Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => self.exprs(items),
            Expr::Dict(items) => items.iter().for_each(|(key, value)| self.exprs([key, value])),
            Expr::Attribute(value, _) | Expr::Not(value) | Expr::Negative(value) | Expr::Positive(value) => {
                self.expr(value);
            }
            Expr::Item(a, b) | Expr::Arithmetic(_, a, b) | Expr::And(a, b) | Expr::Or(a, b) => {
                self.exprs([&**a, &**b]);
            }
            Expr::Slice(value, bounds) => {
                self.expr(value);
                self.exprs(bounds.iter().flatten());
            }
            Expr::Call(function, arguments) => {
                let is_known = |symbol: Symbol| self.functions[symbol as usize].is_some();
                if !matches!(&**function, Expr::Name(symbol) if is_known(*symbol)) {
                    self.expr(function);
                }
                self.arguments(arguments);
            }
            Expr::Filter(value, call) | Expr::Test(value, call) => {
                self.expr(value);
                self.arguments(&call.arguments);
            }
            Expr::Compare(left, comparisons) => {
                self.expr(left);
                self.exprs(comparisons.iter().map(|(_, right)| right));
            }
            Expr::If(condition, value, other) => {
                self.exprs([&**condition, &**value]);
                self.exprs(other.as_deref());
            }
        }
    }
}
