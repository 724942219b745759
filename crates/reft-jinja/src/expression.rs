//! Tokens → expressions.

use crate::{
    ast::{Arguments, Comparison, Constant, Expr, FilterCall, Operator},
    error::{Error, Result},
    lexer::Token,
    parser::Parser,
};
use std::sync::Arc;

/// How many operators, filters, attributes and calls one expression may chain.
const MAX_CHAIN: usize = 200;

impl Parser {
    /// An expression.
    pub(crate) fn expression(&mut self) -> Result<Expr> {
        self.nested(|parser| {
            let mut value = parser.or_expression()?;
            let mut links = 0;
            while parser.skip_name("if") {
                parser.chain(&mut links)?;
                let condition = parser.or_expression()?;
                let other =
                    if parser.skip_name("else") { Some(Box::new(parser.expression()?)) } else { None };
                value = Expr::If(Box::new(condition), Box::new(value), other);
            }
            Ok(value)
        })
    }

    /// An expression, or several separated by commas; without `if` … `else` unless `with_condition`.
    pub(crate) fn tuple(&mut self, with_condition: bool, ends_at_recursive: bool) -> Result<Expr> {
        match self.tuple_items(with_condition, ends_at_recursive)? {
            (mut items, false) if items.len() == 1 => Ok(items.swap_remove(0)),
            (items, false) if items.is_empty() => self.unexpected("an expression"),
            (items, _) => Ok(Expr::Tuple(items)),
        }
    }

