//! The edited token positions of a prompt.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range, str::FromStr};

/// Token positions of a prompt: its first `f` and last `l` tokens, or all of them.
///
/// Written `f7+l7`, `l1`, `f3` or `all`; the parts may be in any order. As in pyreft (`get_intervention_locations`),
/// each side is limited to half of the prompt, so that prefix and suffix never overlap; short prompts have fewer
/// positions.
///
/// Positions are counted within the prompt, without padding and without the answer, so training, evaluation and
/// generation edit the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Positions {
    /// Every token of the prompt.
    All,
    /// The first `first` and the last `last` tokens of the prompt.
    Ends {
        /// Number of positions at the start of the prompt.
        first: usize,
        /// Number of positions at the end of the prompt.
        last: usize,
    },
}

/// A text that cannot be parsed as positions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("positions {found:?}: {reason}; expected `fN`, `lN`, `fN+lM` or `all`, for example `f7+l7`")]
pub struct PositionsError {
    found: String,
    reason: String,
}

/// The location of a prompt in its padded row of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSpan {
    /// Index of the first prompt token in the row (the amount of left padding).
    pub start: usize,
    /// Number of prompt tokens.
    pub len: usize,
}

/// The part of the positions that an intervention edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All positions (tied).
    All,
    /// The first tokens of the prompt (untied).
    Prefix,
    /// The last tokens of the prompt (untied).
    Suffix,
}

impl Part {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Part::All => "all",
            Part::Prefix => "prefix",
            Part::Suffix => "suffix",
        }
    }
}

/// Edited rows of the flattened batch `[batch · seq, hidden]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows of the first tokens of each prompt (of all its tokens for [`Positions::All`]).
    pub prefix: Vec<usize>,
    /// Rows of the last tokens of each prompt.
    pub suffix: Vec<usize>,
}

impl Rows {
    /// Prefix and suffix rows, which a tied intervention edits together.
    pub fn all(&self) -> Vec<usize> {
        self.prefix.iter().chain(&self.suffix).copied().collect()
    }

    /// The rows of a part.
    pub fn of(self, part: Part) -> Vec<usize> {
        match part {
            Part::All => self.all(),
            Part::Prefix => self.prefix,
            Part::Suffix => self.suffix,
        }
    }
}

impl Positions {
    /// Token indices of the prefix and the suffix of a prompt with `len` tokens.
    pub fn of_prompt(&self, len: usize) -> (Range<usize>, Range<usize>) {
        match *self {
            Positions::All => (0..len, len..len),
            Positions::Ends { first, last } => {
                let half = len / 2;
                (0..first.min(half), len - last.min(half)..len)
            }
        }
    }

    /// The edited rows of a batch whose rows are padded to `seq` tokens.
    pub fn rows(&self, prompts: &[PromptSpan], seq: usize) -> Rows {
        let mut rows = Rows::default();
        for (idx, prompt) in prompts.iter().enumerate() {
            let origin = idx * seq + prompt.start;
            let (prefix, suffix) = self.of_prompt(prompt.len);
            rows.prefix.extend(prefix.map(|p| origin + p));
            rows.suffix.extend(suffix.map(|p| origin + p));
        }
        rows
    }

    /// Whether there is both a prefix and a suffix, which can be edited by two separate (untied) interventions.
    pub fn has_two_sides(&self) -> bool {
        matches!(self, Positions::Ends { first, last } if *first > 0 && *last > 0)
    }
}

impl FromStr for Positions {
    type Err = PositionsError;

    fn from_str(text: &str) -> Result<Self, PositionsError> {
        let fail = |reason: String| PositionsError { found: text.to_string(), reason };
        let (mut first, mut last, mut all) = (None, None, false);
        let parts: Vec<&str> = text.split('+').map(str::trim).collect();
        for part in &parts {
            if *part == "all" {
                all = true;
                continue;
            }
            let mut chars = part.chars();
            let slot = match chars.next() {
                Some('f') => &mut first,
                Some('l') => &mut last,
                _ => return Err(fail(format!("cannot parse {part:?}"))),
            };
            let digits = chars.as_str();
            let count = match digits.parse::<usize>() {
                Ok(n) if n > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => n,
                _ => return Err(fail(format!("{part:?} must have a whole number above 0 after the letter"))),
            };
            if slot.replace(count).is_some() {
                return Err(fail(format!("{:?} is given twice", &part[..1])));
            }
        }
        match (all, parts.len()) {
            (true, 1) => Ok(Positions::All),
            (true, _) => Err(fail("`all` cannot be combined with other parts".into())),
            _ => Ok(Positions::Ends { first: first.unwrap_or(0), last: last.unwrap_or(0) }),
        }
    }
}

impl TryFrom<String> for Positions {
    type Error = PositionsError;
    fn try_from(text: String) -> Result<Self, PositionsError> {
        text.parse()
    }
}

impl From<Positions> for String {
    fn from(positions: Positions) -> String {
        positions.to_string()
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Positions::All => write!(f, "all"),
            Positions::Ends { first, last: 0 } => write!(f, "f{first}"),
            Positions::Ends { first: 0, last } => write!(f, "l{last}"),
            Positions::Ends { first, last } => write!(f, "f{first}+l{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Positions {
        text.parse().expect("valid positions")
    }

    #[test]
    fn parts_may_be_in_any_order() {
        assert_eq!(parse("f7+l3"), Positions::Ends { first: 7, last: 3 });
        assert_eq!(parse("l3+f7"), parse("f7+l3"));
        assert_eq!(parse(" l1 "), Positions::Ends { first: 0, last: 1 });
        assert_eq!(parse("all"), Positions::All);
    }

    #[test]
    fn invalid_texts_are_errors_that_quote_them() {
        for (text, reason) in [
            ("", r#"cannot parse """#),
            ("7", r#"cannot parse "7""#),
            ("x3", r#"cannot parse "x3""#),
            ("F1", r#"cannot parse "F1""#),
            ("f1+", r#"cannot parse """#),
            ("f", r#""f" must have a whole number above 0 after the letter"#),
            ("f0", r#""f0" must have a whole number above 0 after the letter"#),
            ("f-1", r#""f-1" must have a whole number above 0 after the letter"#),
            ("f1.5", r#""f1.5" must have a whole number above 0 after the letter"#),
            ("f+3", r#""f" must have a whole number above 0 after the letter"#),
            ("f1+f2", r#""f" is given twice"#),
            ("all+f1", "`all` cannot be combined with other parts"),
        ] {
            assert_eq!(
                text.parse::<Positions>().expect_err(text).to_string(),
                format!(
                    "positions {text:?}: {reason}; expected `fN`, `lN`, `fN+lM` or `all`, for example `f7+l7`"
                )
            );
        }
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["f7+l7", "l1", "f3", "all"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn each_side_is_limited_to_half_of_the_prompt() {
        let positions = parse("f7+l7");
        assert_eq!(positions.of_prompt(20), (0..7, 13..20));
        assert_eq!(positions.of_prompt(5), (0..2, 3..5));
        assert_eq!(positions.of_prompt(1), (0..0, 1..1));
        assert_eq!(parse("all").of_prompt(4).0, 0..4);
    }

    #[test]
    fn rows_are_offset_by_left_padding() {
        let spans = [PromptSpan { start: 2, len: 4 }, PromptSpan { start: 0, len: 6 }];
        let rows = parse("f1+l2").rows(&spans, 6);
        assert_eq!(rows.prefix, [2, 6]);
        assert_eq!(rows.suffix, [4, 5, 10, 11]);
        assert_eq!(rows.all(), [2, 6, 4, 5, 10, 11]);
    }
}
