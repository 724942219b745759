//! Settings of a template.

/// How a template is read, and what a missing value does. The default is Jinja2's.
///
/// transformers renders chat templates with `trim_blocks` and `lstrip_blocks`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether the first line feed after a block tag or a comment is removed.
    pub trim_blocks: bool,
    /// Whether spaces between the start of a line and a block tag or a comment are removed.
    pub lstrip_blocks: bool,
    /// Whether a line feed at the end of the template is kept. Otherwise one is removed.
    pub keep_trailing_newline: bool,
    /// What a missing value does.
    pub undefined: Undefined,
}

/// What a missing value does. Its attributes and calculations with it are always errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Undefined {
    /// It is an empty text, and has no items.
    #[default]
    Default,
    /// Its text and its items are errors. It can be a condition, be compared for equality, tested with `is defined`, and
    /// replaced with the filter `default`. `a if b` without `else` remains an empty text where `b` is false.
    ///
    /// This is less strict than `StrictUndefined` of Jinja2, which refuses conditions and comparisons too.
    Strict,
}
