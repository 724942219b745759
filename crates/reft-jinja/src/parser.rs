//! Tokens → statements.

use crate::{
    ast::{Block, Expr, For, Macro, Names, Node, Statement, Symbol, Target},
    error::{Error, Result},
    lexer::{Token, tokenize},
    settings::Settings,
};
use std::sync::Arc;

/// How deeply expressions and statements may be nested.
const MAX_DEPTH: usize = 60;

/// The parser of a template.
pub(crate) struct Parser {
    tokens: Vec<(Token, u32)>,
    position: usize,
    depth: usize,
    /// The number of loops around the current statement, within the innermost macro.
    loops: usize,
    pub(crate) names: Names,
    /// The names that have been read, for `loop`, `caller`, `varargs` and `kwargs`.
    pub(crate) reads: Vec<Symbol>,
}

/// Parses a template.
///
/// # Errors
/// If it is not a template.
pub(crate) fn parse(source: &str, settings: Settings) -> Result<(Block, Names)> {
    let mut parser = Parser {
        tokens: tokenize(source, settings)?,
        position: 0,
        depth: 0,
        loops: 0,
        names: Names::default(),
        reads: Vec::new(),
    };
    let block = parser.block(&[])?;
    Ok((block, parser.names))
}

impl Parser {
    pub(crate) fn peek(&self) -> &Token {
        &self.tokens[self.position].0
    }

    pub(crate) fn peek_second(&self) -> &Token {
        self.tokens.get(self.position + 1).map_or(&Token::End, |(token, _)| token)
    }

    pub(crate) fn line(&self) -> u32 {
        self.tokens[self.position].1
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.tokens[self.position].0.clone();
        if self.position + 1 < self.tokens.len() {
            self.position += 1;
        }
        token
    }

    /// Goes back to the token before.
    pub(crate) fn position_back(&mut self) {
        self.position = self.position.saturating_sub(1);
    }

    pub(crate) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    pub(crate) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn expect_operator(&mut self, operator: &str) -> Result<()> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    pub(crate) fn expect_name(&mut self) -> Result<Arc<str>> {
        match self.next() {
            Token::Name(name) => Ok(name.into()),
            _ => {
                self.position_back();
                self.unexpected("a name")
            }
        }
    }

