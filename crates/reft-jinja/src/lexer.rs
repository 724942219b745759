//! Template text → tokens, with Jinja2's rules for whitespace (see [`Settings`]).

use crate::{
    error::{Error, Result},
    settings::Settings,
    text::is_space,
};

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Operators, longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Tokens with their lines.
///
/// # Errors
/// If a tag or a text is not closed, or a character is not part of the language.
pub(crate) fn tokenize(source: &str, settings: Settings) -> Result<Vec<(Token, u32)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') && !settings.keep_trailing_newline {
        source.pop();
    }
    let mut lexer = Lexer {
        source: &source,
        settings,
        position: 0,
        counted: 0,
        line: 1,
        starts_line: true,
        tokens: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    settings: Settings,
    position: usize,
    /// The position up to which lines have been counted.
    counted: usize,
    line: u32,
    /// Whether the previous token ended with a line feed.
    starts_line: bool,
    tokens: Vec<(Token, u32)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.position..]
    }

    fn line(&mut self) -> u32 {
        let passed = &self.source[self.counted..self.position];
        self.line += passed.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.counted = self.position;
        self.line
    }

    fn push(&mut self, token: Token) {
        let line = self.line();
        self.tokens.push((token, line));
    }

    fn fail<T>(&mut self, message: impl Into<String>) -> Result<T> {
        Err(Error::at(self.line(), message))
    }

    /// Moves to `position`, after a token that may have ended with a line feed.
    fn advance(&mut self, position: usize) {
        self.position = position;
        self.starts_line = self.source[..position].ends_with('\n');
    }

    fn run(&mut self) -> Result<()> {
        while self.position < self.source.len() {
            let rest = self.rest();
            let begin = rest
                .match_indices('{')
                .find(|(at, _)| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some((at, _)) = begin else {
                self.push(Token::Data(rest.into()));
                self.position = self.source.len();
                break;
            };
            let kind = rest.as_bytes()[at + 1];
            let sign = sign_of(&rest[at + 2..]);
            let body = self.position + at + 2 + usize::from(sign.is_some());
            let text = self.strip_end(&rest[..at], sign, kind != b'{');
            if !text.is_empty() {
                self.push(Token::Data(text.into()));
            }
            self.advance(body);
            match kind {
                b'#' => self.comment()?,
                b'%' => match raw_begin(self.rest()) {
                    Some(length) => self.raw(length)?,
                    None => self.expression(Token::BlockBegin, Token::BlockEnd)?,
                },
                _ => self.expression(Token::VariableBegin, Token::VariableEnd)?,
            }
        }
        // Twice, so that the parser can go back by one token.
        self.push(Token::End);
        self.push(Token::End);
        Ok(())
    }

    /// The text before a tag, without the whitespace that the tag removes.
    fn strip_end<'t>(&self, text: &'t str, sign: Option<u8>, is_block: bool) -> &'t str {
        if sign == Some(b'-') {
            return text.trim_end_matches(is_space);
        }
        if sign == Some(b'+') || !is_block || !self.settings.lstrip_blocks {
            return text;
        }
        let line_start = text.rfind('\n').map_or(0, |at| at + 1);
        let at_line_start = line_start > 0 || self.starts_line;
        if at_line_start && text[line_start..].chars().all(is_space) { &text[..line_start] } else { text }
    }

    /// The length of a tag's end at the start of `rest`, with the whitespace that it removes.
    fn end_length(&self, rest: &str, end: &str, is_block: bool) -> Option<usize> {
        if let Some(after) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(end)) {
            return Some(rest.len() - after.trim_start_matches(is_space).len());
        }
        if is_block && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(end)) {
            return Some(1 + end.len());
        }
        let after = rest.strip_prefix(end)?;
        let trims_line = is_block && self.settings.trim_blocks;
        Some(end.len() + usize::from(trims_line && after.starts_with('\n')))
    }

    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(mut at) = rest.find("#}") else {
            return self.fail("the end of a comment, `#}`, is missing");
        };
        if at > 0 && matches!(rest.as_bytes()[at - 1], b'-' | b'+') {
            at -= 1;
        }
        let length = self.end_length(&rest[at..], "#}", true).unwrap_or(2);
        self.advance(self.position + at + length);
        Ok(())
    }

    fn raw(&mut self, begin: usize) -> Result<()> {
        self.advance(self.position + begin);
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let tag = &rest[at + 2..];
            let sign = sign_of(tag);
            let name = tag[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(after) = name.strip_prefix("endraw") else { continue };
            let after = after.trim_start_matches(is_space);
            let Some(length) = self.end_length(after, "%}", true) else { continue };
            let text = self.strip_end(&rest[..at], sign, true);
            if !text.is_empty() {
                self.push(Token::Data(text.into()));
            }
            self.advance(self.source.len() - after.len() + length);
            return Ok(());
        }
        self.fail("the end of a raw block, `{% endraw %}`, is missing")
    }

    /// Tokens of a tag up to its end.
    fn expression(&mut self, begin: Token, end: Token) -> Result<()> {
        let is_block = end == Token::BlockEnd;
        let close = if is_block { "%}" } else { "}}" };
        self.push(begin);
        let mut brackets: Vec<&'static str> = Vec::new();
        loop {
            let spaces = self.rest().len() - self.rest().trim_start_matches(is_space).len();
            // The end of a tag is looked for first, so that `-` before it belongs to it.
            self.position += spaces;
            let rest = self.rest();
            if brackets.is_empty()
                && let Some(length) = self.end_length(rest, close, is_block)
            {
                self.push(end);
                self.advance(self.position + length);
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                return self.fail(format!("the end of a tag, `{close}`, is missing"));
            };
            let length = if first.is_ascii_digit() {
                self.number(rest)?
            } else if first == '\'' || first == '"' {
                self.string(rest, first)?
            } else if first.is_alphabetic() || first == '_' {
                let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                self.push(Token::Name(rest[..length].into()));
                length
            } else {
                let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) else {
                    return self.fail(format!("unexpected character {first:?}"));
                };
                match *operator {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" if brackets.pop() != Some(*operator) => {
                        return self.fail(format!("unexpected `{operator}`"));
                    }
                    _ => {}
                }
                self.push(Token::Operator(operator));
                operator.len()
            };
            self.position += length;
        }
    }

    fn number(&mut self, rest: &str) -> Result<usize> {
        let bytes = rest.as_bytes();
        if bytes[0] == b'0'
            && let Some(radix) = match bytes.get(1).map(u8::to_ascii_lowercase) {
                Some(b'b') => Some(2),
                Some(b'o') => Some(8),
                Some(b'x') => Some(16),
                _ => None,
            }
        {
            let digits = digits(&rest[2..], radix);
            if digits > 0 {
                return self.integer(&rest[2..2 + digits], radix, 2 + digits);
            }
        }
        let whole = digits(rest, 10);
        let after_dot = self.source[..self.position].ends_with('.');
        let mut length = whole;
        if bytes.get(length) == Some(&b'.') {
            let fraction = digits(&rest[length + 1..], 10);
            length += if fraction > 0 { 1 + fraction } else { 0 };
        }
        if matches!(bytes.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
            let exponent = rest.get(length + 1 + sign..).map_or(0, |rest| digits(rest, 10));
            length += if exponent > 0 { 1 + sign + exponent } else { 0 };
        }
        if length > whole && !after_dot {
            let number: String = rest[..length].chars().filter(|c| *c != '_').collect();
            let Ok(value) = number.parse() else { return self.fail(format!("invalid number {number}")) };
            self.push(Token::Float(value));
            return Ok(length);
        }
        self.integer(&rest[..whole], 10, whole)
    }

    fn integer(&mut self, digits: &str, radix: u32, length: usize) -> Result<usize> {
        let digits: String = digits.chars().filter(|c| *c != '_').collect();
        if radix == 10 && digits.starts_with('0') && digits.chars().any(|c| c != '0') {
            return self.fail(format!("integer {digits} has leading zeros"));
        }
        match i128::from_str_radix(&digits, radix) {
            Ok(value) => self.push(Token::Int(value)),
            Err(_) => return self.fail(format!("integer {digits} has more than 127 bits")),
        }
        Ok(length)
    }

    fn string(&mut self, rest: &str, quote: char) -> Result<usize> {
        let mut escaped = false;
        for (at, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    match unescape(&rest[1..at]) {
                        Ok(text) => self.push(Token::Str(text)),
                        Err(message) => return self.fail(message),
                    }
                    return Ok(at + 1);
                }
                _ => {}
            }
        }
        self.fail(format!("a string has no closing {quote}"))
    }
}