    fn tuple_items(&mut self, with_condition: bool, ends_at_recursive: bool) -> Result<(Vec<Expr>, bool)> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let at_end = matches!(self.peek(), Token::VariableEnd | Token::BlockEnd) || self.is_operator(")");
            if at_end || (ends_at_recursive && self.is_name("recursive")) {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.nested(Self::or_expression)? });
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        Ok((items, is_tuple))
    }

    fn chain(&self, links: &mut usize) -> Result<()> {
        *links += 1;
        if *links > MAX_CHAIN {
            return Err(Error::at(
                self.line(),
                format!("an expression chains more than {MAX_CHAIN} operators"),
            ));
        }
        Ok(())
    }

    fn or_expression(&mut self) -> Result<Expr> {
        let mut left = self.and_expression()?;
        let mut links = 0;
        while self.skip_name("or") {
            self.chain(&mut links)?;
            left = Expr::Or(Box::new(left), Box::new(self.and_expression()?));
        }
        Ok(left)
    }

    fn and_expression(&mut self) -> Result<Expr> {
        let mut left = self.not_expression()?;
        let mut links = 0;
        while self.skip_name("and") {
            self.chain(&mut links)?;
            left = Expr::And(Box::new(left), Box::new(self.not_expression()?));
        }
        Ok(left)
    }

    fn not_expression(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not_expression)?)));
        }
        let left = self.sum()?;
        let mut comparisons = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Operator("==") => Comparison::Eq,
                Token::Operator("!=") => Comparison::Ne,
                Token::Operator("<") => Comparison::Lt,
                Token::Operator("<=") => Comparison::Le,
                Token::Operator(">") => Comparison::Gt,
                Token::Operator(">=") => Comparison::Ge,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" && *self.peek_second() == Token::Name("in".into()) => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            comparisons.push((comparison, self.sum()?));
        }
        Ok(if comparisons.is_empty() { left } else { Expr::Compare(Box::new(left), comparisons) })
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.concatenation()?;
        let mut links = 0;
        loop {
            let operator = match self.peek() {
                Token::Operator("+") => Operator::Add,
                Token::Operator("-") => Operator::Sub,
                _ => return Ok(left),
            };
            self.next();
            self.chain(&mut links)?;
            left = Expr::Arithmetic(operator, Box::new(left), Box::new(self.concatenation()?));
        }
    }

    fn concatenation(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.power()?;
        let mut links = 0;
        loop {
            let operator = match self.peek() {
                Token::Operator("*") => Operator::Mul,
                Token::Operator("/") => Operator::Div,
                Token::Operator("//") => Operator::FloorDiv,
                Token::Operator("%") => Operator::Mod,
                _ => return Ok(left),
            };
            self.next();
            self.chain(&mut links)?;
            left = Expr::Arithmetic(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Result<Expr> {
        let mut left = self.unary(true)?;
        let mut links = 0;
        while self.skip_operator("**") {
            self.chain(&mut links)?;
            left = Expr::Arithmetic(Operator::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr> {
        let value = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut links = 0;
        let value = self.postfix(value, &mut links)?;
        if with_filter { self.filters_and_tests(value, &mut links) } else { Ok(value) }
    }

    fn primary(&mut self) -> Result<Expr> {
        let constant = match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Constant::Bool(true),
                "false" | "False" => Constant::Bool(false),
                "none" | "None" => Constant::None,
                "self" => return Err(Error::at(self.line(), "`self` is not supported")),
                name => {
                    let symbol = self.names.intern(name);
                    self.reads.push(symbol);
                    return Ok(Expr::Name(symbol));
                }
            },
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Constant::Str(text.into())
            }
            Token::Int(value) => Constant::Int(value),
            Token::Float(value) => Constant::Float(value),
            Token::Operator("(") => {
                let (mut items, is_tuple) = self.tuple_items(true, false)?;
                self.expect_operator(")")?;
                let is_single = !is_tuple && items.len() == 1;
                return Ok(if is_single { items.swap_remove(0) } else { Expr::Tuple(items) });
            }
            Token::Operator("[") => {
                let mut items = Vec::new();
                while !self.skip_operator("]") {
                    if !items.is_empty() {
                        self.expect_operator(",")?;
                        if self.skip_operator("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                return Ok(Expr::List(items));
            }
            Token::Operator("{") => return self.dict(),
            _ => {
                self.position_back();
                return self.unexpected("an expression");
            }
        };
        Ok(Expr::Constant(constant))
    }

    fn dict(&mut self) -> Result<Expr> {
        let mut items = Vec::new();
        while !self.skip_operator("}") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            items.push((key, self.expression()?));
        }
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut value: Expr, links: &mut usize) -> Result<Expr> {
        loop {
            value = if self.skip_operator(".") {
                match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(value), name.into()),
                    Token::Int(index) => {
                        Expr::Item(Box::new(value), Box::new(Expr::Constant(Constant::Int(index))))
                    }
                    _ => {
                        self.position_back();
                        return self.unexpected("a name or a number");
                    }
                }
            } else if self.skip_operator("[") {
                self.subscript(value)?
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), Box::new(self.arguments()?))
            } else {
                return Ok(value);
            };
            self.chain(links)?;
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let start = if self.is_operator(":") { None } else { Some(self.expression()?) };
        if !self.skip_operator(":") {
            let Some(first) = start else { return self.unexpected("an expression") };
            let mut items = vec![first];
            let mut is_tuple = false;
            while self.skip_operator(",") {
                is_tuple = true;
                if self.is_operator("]") {
                    break;
                }
                items.push(self.expression()?);
            }
            self.expect_operator("]")?;
            let index = if is_tuple && items.len() > 1 { Expr::Tuple(items) } else { items.swap_remove(0) };
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let mut bounds = [start, None, None];
        for (index, bound) in bounds.iter_mut().enumerate().skip(1) {
            if index == 2 && !self.skip_operator(":") {
                break;
            }
            if !self.is_operator(":") && !self.is_operator("]") {
                *bound = Some(self.expression()?);
            }
        }
        self.expect_operator("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new(bounds)))
    }

    fn filters_and_tests(&mut self, mut value: Expr, links: &mut usize) -> Result<Expr> {
        loop {
            value = if self.skip_operator("|") {
                Expr::Filter(Box::new(value), Box::new(self.filter()?))
            } else if self.skip_name("is") {
                self.test(value)?
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), Box::new(self.arguments()?))
            } else {
                return Ok(value);
            };
            self.chain(links)?;
        }
    }

    /// The filters of a block: `a | b` if `starts_inline`, `| a | b` otherwise.
    pub(crate) fn filters(&mut self, starts_inline: bool) -> Result<Vec<FilterCall>> {
        let mut filters = Vec::new();
        if starts_inline {
            filters.push(self.filter()?);
        }
        while self.skip_operator("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn filter(&mut self) -> Result<FilterCall> {
        let name = self.dotted_name()?;
        let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(FilterCall { name, arguments })
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let is_negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_argument = match self.peek() {
            Token::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if takes_argument {
            if self.is_name("is") {
                return Err(Error::at(self.line(), "several tests cannot be chained with `is`"));
            }
            let argument = self.primary()?;
            let argument = self.postfix(argument, &mut 0)?;
            Arguments { positional: vec![argument], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let test = Expr::Test(Box::new(value), Box::new(FilterCall { name, arguments }));
        Ok(if is_negated { Expr::Not(Box::new(test)) } else { test })
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.expect_operator("(")?;
        let mut arguments = Arguments::default();
        let mut is_first = true;
        while !self.skip_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.skip_operator(")") {
                    break;
                }
            }
            is_first = false;
            let is_named =
                matches!(self.peek(), Token::Name(_)) && *self.peek_second() == Token::Operator("=");
            let has_spread = arguments.spread.is_some() || arguments.spread_named.is_some();
            if self.skip_operator("**") && arguments.spread_named.is_none() {
                arguments.spread_named = Some(Box::new(self.expression()?));
            } else if self.skip_operator("*") && !has_spread {
                arguments.spread = Some(Box::new(self.expression()?));
            } else if is_named && arguments.spread_named.is_none() {
                let name = self.expect_name()?;
                self.next();
                arguments.named.push((name, self.expression()?));
            } else if has_spread || !arguments.named.is_empty() {
                return Err(Error::at(self.line(), "invalid order of arguments"));
            } else {
                arguments.positional.push(self.expression()?);
            }
        }
        Ok(arguments)
    }
}