    /// The error of a token that is not the expected one.
    pub(crate) fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = match self.peek() {
            Token::Name(name) => format!("`{name}`"),
            Token::Operator(operator) => format!("`{operator}`"),
            Token::BlockEnd => "`%}`".into(),
            Token::VariableEnd => "`}}`".into(),
            Token::End => "the end of the template".into(),
            Token::Int(value) => value.to_string(),
            Token::Float(value) => value.to_string(),
            Token::Str(text) => format!("the string {text:?}"),
            Token::Data(_) | Token::BlockBegin | Token::VariableBegin => "text".into(),
        };
        Err(Error::at(self.line(), format!("expected {expected}, found {found}")))
    }

    /// Runs `parse` one level deeper.
    pub(crate) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::at(
                self.line(),
                format!("the template is nested more than {MAX_DEPTH} levels deep"),
            ));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Statements up to one of the tags `ends`, or to the end of the template if there is none. The name of that tag
    /// is the next token.
    fn block(&mut self, ends: &[&str]) -> Result<Block> {
        let mut block = Block::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => {
                    block.push(Node { line, statement: Statement::Data(text.into()) });
                }
                Token::VariableBegin => {
                    let statement = Statement::Print(vec![self.tuple(true, false)?]);
                    if self.next() != Token::VariableEnd {
                        self.position_back();
                        return self.unexpected("`}}`");
                    }
                    block.push(Node { line, statement });
                }
                Token::BlockBegin => {
                    if matches!(self.peek(), Token::Name(name) if ends.contains(&name.as_str())) {
                        return Ok(block);
                    }
                    let statement = self.nested(Self::statement)?;
                    if self.next() != Token::BlockEnd {
                        self.position_back();
                        return self.unexpected("`%}`");
                    }
                    block.push(Node { line, statement });
                }
                _ if ends.is_empty() => return Ok(block),
                _ => return self.unexpected(&format!("`{{% {} %}}`", ends.join(" %}` or `{% "))),
            }
        }
    }

    /// The end of the current tag, and the statements after it up to one of the tags `ends`.
    fn body(&mut self, ends: &[&str]) -> Result<Block> {
        self.skip_operator(":");
        if *self.peek() != Token::BlockEnd {
            return self.unexpected("`%}`");
        }
        self.next();
        self.block(ends)
    }

    /// As [`body`](Self::body), with the only possible end skipped.
    fn whole_body(&mut self, end: &str) -> Result<Block> {
        let body = self.body(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Result<Statement> {
        let line = self.line();
        let name = self.expect_name()?;
        Ok(match &*name {
            "if" => self.if_statement()?,
            "for" => self.for_statement()?,
            "set" => self.set_statement()?,
            "with" => self.with_statement()?,
            "macro" => {
                let name = self.expect_name()?;
                let symbol = self.names.intern(&name);
                Statement::Macro(symbol, self.macro_body(name, true, "endmacro")?)
            }
            "call" => {
                let has_parameters = self.is_operator("(");
                let first = self.reads.len();
                let parameters = if has_parameters { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call, Expr::Call(..)) {
                    return self.unexpected("a call");
                }
                Statement::CallBlock(call, self.macro_with("caller".into(), parameters, "endcall", first)?)
            }
            "filter" => {
                let filters = self.filters(true)?;
                Statement::FilterBlock(filters, self.whole_body("endfilter")?)
            }
            "generation" => {
                let loops = std::mem::take(&mut self.loops);
                let body = self.whole_body("endgeneration")?;
                self.loops = loops;
                Statement::Generation(body)
            }
            "block" => {
                self.expect_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.whole_body("endblock")?;
                if matches!(self.peek(), Token::Name(_)) {
                    self.next();
                }
                Statement::Block(body)
            }
            "print" => {
                let mut values = vec![self.expression()?];
                while self.skip_operator(",") {
                    values.push(self.expression()?);
                }
                Statement::Print(values)
            }
            "break" | "continue" if self.loops == 0 => {
                return Err(Error::at(line, format!("`{name}` outside of a loop")));
            }
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "extends" | "include" | "import" | "from" => {
                return Err(Error::at(
                    line,
                    format!("`{{% {name} %}}` needs other templates, which cannot be read"),
                ));
            }
            "autoescape" => {
                return Err(Error::at(line, "`{% autoescape %}` is not supported"));
            }
            _ => return Err(Error::at(line, format!("unknown tag `{name}`"))),
        })
    }

    fn if_statement(&mut self) -> Result<Statement> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, false)?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match self.next() {
                Token::Name(name) if name == "elif" => {}
                Token::Name(name) if name == "else" => {
                    return Ok(Statement::If(branches, self.whole_body("endif")?));
                }
                _ => return Ok(Statement::If(branches, Block::new())),
            }
        }
    }

    fn for_statement(&mut self) -> Result<Statement> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let iterable = self.tuple(false, true)?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let first = self.reads.len();
        let body = self.body(&["endfor", "else"])?;
        self.loops -= 1;
        let uses_loop = recursive || self.read_since(first, "loop");
        let or_else = match self.next() {
            Token::Name(name) if name == "else" => self.whole_body("endfor")?,
            _ => Block::new(),
        };
        Ok(Statement::For(Arc::new(For { target, iterable, condition, recursive, uses_loop, body, or_else })))
    }

    fn read_since(&self, first: usize, name: &str) -> bool {
        self.names.find(name).is_some_and(|symbol| self.reads[first..].contains(&symbol))
    }

    fn set_statement(&mut self) -> Result<Statement> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(Statement::Set(target, self.tuple(true, false)?));
        }
        let filters = self.filters(false)?;
        Ok(Statement::SetBlock(target, filters, self.whole_body("endset")?))
    }

    fn with_statement(&mut self) -> Result<Statement> {
        let mut values = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false)?;
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Statement::With(values, self.whole_body("endwith")?))
    }

    fn parameters(&mut self) -> Result<Vec<(Symbol, Option<Expr>)>> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(Symbol, Option<Expr>)> = Vec::new();
        while !self.skip_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_name()?;
            let symbol = self.names.intern(&name);
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, default)| default.is_some()) {
                return Err(Error::at(
                    self.line(),
                    format!("parameter `{name}` without default follows one with default"),
                ));
            }
            parameters.push((symbol, default));
        }
        Ok(parameters)
    }

    fn macro_body(&mut self, name: Arc<str>, has_parameters: bool, end: &str) -> Result<Arc<Macro>> {
        let first = self.reads.len();
        let parameters = if has_parameters { self.parameters()? } else { Vec::new() };
        self.macro_with(name, parameters, end, first)
    }

    fn macro_with(
        &mut self,
        name: Arc<str>,
        parameters: Vec<(Symbol, Option<Expr>)>,
        end: &str,
        first: usize,
    ) -> Result<Arc<Macro>> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.whole_body(end)?;
        self.loops = loops;
        let uses = ["caller", "varargs", "kwargs"].map(|special| {
            let is_parameter = parameters.iter().any(|(symbol, _)| &**self.names.name(*symbol) == special);
            !is_parameter && self.read_since(first, special)
        });
        Ok(Arc::new(Macro { name, parameters, uses, body }))
    }

    /// What is assigned to: a name, an attribute of a namespace, or several separated by commas.
    fn target(&mut self, with_attributes: bool) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if is_tuple && (self.is_name("in") || self.is_operator("=") || self.is_operator(")")) {
                break;
            }
            targets.push(self.single_target(with_attributes)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        Ok(if is_tuple { Target::Tuple(targets) } else { targets.swap_remove(0) })
    }

    fn single_target(&mut self, with_attributes: bool) -> Result<Target> {
        if self.skip_operator("(") {
            let target = self.nested(|parser| parser.target(with_attributes))?;
            self.expect_operator(")")?;
            return Ok(target);
        }
        let line = self.line();
        let name = self.expect_name()?;
        let symbol = self.names.intern(&name);
        if with_attributes && self.skip_operator(".") {
            self.reads.push(symbol);
            return Ok(Target::Attribute(symbol, self.expect_name()?));
        }
        if matches!(&*name, "true" | "false" | "True" | "False" | "none" | "None") {
            return Err(Error::at(line, format!("cannot assign to `{name}`")));
        }
        Ok(Target::Name(symbol))
    }
}
