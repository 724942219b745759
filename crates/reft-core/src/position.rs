//! Which tokens of a prompt are edited.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range, str::FromStr};

/// Token positions of a prompt: its first `f` and last `l` tokens, or all of them.
///
/// Written `f7+l7`, `l1`, `f3`, `all`; the parts may come in any order. As in pyreft
/// (`get_intervention_locations`), each side is clamped to half of the prompt, so that prefix and suffix
/// never overlap. Positions that a short prompt does not have are simply absent.
///
/// Positions are counted within the prompt only, never from padding and never into the answer: training,
/// evaluation and generation therefore edit the same tokens.
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

/// A text that does not name positions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("positions {found:?}: {reason}; expected `fN`, `lN`, `fN+lM` or `all`, for example `f7+l7`")]
pub struct PositionsError {
    found: String,
    reason: String,
}

/// Where one example's prompt lies in a padded row of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSpan {
    /// Index of the prompt's first token in its padded row (the amount of left padding).
    pub start: usize,
    /// Number of prompt tokens.
    pub len: usize,
}

/// Which of a prompt's edited positions an intervention acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All of them (tied).
    All,
    /// The first positions (untied).
    Prefix,
    /// The last positions (untied).
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

/// Rows of the flattened batch `[batch · seq, hidden]`, by side of the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows of the first positions (all rows for [`Positions::All`]).
    pub prefix: Vec<usize>,
    /// Rows of the last positions.
    pub suffix: Vec<usize>,
}

impl Rows {
    /// Prefix and suffix rows together, as one tied intervention edits them.
    pub fn all(&self) -> Vec<usize> {
        self.prefix.iter().chain(&self.suffix).copied().collect()
    }
}

impl Positions {
    /// The prefix and the suffix of a prompt of `len` tokens, as token indices.
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

    /// Whether the positions have both a prefix and a suffix, which can then be edited by two
    /// separate (untied) interventions.
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
                _ => return Err(fail(format!("cannot read the part {part:?}"))),
            };
            let digits = chars.as_str();
            let count = match digits.parse::<usize>() {
                Ok(n) if n > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => n,
                _ => return Err(fail(format!("{part:?} needs a whole number above 0 after its letter"))),
            };
            if slot.replace(count).is_some() {
                return Err(fail(format!("{:?} is given twice", &part[..1])));
            }
        }
        match (all, parts.len()) {
            (true, 1) => Ok(Positions::All),
            (true, _) => Err(fail("`all` stands alone".into())),
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
    fn parts_come_in_any_order() {
        assert_eq!(parse("f7+l3"), Positions::Ends { first: 7, last: 3 });
        assert_eq!(parse("l3+f7"), parse("f7+l3"));
        assert_eq!(parse(" l1 "), Positions::Ends { first: 0, last: 1 });
        assert_eq!(parse("all"), Positions::All);
    }

    #[test]
    fn anything_else_is_an_error_that_quotes_it() {
        for text in ["", "7", "f", "f0", "x3", "f1+f2", "all+f1", "f1+", "f-1", "f1.5", "F1", "f+3"] {
            let error = text.parse::<Positions>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("f7+l7"), "{error}");
        }
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["f7+l7", "l1", "f3", "all"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn each_side_is_clamped_to_half_of_the_prompt() {
        let positions = parse("f7+l7");
        assert_eq!(positions.of_prompt(20), (0..7, 13..20));
        assert_eq!(positions.of_prompt(5), (0..2, 3..5));
        assert_eq!(positions.of_prompt(1), (0..0, 1..1));
        assert_eq!(parse("all").of_prompt(4).0, 0..4);
    }

    #[test]
    fn rows_follow_the_prompt_through_left_padding() {
        let spans = [PromptSpan { start: 2, len: 4 }, PromptSpan { start: 0, len: 6 }];
        let rows = parse("f1+l2").rows(&spans, 6);
        assert_eq!(rows.prefix, [2, 6]);
        assert_eq!(rows.suffix, [4, 5, 10, 11]);
        assert_eq!(rows.all(), [2, 6, 4, 5, 10, 11]);
    }
}