fn sign_of(text: &str) -> Option<u8> {
    text.bytes().next().filter(|byte| matches!(byte, b'-' | b'+'))
}

/// The length of `raw %}` with its whitespace, after `{%` and its sign.
fn raw_begin(text: &str) -> Option<usize> {
    let after = text.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let after = match after.strip_prefix("-%}") {
        Some(after) => after.trim_start_matches(is_space),
        None => after.strip_prefix("%}")?,
    };
    Some(text.len() - after.len())
}

/// The length of digits with single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut length = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_digit(radix) {
            length = at + 1;
        } else if c != '_' || !chars.peek().is_some_and(|(_, next)| next.is_digit(radix)) {
            break;
        }
    }
    length
}

/// Replaces the escapes of a string as Python's `unicode-escape` does.
fn unescape(text: &str) -> std::result::Result<String, String> {
    if !text.contains('\\') {
        return Ok(text.into());
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(escape) = chars.next() else { break };
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(escape),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                out.extend(char::from_u32(code));
            }
            'x' | 'u' | 'U' => {
                let code: String = chars.by_ref().take(digits).collect();
                let value = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits);
                let found = value.and_then(char::from_u32);
                out.push(found.ok_or_else(|| format!("invalid escape \\{escape}{code} in a string"))?);
            }
            'N' => return Err("the escape \\N{…} in a string is not supported; write the character".into()),
            // Python encodes other characters to escapes first, so that the backslash escapes the escape.
            c if !c.is_ascii() => out.push_str(&match c as u32 {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x10000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
            c => out.extend(['\\', c]),
        }
    }
    Ok(out)
}
